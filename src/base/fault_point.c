/*-------------------------------------------------------------------------
 *
 * base/fault_point.c
 *		Places where a test can have the process killed, an error raised, or an
 *		allocation fail.
 *
 * Empty unless built with TESTING=1.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef DOUBLETICK_TESTING

#include <limits.h>
#include <signal.h>
#include <unistd.h>

#include "base/fault_point.h"
#include "utils/guc.h"

static char *setting_fault_point;
static int	setting_fault_point_skip;
static int	setting_fault_allocation;

/*
 * Defines the settings doubletick.fault_point, doubletick.fault_point_skip and
 * doubletick.fault_allocation.
 */
void
fault_point_init(void)
{
	DefineCustomStringVariable("doubletick.fault_point",
							   "Names the place where the process is killed.",
							   "With the prefix \"error:\", an error is raised there instead.", &setting_fault_point, "",
							   PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("doubletick.fault_point_skip",
							"Sets how often a process passes that place before it is killed.",
							NULL, &setting_fault_point_skip, 0, 0, INT_MAX,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("doubletick.fault_allocation",
							"Sets which allocation of libcurl is to fail, counted from now.",
							NULL, &setting_fault_allocation, 0, 0, INT_MAX,
							PGC_SUSET, 0, NULL, NULL, NULL);
}

/*
 * Is this the allocation that is to fail?  Counts the setting down to 0.
 */
bool
fault_allocation(void)
{
	return setting_fault_allocation > 0 && --setting_fault_allocation == 0;
}

/*
 * Called by FAULT_POINT(name).  Kills the process, as a kernel short of memory would,
 * if the setting names this place and the process has passed it as often as the other
 * setting says.  With "error:" it raises an error each time, as a full disk would.
 */
void
fault_point(const char *name)
{
	static int	passed = 0;

	if (strcmp(name, setting_fault_point) == 0 && passed++ == setting_fault_point_skip)
		kill(getpid(), SIGKILL);
	if (strncmp(setting_fault_point, "error:", 6) == 0 &&
		strcmp(name, setting_fault_point + 6) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DISK_FULL), errmsg("fault point \"%s\"", name)));
}

#endif							/* DOUBLETICK_TESTING */

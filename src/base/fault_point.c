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

#include "access/xact.h"
#include "base/fault_point.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/memnodes.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/* PostgreSQL has four kinds of memory contexts at most. */
#define MAX_CONTEXT_KINDS 4

/* The methods of a kind of memory context, and a copy whose allocations may fail. */
typedef struct ContextKind
{
	const MemoryContextMethods *own;
	MemoryContextMethods failing;
} ContextKind;

static char *setting_fault_point;
static int	setting_fault_point_skip;
static int	setting_fault_allocation;
static int	setting_fault_palloc;

/*
 * In this context nothing fails: PostgreSQL 15 to 18 then keep an entry without a value in
 * their hash table of statistics, and later take a value that is left there for that of
 * the entry (pgstat_get_entry_ref_cached()).
 */
#define STATISTICS_REFERENCES "PgStat Shared Ref"

static ContextKind context_kinds[MAX_CONTEXT_KINDS];

static void assign_fault_palloc(int newval, void *extra);
static void replace_methods(MemoryContext context, bool failing);
static ContextKind *kind_of(MemoryContext context);
static void *alloc_or_fail(CONTEXT_ALLOC_ARGUMENTS);

/*
 * Defines the settings doubletick.fault_point, doubletick.fault_point_skip,
 * doubletick.fault_allocation and doubletick.fault_palloc.
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
	DefineCustomIntVariable("doubletick.fault_palloc",
							"Sets which allocation in a memory context is to fail, counted from now.",
							NULL, &setting_fault_palloc, 0, 0, INT_MAX,
							PGC_SUSET, 0, NULL, assign_fault_palloc, NULL);
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
 * Contexts have other methods while an allocation is to fail.
 */
static void
assign_fault_palloc(int newval, void *extra pg_attribute_unused())
{
	if (newval > 0 || setting_fault_palloc > 0)
		replace_methods(TopMemoryContext, newval > 0);
}

/* In a context and all contexts below it. */
static void
replace_methods(MemoryContext context, bool failing)
{
	ContextKind *kind;

	if (context == ErrorContext || strcmp(context->name, STATISTICS_REFERENCES) == 0)
		return;
	kind = kind_of(context);
	context->methods = failing ? &kind->failing : kind->own;
	for (MemoryContext child = context->firstchild; child != NULL; child = child->nextchild)
		replace_methods(child, failing);
}

static ContextKind *
kind_of(MemoryContext context)
{
	ContextKind *kind = context_kinds;

	while (kind->own != NULL && kind->own != context->methods &&
		   context->methods != &kind->failing)
		kind++;
	if (kind->own == NULL)
	{
		kind->own = context->methods;
		kind->failing = *context->methods;
		kind->failing.alloc = alloc_or_fail;
	}
	return kind;
}

/*
 * The method "alloc" while an allocation is to fail.  PostgreSQL aborts the server when
 * one fails in a critical section, and sees to it that none is made there; it does so as
 * well when it has committed.
 *
 * The contexts that PostgreSQL has made since the last allocation get these methods, too.
 * Those of the library have them from the beginning (__wrap_AllocSetContextCreateInternal).
 */
static void *
alloc_or_fail(CONTEXT_ALLOC_ARGUMENTS)
{
	if (setting_fault_palloc > 0 && CritSectionCount == 0 && IsTransactionState())
	{
		bool		fails = --setting_fault_palloc == 0;

		replace_methods(TopMemoryContext, !fails);
		if (fails)
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of memory"),
					 errdetail("The setting \"doubletick.fault_palloc\" asks for it.")));
	}
	return kind_of(context)->own->alloc(CONTEXT_ALLOC_PASSED);
}

/*
 * The linker has the library call this in place of the original (Makefile).
 */
MemoryContext
__wrap_AllocSetContextCreateInternal(MemoryContext parent, const char *name,
									 Size least, Size first, Size largest)
{
	MemoryContext context = __real_AllocSetContextCreateInternal(parent, name, least,
																 first, largest);

	if (setting_fault_palloc > 0)
		replace_methods(context, true);
	return context;
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

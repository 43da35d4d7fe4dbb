/*-------------------------------------------------------------------------
 *
 * doubletick.c
 *		Module entry point: each part of the extension sets itself up.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/fault_point.h"
#include "base/shared.h"
#include "call/executor.h"
#include "compat.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "settings.h"
#include "worker/launcher.h"

DOUBLETICK_MODULE_MAGIC(DOUBLETICK_VERSION);

void		_PG_init(void);

/*
 * Called when the library is loaded into a process.  libcurl is not set up here but
 * by the first request of a process, since that must follow the fork.
 */
void
_PG_init(void)
{
	fault_point_init();
	executor_init();
	settings_init();			/* reserves the prefix: must be the last */
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
	{
		shared_init();
		launcher_register();
	}
}

/*-------------------------------------------------------------------------
 *
 * worker/process.c
 *		What the launcher and the workers have in common as processes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/clock.h"
#include "compat.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "worker/process.h"

/*
 * Describes a process to the postmaster, which runs doubletick_KIND_main() in it.
 * Zeroed first, so that fields of later versions have their defaults.
 */
void
process_describe(BackgroundWorker *process, const char *kind)
{
	memset(process, 0, sizeof(BackgroundWorker));
	process->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	process->bgw_start_time = BgWorkerStart_RecoveryFinished;
	strlcpy(process->bgw_library_name, "doubletick", BGW_MAXLEN);
	snprintf(process->bgw_function_name, BGW_MAXLEN, "doubletick_%s_main", kind);
	snprintf(process->bgw_type, BGW_MAXLEN, "doubletick %s", kind);
	strlcpy(process->bgw_name, process->bgw_type, BGW_MAXLEN);
}

/*
 * Called first in a new process: connects it to a database, or, with InvalidOid,
 * to the shared catalogs alone.
 */
void
process_begin(Oid database)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
}

/*
 * Called in each turn of a process: obeys a termination, and reads the
 * configuration again when that is asked for.  True when it was.
 */
bool
process_reload(void)
{
	CHECK_FOR_INTERRUPTS();
	if (!ConfigReloadPending)
		return false;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	return true;
}

/*
 * Waits for so many milliseconds, if any, or until the latch is set.
 */
void
process_wait(WaitReason reason, int64 timeout)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, (long) Max(timeout, 0),
					 wait_event_number(reason));
	ResetLatch(MyLatch);
}

/*
 * Notes that no worker could be started, or that it failed: the next one comes
 * after a pause, which grows with each failure in a row.  Returns the number of
 * failures.  The caller holds the lock of the shared memory.
 */
int
process_put_off(SharedDatabase *database)
{
	int64		pause = Min(PROCESS_FIRST_PAUSE << Min(database->failures, 16), PROCESS_LONGEST_PAUSE);

	database->wanted_at = 0;
	database->exploring = false;	/* others need not wait for it */
	database->not_before = clock_now() + pause;
	return ++database->failures;
}

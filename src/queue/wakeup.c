/*-------------------------------------------------------------------------
 *
 * queue/wakeup.c
 *		Wakes the worker when a transaction that has enqueued something commits.
 *
 * Enqueueing sessions note in shared memory that there is work, and set the latch
 * of the worker or, if there is none, of the launcher.  This runs after the commit,
 * where no error may be raised, so nothing here can raise one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/shared.h"
#include "miscadmin.h"
#include "queue/wakeup.h"
#include "storage/latch.h"

static void wake_worker_at_xact_end(XactEvent event, void *arg);
static void wake_worker(void);

/* Must the worker be woken when this transaction commits? */
static bool wake_at_commit = false;

/*
 * Called when a removal was enqueued: wakes the worker of this database when the
 * transaction commits.  PREPARE TRANSACTION wakes it, too, since COMMIT PREPARED
 * cannot: the worker then stays until the prepared transaction has ended.
 */
void
wake_worker_at_commit(void)
{
	static bool registered = false;

	if (shared == NULL)
		return;
	if (!registered)
		RegisterXactCallback(wake_worker_at_xact_end, NULL);
	registered = true;
	wake_at_commit = true;
}

static void
wake_worker_at_xact_end(XactEvent event, void *arg pg_attribute_unused())
{
	if (!wake_at_commit)
		return;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			wake_at_commit = false;
			wake_worker();
			break;
		case XACT_EVENT_ABORT:
			wake_at_commit = false;
			break;
		default:
			break;
	}
}

static void
wake_worker(void)
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, true);

	if (database)
	{
		database->wanted_at = 0;
		database->exploring = false;
		if (database->proc)
			SetLatch(&database->proc->procLatch);
		else
			shared_wake_launcher();
	}
	shared_unlock();
}

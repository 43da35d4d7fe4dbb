/*-------------------------------------------------------------------------
 *
 * queue/wakeup.c
 *		Wakes the worker when a transaction that has enqueued something commits.
 *
 * This is what enqueuing sessions do for the worker: to leave in shared memory
 * that there is work, and to set the latch of whoever is to see it.  What runs
 * after a commit may raise no error, so there is nothing here that could.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/shared.h"
#include "miscadmin.h"
#include "queue/wakeup.h"
#include "storage/latch.h"

static void xact_ended(XactEvent event, void *arg);
static void notify_worker(bool prepared);

/* Must the worker be woken when this transaction commits? */
static bool wake_at_commit = false;

/*
 * Wakes the worker of this database when the transaction commits.  Called by
 * whatever enters a removal.
 */
void
wake_worker_at_commit(void)
{
	static bool registered = false;

	if (shared == NULL)
		return;
	if (!registered)
		RegisterXactCallback(xact_ended, NULL);
	registered = true;
	wake_at_commit = true;
}

static void
xact_ended(XactEvent event, void *arg pg_attribute_unused())
{
	if (!wake_at_commit)
		return;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			wake_at_commit = false;
			notify_worker(event == XACT_EVENT_PREPARE);
			break;
		case XACT_EVENT_ABORT:
			wake_at_commit = false;
			break;
		default:
			break;
	}
}

/*
 * Leaves in shared memory that there is work, or that there will be when a
 * transaction that is prepared now is committed: whoever commits it does not know
 * what is in it, so a worker is to be there until it has ended.
 */
static void
notify_worker(bool prepared)
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, true);

	if (database)
	{
		if (prepared)
			database->has_prepared = true;
		else
			database->wake = true;
		database->exploring = false;
		if (database->proc)
			SetLatch(&database->proc->procLatch);
		else if (shared->launcher)
			SetLatch(&shared->launcher->procLatch);
	}
	shared_unlock();
}

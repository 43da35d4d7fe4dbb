/*-------------------------------------------------------------------------
 *
 * queue/update.c
 *		dt_begin_update(): has the queue for the script that updates the extension.
 *
 * Not a function of the extension: each update script creates it, calls it first
 * and drops it (see src/README, Releases).  So a drainer of the old version has
 * settled all its requests before the script changes a table, and none begins
 * before the update has committed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/shared.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue/locks.h"
#include "queue/wakeup.h"

static void let_worker_start(void);

PG_FUNCTION_INFO_V1(dt_begin_update);

/*
 * dt_begin_update() returns void
 *
 * Waits until nobody drains.  At commit the worker is woken, which may have failed
 * since the versions did not fit.
 */
Datum
dt_begin_update(FunctionCallInfo fcinfo pg_attribute_unused())
{
	lock_for_update();
	if (shared)
		let_worker_start();
	wake_worker_at_commit();
	PG_RETURN_VOID();
}

/* Lifts the pause after failures. */
static void
let_worker_start(void)
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, false);

	if (database)
	{
		database->failures = 0;
		database->not_before = 0;
	}
	shared_unlock();
}

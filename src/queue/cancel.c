/*-------------------------------------------------------------------------
 *
 * queue/cancel.c
 *		dt_cancel(): takes a waiting removal out of the queue.
 *
 * The removal must not be sent any more once the cancelling transaction has
 * committed, and must be sent if it rolls back.  So dt_cancel() holds the
 * customer's partition lock (locks.c) until the transaction ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue/customer_number.h"
#include "queue/enqueue.h"
#include "queue/history.h"
#include "queue/locks.h"
#include "queue/wakeup.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static bool withhold_removal(Store *waiting, int64 id, QueueRow *row);
static void wake_customer(Store *waiting, const QueueRow *cancelled);
static bool find_other_removal(Store *waiting, const QueueRow *row, QueueRow *found);

PG_FUNCTION_INFO_V1(dt_cancel);

/*
 * dt_cancel(id bigint) returns boolean
 */
Datum
dt_cancel(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Store		waiting;
	Store		settled;
	QueueRow	row;
	bool		is_taken;

	queue_check_writable("dt_cancel()");

	/* Else what this statement has enqueued could not be deleted. */
	CommandCounterIncrement();
	store_open(&waiting, RELATION_WAITING);
	is_taken = withhold_removal(&waiting, id, &row) && store_delete(&waiting, &row.tid, true);
	if (is_taken)
	{
		store_open(&settled, RELATION_SETTLED);
		history_insert(&settled, &row, STATE_CANCELLED, NULL, "taken out by dt_cancel");
		store_close(&settled);
		if (!row.replicated && row.attempts > 0 && row.due_at > GetCurrentTimestamp())
			wake_customer(&waiting, &row);
	}
	store_close(&waiting);

	/*
	 * A removal that was tried, or is the publisher's, may have been carried
	 * out.
	 */
	PG_RETURN_BOOL(is_taken && row.attempts == 0 && row.http_status == 0 && !row.replicated);
}

/*
 * Reads the waiting removal with this id and prevents it from being sent until the
 * transaction ends.  False when a request of its customer is in flight, or when the
 * caller's roles have no such removal.  One that arrived by logical replication is not
 * sent from here, and its role may be another one here: who may delete it from the
 * table may cancel it.
 */
static bool
withhold_removal(Store *waiting, int64 id, QueueRow *row)
{
	if (store_find_replicated(waiting, id, row))
		return !row->keep &&
			pg_class_aclcheck(RelationGetRelid(waiting->rel), GetUserId(), ACL_DELETE) == ACLCHECK_OK;

	/* Read first to see which locks to take, and again under them. */
	return store_find_waiting(waiting, id, row) &&
		!row->keep && has_privs_of_role(GetUserId(), row->role) &&
		lock_against_sending(row) &&
		store_find_waiting(waiting, id, row);
}

/*
 * While one of a customer's removals waits to be due, all of them do.  One that did has
 * been cancelled: has the drainer look at another one, and so at the customer.
 */
static void
wake_customer(Store *waiting, const QueueRow *cancelled)
{
	QueueRow	other;
	QueueRow	marker;

	if (!find_other_removal(waiting, cancelled, &other))
		return;
	queue_make_marker(&marker, &other);
	store_insert_waiting(waiting, &marker);
	wake_worker_at_commit();
}

static bool
find_other_removal(Store *waiting, const QueueRow *row, QueueRow *found)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		is_found = false;

	ScanKeyInit(&keys[0], WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(row->customer));
	ScanKeyInit(&keys[1], WAITING_KEEP, BTEqualStrategyNumber, F_BOOLEQ, BoolGetDatum(false));
	scan = store_scan(waiting, RELATION_WAITING_CUSTOMER, SnapshotSelf, 2, keys);
	while (!is_found && HeapTupleIsValid(tuple = store_next(scan)))
	{
		store_read_waiting(waiting, tuple, found);
		is_found = found->id != row->id && !found->replicated && store_is_same_customer(found, row);
	}
	store_end_scan(scan);
	return is_found;
}

/*-------------------------------------------------------------------------
 *
 * queue/retry.c
 *		dt_retry(): puts a failed removal back into the queue.
 *
 * The removal keeps its id, so a second row, with a new id, tells the drainer of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue/enqueue.h"
#include "queue/history.h"
#include "queue/phones.h"
#include "queue/wakeup.h"
#include "utils/acl.h"
#include "utils/builtins.h"

static Fault *find_why_unsendable(const QueueRow *row);
static void say_not_put_back(const QueueRow *row, Fault *fault);
static void enqueue_again(Store *waiting, QueueRow *row);

PG_FUNCTION_INFO_V1(dt_retry);

/*
 * dt_retry(id bigint) returns boolean
 *
 * A removal that can never be sent stays in the history, and a NOTICE says why: one such
 * row must not undo a statement that puts many back.
 */
Datum
dt_retry(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Store		waiting;
	Store		settled;
	QueueRow	row;
	bool		is_found;
	Fault	   *fault;

	queue_check_writable("dt_retry()");

	/* Else what this statement has entered as failed could not be deleted. */
	CommandCounterIncrement();
	store_open(&waiting, RELATION_WAITING);
	store_open(&settled, RELATION_SETTLED);
	is_found = history_find_failed(&settled, id, &row) &&
		has_privs_of_role(GetUserId(), row.role);
	fault = is_found ? find_why_unsendable(&row) : NULL;
	if (fault)
		say_not_put_back(&row, fault);
	is_found = is_found && fault == NULL && store_delete(&settled, &row.tid, true);
	if (is_found)
		enqueue_again(&waiting, &row);
	store_close(&settled);
	store_close(&waiting);
	PG_RETURN_BOOL(is_found);
}

/*
 * NULL if the row can be sent.  What the trigger has put into the history as failed may
 * hold a bad phone or bad names, and a role may have been dropped.
 */
static Fault *
find_why_unsendable(const QueueRow *row)
{
	Removal		removal;

	if (GetUserNameFromId(row->role, true) == NULL)
		return fault_hint(fault_make(ERRCODE_UNDEFINED_OBJECT, "role does not exist any more"),
						  "Enqueue it again as another role.");
	return payload_check(cstring_to_text(row->phone), row->tags, row->fields,
						 row->waba ? cstring_to_text(row->waba) : NULL, &removal);
}

static void
say_not_put_back(const QueueRow *row, Fault *fault)
{
	fault_about(fault, row->phone, row->server, row->role);
	ereport(NOTICE,
			(errmsg("removal " INT64_FORMAT " is not put back: %s", row->id, fault->message),
			 fault->hint ? errhint("%s", fault->hint) : 0,
			 errcontext("%s", fault->context)));
}

/*
 * Inserts a row again, with its old id, and a marker row.  The marker's new id becomes
 * the row's "ord", so that only keeps that come later take its names back.
 */
static void
enqueue_again(Store *waiting, QueueRow *row)
{
	QueueRow	marker;

	queue_make_marker(&marker, row);
	row->ord = marker.id;
	row->xact = marker.xact;
	row->customer = marker.customer;
	row->enqueued_at = row->due_at = marker.enqueued_at;

	store_insert_waiting(waiting, row);
	store_insert_waiting(waiting, &marker);
	phones_forget();
	wake_worker_at_commit();
}

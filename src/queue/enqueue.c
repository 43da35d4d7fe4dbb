/*-------------------------------------------------------------------------
 *
 * queue/enqueue.c
 *		The door to the queue: removals and keeps come in, and some go back.
 *
 * A user's transaction only inserts: it never waits for the drainer, and fails
 * for nothing that the drainer does, at any isolation level.  What comes in is
 * a removal, or a keep: names that a customer has again.  A keep takes those
 * names back from removals that were entered before it (see due.c).
 *
 * Only dt_cancel() and dt_retry() take a row away, each under the customer's
 * door (claim.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "base/names.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue/batch.h"
#include "queue/enqueue.h"
#include "queue/history.h"
#include "queue/locks.h"
#include "queue/store.h"
#include "queue/wakeup.h"
#include "settings.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* A customer with rows that wait. */
typedef struct Busy
{
	int64		customer;
	char		status;
} Busy;

#define SH_PREFIX busy
#define SH_ELEMENT_TYPE Busy
#define SH_KEY_TYPE int64
#define SH_KEY customer
#define SH_HASH_KEY(tb, key) murmurhash32((uint32) ((key) ^ ((key) >> 32)))
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* Customers looked for that are worth reading one block of the table for. */
#define LOOKS_PER_BLOCK 16

struct Queue
{
	Store		waiting;
	Batch	   *batch;			/* NULL: rows are entered one by one */
	int64		nlooks;			/* of queue_may_have_waiting() so far */
	busy_hash  *busy;			/* NULL: anybody may be */
};

static void find_busy(Queue *queue);
static void insert(Queue *queue, const QueueRow *row);
static void fill_row(QueueRow *row, const Requester *requester, const Removal *removal);
static void find_rows(Store *waiting, const QueueRow *customer, List **removals, List **keeps);
static int	leave_waiting(const char **names, int nnames, List *removals, List *keeps,
						  ArrayType *(*names_of) (const QueueRow *row));
static ArrayType *tags_of(const QueueRow *row);
static ArrayType *fields_of(const QueueRow *row);
static void check_writable(const char *command);
static bool find_withheld(Store *waiting, int64 id, QueueRow *row);
static void put_back(QueueRow *row);
static void check_sendable(const QueueRow *row);

PG_FUNCTION_INFO_V1(dt_enqueue_remove_tags_custom_fields);
PG_FUNCTION_INFO_V1(dt_cancel);
PG_FUNCTION_INFO_V1(dt_retry);

/*
 * dt_enqueue_remove_tags_custom_fields(phone text, tags text[], fields text[],
 * waba text) returns bigint
 */
Datum
dt_enqueue_remove_tags_custom_fields(PG_FUNCTION_ARGS)
{
#define ARGUMENT(n, get) (PG_ARGISNULL(n) ? NULL : get(n))
	Requester	requester;
	Removal		removal;
	Fault	   *fault;
	Queue	   *queue;
	int64		id;

	check_writable("dt_enqueue_remove_tags_custom_fields()");
	fault = payload_check(ARGUMENT(0, PG_GETARG_TEXT_PP),
						  ARGUMENT(1, PG_GETARG_ARRAYTYPE_P),
						  ARGUMENT(2, PG_GETARG_ARRAYTYPE_P),
						  ARGUMENT(3, PG_GETARG_TEXT_PP), &removal);
	if (fault)
		fault_raise(fault);

	requester.server = setting_server;
	requester.role = GetUserId();
	requester.enqueued_by = GetOuterUserId();
	queue = queue_open(1);
	id = queue_add_removal(queue, &requester, &removal);
	queue_close(queue);
	PG_RETURN_INT64(id);
#undef ARGUMENT
}

/*
 * Opens the queue for at most so many removals and keeps.  What is entered is
 * there when the queue is closed: a customer's keeps come before its removals, or
 * do not take them back.
 */
Queue *
queue_open(int64 nrows)
{
	Queue	   *queue = palloc0(sizeof(Queue));

	store_open(&queue->waiting, RELATION_WAITING);
	if (nrows > 1)
		queue->batch = batch_create(&queue->waiting, nrows);
	return queue;
}

void
queue_close(Queue *queue)
{
	if (queue->batch)
		batch_finish(queue->batch);
	store_close(&queue->waiting);
	if (queue->busy)
		busy_destroy(queue->busy);
	pfree(queue);
}

/*
 * Enters a removal that payload_check() has passed, or could.  Returns its id.
 */
int64
queue_add_removal(Queue *queue, const Requester *requester, const Removal *removal)
{
	QueueRow	row;

	fill_row(&row, requester, removal);
	insert(queue, &row);
	wake_worker_at_commit();
	return row.id;
}

static void
insert(Queue *queue, const QueueRow *row)
{
	if (queue->batch)
		batch_add(queue->batch, row);
	else
		store_insert_waiting(&queue->waiting, row);
}

/*
 * May something wait for this customer?  If not, to keep anything is in vain.
 *
 * Who asks often had better know at once for which customers something does:
 * when as much has been looked up as it takes to read the table, it is read.
 */
bool
queue_may_have_waiting(Queue *queue, const Requester *requester, const Removal *names)
{
	if (queue->busy == NULL && ++queue->nlooks % LOOKS_PER_BLOCK == 0 &&
		queue->nlooks / LOOKS_PER_BLOCK > RelationGetNumberOfBlocks(queue->waiting.rel))
		find_busy(queue);
	return queue->busy == NULL ||
		busy_lookup(queue->busy, store_customer(requester->server, requester->role,
												names->phone, names->waba)) != NULL;
}

/* The customers with removals that wait, as queue_add_keep() would find them. */
static void
find_busy(Queue *queue)
{
	TupleDesc	desc = RelationGetDescr(queue->waiting.rel);
	SnapshotData dirty;
	SysScanDesc scan;
	HeapTuple	tuple;

	queue->busy = busy_create(GetMemoryChunkContext(queue), 64, NULL);
	InitDirtySnapshot(dirty);
	scan = systable_beginscan(queue->waiting.rel, InvalidOid, false, &dirty, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		bool		found;

		CHECK_FOR_INTERRUPTS();
		if (!DatumGetBool(heap_getattr(tuple, WAITING_KEEP, desc, &isnull)))
			(void) busy_insert(queue->busy,
							   DatumGetInt64(heap_getattr(tuple, WAITING_CUSTOMER, desc, &isnull)),
							   &found);
	}
	systable_endscan(scan);
}

/*
 * Enters that the customer has these names again: what waits to remove them
 * will not.  Leaves in "names" those for which something does; where nothing
 * does, nothing is entered.
 *
 * Removals of transactions still under way count as waiting, for they may
 * commit, and keeps of others do not, for they may not.  The look is no
 * snapshot's, and so takes no predicate lock that could make a serializable
 * transaction fail.
 */
void
queue_add_keep(Queue *queue, const Requester *requester, Removal *names)
{
	QueueRow	keep = {0};
	List	   *removals;
	List	   *keeps;

	keep.server = requester->server;
	keep.role = requester->role;
	keep.phone = names->phone;
	keep.waba = names->waba;
	keep.customer = store_customer(keep.server, keep.role, keep.phone, keep.waba);

	find_rows(&queue->waiting, &keep, &removals, &keeps);
	names->ntags = leave_waiting(names->tags, names->ntags, removals, keeps, tags_of);
	names->nfields = leave_waiting(names->fields, names->nfields, removals, keeps, fields_of);
	if (names->ntags > 0 || names->nfields > 0)
	{
		fill_row(&keep, requester, names);
		keep.keep = true;
		insert(queue, &keep);
	}
}

/* What waits for a customer: removals, and the keeps that are sure to count. */
static void
find_rows(Store *waiting, const QueueRow *customer, List **removals, List **keeps)
{
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	*removals = *keeps = NIL;
	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(customer->customer));
	scan = store_scan(waiting, BY_CUSTOMER, &dirty, 1, &key);
	while (HeapTupleIsValid(tuple = store_next(scan)))
	{
		bool		is_of_other = TransactionIdIsValid(dirty.xmin);
		QueueRow   *row = palloc(sizeof(QueueRow));

		CHECK_FOR_INTERRUPTS();
		store_read_waiting(waiting, tuple, row);
		if (!store_is_same_customer(row, customer))
			continue;
		if (!row->keep)
			*removals = lappend(*removals, row);
		else if (!is_of_other)
			*keeps = lappend(*keeps, row);
	}
	store_end_scan(scan);
}

/*
 * Leaves of the names those that a removal has, and no keep has taken back.  They
 * are looked for all at once: there may be very many, here and there.
 */
static int
leave_waiting(const char **names, int nnames, List *removals, List *keeps,
			  ArrayType *(*names_of) (const QueueRow *row))
{
	const char **all;
	int			nall = 0;
	ListCell   *cell;

	foreach(cell, removals)
	{
		ArrayType  *array = names_of(lfirst(cell));

		nall += ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	}
	if (nnames == 0 || nall == 0)
		return 0;

	all = names_alloc(nall);
	nall = 0;
	foreach(cell, removals)
	{
		QueueRow   *removal = lfirst(cell);
		int			nwaiting;
		const char **waiting = names_of_array(names_of(removal), &nwaiting);
		ListCell   *keep_cell;

		CHECK_FOR_INTERRUPTS();
		foreach(keep_cell, keeps)
		{
			QueueRow   *keep = lfirst(keep_cell);
			int			nkept;
			const char **kept;

			if (keep->id < removal->ord)
				continue;
			kept = names_of_array(names_of(keep), &nkept);
			nwaiting = names_subtract(waiting, nwaiting, kept, nkept);
		}
		memcpy(all + nall, waiting, sizeof(char *) * nwaiting);
		nall += nwaiting;
	}
	return names_intersect(names, nnames, all, nall);
}

static ArrayType *
tags_of(const QueueRow *row)
{
	return row->tags;
}

static ArrayType *
fields_of(const QueueRow *row)
{
	return row->fields;
}

/*
 * Enters a removal that can never be sent into the history, as failed.  Returns
 * its id.
 */
int64
queue_add_failed(const Requester *requester, const Removal *removal, const char *error)
{
	Store		settled;
	QueueRow	row = {0};

	row.id = store_next_id();
	row.enqueued_at = GetCurrentTimestamp();
	row.role = requester->role;
	row.enqueued_by = requester->enqueued_by;
	row.server = requester->server;
	row.phone = removal->phone ? removal->phone : "";
	row.waba = removal->waba;
	row.tags = names_to_array(removal->tags, removal->ntags);
	row.fields = names_to_array(removal->fields, removal->nfields);
	store_open(&settled, RELATION_SETTLED);
	history_insert(&settled, &row, STATE_FAILED, NULL, error);
	store_close(&settled);
	return row.id;
}

static void
fill_row(QueueRow *row, const Requester *requester, const Removal *removal)
{
	memset(row, 0, sizeof(QueueRow));
	/* In this order: whoever has the lower xid may still have a lower id. */
	row->xact = (int64) U64FromFullTransactionId(GetTopFullTransactionId());
	row->id = store_next_id();
	row->ord = row->id;
	row->customer = store_customer(requester->server, requester->role, removal->phone,
								   removal->waba);
	row->enqueued_at = GetCurrentTimestamp();
	row->due_at = row->enqueued_at;
	row->role = requester->role;
	row->enqueued_by = requester->enqueued_by;
	row->server = requester->server;
	row->phone = removal->phone;
	row->waba = removal->waba;
	row->tags = names_to_array(removal->tags, removal->ntags);
	row->fields = names_to_array(removal->fields, removal->nfields);
}

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
	bool		taken;

	check_writable("dt_cancel()");

	/* What this statement has enqueued can be cancelled, too. */
	CommandCounterIncrement();
	store_open(&waiting, RELATION_WAITING);
	taken = find_withheld(&waiting, id, &row) && store_delete(&waiting, &row.tid, true);
	if (taken)
	{
		store_open(&settled, RELATION_SETTLED);
		history_insert(&settled, &row, STATE_CANCELLED, NULL, "taken out by dt_cancel");
		store_close(&settled);
	}
	store_close(&waiting);
	PG_RETURN_BOOL(taken && row.attempts == 0 && row.http_status == 0);
}

/*
 * The waiting removal with this id, kept from leaving until the transaction
 * ends; false when it is out, or is not there for this role.
 */
static bool
find_withheld(Store *waiting, int64 id, QueueRow *row)
{
	/* Once to see which door to hold, and again when it is held. */
	return store_find_waiting(waiting, id, row) &&
		!row->keep && has_privs_of_role(GetUserId(), row->role) &&
		lock_against_sending(row) &&
		store_find_waiting(waiting, id, row);
}

/*
 * dt_retry(id bigint) returns boolean
 */
Datum
dt_retry(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Store		settled;
	QueueRow	row;
	char	   *state;
	bool		found;

	check_writable("dt_retry()");

	CommandCounterIncrement();
	store_open(&settled, RELATION_SETTLED);
	found = history_find(&settled, id, &row, &state) &&
		strcmp(state, STATE_FAILED) == 0 && has_privs_of_role(GetUserId(), row.role);
	if (found)
		check_sendable(&row);
	found = found && store_delete(&settled, &row.tid, true);
	if (found)
		put_back(&row);
	store_close(&settled);
	PG_RETURN_BOOL(found);
}

/*
 * Enters a row again, under its old id.  The drainer, which goes by the ids, is
 * told of it by an empty keep with a new one, whose "ord" is the old.  The new
 * one is also the row's place in the order of removals and keeps: names that
 * came back before now are to be removed all the same.
 */
static void
put_back(QueueRow *row)
{
	Requester	requester = {row->server, row->role, row->enqueued_by};
	Removal		nothing = {0};
	QueueRow	news;
	Store		waiting;

	nothing.phone = row->phone;
	nothing.waba = row->waba;
	fill_row(&news, &requester, &nothing);
	news.keep = true;
	row->ord = news.id;
	news.ord = row->id;
	row->xact = news.xact;
	row->customer = news.customer;
	row->enqueued_at = row->due_at = news.enqueued_at;

	store_open(&waiting, RELATION_WAITING);
	store_insert_waiting(&waiting, row);
	store_insert_waiting(&waiting, &news);
	store_close(&waiting);
	wake_worker_at_commit();
}

/* The trigger's failed rows may hold what no request can. */
static void
check_sendable(const QueueRow *row)
{
	Removal		removal;
	Fault	   *fault = payload_check(cstring_to_text(row->phone), row->tags, row->fields,
									  row->waba ? cstring_to_text(row->waba) : NULL, &removal);

	if (fault)
		fault_raise(fault);
}

static void
check_writable(const char *command)
{
	PreventCommandIfReadOnly(command);
	PreventCommandDuringRecovery(command);
	PreventCommandIfParallelMode(command);
}

/*-------------------------------------------------------------------------
 *
 * due.c
 *		What is due: which rows wait, and what of a customer's goes out next.
 *
 * Rows are found in the order of (xact, id), from where the last look ended:
 * so nobody walks over the dead rows of what has been drained, as many as they
 * may be while an old snapshot keeps them.  A row that appears behind that
 * place must belong to a transaction that was under way when we passed: the
 * snapshot says which those were, and each is looked up when it has ended.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/transam.h"
#include "due.h"
#include "names.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static int	walk(Relation waiting, Relation index, Snapshot snapshot, ScanKey keys, int nkeys,
				 int limit, DueCallback callback, void *arg, Horizon *horizon);
static void look_up_ended(Relation waiting, Relation index, Snapshot snapshot, Horizon *horizon,
						  DueCallback callback, void *arg);
static void remember_running(Horizon *horizon, Snapshot snapshot);
static bool is_running(Snapshot snapshot, int64 xact);
static int64 widen(TransactionId xid, FullTransactionId next);
static List *read_customer(Relation waiting, const QueueRow *customer, List **keeps);
static int	compare_ids(const ListCell *a, const ListCell *b);
static void take_back(DuePart *part, List *keeps);
static TimestampTz latest_due(List *parts);
static List *choose(List *parts, int64 *more_id);
static size_t bytes_of(const DuePart *part);

/*
 * Finds rows that have not been seen yet, about "limit" of them, and tells the
 * callback.  False when there were no more.  Needs a transaction, not a
 * snapshot.
 */
bool
due_discover(Relation waiting, Horizon *horizon, int limit, DueCallback callback, void *arg)
{
	Relation	index = index_open(store_oid(STORE_WAITING_XACT), AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData keys[2];
	int			nfound;

	look_up_ended(waiting, index, snapshot, horizon, callback, arg);

	/* The rest of the transaction where the last walk ended, then the next. */
	ScanKeyInit(&keys[0], WAITING_XACT, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(horizon->xact));
	ScanKeyInit(&keys[1], WAITING_ID, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(horizon->id));
	nfound = walk(waiting, index, snapshot, keys, 2, limit, callback, arg, horizon);
	if (nfound < limit)
	{
		ScanKeyInit(&keys[0], WAITING_XACT, BTGreaterStrategyNumber, F_INT8GT,
					Int64GetDatum(horizon->xact));
		nfound += walk(waiting, index, snapshot, keys, 1, limit - nfound, callback, arg, horizon);
	}
	remember_running(horizon, snapshot);

	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	return nfound == limit;
}

/* Tells of up to "limit" rows, and moves the horizon, if given, to the last. */
static int
walk(Relation waiting, Relation index, Snapshot snapshot, ScanKey keys, int nkeys,
	 int limit, DueCallback callback, void *arg, Horizon *horizon)
{
	SysScanDesc scan = systable_beginscan_ordered(waiting, index, snapshot, nkeys, keys);
	int			nfound = 0;
	HeapTuple	tuple;

	while (nfound < limit &&
		   HeapTupleIsValid(tuple = systable_getnext_ordered(scan, ForwardScanDirection)))
	{
		QueueRow	row;

		store_read_place(waiting, tuple, &row);
		callback(arg, row.id, row.server, row.role);
		nfound++;
		if (horizon)
		{
			horizon->xact = row.xact;
			horizon->id = row.id;
		}
	}
	systable_endscan_ordered(scan);
	return nfound;
}

/*
 * Rows of transactions that were under way at an earlier look and have ended
 * since.  Those behind the horizon are told of; the others are still to come,
 * and to tell of one twice does no harm.
 */
static void
look_up_ended(Relation waiting, Relation index, Snapshot snapshot, Horizon *horizon,
			  DueCallback callback, void *arg)
{
	int			nleft = 0;

	for (int i = 0; i < horizon->nrunning; i++)
	{
		ScanKeyData key;

		if (is_running(snapshot, horizon->running[i]))
		{
			horizon->running[nleft++] = horizon->running[i];
			continue;
		}
		ScanKeyInit(&key, WAITING_XACT, BTEqualStrategyNumber, F_INT8EQ,
					Int64GetDatum(horizon->running[i]));
		(void) walk(waiting, index, snapshot, &key, 1, PG_INT32_MAX, callback, arg, NULL);
	}
	horizon->nrunning = nleft;
}

/* Those of the snapshot are either remembered already, or new. */
static void
remember_running(Horizon *horizon, Snapshot snapshot)
{
	FullTransactionId next = ReadNextFullTransactionId();
	int			nold = horizon->nrunning;

	if (horizon->capacity < nold + (int) snapshot->xcnt)
	{
		horizon->capacity = 2 * (nold + snapshot->xcnt);
		horizon->running = repalloc(horizon->running, sizeof(int64) * horizon->capacity);
	}
	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		int64		xact = widen(snapshot->xip[i], next);
		bool		known = false;

		for (int j = 0; j < nold && !known; j++)
			known = horizon->running[j] == xact;
		if (!known)
			horizon->running[horizon->nrunning++] = xact;
	}
}

static bool
is_running(Snapshot snapshot, int64 xact)
{
	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		if (snapshot->xip[i] == (TransactionId) xact)
			return true;
	}
	return false;
}

/* The 64-bit number of a transaction that is not older than 2^31 others. */
static int64
widen(TransactionId xid, FullTransactionId next)
{
	uint64		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return (int64) ((epoch << 32) | xid);
}

/*
 * Reads what waits for a customer, of which one row is given, and decides what
 * is to be done with it now: see Due.  "retry_for" is in ms.  All is allocated
 * in the current memory context.
 */
void
due_read(Relation waiting, const QueueRow *customer, TimestampTz now, double retry_for, Due *due)
{
	List	   *keeps;
	List	   *all = read_customer(waiting, customer, &keeps);
	List	   *live = NIL;
	ListCell   *cell;

	memset(due, 0, sizeof(Due));
	due->has_keeps = keeps != NIL;
	foreach(cell, all)
	{
		DuePart    *part = lfirst(cell);

		take_back(part, keeps);
		if (part->ntags == 0 && part->nfields == 0)
			due->kept = lappend(due->kept, part);
		else if ((double) (now - part->row.enqueued_at) / 1000 >= retry_for)
			due->expired = lappend(due->expired, part);
		else
			live = lappend(live, part);
	}
	if (live == NIL)
		return;

	/* While one of a customer's requests backs off, the customer does. */
	due->due_at = latest_due(live);
	if (due->due_at > now)
		due->more_id = ((DuePart *) linitial(live))->row.id;
	else
		due->parts = choose(live, &due->more_id);
}

/* The customer's removals in the order of their ids, and its keeps. */
static List *
read_customer(Relation waiting, const QueueRow *customer, List **keeps)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	List	   *parts = NIL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	*keeps = NIL;
	ScanKeyInit(&key, WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(customer->customer));
	scan = systable_beginscan(waiting, store_oid(STORE_WAITING_CUSTOMER), true, snapshot, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		DuePart    *part = palloc(sizeof(DuePart));

		store_read_waiting(waiting, tuple, &part->row);
		if (!store_is_same_customer(&part->row, customer))
			continue;
		part->tags = names_of_array(part->row.tags, &part->ntags);
		part->fields = names_of_array(part->row.fields, &part->nfields);
		if (part->row.keep)
			*keeps = lappend(*keeps, part);
		else
			parts = lappend(parts, part);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	list_sort(parts, compare_ids);
	return parts;
}

static int
compare_ids(const ListCell *a, const ListCell *b)
{
	int64		x = ((DuePart *) lfirst(a))->row.id;
	int64		y = ((DuePart *) lfirst(b))->row.id;

	return (x > y) - (x < y);
}

/* Takes out of a removal the names that later keeps have. */
static void
take_back(DuePart *part, List *keeps)
{
	ListCell   *cell;

	foreach(cell, keeps)
	{
		DuePart    *keep = lfirst(cell);

		if (keep->row.id < part->row.ord)
			continue;
		part->ntags = names_subtract(part->tags, part->ntags, keep->tags, keep->ntags);
		part->nfields = names_subtract(part->fields, part->nfields, keep->fields, keep->nfields);
	}
}

static TimestampTz
latest_due(List *parts)
{
	TimestampTz latest = DT_NOBEGIN;
	ListCell   *cell;

	foreach(cell, parts)
		latest = Max(latest, ((DuePart *) lfirst(cell))->row.due_at);
	return latest;
}

/*
 * Those that go out together: as many as one request may carry, or a single one
 * that must go alone.  A row that is left behind is named.
 */
static List *
choose(List *parts, int64 *more_id)
{
	List	   *chosen = NIL;
	int			nnames = 0;
	size_t		nbytes = 0;
	ListCell   *cell;

	foreach(cell, parts)
	{
		DuePart    *part = lfirst(cell);

		if (part->row.alone)
		{
			*more_id = list_length(parts) == 1 ? 0 :
				((DuePart *) (cell == list_head(parts) ? lsecond(parts) : linitial(parts)))->row.id;
			return list_make1(part);
		}
	}

	foreach(cell, parts)
	{
		DuePart    *part = lfirst(cell);

		nnames += part->ntags + part->nfields;
		nbytes += bytes_of(part);
		if (chosen != NIL && (nnames > PAYLOAD_MAX_NAMES || nbytes > PAYLOAD_MAX_BYTES))
		{
			*more_id = part->row.id;
			break;
		}
		chosen = lappend(chosen, part);
	}
	return chosen;
}

static size_t
bytes_of(const DuePart *part)
{
	size_t		nbytes = 0;

	for (int i = 0; i < part->ntags; i++)
		nbytes += payload_json_length(part->tags[i]);
	for (int i = 0; i < part->nfields; i++)
		nbytes += payload_json_length(part->fields[i]);
	return nbytes;
}

/*
 * Deletes a customer's keeps if they have nothing left to keep: no removal, not
 * even one of a transaction under way.
 */
void
due_forget_keeps(Store *waiting, const QueueRow *customer)
{
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *keeps = NIL;
	bool		needed = false;
	ListCell   *cell;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(customer->customer));
	scan = systable_beginscan(waiting->rel, store_oid(STORE_WAITING_CUSTOMER), true, &dirty, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		QueueRow   *row = palloc(sizeof(QueueRow));
		bool		in_progress = TransactionIdIsValid(dirty.xmin);

		store_read_waiting(waiting->rel, tuple, row);
		if (!store_is_same_customer(row, customer))
			continue;
		if (!row->keep || in_progress)
			needed = needed || !row->keep;
		else
			keeps = lappend(keeps, row);
	}
	systable_endscan(scan);

	foreach(cell, keeps)
	{
		if (!needed)
			(void) store_delete(waiting, &((QueueRow *) lfirst(cell))->tid, false);
	}
}

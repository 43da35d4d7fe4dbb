/*-------------------------------------------------------------------------
 *
 * due.c
 *		What is due: which rows wait, and what of a customer's goes out next.
 *
 * Rows are found in the order of their ids, from where the last look ended: so
 * nobody walks over the dead rows of what has been drained, as many as they may
 * be while an old snapshot keeps them.  A row that appears behind that place
 * must belong to a transaction that was under way when we passed.  The snapshot
 * says which those were; since a transaction gets its xid before its first id,
 * its rows have ids above those that were seen before it began.  When one of
 * them has ended, what lies between is looked through again, for its rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "due.h"
#include "miscadmin.h"
#include "names.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static int	walk(Store *waiting, Snapshot snapshot, int64 *from, int64 to, List *runners,
				 int limit, DueCallback callback, void *arg);
static void note_ended(Horizon *horizon, Snapshot snapshot);
static void note_running(Horizon *horizon, Snapshot snapshot);
static bool is_running(Snapshot snapshot, TransactionId xid);
static bool has_runner(List *runners, TransactionId xid);
static List *read_customer(Store *waiting, Waiting place, Due *due, List **keeps);
static int	compare_ids(const ListCell *a, const ListCell *b);
static void take_back(DuePart *part, List *keeps);
static TimestampTz latest_due(List *parts);
static List *choose(List *parts, int64 *more_id);
static size_t bytes_of(const DuePart *part);

/*
 * Finds rows that have not been seen yet, looking through about "limit" of them,
 * and tells the callback.  False when there were no more.  Needs a transaction,
 * not a snapshot.
 */
bool
due_discover(Store *waiting, Horizon *horizon, int limit, DueCallback callback, void *arg)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int			nseen = 0;

	note_ended(horizon, snapshot);
	note_running(horizon, snapshot);
	if (horizon->ended != NIL)
	{
		nseen = walk(waiting, snapshot, &horizon->again_from, horizon->again_to,
					 horizon->ended, limit, callback, arg);
		if (nseen < limit)
		{
			list_free_deep(horizon->ended);
			horizon->ended = NIL;
		}
	}
	if (nseen < limit)
		nseen += walk(waiting, snapshot, &horizon->id, PG_INT64_MAX, NIL,
					  limit - nseen, callback, arg);
	UnregisterSnapshot(snapshot);
	return nseen >= limit;
}

/*
 * Looks through up to "limit" rows with ids above "from", which it moves, and
 * not above "to"; tells of those that the runners made, if any are given.
 */
static int
walk(Store *waiting, Snapshot snapshot, int64 *from, int64 to, List *runners,
	 int limit, DueCallback callback, void *arg)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	int			nseen = 0;

	ScanKeyInit(&keys[0], WAITING_ID, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(*from));
	ScanKeyInit(&keys[1], WAITING_ID, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(to));
	scan = store_scan(waiting, BY_ID, snapshot, 2, keys);
	while (nseen < limit && HeapTupleIsValid(tuple = store_next(scan)))
	{
		QueueRow	row;

		store_read_place(waiting, tuple, &row);
		if (runners == NIL || has_runner(runners, (TransactionId) row.xact))
			callback(arg, &row);
		*from = row.id;
		nseen++;
	}
	store_end_scan(scan);
	return nseen;
}

/* Runners that have ended since the last look are to be looked for. */
static void
note_ended(Horizon *horizon, Snapshot snapshot)
{
	ListCell   *cell;

	foreach(cell, horizon->runners)
	{
		Runner	   *runner = lfirst(cell);
		MemoryContext caller;

		if (is_running(snapshot, runner->xid))
			continue;
		if (horizon->ended == NIL)
			horizon->again_from = runner->floor;
		horizon->again_from = Min(horizon->again_from, runner->floor);
		horizon->again_to = horizon->id;
		caller = MemoryContextSwitchTo(horizon->context);
		horizon->ended = lappend(horizon->ended, runner);
		MemoryContextSwitchTo(caller);
		horizon->runners = foreach_delete_current(horizon->runners, cell);
	}
}

/* New ones began after the last look, so their ids are above what it has seen. */
static void
note_running(Horizon *horizon, Snapshot snapshot)
{
	MemoryContext caller = MemoryContextSwitchTo(horizon->context);

	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		Runner	   *runner;

		if (has_runner(horizon->runners, snapshot->xip[i]))
			continue;
		runner = palloc(sizeof(Runner));
		runner->xid = snapshot->xip[i];
		runner->floor = horizon->id;
		horizon->runners = lappend(horizon->runners, runner);
	}
	MemoryContextSwitchTo(caller);
}

static bool
is_running(Snapshot snapshot, TransactionId xid)
{
	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		if (snapshot->xip[i] == xid)
			return true;
	}
	return false;
}

static bool
has_runner(List *runners, TransactionId xid)
{
	ListCell   *cell;

	foreach(cell, runners)
	{
		if (((Runner *) lfirst(cell))->xid == xid)
			return true;
	}
	return false;
}

/*
 * Reads what waits for the customer of a row, and decides what is to be done
 * with it now: see Due.  False when the row is gone.  "retry_for" is in ms.  All
 * is allocated in the current memory context.
 */
bool
due_read(Store *waiting, Waiting place, TimestampTz now, double retry_for, Due *due)
{
	List	   *keeps;
	List	   *all;
	List	   *live = NIL;
	ListCell   *cell;

	memset(due, 0, sizeof(Due));
	all = read_customer(waiting, place, due, &keeps);
	if (due->customer.id == 0)
		return false;
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
		return true;

	/* While one of a customer's requests backs off, the customer does. */
	due->due_at = latest_due(live);
	if (due->due_at > now)
		due->more_id = ((DuePart *) linitial(live))->row.id;
	else
		due->parts = choose(live, &due->more_id);
	return true;
}

/*
 * The customer's removals in the order of their ids, and its keeps; and in "due"
 * the row that was asked for.  Rows of its phone may be other customers'.
 */
static List *
read_customer(Store *waiting, Waiting place, Due *due, List **keeps)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	List	   *all = NIL;
	List	   *parts = NIL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	ListCell   *cell;

	ScanKeyInit(&key, WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(place.customer));
	scan = store_scan(waiting, BY_CUSTOMER, snapshot, 1, &key);
	while (HeapTupleIsValid(tuple = store_next(scan)))
	{
		DuePart    *part = palloc(sizeof(DuePart));

		store_read_waiting(waiting, tuple, &part->row);
		if (part->row.id == place.id)
			due->customer = part->row;
		all = lappend(all, part);
	}
	store_end_scan(scan);
	UnregisterSnapshot(snapshot);

	*keeps = NIL;
	foreach(cell, all)
	{
		DuePart    *part = lfirst(cell);

		if (due->customer.id == 0 || !store_is_same_customer(&part->row, &due->customer))
			continue;
		part->tags = names_of_array(part->row.tags, &part->ntags);
		part->fields = names_of_array(part->row.fields, &part->nfields);
		if (part->row.keep)
			*keeps = lappend(*keeps, part);
		else
			parts = lappend(parts, part);
	}
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
 * even one of a transaction under way.  Returns a keep that stays, perhaps only
 * for one of those, to be looked at again; 0: there is none.
 */
int64
due_forget_keeps(Store *waiting, const QueueRow *customer)
{
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *keeps = NIL;
	bool		needed = false;
	bool		may_go = false;
	ListCell   *cell;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(customer->customer));
	scan = store_scan(waiting, BY_CUSTOMER, &dirty, 1, &key);
	while (HeapTupleIsValid(tuple = store_next(scan)))
	{
		QueueRow   *row = palloc(sizeof(QueueRow));
		bool		is_new = TransactionIdIsValid(dirty.xmin);
		bool		is_going = TransactionIdIsValid(dirty.xmax);

		store_read_waiting(waiting, tuple, row);
		if (!store_is_same_customer(row, customer))
			continue;
		if (!row->keep)
		{
			needed = true;
			may_go = may_go || is_new || is_going;
		}
		else if (!is_new)
			keeps = lappend(keeps, row);
	}
	store_end_scan(scan);

	foreach(cell, keeps)
	{
		QueueRow   *keep = lfirst(cell);

		if (!needed)
			(void) store_delete(waiting, &keep->tid, false);
		else if (may_go)
			return keep->id;
	}
	return 0;
}

/*-------------------------------------------------------------------------
 *
 * drain/customer.c
 *		What is due: which rows wait, and what of a customer's goes out next.
 *
 * Rows are found in the order of their ids, from where the last look ended: so
 * nobody walks over the dead rows of what has been drained, as many as they may
 * be while an old snapshot keeps them.  A row that appears behind that place
 * must belong to a transaction that was under way when we passed; and since a
 * transaction gets its xid before its first id, its rows have ids above those
 * that were seen before it began.  When one of them has ended, what lies between
 * is looked through again, for its rows.
 *
 * A snapshot names the transactions under way, but not those that are younger
 * than all that have ended: of these it is only known that they are numbered
 * from its xmax to before the next number to be given out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/transam.h"
#include "base/names.h"
#include "drain/customer.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Removals of a customer that are read at once: each has a name at least. */
#define MAX_REMOVALS PAYLOAD_MAX_NAMES

static int	walk(Store *waiting, Snapshot snapshot, int64 *from, int64 to, List *runners,
				 int limit, DueCallback callback, void *arg);
static void note_ended(Horizon *horizon, Snapshot snapshot, int64 next);
static void note_running(Horizon *horizon, Snapshot snapshot, int64 next);
static void look_again_for(Horizon *horizon, int64 from, int64 to, int64 floor);
static List *add_runners(Horizon *horizon, List *list, int64 from, int64 to, int64 floor);
static bool is_running(Snapshot snapshot, TransactionId xid);
static bool have_xact(List *runners, int64 xact);
static int64 widen(TransactionId xid, int64 next);
static void read_rows(Store *waiting, int64 customer, const QueueRow *only,
					  List **removals, List **keeps);
static bool scan_rows(Store *waiting, int64 customer, const QueueRow *only, Snapshot snapshot,
					  bool keeps_only, List **removals, List **keeps);
static bool find_row(List *parts, int64 id, QueueRow *row);
static bool have_other(List *parts, const QueueRow *customer);
static void take_back(DuePart *part, List *keeps);
static TimestampTz latest_due(List *parts);
static void choose(List *live, Due *due);
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
	int64		next = (int64) U64FromFullTransactionId(ReadNextFullTransactionId());
	bool		more = false;
	int			nseen;

	note_ended(horizon, snapshot, next);
	note_running(horizon, snapshot, next);
	if (horizon->ended != NIL)
	{
		/* Half of it, so that what is new does not wait for what is late. */
		nseen = walk(waiting, snapshot, &horizon->again_from, horizon->again_to,
					 horizon->ended, limit / 2, callback, arg);
		more = nseen == limit / 2;
		if (!more)
		{
			list_free_deep(horizon->ended);
			horizon->ended = NIL;
		}
	}
	nseen = walk(waiting, snapshot, &horizon->id, PG_INT64_MAX, NIL, limit, callback, arg);
	UnregisterSnapshot(snapshot);
	return more || nseen == limit;
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
		if (runners == NIL || have_xact(runners, row.xact))
			callback(arg, &row);
		*from = row.id;
		nseen++;
	}
	store_end_scan(scan);
	return nseen;
}

/*
 * Transactions that may have ended since the last look are to be looked for.
 * "next" is a number above all that have been given out.
 */
static void
note_ended(Horizon *horizon, Snapshot snapshot, int64 next)
{
	Runners    *unknown = &horizon->unknown;
	int64		xmax = widen(snapshot->xmax, next);
	ListCell   *cell;

	foreach(cell, horizon->runners)
	{
		Runners    *runner = lfirst(cell);

		if (is_running(snapshot, (TransactionId) runner->from))
			continue;
		look_again_for(horizon, runner->from, runner->to, runner->floor);
		pfree(runner);
		horizon->runners = foreach_delete_current(horizon->runners, cell);
	}

	/*
	 * Of what was unknown, the older part is known now: it runs, or it may
	 * have ended.
	 */
	if (unknown->from >= unknown->to || xmax <= unknown->from)
		return;
	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		int64		xact = widen(snapshot->xip[i], next);

		if (xact >= unknown->from && xact < unknown->to)
			horizon->runners = add_runners(horizon, horizon->runners, xact, xact + 1,
										   unknown->floor);
	}
	look_again_for(horizon, unknown->from, Min(xmax, unknown->to), unknown->floor);
	unknown->from = Min(xmax, unknown->to);
}

/* New ones began after the last look, so their ids are above what it has seen. */
static void
note_running(Horizon *horizon, Snapshot snapshot, int64 next)
{
	Runners    *unknown = &horizon->unknown;

	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		int64		xact = widen(snapshot->xip[i], next);

		if (!have_xact(horizon->runners, xact))
			horizon->runners = add_runners(horizon, horizon->runners, xact, xact + 1, horizon->id);
	}
	if (unknown->from >= unknown->to)
	{
		unknown->from = widen(snapshot->xmax, next);
		unknown->floor = horizon->id;
	}
	unknown->to = next;
}

static void
look_again_for(Horizon *horizon, int64 from, int64 to, int64 floor)
{
	if (floor >= horizon->id)
		return;					/* what they have is yet to come */
	if (horizon->ended == NIL)
		horizon->again_from = floor;
	horizon->again_from = Min(horizon->again_from, floor);
	horizon->again_to = horizon->id;
	horizon->ended = add_runners(horizon, horizon->ended, from, to, floor);
}

static List *
add_runners(Horizon *horizon, List *list, int64 from, int64 to, int64 floor)
{
	MemoryContext caller = MemoryContextSwitchTo(horizon->context);
	Runners    *runners = palloc(sizeof(Runners));

	runners->from = from;
	runners->to = to;
	runners->floor = floor;
	list = lappend(list, runners);
	MemoryContextSwitchTo(caller);
	return list;
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
have_xact(List *runners, int64 xact)
{
	ListCell   *cell;

	foreach(cell, runners)
	{
		const Runners *some = lfirst(cell);

		if (xact >= some->from && xact < some->to)
			return true;
	}
	return false;
}

/* The 64-bit number of a transaction that is not older than 2^31 others. */
static int64
widen(TransactionId xid, int64 next)
{
	return next - (int32) ((TransactionId) next - xid);
}

/*
 * Reads what waits for a customer, of which one row's id is given, and decides
 * what is to be done with it now: see Due.  False when that row is gone.
 * "retry_for" is in ms.  All is allocated in the current memory context.
 */
bool
due_read(Store *waiting, int64 id, int64 customer, TimestampTz now, double retry_for, Due *due)
{
	List	   *removals = NIL;
	List	   *keeps = NIL;
	List	   *live = NIL;
	ListCell   *cell;

	memset(due, 0, sizeof(Due));
	read_rows(waiting, customer, NULL, &removals, &keeps);
	if (!find_row(removals, id, &due->customer) && !find_row(keeps, id, &due->customer) &&
		(list_length(removals) < MAX_REMOVALS || !store_find_waiting(waiting, id, &due->customer)))
		return false;
	if (have_other(removals, &due->customer) || have_other(keeps, &due->customer))
		read_rows(waiting, customer, &due->customer, &removals, &keeps);
	due->has_keeps = keeps != NIL;
	foreach(cell, removals)
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

	/* While one of a customer's requests backs off, the customer does. */
	due->due_at = latest_due(live);
	if (due->due_at > now)
		due->later = live;
	else if (live != NIL)
		choose(live, due);
	return true;
}

/*
 * The removals of customers with this number, or of just one of them, the first
 * ones, and the keeps, both in the order of their ids.  The snapshot is taken here,
 * after the customer's door: so what a cancel has taken back is gone, and of a
 * transaction all is seen or nothing.
 */
static void
read_rows(Store *waiting, int64 customer, const QueueRow *only, List **removals, List **keeps)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	*removals = *keeps = NIL;
	if (!scan_rows(waiting, customer, only, snapshot, false, removals, keeps))
		(void) scan_rows(waiting, customer, only, snapshot, true, removals, keeps);
	UnregisterSnapshot(snapshot);
}

/* Removals come before keeps.  False when there were too many of them. */
static bool
scan_rows(Store *waiting, int64 customer, const QueueRow *only, Snapshot snapshot,
		  bool keeps_only, List **removals, List **keeps)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	bool		fits = true;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(customer));
	ScanKeyInit(&keys[1], WAITING_KEEP, BTEqualStrategyNumber, F_BOOLEQ, BoolGetDatum(true));
	scan = store_scan(waiting, BY_CUSTOMER, snapshot, keeps_only ? 2 : 1, keys);
	while (fits && HeapTupleIsValid(tuple = store_next(scan)))
	{
		DuePart    *part = palloc(sizeof(DuePart));

		store_read_waiting(waiting, tuple, &part->row);
		if (only && !store_is_same_customer(&part->row, only))
			continue;
		part->tags = names_of_array(part->row.tags, &part->ntags);
		part->fields = names_of_array(part->row.fields, &part->nfields);
		if (part->row.keep)
			*keeps = lappend(*keeps, part);
		else
			*removals = lappend(*removals, part);
		fits = part->row.keep || list_length(*removals) < MAX_REMOVALS;
	}
	store_end_scan(scan);
	return fits;
}

static bool
find_row(List *parts, int64 id, QueueRow *row)
{
	ListCell   *cell;

	foreach(cell, parts)
	{
		const DuePart *part = lfirst(cell);

		if (part->row.id != id)
			continue;
		*row = part->row;
		return true;
	}
	return false;
}

/* Of another customer, with the same number? */
static bool
have_other(List *parts, const QueueRow *customer)
{
	ListCell   *cell;

	foreach(cell, parts)
	{
		if (!store_is_same_customer(&((DuePart *) lfirst(cell))->row, customer))
			return true;
	}
	return false;
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
 * that must go alone.
 */
static void
choose(List *live, Due *due)
{
	DuePart    *alone = NULL;
	int			nnames = 0;
	size_t		nbytes = 0;
	ListCell   *cell;

	foreach(cell, live)
	{
		if (alone == NULL && ((DuePart *) lfirst(cell))->row.alone)
			alone = lfirst(cell);
	}

	foreach(cell, live)
	{
		DuePart    *part = lfirst(cell);
		bool		fits;

		nnames += part->ntags + part->nfields;
		nbytes += bytes_of(part);
		fits = due->parts == NIL || (nnames <= PAYLOAD_MAX_NAMES && nbytes <= PAYLOAD_MAX_BYTES);
		if (alone ? part == alone : fits && due->later == NIL)
			due->parts = lappend(due->parts, part);
		else
			due->later = lappend(due->later, part);
	}
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
 * Deletes those of a customer's keeps that have nothing left to keep: no removal,
 * not even one of a transaction under way.  Returns a keep that stays only for
 * one of those, to be looked at again; 0: there is none.
 */
int64
due_forget_keeps(Store *waiting, const QueueRow *customer)
{
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *keeps = NIL;
	int64		oldest = PG_INT64_MAX;	/* place of the first removal that
										 * waits, */
	int64		oldest_sure = PG_INT64_MAX; /* and of the first that is sure
											 * to */
	int64		again = 0;
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
		if (row->keep && !is_new)
			keeps = lappend(keeps, row);
		else if (!row->keep)
		{
			oldest = Min(oldest, row->ord);
			if (!is_new && !is_going)
				oldest_sure = Min(oldest_sure, row->ord);
		}
	}
	store_end_scan(scan);

	/* A keep is for removals that came before it. */
	foreach(cell, keeps)
	{
		QueueRow   *keep = lfirst(cell);

		if (keep->id < oldest)
			(void) store_delete(waiting, &keep->tid, false);
		else if (keep->id < oldest_sure)
			again = keep->id;
	}
	return again;
}

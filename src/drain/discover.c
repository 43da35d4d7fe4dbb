/*-------------------------------------------------------------------------
 *
 * drain/discover.c
 *		Finds the rows of dt_waiting that this process has not seen yet.
 *
 * Rows are found in the order of their ids, and each search starts where the last
 * one ended.  So a search does not read past the dead rows of what has been sent,
 * which may be very many while an old snapshot keeps them.
 *
 * A row can become visible with an id below the horizon: its transaction was under
 * way when the search passed that id.  A transaction gets its xid before its first
 * id, so its ids are above the horizon as it was when the transaction got its xid.
 * When it has ended, the part of the table from that horizon to the present one is
 * read again, only for its rows.
 *
 * When there are more new rows than one search may read, all but the last ones become
 * the backlog, and the horizon moves above it.  New rows and the backlog are then read
 * side by side, so that a removal which is enqueued after a million others is found at
 * once.
 *
 * A snapshot names the transactions that are under way, but not those that are
 * newer than every transaction that has ended.  Of these it is known only that
 * they are numbered from the snapshot's xmax to below the next xid.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/transam.h"
#include "drain/discover.h"
#include "queue/ids.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* The last ids are not of the backlog: a removal may have come just after a bulk. */
#define NEW_IDS 1000

static void restart_horizon(Horizon *horizon);
static int	read_late_rows(Store *waiting, Horizon *horizon, Snapshot snapshot, int limit,
						   QueueRow *found, int *nfound);
static int	scan_waiting(Store *waiting, Horizon *horizon, Snapshot snapshot, int64 *from,
						 int64 to, List *xacts, int limit, QueueRow *found, int *nfound);
static void note_ended_xacts(Horizon *horizon, Snapshot snapshot, int64 next);
static void note_running_xacts(Horizon *horizon, Snapshot snapshot, int64 next);
static void read_xacts_again(Horizon *horizon, const XactRange *xacts);
static List *append_range(Horizon *horizon, List *list, int64 from, int64 to, int64 rows_above);
static bool is_xact_running(Snapshot snapshot, TransactionId xid);
static bool ranges_have(List *ranges, int64 xact);
static int64 widen_xid(TransactionId xid, int64 next);

/*
 * Called by the drainer's turn.  Reads up to "limit" rows, and returns those that it
 * sees for the first time in "found", an array of "limit": removals and keeps, with
 * only what store_read_place() reads.  False when there are no more.  Needs a
 * transaction, but no snapshot.
 */
bool
discover_rows(Store *waiting, Horizon *horizon, int limit, QueueRow *found, int *nfound)
{
	/*
	 * Before the snapshot: then each id up to this one is that of a
	 * transaction which this search knows.
	 */
	int64		last_id = ids_last();
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int64		next = (int64) U64FromFullTransactionId(ReadNextFullTransactionId());
	bool		has_backlog;
	int			nleft = limit;
	int			nnew;			/* rows above the horizon to read */
	int			nread;
	bool		more = false;

	*nfound = 0;
	if (horizon->filenode != waiting->rel->rd_rel->relfilenode || last_id < horizon->id)
		restart_horizon(horizon);
	horizon->filenode = waiting->rel->rd_rel->relfilenode;
	note_ended_xacts(horizon, snapshot, next);
	note_running_xacts(horizon, snapshot, next);
	if (horizon->ended != NIL)
	{
		/* Half of the limit, so that new rows do not wait for late ones. */
		nread = read_late_rows(waiting, horizon, snapshot, limit / 2, found, nfound);
		nleft -= nread;
		more = nread == limit / 2;
		if (!more)
		{
			list_free_deep(horizon->ended);
			horizon->ended = NIL;
		}
	}

	has_backlog = horizon->backlog_from < horizon->backlog_to;
	nnew = has_backlog ? nleft / 2 : nleft;
	nread = scan_waiting(waiting, horizon, snapshot, &horizon->id, PG_INT64_MAX, NIL, nnew,
						 found, nfound);
	more |= nread == nnew;
	nleft -= nread;
	if (has_backlog)
	{
		nread = scan_waiting(waiting, horizon, snapshot, &horizon->backlog_from,
							 horizon->backlog_to, NIL, nleft, found, nfound);
		more |= nread == nleft;
		if (nread < nleft)
			horizon->backlog_from = horizon->backlog_to;
	}
	else if (nread == nnew && horizon->id < last_id - NEW_IDS)
	{
		horizon->backlog_from = horizon->id;
		horizon->id = horizon->backlog_to = last_id - NEW_IDS;
	}
	UnregisterSnapshot(snapshot);

	/* Rows were restored or set so that new rows would come below them. */
	if (horizon->id > last_id)
		ids_advance(horizon->id);
	return more;
}

/*
 * Called when a marker row of dt_send_replicated() is found.  For each new one, has the
 * table read from its beginning, and returns true.
 */
bool
discover_anew(Horizon *horizon, int64 marker)
{
	if (marker <= horizon->marker)
		return false;
	horizon->marker = marker;
	horizon->id = 0;
	horizon->backlog_from = horizon->backlog_to = 0;
	return true;
}

/*
 * How many ids the backlog has, for drain_count_waiting(); some may have no rows.
 */
int64
discover_count_backlog(const Horizon *horizon)
{
	return horizon->backlog_to - horizon->backlog_from;
}

/*
 * The sequence was set back below the horizon (TRUNCATE ... RESTART IDENTITY,
 * setval()): reads the table from its beginning.  Any transaction may have any ids.
 */
static void
restart_horizon(Horizon *horizon)
{
	ListCell   *cell;

	horizon->id = 0;
	horizon->backlog_from = horizon->backlog_to = 0;
	horizon->marker = 0;
	horizon->unknown.rows_above = 0;
	foreach(cell, horizon->running)
		((XactRange *) lfirst(cell))->rows_above = 0;
	list_free_deep(horizon->ended);
	horizon->ended = NIL;
}

/*
 * Reads up to "limit" rows of the part of the table that is to be read again, and returns
 * how many.  It leaves out what was the backlog when the last of the transactions ended:
 * there their rows are found with all others.
 */
static int
read_late_rows(Store *waiting, Horizon *horizon, Snapshot snapshot, int limit,
			   QueueRow *found, int *nfound)
{
	int			nread = 0;

	if (horizon->again_from < horizon->again_gap_from)
		nread = scan_waiting(waiting, horizon, snapshot, &horizon->again_from,
							 Min(horizon->again_gap_from, horizon->again_to), horizon->ended,
							 limit, found, nfound);
	if (nread < limit)
	{
		horizon->again_from = Max(horizon->again_from, horizon->again_gap_to);
		nread += scan_waiting(waiting, horizon, snapshot, &horizon->again_from, horizon->again_to,
							  horizon->ended, limit - nread, found, nfound);
	}
	return nread;
}

/*
 * Reads up to "limit" rows with ids above "from" and up to "to", and advances "from".
 * Appends to "found" those of the given transactions, or all if none are given, but
 * none that arrived by logical replication.  Returns how many it has read.
 */
static int
scan_waiting(Store *waiting, Horizon *horizon, Snapshot snapshot, int64 *from,
			 int64 to, List *xacts, int limit, QueueRow *found, int *nfound)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	int			nread = 0;

	ScanKeyInit(&keys[0], WAITING_ID, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(*from));
	ScanKeyInit(&keys[1], WAITING_ID, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(to));
	scan = store_scan(waiting, RELATION_WAITING_PKEY, snapshot, 2, keys);
	while (nread < limit && HeapTupleIsValid(tuple = store_next(scan)))
	{
		QueueRow   *row = &found[*nfound];

		store_read_place(waiting, tuple, row);
		if (row->replicated)
			horizon->has_passed = true;
		else if (xacts == NIL || ranges_have(xacts, row->xact))
			(*nfound)++;
		*from = row->id;
		nread++;
	}
	store_end_scan(scan);
	return nread;
}

/*
 * Finds the transactions that may have ended since the last search, and has their
 * rows read again.  "next" is above every xid that has been given out.
 */
static void
note_ended_xacts(Horizon *horizon, Snapshot snapshot, int64 next)
{
	XactRange  *unknown = &horizon->unknown;
	XactRange	known;
	ListCell   *cell;

	foreach(cell, horizon->running)
	{
		XactRange  *xact = lfirst(cell);

		if (is_xact_running(snapshot, (TransactionId) xact->from))
			continue;
		read_xacts_again(horizon, xact);
		pfree(xact);
		horizon->running = foreach_delete_current(horizon->running, cell);
	}

	/*
	 * Of the older part of "unknown", the snapshot now says which
	 * transactions are under way; the others have ended.
	 */
	known = *unknown;
	known.to = Min(widen_xid(snapshot->xmax, next), unknown->to);
	if (known.from >= known.to)
		return;
	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		int64		xact = widen_xid(snapshot->xip[i], next);

		if (xact >= unknown->from && xact < unknown->to)
			horizon->running = append_range(horizon, horizon->running, xact, xact + 1,
											unknown->rows_above);
	}
	read_xacts_again(horizon, &known);
	unknown->from = known.to;
}

/*
 * Notes the transactions that are under way.  Those not noted before began after the
 * last search, so their ids are above its horizon.
 */
static void
note_running_xacts(Horizon *horizon, Snapshot snapshot, int64 next)
{
	XactRange  *unknown = &horizon->unknown;

	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		int64		xact = widen_xid(snapshot->xip[i], next);

		if (!ranges_have(horizon->running, xact))
			horizon->running = append_range(horizon, horizon->running, xact, xact + 1, horizon->id);
	}
	if (unknown->from >= unknown->to)
	{
		unknown->from = widen_xid(snapshot->xmax, next);
		unknown->rows_above = horizon->id;
	}
	unknown->to = next;
}

static void
read_xacts_again(Horizon *horizon, const XactRange *xacts)
{
	if (xacts->rows_above >= horizon->id)
		return;					/* the search has not come to their rows yet */
	if (horizon->ended == NIL)
		horizon->again_from = xacts->rows_above;
	horizon->again_from = Min(horizon->again_from, xacts->rows_above);
	horizon->again_to = horizon->id;
	horizon->again_gap_from = horizon->backlog_from;
	horizon->again_gap_to = horizon->backlog_to;
	horizon->ended = append_range(horizon, horizon->ended, xacts->from, xacts->to,
								  xacts->rows_above);
}

static List *
append_range(Horizon *horizon, List *list, int64 from, int64 to, int64 rows_above)
{
	MemoryContext caller = MemoryContextSwitchTo(horizon->context);
	XactRange  *range = palloc(sizeof(XactRange));

	range->from = from;
	range->to = to;
	range->rows_above = rows_above;
	list = lappend(list, range);
	MemoryContextSwitchTo(caller);
	return list;
}

static bool
is_xact_running(Snapshot snapshot, TransactionId xid)
{
	for (uint32 i = 0; i < snapshot->xcnt; i++)
	{
		if (snapshot->xip[i] == xid)
			return true;
	}
	return false;
}

static bool
ranges_have(List *ranges, int64 xact)
{
	ListCell   *cell;

	foreach(cell, ranges)
	{
		const XactRange *range = lfirst(cell);

		if (xact >= range->from && xact < range->to)
			return true;
	}
	return false;
}

/* The 64-bit id of a transaction that is less than 2^31 older than "next". */
static int64
widen_xid(TransactionId xid, int64 next)
{
	return next - (int32) ((TransactionId) next - xid);
}

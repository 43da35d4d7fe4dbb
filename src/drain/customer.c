/*-------------------------------------------------------------------------
 *
 * drain/customer.c
 *		What waits for one customer, and what of it goes out next.
 *
 * The caller holds the customer's partition lock, and the snapshot is taken after
 * that.  So a removal that was cancelled is not seen, and of the rows that one
 * transaction enqueued either all are seen or none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/option.h"
#include "api/payload.h"
#include "base/names.h"
#include "drain/customer.h"
#include "drain/outcome.h"
#include "miscadmin.h"
#include "queue/customer_number.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Removals of a customer that are read at once.  Each has at least one name. */
#define MAX_REMOVALS PAYLOAD_MAX_NAMES

static void read_customer_rows(Store *waiting, int64 id, int64 customer, const QueueRow *only,
							   List **removals, List **keeps);
static bool scan_customer_rows(Store *waiting, int64 id, int64 customer, const QueueRow *only,
							   Snapshot snapshot, bool keeps_only, List **removals, List **keeps);
static bool find_due_row(List *rows, int64 id, QueueRow *found);
static bool have_other_customer(List *rows, const QueueRow *customer);
static void take_back_names(DueRow *removal, List *keeps);
static void decide_when_to_send(List *live, TimestampTz now, Due *due);
static bool is_too_old(const QueueRow *row, TimestampTz now, TimestampTz sending_since,
					   const Account *account);
static int64 time_until_due(const QueueRow *row, TimestampTz now);
static void choose_rows_to_send(List *rows, Due *due);
static size_t json_length(const DueRow *row);

/*
 * Called by send.c: reads what waits for the customer of the row "id", and decides
 * what to do with it now.  False when that row is gone.  "sending_since" is the
 * lane's.  Allocates in the current memory context.
 */
bool
customer_read(Store *waiting, int64 id, int64 customer, TimestampTz now,
			  TimestampTz sending_since, const Account *account, Due *due)
{
	List	   *removals;
	List	   *keeps;
	List	   *live = NIL;
	ListCell   *cell;

	memset(due, 0, sizeof(Due));
	read_customer_rows(waiting, id, customer, NULL, &removals, &keeps);
	if (!find_due_row(removals, id, &due->asked) && !find_due_row(keeps, id, &due->asked) &&
		(list_length(removals) < MAX_REMOVALS || !store_find_waiting(waiting, id, &due->asked)))
		return false;
	if (have_other_customer(removals, &due->asked) || have_other_customer(keeps, &due->asked))
		read_customer_rows(waiting, id, customer, &due->asked, &removals, &keeps);
	due->has_keeps = keeps != NIL;
	foreach(cell, removals)
	{
		DueRow	   *removal = lfirst(cell);

		take_back_names(removal, keeps);
		if (removal->ntags == 0 && removal->nfields == 0)
			due->kept = lappend(due->kept, removal);
		else if (is_too_old(&removal->row, now, sending_since, account))
			due->expired = lappend(due->expired, removal);
		else
			live = lappend(live, removal);
	}

	decide_when_to_send(live, now, due);
	return true;
}

/*
 * While one of a customer's removals backs off, all of them wait.  A removal that its
 * server's option "delay" puts off waits alone.
 */
static void
decide_when_to_send(List *live, TimestampTz now, Due *due)
{
	List	   *ready = NIL;
	int64		backoff = 0;
	int64		delay = PG_INT64_MAX;
	ListCell   *cell;

	foreach(cell, live)
	{
		DueRow	   *removal = lfirst(cell);
		int64		wait = time_until_due(&removal->row, now);

		if (removal->row.attempts > 0)
			backoff = Max(backoff, wait);
		else if (wait > 0)
		{
			delay = Min(delay, wait);
			due->later = lappend(due->later, removal);
			continue;
		}
		ready = lappend(ready, removal);
	}
	if (backoff > 0 || ready == NIL)
	{
		due->later = live;
		due->wait = backoff > 0 ? backoff : delay;
	}
	else
		choose_rows_to_send(ready, due);
}

/*
 * Reads the first MAX_REMOVALS removals and all keeps, in the order of their ids: of
 * all customers with this number, or with "only" of one of them.  Rows that arrived by
 * logical replication are not sent from here, and take nothing back.
 */
static void
read_customer_rows(Store *waiting, int64 id, int64 customer, const QueueRow *only,
				   List **removals, List **keeps)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	*removals = *keeps = NIL;
	if (!scan_customer_rows(waiting, id, customer, only, snapshot, false, removals, keeps))
		(void) scan_customer_rows(waiting, id, customer, only, snapshot, true, removals, keeps);
	UnregisterSnapshot(snapshot);
}

/* In the index removals come before keeps.  False when it has not read the keeps. */
static bool
scan_customer_rows(Store *waiting, int64 id, int64 customer, const QueueRow *only,
				   Snapshot snapshot, bool keeps_only, List **removals, List **keeps)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	bool		fits = true;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(customer));
	ScanKeyInit(&keys[1], WAITING_KEEP, BTEqualStrategyNumber, F_BOOLEQ, BoolGetDatum(true));
	scan = store_scan(waiting, RELATION_WAITING_CUSTOMER, snapshot, keeps_only ? 2 : 1, keys);
	while (fits && HeapTupleIsValid(tuple = store_next(scan)))
	{
		DueRow	   *row = palloc0(sizeof(DueRow));

		store_read_waiting(waiting, tuple, &row->row);
		if (row->row.replicated || (only && !store_is_same_customer(&row->row, only)))
			continue;
		row->tags = names_of_array(row->row.tags, &row->ntags);
		row->fields = names_of_array(row->row.fields, &row->nfields);

		/* Marker rows keep nothing, and there may be very many. */
		if (row->row.keep && (row->ntags > 0 || row->nfields > 0 || row->row.id == id))
			*keeps = lappend(*keeps, row);
		else if (!row->row.keep)
			*removals = lappend(*removals, row);
		fits = row->row.keep || list_length(*removals) < MAX_REMOVALS;
	}
	store_end_scan(scan);
	return fits;
}

static bool
find_due_row(List *rows, int64 id, QueueRow *found)
{
	ListCell   *cell;

	foreach(cell, rows)
	{
		const DueRow *row = lfirst(cell);

		if (row->row.id != id)
			continue;
		*found = row->row;
		return true;
	}
	return false;
}

static bool
have_other_customer(List *rows, const QueueRow *customer)
{
	ListCell   *cell;

	foreach(cell, rows)
	{
		if (!store_is_same_customer(&((DueRow *) lfirst(cell))->row, customer))
			return true;
	}
	return false;
}

/* Removes from a removal the names that later keeps take back. */
static void
take_back_names(DueRow *removal, List *keeps)
{
	ListCell   *cell;

	foreach(cell, keeps)
	{
		DueRow	   *keep = lfirst(cell);

		if (!store_takes_back(&keep->row, &removal->row))
			continue;
		removal->ntags = names_subtract(removal->tags, removal->ntags, keep->tags, keep->ntags);
		removal->nfields = names_subtract(removal->fields, removal->nfields,
										  keep->fields, keep->nfields);
	}
}

/*
 * A removal that was tried is given up at an age of "retry_for", which includes the
 * server's present delay.  One that was not has only stood in line since its lane began
 * to send; this time does not count.  Nor does what its own delay has in excess of the
 * present one.
 */
static bool
is_too_old(const QueueRow *row, TimestampTz now, TimestampTz sending_since,
		   const Account *account)
{
	TimestampTz since = row->enqueued_at;
	TimestampTz until = now;

	if (row->attempts == 0)
	{
		since = Max(since, row->due_at - (int64) (account->delay * 1000));
		until = Min(sending_since, now);	/* a clock may be set back */
	}
	return (double) (until - since) / 1000 >= account->retry_for;
}

/*
 * Time until a removal is due, in µs; 0 when it is.  One whose due_at is further away
 * than any backoff or delay got it from a clock that was ahead: it counts as due.
 */
static int64
time_until_due(const QueueRow *row, TimestampTz now)
{
	int64		delay = row->attempts > 0 ? 0 : row->due_at - row->enqueued_at;

	if (delay > OPTION_MAX_DELAY * 1000 || row->due_at - delay - now > OUTCOME_MAX_DELAY * 1000)
		return 0;
	return Max(row->due_at - now, 0);
}

/*
 * Divides rows that can all be sent now: the first ones, as many as one request may
 * carry, go out together; the others wait until that request is settled.
 */
static void
choose_rows_to_send(List *rows, Due *due)
{
	int			limit = PAYLOAD_MAX_NAMES;	/* each row has a name at least */
	int			nnames = 0;
	size_t		nbytes = 0;
	ListCell   *cell;

	foreach(cell, rows)
	{
		DueRow	   *row = lfirst(cell);

		if (row->row.together > 0)
			limit = Min(limit, row->row.together);
		nnames += row->ntags + row->nfields;
		nbytes += json_length(row);
		if (due->send == NIL ||
			(due->later == NIL && list_length(due->send) < limit &&
			 nnames <= PAYLOAD_MAX_NAMES && nbytes <= PAYLOAD_MAX_BYTES))
			due->send = lappend(due->send, row);
		else
			due->later = lappend(due->later, row);
	}
}

static size_t
json_length(const DueRow *row)
{
	size_t		nbytes = 0;

	for (int i = 0; i < row->ntags; i++)
		nbytes += payload_json_length(row->tags[i]);
	for (int i = 0; i < row->nfields; i++)
		nbytes += payload_json_length(row->fields[i]);
	return nbytes;
}

/*
 * Called by settle_keeps(): deletes the customer's keeps that have nothing left to
 * keep, since they are older than every removal, uncommitted and replicated ones
 * included.  Returns the id of a keep that only uncommitted removals still need, to be
 * looked at again; else 0.
 */
int64
customer_delete_keeps(Store *waiting, const QueueRow *customer)
{
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *keeps = NIL;
	int64		oldest = PG_INT64_MAX;	/* "ord" of the oldest removal, */
	int64		oldest_committed = PG_INT64_MAX;	/* and of the oldest that
													 * is sure to stay */
	int64		again = 0;
	ListCell   *cell;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(customer->customer));
	scan = store_scan(waiting, RELATION_WAITING_CUSTOMER, &dirty, 1, &key);
	while (HeapTupleIsValid(tuple = store_next(scan)))
	{
		QueueRow   *row = palloc(sizeof(QueueRow));
		bool		is_new = TransactionIdIsValid(dirty.xmin);
		bool		is_going = TransactionIdIsValid(dirty.xmax);

		store_read_waiting(waiting, tuple, row);
		if (!store_is_same_customer(row, customer))
			continue;
		if (row->keep && !is_new && !row->replicated && row->ord != 0)
			keeps = lappend(keeps, row);
		else if (!row->keep)
		{
			oldest = Min(oldest, row->ord);
			if (!is_new && !is_going)
				oldest_committed = Min(oldest_committed, row->ord);
		}
	}
	store_end_scan(scan);

	foreach(cell, keeps)
	{
		QueueRow   *keep = lfirst(cell);

		if (keep->id < oldest)
			(void) store_delete(waiting, &keep->tid, false);
		else if (keep->id < oldest_committed)
			again = keep->id;
	}
	return again;
}

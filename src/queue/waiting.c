/*-------------------------------------------------------------------------
 *
 * queue/waiting.c
 *		The rows of dt_waiting: removals and keeps.
 *
 * A row is updated only while it goes on waiting, by the drainer.  Whoever settles or
 * cancels it deletes it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "miscadmin.h"
#include "queue/waiting.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

StaticAssertDecl(WAITING_NCOLUMNS <= STORE_MOST_COLUMNS, "dt_waiting has too many columns");

static void fill_waiting_columns(const QueueRow *row, StoredColumns *columns);
static bool find_row(Store *waiting, int64 id, QueueRow *row);

/*
 * Makes the tuple of a row, and the columns that it is made of.
 */
HeapTuple
store_form_waiting(Store *waiting, const QueueRow *row, StoredColumns *columns)
{
	fill_waiting_columns(row, columns);
	return store_form_tuple(waiting, columns, WAITING_NCOLUMNS);
}

static void
fill_waiting_columns(const QueueRow *row, StoredColumns *columns)
{
	Datum	   *values = columns->values;
	bool	   *nulls = columns->nulls;

	memset(nulls, false, WAITING_NCOLUMNS);
	values[WAITING_ID - 1] = Int64GetDatum(row->id);
	values[WAITING_ORD - 1] = Int64GetDatum(row->ord);
	values[WAITING_XACT - 1] = Int64GetDatum(row->xact);
	values[WAITING_CUSTOMER - 1] = Int64GetDatum(row->customer);
	values[WAITING_ENQUEUED_AT - 1] = TimestampTzGetDatum(row->enqueued_at);
	values[WAITING_DUE_AT - 1] = TimestampTzGetDatum(row->due_at);
	values[WAITING_ROLE - 1] = ObjectIdGetDatum(row->role);
	values[WAITING_ENQUEUED_BY - 1] = ObjectIdGetDatum(row->enqueued_by);
	values[WAITING_ATTEMPTS - 1] = Int32GetDatum(row->attempts);
	values[WAITING_HTTP_STATUS - 1] = Int32GetDatum(row->http_status);
	nulls[WAITING_HTTP_STATUS - 1] = row->http_status == 0;
	values[WAITING_KEEP - 1] = BoolGetDatum(row->keep);
	values[WAITING_REPLICATED - 1] = BoolGetDatum(row->replicated);
	values[WAITING_TOGETHER - 1] = Int32GetDatum(row->together);
	values[WAITING_ORIGIN - 1] = Int64GetDatum(row->origin);
	nulls[WAITING_ORIGIN - 1] = row->origin == 0;
	store_set_text(values, nulls, WAITING_SERVER, row->server);
	store_set_text(values, nulls, WAITING_PHONE, row->phone);
	store_set_text(values, nulls, WAITING_WABA, row->waba);
	values[WAITING_TAGS - 1] = PointerGetDatum(row->tags);
	values[WAITING_FIELDS - 1] = PointerGetDatum(row->fields);
	store_set_text(values, nulls, WAITING_LAST_ERROR, row->last_error);
}

/*
 * Inserts a row.
 */
void
store_insert_waiting(Store *waiting, const QueueRow *row)
{
	StoredColumns columns;

	fill_waiting_columns(row, &columns);
	store_insert(waiting, &columns, WAITING_NCOLUMNS);
}

/*
 * Called when a row goes on waiting after its request.  store_is_in_place() was true
 * in this transaction, or the row was read in it.
 */
void
store_update_waiting(Store *waiting, const QueueRow *row)
{
	StoredColumns columns;
	HeapTuple	tuple = store_form_waiting(waiting, row, &columns);
	ItemPointerData place = row->tid;

	CatalogTupleUpdateWithInfo(waiting->rel, &place, tuple, waiting->indexes);
	heap_freetuple(tuple);
}

/*
 * Reads only those columns that the drainer needs to put the row into a lane.
 */
void
store_read_place(Store *waiting, HeapTuple tuple, QueueRow *row)
{
	Datum		values[WAITING_NCOLUMNS + STORE_DROPPED_COLUMNS];
	bool		nulls[WAITING_NCOLUMNS + STORE_DROPPED_COLUMNS];

	heap_deform_tuple(tuple, RelationGetDescr(waiting->rel), values, nulls);
	row->id = DatumGetInt64(values[WAITING_ID - 1]);
	row->ord = DatumGetInt64(values[WAITING_ORD - 1]);
	row->xact = DatumGetInt64(values[WAITING_XACT - 1]);
	row->role = DatumGetObjectId(values[WAITING_ROLE - 1]);
	row->customer = DatumGetInt64(values[WAITING_CUSTOMER - 1]);
	row->keep = DatumGetBool(values[WAITING_KEEP - 1]);
	row->replicated = DatumGetBool(values[WAITING_REPLICATED - 1]);
	row->server = store_read_text(values[WAITING_SERVER - 1], false);
}

/*
 * Reads a tuple into a row, whose parts are allocated in the current memory
 * context.
 */
void
store_read_waiting(Store *waiting, HeapTuple tuple, QueueRow *row)
{
	Datum		values[WAITING_NCOLUMNS + STORE_DROPPED_COLUMNS];
	bool		nulls[WAITING_NCOLUMNS + STORE_DROPPED_COLUMNS];

	heap_deform_tuple(tuple, RelationGetDescr(waiting->rel), values, nulls);
	memset(row, 0, sizeof(QueueRow));
	row->id = DatumGetInt64(values[WAITING_ID - 1]);
	row->ord = DatumGetInt64(values[WAITING_ORD - 1]);
	row->xact = DatumGetInt64(values[WAITING_XACT - 1]);
	row->customer = DatumGetInt64(values[WAITING_CUSTOMER - 1]);
	row->enqueued_at = DatumGetTimestampTz(values[WAITING_ENQUEUED_AT - 1]);
	row->due_at = DatumGetTimestampTz(values[WAITING_DUE_AT - 1]);
	row->role = DatumGetObjectId(values[WAITING_ROLE - 1]);
	row->enqueued_by = DatumGetObjectId(values[WAITING_ENQUEUED_BY - 1]);
	row->attempts = DatumGetInt32(values[WAITING_ATTEMPTS - 1]);
	row->http_status = nulls[WAITING_HTTP_STATUS - 1] ? 0 :
		DatumGetInt32(values[WAITING_HTTP_STATUS - 1]);
	row->keep = DatumGetBool(values[WAITING_KEEP - 1]);
	row->replicated = DatumGetBool(values[WAITING_REPLICATED - 1]);
	row->together = DatumGetInt32(values[WAITING_TOGETHER - 1]);
	row->origin = nulls[WAITING_ORIGIN - 1] ? 0 : DatumGetInt64(values[WAITING_ORIGIN - 1]);
	row->server = store_read_text(values[WAITING_SERVER - 1], false);
	row->phone = store_read_text(values[WAITING_PHONE - 1], false);
	row->waba = store_read_text(values[WAITING_WABA - 1], nulls[WAITING_WABA - 1]);
	row->tags = DatumGetArrayTypePCopy(values[WAITING_TAGS - 1]);
	row->fields = DatumGetArrayTypePCopy(values[WAITING_FIELDS - 1]);
	row->last_error = store_read_text(values[WAITING_LAST_ERROR - 1], nulls[WAITING_LAST_ERROR - 1]);
	row->tid = tuple->t_self;
	row->filenode = waiting->rel->rd_rel->relfilenode;
}

/*
 * Reads the waiting row with this id.  False when there is none, committed or of
 * this transaction, or when it arrived by logical replication.
 */
bool
store_find_waiting(Store *waiting, int64 id, QueueRow *row)
{
	return find_row(waiting, id, row) && !row->replicated;
}

/*
 * The same for dt_cancel(), if the row arrived by logical replication.
 */
bool
store_find_replicated(Store *waiting, int64 id, QueueRow *row)
{
	return find_row(waiting, id, row) && row->replicated;
}

static bool
find_row(Store *waiting, int64 id, QueueRow *row)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, WAITING_ID, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = store_scan(waiting, RELATION_WAITING_PKEY, SnapshotSelf, 1, &key);
	tuple = store_next(scan);
	if (HeapTupleIsValid(tuple))
		store_read_waiting(waiting, tuple, row);
	store_end_scan(scan);
	return HeapTupleIsValid(tuple);
}

/*
 * Called before a row is settled: is it still where an earlier transaction has read
 * it?  When its customer is locked, only VACUUM FULL and the like, and a superuser's
 * own SQL, can have moved or deleted it.  When it is deleted, VACUUM may have made the
 * table end before its place, which then could not be read.
 */
bool
store_is_in_place(Store *waiting, const QueueRow *row)
{
	BlockNumber block = ItemPointerGetBlockNumber(&row->tid);
	HeapTupleData tuple = {.t_self = row->tid};
	Buffer		buffer;
	bool		isnull;
	bool		is_in_place;

	/*
	 * The table only grows while it is open: VACUUM would need a stronger
	 * lock.
	 */
	if (block >= waiting->nblocks)
		waiting->nblocks = RelationGetNumberOfBlocks(waiting->rel);
	if (row->filenode != waiting->rel->rd_rel->relfilenode || block >= waiting->nblocks ||
		!heap_fetch(waiting->rel, SnapshotSelf, &tuple, &buffer, false))
		return false;
	is_in_place = DatumGetInt64(heap_getattr(&tuple, WAITING_ID, RelationGetDescr(waiting->rel),
											 &isnull)) == row->id;
	ReleaseBuffer(buffer);
	return is_in_place;
}

/*
 * Counts the removals that wait.
 */
int64
store_count_waiting(Store *waiting)
{
	SysScanDesc scan = systable_beginscan(waiting->rel, InvalidOid, false, SnapshotSelf, 0, NULL);
	int64		nrows = 0;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		if (!DatumGetBool(heap_getattr(tuple, WAITING_KEEP, RelationGetDescr(waiting->rel), &isnull)))
			nrows++;
	}
	systable_endscan(scan);
	return nrows;
}

/*
 * Does a keep take its names out of a removal of the same customer?  Out of those that
 * were enqueued before it; and if it has an origin, only out of those of this origin.
 * A keep that arrived by logical replication counts only for removals that did, too.
 */
bool
store_takes_back(const QueueRow *keep, const QueueRow *removal)
{
	return keep->id >= removal->ord &&
		(keep->origin == 0 || keep->origin == removal->origin) &&
		(removal->replicated || !keep->replicated);
}

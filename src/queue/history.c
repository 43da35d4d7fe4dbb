/*-------------------------------------------------------------------------
 *
 * queue/history.c
 *		The history: the rows of dt_settled.
 *
 * A row has the id that it had in the queue.  It is never updated: either dt_retry()
 * moves it back into the queue, or the drainer deletes it when it is old.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/fault.h"
#include "queue/history.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Columns of dt_settled. */
typedef enum SettledColumn
{
	SETTLED_ID = 1,
	SETTLED_ENQUEUED_AT,
	SETTLED_SETTLED_AT,
	SETTLED_ROLE,
	SETTLED_ENQUEUED_BY,
	SETTLED_ATTEMPTS,
	SETTLED_HTTP_STATUS,
	SETTLED_STATE,
	SETTLED_SERVER,
	SETTLED_PHONE,
	SETTLED_WABA,
	SETTLED_TAGS,
	SETTLED_FIELDS,
	SETTLED_ANSWER,
	SETTLED_ERROR,
	SETTLED_SENT_TAGS,
	SETTLED_SENT_FIELDS,
	SETTLED_ORIGIN,
	SETTLED_NCOLUMNS = SETTLED_ORIGIN
} SettledColumn;

StaticAssertDecl(SETTLED_NCOLUMNS <= STORE_MOST_COLUMNS, "dt_settled has too many columns");

/*
 * Most bytes of a text.  A phone that cannot be used may have any length, but an index
 * that somebody has made must hold these columns together (see shape.c).
 */
#define MAX_NUMBER 200
#define MAX_ERROR 2000

static void set_short_text(Datum *values, bool *nulls, int column, const char *string, int limit);

/*
 * Inserts a row as settled now.  "answer" and "error" may be NULL.
 */
void
history_insert(Store *settled, const QueueRow *row, const char *state,
			   Jsonb *answer, const char *error)
{
	StoredColumns columns = {0};
	Datum	   *values = columns.values;
	bool	   *nulls = columns.nulls;

	values[SETTLED_ID - 1] = Int64GetDatum(row->id);
	values[SETTLED_ENQUEUED_AT - 1] = TimestampTzGetDatum(row->enqueued_at);
	values[SETTLED_SETTLED_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[SETTLED_ROLE - 1] = ObjectIdGetDatum(row->role);
	values[SETTLED_ENQUEUED_BY - 1] = ObjectIdGetDatum(row->enqueued_by);
	values[SETTLED_ATTEMPTS - 1] = Int32GetDatum(row->attempts);
	values[SETTLED_HTTP_STATUS - 1] = Int32GetDatum(row->http_status);
	nulls[SETTLED_HTTP_STATUS - 1] = row->http_status == 0;
	store_set_text(values, nulls, SETTLED_STATE, state);
	store_set_text(values, nulls, SETTLED_SERVER, row->server);
	set_short_text(values, nulls, SETTLED_PHONE, row->phone, MAX_NUMBER);
	set_short_text(values, nulls, SETTLED_WABA, row->waba, MAX_NUMBER);
	values[SETTLED_TAGS - 1] = PointerGetDatum(row->tags);
	values[SETTLED_FIELDS - 1] = PointerGetDatum(row->fields);
	values[SETTLED_ANSWER - 1] = PointerGetDatum(answer);
	nulls[SETTLED_ANSWER - 1] = answer == NULL;
	set_short_text(values, nulls, SETTLED_ERROR, error, MAX_ERROR);
	values[SETTLED_SENT_TAGS - 1] = PointerGetDatum(row->sent_tags);
	nulls[SETTLED_SENT_TAGS - 1] = row->sent_tags == NULL;
	values[SETTLED_SENT_FIELDS - 1] = PointerGetDatum(row->sent_fields);
	nulls[SETTLED_SENT_FIELDS - 1] = row->sent_fields == NULL;
	values[SETTLED_ORIGIN - 1] = Int64GetDatum(row->origin);
	nulls[SETTLED_ORIGIN - 1] = row->origin == 0;

	store_insert(settled, &columns, SETTLED_NCOLUMNS);
}

static void
set_short_text(Datum *values, bool *nulls, int column, const char *string, int limit)
{
	if (string && strlen(string) > (size_t) limit)
		string = pnstrdup(string, fault_cliplen(string, limit));
	store_set_text(values, nulls, column, string);
}

/*
 * Called by dt_retry(): reads the failed removal with this id.  False when there is
 * none.  Of several, it reads the one that was settled last: ids may have come again,
 * after TRUNCATE ... RESTART IDENTITY, setval() or a restore.
 */
bool
history_find_failed(Store *settled, int64 id, QueueRow *row)
{
	TimestampTz latest = DT_NOBEGIN;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, SETTLED_ID, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = store_scan(settled, RELATION_SETTLED_ID, SnapshotSelf, 1, &key);
	while (HeapTupleIsValid(tuple = store_next(scan)))
	{
		Datum		values[SETTLED_NCOLUMNS + STORE_DROPPED_COLUMNS];
		bool		nulls[SETTLED_NCOLUMNS + STORE_DROPPED_COLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(settled->rel), values, nulls);
		if (DatumGetTimestampTz(values[SETTLED_SETTLED_AT - 1]) < latest ||
			strcmp(store_read_text(values[SETTLED_STATE - 1], false), STATE_FAILED) != 0)
			continue;
		latest = DatumGetTimestampTz(values[SETTLED_SETTLED_AT - 1]);
		memset(row, 0, sizeof(QueueRow));
		row->id = id;
		row->enqueued_at = DatumGetTimestampTz(values[SETTLED_ENQUEUED_AT - 1]);
		row->role = DatumGetObjectId(values[SETTLED_ROLE - 1]);
		row->enqueued_by = DatumGetObjectId(values[SETTLED_ENQUEUED_BY - 1]);
		row->server = store_read_text(values[SETTLED_SERVER - 1], false);
		row->phone = store_read_text(values[SETTLED_PHONE - 1], false);
		row->waba = store_read_text(values[SETTLED_WABA - 1], nulls[SETTLED_WABA - 1]);
		row->tags = DatumGetArrayTypePCopy(values[SETTLED_TAGS - 1]);
		row->fields = DatumGetArrayTypePCopy(values[SETTLED_FIELDS - 1]);
		row->origin = nulls[SETTLED_ORIGIN - 1] ? 0 : DatumGetInt64(values[SETTLED_ORIGIN - 1]);
		row->tid = tuple->t_self;
	}
	store_end_scan(scan);
	return latest != DT_NOBEGIN;
}

/*
 * Called by the drainer: deletes up to "limit" rows that were settled before a time,
 * the oldest first, and returns how many rows it has read.  It begins at "from", and
 * sets that to where it has ended, so that the next call does not read the dead rows
 * that this one leaves.
 */
int
history_prune(Store *settled, TimestampTz *from, TimestampTz before, int limit)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	int			npruned = 0;

	ScanKeyInit(&keys[0], SETTLED_SETTLED_AT, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(*from));
	ScanKeyInit(&keys[1], SETTLED_SETTLED_AT, BTLessStrategyNumber, F_TIMESTAMPTZ_LT,
				TimestampTzGetDatum(before));
	scan = store_scan(settled, RELATION_SETTLED_AT, SnapshotSelf, 2, keys);
	while (npruned < limit && HeapTupleIsValid(tuple = store_next(scan)))
	{
		bool		isnull;

		/* Does nothing if dt_retry() is moving the row. */
		(void) store_delete(settled, &tuple->t_self, false);
		*from = DatumGetTimestampTz(heap_getattr(tuple, SETTLED_SETTLED_AT,
												 RelationGetDescr(settled->rel), &isnull));
		npruned++;
	}
	store_end_scan(scan);
	return npruned;
}

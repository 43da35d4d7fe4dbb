/*-------------------------------------------------------------------------
 *
 * queue/store.c
 *		The queue's tables, row by row.
 *
 * Tuples are read and written directly, as PostgreSQL does with its catalogs.
 * So there is no SQL here that a search_path, a role, a rule or a setting could
 * bend, no role to change to and back, and a row costs little more than what
 * the heap and the indexes need.  The tables are always heaps; they have no
 * constraints but NOT NULL and their primary keys, no triggers, and no indexes
 * but plain ones of columns.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/phone.h"
#include "catalog/indexing.h"
#include "catalog/pg_index.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "compat.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "queue/store.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* What 15 digits, which are less than 2^50, leave of 64 bits. */
#define CUSTOMER_HASH_BITS 14

static Oid	lock_table(QueueRelation table);
static void open_others(Store *store);
static void check_other(Store *store, Relation index);
static bool has_same_key(Relation index, Relation other);
static void insert_index_entry(Store *store, int place, IndexInfo *info, Datum *values, bool *nulls,
							   ItemPointer tid);

/*
 * Opens a table and its indexes; the locks last until the transaction ends, so
 * that to open it again costs little.
 */
void
store_open(Store *store, QueueRelation table)
{
	store->rel = table_open(lock_table(table), NoLock);
	store->nindexes = 0;
	for (int i = table + 1; i < NRELATIONS && i != RELATION_SETTLED && i != RELATION_HOLD; i++)
	{
		if (i != RELATION_WAITING_ID)
			store->indexes[store->nindexes++] = index_open(relation_oid(i), RowExclusiveLock);
	}
	open_others(store);
}

/*
 * What others have committed is known when the lock is held: the table may be
 * gone by then, or its indexes be others.  From then on they stay.
 */
static Oid
lock_table(QueueRelation table)
{
	Oid			locked = relation_oid(table);

	LockRelationOid(locked, RowExclusiveLock);
	while (relation_oid(table) != locked)
	{
		UnlockRelationOid(locked, RowExclusiveLock);
		locked = relation_oid(table);
		LockRelationOid(locked, RowExclusiveLock);
	}
	return locked;
}

/*
 * Indexes that are not ours: REINDEX CONCURRENTLY makes some for a while, and an
 * administrator may.  They must have their entries, too.
 */
static void
open_others(Store *store)
{
	int			nours = store->nindexes;
	List	   *oids;
	ListCell   *cell;

	/* Seen without a copy of the list, for it is asked for every row. */
	if (store->rel->rd_indexvalid && list_length(store->rel->rd_indexlist) == nours)
		return;
	oids = RelationGetIndexList(store->rel);
	foreach(cell, oids)
	{
		bool		is_ours = false;

		for (int i = 0; i < nours; i++)
			is_ours = is_ours || RelationGetRelid(store->indexes[i]) == lfirst_oid(cell);
		if (is_ours)
			continue;
		if (store->nindexes == lengthof(store->indexes))
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("table \"%s\" has too many indexes",
							RelationGetRelationName(store->rel)),
					 errhint("Drop those that are not of extension \"doubletick\".")));
		store->indexes[store->nindexes] = index_open(lfirst_oid(cell), RowExclusiveLock);
		check_other(store, store->indexes[store->nindexes++]);
	}
	list_free(oids);
}

/*
 * May an index be there?  It is asked before anything is sent, since an answer
 * that cannot be settled means to send again.
 */
static void
check_other(Store *store, Relation index)
{
	HeapTuple	tuple = index->rd_indextuple;
	bool		is_plain = heap_attisnull(tuple, Anum_pg_index_indexprs, NULL) &&
	heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
	!index->rd_index->indisexclusion;

	if (is_plain && (!index->rd_index->indisunique || has_same_key(index, store->indexes[0])))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("index \"%s\" cannot be on table \"%s\"",
					RelationGetRelationName(index), RelationGetRelationName(store->rel)),
			 errdetail("It is unique, or has expressions, a condition or an exclusion constraint."),
			 errhint("Drop it.")));
}

static bool
has_same_key(Relation index, Relation other)
{
	int			nkeys = index->rd_index->indnkeyatts;

	return nkeys == other->rd_index->indnkeyatts &&
		memcmp(index->rd_index->indkey.values, other->rd_index->indkey.values,
			   sizeof(int16) * nkeys) == 0;
}

void
store_close(Store *store)
{
	for (int i = 0; i < store->nindexes; i++)
		index_close(store->indexes[i], NoLock);
	table_close(store->rel, NoLock);
}

/*
 * The next id.  The sequence hands out one at a time, so that who comes later
 * has the larger one.
 */
int64
store_next_id(void)
{
	return nextval_internal(relation_oid(RELATION_WAITING_ID), false);
}

/*
 * Enters a tuple, and frees it.
 */
void
store_insert(Store *store, HeapTuple tuple)
{
	simple_heap_insert(store->rel, tuple);
	store_insert_index_entries(store, 0, tuple);
	heap_freetuple(tuple);
}

/*
 * Enters a tuple that is in the table into its indexes, from this place on.
 */
void
store_insert_index_entries(Store *store, int from, HeapTuple tuple)
{
	for (int place = from; place < store->nindexes; place++)
	{
		IndexInfo  *info = relation_index_info(store->indexes[place]);
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		for (int i = 0; i < info->ii_NumIndexAttrs; i++)
			values[i] = heap_getattr(tuple, info->ii_IndexAttrNumbers[i],
									 RelationGetDescr(store->rel), &nulls[i]);
		insert_index_entry(store, place, info, values, nulls, &tuple->t_self);
	}
}

static void
insert_index_entry(Store *store, int place, IndexInfo *info, Datum *values, bool *nulls,
				   ItemPointer tid)
{
	if (info->ii_ReadyForInserts)
		(void) index_insert(store->indexes[place], values, nulls, tid, store->rel,
							info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false, info);
}

/*
 * What our indexes are to have of a row, which is nowhere yet.
 */
WaitingKey
store_key_of(const QueueRow *row)
{
	WaitingKey	key = {0};

	key.customer = row->customer;
	key.id = row->id;
	key.keep = row->keep;
	return key;
}

/*
 * Enters a row of dt_waiting that is in the table into one of our two indexes.
 */
void
store_insert_key(Store *waiting, int place, const WaitingKey *key)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS] = {false};
	ItemPointerData tid = key->tid;
	int			n = 0;

	if (place == BY_CUSTOMER)
	{
		values[n++] = Int64GetDatum(key->customer);
		values[n++] = BoolGetDatum(key->keep);
	}
	values[n] = Int64GetDatum(key->id);
	insert_index_entry(waiting, place, relation_index_info(waiting->indexes[place]), values, nulls, &tid);
}

/*
 * Enters a row.
 */
void
store_insert_waiting(Store *waiting, const QueueRow *row)
{
	HeapTuple	tuple = store_form_waiting(waiting, row);
	WaitingKey	key = store_key_of(row);

	simple_heap_insert(waiting->rel, tuple);
	key.tid = tuple->t_self;
	store_insert_key(waiting, BY_ID, &key);
	store_insert_key(waiting, BY_CUSTOMER, &key);
	store_insert_index_entries(waiting, BY_CUSTOMER + 1, tuple);
	heap_freetuple(tuple);
}

/*
 * Writes a row back that was read in this transaction.
 */
void
store_update_waiting(Store *waiting, const QueueRow *row)
{
	HeapTuple	tuple = store_form_waiting(waiting, row);

	tuple->t_self = row->tid;
	CatalogTupleUpdate(waiting->rel, &tuple->t_self, tuple);
	heap_freetuple(tuple);
}

/*
 * Deletes a row.  False when somebody else has, or, unless told to wait, is
 * about to.
 */
bool
store_delete(Store *store, const ItemPointerData *tid, bool wait)
{
	ItemPointerData place = *tid;
	TM_FailureData failure;

	return delete_tuple_at(store->rel, &place, GetCurrentCommandId(true), wait, &failure) == TM_Ok;
}

/*
 * A scan in the order of an index.  Keys name columns of the table.
 */
SysScanDesc
store_scan(Store *store, int index, Snapshot snapshot, int nkeys, ScanKey keys)
{
	return systable_beginscan_ordered(store->rel, store->indexes[index], snapshot, nkeys, keys);
}

HeapTuple
store_next(SysScanDesc scan)
{
	return systable_getnext_ordered(scan, ForwardScanDirection);
}

void
store_end_scan(SysScanDesc scan)
{
	systable_endscan_ordered(scan);
}

/*
 * The waiting row with this id, committed or of this transaction; false when
 * there is none.
 */
bool
store_find_waiting(Store *waiting, int64 id, QueueRow *row)
{
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = store_find_by_id(waiting, id, &scan, &tuple);

	if (found)
		store_read_waiting(waiting, tuple, row);
	store_end_scan(scan);
	return found;
}

/*
 * The tuple with this id, of dt_waiting or of dt_settled.  The scan must be ended
 * in any case.
 */
bool
store_find_by_id(Store *store, int64 id, SysScanDesc *scan, HeapTuple *tuple)
{
	ScanKeyData key;

	ScanKeyInit(&key, WAITING_ID, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	*scan = store_scan(store, BY_ID, SnapshotSelf, 1, &key);
	*tuple = store_next(*scan);
	return HeapTupleIsValid(*tuple);
}

/*
 * Of a tuple of dt_waiting only what tells where it is: "id", "ord", "xact",
 * "role", "customer", "keep" and "server".
 */
void
store_read_place(Store *waiting, HeapTuple tuple, QueueRow *row)
{
	Datum		values[WAITING_NCOLUMNS];
	bool		nulls[WAITING_NCOLUMNS];

	heap_deform_tuple(tuple, RelationGetDescr(waiting->rel), values, nulls);
	row->id = DatumGetInt64(values[WAITING_ID - 1]);
	row->ord = DatumGetInt64(values[WAITING_ORD - 1]);
	row->xact = DatumGetInt64(values[WAITING_XACT - 1]);
	row->customer = DatumGetInt64(values[WAITING_CUSTOMER - 1]);
	row->role = DatumGetObjectId(values[WAITING_ROLE - 1]);
	row->keep = DatumGetBool(values[WAITING_KEEP - 1]);
	row->server = store_read_text(values[WAITING_SERVER - 1], false);
}

/*
 * A tuple of dt_waiting as a row, whose parts are allocated in the current
 * memory context.
 */
void
store_read_waiting(Store *waiting, HeapTuple tuple, QueueRow *row)
{
	Datum		values[WAITING_NCOLUMNS];
	bool		nulls[WAITING_NCOLUMNS];

	heap_deform_tuple(tuple, RelationGetDescr(waiting->rel), values, nulls);
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
	row->alone = DatumGetBool(values[WAITING_ALONE - 1]);
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
 * Is a row that was read in an earlier transaction still as it was then, and at
 * its place?  Nobody but superusers with SQL of their own can have changed that,
 * and VACUUM FULL.
 */
bool
store_is_still(Store *waiting, const QueueRow *row)
{
	TupleTableSlot *slot;
	ItemPointerData place = row->tid;
	bool		isnull;
	bool		still;

	if (row->filenode != waiting->rel->rd_rel->relfilenode)
		return false;
	slot = table_slot_create(waiting->rel, NULL);
	still = table_tuple_fetch_row_version(waiting->rel, &place, SnapshotSelf, slot) &&
		DatumGetInt64(slot_getattr(slot, WAITING_ID, &isnull)) == row->id;
	ExecDropSingleTupleTableSlot(slot);
	return still;
}

/*
 * The text of a column, NULL where there is none.
 */
char *
store_read_text(Datum value, bool isnull)
{
	return isnull ? NULL : TextDatumGetCString(value);
}

/*
 * Sets a column to a text, or to none where it is NULL.
 */
void
store_set_text(Datum *values, bool *nulls, int column, const char *string)
{
	nulls[column - 1] = string == NULL;
	if (string != NULL)
		values[column - 1] = CStringGetTextDatum(string);
}

/*
 * The tuple of a row, which is nowhere yet.
 */
HeapTuple
store_form_waiting(Store *waiting, const QueueRow *row)
{
	Datum		values[WAITING_NCOLUMNS];
	bool		nulls[WAITING_NCOLUMNS] = {false};

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
	values[WAITING_ALONE - 1] = BoolGetDatum(row->alone);
	store_set_text(values, nulls, WAITING_SERVER, row->server);
	store_set_text(values, nulls, WAITING_PHONE, row->phone);
	store_set_text(values, nulls, WAITING_WABA, row->waba);
	values[WAITING_TAGS - 1] = PointerGetDatum(row->tags);
	values[WAITING_FIELDS - 1] = PointerGetDatum(row->fields);
	store_set_text(values, nulls, WAITING_LAST_ERROR, row->last_error);
	return heap_form_tuple(RelationGetDescr(waiting->rel), values, nulls);
}

/*
 * How many removals wait.
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
 * What tells customers apart, as a number: those of different roles and servers
 * are different.  Two with the same phone may have the same, in theory.
 *
 * The phone's digits come first, so that rows that are enqueued in the order of
 * phones are in that of the index, too.
 */
int64
store_customer(const char *server, Oid role, const char *phone, const char *waba)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) server, strlen(server), role);

	hash = phone_hash(waba, phone_hash(phone, hash));
	return (int64) (phone_value(phone) << CUSTOMER_HASH_BITS |
					(hash & ((1 << CUSTOMER_HASH_BITS) - 1)));
}

/*
 * Are these rows of one customer: of one server, role, phone and waba, a
 * leading "+" left aside?
 */
bool
store_is_same_customer(const QueueRow *row, const QueueRow *other)
{
	return row->role == other->role && strcmp(row->server, other->server) == 0 &&
		phone_equal(row->phone, other->phone) && phone_equal(row->waba, other->waba);
}

/*-------------------------------------------------------------------------
 *
 * queue/store.c
 *		Opens the queue's tables; reads and writes rows of dt_waiting.
 *
 * Tuples are read and written directly, as PostgreSQL does with its catalogs.
 * So no search_path, role, rule, trigger or setting of a session can change what
 * happens, and a row costs little more than the heap and the indexes need.
 * Constraints are not checked here: NOT NULL always holds, the index checks the
 * primary key, and shape.c refuses a table that has others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/phone.h"
#include "catalog/index.h"
#include "common/hashfn.h"
#include "compat.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "queue/shape.h"
#include "queue/store.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* A phone is a number below 2^50, and leaves so many of 64 bits. */
#define CUSTOMER_HASH_BITS 14
#define CUSTOMER_HASH_MASK ((UINT64CONST(1) << CUSTOMER_HASH_BITS) - 1)

/*
 * A table's indexes as CatalogOpenIndexes() returns them.  Calling it for each row
 * costs 5,600 of the 36,000 instructions of an enqueue, so they are cached until a
 * relation of ours changes.
 */
typedef struct IndexCache
{
	uint64		generation;		/* relations_generation() when the table was
								 * checked; 0: it was not */
	MemoryContext context;
	CatalogIndexState indexes;	/* NULL: not to be cached */
	Oid			oids[2];
	LocalTransactionId lxid;	/* the last transaction that locked the table */
	SubTransactionId subxact;	/* and these indexes, and its subtransaction */
} IndexCache;

static IndexCache index_caches[NRELATIONS];

/* How many indexes the extension made for each table. */
static const int own_indexes[NRELATIONS] = {
	[RELATION_WAITING] = 2,
	[RELATION_SETTLED] = 2,
	[RELATION_HOLD] = 1,
};

static bool is_locked_already(QueueRelation table);
static Oid	lock_table(QueueRelation table);
static void open_indexes(Store *store, QueueRelation table, bool are_locked);
static void check_and_cache_indexes(IndexCache *cache, Relation rel, QueueRelation table);
static void lock_indexes(const IndexCache *cache);
static void insert_index_entries(Store *store, const StoredColumns *columns, ItemPointer tid);
static void fill_waiting_columns(const QueueRow *row, StoredColumns *columns);
static bool find_row(Store *waiting, int64 id, QueueRow *row);
static HeapTuple read_moved(Store *waiting, HeapTuple old, Snapshot dirty);

/*
 * Opens a table of ours; nothing else does.  Its locks last until the transaction
 * ends, so that opening it again costs little.
 */
void
store_open(Store *store, QueueRelation table)
{
	bool		is_locked = is_locked_already(table);
	Oid			oid = is_locked ? InvalidOid : lock_table(table);

	store->rel = table_open(OidIsValid(oid) ? oid : relation_oid(table), NoLock);
	open_indexes(store, table, is_locked);
}

/*
 * Has this very subtransaction locked the table and its indexes?  Locking them again
 * would cost 900 instructions.  Another subtransaction's locks may be gone.
 */
static bool
is_locked_already(QueueRelation table)
{
	const IndexCache *cache = &index_caches[table];

	(void) relation_oid(table);
	return cache->generation == relations_generation() && cache->indexes != NULL &&
		cache->lxid == my_local_xid() && cache->subxact == GetCurrentSubTransactionId();
}

/*
 * The lock belongs to the subtransaction, and so do those of the indexes.  That of
 * a cursor would be gone before the subtransaction ends, if the cursor fails.
 */
static Oid
lock_table(QueueRelation table)
{
	ResourceOwner caller = CurrentResourceOwner;
	Oid			oid;

	CurrentResourceOwner = CurTransactionResourceOwner;
	oid = relation_lock(table);
	CurrentResourceOwner = caller;
	return oid;
}

static void
open_indexes(Store *store, QueueRelation table, bool are_locked)
{
	IndexCache *cache = &index_caches[table];

	if (cache->generation != relations_generation())
		check_and_cache_indexes(cache, store->rel, table);
	store->indexes_are_cached = cache->indexes != NULL;
	if (!store->indexes_are_cached)
	{
		store->indexes = CatalogOpenIndexes(store->rel);
		return;
	}
	store->indexes = cache->indexes;
	store->indexes->ri_RelationDesc = store->rel;
	if (!are_locked)
		lock_indexes(cache);
	for (int i = 0; i < store->indexes->ri_NumIndices; i++)
		store->indexes->ri_IndexRelationDescs[i] = index_open(cache->oids[i], NoLock);
	cache->lxid = my_local_xid();
	cache->subxact = GetCurrentSubTransactionId();
}

/*
 * Indexes that are not ours are filled, too: REINDEX CONCURRENTLY makes some, and so
 * may an administrator.  If there is one, nothing is cached, since the IndexInfo of
 * other access methods may point to the open relation.  Another Store may still use
 * what was cached before, so that is freed when the transaction ends.
 */
static void
check_and_cache_indexes(IndexCache *cache, Relation rel, QueueRelation table)
{
	CatalogIndexState indexes;
	MemoryContext caller;

	cache->generation = 0;
	cache->indexes = NULL;
	check_table_shape(rel, table);
	if (cache->context)
		MemoryContextSetParent(cache->context, TopTransactionContext);
	cache->context = NULL;		/* in case that there is no memory */
	cache->context = AllocSetContextCreate(TopMemoryContext, "doubletick indexes",
										   ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(cache->context);
	indexes = CatalogOpenIndexes(rel);
	MemoryContextSwitchTo(caller);
	if (indexes->ri_NumIndices == own_indexes[table])
		cache->indexes = indexes;
	for (int i = 0; i < indexes->ri_NumIndices; i++)
	{
		Relation	index = indexes->ri_IndexRelationDescs[i];

		check_index_shape(rel, table, index);
		if (cache->indexes)
			cache->oids[i] = RelationGetRelid(index);
		index_close(index, NoLock);
	}
	cache->generation = relations_generation();
}

static void
lock_indexes(const IndexCache *cache)
{
	ResourceOwner caller = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	for (int i = 0; i < cache->indexes->ri_NumIndices; i++)
		LockRelationOid(cache->oids[i], RowExclusiveLock);
	CurrentResourceOwner = caller;
}

/*
 * Closes a table.
 */
void
store_close(Store *store)
{
	if (store->indexes_are_cached)
	{
		for (int i = 0; i < store->indexes->ri_NumIndices; i++)
			index_close(store->indexes->ri_IndexRelationDescs[i], NoLock);
	}
	else
		CatalogCloseIndexes(store->indexes);
	table_close(store->rel, NoLock);
}

/*
 * Makes a tuple of columns, of which the first "ncolumns" are set.
 */
HeapTuple
store_form_tuple(Store *store, StoredColumns *columns, int ncolumns)
{
	TupleDesc	desc = RelationGetDescr(store->rel);

	for (int i = ncolumns; i < desc->natts; i++)
		columns->nulls[i] = true;
	return heap_form_tuple(desc, columns->values, columns->nulls);
}

/*
 * Inserts a row with these columns.  CatalogTupleInsertWithInfo() would make a slot of
 * the tuple and take it apart again for the indexes, for 1,300 instructions.
 */
void
store_insert(Store *store, StoredColumns *columns, int ncolumns)
{
	HeapTuple	tuple = store_form_tuple(store, columns, ncolumns);

	simple_heap_insert(store->rel, tuple);
	insert_index_entries(store, columns, &tuple->t_self);
	heap_freetuple(tuple);
}

/*
 * Inserts the tuples of some slots, and of each the columns that it was made of: those
 * that go to the same page share its lock and a WAL record.
 * CatalogTuplesMultiInsertWithInfo() would not do: it loses the TID of a tuple that is
 * toasted, and it makes a slot for each tuple (3 % of a statement's instructions).
 */
void
store_insert_slots(Store *store, TupleTableSlot **slots, StoredColumns **columns, int nslots)
{
	if (nslots > 0)
		heap_multi_insert(store->rel, slots, nslots, GetCurrentCommandId(true), 0, NULL);
	for (int i = 0; i < nslots; i++)
		insert_index_entries(store, columns[i], &slots[i]->tts_tid);
}

/* All indexes are of plain columns: check_index_shape() refuses others. */
static void
insert_index_entries(Store *store, const StoredColumns *columns, ItemPointer tid)
{
	for (int i = 0; i < store->indexes->ri_NumIndices; i++)
	{
		IndexInfo  *info = store->indexes->ri_IndexRelationInfo[i];
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		if (!info->ii_ReadyForInserts)
			continue;
		for (int j = 0; j < info->ii_NumIndexAttrs; j++)
		{
			values[j] = columns->values[info->ii_IndexAttrNumbers[j] - 1];
			nulls[j] = columns->nulls[info->ii_IndexAttrNumbers[j] - 1];
		}
		(void) index_insert(store->indexes->ri_IndexRelationDescs[i], values, nulls, tid, store->rel,
							info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false, info);
	}
}

/*
 * Deletes a row.  False when it has been deleted or updated, or, without "wait",
 * when a transaction in progress may have done so.
 */
bool
store_delete(Store *store, const ItemPointerData *tid, bool wait)
{
	ItemPointerData place = *tid;
	TM_FailureData failure;

	return delete_tuple_at(store->rel, &place, GetCurrentCommandId(true), wait, &failure) == TM_Ok;
}

/*
 * Scans a table in the order of an index: store_next() returns its tuples, until it
 * returns NULL, and store_end_scan() ends it.  The keys name columns of the table.
 */
SysScanDesc
store_scan(Store *store, QueueRelation index, Snapshot snapshot, int nkeys, ScanKey keys)
{
	LOCKMODE	lockmode = store->indexes_are_cached ? NoLock : RowExclusiveLock;
	Relation	rel = index_open(relation_oid(index), lockmode);

	return systable_beginscan_ordered(store->rel, rel, snapshot, nkeys, keys);
}

HeapTuple
store_next(SysScanDesc scan)
{
	return systable_getnext_ordered(scan, ForwardScanDirection);
}

void
store_end_scan(SysScanDesc scan)
{
	Relation	index = scan->irel;

	systable_endscan_ordered(scan);
	index_close(index, NoLock);
}

/*
 * The text of a column, or NULL.
 */
char *
store_read_text(Datum value, bool isnull)
{
	return isnull ? NULL : TextDatumGetCString(value);
}

/*
 * Sets a column to a text, or to null if "string" is NULL.
 */
void
store_set_text(Datum *values, bool *nulls, int column, const char *string)
{
	nulls[column - 1] = string == NULL;
	if (string != NULL)
		values[column - 1] = CStringGetTextDatum(string);
}

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
 * own SQL, can have moved or deleted it.
 */
bool
store_is_in_place(Store *waiting, const QueueRow *row)
{
	TupleTableSlot *slot;
	ItemPointerData place = row->tid;
	bool		isnull;
	bool		is_in_place;

	if (row->filenode != waiting->rel->rd_rel->relfilenode)
		return false;
	slot = table_slot_create(waiting->rel, NULL);
	is_in_place = table_tuple_fetch_row_version(waiting->rel, &place, SnapshotSelf, slot) &&
		DatumGetInt64(slot_getattr(slot, WAITING_ID, &isnull)) == row->id;
	ExecDropSingleTupleTableSlot(slot);
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
 * A number that stands for a customer: server, role, phone and waba without a
 * leading "+".  Two customers of one phone may, rarely, have the same.
 *
 * The phone's digits are its upper bits: rows that are enqueued in the order of
 * their phones are then inserted into the index in nearly its own order.
 */
int64
store_customer(const char *server, Oid role, const char *phone, const char *waba)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) server, strlen(server), role);

	hash = phone_hash(waba, phone_hash(phone, hash));
	return (int64) (phone_value(phone) << CUSTOMER_HASH_BITS | (hash & CUSTOMER_HASH_MASK));
}

/*
 * The phone_value() of a customer with this number.
 */
uint64
store_phone_value(int64 customer)
{
	return (uint64) customer >> CUSTOMER_HASH_BITS;
}

/*
 * Scans the rows of all customers with this phone: store_next_of_phone() returns them.
 * Makes the snapshot, which must last as long as the scan.
 */
SysScanDesc
store_scan_phone(Store *waiting, const char *phone, Snapshot snapshot)
{
	uint64		first = phone_value(phone) << CUSTOMER_HASH_BITS;
	ScanKeyData keys[2];

	InitNonVacuumableSnapshot(*snapshot, GlobalVisTestFor(waiting->rel));
	ScanKeyInit(&keys[0], WAITING_CUSTOMER, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum((int64) first));
	ScanKeyInit(&keys[1], WAITING_CUSTOMER, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum((int64) (first | CUSTOMER_HASH_MASK)));
	return store_scan(waiting, RELATION_WAITING_CUSTOMER, snapshot, 2, keys);
}

/*
 * The next row that waits, or may come to wait: it is committed, or of this transaction,
 * or "is_in_progress" in another one.  A row may be returned twice.
 *
 * A scan with a dirty snapshot could miss a row that the drainer moves meanwhile: the
 * old version is gone when it is looked at, and the new one is in the index behind the
 * scan.  So the scan returns old versions, too, and from these we go on to the new one.
 */
HeapTuple
store_next_of_phone(Store *waiting, SysScanDesc scan, bool *is_in_progress)
{
	HeapTuple	tuple;
	SnapshotData dirty;

	InitDirtySnapshot(dirty);
	while (HeapTupleIsValid(tuple = store_next(scan)))
	{
		if (!table_tuple_satisfies_snapshot(waiting->rel, scan->slot, &dirty))
			tuple = read_moved(waiting, tuple, &dirty);
		if (HeapTupleIsValid(tuple))
			break;
	}
	*is_in_progress = HeapTupleIsValid(tuple) && TransactionIdIsValid(dirty.xmin);
	return tuple;
}

/*
 * The new version of a row, in the current memory context; NULL if it was deleted.  After
 * a HOT update the scan itself comes to the new version.
 */
static HeapTuple
read_moved(Store *waiting, HeapTuple old, Snapshot dirty)
{
	ItemPointerData place = old->t_self;
	TableScanDesc scan;
	TupleTableSlot *slot;
	HeapTuple	moved = NULL;

	if (ItemPointerEquals(&place, &old->t_data->t_ctid) || HeapTupleIsHotUpdated(old))
		return NULL;
	scan = table_beginscan_tid(waiting->rel, dirty);
	table_tuple_get_latest_tid(scan, &place);
	table_endscan(scan);
	slot = table_slot_create(waiting->rel, NULL);
	if (table_tuple_fetch_row_version(waiting->rel, &place, dirty, slot))
		moved = ExecCopySlotHeapTuple(slot);
	ExecDropSingleTupleTableSlot(slot);
	return moved;
}

/*
 * Do two rows belong to the same customer?
 */
bool
store_is_same_customer(const QueueRow *row, const QueueRow *other)
{
	return row->role == other->role && strcmp(row->server, other->server) == 0 &&
		phone_equal(row->phone, other->phone) && phone_equal(row->waba, other->waba);
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

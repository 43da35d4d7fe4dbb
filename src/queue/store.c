/*-------------------------------------------------------------------------
 *
 * queue/store.c
 *		Opens the queue's tables; reads and writes their tuples.
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
#include "compat.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "queue/shape.h"
#include "queue/store.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

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
	store->nblocks = 0;
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

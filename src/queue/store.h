/*-------------------------------------------------------------------------
 *
 * queue/store.h
 *		Opens the queue's tables; reads and writes their tuples.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_STORE_H
#define DOUBLETICK_QUEUE_STORE_H

#include "access/genam.h"
#include "access/htup.h"
#include "catalog/indexing.h"
#include "queue/relations.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* How many columns a table of ours has at most. */
#define STORE_MOST_COLUMNS 20

/*
 * How many columns somebody may have added to a table of ours and dropped again.
 * Arrays for heap_deform_tuple() and store_form_tuple() are longer by this number.
 */
#define STORE_DROPPED_COLUMNS 16

/* A table of ours, open to be read and written. */
typedef struct Store
{
	Relation	rel;
	CatalogIndexState indexes;
	bool		indexes_are_cached;
	BlockNumber nblocks;		/* its length, when store_is_in_place() last
								 * asked for it */
} Store;

/* The columns of a row that is written: of any of our tables, hence the length. */
typedef struct StoredColumns
{
	Datum		values[STORE_MOST_COLUMNS + STORE_DROPPED_COLUMNS];
	bool		nulls[STORE_MOST_COLUMNS + STORE_DROPPED_COLUMNS];
} StoredColumns;

extern void store_open(Store *store, QueueRelation table);
extern void store_close(Store *store);

extern HeapTuple store_form_tuple(Store *store, StoredColumns *columns, int ncolumns);
extern void store_insert(Store *store, StoredColumns *columns, int ncolumns);
extern void store_insert_slots(Store *store, TupleTableSlot **slots, StoredColumns **columns,
							   int nslots);
extern bool store_delete(Store *store, const ItemPointerData *tid, bool wait);
extern SysScanDesc store_scan(Store *store, QueueRelation index, Snapshot snapshot, int nkeys,
							  ScanKey keys);
extern HeapTuple store_next(SysScanDesc scan);
extern void store_end_scan(SysScanDesc scan);
extern char *store_read_text(Datum value, bool isnull);
extern void store_set_text(Datum *values, bool *nulls, int column, const char *string);

#endif							/* DOUBLETICK_QUEUE_STORE_H */

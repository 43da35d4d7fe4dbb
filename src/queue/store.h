/*-------------------------------------------------------------------------
 *
 * queue/store.h
 *		Opens the queue's tables; reads and writes rows of dt_waiting.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_STORE_H
#define DOUBLETICK_QUEUE_STORE_H

#include "access/genam.h"
#include "access/htup.h"
#include "catalog/indexing.h"
#include "datatype/timestamp.h"
#include "queue/relations.h"
#include "utils/array.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/*
 * How many columns somebody may have added to a table of ours and dropped again.
 * Arrays for heap_deform_tuple() and store_form_tuple() are longer by this number.
 */
#define STORE_DROPPED_COLUMNS 16

/* Columns of dt_waiting. */
typedef enum WaitingColumn
{
	WAITING_ID = 1,
	WAITING_ORD,
	WAITING_XACT,
	WAITING_CUSTOMER,
	WAITING_ENQUEUED_AT,
	WAITING_DUE_AT,
	WAITING_ROLE,
	WAITING_ENQUEUED_BY,
	WAITING_ATTEMPTS,
	WAITING_HTTP_STATUS,
	WAITING_KEEP,
	WAITING_REPLICATED,
	WAITING_TOGETHER,
	WAITING_ORIGIN,
	WAITING_SERVER,
	WAITING_PHONE,
	WAITING_WABA,
	WAITING_TAGS,
	WAITING_FIELDS,
	WAITING_LAST_ERROR,
	WAITING_NCOLUMNS = WAITING_LAST_ERROR
} WaitingColumn;

/* A row of dt_waiting; of dt_settled, the columns that both have. */
typedef struct QueueRow
{
	int64		id;
	int64		ord;			/* a keep takes back the removals whose ord is
								 * below its id; in a marker row, the id that
								 * it marks, 0: all */
	int64		xact;			/* FullTransactionId that inserted it */
	int64		customer;		/* see store_customer() */
	TimestampTz enqueued_at;
	TimestampTz due_at;
	Oid			role;			/* whose request it is */
	Oid			enqueued_by;	/* who caused it */
	int			attempts;		/* requests made */
	int			http_status;	/* of the last one, 0: none */
	bool		keep;			/* names that came back, not a removal */
	bool		replicated;		/* arrived by logical replication */
	int			together;		/* how many rows a request that carries this
								 * one may carry at most; 0: no such limit */
	int64		origin;			/* the table whose trigger enqueued it, see
								 * definition.c; 0: enqueued by hand.  Of a
								 * keep: see store_takes_back() */
	const char *server;
	const char *phone;			/* as given */
	const char *waba;			/* as given, NULL: none */
	ArrayType  *tags;			/* text[], perhaps empty */
	ArrayType  *fields;			/* the same */
	const char *last_error;		/* NULL: none */
	ArrayType  *sent_tags;		/* of dt_settled alone: what was sent; NULL: */
	ArrayType  *sent_fields;	/* all of "tags", "fields", or nothing */
	ItemPointerData tid;		/* where it was read, */
	Oid			filenode;		/* and in which file of the table */
} QueueRow;

/* A table of ours, open to be read and written. */
typedef struct Store
{
	Relation	rel;
	CatalogIndexState indexes;
	bool		indexes_are_cached;
} Store;

/* The columns of a row that is written: of any of our tables, hence the length. */
typedef struct StoredColumns
{
	Datum		values[WAITING_NCOLUMNS + STORE_DROPPED_COLUMNS];
	bool		nulls[WAITING_NCOLUMNS + STORE_DROPPED_COLUMNS];
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
extern SysScanDesc store_scan_phone(Store *waiting, const char *phone, Snapshot snapshot);
extern HeapTuple store_next_of_phone(Store *waiting, SysScanDesc scan, bool *is_in_progress);
extern void store_end_scan(SysScanDesc scan);
extern char *store_read_text(Datum value, bool isnull);
extern void store_set_text(Datum *values, bool *nulls, int column, const char *string);

extern HeapTuple store_form_waiting(Store *waiting, const QueueRow *row, StoredColumns *columns);
extern void store_insert_waiting(Store *waiting, const QueueRow *row);
extern void store_update_waiting(Store *waiting, const QueueRow *row);
extern void store_read_place(Store *waiting, HeapTuple tuple, QueueRow *row);
extern void store_read_waiting(Store *waiting, HeapTuple tuple, QueueRow *row);
extern bool store_find_waiting(Store *waiting, int64 id, QueueRow *row);
extern bool store_find_replicated(Store *waiting, int64 id, QueueRow *row);
extern bool store_is_in_place(Store *waiting, const QueueRow *row);
extern int64 store_count_waiting(Store *waiting);

extern int64 store_customer(const char *server, Oid role, const char *phone,
							const char *waba);
extern uint64 store_phone_value(int64 customer);
extern bool store_is_same_customer(const QueueRow *row, const QueueRow *other);
extern bool store_takes_back(const QueueRow *keep, const QueueRow *removal);

#endif							/* DOUBLETICK_QUEUE_STORE_H */

/*-------------------------------------------------------------------------
 *
 * queue/store.h
 *		The queue's tables, row by row.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_STORE_H
#define DOUBLETICK_QUEUE_STORE_H

#include "access/genam.h"
#include "access/htup.h"
#include "datatype/timestamp.h"
#include "queue/relations.h"
#include "utils/array.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* Places of the indexes in Store. */
#define BY_ID 0					/* of dt_waiting and dt_settled */
#define BY_CUSTOMER 1
#define BY_SETTLED_AT 1
#define BY_SERVER_AND_ROLE 0

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
	WAITING_ALONE,
	WAITING_SERVER,
	WAITING_PHONE,
	WAITING_WABA,
	WAITING_TAGS,
	WAITING_FIELDS,
	WAITING_LAST_ERROR,
	WAITING_NCOLUMNS = WAITING_LAST_ERROR
} WaitingColumn;

/* A row of dt_waiting, or as much of it as dt_settled has. */
typedef struct QueueRow
{
	int64		id;
	int64		ord;			/* what keeps are compared with; of
								 * dt_retry()'s keep, the id of what was put
								 * back */
	int64		xact;			/* FullTransactionId of its maker */
	int64		customer;		/* see store_customer() */
	TimestampTz enqueued_at;
	TimestampTz due_at;
	Oid			role;			/* whose request it is */
	Oid			enqueued_by;	/* who caused it */
	int			attempts;		/* requests made */
	int			http_status;	/* of the last one, 0: none */
	bool		keep;			/* names that came back, not a removal */
	bool		alone;			/* not to be sent together with others */
	const char *server;
	const char *phone;			/* as given */
	const char *waba;			/* as given, NULL: none */
	ArrayType  *tags;			/* text[], perhaps empty */
	ArrayType  *fields;			/* the same */
	const char *last_error;		/* NULL: none */
	ItemPointerData tid;		/* where it was read, */
	Oid			filenode;		/* in which file of the table */
} QueueRow;

/* What our indexes have of a row of dt_waiting. */
typedef struct WaitingKey
{
	int64		customer;
	int64		id;
	ItemPointerData tid;		/* where the row is, once it is in the table */
	bool		keep;
} WaitingKey;

/* A table that is open, with its indexes: ours first, and perhaps others. */
typedef struct Store
{
	Relation	rel;
	Relation	indexes[8];
	int			nindexes;
} Store;

extern void store_open(Store *store, QueueRelation table);
extern void store_close(Store *store);

extern int64 store_next_id(void);
extern void store_insert(Store *store, HeapTuple tuple);
extern void store_insert_index_entries(Store *store, int from, HeapTuple tuple);
extern WaitingKey store_key_of(const QueueRow *row);
extern void store_insert_key(Store *waiting, int place, const WaitingKey *key);
extern HeapTuple store_form_waiting(Store *waiting, const QueueRow *row);
extern void store_insert_waiting(Store *waiting, const QueueRow *row);
extern void store_update_waiting(Store *waiting, const QueueRow *row);
extern bool store_delete(Store *store, const ItemPointerData *tid, bool wait);

extern SysScanDesc store_scan(Store *store, int index, Snapshot snapshot, int nkeys, ScanKey keys);
extern HeapTuple store_next(SysScanDesc scan);
extern void store_end_scan(SysScanDesc scan);
extern bool store_find_by_id(Store *store, int64 id, SysScanDesc *scan, HeapTuple *tuple);
extern char *store_read_text(Datum value, bool isnull);
extern void store_set_text(Datum *values, bool *nulls, int column, const char *string);

extern void store_read_place(Store *waiting, HeapTuple tuple, QueueRow *row);
extern void store_read_waiting(Store *waiting, HeapTuple tuple, QueueRow *row);
extern bool store_find_waiting(Store *waiting, int64 id, QueueRow *row);
extern bool store_is_still(Store *waiting, const QueueRow *row);
extern int64 store_customer(const char *server, Oid role, const char *phone,
							const char *waba);
extern bool store_is_same_customer(const QueueRow *row, const QueueRow *other);

extern int64 store_count_waiting(Store *waiting);

#endif							/* DOUBLETICK_QUEUE_STORE_H */

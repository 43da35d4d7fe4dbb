/*-------------------------------------------------------------------------
 *
 * queue/waiting.h
 *		The rows of dt_waiting: removals and keeps.
 *
 *		store_form_waiting()		makes the tuple of a row
 *		store_insert_waiting()		inserts a row
 *		store_update_waiting()		has a row go on waiting
 *		store_read_place()			reads what a lane needs of a row
 *		store_read_waiting()		reads a row
 *		store_find_waiting()		reads the row with an id
 *		store_find_replicated()		the same, if another database sends it
 *		store_is_in_place()			is a row still where it was read?
 *		store_count_waiting()		counts the removals
 *		store_takes_back()			does a keep take names out of a removal?
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_WAITING_H
#define DOUBLETICK_QUEUE_WAITING_H

#include "datatype/timestamp.h"
#include "queue/store.h"
#include "utils/array.h"

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
	int64		customer;		/* see customer_number() */
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

extern HeapTuple store_form_waiting(Store *waiting, const QueueRow *row, StoredColumns *columns);
extern void store_insert_waiting(Store *waiting, const QueueRow *row);
extern void store_update_waiting(Store *waiting, const QueueRow *row);
extern void store_read_place(Store *waiting, HeapTuple tuple, QueueRow *row);
extern void store_read_waiting(Store *waiting, HeapTuple tuple, QueueRow *row);
extern bool store_find_waiting(Store *waiting, int64 id, QueueRow *row);
extern bool store_find_replicated(Store *waiting, int64 id, QueueRow *row);
extern bool store_is_in_place(Store *waiting, const QueueRow *row);
extern int64 store_count_waiting(Store *waiting);
extern bool store_takes_back(const QueueRow *keep, const QueueRow *removal);

#endif							/* DOUBLETICK_QUEUE_WAITING_H */

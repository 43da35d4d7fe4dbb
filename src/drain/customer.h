/*-------------------------------------------------------------------------
 *
 * drain/customer.h
 *		What is due: which rows wait, and what of a customer's goes out next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_CUSTOMER_H
#define DOUBLETICK_DRAIN_CUSTOMER_H

#include "api/payload.h"
#include "nodes/pg_list.h"
#include "queue/store.h"

/* Transactions, from one to before another, and an id below which they have no rows. */
typedef struct Runners
{
	int64		from;			/* 64-bit transaction numbers */
	int64		to;
	int64		floor;
} Runners;

/* Which waiting rows have been seen, by this process. */
typedef struct Horizon
{
	int64		id;				/* all up to this one, but for those of
								 * runners */
	List	   *runners;		/* Runners, of one each: known to be under way */
	Runners		unknown;		/* above all that have ended: perhaps under
								 * way */

	/* Rows to look through again, for those of transactions that have ended. */
	int64		again_from;		/* above this id, */
	int64		again_to;		/* up to this one */
	List	   *ended;			/* Runners */

	MemoryContext context;
} Horizon;

/* Told of each row, removal or keep, that is seen for the first time. */
typedef void (*DueCallback) (void *arg, const QueueRow *place);

/* A row that goes out, or has no need to. */
typedef struct DuePart
{
	QueueRow	row;
	const char **tags;			/* names that were not taken back */
	int			ntags;
	const char **fields;
	int			nfields;
} DuePart;

/* What there is to do for one customer. */
typedef struct Due
{
	QueueRow	customer;		/* the row that was asked for */
	List	   *parts;			/* DuePart: go out as one request */
	List	   *later;			/* DuePart: must wait, for another request or
								 * for due_at */
	List	   *expired;		/* DuePart: older than retry_for */
	List	   *kept;			/* DuePart: wholly taken back */
	bool		has_keeps;		/* are there keeps? */
	TimestampTz due_at;			/* if "parts" is empty: when "later" is due */
} Due;

extern bool due_discover(Store *waiting, Horizon *horizon, int limit,
						 DueCallback callback, void *arg);
extern bool due_read(Store *waiting, int64 id, int64 customer, TimestampTz now,
					 double retry_for, Due *due);
extern int64 due_forget_keeps(Store *waiting, const QueueRow *customer);

#endif							/* DOUBLETICK_DRAIN_CUSTOMER_H */

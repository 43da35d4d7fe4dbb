/*-------------------------------------------------------------------------
 *
 * drain/customer.h
 *		What waits for one customer, and what of it goes out next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_CUSTOMER_H
#define DOUBLETICK_DRAIN_CUSTOMER_H

#include "account/option.h"
#include "nodes/pg_list.h"
#include "queue/waiting.h"

/* A waiting row, without the names that a keep has taken back. */
typedef struct DueRow
{
	QueueRow	row;
	const char **tags;
	int			ntags;
	const char **fields;
	int			nfields;

	/* See settle_request(). */
	bool		is_settled;
	int64		next_at;		/* if not: when it may go again, by
								 * clock_now() */
} DueRow;

/* What is to be done for one customer.  Each removal that was read is in one list. */
typedef struct Due
{
	QueueRow	asked;			/* the row that was asked for */
	List	   *send;			/* DueRow: go out as one request */
	List	   *later;			/* DueRow: wait for that request to be
								 * settled, or for due_at */
	List	   *expired;		/* DueRow: given up, see is_too_old() */
	List	   *kept;			/* DueRow: keeps have taken back every name */
	bool		has_keeps;
	int64		wait;			/* µs until "later" is due, if "send" is
								 * empty */
} Due;

extern bool customer_read(Store *waiting, int64 id, int64 customer, TimestampTz now,
						  TimestampTz sending_since, const Account *account, Due *due);
extern int64 customer_delete_keeps(Store *waiting, const QueueRow *customer);

#endif							/* DOUBLETICK_DRAIN_CUSTOMER_H */

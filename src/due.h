/*-------------------------------------------------------------------------
 *
 * due.h
 *		What is due: which rows wait, and what of a customer's goes out next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DUE_H
#define DOUBLETICK_DUE_H

#include "nodes/pg_list.h"
#include "payload.h"
#include "store.h"

/* How far the waiting rows have been seen, by this process. */
typedef struct Horizon
{
	int64		xact;			/* the last row seen: its transaction, */
	int64		id;				/* and its id */
	int64	   *running;		/* transactions that may still show rows before it */
	int			nrunning;
	int			capacity;
} Horizon;

/* Told of each row, removal or keep, that is seen for the first time. */
typedef void (*DueCallback) (void *arg, int64 id, const char *server, Oid role);

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
	List	   *parts;			/* DuePart: go out as one request */
	List	   *expired;		/* DuePart: older than retry_for */
	List	   *kept;			/* DuePart: wholly taken back */
	bool		has_keeps;		/* are there keeps? */
	int64		more_id;		/* a row that must go out later, 0: none */
	TimestampTz due_at;			/* if "parts" is empty: when that is due */
} Due;

extern bool due_discover(Relation waiting, Horizon *horizon, int limit,
						 DueCallback callback, void *arg);
extern void due_read(Relation waiting, const QueueRow *customer, TimestampTz now,
					 double retry_for, Due *due);
extern void due_forget_keeps(Store *waiting, const QueueRow *customer);

#endif							/* DOUBLETICK_DUE_H */

/*-------------------------------------------------------------------------
 *
 * drain/discover.h
 *		Finds the rows of dt_waiting that this process has not seen yet.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_DISCOVER_H
#define DOUBLETICK_DRAIN_DISCOVER_H

#include "nodes/pg_list.h"
#include "queue/waiting.h"

/*
 * Half-open range of 64-bit transaction ids, and a lower bound for the ids of
 * the rows that these transactions have made.
 */
typedef struct XactRange
{
	int64		from;
	int64		to;
	int64		rows_above;
} XactRange;

/* How far this process has read dt_waiting. */
typedef struct Horizon
{
	MemoryContext context;		/* of the lists */
	Oid			filenode;		/* of dt_waiting: TRUNCATE gives it another
								 * one, and perhaps old ids to new rows */
	int64		id;				/* every row up to this id has been seen,
								 * except the backlog, and rows of
								 * transactions that were under way then */
	int64		backlog_from;	/* rows above this id, */
	int64		backlog_to;		/* up to this one, were left out */
	int64		marker;			/* the last one of discover_anew() */
	bool		has_passed;		/* has it passed over rows that arrived by
								 * logical replication? */
	List	   *running;		/* XactRange of one transaction each, known to
								 * be under way */
	XactRange	unknown;		/* transactions that are perhaps under way,
								 * since none had ended that was newer */

	/* The part of the table to be read again, only for rows of "ended". */
	int64		again_from;		/* ids above this one, */
	int64		again_to;		/* up to this one, */
	int64		again_gap_from; /* but not above this one */
	int64		again_gap_to;	/* up to this one */
	List	   *ended;			/* XactRange */
} Horizon;

extern bool discover_rows(Store *waiting, Horizon *horizon, int limit,
						  QueueRow *found, int *nfound);
extern bool discover_anew(Horizon *horizon, int64 marker);
extern int64 discover_count_backlog(const Horizon *horizon);

#endif							/* DOUBLETICK_DRAIN_DISCOVER_H */

/*-------------------------------------------------------------------------
 *
 * drain/turn.h
 *		What one transaction of the drainer works with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_TURN_H
#define DOUBLETICK_DRAIN_TURN_H

#include "drain/request.h"
#include "drain/schedule.h"
#include "drain/tally.h"

/*
 * Limits of one transaction: rows that it looks at, partitions that it locks, and
 * how long it lasts, in µs.
 */
#define TURN_MAX_ROWS 1000
#define TURN_MAX_LOCKS 256
#define TURN_MAX_TIME (200 * INT64CONST(1000))

typedef struct Turn
{
	Schedule   *schedule;
	Requests   *requests;
	List	   *tallies;		/* LaneTally: counted at commit */
	MemoryContext context;		/* reset when the next turn begins */
	MemoryContext drain_context;	/* lasts as long as the drainer */
	Store		waiting;		/* dt_waiting, open */
	Store		settled;		/* dt_settled, open */
	TimestampTz now;			/* when the turn began, by the time of day */
	int64		clock;			/* the same, by clock_now() */

	/* Bounds of the transaction. */
	int			nrows_left;		/* rows that it may yet look at */
	int			nlocks_left;	/* partitions that it may yet lock */
	int64		deadline;		/* when it is to end, by clock_now() */

	/* What is being worked on.  If that raises an error, the lane is held. */
	Lane	   *lane;
	Request    *request;		/* the one being settled; NULL: none */
	int64		row;			/* the id of the row, others of whose customer
								 * may be read with it; 0: none yet */
	MemoryContext request_context;	/* of the request being made; NULL: none */

	/* The customer that was last found to be due later. */
	QueueRow	deferred;
	int64		deferred_until; /* by clock_now(); 0: there is no such one */

	/*
	 * Positions taken from lanes, to be given back if the transaction fails.
	 * The array comes last, since open_turn() does not clear it.
	 */
	int			ntaken;
	struct
	{
		Lane	   *lane;
		Position	position;
	}			taken[TURN_MAX_ROWS];
} Turn;

/* send.c */
extern void send_from_lanes(Turn *turn);

/* settle.c */
extern void settle_request(Turn *turn, Request *request);
extern void settle_committed(Requests *requests, Request *request);
extern void settle_unsent(Turn *turn, const Due *due);
extern void settle_expired(Turn *turn, const QueueRow *row);
extern void settle_roleless(Turn *turn, const QueueRow *row);
extern void settle_keeps(Turn *turn, Lane *lane, const QueueRow *customer);

#endif							/* DOUBLETICK_DRAIN_TURN_H */

/*-------------------------------------------------------------------------
 *
 * drain/schedule.h
 *		What goes out next, in a turn of the drain.
 *
 * Between drain.c and fill.c alone: what a drain is made of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_SCHEDULE_H
#define DOUBLETICK_DRAIN_SCHEDULE_H

#include "drain/drain.h"

struct Drain
{
	MemoryContext context;		/* where all of it lives */
	MemoryContext turn_context; /* reset with each transaction */
	const DrainTransactions *transactions;

	List	   *spares;			/* contexts for flights to come */
	Oid			waiting_oid;	/* see store_lock() */
	List	   *lanes;
	Lane	   *last_lane;		/* found last, for the next row is likely its */
	int			turn;			/* which lane goes first: each in its turn */
	Horizon		horizon;
	bool		finishing;		/* is nothing more to be sent? */
	bool		at_end;			/* has the last look found all there was? */

	dlist_head	out;			/* flights whose request is out */
	dlist_head	answered;		/* flights to settle */
	dlist_head	settled;		/* flights to land after commit */
	dlist_head	ready;			/* flights to launch after commit */
	int			nout;
	int			nanswered;

	/* Times are clock_now()'s. */
	int64		look_at;		/* when to look for new rows again */
	int64		looked_at;		/* when that was last done */
	int64		fill_at;		/* when slots could be filled, even without an
								 * answer; PG_INT64_MAX: not before one */
	bool		waits_for_turn; /* does a lane wait for its rate? */

	Tally		tally;
	TimestampTz prune_from;		/* settled_at of the last row that was pruned */
};

/* What a fill works with. */
typedef struct Fill
{
	Drain	   *drain;
	TimestampTz now;
	Store		waiting;
	Store		settled;
	bool		hungry;			/* could more have been sent? */
	int			nfound;			/* rows found by the last look */
	QueueRow	put_off;		/* the last customer found to be due later, */
	TimestampTz put_off_until;	/* and when; DT_NOBEGIN: none */
} Fill;

extern void fill_turn(Fill *fill);
extern Lane *fill_find_lane(void *drain, const char *server, Oid role);
extern void fill_give_context(Drain *drain, MemoryContext context);

#endif							/* DOUBLETICK_DRAIN_SCHEDULE_H */

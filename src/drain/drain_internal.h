/*-------------------------------------------------------------------------
 *
 * drain/drain_internal.h
 *		What a drainer knows from one turn to the next, for the files that make up
 *		its loop: drain.c, turn.c, after_error.c and tally.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_DRAIN_INTERNAL_H
#define DOUBLETICK_DRAIN_DRAIN_INTERNAL_H

#include "drain/discover.h"
#include "drain/drain.h"
#include "drain/turn.h"

/* Longest wait in one turn, in µs. */
#define LONGEST_WAIT (100 * INT64CONST(1000))

/* Times are by clock_now(). */
struct Drain
{
	MemoryContext context;		/* where all of it lives */
	MemoryContext turn_context; /* reset when a turn begins */
	const DrainTransactions *transactions;
	Oid			waiting_oid;	/* see relations_lock() */
	Requests	requests;
	Schedule	schedule;
	Horizon		horizon;
	bool		has_begun;		/* has a turn been committed? */
	bool		holds_are_lost; /* did a turn fail that may have written some? */
	bool		finishing;		/* does it only settle, and send no more? */
	int			nfailures;		/* how often memory was lacking */
	Turn	   *turn;			/* whose transaction is open, else NULL */
	bool		is_update_near; /* is the extension to be updated? */
	bool		at_end;			/* has the last search found all there was? */
	int64		searched_at;	/* when the last search was made */
	int64		search_at;		/* when the next one is to be made */
	int64		unstick_at;		/* when stuck requests are to be settled */
	int64		next_at;		/* when there is something to do, even if no
								 * answer comes; PG_INT64_MAX: never */
	Tally		tally;
	List	   *unsent;			/* LaneTally: given up, and not warned of yet */
	TimestampTz prune_from;		/* settled_at of the last row that was pruned */
};

/* drain.c */
extern void begin_drain_transaction(Drain *drain);
extern void commit_drain_transaction(Drain *drain);
extern int64 time_of_next_turn(Drain *drain);

/* turn.c */
extern bool run_turn_transaction(Drain *drain);

/* after_error.c */
extern bool mend_failed_turn(Drain *drain, Turn *turn);
extern bool finish_without_memory(Drain *drain);
extern bool are_answers_unsettled(Drain *drain);
extern void unstick_requests(Drain *drain);

#endif							/* DOUBLETICK_DRAIN_DRAIN_INTERNAL_H */

/*-------------------------------------------------------------------------
 *
 * drain/drain.h
 *		The loop of a drainer, the worker or CALL dt_process_queue().
 *
 *		drain_start()	makes this process the drainer of its database
 *		drain_turn()	waits a little and does what there is to do
 *		drain_end()		lets another process be the drainer
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_DRAIN_H
#define DOUBLETICK_DRAIN_DRAIN_H

#include "drain/tally.h"

typedef struct Drain Drain;

/*
 * How the caller starts and ends transactions.  While the drainer waits for answers
 * there is no transaction, or one that has done nothing.
 */
typedef struct DrainTransactions
{
	void		(*begin) (void);
	void		(*commit) (void);
	void		(*abort) (void);	/* after an error */
} DrainTransactions;

/* What came of a turn. */
typedef enum DrainState
{
	DRAIN_BUSY,					/* call again at once: drain_turn() waits */
	DRAIN_IDLE,					/* nothing is due, see drain_idle_time() */
	DRAIN_GONE,					/* the extension was dropped, and perhaps
								 * created again */
	DRAIN_UPDATE				/* an update of the extension waits for the
								 * drainer to end, and nothing is in flight */
} DrainState;

extern Drain *drain_start(MemoryContext parent, const DrainTransactions *transactions);
extern DrainState drain_turn(Drain *drain);
extern DrainState drain_finish(Drain *drain);
extern void drain_wake(Drain *drain);
extern const Tally *drain_tally(const Drain *drain);
extern int64 drain_count_waiting(Drain *drain, bool exactly);
extern int	drain_in_flight(const Drain *drain);
extern TimestampTz drain_next_due(Drain *drain);
extern long drain_idle_time(const Drain *drain, long longest);
extern void drain_warn_of_unsent(Drain *drain);
extern bool drain_prune(Drain *drain);
extern void drain_end(Drain *drain);

#endif							/* DOUBLETICK_DRAIN_DRAIN_H */

/*-------------------------------------------------------------------------
 *
 * api/transfer_clock.h
 *		The clock by which requests time out: it runs only while somebody
 *		drives them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_TRANSFER_CLOCK_H
#define DOUBLETICK_API_TRANSFER_CLOCK_H

#include "lib/ilist.h"

/* When the time of a transfer is up. */
typedef struct TransferTimer
{
	dlist_node	node;			/* in "timers" while it runs */
	bool		is_running;
	void	   *transfer;		/* whose it is */
	int			timeout;		/* ms */
	int64		ends_at;		/* by transfer_clock_now() */
} TransferTimer;

extern int64 transfer_clock_now(void);
extern void transfer_clock_advance(int64 microseconds);
extern void transfer_timer_start(TransferTimer *timer, void *transfer, int timeout);
extern void transfer_timer_stop(TransferTimer *timer);
extern void *transfer_timer_next_overdue(void);
extern int	transfer_timer_limit(int timeout);

#endif							/* DOUBLETICK_API_TRANSFER_CLOCK_H */

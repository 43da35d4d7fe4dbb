/*-------------------------------------------------------------------------
 *
 * api/transfer_clock.c
 *		The clock by which requests time out: it runs only while somebody
 *		drives them.
 *
 * A statement may have requests in flight while it does something else: it waits for
 * the lock of a row, runs a trigger, or sends rows to a client that reads slowly.
 * Meanwhile an answer may be there, and nobody reads it.  That time must not count as
 * time for which DoubleTick did not answer, which is why libcurl's own timeout
 * (CURLOPT_TIMEOUT_MS) is not used.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/transfer_clock.h"

static int64 driven = 0;
static dlist_head timers = DLIST_STATIC_INIT(timers);

/* No timer that runs ends before this time. */
static int64 next_end = PG_INT64_MAX;

/*
 * The time in microseconds for which this process has driven requests, or has waited
 * until it may send one.  Only differences mean something.
 */
int64
transfer_clock_now(void)
{
	return driven;
}

/*
 * Called after each wait with its length.
 */
void
transfer_clock_advance(int64 microseconds)
{
	driven += microseconds;
}

/*
 * Called when a transfer is started that may take this many milliseconds.
 */
void
transfer_timer_start(TransferTimer *timer, void *transfer, int timeout)
{
	timer->transfer = transfer;
	timer->timeout = timeout;
	timer->ends_at = driven + timeout * INT64CONST(1000);
	timer->is_running = true;
	dlist_push_tail(&timers, &timer->node);
	next_end = Min(next_end, timer->ends_at);
}

/*
 * Called when a transfer is over, perhaps not for the first time.
 */
void
transfer_timer_stop(TransferTimer *timer)
{
	if (timer->is_running)
		dlist_delete(&timer->node);
	timer->is_running = false;
}

/*
 * A transfer whose time is up, and whose timer is stopped by this; NULL when there is
 * none.  Called after libcurl has read what is there.
 */
void *
transfer_timer_next_overdue(void)
{
	dlist_iter	iter;

	if (driven < next_end)
		return NULL;
	next_end = PG_INT64_MAX;
	dlist_foreach(iter, &timers)
	{
		TransferTimer *timer = dlist_container(TransferTimer, node, iter.cur);

		next_end = Min(next_end, timer->ends_at);
		if (driven >= timer->ends_at)
		{
			transfer_timer_stop(timer);
			return timer->transfer;
		}
	}
	return NULL;
}

/*
 * A wait of this many milliseconds, shortened so that it ends when the time of a
 * transfer is up.
 */
int
transfer_timer_limit(int timeout)
{
	int64		left = next_end == PG_INT64_MAX ? next_end : (next_end - driven + 999) / 1000;

	return (int) Max(Min(timeout, left), 0);
}

/*-------------------------------------------------------------------------
 *
 * rate.c
 *		The pace at which requests may leave for a server.
 *
 * Requests are spaced evenly, one every 1 / rate_limit seconds, with no
 * burst: so no window of a second ever sees more than rate_limit requests
 * plus one.  The state is one time for each server, in this process.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "rate.h"
#include "storage/latch.h"
#include "utils/hsearch.h"
#include "utils/wait_event.h"

#include "compat.h"

typedef struct RateEntry
{
	Oid			serverid;		/* hash key */
	int64		last;			/* when the last request left, rate_clock() */
} RateEntry;

static HTAB *rates = NULL;

/*
 * Sleeps until the next request may leave for the server, and counts it as
 * leaving now.  "per_second" is the server's rate_limit, 0 for no limit; a
 * change of it counts at once.  Returns how long it waited, in microseconds.
 * Can be interrupted, and then nothing has left.
 */
int64
rate_wait(Oid serverid, double per_second)
{
	int64		start = rate_clock();
	RateEntry  *entry;
	bool		found;

	if (per_second <= 0)
		return 0;

	if (rates == NULL)
	{
		HASHCTL		ctl;

		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(RateEntry);
		rates = hash_create("doubletick rates", 8, &ctl, HASH_ELEM | HASH_BLOBS);
	}

	entry = hash_search(rates, &serverid, HASH_ENTER, &found);
	if (found)
		rate_sleep(entry->last + (int64) (USECS_PER_SEC / per_second) - start);
	entry->last = rate_clock();
	return entry->last - start;
}

/* Sleeps for so many microseconds, if any; can be interrupted. */
void
rate_sleep(int64 microseconds)
{
	static uint32 wait_event = 0;
	int64		until = rate_clock() + microseconds;

	if (wait_event == 0)
		wait_event = new_wait_event("DoubletickPace");

	for (;;)
	{
		int64		left = until - rate_clock();

		CHECK_FOR_INTERRUPTS();
		if (left <= 0)
			return;
		if (left < 1000)		/* finer than a latch can wait */
			pg_usleep((long) left);
		else
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 (long) (left / 1000), wait_event);
			ResetLatch(MyLatch);
		}
	}
}

/* A clock that is never set back, in microseconds; only differences mean something. */
int64
rate_clock(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

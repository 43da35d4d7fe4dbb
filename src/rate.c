/*-------------------------------------------------------------------------
 *
 * rate.c
 *		The pace at which requests may leave for a server, and its pauses.
 *
 * In no window of a second may a server receive more than rate_limit requests
 * plus one.  Requests are spaced evenly; a process that comes late, since it
 * was at other work, may catch up by a BURST.  What leaves evenly does not
 * arrive evenly, least of all over new connections.  Both are paid for by going
 * a little slower than the limit: a window of a second has SLOWDOWN * (1 + BURST)
 * of it, 98 %, and what is left allows for 20 ms of unevenness on the way.
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

#define SLOWDOWN 0.96
#define BURST (20 * INT64CONST(1000))	/* µs */

/* Longest pause that is kept, in µs (DESIGN.md: Retry-After, clamped to 1 h). */
#define MAX_PAUSE (60 * 60 * USECS_PER_SEC)

typedef struct RateEntry
{
	Oid			serverid;		/* hash key */
	int64		last;			/* when the last request was to leave, by
								 * rate_clock() and even spacing; 0: never */
	int64		paused_until;	/* by rate_clock(), 0: not paused */
} RateEntry;

static HTAB *rates = NULL;

static RateEntry *find_entry(Oid serverid);

/*
 * How long until the next request may leave for the server, in microseconds.
 * "per_second" is the server's rate_limit, 0 for no limit; a change of it counts
 * at once.
 */
int64
rate_left(Oid serverid, double per_second)
{
	RateEntry  *entry = find_entry(serverid);
	int64		interval;

	if (per_second <= 0 || entry->last == 0)
		return 0;
	interval = (int64) (USECS_PER_SEC / (per_second * SLOWDOWN));
	return Max(entry->last + interval - BURST - rate_clock(), 0);
}

/*
 * Counts a request as leaving now, if it may: then returns 0.  Else it returns
 * how long that will take, in microseconds, and counts nothing.
 */
int64
rate_claim(Oid serverid, double per_second)
{
	int64		left = rate_left(serverid, per_second);

	if (left == 0 && per_second > 0)
	{
		RateEntry  *entry = find_entry(serverid);
		int64		interval = (int64) (USECS_PER_SEC / (per_second * SLOWDOWN));

		entry->last = entry->last == 0 ? rate_clock() :
			Max(entry->last + interval, rate_clock() - BURST);
	}
	return left;
}

/*
 * Sleeps until the next request may leave for the server, and counts it as
 * leaving now.  Returns how long it waited, in microseconds.  Can be
 * interrupted, and then nothing has left.
 */
int64
rate_wait(Oid serverid, double per_second)
{
	int64		start = rate_clock();
	int64		left;

	while ((left = rate_claim(serverid, per_second)) > 0)
		rate_sleep(left);
	return rate_clock() - start;
}

/*
 * Lets no more requests leave for the server, as long as it says.
 */
void
rate_pause(Oid serverid, int64 microseconds)
{
	RateEntry  *entry = find_entry(serverid);

	entry->paused_until = Max(entry->paused_until,
							  rate_clock() + Min(microseconds, MAX_PAUSE));
}

/*
 * How long the server is paused yet, in microseconds.
 */
int64
rate_paused(Oid serverid)
{
	return Max(find_entry(serverid)->paused_until - rate_clock(), 0);
}

static RateEntry *
find_entry(Oid serverid)
{
	RateEntry  *entry;
	bool		found;

	if (rates == NULL)
	{
		HASHCTL		ctl;

		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(RateEntry);
		rates = hash_create("doubletick rates", 8, &ctl, HASH_ELEM | HASH_BLOBS);
	}

	entry = hash_search(rates, &serverid, HASH_ENTER, &found);
	if (!found)
		entry->last = entry->paused_until = 0;
	return entry;
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

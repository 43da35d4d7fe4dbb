/*-------------------------------------------------------------------------
 *
 * rate.c
 *		The pace at which requests may leave for a server, and its pauses.
 *
 * In no window of a second may a server receive more than rate_limit requests
 * plus one.  Requests are spaced evenly, but may leave up to BURST before their
 * time, for the drainer has other work between two of them.  What leaves evenly does not
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
#include "shared.h"
#include "storage/latch.h"
#include "utils/wait_event.h"

#include "compat.h"

#define SLOWDOWN 0.96
#define BURST (20 * INT64CONST(1000))	/* µs */

/* Longest pause that is kept, in µs (DESIGN.md: Retry-After, clamped to 1 h). */
#define MAX_PAUSE (60 * 60 * USECS_PER_SEC)

/*
 * In shared memory, when there is any: then a pace holds over all sessions
 * together.  Else in this process.
 */
static RateEntry local_rates[SHARED_MAX_RATES];

static void count_request(RateEntry *entry, double per_second);
static RateEntry *lock_entry(Oid serverid);
static void unlock_entry(void);
static RateEntry *find_entry(RateEntry *rates, Oid serverid);
static int64 left_of(const RateEntry *entry, double per_second);
static int64 interval_of(double per_second);

/*
 * How long until the next request may leave for the server, in microseconds.
 * "per_second" is the server's rate_limit, 0 for no limit; a change of it counts
 * at once.
 */
int64
rate_left(Oid serverid, double per_second)
{
	int64		left;

	if (per_second <= 0)
		return 0;
	left = left_of(lock_entry(serverid), per_second);
	unlock_entry();
	return left;
}

/*
 * Counts a request as leaving now, if it may: then returns 0.  Else it returns
 * how long that will take, in microseconds, and counts nothing.
 */
int64
rate_claim(Oid serverid, double per_second)
{
	RateEntry  *entry;
	int64		left;

	if (per_second <= 0)
		return 0;
	entry = lock_entry(serverid);
	left = left_of(entry, per_second);
	if (left == 0)
		count_request(entry, per_second);
	unlock_entry();
	return left;
}

/*
 * Counts a request that leaves in any case, since rate_left() has said that it
 * may: if another session has been faster, the next one waits the longer.
 */
void
rate_take(Oid serverid, double per_second)
{
	if (per_second <= 0)
		return;
	count_request(lock_entry(serverid), per_second);
	unlock_entry();
}

static void
count_request(RateEntry *entry, double per_second)
{
	entry->last = Max(entry->last + interval_of(per_second), rate_clock());
}

static int64
left_of(const RateEntry *entry, double per_second)
{
	int64		left = entry->last + interval_of(per_second) - BURST - rate_clock();

	return Max(left, 0);		/* a macro, and a clock */
}

static int64
interval_of(double per_second)
{
	return (int64) (USECS_PER_SEC / (per_second * SLOWDOWN));
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
	RateEntry  *entry = lock_entry(serverid);

	entry->paused_until = Max(entry->paused_until,
							  rate_clock() + Min(microseconds, MAX_PAUSE));
	unlock_entry();
}

/*
 * How long the server is paused yet, in microseconds.
 */
int64
rate_paused(Oid serverid)
{
	int64		left = lock_entry(serverid)->paused_until - rate_clock();

	unlock_entry();
	return Max(left, 0);
}

static RateEntry *
lock_entry(Oid serverid)
{
	if (shared == NULL)
		return find_entry(local_rates, serverid);
	LWLockAcquire(shared->rate_lock, LW_EXCLUSIVE);
	return find_entry(shared->rates, serverid);
}

static void
unlock_entry(void)
{
	if (shared)
		LWLockRelease(shared->rate_lock);
}

/* A new server takes a free entry, or that which has been idle longest. */
static RateEntry *
find_entry(RateEntry *rates, Oid serverid)
{
	RateEntry  *oldest = &rates[0];

	for (int i = 0; i < SHARED_MAX_RATES; i++)
	{
		RateEntry  *entry = &rates[i];

		if (entry->server == serverid && entry->database == MyDatabaseId)
			return entry;
		if (Max(entry->last, entry->paused_until) < Max(oldest->last, oldest->paused_until))
			oldest = entry;
		if (!OidIsValid(entry->server))
		{
			oldest = entry;
			break;				/* behind it there are only free ones */
		}
	}
	oldest->database = MyDatabaseId;
	oldest->server = serverid;
	oldest->last = oldest->paused_until = 0;
	return oldest;
}

/*
 * Sleeps for so many microseconds, if any; can be interrupted.
 */
void
rate_sleep(int64 microseconds)
{
	int64		until = rate_clock() + microseconds;
	int64		left;

	CHECK_FOR_INTERRUPTS();
	while ((left = until - rate_clock()) > 0)
		rate_nap(left);
}

/*
 * The same, but ends early when the latch is set.
 */
void
rate_nap(int64 microseconds)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = new_wait_event("DoubletickPace");

	if (microseconds < 1000)	/* finer than a latch can wait */
		pg_usleep((long) microseconds);
	else
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (long) (microseconds / 1000), wait_event);
		ResetLatch(MyLatch);
	}
	CHECK_FOR_INTERRUPTS();
}

/* A clock that is never set back, in microseconds; only differences mean something. */
int64
rate_clock(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/*-------------------------------------------------------------------------
 *
 * api/pace.c
 *		The pace at which requests may leave for a server, and its pauses.
 *
 * In no window of a second may a server receive more than rate_limit requests
 * plus one.  Two rules see to that:
 *
 * - requests leave evenly spaced, but may leave up to BURST before their time,
 *	 for the drainer has other work between two of them;
 * - what leaves evenly does not arrive evenly, least of all over new connections
 *	 or on a busy machine.  So requests are also counted, where they are sent and
 *	 not where they are allowed, in slices of time: over all slices, a second and
 *	 at least one slice more, there may be no more than rate_limit and one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/pace.h"
#include "base/clock.h"
#include "base/shared.h"
#include "miscadmin.h"

#define BURST (20 * INT64CONST(1000))	/* µs */

/* Longest pause that is kept, in µs (DESIGN.md: Retry-After, clamped to 1 h). */
#define MAX_PAUSE (60 * 60 * USECS_PER_SEC)

/*
 * In shared memory, when there is any: then a pace holds over all sessions
 * together.  Else in this process.
 */
static PaceEntry local_paces[SHARED_MAX_PACES];

static int64 left_of(PaceEntry *entry, double per_second, int64 now);
static void advance(PaceEntry *entry, int64 now);
static uint32 *slice_of(PaceEntry *entry, int64 when);
static PaceEntry *lock_entry(Oid serverid);
static void unlock_entry(void);
static PaceEntry *find_entry(PaceEntry *rates, Oid serverid);
static int64 interval_of(double per_second);

/*
 * Counts a request as leaving now, if it may: then returns 0.  Else it returns
 * how long that will take, in microseconds, and counts nothing.  "per_second" is
 * the server's rate_limit, 0 for no limit; a change of it counts at once.
 */
int64
pace_claim(Oid serverid, double per_second)
{
	PaceEntry  *entry;
	int64		now;
	int64		left;

	if (per_second <= 0)
		return 0;
	entry = lock_entry(serverid);
	now = clock_now();			/* later than any that the entry has seen */
	left = left_of(entry, per_second, now);
	if (left == 0)
	{
		entry->last = Max(entry->last + interval_of(per_second), now);
		(*slice_of(entry, now))++;
	}
	unlock_entry();
	return left;
}

/*
 * A request that was counted at a time does not leave.
 */
void
pace_return(Oid serverid, double per_second, int64 claimed_at)
{
	PaceEntry  *entry;
	uint32	   *slice;

	if (per_second <= 0)
		return;
	entry = lock_entry(serverid);
	entry->last -= interval_of(per_second);
	slice = slice_of(entry, claimed_at);
	if (slice && *slice > 0)
		(*slice)--;
	unlock_entry();
}

/*
 * A request that was counted at a time was sent at another.
 */
void
pace_note_sent(Oid serverid, double per_second, int64 claimed_at, int64 sent_at)
{
	PaceEntry  *entry;
	uint32	   *claimed;
	uint32	   *sent;

	if (per_second <= 0 || claimed_at / RATE_SLICE == sent_at / RATE_SLICE)
		return;
	entry = lock_entry(serverid);
	advance(entry, clock_now());
	claimed = slice_of(entry, claimed_at);
	sent = slice_of(entry, sent_at);
	if (claimed && *claimed > 0)
		(*claimed)--;
	if (sent)
		(*sent)++;
	unlock_entry();
}

static int64
left_of(PaceEntry *entry, double per_second, int64 now)
{
	int64		left = entry->last + interval_of(per_second) - BURST - now;
	uint32		total = 0;

	advance(entry, now);
	for (int i = 0; i < RATE_NSLICES; i++)
		total += entry->counts[i];
	if (total >= per_second + 1)
		left = Max(left, RATE_SLICE - now % RATE_SLICE);
	return Max(left, 0);
}

/* Empties the slices that are new. */
static void
advance(PaceEntry *entry, int64 now)
{
	int64		newest = now / RATE_SLICE;

	if (newest - entry->newest >= RATE_NSLICES)
		memset(entry->counts, 0, sizeof(entry->counts));
	else
	{
		for (int64 i = entry->newest + 1; i <= newest; i++)
			entry->counts[i % RATE_NSLICES] = 0;
	}
	entry->newest = Max(entry->newest, newest);
}

/* The slice of a time; NULL when that is too long ago to count. */
static uint32 *
slice_of(PaceEntry *entry, int64 when)
{
	int64		number = when / RATE_SLICE;

	if (number > entry->newest || number <= entry->newest - RATE_NSLICES)
		return NULL;
	return &entry->counts[number % RATE_NSLICES];
}

static int64
interval_of(double per_second)
{
	return (int64) (USECS_PER_SEC / per_second);
}

/*
 * Sleeps until the next request may leave for the server, and counts it as
 * leaving now.  Returns how long it waited, in microseconds.  Can be
 * interrupted, and then nothing has left.
 */
int64
pace_wait(Oid serverid, double per_second)
{
	int64		start = clock_now();
	int64		left;

	while ((left = pace_claim(serverid, per_second)) > 0)
		clock_sleep(left);
	return clock_now() - start;
}

/*
 * Lets no more requests leave for the server, as long as it says.
 */
void
pace_pause(Oid serverid, int64 microseconds)
{
	PaceEntry  *entry = lock_entry(serverid);

	entry->paused_until = Max(entry->paused_until,
							  clock_now() + Min(microseconds, MAX_PAUSE));
	unlock_entry();
}

/*
 * How long the server is paused yet, in microseconds.
 */
int64
pace_paused(Oid serverid)
{
	int64		left = lock_entry(serverid)->paused_until - clock_now();

	unlock_entry();
	return Max(left, 0);
}

static PaceEntry *
lock_entry(Oid serverid)
{
	if (shared == NULL)
		return find_entry(local_paces, serverid);
	LWLockAcquire(shared->pace_lock, LW_EXCLUSIVE);
	return find_entry(shared->paces, serverid);
}

static void
unlock_entry(void)
{
	if (shared)
		LWLockRelease(shared->pace_lock);
}

/* A new server takes a free entry, or that which has been idle longest. */
static PaceEntry *
find_entry(PaceEntry *rates, Oid serverid)
{
	PaceEntry  *oldest = &rates[0];

	for (int i = 0; i < SHARED_MAX_PACES; i++)
	{
		PaceEntry  *entry = &rates[i];

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
	memset(oldest, 0, sizeof(PaceEntry));
	oldest->database = MyDatabaseId;
	oldest->server = serverid;
	return oldest;
}

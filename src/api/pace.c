/*-------------------------------------------------------------------------
 *
 * api/pace.c
 *		The pace at which requests leave for a server, and its pauses.
 *
 * A server gets at most rate_limit requests plus one in any window of one second.
 * Each request has a turn (the generic cell rate algorithm): it comes one interval
 * after the turn before it, or now if that is later.  A turn may be claimed up to
 * EARLY before it comes, since the drainer has other work between two of them, and
 * the request be sent up to LATE after that.  So the turns of requests that are sent
 * within one second lie within 1 s + EARLY + LATE, and interval_of() lets no more
 * than rate_limit + 1 of them lie there.  Up to rate_limit 20 this costs nothing,
 * beyond it up to 5 %.
 *
 * A request is sent later than that when its connection must be made first.  Later
 * turns then move by the delay, at most by one interval: each window that has the
 * request, but not its turn, has one turn less.  This holds for requests that are sent
 * at most a second, less one interval, after their turn.  It halves the pace at most,
 * while every request needs a connection of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "account/account.h"
#include "api/pace.h"
#include "base/clock.h"
#include "base/shared.h"
#include "miscadmin.h"

/* In microseconds. */
#define EARLY (20 * INT64CONST(1000))
#define LATE (30 * INT64CONST(1000))

/* Longest pause that is kept, in µs (DESIGN.md: Retry-After, clamped to 1 h). */
#define MAX_PAUSE (60 * 60 * USECS_PER_SEC)

/* The paces of this process; shared memory has those of all, if there is any. */
static PaceEntry local_paces[SHARED_MAX_PACES];

static int64 interval_of(double per_second);
static PaceEntry *lock_pace(Oid serverid);
static void unlock_pace(void);
static PaceEntry *find_pace(PaceEntry *paces, Oid serverid);

/*
 * Claims the next turn for a request that is to be sent now, and returns 0.  If it
 * is too early for that, returns how long to wait, in microseconds, and claims
 * nothing.  "per_second" is the server's rate_limit, 0 for no limit; a change of
 * it counts at once.
 */
int64
pace_claim(Oid serverid, double per_second)
{
	PaceEntry  *pace;
	int64		now;
	int64		turn;

	if (per_second <= 0)
		return 0;
	pace = lock_pace(serverid);
	now = clock_now();
	turn = Max(pace->last_turn + interval_of(per_second), now);
	if (turn <= now + EARLY)
		pace->last_turn = turn;
	unlock_pace();
	return Max(turn - now - EARLY, 0);
}

/*
 * Called when no request is sent after all: gives back the turn that
 * it claimed at "claimed_at", unless another one may have been claimed since.
 */
void
pace_return(Oid serverid, double per_second, int64 claimed_at)
{
	PaceEntry  *pace;
	int64		interval;

	if (per_second <= 0)
		return;
	pace = lock_pace(serverid);
	interval = interval_of(per_second);
	if (interval > EARLY && pace->last_turn <= claimed_at + EARLY)
		pace->last_turn -= interval;
	unlock_pace();
}

/*
 * Called as soon as a request has been sent, since until then others are sent as if it
 * had been in time: moves later turns if it was late.
 */
void
pace_note_sent(Oid serverid, double per_second, int64 claimed_at, int64 sent_at)
{
	PaceEntry  *pace;
	int64		interval;

	if (per_second <= 0 || sent_at <= claimed_at + LATE)
		return;
	pace = lock_pace(serverid);
	interval = interval_of(per_second);
	pace->last_turn = Max(pace->last_turn, sent_at - interval) +
		Min(sent_at - claimed_at, interval);
	unlock_pace();
}

/*
 * The time from one turn to the next: on average no more than "per_second", and
 * no more than that plus one within 1 s + EARLY + LATE.
 */
static int64
interval_of(double per_second)
{
	return (int64) ceil(Max(USECS_PER_SEC / per_second,
							(USECS_PER_SEC + EARLY + LATE) / (floor(per_second) + 1)));
}

/*
 * Called after a 429: pauses the server.  Callers of pace_claim() must heed
 * pace_paused().
 */
void
pace_pause(Oid serverid, int64 microseconds)
{
	TransactionId xmin = account_server_xmin(serverid);
	PaceEntry  *pace = lock_pace(serverid);

	if (pace->paused_xmin != xmin)
		pace->paused_until = 0;
	pace->paused_xmin = xmin;
	pace->paused_until = Max(pace->paused_until,
							 clock_now() + Min(microseconds, MAX_PAUSE));
	unlock_pace();
}

/*
 * How long the server is still paused, in microseconds.  ALTER SERVER ends a pause.
 */
int64
pace_paused(Oid serverid)
{
	PaceEntry  *pace = lock_pace(serverid);
	int64		left = pace->paused_until - clock_now();
	TransactionId xmin = pace->paused_xmin;

	unlock_pace();
	return left > 0 && xmin == account_server_xmin(serverid) ? left : 0;
}

static PaceEntry *
lock_pace(Oid serverid)
{
	if (shared == NULL)
		return find_pace(local_paces, serverid);
	LWLockAcquire(shared->pace_lock, LW_EXCLUSIVE);
	return find_pace(shared->paces, serverid);
}

static void
unlock_pace(void)
{
	if (shared)
		LWLockRelease(shared->pace_lock);
}

/* A new server takes a free entry, or the one that has been idle longest. */
static PaceEntry *
find_pace(PaceEntry *paces, Oid serverid)
{
	PaceEntry  *oldest = &paces[0];

	for (int i = 0; i < SHARED_MAX_PACES; i++)
	{
		PaceEntry  *pace = &paces[i];

		if (pace->server == serverid && pace->database == MyDatabaseId)
			return pace;
		if (!OidIsValid(pace->server))
		{
			oldest = pace;
			break;				/* all entries after a free one are free */
		}
		if (Max(pace->last_turn, pace->paused_until) <
			Max(oldest->last_turn, oldest->paused_until))
			oldest = pace;
	}
	oldest->database = MyDatabaseId;
	oldest->server = serverid;
	oldest->last_turn = PG_INT64_MIN;
	oldest->paused_until = 0;
	oldest->paused_xmin = InvalidTransactionId;
	return oldest;
}

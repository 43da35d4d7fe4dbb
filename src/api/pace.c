/*-------------------------------------------------------------------------
 *
 * api/pace.c
 *		The pace at which requests leave for an account, and its pauses.
 *
 * An account is that of one server, or of all servers that name it in their option
 * "account", in all databases when the library is preloaded.
 *
 * It gets at most rate_limit requests plus one in any window of one second.
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
 * When servers of one account have different rate_limits, two turns have the shorter of
 * their two intervals between them, and two turns of one server its own.  So each
 * server keeps its own limit, and all together keep the largest one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/transam.h"
#include "account/account.h"
#include "api/pace.h"
#include "base/clock.h"
#include "base/shared.h"
#include "miscadmin.h"
#include "utils/builtins.h"

/* In microseconds. */
#define EARLY (20 * INT64CONST(1000))
#define LATE (30 * INT64CONST(1000))

/* Longest pause that is kept, in µs (DESIGN.md: Retry-After, clamped to 1 h). */
#define MAX_PAUSE (60 * 60 * USECS_PER_SEC)

/* The paces of this process; shared memory has those of all, if there is any. */
static PaceEntry local_paces[SHARED_MAX_PACES];

/* A request counts for its server, and for the account that the server names. */
#define MAX_ENTRIES 2

static int64 interval_of(const Pace *pace);
static bool has_ended_pause(const PaceEntry *entry, PaceServer server, TransactionId xmin,
							TransactionId next_xid);
static TransactionId read_next_xid(void);
static PaceServer server_of(const Pace *pace);
static bool is_same_server(PaceServer server, PaceServer other);
static bool has_named_account(const Pace *pace);
static int	lock_paces(const Pace *pace, PaceEntry **entries);
static PaceEntry *lock_pause(const Pace *pace);
static void unlock_paces(void);
static PaceEntry *find_pace(PaceEntry *paces, const Pace *pace, bool of_account);

/*
 * The pace of requests that use this account.
 */
Pace
pace_of(const Account *account)
{
	Pace		pace;

	memset(&pace, 0, sizeof(Pace));
	pace.serverid = account->serverid;
	pace.rate_limit = account->rate_limit;
	if (account->account)
		namestrcpy(&pace.account, account->account);
	return pace;
}

/*
 * Claims the next turn for a request that is to be sent now, and returns 0.  If it
 * is too early for that, returns how long to wait, in microseconds, and claims
 * nothing.  A change of the server's rate_limit counts at once.
 */
int64
pace_claim(const Pace *pace)
{
	int64		interval = interval_of(pace);
	PaceEntry  *entries[MAX_ENTRIES];
	int			nentries;
	int64		now;
	int64		turn;

	if (pace->rate_limit <= 0 && !has_named_account(pace))
		return 0;
	nentries = lock_paces(pace, entries);
	now = turn = clock_now();
	for (int i = 0; i < nentries; i++)
	{
		int64		distance = i == 0 ? interval : Min(interval, entries[i]->last_interval);

		turn = Max(turn, entries[i]->last_turn + distance);
	}
	for (int i = 0; i < nentries && turn <= now + EARLY; i++)
	{
		entries[i]->last_turn = turn;
		entries[i]->last_interval = interval;
	}
	unlock_paces();
	return Max(turn - now - EARLY, 0);
}

/*
 * Called when no request is sent after all: gives back the turn that
 * it claimed at "claimed_at", unless another one may have been claimed since.
 */
void
pace_return(const Pace *pace, int64 claimed_at)
{
	int64		interval = interval_of(pace);
	PaceEntry  *entries[MAX_ENTRIES];
	int			nentries;

	if (interval <= EARLY)
		return;
	nentries = lock_paces(pace, entries);
	for (int i = 0; i < nentries; i++)
	{
		/* A new entry, in place of one that others have taken, has no turn. */
		if (entries[i]->last_turn != PG_INT64_MIN && entries[i]->last_turn <= claimed_at + EARLY)
			entries[i]->last_turn -= interval;
	}
	unlock_paces();
}

/*
 * Called as soon as a request has been sent, since until then others are sent as if it
 * had been in time: moves later turns if it was late.
 */
void
pace_note_sent(const Pace *pace, int64 claimed_at, int64 sent_at)
{
	int64		interval = interval_of(pace);
	PaceEntry  *entries[MAX_ENTRIES];
	int			nentries;

	if (interval == 0 || sent_at <= claimed_at + LATE)
		return;
	nentries = lock_paces(pace, entries);
	for (int i = 0; i < nentries; i++)
		entries[i]->last_turn = Max(entries[i]->last_turn, sent_at - interval) +
			Min(sent_at - claimed_at, interval);
	unlock_paces();
}

/*
 * The time from one turn to the next: on average no more than rate_limit a second, and
 * no more than that plus one within 1 s + EARLY + LATE.  0: there is no limit.
 */
static int64
interval_of(const Pace *pace)
{
	if (pace->rate_limit <= 0)
		return 0;
	return (int64) ceil(Max(USECS_PER_SEC / pace->rate_limit,
							(USECS_PER_SEC + EARLY + LATE) / (floor(pace->rate_limit) + 1)));
}

/*
 * Called after a 429: pauses the account.  Callers of pace_claim() must heed
 * pace_paused().
 */
void
pace_pause(const Pace *pace, int64 microseconds)
{
	PaceServer	server = server_of(pace);
	TransactionId xmin = account_server_xmin(pace->serverid);
	TransactionId next_xid = read_next_xid();
	PaceEntry  *entry = lock_pause(pace);
	int64		until = clock_now() + Min(microseconds, MAX_PAUSE);

	if (until > entry->paused_until || has_ended_pause(entry, server, xmin, next_xid))
	{
		entry->paused_until = until;
		entry->paused_server = server;
		entry->paused_xmin = xmin;
		entry->paused_next_xid = next_xid;
	}
	unlock_paces();
}

/*
 * How long the account is still paused, in microseconds.  ALTER SERVER ends a pause of
 * the server's account, as soon as this is called for the server.
 */
int64
pace_paused(const Pace *pace)
{
	PaceServer	server = server_of(pace);
	TransactionId xmin = account_server_xmin(pace->serverid);
	TransactionId next_xid = read_next_xid();
	PaceEntry  *entry = lock_pause(pace);
	int64		left;

	if (has_ended_pause(entry, server, xmin, next_xid))
		entry->paused_until = 0;
	left = entry->paused_until - clock_now();
	unlock_paces();
	return Max(left, 0);
}

/*
 * Has the server, whose definition "xmin" has written, been changed since the account
 * was paused?  Of the server that got the 429, it is known what it was like then.  Of
 * another one, the change is later if its xid was not yet given out then.
 */
static bool
has_ended_pause(const PaceEntry *entry, PaceServer server, TransactionId xmin,
				TransactionId next_xid)
{
	if (is_same_server(entry->paused_server, server))
		return entry->paused_xmin != xmin;
	return xmin - entry->paused_next_xid < next_xid - entry->paused_next_xid;
}

static TransactionId
read_next_xid(void)
{
	return XidFromFullTransactionId(ReadNextFullTransactionId());
}

static PaceServer
server_of(const Pace *pace)
{
	PaceServer	server;

	server.database = MyDatabaseId;
	server.oid = pace->serverid;
	return server;
}

static bool
is_same_server(PaceServer server, PaceServer other)
{
	return server.database == other.database && server.oid == other.oid;
}

static bool
has_named_account(const Pace *pace)
{
	return NameStr(pace->account)[0] != '\0';
}

/* The server's own entry, and then that of the account that it names, if it does. */
static int
lock_paces(const Pace *pace, PaceEntry **entries)
{
	PaceEntry  *paces = shared ? shared->paces : local_paces;
	int			nentries = 0;

	if (shared)
		LWLockAcquire(shared->pace_lock, LW_EXCLUSIVE);
	entries[nentries++] = find_pace(paces, pace, false);
	if (has_named_account(pace))
		entries[nentries++] = find_pace(paces, pace, true);
	return nentries;
}

/* The entry that has the pause: the account's, if there is one. */
static PaceEntry *
lock_pause(const Pace *pace)
{
	PaceEntry  *entries[MAX_ENTRIES];
	int			nentries = lock_paces(pace, entries);

	return entries[nentries - 1];
}

static void
unlock_paces(void)
{
	if (shared)
		LWLockRelease(shared->pace_lock);
}

/* A new server or account takes a free entry, or the one that has been idle longest. */
static PaceEntry *
find_pace(PaceEntry *paces, const Pace *pace, bool of_account)
{
	PaceServer	server = server_of(pace);
	PaceEntry  *oldest = &paces[0];

	for (int i = 0; i < SHARED_MAX_PACES; i++)
	{
		PaceEntry  *entry = &paces[i];

		if (!entry->is_used)
		{
			oldest = entry;
			break;				/* all entries after a free one are free */
		}
		if (of_account ? strcmp(NameStr(entry->account), NameStr(pace->account)) == 0 :
			is_same_server(entry->server, server))
			return entry;
		if (Max(entry->last_turn, entry->paused_until) <
			Max(oldest->last_turn, oldest->paused_until))
			oldest = entry;
	}
	memset(oldest, 0, sizeof(PaceEntry));
	oldest->is_used = true;
	oldest->last_turn = PG_INT64_MIN;
	if (of_account)
		oldest->account = pace->account;
	else
		oldest->server = server;
	return oldest;
}

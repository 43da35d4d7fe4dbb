/*-------------------------------------------------------------------------
 *
 * api/counters.c
 *		Counts, for each server, what was sent to it and what came of that.
 *
 * The counters only grow.  They begin anew when the server starts, and are those of
 * all sessions when the library is preloaded, else of this process alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "api/counters.h"
#include "base/clock.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* The pace is measured over at most this many seconds. */
#define PACE_SECONDS 10

StaticAssertDecl(PACE_SECONDS < COUNTERS_NSECONDS, "the seconds that are measured are kept");

/* The counters of this process; shared memory has those of all, if there is any. */
static CountersEntry local_counters[SHARED_MAX_PACES];

static CountersEntry *lock_counters(Oid serverid);
static void unlock_counters(void);
static CountersEntry *find_counters(CountersEntry *entries, Oid serverid, bool create);
static double pace_of(const CountersEntry *entry);

PG_FUNCTION_INFO_V1(dt_counters);

/*
 * Called when a request is about to leave; "is_call" says that a session waits for
 * its answer.
 */
void
counters_add_sent(Oid serverid, bool is_call)
{
	CountersEntry *entry = lock_counters(serverid);
	int64		second = clock_now() / USECS_PER_SEC;
	SecondCount *count = &entry->seconds[second % COUNTERS_NSECONDS];

	if (count->second != second)
		count->sent = 0;
	count->second = second;
	count->sent++;
	entry->requests++;
	entry->calls += is_call;
	unlock_counters();
}

/*
 * Called when a request is over.  An answer that was broken off has a status, too, but
 * counts as none, as it does for who gets its fault.
 */
void
counters_add_answer(Oid serverid, const HttpReply *reply)
{
	CountersEntry *entry = lock_counters(serverid);
	int			status = reply->result == HTTP_ANSWERED ? reply->status : 0;

	entry->answers[Min(status / 100, COUNTERS_NCLASSES - 1)]++;
	entry->too_fast += status == 429;
	unlock_counters();
}

/*
 * Called when the drainer has committed a transaction: how many removals it settled.
 */
void
counters_add_settled(Oid serverid, int64 done, int64 errored, int64 failed, int64 cancelled)
{
	CountersEntry *entry = lock_counters(serverid);

	entry->done += done;
	entry->errored += errored;
	entry->failed += failed;
	entry->cancelled += cancelled;
	unlock_counters();
}

static CountersEntry *
lock_counters(Oid serverid)
{
	if (shared == NULL)
		return find_counters(local_counters, serverid, true);
	LWLockAcquire(shared->pace_lock, LW_EXCLUSIVE);
	return find_counters(shared->counters, serverid, true);
}

static void
unlock_counters(void)
{
	if (shared)
		LWLockRelease(shared->pace_lock);
}

/* A new server takes a free entry, or the one that was used least recently. */
static CountersEntry *
find_counters(CountersEntry *entries, Oid serverid, bool create)
{
	CountersEntry *oldest = &entries[0];

	for (int i = 0; i < SHARED_MAX_PACES; i++)
	{
		CountersEntry *entry = &entries[i];

		if (entry->server == serverid && entry->database == MyDatabaseId)
		{
			entry->used_at = create ? clock_now() : entry->used_at;
			return entry;
		}
		if (!OidIsValid(entry->server))
		{
			oldest = entry;
			break;				/* all entries after a free one are free */
		}
		if (entry->used_at < oldest->used_at)
			oldest = entry;
	}
	if (!create)
		return NULL;
	memset(oldest, 0, sizeof(CountersEntry));
	oldest->database = MyDatabaseId;
	oldest->server = serverid;
	oldest->since = GetCurrentTimestamp();
	oldest->used_at = clock_now();
	return oldest;
}

/*
 * dt_counters(server oid) returns record (of_all_sessions bool, since timestamptz,
 * requests bigint, calls bigint, done bigint, errored bigint, failed bigint,
 * cancelled bigint, no_answer bigint, status_2xx bigint, status_4xx bigint,
 * status_429 bigint, status_5xx bigint, other_status bigint, rate float8)
 */
Datum
dt_counters(PG_FUNCTION_ARGS)
{
	Oid			serverid = PG_GETARG_OID(0);
	CountersEntry entry = {0};
	const CountersEntry *found;
	TupleDesc	tupdesc;
	Datum		values[15];
	bool		nulls[15] = {false};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (shared)
		LWLockAcquire(shared->pace_lock, LW_SHARED);
	found = find_counters(shared ? shared->counters : local_counters, serverid, false);
	if (found)
		entry = *found;
	unlock_counters();

	nulls[1] = found == NULL;
	values[0] = BoolGetDatum(shared != NULL);
	values[1] = TimestampTzGetDatum(entry.since);
	values[2] = Int64GetDatum(entry.requests);
	values[3] = Int64GetDatum(entry.calls);
	values[4] = Int64GetDatum(entry.done);
	values[5] = Int64GetDatum(entry.errored);
	values[6] = Int64GetDatum(entry.failed);
	values[7] = Int64GetDatum(entry.cancelled);
	values[8] = Int64GetDatum(entry.answers[0]);
	values[9] = Int64GetDatum(entry.answers[2]);
	values[10] = Int64GetDatum(entry.answers[4]);
	values[11] = Int64GetDatum(entry.too_fast);
	values[12] = Int64GetDatum(entry.answers[5]);
	values[13] = Int64GetDatum(entry.answers[1] + entry.answers[3] + entry.answers[6]);
	values[14] = Float8GetDatum(pace_of(&entry));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

/*
 * Requests a second: those of the last PACE_SECONDS seconds, over the time since the
 * first of them.
 */
static double
pace_of(const CountersEntry *entry)
{
	double		now = (double) clock_now() / USECS_PER_SEC;
	int64		sent = 0;
	int64		first = PG_INT64_MAX;

	for (int i = 0; i < COUNTERS_NSECONDS; i++)
	{
		const SecondCount *count = &entry->seconds[i];

		if (count->sent == 0 || count->second <= (int64) now - PACE_SECONDS)
			continue;
		sent += count->sent;
		first = Min(first, count->second);
	}
	return sent == 0 ? 0 : sent / Max(now - first, 1);
}

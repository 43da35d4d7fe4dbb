/*-------------------------------------------------------------------------
 *
 * worker/status.c
 *		What dt_status shows of a worker.
 *
 * The worker leaves it in shared memory, from where any session may read it, and
 * where the last error outlives the process that it ended.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/shared.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "worker/status.h"

static int64 current_span(void);

PG_FUNCTION_INFO_V1(dt_worker);

/*
 * Reports what the worker does, and what it has done since it told of it last;
 * "drain" is NULL when another session drains.
 */
void
status_report_work(const char *state, const Drain *drain, Tally *told)
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, false);

	if (database)
	{
		int64		number = current_span();
		SharedSpan *span = &database->spans[number % SHARED_NSPANS];

		if (span->number != number)
			memset(span, 0, sizeof(SharedSpan));
		span->number = number;
		strlcpy(database->state, state, sizeof(database->state));
		if (drain)
		{
			const Tally *tally = drain_tally(drain);

			span->sent += tally->sent - told->sent;
			span->failed += tally->failed - told->failed;
			*told = *tally;
			database->in_flight = drain_in_flight(drain);
		}
	}
	shared_unlock();
}

static int64
current_span(void)
{
	return (int64) time(NULL) / SHARED_SPAN;
}

/*
 * Reports the error that ends the worker; the server's log has it, too.
 */
void
status_report_error(void)
{
	MemoryContext caller = MemoryContextSwitchTo(TopMemoryContext);
	ErrorData  *error = CopyErrorData();
	SharedDatabase *database = shared_lock_database(MyDatabaseId, false);

	if (database)
	{
		int			length = pg_mbcliplen(error->message, (int) strlen(error->message),
										  sizeof(database->last_error) - 1);

		memcpy(database->last_error, error->message, length);
		database->last_error[length] = '\0';
	}
	shared_unlock();
	MemoryContextSwitchTo(caller);
}

/*
 * dt_worker() returns record (pid int, since timestamptz, state text,
 * in_flight int, sent_per_minute bigint, failed_per_minute bigint,
 * last_error text)
 *
 * The worker of this database; all null when it does not run.
 */
Datum
dt_worker(PG_FUNCTION_ARGS)
{
	Datum		values[7] = {0};
	bool		nulls[7];
	TupleDesc	tupdesc;
	SharedDatabase database = {0};
	int64		sent = 0;
	int64		failed = 0;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (shared)
	{
		SharedDatabase *found;

		LWLockAcquire(shared->lock, LW_SHARED);
		found = shared_find_database(MyDatabaseId, false);
		if (found)
			database = *found;
		LWLockRelease(shared->lock);
	}
	for (int i = 0; i < SHARED_NSPANS; i++)
	{
		int64		age = current_span() - database.spans[i].number;

		/* Below 0 the clock has been set back. */
		if (age < 0 || age >= SHARED_NSPANS)
			continue;
		sent += database.spans[i].sent;
		failed += database.spans[i].failed;
	}

	memset(nulls, database.pid == 0, sizeof(nulls));
	values[0] = Int32GetDatum(database.pid);
	values[1] = TimestampTzGetDatum(database.since);
	values[2] = CStringGetTextDatum(database.state);
	values[3] = Int32GetDatum(database.in_flight);
	values[4] = Int64GetDatum(sent);
	values[5] = Int64GetDatum(failed);
	values[6] = CStringGetTextDatum(database.last_error);
	nulls[6] = database.last_error[0] == '\0';
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

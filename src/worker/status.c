/*-------------------------------------------------------------------------
 *
 * worker/status.c
 *		What dt_status shows of a worker.
 *
 * The worker writes it into shared memory: any session may read it there, and the
 * last error is still there when the process that it ended is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/shared.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "worker/status.h"

static int64 current_span(void);

PG_FUNCTION_INFO_V1(dt_worker);

/*
 * Reports what the worker does, and what it has done since the last report.
 * "drain" is NULL when another session drains.
 */
void
status_report_work(const char *state, const Drain *drain)
{
	static Tally reported = {0};
	SharedDatabase *database = shared_lock_database(MyDatabaseId, false);

	if (database)
		strlcpy(database->state, state, sizeof(database->state));
	if (database && drain)
	{
		const Tally *tally = drain_tally(drain);
		int64		number = current_span();
		SharedSpan *span = &database->spans[number % SHARED_NSPANS];

		if (span->number != number)
			memset(span, 0, sizeof(SharedSpan));
		span->number = number;
		span->sent += tally->sent - reported.sent;
		span->failed += tally->failed - reported.failed;
		reported = *tally;
		database->in_flight = drain_in_flight(drain);
	}
	shared_unlock();
	pgstat_report_activity(STATE_RUNNING, state);
}

static int64
current_span(void)
{
	return (int64) time(NULL) / SHARED_SPAN;
}

/*
 * Reports the error that ends the worker, but not an administrator's cancel.  The
 * server's log has all of it; everybody may read it here, and so it is the message
 * as it stands in the source, with "%s" for whatever it names.
 */
void
status_report_error(void)
{
	ErrorData  *error;
	SharedDatabase *database;

	MemoryContextSwitchTo(TopMemoryContext);
	error = CopyErrorData();
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		return;
	database = shared_lock_database(MyDatabaseId, false);
	if (database)
		snprintf(database->last_error, sizeof(database->last_error), "%s (SQLSTATE %s)",
				 error->message_id ? error->message_id : "error",
				 unpack_sql_state(error->sqlerrcode));
	shared_unlock();
}

/*
 * dt_worker() returns record (pid int, since timestamptz, state text,
 * in_flight int, sent_per_minute bigint, failed_per_minute bigint,
 * last_error text)
 *
 * The worker of this database; all but the last are null when it does not run.
 */
Datum
dt_worker(PG_FUNCTION_ARGS)
{
	Datum		values[7];
	bool		nulls[7];
	TupleDesc	tupdesc;
	SharedDatabase database = {0};
	int			pid = 0;
	int64		sent = 0;
	int64		failed = 0;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (shared)
	{
		SharedDatabase *found = shared_lock_database(MyDatabaseId, false);

		if (found)
			database = *found;
		if (database.proc)
			pid = database.proc->pid;
		shared_unlock();
	}
	for (int i = 0; i < SHARED_NSPANS; i++)
	{
		int64		age = current_span() - database.spans[i].number;

		/* It is below 0 when the clock has been set back. */
		if (age >= 0 && age < SHARED_NSPANS)
		{
			sent += database.spans[i].sent;
			failed += database.spans[i].failed;
		}
	}

	memset(nulls, pid == 0, sizeof(nulls));
	nulls[6] = database.last_error[0] == '\0';
	values[0] = Int32GetDatum(pid);
	values[1] = TimestampTzGetDatum(database.since);
	values[2] = CStringGetTextDatum(database.state);
	values[3] = Int32GetDatum(database.in_flight);
	values[4] = Int64GetDatum(sent);
	values[5] = Int64GetDatum(failed);
	values[6] = CStringGetTextDatum(database.last_error);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

/*-------------------------------------------------------------------------
 *
 * drain/process_queue.c
 *		CALL dt_process_queue(): the drainer in a user's session.
 *		It commits many transactions, so it cannot run inside one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "base/extension.h"
#include "drain/drain.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "queue/locks.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

/* Time between two reports of progress, in µs. */
#define REPORT_INTERVAL (5 * USECS_PER_SEC)

static void adopt_transaction(void);
static void abort_transaction(void);
static void check_callable(FunctionCallInfo fcinfo);
static void drain_until_idle(Drain *drain);
static void report_progress(Drain *drain, int64 started, bool is_last);
static char *format_duration(double seconds);

PG_FUNCTION_INFO_V1(dt_process_queue);

/*
 * dt_process_queue()
 *
 * Drains until nothing is due.  Removals that are held, paused or backing off are
 * not due.
 */
Datum
dt_process_queue(PG_FUNCTION_ARGS)
{
	static const DrainTransactions transactions = {adopt_transaction, SPI_commit, abort_transaction};
	Drain	   *drain;

	check_callable(fcinfo);
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	SPI_commit();				/* lets go of the CALL's snapshot */

	drain = drain_start(PortalContext, &transactions);
	if (drain == NULL)
		ereport(NOTICE,
				(errmsg("another session drains the queue of this database%s", lock_describe_drainer()),
				 errdetail("Nothing was done here.")));
	else
	{
		PG_TRY();
		{
			drain_until_idle(drain);
		}
		PG_CATCH();
		{
			drain_end(drain);
			PG_RE_THROW();
		}
		PG_END_TRY();
		drain_end(drain);
	}
	SPI_finish();
	PG_RETURN_VOID();
}

static void
check_callable(FunctionCallInfo fcinfo)
{
	CallContext *context = (CallContext *) fcinfo->context;

	if (context == NULL || !IsA(context, CallContext) || context->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("dt_process_queue() cannot run inside a transaction block"),
				 errhint("It commits as it goes: CALL it by itself.")));
	extension_check_version();
	PreventCommandDuringRecovery("dt_process_queue()");
	PreventCommandIfReadOnly("dt_process_queue()");
}

/*
 * SPI has begun it already, perhaps long ago: what was dropped since must be
 * known, and what was set in the configuration file, as doubletick.enabled may be to
 * stop this.  At a stricter level, users' serializable transactions could fail for
 * what we do.
 */
static void
adopt_transaction(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	AcceptInvalidationMessages();
	XactIsoLevel = XACT_READ_COMMITTED;
}

/* After an error.  SPI_rollback() accounts for no snapshots but those of portals. */
static void
abort_transaction(void)
{
	while (ActiveSnapshotSet())
		PopActiveSnapshot();
	SPI_rollback();
}

static void
drain_until_idle(Drain *drain)
{
	int64		started = clock_now();
	int64		reported = started;

	DrainState	state;

	while ((state = drain_turn(drain)) == DRAIN_BUSY)
	{
		CHECK_FOR_INTERRUPTS();
		if (clock_now() >= reported + REPORT_INTERVAL)
		{
			report_progress(drain, started, false);
			reported = clock_now();
		}
	}
	if (state == DRAIN_UPDATE)
		ereport(NOTICE, (errmsg("the queue makes way for an update of extension \"doubletick\"")));
	while (state == DRAIN_IDLE && drain_prune(drain))
		CHECK_FOR_INTERRUPTS();
	drain_warn_of_unsent(drain);
	report_progress(drain, started, true);
}

/* Tells the user how much is done, how much is left, and how long that will take. */
static void
report_progress(Drain *drain, int64 started, bool is_last)
{
	const Tally *tally = drain_tally(drain);
	int64		left = drain_count_waiting(drain, is_last);
	double		seconds = Max((double) (clock_now() - started) / USECS_PER_SEC, 0.001);
	double		rate = (double) (tally->done + tally->failed) / seconds;

	ereport(NOTICE,
			(errmsg("queue: " INT64_FORMAT " done, " INT64_FORMAT " failed, " INT64_FORMAT " left, %.1f per second%s",
					tally->done, tally->failed, left, rate,
					is_last || rate == 0 ? "" : psprintf(", %s to go", format_duration((double) left / rate))),
			 tally->errored > 0 ?
			 errdetail("For " INT64_FORMAT " of those done, DoubleTick could not remove some names: see \"error\" in dt_history.",
					   tally->errored) : 0,
			 is_last && left > 0 ?
			 errhint("What is left is not due, or is held: see dt_status.") : 0));
}

static char *
format_duration(double seconds)
{
	if (seconds < 120)
		return psprintf("%.0f s", seconds);
	if (seconds < 2 * SECS_PER_HOUR)
		return psprintf("%.0f min", seconds / SECS_PER_MINUTE);
	return psprintf("%.1f h", seconds / SECS_PER_HOUR);
}

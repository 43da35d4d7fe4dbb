/*-------------------------------------------------------------------------
 *
 * drain/drain.c
 *		The loop of a drainer, the worker or CALL dt_process_queue().
 *
 * A turn waits for the sockets.  Then one short transaction settles what has been
 * answered and makes new requests, which leave when it has committed.  So a crash
 * leaves no more requests unsettled than were allowed to be in flight, and while it
 * waits for answers the drainer holds no snapshot, no xid and no xmin.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "api/allocation.h"
#include "api/capacity.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "drain/drain_internal.h"
#include "queue/history.h"
#include "queue/locks.h"
#include "settings.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Time between two searches when a commit has woken the drainer, in µs. */
#define WAKE_INTERVAL (2 * INT64CONST(1000))

/* Memory that the drainer keeps from one turn to the next, in bytes. */
#define TURN_MEMORY (128 * 1024)

/* As many rows as are counted in the table, as dt_status does; more would take long. */
#define COUNT_EXACTLY 10000

static DrainState wait_and_work(Drain *drain);
static bool has_more_to_send(const Drain *drain);
static void stop_sending(Drain *drain);

/*
 * Makes this process the drainer of its database.  NULL when another process is.
 */
Drain *
drain_start(MemoryContext parent, const DrainTransactions *transactions)
{
	MemoryContext context;
	Drain	   *drain;

	context = AllocSetContextCreate(parent, "doubletick drain", ALLOCSET_DEFAULT_SIZES);
	drain = MemoryContextAllocZero(context, sizeof(Drain));
	drain->context = context;
	drain->turn_context = AllocSetContextCreate(context, "doubletick turn",
												TURN_MEMORY, TURN_MEMORY, ALLOCSET_DEFAULT_MAXSIZE);
	drain->transactions = transactions;
	drain->horizon.context = context;
	drain->prune_from = DT_NOBEGIN;
	requests_init(&drain->requests);
	schedule_init(&drain->schedule, context);

	/* The lock comes last, so that nothing can fail after it. */
	if (lock_drain())
		return drain;
	MemoryContextDelete(context);
	return NULL;
}

/*
 * Waits a little for answers or until something is due, and runs a transaction if
 * there is work for one.  Called in a loop.
 *
 * Without memory it sends no more, and raises the error only when it has settled
 * what was in flight: another drainer would repeat that.
 */
DrainState
drain_turn(Drain *drain)
{
	MemoryContext caller = CurrentMemoryContext;
	DrainState	state;

	PG_TRY();
	{
		state = wait_and_work(drain);
		if (drain->nfailures > 0 && !are_answers_unsettled(drain))
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of memory"),
					 errdetail("Failed while the queue was drained.")));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		if (!finish_without_memory(drain))
			PG_RE_THROW();
		MemoryContextSwitchTo(caller);
		state = DRAIN_BUSY;
	}
	PG_END_TRY();
	return state;
}

static DrainState
wait_and_work(Drain *drain)
{
	Requests   *requests = &drain->requests;
	int64		left;
	bool		new_answers;

	if (!drain->is_update_near && lock_is_wanted_for_update())
	{
		drain->is_update_near = true;
		stop_sending(drain);
	}
	if (drain->is_update_near && requests_in_flight(requests) == 0)
		return DRAIN_UPDATE;

	left = drain->next_at - clock_now();
	left = Max(left, 0);		/* Max() evaluates its arguments twice */
	if (requests->nout > 0)
		http_turn(requests->nanswered > 0 ? 0 : (int) (Min(left, LONGEST_WAIT) / 1000), WAIT_DRAIN);
	else if (requests->nanswered == 0 &&
			 (requests->nstuck > 0 || has_more_to_send(drain)))
		clock_sleep_or_latch(Min(left, LONGEST_WAIT), WAIT_DRAIN);
	new_answers = requests_collect_answers(requests);

	/*
	 * A transaction costs much the same for one answer as for many, but the
	 * slots of answers that wait for it are idle.  So answers are collected
	 * only until a turn brings no new one.
	 */
	if (requests->nout == 0 ||
		(requests->nanswered > 0 ? !new_answers : clock_now() >= drain->next_at))
	{
		if (!run_turn_transaction(drain))
			return DRAIN_GONE;
	}
	if (requests_in_flight(requests) > 0 || drain->is_update_near)
		return DRAIN_BUSY;
	if (drain->finishing || (drain->at_end && !has_more_to_send(drain)))
		return DRAIN_IDLE;
	return DRAIN_BUSY;
}

/* Is there what can be sent now, or when a request of ours was out of the way? */
static bool
has_more_to_send(const Drain *drain)
{
	return schedule_has_line(&drain->schedule) || drain->requests.retry_at != 0;
}

/*
 * Like drain_turn(), but sends nothing more.  For a worker that is about to leave.
 */
DrainState
drain_finish(Drain *drain)
{
	stop_sending(drain);
	return drain_turn(drain);
}

static void
stop_sending(Drain *drain)
{
	drain->finishing = true;
	drain->next_at = time_of_next_turn(drain);
}

/*
 * The rows are read with other snapshots, but detoasting needs an active one.
 */
void
begin_drain_transaction(Drain *drain)
{
	drain->transactions->begin();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * Flushes what settles an answer, whatever the session's synchronous_commit: if the
 * machine fails, an answered request must not be repeated.
 */
void
commit_drain_transaction(Drain *drain)
{
	bool		has_settled = !dlist_is_empty(&drain->requests.settled);

	if (has_settled)
		ForceSyncCommit();
	PopActiveSnapshot();
	drain->transactions->commit();
	if (has_settled)
		FAULT_POINT("after settling");
}

/*
 * When there is something to do, even if no answer comes: for Drain.next_at.
 */
int64
time_of_next_turn(Drain *drain)
{
	int64		next_at = PG_INT64_MAX;

	if (drain->finishing)
		return drain->requests.nstuck > 0 ? drain->unstick_at : PG_INT64_MAX;
	if (!drain->at_end)
		return 0;
	if (requests_in_flight(&drain->requests) < capacity_now())
		next_at = schedule_next_at(&drain->schedule);
	if (requests_in_flight(&drain->requests) > 0)
		next_at = Min(next_at, drain->search_at);
	if (drain->requests.nstuck > 0)
		next_at = Min(next_at, drain->unstick_at);
	return next_at;
}

/*
 * Called by the worker when new rows may have come: a search is due at once, or
 * WAKE_INTERVAL after the last one if that is later.
 */
void
drain_wake(Drain *drain)
{
	drain->search_at = Min(drain->search_at, drain->searched_at + WAKE_INTERVAL);
	drain->next_at = Min(drain->next_at, drain->search_at);
}

/*
 * For how long the worker may sleep if nothing new comes: in milliseconds, and at
 * most "longest".
 */
long
drain_idle_time(const Drain *drain, long longest)
{
	int64		left = drain->next_at - clock_now();

	return (long) Max(Min(left / 1000 + 1, longest), 0);
}

/*
 * When the first waiting row is due, so that a worker that leaves can say when it is
 * wanted again.  DT_NOEND when nothing waits.
 */
TimestampTz
drain_next_due(Drain *drain)
{
	int64		next_due = schedule_next_due(&drain->schedule);

	if (next_due == PG_INT64_MAX)
		return DT_NOEND;
	return GetCurrentTimestamp() + Max(next_due - clock_now(), 0);
}

/*
 * How many requests are in flight, for dt_status and the worker.
 */
int
drain_in_flight(const Drain *drain)
{
	return requests_in_flight(&drain->requests);
}

/* What has become of removals since drain_start(), for reports. */
const Tally *
drain_tally(const Drain *drain)
{
	return &drain->tally;
}

/*
 * How many removals wait, in flight or not, for dt_process_queue() to report.  It counts
 * positions, and ids of the backlog: these may include keeps and settled rows.  With
 * "exactly" it reads the table, unless nothing waits or very much does.
 */
int64
drain_count_waiting(Drain *drain, bool exactly)
{
	Store		waiting;
	int64		nrows = requests_count_rows(&drain->requests) +
	schedule_count(&drain->schedule) + discover_count_backlog(&drain->horizon);

	if (!exactly || nrows > COUNT_EXACTLY ||
		(drain->at_end && nrows == 0 && !drain->horizon.has_passed))
		return nrows;

	begin_drain_transaction(drain);
	store_open(&waiting, RELATION_WAITING);
	nrows = store_count_waiting(&waiting);
	store_close(&waiting);
	commit_drain_transaction(drain);
	return nrows;
}

/*
 * Deletes settled rows older than doubletick.history_retention, as many as one
 * transaction may.  The drainer's caller repeats it until it returns false.
 */
bool
drain_prune(Drain *drain)
{
	TimestampTz before;
	Store		settled;
	int			npruned = 0;

	if (setting_history_retention < 0)
		return false;
	before = GetCurrentTimestamp() - setting_history_retention * USECS_PER_SEC;
	begin_drain_transaction(drain);
	if (relations_lock(&drain->waiting_oid))
	{
		store_open(&settled, RELATION_SETTLED);
		npruned = history_prune(&settled, &drain->prune_from, before, TURN_MAX_ROWS);
		store_close(&settled);
	}
	commit_drain_transaction(drain);
	return npruned == TURN_MAX_ROWS;
}

/*
 * Called by dt_process_queue(): lets another process be the drainer.  Breaks off the
 * requests in flight; their rows wait to be sent again.
 */
void
drain_end(Drain *drain)
{
	requests_unlock_all(&drain->requests);
	unlock_drain();
	MemoryContextDelete(drain->context);
	allocation_give_back();
}

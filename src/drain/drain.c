/*-------------------------------------------------------------------------
 *
 * drain/drain.c
 *		The loop: what is due, to HTTP, to what is settled.
 *
 * One turn waits for sockets, and then, in one short transaction, settles what
 * has been answered and reads what can go next; that leaves when the transaction
 * has committed.  So a crash finds no more requests unsettled than were allowed
 * to be in request, and while requests are out there is no snapshot, no xid and
 * no xmin here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "drain/hold.h"
#include "drain/schedule.h"
#include "miscadmin.h"
#include "queue/history.h"
#include "queue/relations.h"
#include "settings.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Rows pruned in one transaction. */
#define PRUNE_BATCH 1000

/* Between two looks of one who is woken again and again, in µs. */
#define WAKE_INTERVAL (2 * INT64CONST(1000))

/* Memory kept for a transaction, in bytes. */
#define TURN_MEMORY (128 * 1024)

/* Longest wait in one turn, in µs. */
#define LONGEST_WAIT (100 * INT64CONST(1000))

static void begin(Drain *drain);
static void commit(Drain *drain);
static bool collect_answers(Drain *drain);
static bool settle_and_fill(Drain *drain);
static void settle_answered(Fill *fill);
static void land_settled(Drain *drain);
static void launch_ready(Drain *drain);
static void unlock_requests(dlist_head *flights);

/*
 * Makes this process the drainer of its database.  NULL when another one is.
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
	dlist_init(&drain->out);
	dlist_init(&drain->answered);
	dlist_init(&drain->settled);
	dlist_init(&drain->ready);
	drain->horizon.context = context;
	drain->prune_from = DT_NOBEGIN;

	/* Last, so that nothing can fail behind it. */
	if (lock_drain())
		return drain;
	MemoryContextDelete(context);
	return NULL;
}

/*
 * Waits until something has happened, or is to happen, and does it.
 */
DrainState
drain_turn(Drain *drain)
{
	int64		left = drain->fill_at - clock_now();
	bool		came;

	left = Max(left, 0);		/* a macro, and a clock */
	if (drain->nout > 0)
		http_turn(drain->nanswered > 0 ? 0 : (int) (Min(left, LONGEST_WAIT) / 1000));
	else if (drain->waits_for_turn)
		clock_sleep_or_latch(Min(left, LONGEST_WAIT));
	came = collect_answers(drain);

	/*
	 * A transaction costs much the same for one answer as for many, but while
	 * answers wait their slots are empty: so they wait for others that are
	 * there already, and for no more.
	 */
	if (drain->nout == 0 ||
		(drain->nanswered > 0 ? !came : clock_now() >= drain->fill_at))
	{
		if (!settle_and_fill(drain))
			return DRAIN_GONE;
	}
	return drain->nout > 0 || drain->waits_for_turn || !drain->at_end ? DRAIN_BUSY : DRAIN_IDLE;
}

/*
 * The same, but sends nothing more.
 */
DrainState
drain_finish(Drain *drain)
{
	drain->finishing = true;
	drain->fill_at = PG_INT64_MAX;
	drain->waits_for_turn = false;
	drain->at_end = true;
	return drain_turn(drain);
}

/* True when there were any. */
static bool
collect_answers(Drain *drain)
{
	int			nbefore = drain->nanswered;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &drain->out)
	{
		Request	   *request = dlist_container(Request, node, iter.cur);

		if (!request_is_over(request))
			continue;
		dlist_delete(&request->node);
		dlist_push_tail(&drain->answered, &request->node);
		drain->nout--;
		drain->nanswered++;
	}
	return drain->nanswered > nbefore;
}

/*
 * One transaction, and then what it has made ready leaves.
 */
static bool
settle_and_fill(Drain *drain)
{
	MemoryContext caller;
	Fill		fill = {.drain = drain, .put_off_until = DT_NOBEGIN};

	FAULT_POINT("before settling");
	begin(drain);
	if (!relations_lock(&drain->waiting_oid))
	{
		commit(drain);
		return false;
	}
	caller = MemoryContextSwitchTo(drain->turn_context);
	store_open(&fill.waiting, RELATION_WAITING);
	store_open(&fill.settled, RELATION_SETTLED);
	fill.now = GetCurrentTimestamp();
	if (drain->lanes == NIL)
		hold_load(fill_find_lane, drain);

	settle_answered(&fill);
	if (!drain->finishing)
		fill_turn(&fill);
	store_close(&fill.settled);
	store_close(&fill.waiting);
	FAULT_POINT("after reading");
	MemoryContextSwitchTo(caller);
	commit(drain);
	land_settled(drain);
	launch_ready(drain);
	FAULT_POINT("after sending");
	return true;
}

/* Rows are read as they are now, but parts out of line need a snapshot. */
static void
begin(Drain *drain)
{
	drain->transactions->begin();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/* What is settled must be so even if the machine fails, whatever the session's settings. */
static void
commit(Drain *drain)
{
	if (!dlist_is_empty(&drain->settled))
		ForceSyncCommit();
	PopActiveSnapshot();
	drain->transactions->commit();
	MemoryContextReset(drain->turn_context);
	if (!dlist_is_empty(&drain->settled))
		FAULT_POINT("after settling");
}

static void
settle_answered(Fill *fill)
{
	Drain	   *drain = fill->drain;

	while (!dlist_is_empty(&drain->answered))
	{
		Request	   *request = dlist_container(Request, node, dlist_pop_head_node(&drain->answered));

		dlist_push_tail(&drain->settled, &request->node);
		drain->nanswered--;
		settle_request(request, &fill->waiting, &fill->settled, &drain->tally);
		request->lane->nrequests--;
		drain->tally.sent++;
	}
	/* What follows may touch the same rows. */
	CommandCounterIncrement();
}

static void
land_settled(Drain *drain)
{
	while (!dlist_is_empty(&drain->settled))
	{
		Request	   *request = dlist_container(Request, node, dlist_pop_head_node(&drain->settled));

		unlock_customer(request->tag);
		fill_give_context(drain, request->context);
	}
}

static void
launch_ready(Drain *drain)
{
	while (!dlist_is_empty(&drain->ready))
	{
		Request	   *request = dlist_container(Request, node, dlist_pop_head_node(&drain->ready));

		dlist_push_tail(&drain->out, &request->node);
		drain->nout++;
		request_send(request);
	}
}

static void
unlock_requests(dlist_head *flights)
{
	dlist_iter	iter;

	dlist_foreach(iter, flights)
		unlock_customer(dlist_container(Request, node, iter.cur)->tag);
}

/*
 * New rows may have come: look at once, or soon.
 */
void
drain_wake(Drain *drain)
{
	if (drain->nout == 0)
		drain->look_at = 0;
	else
		drain->look_at = Min(drain->look_at, drain->looked_at + WAKE_INTERVAL);
	drain->fill_at = Min(drain->fill_at, drain->look_at);
}

/*
 * How long there will be nothing to do, unless something new comes, at most
 * "longest" milliseconds.
 */
long
drain_idle_time(const Drain *drain, long longest)
{
	int64		left = drain->fill_at - clock_now();

	return (long) Max(Min(left / 1000 + 1, longest), 0);
}

/*
 * When there will be something to do, even if nothing new comes; DT_NOEND:
 * never.
 */
TimestampTz
drain_next_due(const Drain *drain)
{
	if (drain->fill_at == PG_INT64_MAX)
		return DT_NOEND;
	return GetCurrentTimestamp() + Max(drain->fill_at - clock_now(), 0);
}

/*
 * Requests that are out, or whose answer is not settled.
 */
int
drain_in_flight(const Drain *drain)
{
	return drain->nout + drain->nanswered;
}

/*
 * Warns of rows that were given up for their age, if there are any.
 */
void
drain_warn_of_expired(int64 nexpired)
{
	if (nexpired > 0)
		ereport(WARNING,
				(errmsg_plural("gave up " INT64_FORMAT " removal for its age",
							   "gave up " INT64_FORMAT " removals for their age",
							   (unsigned long) nexpired, nexpired),
				 errdetail("The server's option \"retry_for\" says how long they may wait."),
				 errhint("See dt_history; dt_retry sends one again.")));
}

const Tally *
drain_tally(const Drain *drain)
{
	return &drain->tally;
}

/*
 * Removals that wait, in request or not.  When all have been found the drainer
 * need not look, but keeps, and what is settled already, may be among them.
 */
int64
drain_count_waiting(Drain *drain, bool exactly)
{
	Store		waiting;
	int64		nrows = drain_in_flight(drain);
	ListCell   *cell;

	foreach(cell, drain->lanes)
		nrows += lane_count(lfirst(cell));
	if (drain->at_end && (nrows == 0 || !exactly))
		return nrows;

	begin(drain);
	store_open(&waiting, RELATION_WAITING);
	nrows = store_count_waiting(&waiting);
	store_close(&waiting);
	commit(drain);
	return nrows;
}

/*
 * Deletes what the history need not keep any longer.  False when that was all.
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
	begin(drain);
	if (relations_lock(&drain->waiting_oid))
	{
		store_open(&settled, RELATION_SETTLED);
		npruned = history_prune(&settled, &drain->prune_from, before, PRUNE_BATCH);
		store_close(&settled);
	}
	commit(drain);
	return npruned == PRUNE_BATCH;
}

/*
 * Lets go of everything.  What is in request is broken off, and waits to be sent
 * again.
 */
void
drain_end(Drain *drain)
{
	unlock_requests(&drain->out);
	unlock_requests(&drain->answered);
	unlock_requests(&drain->settled);
	unlock_requests(&drain->ready);
	unlock_drain();
	MemoryContextDelete(drain->context);
}

/*-------------------------------------------------------------------------
 *
 * drain/drain.c
 *		The loop: what waits is read, sent and settled.
 *
 * A turn waits for the sockets.  Then, in one short transaction, it settles what
 * has been answered and reads what can be sent next, which leaves when that
 * transaction has committed.  So a crash finds no more requests unsettled than
 * were allowed to be in flight, and while requests are out the drainer holds no
 * snapshot, no xid and no xmin.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "account/account.h"
#include "drain/discover.h"
#include "drain/drain.h"
#include "drain/hold.h"
#include "miscadmin.h"
#include "queue/history.h"
#include "settings.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Pause after a transaction that failed because of one lane, in µs. */
#define ERROR_PAUSE USECS_PER_SEC

/* Of these, rows that one search finds. */
#define ROWS_PER_SEARCH 256

/* Time between two searches for new rows while requests are in flight, in µs. */
#define SEARCH_INTERVAL (20 * INT64CONST(1000))

/* The same when a commit has woken the drainer, in µs. */
#define WAKE_INTERVAL (2 * INT64CONST(1000))

/* Memory kept for a transaction, in bytes. */
#define TURN_MEMORY (128 * 1024)

/* Longest wait in one turn, in µs. */
#define LONGEST_WAIT (100 * INT64CONST(1000))

/* Times are by clock_now(). */
struct Drain
{
	MemoryContext context;		/* where all of it lives */
	MemoryContext turn_context; /* reset after each transaction */
	const DrainTransactions *transactions;
	Oid			waiting_oid;	/* see relations_lock() */
	Requests	requests;
	Schedule	schedule;
	Horizon		horizon;
	bool		has_begun;		/* has a transaction been committed? */
	bool		finishing;		/* is nothing more to be sent? */
	bool		at_end;			/* has the last search found all there was? */
	int64		searched_at;	/* when the last search was made */
	int64		search_at;		/* when the next one is to be made */
	int64		unstick_at;		/* when stuck requests are to be settled */
	int64		next_at;		/* when there is something to do, even if no
								 * answer comes; PG_INT64_MAX: never */
	Tally		tally;
	TimestampTz prune_from;		/* settled_at of the last row that was pruned */
};

static void begin_transaction(Drain *drain);
static void commit_transaction(Drain *drain);
static bool run_transaction(Drain *drain);
static bool is_about_session(int sqlstate);
static Turn *open_turn(Drain *drain);
static void finish_turn(Drain *drain, Turn *turn);
static void hold_after_error(Drain *drain, Turn *turn);
static void undo_turn(Drain *drain, Turn *turn);
static void unstick_requests(Drain *drain);
static void settle_answers(Turn *turn);
static void read_and_send(Drain *drain, Turn *turn);
static bool is_search_due(Drain *drain);
static int	search_rows(Drain *drain, Turn *turn);
static void remove_empty_lanes(Schedule *schedule);
static int64 time_of_next_turn(Drain *drain);

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
	Requests   *requests = &drain->requests;
	int64		left = drain->next_at - clock_now();
	bool		new_answers;

	left = Max(left, 0);		/* Max() evaluates its arguments twice */
	if (requests->nout > 0)
		http_turn(requests->nanswered > 0 ? 0 : (int) (Min(left, LONGEST_WAIT) / 1000));
	else if (requests->nanswered == 0 &&
			 (requests->nstuck > 0 || schedule_has_line(&drain->schedule)))
		clock_sleep_or_latch(Min(left, LONGEST_WAIT));
	new_answers = requests_collect_answers(requests);

	/*
	 * A transaction costs much the same for one answer as for many, but while
	 * answers wait their slots are empty.  So they wait for other answers that
	 * are there already, and for no more.
	 */
	if (requests->nout == 0 ||
		(requests->nanswered > 0 ? !new_answers : clock_now() >= drain->next_at))
	{
		if (!run_transaction(drain))
			return DRAIN_GONE;
	}
	if (requests_in_flight(requests) > 0)
		return DRAIN_BUSY;
	if (drain->finishing || (drain->at_end && !schedule_has_line(&drain->schedule)))
		return DRAIN_IDLE;
	return DRAIN_BUSY;
}

/*
 * The same, but sends nothing more.
 */
DrainState
drain_finish(Drain *drain)
{
	drain->finishing = true;
	drain->next_at = time_of_next_turn(drain);
	return drain_turn(drain);
}

/*
 * Settles and reads in one transaction, and then sends what it has made ready.
 * False when the extension was dropped.
 */
static bool
run_transaction(Drain *drain)
{
	MemoryContext caller = CurrentMemoryContext;
	Turn	   *volatile turn = NULL;

	FAULT_POINT("before settling");
	PG_TRY();
	{
		begin_transaction(drain);
		if (relations_lock(&drain->waiting_oid))
		{
			turn = open_turn(drain);
			if (!drain->has_begun)
				hold_load(turn);
			unstick_requests(drain);
			settle_answers(turn);
			if (!drain->finishing)
				read_and_send(drain, turn);
			store_close(&turn->settled);
			store_close(&turn->waiting);
			FAULT_POINT("after reading");
		}
		MemoryContextSwitchTo(caller);
		commit_transaction(drain);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		if (turn == NULL || turn->lane == NULL || is_about_session(geterrcode()))
			PG_RE_THROW();
		hold_after_error(drain, turn);
		MemoryContextSwitchTo(caller);
		return true;
	}
	PG_END_TRY();
	if (turn == NULL)
		return false;
	finish_turn(drain, turn);
	requests_send_ready(&drain->requests);
	FAULT_POINT("after sending");
	return true;
}

/* Is an error about this session, rather than about what it was doing? */
static bool
is_about_session(int sqlstate)
{
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_OPERATOR_INTERVENTION ||
		sqlstate == ERRCODE_OUT_OF_MEMORY;
}

/* Rows are read as they are now, but values out of line need a snapshot. */
static void
begin_transaction(Drain *drain)
{
	drain->transactions->begin();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * What is settled must be so even if the machine fails, whatever the session's
 * synchronous_commit.
 */
static void
commit_transaction(Drain *drain)
{
	bool		has_settled = !dlist_is_empty(&drain->requests.settled);

	if (has_settled)
		ForceSyncCommit();
	PopActiveSnapshot();
	drain->transactions->commit();
	if (has_settled)
		FAULT_POINT("after settling");
}

/* What the transaction allocates goes with the turn. */
static Turn *
open_turn(Drain *drain)
{
	Turn	   *turn;
	Store		hold;

	MemoryContextReset(drain->turn_context);
	MemoryContextSwitchTo(drain->turn_context);
	turn = palloc(sizeof(Turn));
	memset(turn, 0, offsetof(Turn, taken));
	turn->schedule = &drain->schedule;
	turn->requests = &drain->requests;
	turn->tally = drain->tally;
	turn->context = drain->turn_context;
	turn->drain_context = drain->context;
	store_open(&turn->waiting, RELATION_WAITING);
	store_open(&turn->settled, RELATION_SETTLED);
	/* Checks it, since a hold may have to be recorded. */
	store_open(&hold, RELATION_HOLD);
	store_close(&hold);
	turn->now = GetCurrentTimestamp();
	turn->clock = clock_now();
	turn->nrows_left = TURN_MAX_ROWS;
	turn->nlocks_left = TURN_MAX_LOCKS;
	turn->deadline = turn->clock + TURN_MAX_TIME;
	return turn;
}

/* The transaction has committed: what the drainer has in memory follows. */
static void
finish_turn(Drain *drain, Turn *turn)
{
	Requests   *requests = &drain->requests;

	drain->has_begun = true;
	drain->tally = turn->tally;
	while (!dlist_is_empty(&requests->settled))
	{
		Request    *request = dlist_container(Request, node, dlist_pop_head_node(&requests->settled));
		Lane	   *lane = request->lane;

		settle_committed(request);
		schedule_lane(turn->schedule, lane, turn->clock);
	}
	drain->next_at = time_of_next_turn(drain);
}

/*
 * An error came up while a lane was worked on.  Everything else in the turn is
 * done again; the lane is held, so that it does not stop the others.
 */
static void
hold_after_error(Drain *drain, Turn *turn)
{
	Lane	   *lane = turn->lane;
	ErrorData  *error;
	Fault	   *fault;

	MemoryContextSwitchTo(drain->turn_context);
	error = CopyErrorData();
	FlushErrorState();
	fault = fault_make(error->sqlerrcode, "%s", error->message);
	drain->transactions->abort();
	undo_turn(drain, turn);

	begin_transaction(drain);
	if (relations_lock(&drain->waiting_oid))
		hold_lane(lane, fault, account_definition(lane_server(lane), lane->key.role));
	commit_transaction(drain);
	lane->not_before = clock_now() + ERROR_PAUSE;
	schedule_lane(turn->schedule, lane, turn->clock);
	schedule_server(turn->schedule, lane->server, turn->clock);
	drain->next_at = time_of_next_turn(drain);
}

/* Puts back in memory what a turn has moved, whose transaction has failed. */
static void
undo_turn(Drain *drain, Turn *turn)
{
	Requests   *requests = &drain->requests;

	while (!dlist_is_empty(&requests->ready))
	{
		Request    *request = dlist_container(Request, node, dlist_pop_head_node(&requests->ready));

		requests->nready--;
		request_count(request, -1);
		request_give_back(request);
		request_free(request);
	}
	while (!dlist_is_empty(&requests->settled))
	{
		Request    *request = dlist_container(Request, node, dlist_pop_head_node(&requests->settled));

		request_count(request, 1);
		if (request == turn->request)
		{
			dlist_push_tail(&requests->stuck, &request->node);
			requests->nstuck++;
			drain->unstick_at = clock_now() + ERROR_PAUSE;
		}
		else
		{
			dlist_push_head(&requests->answered, &request->node);
			requests->nanswered++;
		}
	}
	for (int i = turn->ntaken - 1; i >= 0; i--)
	{
		lane_push_front(turn->taken[i].lane, turn->taken[i].position);
		schedule_lane(turn->schedule, turn->taken[i].lane, turn->clock);
	}
}

/* Tries again to settle what could not be settled. */
static void
unstick_requests(Drain *drain)
{
	Requests   *requests = &drain->requests;

	if (requests->nstuck == 0 || clock_now() < drain->unstick_at)
		return;
	while (!dlist_is_empty(&requests->stuck))
		dlist_push_tail(&requests->answered, dlist_pop_head_node(&requests->stuck));
	requests->nanswered += requests->nstuck;
	requests->nstuck = 0;
}

static void
settle_answers(Turn *turn)
{
	Requests   *requests = turn->requests;

	while (!dlist_is_empty(&requests->answered) && turn->nrows_left > 0 &&
		   clock_now() < turn->deadline)
	{
		Request    *request = dlist_container(Request, node,
											  dlist_pop_head_node(&requests->answered));
		Server	   *server = request->lane->server;

		dlist_push_tail(&requests->settled, &request->node);
		requests->nanswered--;
		request_count(request, -1);
		turn->lane = request->lane;
		turn->request = request;
		settle_request(turn, request);
		if (server->next_at == PG_INT64_MAX)
			schedule_server(turn->schedule, server, turn->clock);
	}
	turn->lane = NULL;
	turn->request = NULL;
	/* What follows may touch the same rows. */
	CommandCounterIncrement();
}

/* Makes requests of the rows that are known, and then of those that are found. */
static void
read_and_send(Drain *drain, Turn *turn)
{
	send_from_lanes(turn);
	while (turn->nrows_left > 0 && is_search_due(drain) && search_rows(drain, turn) > 0)
		send_from_lanes(turn);
	/* Requests that are being settled may yet put rows into their lanes. */
	if (drain->at_end && dlist_is_empty(&turn->requests->settled))
		remove_empty_lanes(turn->schedule);
}

/* When nothing is in flight, always: the caller may be about to leave. */
static bool
is_search_due(Drain *drain)
{
	return !drain->at_end || clock_now() >= drain->search_at ||
		requests_in_flight(&drain->requests) == 0;
}

/* Puts rows that have not been seen before into their lanes.  Returns how many. */
static int
search_rows(Drain *drain, Turn *turn)
{
	QueueRow	found[ROWS_PER_SEARCH];
	int			nfound;

	drain->at_end = !discover_rows(&turn->waiting, &drain->horizon, ROWS_PER_SEARCH,
								   found, &nfound);
	drain->searched_at = clock_now();
	drain->search_at = drain->searched_at + SEARCH_INTERVAL;
	for (int i = 0; i < nfound; i++)
	{
		const QueueRow *row = &found[i];
		Lane	   *lane = schedule_find_lane(turn->schedule, row->server, row->role);

		lane_push(lane, position_of(row->id, row->customer));
		if (row->keep && row->ord != row->id)	/* the marker row of dt_retry() */
		{
			lane_push(lane, position_of(row->ord, row->customer));
			lane->look_up_rows = true;
		}
		schedule_lane(turn->schedule, lane, turn->clock);
	}
	turn->nrows_left -= nfound;
	return nfound;
}

/* Lanes in which nothing waits any more, and their holds. */
static void
remove_empty_lanes(Schedule *schedule)
{
	Lane	   *lane;

	while ((lane = schedule_next_empty(schedule)) != NULL)
	{
		hold_forget(lane);
		schedule_remove_lane(schedule, lane);
	}
}

static int64
time_of_next_turn(Drain *drain)
{
	int64		next_at = PG_INT64_MAX;

	if (drain->finishing)
		return drain->requests.nstuck > 0 ? drain->unstick_at : PG_INT64_MAX;
	if (!drain->at_end)
		return 0;
	if (requests_in_flight(&drain->requests) < http_capacity())
		next_at = schedule_next_at(&drain->schedule);
	if (requests_in_flight(&drain->requests) > 0)
		next_at = Min(next_at, drain->search_at);
	if (drain->requests.nstuck > 0)
		next_at = Min(next_at, drain->unstick_at);
	return next_at;
}

/*
 * New rows may have come: searches at once, or soon after the last search.
 */
void
drain_wake(Drain *drain)
{
	drain->search_at = Min(drain->search_at, drain->searched_at + WAKE_INTERVAL);
	drain->next_at = Min(drain->next_at, drain->search_at);
}

/*
 * How long there will be nothing to do, unless something new comes, in
 * milliseconds, and at most "longest".
 */
long
drain_idle_time(const Drain *drain, long longest)
{
	int64		left = drain->next_at - clock_now();

	return (long) Max(Min(left / 1000 + 1, longest), 0);
}

/*
 * When there will be something to do, even if nothing new comes; DT_NOEND:
 * never.
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
 * Requests that are out, and those whose answer is not settled.
 */
int
drain_in_flight(const Drain *drain)
{
	return requests_in_flight(&drain->requests);
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
 * Removals that wait, in flight or not.  When a search has found all, the lanes
 * tell, but keeps and settled rows may be among what they count.  "exactly"
 * counts in the table instead, unless the lanes are empty.
 */
int64
drain_count_waiting(Drain *drain, bool exactly)
{
	Store		waiting;
	int64		nrows = drain_in_flight(drain) + schedule_count(&drain->schedule);

	if (drain->at_end && (nrows == 0 || !exactly))
		return nrows;

	begin_transaction(drain);
	store_open(&waiting, RELATION_WAITING);
	nrows = store_count_waiting(&waiting);
	store_close(&waiting);
	commit_transaction(drain);
	return nrows;
}

/*
 * Deletes settled rows that are older than doubletick.history_retention, as many
 * as one transaction may.  False when that was all.
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
	begin_transaction(drain);
	if (relations_lock(&drain->waiting_oid))
	{
		store_open(&settled, RELATION_SETTLED);
		npruned = history_prune(&settled, &drain->prune_from, before, TURN_MAX_ROWS);
		store_close(&settled);
	}
	commit_transaction(drain);
	return npruned == TURN_MAX_ROWS;
}

/*
 * Lets another process be the drainer.  Requests that are in flight are broken
 * off, and their rows wait to be sent again.
 */
void
drain_end(Drain *drain)
{
	requests_unlock_all(&drain->requests);
	unlock_drain();
	MemoryContextDelete(drain->context);
}

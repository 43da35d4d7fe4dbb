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
#include "api/counters.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "account/account.h"
#include "drain/discover.h"
#include "drain/drain.h"
#include "drain/hold.h"
#include "miscadmin.h"
#include "queue/history.h"
#include "queue/locks.h"
#include "settings.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Pause after a transaction that failed because of one lane, in µs. */
#define ERROR_PAUSE USECS_PER_SEC

/*
 * How often a lack of memory may keep answers from being settled.  Between two tries
 * is LONGEST_WAIT, so that this lasts some ten seconds.
 */
#define MEMORY_TRIES 100

/* Rows that one search finds at most; they count against TURN_MAX_ROWS. */
#define ROWS_PER_SEARCH 256

/* Time between two searches for new rows while requests are in flight, in µs. */
#define SEARCH_INTERVAL (20 * INT64CONST(1000))

/* Time between two searches when a commit has woken the drainer, in µs. */
#define WAKE_INTERVAL (2 * INT64CONST(1000))

/* Memory that the drainer keeps from one turn to the next, in bytes. */
#define TURN_MEMORY (128 * 1024)

/* As many rows as are counted in the table, as dt_status does; more would take long. */
#define COUNT_EXACTLY 10000

/* Longest wait in one turn, in µs. */
#define LONGEST_WAIT (100 * INT64CONST(1000))

StaticAssertDecl(sizeof(Turn) - offsetof(Turn, taken) - sizeof(((Turn *) NULL)->taken) < MAXIMUM_ALIGNOF,
				 "open_turn() sets nothing beyond \"taken\"");

/* Times are by clock_now(). */
struct Drain
{
	MemoryContext context;		/* where all of it lives */
	MemoryContext turn_context; /* reset when a turn begins */
	const DrainTransactions *transactions;
	Oid			waiting_oid;	/* see relations_lock() */
	Requests	requests;
	Schedule	schedule;
	Horizon		horizon;
	bool		has_begun;		/* has a turn been committed? */
	bool		finishing;		/* does it only settle, and send no more? */
	int			nfailures;		/* how often memory was lacking */
	Turn	   *turn;			/* whose transaction is open, else NULL */
	bool		is_update_near; /* because the extension is to be updated? */
	bool		at_end;			/* has the last search found all there was? */
	int64		searched_at;	/* when the last search was made */
	int64		search_at;		/* when the next one is to be made */
	int64		unstick_at;		/* when stuck requests are to be settled */
	int64		next_at;		/* when there is something to do, even if no
								 * answer comes; PG_INT64_MAX: never */
	Tally		tally;
	List	   *unsent;			/* LaneTally: given up, and not warned of yet */
	TimestampTz prune_from;		/* settled_at of the last row that was pruned */
};

static DrainState wait_and_work(Drain *drain);
static bool are_answers_unsettled(Drain *drain);
static bool can_finish_without_memory(Drain *drain);
static void finish_without_memory(Drain *drain);
static void stop_sending(Drain *drain);
static void begin_drain_transaction(Drain *drain);
static void commit_drain_transaction(Drain *drain);
static bool run_turn_transaction(Drain *drain);
static bool is_error_about_session(int sqlstate);
static Turn *open_turn(Drain *drain);
static void finish_turn(Drain *drain, Turn *turn);
static void prepare_warnings(Drain *drain, const Turn *turn);
static void count_settled(Drain *drain, const Turn *turn);
static void warn_of_unsent(const LaneTally *unsent);
static void repeat_after_deadlock(Drain *drain, Turn *turn);
static void hold_after_error(Drain *drain, Turn *turn);
static void undo_turn(Drain *drain, Turn *turn);
static void unstick_requests(Drain *drain);
static void settle_answers(Turn *turn);
static void make_requests(Drain *drain, Turn *turn);
static bool is_search_due(Drain *drain);
static int	search_new_rows(Drain *drain, Turn *turn);
static int	compare_xacts(const void *a, const void *b);
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
		if (!can_finish_without_memory(drain))
			PG_RE_THROW();
		finish_without_memory(drain);
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
			 (requests->nstuck > 0 || schedule_has_line(&drain->schedule)))
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
	if (drain->finishing || (drain->at_end && !schedule_has_line(&drain->schedule)))
		return DRAIN_IDLE;
	return DRAIN_BUSY;
}

/* Are there requests that have left and are not settled? */
static bool
are_answers_unsettled(Drain *drain)
{
	Requests   *requests = &drain->requests;

	return requests->nout + requests->nanswered + requests->nstuck > 0 ||
		!dlist_is_empty(&requests->settled);
}

/* Called with an error that has been caught. */
static bool
can_finish_without_memory(Drain *drain)
{
	return geterrcode() == ERRCODE_OUT_OF_MEMORY && are_answers_unsettled(drain) &&
		++drain->nfailures <= MEMORY_TRIES;
}

/* Undoes the turn in which memory was lacking, and has its answers settled later. */
static void
finish_without_memory(Drain *drain)
{
	Requests   *requests = &drain->requests;

	FlushErrorState();
	drain->transactions->abort();
	drain->finishing = true;
	if (drain->turn)
		undo_turn(drain, drain->turn);
	drain->turn = NULL;
	requests->nstuck += requests->nanswered;
	requests->nanswered = 0;
	while (!dlist_is_empty(&requests->answered))
		dlist_push_tail(&requests->stuck, dlist_pop_head_node(&requests->answered));
	drain->unstick_at = clock_now() + LONGEST_WAIT;
	drain->next_at = time_of_next_turn(drain);
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
 * Settles answers and makes new requests in one transaction, and then sends these.
 * False when the extension was dropped.
 */
static bool
run_turn_transaction(Drain *drain)
{
	MemoryContext caller = CurrentMemoryContext;
	Turn	   *volatile turn = NULL;

	FAULT_POINT("before settling");
	PG_TRY();
	{
		begin_drain_transaction(drain);
		if (relations_lock(&drain->waiting_oid))
		{
			turn = drain->turn = open_turn(drain);
			if (!drain->has_begun)
				hold_load(turn);
			unstick_requests(drain);
			settle_answers(turn);
			if (!drain->finishing)
				make_requests(drain, turn);
			prepare_warnings(drain, turn);
			store_close(&turn->settled);
			store_close(&turn->waiting);
			FAULT_POINT("after reading");
		}
		MemoryContextSwitchTo(caller);
		commit_drain_transaction(drain);
		drain->turn = NULL;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		if (geterrcode() == ERRCODE_T_R_DEADLOCK_DETECTED)
			repeat_after_deadlock(drain, turn);
		else if (turn == NULL || turn->lane == NULL || is_error_about_session(geterrcode()))
			PG_RE_THROW();
		else
			hold_after_error(drain, turn);
		drain->turn = NULL;
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

/* Is the error about this session, and not about what it was doing? */
static bool
is_error_about_session(int sqlstate)
{
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_OPERATOR_INTERVENTION ||
		sqlstate == ERRCODE_OUT_OF_MEMORY;
}

/* The rows are read with other snapshots, but detoasting needs an active one. */
static void
begin_drain_transaction(Drain *drain)
{
	drain->transactions->begin();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * Flushes what settles an answer, whatever the session's synchronous_commit: if the
 * machine fails, an answered request must not be repeated.
 */
static void
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

/* Makes turn_context current: all that the transaction allocates lives there. */
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
	turn->context = drain->turn_context;
	turn->drain_context = drain->context;
	store_open(&turn->waiting, RELATION_WAITING);
	store_open(&turn->settled, RELATION_SETTLED);
	/* Checks dt_hold, since a hold may have to be recorded. */
	store_open(&hold, RELATION_HOLD);
	store_close(&hold);
	turn->now = GetCurrentTimestamp();
	turn->clock = clock_now();
	turn->nrows_left = TURN_MAX_ROWS;
	turn->nlocks_left = TURN_MAX_LOCKS;
	turn->deadline = turn->clock + TURN_MAX_TIME;
	return turn;
}

/* Brings the drainer's memory up to date when the transaction has committed. */
static void
finish_turn(Drain *drain, Turn *turn)
{
	Requests   *requests = &drain->requests;

	drain->has_begun = true;
	count_settled(drain, turn);
	while (!dlist_is_empty(&requests->settled))
	{
		Request    *request = dlist_head_element(Request, node, &requests->settled);
		Lane	   *lane = request->lane;

		settle_committed(requests, request);
		schedule_lane(turn->schedule, lane, turn->clock);
	}
	schedule_shrink(turn->schedule);
	drain->next_at = time_of_next_turn(drain);
}

/*
 * Makes room for what is to be warned of, since nothing may fail when the transaction
 * has committed.  If it fails, the entries stay, and count nothing.
 */
static void
prepare_warnings(Drain *drain, const Turn *turn)
{
	MemoryContext caller = MemoryContextSwitchTo(drain->context);
	ListCell   *cell;

	foreach(cell, turn->tallies)
	{
		const LaneTally *settled = lfirst(cell);
		LaneTally  *unsent;

		if (settled->tally.expired + settled->tally.roleless == 0 ||
			tally_find(drain->unsent, &settled->key))
			continue;
		unsent = palloc0(sizeof(LaneTally));
		unsent->key = settled->key;
		unsent->role = settled->role;
		drain->unsent = lappend(drain->unsent, unsent);
	}
	MemoryContextSwitchTo(caller);
}

static void
count_settled(Drain *drain, const Turn *turn)
{
	ListCell   *cell;

	foreach(cell, turn->tallies)
	{
		const LaneTally *settled = lfirst(cell);
		const Tally *tally = &settled->tally;
		LaneTally  *unsent = tally_find(drain->unsent, &settled->key);

		drain->tally.sent += tally->sent;
		drain->tally.done += tally->done;
		drain->tally.errored += tally->errored;
		drain->tally.failed += tally->failed;
		drain->tally.cancelled += tally->cancelled;
		if (unsent)
		{
			unsent->tally.expired += tally->expired;
			unsent->tally.roleless += tally->roleless;
		}
		if (OidIsValid(settled->serverid))
			counters_add_settled(settled->serverid, tally->done, tally->errored,
								 tally->failed, tally->cancelled);
	}
}

/*
 * The transaction was chosen to end a deadlock, with an administrator who has locked
 * our tables in another order.  It is repeated: if the drainer ended, the requests in
 * flight would leave a second time.  "turn" is NULL if it had not begun.
 */
static void
repeat_after_deadlock(Drain *drain, Turn *turn)
{
	FlushErrorState();
	drain->transactions->abort();
	if (turn != NULL)
		undo_turn(drain, turn);
	drain->next_at = clock_now() + ERROR_PAUSE;
}

/*
 * An error was raised while the turn worked on a lane.  Holds this lane, so that it
 * does not stop the others; everything else in the turn will be done again.
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
	/* What precedes the colon is the reason: see is_same_reason() in hold.c. */
	fault = fault_make(error->sqlerrcode, "error %s: %s",
					   unpack_sql_state(error->sqlerrcode), error->message);
	fault->hint = error->hint;
	/* The id alone: not everybody who may see this may see the row. */
	if (turn->row != 0)
		fault->context = psprintf("row " INT64_FORMAT " of dt_waiting, or another one of its customer",
								  turn->row);
	drain->transactions->abort();
	undo_turn(drain, turn);

	begin_drain_transaction(drain);
	if (relations_lock(&drain->waiting_oid))
	{
		/* What the turn wrote about holds is lost. */
		if (drain->has_begun)
			hold_write_all(turn->schedule);
		hold_lane(lane, fault, account_definition(lane_server(lane), lane->key.role));
		/* If its answer can be settled the next time, the lane can send. */
		if (turn->request)
			turn->request->hold = hold_number(lane);
	}
	commit_drain_transaction(drain);
	lane->not_before = clock_now() + ERROR_PAUSE;
	schedule_lane(turn->schedule, lane, turn->clock);
	schedule_server(turn->schedule, lane->server, turn->clock);
	drain->next_at = time_of_next_turn(drain);
}

/*
 * The transaction has failed: moves back what the turn has moved in memory.  A drainer
 * that only finishes sends no row, and so does not need them in their lanes: it may be
 * memory that is lacking, which lanes need to take rows back.
 */
static void
undo_turn(Drain *drain, Turn *turn)
{
	Requests   *requests = &drain->requests;

	while (!dlist_is_empty(&requests->ready))
	{
		Request    *request = dlist_head_element(Request, node, &requests->ready);

		/*
		 * If memory is lacking for this, it stays in the list of those that
		 * are unlocked when the drainer ends.
		 */
		if (!drain->finishing)
			request_give_back(request);
		dlist_delete(&request->node);
		requests->nready--;
		request_count_slot(request, -1);
		if (turn->request_context == request->context)
			turn->request_context = NULL;
		request_free(requests, request);
	}
	if (turn->request_context)
		requests_give_context(requests, turn->request_context);
	turn->request_context = NULL;
	while (!dlist_is_empty(&requests->settled))
	{
		Request    *request = dlist_container(Request, node, dlist_pop_head_node(&requests->settled));

		request_count_slot(request, 1);
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
	for (int i = turn->ntaken - 1; i >= 0 && !drain->finishing; i--)
	{
		lane_push_again(turn->taken[i].lane, turn->taken[i].position);
		schedule_lane(turn->schedule, turn->taken[i].lane, turn->clock);
	}
}

/* Lets the turn try again to settle the requests that could not be settled. */
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
		request_count_slot(request, -1);
		turn->lane = request->lane;
		turn->request = request;
		turn->row = 0;
		settle_request(turn, request);
		if (server->next_at == PG_INT64_MAX)
			schedule_server(turn->schedule, server, turn->clock);
	}
	turn->lane = NULL;
	turn->request = NULL;
	/* What follows may touch the same rows. */
	CommandCounterIncrement();
}

/* Makes requests of the rows in the lanes, and then of those that a search finds. */
static void
make_requests(Drain *drain, Turn *turn)
{
	send_from_lanes(turn);
	while (turn->nrows_left > 0 && is_search_due(drain) && search_new_rows(drain, turn) > 0)
		send_from_lanes(turn);
	/* Requests that are being settled may yet put rows back into their lanes. */
	if (drain->at_end && dlist_is_empty(&turn->requests->settled))
		remove_empty_lanes(turn->schedule);
}

/* Always true when nothing is in flight, since the caller may be about to leave. */
static bool
is_search_due(Drain *drain)
{
	return !drain->at_end || clock_now() >= drain->search_at ||
		requests_in_flight(&drain->requests) == 0;
}

/* Puts rows that were not seen before into their lanes.  Returns how many. */
static int
search_new_rows(Drain *drain, Turn *turn)
{
	QueueRow	found[ROWS_PER_SEARCH];
	int			nfound;

	drain->at_end = !discover_rows(&turn->waiting, &drain->horizon, ROWS_PER_SEARCH,
								   found, &nfound);
	drain->searched_at = clock_now();
	drain->search_at = drain->searched_at + SEARCH_INTERVAL;
	qsort(found, nfound, sizeof(QueueRow), compare_xacts);
	for (int i = 0; i < nfound; i++)
	{
		const QueueRow *row = &found[i];
		Lane	   *lane = schedule_find_lane(turn->schedule, row->server, row->role);

		lane_push(lane, row->xact, position_of(row->id, row->customer));
		if (row->keep && row->ord != row->id)	/* a marker row */
		{
			if (row->ord == 0)
				drain->at_end &= !discover_anew(&drain->horizon, row->id);
			else
				lane_push(lane, row->xact, position_of(row->ord, row->customer));
			lane->look_up_rows = true;
		}
		schedule_lane(turn->schedule, lane, turn->clock);
	}
	turn->nrows_left -= nfound;
	return nfound;
}

/* lane_push() wants the rows of a transaction one after the other. */
static int
compare_xacts(const void *a, const void *b)
{
	const QueueRow *x = a;
	const QueueRow *y = b;

	if (x->xact != y->xact)
		return x->xact < y->xact ? -1 : 1;
	return (x->id > y->id) - (x->id < y->id);
}

/* Frees the lanes in which nothing waits any more, and forgets their holds. */
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

/*
 * Warns of removals that have failed without an answer since the last call: one line
 * for each lane and reason.
 */
void
drain_warn_of_unsent(Drain *drain)
{
	ListCell   *cell;

	foreach(cell, drain->unsent)
		warn_of_unsent(lfirst(cell));
	list_free_deep(drain->unsent);
	drain->unsent = NIL;
}

static void
warn_of_unsent(const LaneTally *unsent)
{
	int64		nexpired = unsent->tally.expired;
	int64		nroleless = unsent->tally.roleless;
	const char *server = NameStr(unsent->key.server);

	if (nexpired > 0)
		ereport(WARNING,
				(errmsg_plural("gave up " INT64_FORMAT " removal of role \"%s\" for server \"%s\", for its age",
							   "gave up " INT64_FORMAT " removals of role \"%s\" for server \"%s\", for their age",
							   (unsigned long) nexpired, nexpired, NameStr(unsent->role), server),
				 errdetail("The server's option \"retry_for\" says how long they may wait."),
				 errhint("See dt_history; dt_retry sends one again.")));
	if (nroleless > 0)
		ereport(WARNING,
				(errmsg_plural("failed " INT64_FORMAT " removal for server \"%s\", since its role (OID %u) does not exist any more",
							   "failed " INT64_FORMAT " removals for server \"%s\", since their role (OID %u) does not exist any more",
							   (unsigned long) nroleless, nroleless, server, unsent->key.role),
				 errhint("See dt_history; enqueue them again as another role.")));
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
}

/*-------------------------------------------------------------------------
 *
 * drain/after_error.c
 *		What a drainer does when a turn has failed.
 *
 * It ends with an error that is about its session, and with one that came of no lane.
 * After all others it takes back in memory what the transaction has not done, and goes
 * on: if it ended, the requests in flight would leave a second time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/account.h"
#include "base/clock.h"
#include "drain/drain_internal.h"
#include "drain/hold.h"
#include "utils/timestamp.h"

/* Pause after a transaction that failed because of one lane, in µs. */
#define ERROR_PAUSE USECS_PER_SEC

/*
 * How often a lack of memory may keep answers from being settled.  Between two tries
 * is LONGEST_WAIT, so that this lasts some ten seconds.
 */
#define MEMORY_TRIES 100

static bool is_error_about_session(int sqlstate);
static void repeat_after_deadlock(Drain *drain, Turn *turn);
static void hold_after_error(Drain *drain, Turn *turn);
static bool can_finish_without_memory(Drain *drain);
static void undo_turn(Drain *drain, Turn *turn);

/*
 * Called with an error that a turn has raised.  False when it must be raised further,
 * and so ends the drainer.  "turn" is NULL if it had not begun.
 */
bool
mend_failed_turn(Drain *drain, Turn *turn)
{
	if (geterrcode() == ERRCODE_T_R_DEADLOCK_DETECTED)
		repeat_after_deadlock(drain, turn);
	else if (turn == NULL || turn->lane == NULL || is_error_about_session(geterrcode()))
		return false;
	else
		hold_after_error(drain, turn);
	return true;
}

/* Is the error about this session, and not about what it was doing? */
static bool
is_error_about_session(int sqlstate)
{
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_OPERATOR_INTERVENTION ||
		sqlstate == ERRCODE_OUT_OF_MEMORY;
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
		hold_write_all(turn->schedule);
		hold_lane(lane, fault, account_definition(lane_server(lane), lane->key.role));
		/* If its answer can be settled the next time, the lane can send. */
		if (turn->request)
			turn->request->hold = hold_number(lane);
	}
	commit_drain_transaction(drain);
	drain->holds_are_lost = false;
	lane->not_before = clock_now() + ERROR_PAUSE;
	schedule_lane(turn->schedule, lane, turn->clock);
	schedule_server(turn->schedule, lane->server, turn->clock);
	drain->next_at = time_of_next_turn(drain);
}

/*
 * Called with an error that has been caught.  If memory was lacking, undoes the turn,
 * sends no more, and has its answers settled later.  False when the error must be
 * raised: it was another one, or there is nothing to settle, or it was tried too often.
 */
bool
finish_without_memory(Drain *drain)
{
	Requests   *requests = &drain->requests;

	if (!can_finish_without_memory(drain))
		return false;
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
	return true;
}

static bool
can_finish_without_memory(Drain *drain)
{
	return geterrcode() == ERRCODE_OUT_OF_MEMORY && are_answers_unsettled(drain) &&
		++drain->nfailures <= MEMORY_TRIES;
}

/*
 * Are there requests that have left and are not settled?
 */
bool
are_answers_unsettled(Drain *drain)
{
	Requests   *requests = &drain->requests;

	return requests->nout + requests->nanswered + requests->nstuck > 0 ||
		!dlist_is_empty(&requests->settled);
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

	drain->holds_are_lost = true;
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

/*
 * Lets the turn try again to settle the requests that could not be settled.
 */
void
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

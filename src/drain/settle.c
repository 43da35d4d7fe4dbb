/*-------------------------------------------------------------------------
 *
 * drain/settle.c
 *		Moves rows out of the queue, or gives them another time to wait for.
 *
 * outcome.c decides what an answer means for each row.  Here the tables are changed
 * accordingly, in the drainer's transaction.  Removals go back into lanes when it
 * has committed (settle_committed()), so that a transaction that fails can be
 * repeated.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/account.h"
#include "api/answer.h"
#include "api/pace.h"
#include "base/fault_point.h"
#include "base/names.h"
#include "common/pg_prng.h"
#include "drain/hold.h"
#include "drain/outcome.h"
#include "drain/split_answer.h"
#include "drain/turn.h"
#include "queue/history.h"
#include "utils/timestamp.h"

/*
 * Largest answer, in bytes, that each of a request's rows gets that it does not account
 * for.  Of a larger one only the first gets it: it may have 1 MiB, for 1,000 rows.
 */
#define MAX_COPIED (16 * 1024)

/* Time until a keep that only uncommitted removals need is looked at again, in µs. */
#define KEEP_INTERVAL USECS_PER_MINUTE

static Facts gather_facts(const Request *request, const HttpReply *reply, const Answer *answer);
static int	count_attempt(int attempts);
static bool settle_row(Turn *turn, Request *request, DueRow *due, const Outcome *outcome,
					   const Answer *answer, int64 delay);
static void note_what_was_sent(QueueRow *row, const DueRow *due);
static void settle_done(Turn *turn, Request *request, const DueRow *due,
						const QueueRow *row, Jsonb *answer);
static bool settle_failed(Turn *turn, const QueueRow *row, const char *error);
static void affect_lane(Request *request, const Outcome *outcome, const Answer *answer, int64 delay);

/*
 * Called for each request that is over: settles its rows or records until when they
 * wait.  Holds its lane, lifts the hold or pauses the server, as the answer demands.
 */
void
settle_request(Turn *turn, Request *request)
{
	double		random = pg_prng_double(&pg_global_prng_state);
	const HttpReply *reply = http_reply(request->transfer);
	Answer		answer;
	Facts		facts;
	Outcome		outcome;
	int64		delay;			/* ms */
	ListCell   *cell;

	answer_read(reply, &answer);
	if (answer.status == 401 || answer.status == 403)
		answer.fault->hint = account_key_command(lane_server(request->lane), request->lane->key.role);
	facts = gather_facts(request, reply, &answer);
	outcome = outcome_of(&facts);
	request->answer_is_with = 0;
	delay = outcome.least_delay + (int64) (random * outcome.random_delay) + 1;

	foreach(cell, request->due.send)
	{
		DueRow	   *due = lfirst(cell);
		Outcome		own;

		turn->row = due->row.id;
		facts.age = (double) (turn->now - due->row.enqueued_at) / 1000;
		own = outcome_of(&facts);
		due->is_settled = settle_row(turn, request, due, &own, &answer, delay);
	}
	turn->nrows_left -= list_length(request->due.send);
	tally_of_lane(turn)->sent++;
	if (request->due.has_keeps)
		settle_keeps(turn, request->lane, &request->due.asked);
	affect_lane(request, &outcome, &answer, delay);
}

/*
 * Called when the transaction that settled a request has committed: puts the rows
 * that wait again into the lane, and frees the request.
 */
void
settle_committed(Requests *requests, Request *request)
{
	Lane	   *lane = request->lane;
	ListCell   *cell;

	foreach(cell, request->due.send)
	{
		const DueRow *due = lfirst(cell);
		Position	position = position_of(due->row.id, due->row.customer);

		if (!due->is_settled && due->next_at > 0)
			lane_push_later(lane, position, due->next_at);
		else if (!due->is_settled)
			lane_push_again(lane, position);
	}
	foreach(cell, request->next)
		lane_push_again(lane, *(Position *) lfirst(cell));
	dlist_delete(&request->node);
	request_free(requests, request);
}

/* What is known of the request.  Its backoff is that of the row tried most often. */
static Facts
gather_facts(const Request *request, const HttpReply *reply, const Answer *answer)
{
	Facts		facts = {
		.result = reply->result,
		.status = reply->status,
		.is_object = answer->body != NULL,
		.no_route = answer->no_route,
		.retry_after = reply->retry_after,
		.nrows = list_length(request->due.send),
		.retry_for = request->retry_for
	};
	ListCell   *cell;

	foreach(cell, request->due.send)
		facts.attempts = Max(facts.attempts, count_attempt(((DueRow *) lfirst(cell))->row.attempts));
	return facts;
}

/* The column is an integer, which anybody who may write to the table can set. */
static int
count_attempt(int attempts)
{
	return Max(attempts, 0) < PG_INT32_MAX ? Max(attempts, 0) + 1 : PG_INT32_MAX;
}

/* Settles one row, or updates it.  False when it waits again. */
static bool
settle_row(Turn *turn, Request *request, DueRow *due, const Outcome *outcome,
		   const Answer *answer, int64 delay)
{
	QueueRow	row = due->row;
	Tally	   *tally;

	if (!store_is_in_place(&turn->waiting, &row) &&
		!store_find_waiting(&turn->waiting, row.id, &row))
		return true;
	row.http_status = answer->status;
	if (answer->fault)
		row.last_error = answer->fault->message;
	if (outcome->verdict != VERDICT_HOLD)
		row.attempts = count_attempt(row.attempts);
	if (outcome->together > 0)
		row.together = outcome->together;

	note_what_was_sent(&row, due);
	switch (outcome->verdict)
	{
		case VERDICT_DONE:
			settle_done(turn, request, due, &row, answer->body);
			return true;
		case VERDICT_FAILED:
			(void) store_delete(&turn->waiting, &row.tid, true);
			history_insert(&turn->settled, &row, STATE_FAILED, fault_jsonb(answer->fault),
						   answer->fault->message);
			tally = tally_of_lane(turn);
			tally->failed++;
			tally->expired += outcome->too_old;
			return true;
		case VERDICT_AGAIN:
			/* A row does not wait beyond the time when it is given up. */
			row.due_at = Min(turn->now + delay * 1000,
							 row.enqueued_at + (int64) (request->retry_for * 1000));
			due->next_at = turn->clock + (row.due_at - turn->now);
			break;
		case VERDICT_PARTS:
			break;
		case VERDICT_HOLD:
			break;
	}
	store_update_waiting(&turn->waiting, &row);
	return false;
}

/* Names that came back before the request was made were not sent. */
static void
note_what_was_sent(QueueRow *row, const DueRow *due)
{
	if (due->ntags < ArrayGetNItems(ARR_NDIM(row->tags), ARR_DIMS(row->tags)))
		row->sent_tags = names_to_array(due->tags, due->ntags);
	if (due->nfields < ArrayGetNItems(ARR_NDIM(row->fields), ARR_DIMS(row->fields)))
		row->sent_fields = names_to_array(due->fields, due->nfields);
}

static void
settle_done(Turn *turn, Request *request, const DueRow *due, const QueueRow *row,
			Jsonb *answer)
{
	bool		is_together = list_length(request->due.send) > 1;
	bool		is_searchable = answer_is_searchable(answer, request->nnames);
	Jsonb	   *own = answer;
	char	   *error;
	Tally	   *tally = tally_of_lane(turn);

	FAULT_POINT("settling");
	if (is_together && is_searchable && answer_accounts_for(answer, due))
		own = split_answer(answer, due);
	else if (request->answer_is_with == 0)
		request->answer_is_with = row->id;
	else if (VARSIZE(answer) > MAX_COPIED)
		own = NULL;

	if (own == NULL)
		error = psprintf("the answer does not mention all names; removal " INT64_FORMAT " has all of it",
						 request->answer_is_with);
	else if (!is_searchable)
		error = "the answer mentions too many names to look these up";
	else
		error = answer_problems(own, due);
	(void) store_delete(&turn->waiting, &row->tid, true);
	history_insert(&turn->settled, row, STATE_DONE, own, error);
	tally->done++;
	tally->errored += error != NULL;
}

/* Applies what one answer means for the whole lane, and for the whole server. */
static void
affect_lane(Request *request, const Outcome *outcome, const Answer *answer, int64 delay)
{
	if (outcome->pause)
		pace_pause(&request->pace, delay * 1000);

	if (outcome->verdict == VERDICT_HOLD)
	{
		if (hold_believes(request))
			hold_lane(request->lane, answer->fault, request->definition);
	}
	else if (request->lane->held && answer->status != 0 &&
			 outcome->verdict != VERDICT_AGAIN && hold_believes(request))
		hold_lift(request->lane);	/* an outage does not vouch for the key */
}

/*
 * Called by send.c: settles removals that are not to be sent, since they are too old
 * or keeps have taken back all their names.
 */
void
settle_unsent(Turn *turn, const Due *due)
{
	ListCell   *cell;

	foreach(cell, due->expired)
		settle_expired(turn, &((DueRow *) lfirst(cell))->row);
	foreach(cell, due->kept)
	{
		const QueueRow *row = &((DueRow *) lfirst(cell))->row;

		if (!store_delete(&turn->waiting, &row->tid, true))
			continue;
		history_insert(&turn->settled, row, STATE_CANCELLED, NULL,
					   "not sent, since its names came back");
		tally_of_lane(turn)->cancelled++;
	}
	turn->nrows_left -= list_length(due->expired) + list_length(due->kept);
}

/*
 * Settles a removal as failed for its age.  Its row was read in this transaction.
 */
void
settle_expired(Turn *turn, const QueueRow *row)
{
	char	   *error = psprintf("given up for its age, after %d %s%s%s", row->attempts,
								 row->attempts == 1 ? "attempt" : "attempts",
								 row->last_error ? ": " : "",
								 row->last_error ? row->last_error : "");

	tally_of_lane(turn)->expired += settle_failed(turn, row, error);
}

/*
 * Settles a removal as failed since its role was dropped.  Its row was read in this
 * transaction.
 */
void
settle_roleless(Turn *turn, const QueueRow *row)
{
	tally_of_lane(turn)->roleless += settle_failed(turn, row, "role does not exist any more");
}

/*
 * Settles a removal as failed without a request.  False when it is settled already: a
 * snapshot may still show what this command has deleted.
 */
static bool
settle_failed(Turn *turn, const QueueRow *row, const char *error)
{
	if (!store_delete(&turn->waiting, &row->tid, true))
		return false;
	history_insert(&turn->settled, row, STATE_FAILED, NULL, error);
	tally_of_lane(turn)->failed++;
	return true;
}

/*
 * Called for a customer whose keeps may be needless by now: deletes those that have
 * nothing left to keep.  One that only uncommitted removals need is looked at again
 * later, since they may be rolled back.
 */
void
settle_keeps(Turn *turn, Lane *lane, const QueueRow *customer)
{
	int64		id = customer_delete_keeps(&turn->waiting, customer);

	if (id != 0)
		lane_push_later(lane, position_of(id, customer->customer), turn->clock + KEEP_INTERVAL);
}

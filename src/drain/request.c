/*-------------------------------------------------------------------------
 *
 * drain/request.c
 *		A request of the queue, from its making to its settlement.
 *
 * What an answer means for each row is said by outcome.c; here the rows are
 * moved accordingly: out of dt_waiting and into dt_settled, or back with a time.
 * All of that is done in the caller's transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/answer.h"
#include "api/endpoint.h"
#include "api/pace.h"
#include "base/clock.h"
#include "base/names.h"
#include "common/pg_prng.h"
#include "drain/hold.h"
#include "drain/outcome.h"
#include "drain/request.h"
#include "drain/split_answer.h"
#include "queue/history.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* Time between two looks at keeps that may have nothing left to keep, in µs. */
#define KEEP_INTERVAL USECS_PER_MINUTE

static Removal merge_parts(List *parts);
static void add_names(const char **to, int *nto, const char **names, int nnames);
static Facts gather_facts(const Request *request, const HttpReply *reply, const Answer *answer);
static bool settle_part(Request *request, DuePart *part, const Outcome *outcome,
						const Answer *answer, TimestampTz due_at,
						Store *waiting, Store *settled, Tally *tally);
static void affect_lane(Request *request, const Outcome *outcome, const Answer *answer, int64 delay);
static void put_back(Request *request, const QueueRow *row, const Outcome *outcome);

/*
 * Makes the request for what is due, for a role and a server as they are defined
 * now.  It lives in "context", as "due" must.
 */
Request *
request_make(MemoryContext context, Lane *lane, const Due *due, const Account *account,
			const char *definition)
{
	MemoryContext caller = MemoryContextSwitchTo(context);
	Request	   *request = palloc0(sizeof(Request));
	Removal		removal = merge_parts(due->parts);

	request->context = context;
	request->lane = lane;
	request->tag = customer_tag(&due->customer);
	request->due = *due;
	request->body = payload_utf8(payload_jsonb(&removal, account->waba_number), &request->length);
	request->target = endpoint_of(account);
	request->timeout = account->timeout;
	request->retry_for = account->retry_for;
	request->serverid = account->serverid;
	request->rate_limit = account->rate_limit;
	request->claimed_at = clock_now();
	request->definition = pstrdup(definition);
	MemoryContextSwitchTo(caller);
	return request;
}

/* One removal of all their names, each once; numbers as the first row has them. */
static Removal
merge_parts(List *parts)
{
	DuePart    *first = linitial(parts);
	Removal		removal = {0};
	int			ntags = 0;
	int			nfields = 0;
	ListCell   *cell;

	removal.phone = first->row.phone;
	removal.waba = first->row.waba;
	foreach(cell, parts)
	{
		ntags += ((DuePart *) lfirst(cell))->ntags;
		nfields += ((DuePart *) lfirst(cell))->nfields;
	}
	removal.tags = palloc(sizeof(char *) * Max(ntags, 1));
	removal.fields = palloc(sizeof(char *) * Max(nfields, 1));
	foreach(cell, parts)
	{
		DuePart    *part = lfirst(cell);

		add_names(removal.tags, &removal.ntags, part->tags, part->ntags);
		add_names(removal.fields, &removal.nfields, part->fields, part->nfields);
	}
	return removal;
}

static void
add_names(const char **to, int *nto, const char **names, int nnames)
{
	for (int i = 0; i < nnames; i++)
	{
		if (!names_have(to, *nto, names[i]))
			to[(*nto)++] = names[i];
	}
}

/*
 * Has a row looked at when the request is settled, unless it is carried by it.
 */
void
request_note_next(Request *request, Waiting place)
{
	MemoryContext caller;
	Waiting    *again;
	ListCell   *cell;

	foreach(cell, request->due.parts)
	{
		if (((DuePart *) lfirst(cell))->row.id == place.id)
			return;
	}
	caller = MemoryContextSwitchTo(request->context);
	again = palloc(sizeof(Waiting));
	*again = place;
	request->again = lappend(request->again, again);
	MemoryContextSwitchTo(caller);
}

/*
 * Sends the request; request_is_over() tells when that is so.
 */
void
request_send(Request *request)
{
	MemoryContext caller = MemoryContextSwitchTo(request->context);

	request->transfer = http_start(&request->target, request->body, request->length,
								  request->timeout);
	MemoryContextSwitchTo(caller);
}

/*
 * Has the answer come, or will none?  Tells the pace when the request was sent.
 */
bool
request_is_over(Request *request)
{
	int64		sent_at = http_sent_at(request->transfer);

	if (sent_at != 0 && !request->is_sent)
	{
		pace_note_sent(request->serverid, request->rate_limit, request->claimed_at, sent_at);
		request->is_sent = true;
	}
	return http_reply(request->transfer) != NULL;
}

/*
 * Settles the rows of a request that is over, or puts them back; and draws the
 * consequences for the lane.
 */
void
settle_request(Request *request, Store *waiting, Store *settled, Tally *tally)
{
	MemoryContext caller = MemoryContextSwitchTo(request->context);
	TimestampTz now = GetCurrentTimestamp();
	double		random = pg_prng_double(&pg_global_prng_state);
	const HttpReply *reply = http_reply(request->transfer);
	const QueueRow *customer = &request->due.customer;
	Answer		answer;
	Facts		facts;
	Outcome		outcome;
	int64		delay;
	ListCell   *cell;

	answer_read(reply, &answer);
	facts = gather_facts(request, reply, &answer);
	outcome = outcome_of(&facts);
	delay = outcome.least_delay + (int64) (random * outcome.random_delay) + 1;

	foreach(cell, request->due.parts)
	{
		DuePart    *part = lfirst(cell);
		Outcome		own;

		facts.age = (double) (now - part->row.enqueued_at) / 1000;
		own = outcome_of(&facts);
		if (!settle_part(request, part, &own, &answer, now + delay * 1000, waiting, settled, tally))
			put_back(request, &part->row, &own);
	}
	if (request->due.has_keeps)
		settle_keeps(request->lane, customer, waiting);

	affect_lane(request, &outcome, &answer, delay);
	foreach(cell, request->again)
		lane_push_front(request->lane, *(Waiting *) lfirst(cell));
	http_release(request->transfer);
	MemoryContextSwitchTo(caller);
}

/*
 * Deletes the keeps of a customer that have nothing left to keep; those that
 * still may have are looked at again, for what they keep may be rolled back.
 */
void
settle_keeps(Lane *lane, const QueueRow *customer, Store *waiting)
{
	int64		id = due_forget_keeps(waiting, customer);

	if (id != 0)
		lane_push_later(lane, place_of(id, customer->customer),
						GetCurrentTimestamp() + KEEP_INTERVAL);
}

/* Of the request; the backoff is that of the row that was sent most often. */
static Facts
gather_facts(const Request *request, const HttpReply *reply, const Answer *answer)
{
	Facts		facts = {
		.result = reply->result,
		.status = reply->status,
		.is_object = answer->body != NULL,
		.no_route = answer->no_route,
		.retry_after = reply->retry_after,
		.coalesced = list_length(request->due.parts) > 1,
		.retry_for = request->retry_for
	};
	ListCell   *cell;

	foreach(cell, request->due.parts)
		facts.attempts = Max(facts.attempts, ((DuePart *) lfirst(cell))->row.attempts + 1);
	return facts;
}

/* False when the row goes on waiting. */
static bool
settle_part(Request *request, DuePart *part, const Outcome *outcome, const Answer *answer,
			TimestampTz due_at, Store *waiting, Store *settled, Tally *tally)
{
	QueueRow	row;
	char	   *note;
	Jsonb	   *body;

	row = part->row;
	if (!store_is_still(waiting, &row) && !store_find_waiting(waiting, row.id, &row))
		return true;
	row.http_status = answer->status;
	if (answer->fault)
		row.last_error = answer->fault->message;

	switch (outcome->verdict)
	{
		case VERDICT_DONE:
			row.attempts++;
			body = list_length(request->due.parts) == 1 ? answer->body :
				split_answer(answer->body, part);
			note = answer_errors(body);
			(void) store_delete(waiting, &row.tid, true);
			history_insert(settled, &row, STATE_DONE, body, note);
			tally->done++;
			tally->errored += note != NULL;
			return true;

		case VERDICT_FAILED:
			row.attempts++;
			(void) store_delete(waiting, &row.tid, true);
			history_insert(settled, &row, STATE_FAILED, fault_jsonb(answer->fault),
						   answer->fault->message);
			tally->failed++;
			tally->expired += outcome->too_old;
			return true;

		case VERDICT_AGAIN:
			/* No later than when it is given up. */
			row.attempts++;
			row.due_at = Min(due_at, row.enqueued_at + (int64) (request->retry_for * 1000));
			part->row.due_at = row.due_at;
			break;

		case VERDICT_ALONE:
			row.attempts++;
			row.alone = true;
			break;

		case VERDICT_HOLD:
			break;
	}
	store_update_waiting(waiting, &row);
	return false;
}

/* What one answer means for the others of the lane, and of the server. */
static void
affect_lane(Request *request, const Outcome *outcome, const Answer *answer, int64 delay)
{
	if (outcome->pause)
		pace_pause(request->serverid, delay * 1000);

	if (outcome->verdict == VERDICT_HOLD)
		hold_enter(request->lane, answer->fault, request->definition);
	else if (answer->status != 0 && outcome->verdict != VERDICT_AGAIN)
		hold_lift(request->lane);	/* an outage tells nothing of the key */
}

static void
put_back(Request *request, const QueueRow *row, const Outcome *outcome)
{
	Waiting		place = place_of(row->id, row->customer);

	if (outcome->verdict == VERDICT_AGAIN)
		lane_push_later(request->lane, place, row->due_at);
	else
		lane_push_front(request->lane, place);
}

/*
 * Settles what is not to be sent: rows that are too old, and rows all of whose
 * names came back.
 */
void
settle_without_request(const Due *due, Store *waiting, Store *settled, Tally *tally)
{
	ListCell   *cell;

	foreach(cell, due->expired)
		settle_expired(&((DuePart *) lfirst(cell))->row, waiting, settled, tally);
	foreach(cell, due->kept)
	{
		DuePart    *part = lfirst(cell);

		if (!store_delete(waiting, &part->row.tid, true))
			continue;
		history_insert(settled, &part->row, STATE_CANCELLED, NULL,
					   "not sent, since its names came back");
		tally->cancelled++;
	}
}

/*
 * Gives a row up, read in this transaction, for its age.
 */
void
settle_expired(const QueueRow *row, Store *waiting, Store *settled, Tally *tally)
{
	char	   *error = psprintf("given up for its age, after %d %s%s%s", row->attempts,
								 row->attempts == 1 ? "attempt" : "attempts",
								 row->last_error ? ": " : "",
								 row->last_error ? row->last_error : "");

	tally->expired += settle_failed(row, error, waiting, settled, tally);
}

/*
 * Settles a row, read in this transaction, as failed without a request.  False
 * when it is settled already: a snapshot may still show what this command has
 * deleted.
 */
bool
settle_failed(const QueueRow *row, const char *error, Store *waiting, Store *settled,
			  Tally *tally)
{
	if (!store_delete(waiting, &row->tid, true))
		return false;
	history_insert(settled, row, STATE_FAILED, NULL, error);
	tally->failed++;
	return true;
}

/*-------------------------------------------------------------------------
 *
 * call/call.c
 *		One call of dt_remove_tags_custom_fields() or its dt_try_ sibling, in
 *		steps: many of them may be open at once.
 *
 * Here it is made, sent, answered and tried again, and ends with a result.  When it may
 * send is decided beside the other open calls of the process: open_calls.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/account.h"
#include "api/answer.h"
#include "api/counters.h"
#include "api/endpoint.h"
#include "api/pace.h"
#include "api/transfer_clock.h"
#include "base/extension.h"
#include "base/phone.h"
#include "call/call.h"
#include "call/call_internal.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "settings.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/*
 * The pause before a retry is a random part of a longest pause, which begins at
 * FIRST_PAUSE and doubles with each try up to LAST_PAUSE, in microseconds.  Both are
 * short beside the default timeout of 10 s, so a call outlasts a restart of the API.
 */
#define FIRST_PAUSE (100 * INT64CONST(1000))
#define LAST_PAUSE (2000 * INT64CONST(1000))

/* An answer that is longer than this is read in memory of its own, in bytes. */
#define LONG_ANSWER (16 * 1024)

static void forget_call(void *arg);
static void read_reply(const HttpReply *reply, Answer *answer);
static void try_again_or_end(Call *call, const Answer *answer, int64 retry_after);
static int64 pause_before_retry(int ntries);
static bool hits_every_row(const Fault *fault);
static Jsonb *without_status(Jsonb *body);

/*
 * Makes a call of the current role, with the arguments of a function, of which the fifth,
 * if there is one, is the server.  With a bad argument it is over at once.  "raise" says
 * whether a fault is raised or returned.  The call ends when "context" is reset or
 * deleted, and so does its request.
 */
Call *
call_make(MemoryContext context, FunctionCallInfo fcinfo, bool raise)
{
	MemoryContext caller = MemoryContextSwitchTo(context);
	Call	   *call = palloc0(sizeof(Call));
	Fault	   *fault;

	call->context = context;
	call->raise = raise;
	call->role = GetUserId();
	call->is_argument = PG_NARGS() > 4 && !PG_ARGISNULL(4);
	call->server = call->is_argument ? text_to_cstring(PG_GETARG_TEXT_PP(4)) : pstrdup(setting_server);
	call->counted_from = NOT_COUNTED;
	call->callback.func = forget_call;
	call->callback.arg = call;
	MemoryContextRegisterResetCallback(context, &call->callback);

	fault = payload_read_arguments(fcinfo, &call->removal);
	if (fault == NULL)
		fault = extension_version_fault();
	if (fault)
		call_end(call, fault);
	else
	{
		call->phone = phone_value(call->removal.phone);
		open_calls_add(call);
	}
	MemoryContextSwitchTo(caller);
	return call;
}

/* Called when the call's memory context is reset. */
static void
forget_call(void *arg)
{
	Call	   *call = arg;

	if (call->is_open)
		dlist_delete(&call->node);
	if (call->transfer)
		call_count_in_flight(call, -1); /* its transfer ends, too */
}

/*
 * Ends a call with a fault; NULL: with the body of the answer.
 */
void
call_end(Call *call, Fault *fault)
{
	call->fault = fault;
	if (call->is_open)
		dlist_delete(&call->node);
	call->is_open = false;
}

/*
 * Has the call a result?
 */
bool
call_is_over(const Call *call)
{
	return !call->is_open;
}

/*
 * Is a request on its way that has not been sent yet, since its connection is still
 * being made?
 */
bool
call_is_leaving(const Call *call)
{
	return call->transfer != NULL && http_sent_at(call->transfer) == 0;
}

/*
 * How many requests were made, those included that were tried again.
 */
int
call_requests(const Call *call)
{
	return call->ntries;
}

/*
 * Does call_result() raise a fault?  Called when the call is over.
 */
bool
call_will_raise(const Call *call)
{
	return call->fault && (call->raise || hits_every_row(call->fault));
}

/*
 * The function's result, in the current memory context; raises a fault that the
 * function raises.  Called when the call is over.
 */
Jsonb *
call_result(const Call *call)
{
	Jsonb	   *result = call->body;

	if (call_will_raise(call))
	{
		if (call->is_argument)
			account_hint_argument(call->fault, call->server);
		fault_about(call->fault, call->removal.phone, call->server, call->role);
		fault_raise(call->fault);
	}
	if (call->fault)
		return fault_jsonb(call->fault);
	if (!call->raise)
		return without_status(result);
	return memcpy(palloc(VARSIZE(result)), result, VARSIZE(result));
}

/*
 * Called when the call may send.
 */
void
call_send(Call *call)
{
	size_t		length;
	char	   *body = payload_utf8(payload_jsonb(&call->removal, call->account.waba_number), &length);
	HttpTarget	target = endpoint_of(&call->account);

	call->transfer = http_start(&target, body, length, (int) ((call_time_left(call) + 999) / 1000));
	call_count_in_flight(call, 1);
	call->is_sent = false;
	call->ntries++;
	counters_add_sent(call->account.serverid, true);
}

/*
 * Reads the answer if it is there: then the call is over, or tried again later.
 */
void
call_read_answer(Call *call)
{
	const Account *account = &call->account;
	const HttpReply *reply = http_reply(call->transfer);
	int64		sent_at = http_sent_at(call->transfer);
	int64		retry_after;
	Answer		answer;

	if (sent_at != 0 && !call->is_sent)
	{
		Pace		pace = pace_of(account);

		pace_note_sent(&pace, call->claimed_at, sent_at);
		call->is_sent = true;
	}
	if (reply == NULL)
		return;

	counters_add_answer(account->serverid, reply);
	read_reply(reply, &answer);
	retry_after = Min(reply->retry_after, SECS_PER_DAY) * USECS_PER_SEC;
	http_release(call->transfer);
	call->transfer = NULL;
	call_count_in_flight(call, -1);

	call->body = answer.body;
	if (answer.fault == NULL)
		call_end(call, NULL);
	else
		try_again_or_end(call, &answer, retry_after);
}

/*
 * To read an answer takes some times its length, and the rows of a statement keep what
 * they have until they are handed up.  So of a long one only the result is kept.
 */
static void
read_reply(const HttpReply *reply, Answer *answer)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;

	if (reply->length <= LONG_ANSWER)
	{
		answer_read(reply, answer);
		return;
	}
	context = AllocSetContextCreate(caller, "doubletick answer", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	answer_read(reply, answer);
	MemoryContextSwitchTo(caller);
	if (answer->fault)
		return;					/* which goes with the caller's context */
	answer->body = memcpy(palloc(VARSIZE(answer->body)), answer->body, VARSIZE(answer->body));
	MemoryContextDelete(context);
}

/*
 * After a fault: "retry_after" is the pause that the server asked for, 0 for none.  If
 * too little time was left for the last try, the fault of the one before says more.
 */
static void
try_again_or_end(Call *call, const Answer *answer, int64 retry_after)
{
	int64		pause = retry_after > 0 ? retry_after : pause_before_retry(call->ntries);

	if (answer->status == 401 || answer->status == 403)
		answer->fault->hint = account_key_command(call->server, call->role);
	if (answer->status == 429)
	{
		Pace		pace = pace_of(&call->account);

		pace_pause(&pace, pause);
	}

	if (call->last_fault && answer->again && answer->status == 0 && call_time_left(call) <= 0)
		call_end(call, call->last_fault);
	else if (!answer->again || pause >= call_time_left(call))
		call_end(call, answer->fault);
	call->last_fault = answer->fault;
	call->next_try = transfer_clock_now() + pause;
}

static int64
pause_before_retry(int ntries)
{
	int64		longest = Min(FIRST_PAUSE << Min(ntries - 1, 16), LAST_PAUSE);

	return (int64) (pg_prng_double(&pg_global_prng_state) * longest) + 1;
}

/*
 * Would every other row of a bulk statement get the same fault?  Then even
 * dt_try_remove_tags_custom_fields() raises it.
 */
static bool
hits_every_row(const Fault *fault)
{
	switch (fault->sqlstate)
	{
		case ERRCODE_UNDEFINED_OBJECT:
		case ERRCODE_INSUFFICIENT_PRIVILEGE:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_OUT_OF_MEMORY:
			return true;
	}
	return fault->status == 401;
}

/*
 * A success as dt_try_remove_tags_custom_fields() returns it.  Callers recognize a
 * fault by the key "statusCode", so a success must not have it.
 */
static Jsonb *
without_status(Jsonb *body)
{
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_delete, JsonbPGetDatum(body),
											  CStringGetTextDatum("statusCode")));
}

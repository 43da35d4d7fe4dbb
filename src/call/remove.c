/*-------------------------------------------------------------------------
 *
 * call/remove.c
 *		The functions that send a removal at once, and wait for the answer.
 *		The caller's transaction stays open meanwhile; no table is written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/account.h"
#include "api/answer.h"
#include "api/counters.h"
#include "api/endpoint.h"
#include "api/http.h"
#include "api/pace.h"
#include "api/payload.h"
#include "base/clock.h"
#include "base/extension.h"
#include "common/pg_prng.h"
#include "fmgr.h"
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

/* libcurl may end a request by this much before its timeout, in µs. */
#define TIMER_SLACK 2000

typedef Fault *Call(const Removal *removal, const char *server, Jsonb **result);

static Jsonb *run_call(FunctionCallInfo fcinfo, Call *call, bool raise);
static Call build_payload,
			call_api;
static void send_once(const Removal *removal, const Account *account, int64 claimed_at,
					  int64 deadline, Answer *answer, int64 *retry_after);
static Fault *wait_for_pause(const Account *account, const char *server, int64 deadline);
static int64 pause_before_retry(int tries);
static bool hits_every_row(const Fault *fault);
static Jsonb *without_status(Jsonb *body);

PG_FUNCTION_INFO_V1(dt_payload);
PG_FUNCTION_INFO_V1(dt_remove_tags_custom_fields);
PG_FUNCTION_INFO_V1(dt_try_remove_tags_custom_fields);

/*
 * dt_payload(phone text, tags text[], fields text[], waba text) returns jsonb
 */
Datum
dt_payload(PG_FUNCTION_ARGS)
{
	PG_RETURN_JSONB_P(run_call(fcinfo, build_payload, true));
}

/*
 * dt_remove_tags_custom_fields(phone text, tags text[], fields text[],
 * waba text, server text) returns jsonb
 */
Datum
dt_remove_tags_custom_fields(PG_FUNCTION_ARGS)
{
	PG_RETURN_JSONB_P(run_call(fcinfo, call_api, true));
}

/*
 * dt_try_remove_tags_custom_fields(phone text, tags text[], fields text[],
 * waba text, server text) returns jsonb
 */
Datum
dt_try_remove_tags_custom_fields(PG_FUNCTION_ARGS)
{
	PG_RETURN_JSONB_P(run_call(fcinfo, call_api, false));
}

/*
 * Checks the arguments, and makes the call in a memory context of its own.  dt_payload()
 * has no fifth argument, the server.  "raise" says whether a fault is raised or returned.
 */
static Jsonb *
run_call(FunctionCallInfo fcinfo, Call *call, bool raise)
{
#define ARGUMENT(n, get) (PG_ARGISNULL(n) ? NULL : get(n))
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "doubletick call",
												  ALLOCSET_DEFAULT_SIZES);
	const char *argument = NULL;
	const char *server;
	Removal		removal;
	Jsonb	   *result;
	Fault	   *fault;

	MemoryContextSwitchTo(context);
	if (PG_NARGS() > 4 && !PG_ARGISNULL(4))
		argument = text_to_cstring(PG_GETARG_TEXT_PP(4));
	server = argument ? argument : setting_server;
	fault = payload_check(ARGUMENT(0, PG_GETARG_TEXT_PP),
						  ARGUMENT(1, PG_GETARG_ARRAYTYPE_P),
						  ARGUMENT(2, PG_GETARG_ARRAYTYPE_P),
						  ARGUMENT(3, PG_GETARG_TEXT_PP), &removal);
	if (fault == NULL)
		fault = call(&removal, server, &result);
	if (fault && (raise || hits_every_row(fault)))
	{
		if (argument)
			account_hint_argument(fault, argument);
		fault_about(fault, PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0)),
					call == call_api ? server : NULL, GetUserId());
		fault_raise(fault);
	}
	if (fault)
		result = fault_jsonb(fault);
	else if (!raise)
		result = without_status(result);

	MemoryContextSwitchTo(caller);
	result = memcpy(palloc(VARSIZE(result)), result, VARSIZE(result));
	MemoryContextDelete(context);
	return result;
#undef ARGUMENT
}

/* For dt_payload(): lacks the server's waba_number, which only a request gets. */
static Fault *
build_payload(const Removal *removal, const char *server pg_attribute_unused(), Jsonb **result)
{
	*result = payload_jsonb(removal, NULL);
	return NULL;
}

/*
 * Sends a removal as the current role.  Tries again while that may help and the
 * server's option "timeout" lasts; waiting for "rate_limit" does not count.
 */
static Fault *
call_api(const Removal *removal, const char *server, Jsonb **result)
{
	Account		account;
	Fault	   *fault;
	Fault	   *previous = NULL;
	int64		deadline;

	fault = extension_version_fault();
	if (fault == NULL)
		fault = account_get(server, GetUserId(), &account);
	if (fault)
		return fault;

	deadline = clock_now() + account.timeout * INT64CONST(1000);
	for (int tries = 1;; tries++)
	{
		Answer		answer;
		int64		pause;
		int64		waited = 0;
		int64		claimed_at;
		bool		is_paused;

		/* Another session may get a 429 while this one waits for its turn. */
		do
		{
			fault = wait_for_pause(&account, server, deadline + waited);
			if (fault)
				return fault;
			waited += pace_wait(account.serverid, account.rate_limit);
			claimed_at = clock_now();
			is_paused = pace_paused(account.serverid) > 0;
			if (is_paused)
				pace_return(account.serverid, account.rate_limit, claimed_at);
		} while (is_paused);

		/* The definition may have changed during a wait. */
		if (waited > 0 || tries > 1)
			fault = account_get(server, GetUserId(), &account);
		if (fault)
		{
			pace_return(account.serverid, account.rate_limit, claimed_at);
			return fault;
		}
		deadline += waited;
		send_once(removal, &account, claimed_at, deadline, &answer, &pause);
		if (answer.fault == NULL)
		{
			*result = answer.body;
			return NULL;
		}
		if (answer.status == 401 || answer.status == 403)
			answer.fault->hint = account_key_command(server, GetUserId());

		/* If too little time was left, the fault of the try before says more. */
		if (previous && answer.again && answer.fault->status == 0 &&
			clock_now() + TIMER_SLACK >= deadline)
			return previous;
		previous = answer.fault;

		if (pause == 0)
			pause = pause_before_retry(tries);
		if (answer.fault->status == 429)
			pace_pause(account.serverid, pause);
		if (!answer.again || clock_now() + pause >= deadline)
			return answer.fault;
		clock_sleep(pause, WAIT_RETRY);
	}
}

/*
 * Sends one request and reads its answer, by the deadline.  "retry_after" is in
 * microseconds, 0 when the server did not ask for a pause.
 */
static void
send_once(const Removal *removal, const Account *account, int64 claimed_at,
		  int64 deadline, Answer *answer, int64 *retry_after)
{
	int			budget = (int) ((deadline - clock_now()) / 1000);
	size_t		length;
	char	   *body = payload_utf8(payload_jsonb(removal, account->waba_number), &length);
	HttpTarget	target = endpoint_of(account);
	HttpTransfer *transfer = http_start(&target, body, length, budget);
	const HttpReply *reply;
	bool		is_sent = false;

	counters_add_sent(account->serverid, true);
	while ((reply = http_reply(transfer)) == NULL)
	{
		CHECK_FOR_INTERRUPTS();
		http_turn(budget, WAIT_ANSWER);
		if (!is_sent && http_sent_at(transfer) != 0)
		{
			pace_note_sent(account->serverid, account->rate_limit, claimed_at, http_sent_at(transfer));
			is_sent = true;
		}
	}
	counters_add_answer(account->serverid, reply->status);
	answer_read(reply, answer);
	*retry_after = Min(reply->retry_after, SECS_PER_DAY) * USECS_PER_SEC;
	http_release(transfer);
}

/*
 * Waits until the server's pause after a 429 is over.  Returns a fault at once if
 * the pause outlasts the call.
 */
static Fault *
wait_for_pause(const Account *account, const char *server, int64 deadline)
{
	int64		pause = pace_paused(account->serverid);

	if (clock_now() + pause >= deadline && pause > 0)
	{
		Fault	   *fault = fault_make(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
									   "server \"%s\" is paused for another " INT64_FORMAT " s, since DoubleTick answered with HTTP status 429",
									   server, (pause + USECS_PER_SEC - 1) / USECS_PER_SEC);

		/* The 429 is the API's, although another request got it. */
		fault->status = 429;
		return fault_hint(fault, "Lower the server's option \"rate_limit\".");
	}
	clock_sleep(pause, WAIT_PAUSE);
	return NULL;
}

static int64
pause_before_retry(int tries)
{
	int64		longest = Min(FIRST_PAUSE << Min(tries - 1, 16), LAST_PAUSE);

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

/*-------------------------------------------------------------------------
 *
 * call/call.c
 *		One call of dt_remove_tags_custom_fields() or its dt_try_ sibling, in
 *		steps: many of them may be open at once.
 *
 * The open calls of the process are in one list, in the order in which they were made.
 * Whoever waits for one of them drives all, so that no call waits for ever for what
 * only another one can give up: a slot, or a customer.
 *
 * A call may send while
 *
 * - no call that was made before it is open for the same phone, so that requests of
 *	 one customer leave in order, one after the other;
 * - fewer requests are in flight than "doubletick.max_in_flight" allows, and fewer of its
 *	 server than the server's option "max_connections" allows;
 * - the server is not paused, and it is the call's turn of the pace.
 *
 * Calls get their turns in the order in which they were made.
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
#include "base/clock.h"
#include "base/extension.h"
#include "base/phone.h"
#include "call/call.h"
#include "common/pg_prng.h"
#include "lib/ilist.h"
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

/* How long a turn waits at most, in µs; then each call is looked at again. */
#define LONGEST_TURN USECS_PER_SEC

/* An answer that is longer than this is read in memory of its own, in bytes. */
#define LONG_ANSWER (16 * 1024)

#define NOT_COUNTED PG_INT64_MIN

/* What calls of one server share.  Each server that the process has called has one. */
typedef struct CallServer
{
	dlist_node	node;			/* in "servers" */
	Oid			serverid;
	int			nin_flight;		/* calls that have a request in flight */
	uint64		paced_in;		/* the last turn in which a call of it had to
								 * wait for its turn of the pace */
} CallServer;

/* Times are by transfer_clock_now(), in microseconds. */
struct Call
{
	dlist_node	node;			/* in "open_calls" while it is open */
	bool		is_open;		/* has it no result yet? */
	MemoryContext context;
	MemoryContextCallback callback;
	bool		raise;			/* is a fault raised, or returned? */

	Removal		removal;
	uint64		phone;			/* phone_value() of the removal's */
	const char *server;
	bool		is_argument;	/* does an argument name it? */
	Oid			role;

	Account		account;
	CallServer *of_server;		/* NULL: "account" has not been looked up */
	bool		has_waited;		/* since then? */

	/*
	 * What was left of the server's option "timeout" when time began to
	 * count. To wait for a turn of the pace, or for other calls, does not
	 * count.
	 */
	int64		budget;
	int64		counted_from;	/* NOT_COUNTED while it does not count */

	/* The try that is under way, and those before. */
	HttpTransfer *transfer;		/* NULL: nothing is in flight */
	bool		is_sent;		/* does the pace know when it was sent? */
	int64		claimed_at;		/* by clock_now() */
	int			ntries;
	int64		next_try;
	Fault	   *last_fault;

	/* Once it is over. */
	Jsonb	   *body;
	Fault	   *fault;
};

/* What the process waits for between two turns. */
typedef struct Wait
{
	int64		longest;		/* µs */
	WaitReason	reason;
} Wait;

static dlist_head open_calls = DLIST_STATIC_INIT(open_calls);

/* How many of them have a request in flight. */
static int	nin_flight = 0;

static dlist_head servers = DLIST_STATIC_INIT(servers);

/* How often calls_turn() was called. */
static uint64 nturns = 0;

static void forget_call(void *arg);
static void end_call(Call *call, Fault *fault);
static void step_call(Call *call, Wait *wait);
static bool wait_at_most(Wait *wait, int64 microseconds, WaitReason reason);
static bool is_phone_busy(const Call *call);
static bool may_leave(Call *call, Wait *wait);
static bool look_up_account(Call *call);
static CallServer *find_or_make_server(Oid serverid);
static void count_in_flight(Call *call, int change);
static void count_time(Call *call, bool does_count);
static int64 time_left(const Call *call);
static Fault *pause_fault(const Call *call, int64 pause);
static void send_request(Call *call);
static void read_answer(Call *call);
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
		end_call(call, fault);
	else
	{
		call->phone = phone_value(call->removal.phone);
		call->is_open = true;
		dlist_push_tail(&open_calls, &call->node);
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
		count_in_flight(call, -1);	/* its transfer ends, too */
}

/* Ends a call with a fault; NULL: with the body of the answer. */
static void
end_call(Call *call, Fault *fault)
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
 * How many requests all open calls of the process have in flight.
 */
int
calls_in_flight(void)
{
	return nin_flight;
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
 * Drives all open calls of the process: sends what may be sent, reads what has come,
 * and waits a little if no call is over then.  Serves interrupts.
 */
void
calls_turn(void)
{
	Wait		wait = {LONGEST_TURN, WAIT_ANSWER};
	dlist_mutable_iter iter;

	CHECK_FOR_INTERRUPTS();
	nturns++;
	dlist_foreach_modify(iter, &open_calls)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		step_call(call, &wait);
		if (!call->is_open)
			wait.longest = 0;
	}
	if (wait.longest <= 0)
		return;
	if (nin_flight > 0)
		http_turn((int) ((wait.longest + 999) / 1000), WAIT_ANSWER);
	else
	{
		int64		start = clock_now();

		clock_sleep_or_latch(wait.longest, wait.reason);
		transfer_clock_advance(clock_now() - start);
	}
}

/*
 * Does what can be done for a call now.  Shortens "wait" if it is the call's turn
 * before that.
 */
static void
step_call(Call *call, Wait *wait)
{
	MemoryContext caller = MemoryContextSwitchTo(call->context);

	if (call->transfer)
		read_answer(call);
	if (call->is_open && call->transfer == NULL)
	{
		if (may_leave(call, wait))
			send_request(call);
		else
			call->has_waited = true;
	}
	MemoryContextSwitchTo(caller);
}

/*
 * May a call send now?  If not, it waits, or it has ended with a fault.
 */
static bool
may_leave(Call *call, Wait *wait)
{
	int64		left = call->next_try - transfer_clock_now();
	Pace		pace;

	if (left > 0)
		return wait_at_most(wait, left, WAIT_RETRY);

	if (is_phone_busy(call) || (call->of_server == NULL && !look_up_account(call)))
		return false;

	pace = pace_of(&call->account);
	if (call->of_server->paced_in == nturns ||
		call->of_server->nin_flight >= call->account.max_connections ||
		nin_flight >= Min(setting_max_in_flight, http_capacity()))
	{
		count_time(call, false);
		return false;
	}

	left = pace_paused(&pace);
	if (left > 0)
	{
		count_time(call, true);
		if (left < time_left(call))
			return wait_at_most(wait, left, WAIT_PAUSE);
		end_call(call, pause_fault(call, left));
		return false;
	}

	left = pace_claim(&pace);
	if (left > 0)
	{
		call->of_server->paced_in = nturns;
		count_time(call, false);
		return wait_at_most(wait, left, WAIT_PACE);
	}

	/* The definition may have changed during a wait. */
	call->claimed_at = clock_now();
	if (call->has_waited && !look_up_account(call))
	{
		pace_return(&pace, call->claimed_at);
		return false;
	}
	count_time(call, true);
	return true;
}

/* For may_leave(), which returns this: the call must wait for so long. */
static bool
wait_at_most(Wait *wait, int64 microseconds, WaitReason reason)
{
	if (microseconds < wait->longest)
	{
		wait->longest = microseconds;
		wait->reason = reason;
	}
	return false;
}

/* Is a call open that was made earlier for the same phone? */
static bool
is_phone_busy(const Call *call)
{
	dlist_iter	iter;

	dlist_foreach(iter, &open_calls)
	{
		const Call *other = dlist_container(Call, node, iter.cur);

		if (other == call)
			return false;
		if (other->phone == call->phone)
			return true;
	}
	return false;
}

/* Ends the call if its request cannot be sent. */
static bool
look_up_account(Call *call)
{
	Fault	   *fault = account_get(call->server, call->role, &call->account);

	if (fault)
	{
		end_call(call, fault);
		return false;
	}
	if (call->of_server == NULL)
		call->budget = call->account.timeout * INT64CONST(1000);
	call->of_server = find_or_make_server(call->account.serverid);
	call->has_waited = false;
	return true;
}

/* There are few, and mostly it is the one that was found last. */
static CallServer *
find_or_make_server(Oid serverid)
{
	dlist_iter	iter;
	CallServer *server;

	dlist_foreach(iter, &servers)
	{
		server = dlist_container(CallServer, node, iter.cur);
		if (server->serverid == serverid)
		{
			dlist_move_head(&servers, &server->node);
			return server;
		}
	}
	server = MemoryContextAllocZero(TopMemoryContext, sizeof(CallServer));
	server->serverid = serverid;
	dlist_push_head(&servers, &server->node);
	return server;
}

static void
count_in_flight(Call *call, int change)
{
	nin_flight += change;
	call->of_server->nin_flight += change;
}

/* Has the time from now on count for the call's timeout, or not. */
static void
count_time(Call *call, bool does_count)
{
	if (does_count == (call->counted_from != NOT_COUNTED))
		return;
	call->budget = time_left(call);
	call->counted_from = does_count ? transfer_clock_now() : NOT_COUNTED;
}

static int64
time_left(const Call *call)
{
	if (call->counted_from == NOT_COUNTED)
		return call->budget;
	return call->budget - (transfer_clock_now() - call->counted_from);
}

/* The server's pause outlasts the call.  The 429 is the API's, although another request got it. */
static Fault *
pause_fault(const Call *call, int64 pause)
{
	Fault	   *fault = fault_make(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
								   "server \"%s\" is paused for another " INT64_FORMAT " s, since DoubleTick answered with HTTP status 429",
								   call->server, (pause + USECS_PER_SEC - 1) / USECS_PER_SEC);

	fault->status = 429;
	return fault_hint(fault, "Lower the server's option \"rate_limit\".");
}

static void
send_request(Call *call)
{
	size_t		length;
	char	   *body = payload_utf8(payload_jsonb(&call->removal, call->account.waba_number), &length);
	HttpTarget	target = endpoint_of(&call->account);

	call->transfer = http_start(&target, body, length, (int) ((time_left(call) + 999) / 1000));
	count_in_flight(call, 1);
	call->is_sent = false;
	call->ntries++;
	counters_add_sent(call->account.serverid, true);
}

/* Reads the answer if it is there. */
static void
read_answer(Call *call)
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

	counters_add_answer(account->serverid, reply->status);
	read_reply(reply, &answer);
	retry_after = Min(reply->retry_after, SECS_PER_DAY) * USECS_PER_SEC;
	http_release(call->transfer);
	call->transfer = NULL;
	count_in_flight(call, -1);

	call->body = answer.body;
	if (answer.fault == NULL)
		end_call(call, NULL);
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

	if (call->last_fault && answer->again && answer->status == 0 && time_left(call) <= 0)
		end_call(call, call->last_fault);
	else if (!answer->again || pause >= time_left(call))
		end_call(call, answer->fault);
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

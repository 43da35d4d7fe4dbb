/*-------------------------------------------------------------------------
 *
 * call/open_calls.c
 *		The open calls of the process, and which of them may send.
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

#include "api/capacity.h"
#include "api/pace.h"
#include "api/transfer_clock.h"
#include "base/clock.h"
#include "call/call_internal.h"
#include "call/open_calls.h"
#include "miscadmin.h"
#include "settings.h"
#include "utils/memutils.h"

/* How long a turn waits at most, in µs; then each call is looked at again. */
#define LONGEST_TURN USECS_PER_SEC

/* What calls of one server share.  Each server that the process has called has one. */
struct CallServer
{
	dlist_node	node;			/* in "servers" */
	Oid			serverid;
	int			nin_flight;		/* calls that have a request in flight */
	uint64		paced_in;		/* the last turn in which a call of it had to
								 * wait for its turn of the pace */
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

static void step_call(Call *call, Wait *wait);
static bool wait_at_most(Wait *wait, int64 microseconds, WaitReason reason);
static bool is_phone_busy(const Call *call);
static bool may_leave(Call *call, Wait *wait);
static bool look_up_account(Call *call);
static CallServer *find_or_make_server(Oid serverid);
static void count_time(Call *call, bool does_count);
static Fault *pause_fault(const Call *call, int64 pause);

/*
 * Called when a call has been made.
 */
void
open_calls_add(Call *call)
{
	call->is_open = true;
	dlist_push_tail(&open_calls, &call->node);
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
		call_read_answer(call);
	if (call->is_open && call->transfer == NULL)
	{
		if (may_leave(call, wait))
			call_send(call);
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
		nin_flight >= Min(setting_max_in_flight, capacity_now()))
	{
		count_time(call, false);
		return false;
	}

	left = pace_paused(&pace);
	if (left > 0)
	{
		count_time(call, true);
		if (left < call_time_left(call))
			return wait_at_most(wait, left, WAIT_PAUSE);
		call_end(call, pause_fault(call, left));
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
		call_end(call, fault);
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

/*
 * Called when a request of the call has been started (1) or has ended (-1).
 */
void
call_count_in_flight(Call *call, int change)
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
	call->budget = call_time_left(call);
	call->counted_from = does_count ? transfer_clock_now() : NOT_COUNTED;
}

/*
 * What is left of the call's timeout, in µs.
 */
int64
call_time_left(const Call *call)
{
	if (call->counted_from == NOT_COUNTED)
		return call->budget;
	return call->budget - (transfer_clock_now() - call->counted_from);
}

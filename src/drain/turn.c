/*-------------------------------------------------------------------------
 *
 * drain/turn.c
 *		One transaction of a drainer: settles answers, and makes new requests.
 *
 * What it takes from memory is noted in the Turn, so that it can be given back if the
 * transaction fails (after_error.c).  When it has committed, nothing may fail until
 * the drainer's memory is up to date.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "api/allocation.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "drain/drain_internal.h"
#include "drain/hold.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* Rows that one search finds at most; they count against TURN_MAX_ROWS. */
#define ROWS_PER_SEARCH 256

/* Time between two searches for new rows while requests are in flight, in µs. */
#define SEARCH_INTERVAL (20 * INT64CONST(1000))

StaticAssertDecl(sizeof(Turn) - offsetof(Turn, taken) - sizeof(((Turn *) NULL)->taken) < MAXIMUM_ALIGNOF,
				 "open_turn() sets nothing beyond \"taken\"");

static Turn *open_turn(Drain *drain);
static void finish_turn(Drain *drain, Turn *turn);
static void settle_answers(Turn *turn);
static void make_requests(Drain *drain, Turn *turn);
static bool is_search_due(Drain *drain);
static int	search_new_rows(Drain *drain, Turn *turn);
static int	compare_xacts(const void *a, const void *b);
static void remove_empty_lanes(Schedule *schedule);

/*
 * Settles answers and makes new requests in one transaction, and then sends these.
 * False when the extension was dropped.
 */
bool
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
			else if (drain->holds_are_lost)
				hold_write_all(turn->schedule);
			unstick_requests(drain);
			settle_answers(turn);
			if (!drain->finishing)
				make_requests(drain, turn);
			tally_prepare_warnings(drain, turn);
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
		if (!mend_failed_turn(drain, turn))
			PG_RE_THROW();
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

/* Makes turn_context current: all that the transaction allocates lives there. */
static Turn *
open_turn(Drain *drain)
{
	Turn	   *turn;
	Store		hold;

	MemoryContextReset(drain->turn_context);
	allocation_give_back();
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
	/* The rows of that time are looked at now. */
	if (turn->clock >= turn->requests->retry_at)
		turn->requests->retry_at = 0;
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

/* Brings the drainer's memory up to date when the transaction has committed. */
static void
finish_turn(Drain *drain, Turn *turn)
{
	Requests   *requests = &drain->requests;

	drain->has_begun = true;
	drain->holds_are_lost = false;
	tally_count_settled(drain, turn);
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

/*-------------------------------------------------------------------------
 *
 * drain.c
 *		The loop: what is due, to HTTP, to what is settled.
 *
 * One turn waits for sockets, and then, in one short transaction, settles what
 * has been answered and reads what can go next; that leaves when the transaction
 * has committed.  So a crash finds no more requests unsettled than were allowed
 * to be in flight, and while requests are out there is no snapshot, no xid and
 * no xmin here.
 *
 * A customer's rows are read when a slot and a turn of the rate are free, and
 * not before: until then a cancel or a keep can reach them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "drain.h"
#include "fault_point.h"
#include "hold.h"
#include "miscadmin.h"
#include "rate.h"
#include "settings.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* Rows found in one look, and rows pruned in one transaction. */
#define DISCOVER_BATCH 256
#define PRUNE_BATCH 1000

/* When all rows that were found have been looked at: until the next look, in µs. */
#define LOOK_INTERVAL (20 * INT64CONST(1000))

/* The same for one who is woken again and again while requests are out. */
#define WAKE_INTERVAL (2 * INT64CONST(1000))

/* How long a customer is left alone whose rows somebody takes back, in µs. */
#define WITHHELD_INTERVAL (100 * INT64CONST(1000))

/*
 * Answers are settled when they are one of so many in flight, or when they do
 * not come closer than so, in µs (test/bench/queue).
 */
#define SETTLE_PART 2
#define DENSE INT64CONST(300)

/* Memory kept for a transaction, and for each flight, in bytes. */
#define TURN_MEMORY (128 * 1024)
#define FLIGHT_MEMORY (16 * 1024)

/* How long a lane is left alone whose definitions lack something, in µs. */
#define HELD_INTERVAL USECS_PER_SEC

/* Longest wait in one turn, in µs. */
#define LONGEST_WAIT (100 * INT64CONST(1000))

/* Rows of a lane looked at in one transaction. */
#define LOOKS_PER_FILL 1000

struct Drain
{
	MemoryContext context;		/* where all of it lives */
	MemoryContext turn_context; /* reset with each transaction */
	const DrainTransactions *transactions;

	List	   *spares;			/* contexts for flights to come */
	Oid			waiting_oid;	/* see store_lock() */
	List	   *lanes;
	Lane	   *last_lane;		/* found last, for the next row is likely its */
	int			turn;			/* which lane goes first: each in its turn */
	Horizon		horizon;
	bool		finishing;		/* is nothing more to be sent? */
	bool		at_end;			/* has the last look found all there was? */

	dlist_head	out;			/* flights whose request is out */
	dlist_head	answered;		/* flights to settle */
	dlist_head	settled;		/* flights to land after commit */
	dlist_head	ready;			/* flights to launch after commit */
	int			nout;
	int			nanswered;

	/* Times are rate_clock()'s. */
	int64		answered_at;	/* when the last answer came */
	bool		is_dense;		/* did it come close after the one before? */
	int64		look_at;		/* when to look for new rows again */
	int64		looked_at;		/* when that was last done */
	int64		fill_at;		/* when slots could be filled, even without an
								 * answer; PG_INT64_MAX: not before one */
	bool		waits_for_turn; /* does a lane wait for its rate? */

	Tally		tally;
	TimestampTz prune_from;		/* settled_at of the last row that was pruned */
};

/* What a fill works with. */
typedef struct Fill
{
	Drain	   *drain;
	TimestampTz now;
	Store		waiting;
	Store		settled;
	QueueRow	put_off;		/* the last customer found to be due later, */
	TimestampTz put_off_until;	/* and when; DT_NOBEGIN: none */
	bool		hungry;			/* could more have been sent? */
	int			nfound;			/* rows found by the last look */
} Fill;

static void begin(Drain *drain);
static void commit(Drain *drain);
static Lane *find_lane(Drain *drain, const char *server, Oid role);
static Lane *load_hold(void *arg, const char *server, Oid role);
static void discovered(void *arg, const QueueRow *place);
static void collect_answers(Drain *drain);
static bool is_settling_worth_it(const Drain *drain);
static bool settle_and_fill(Drain *drain);
static void look_and_fill(Fill *fill);
static void settle_answered(Fill *fill);
static void fill_slots(Fill *fill);
static void fill_lane(Fill *fill, Lane *lane);
static void fill_room(Fill *fill, Lane *lane, const Account *account);
static void fail_lane(Fill *fill, Lane *lane);
static void expire_lane(Fill *fill, Lane *lane, double retry_for);
static int	count_flights(const Drain *drain, const Lane *lane);
static bool send_customer(Fill *fill, Lane *lane, Waiting place, const Account *account,
						  const char *definition);
static bool is_put_off(const Fill *fill, const QueueRow *row);
static MemoryContext take_context(Drain *drain);
static void give_context(Drain *drain, MemoryContext context);
static void put_off_unsent(Fill *fill, Lane *lane, Waiting place, const Due *due);
static Flight *find_flight(Drain *drain, const QueueRow *row);
static void note_time(Drain *drain, int64 microseconds);
static bool may_look(Drain *drain);
static void look(Fill *fill);
static void land_settled(Drain *drain);
static void launch_ready(Drain *drain);
static void release_flights(dlist_head *flights);

/*
 * Makes this process the drainer of its database.  NULL when another one is.
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
	dlist_init(&drain->out);
	dlist_init(&drain->answered);
	dlist_init(&drain->settled);
	dlist_init(&drain->ready);
	drain->horizon.context = context;
	drain->prune_from = DT_NOBEGIN;

	/* Last, so that nothing can fail behind it. */
	if (claim_drain())
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
	int64		left = drain->fill_at - rate_clock();

	left = Max(left, 0);		/* a macro, and a clock */
	if (drain->nout > 0)
		http_turn(drain->nanswered > 0 ? 1 : (int) (Min(left, LONGEST_WAIT) / 1000));
	else if (drain->waits_for_turn)
		rate_nap(Min(left, LONGEST_WAIT));
	collect_answers(drain);

	if (drain->nout == 0 || is_settling_worth_it(drain) ||
		(drain->nanswered == 0 && rate_clock() >= drain->fill_at))
	{
		if (!settle_and_fill(drain))
			return DRAIN_GONE;
	}
	return drain->nout > 0 || drain->waits_for_turn || !drain->at_end ? DRAIN_BUSY : DRAIN_IDLE;
}

/*
 * The same, but sends nothing more.
 */
DrainState
drain_finish(Drain *drain)
{
	drain->finishing = true;
	drain->fill_at = PG_INT64_MAX;
	drain->waits_for_turn = false;
	drain->at_end = true;
	return drain_turn(drain);
}

static void
collect_answers(Drain *drain)
{
	int64		now = rate_clock();
	int			nbefore = drain->nanswered;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &drain->out)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (http_reply(flight->transfer) == NULL)
			continue;
		dlist_delete(&flight->node);
		dlist_push_tail(&drain->answered, &flight->node);
		drain->nout--;
		drain->nanswered++;
	}
	drain->is_dense = now - drain->answered_at < DENSE;
	if (drain->nanswered > nbefore)
		drain->answered_at = now;
}

/*
 * A transaction costs much the same for one answer as for many, but while
 * answers wait their slots are empty.  So: when a good part of the slots is, or
 * when the next answer is not likely to come at once.
 */
static bool
is_settling_worth_it(const Drain *drain)
{
	return drain->nanswered > 0 &&
		(drain->nanswered * SETTLE_PART >= drain->nout + drain->nanswered || !drain->is_dense);
}

/*
 * One transaction, and then what it has made ready leaves.
 */
static bool
settle_and_fill(Drain *drain)
{
	MemoryContext caller;
	Fill		fill = {.drain = drain, .put_off_until = DT_NOBEGIN};

	FAULT_POINT("before settling");
	begin(drain);
	if (!store_lock(&drain->waiting_oid))
	{
		commit(drain);
		return false;
	}
	caller = MemoryContextSwitchTo(drain->turn_context);
	store_open(&fill.waiting, STORE_WAITING);
	store_open(&fill.settled, STORE_SETTLED);
	fill.now = GetCurrentTimestamp();
	if (drain->lanes == NIL)
		hold_load(load_hold, drain);

	settle_answered(&fill);
	if (!drain->finishing)
		look_and_fill(&fill);
	store_close(&fill.settled);
	store_close(&fill.waiting);
	FAULT_POINT("after reading");
	MemoryContextSwitchTo(caller);
	commit(drain);
	land_settled(drain);
	launch_ready(drain);
	FAULT_POINT("after sending");
	return true;
}

static void
look_and_fill(Fill *fill)
{
	Drain	   *drain = fill->drain;

	drain->fill_at = PG_INT64_MAX;
	drain->waits_for_turn = false;
	fill_slots(fill);
	while (may_look(drain))
	{
		look(fill);
		if (fill->nfound == 0)
			break;
		fill_slots(fill);
		if (!fill->hungry)
			break;
	}
	if (!drain->at_end)
		note_time(drain, 0);
	else if (fill->hungry && (drain->nout > 0 || !dlist_is_empty(&drain->ready)))
		note_time(drain, drain->look_at - rate_clock());
}

/* Rows are read as they are now, but parts out of line need a snapshot. */
static void
begin(Drain *drain)
{
	drain->transactions->begin();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/* What is settled must be so even if the machine fails, whatever the session's settings. */
static void
commit(Drain *drain)
{
	if (!dlist_is_empty(&drain->settled))
		ForceSyncCommit();
	PopActiveSnapshot();
	drain->transactions->commit();
	MemoryContextReset(drain->turn_context);
	if (!dlist_is_empty(&drain->settled))
		FAULT_POINT("after settling");
}

static void
settle_answered(Fill *fill)
{
	Drain	   *drain = fill->drain;

	while (!dlist_is_empty(&drain->answered))
	{
		Flight	   *flight = dlist_container(Flight, node, dlist_pop_head_node(&drain->answered));

		dlist_push_tail(&drain->settled, &flight->node);
		drain->nanswered--;
		flight_settle(flight, &fill->waiting, &fill->settled, &drain->tally);
		flight->lane->nflights--;
		drain->tally.sent++;
	}
	/* What follows may touch the same rows. */
	CommandCounterIncrement();
}

/* Each lane in its turn is the first to be served. */
static void
fill_slots(Fill *fill)
{
	Drain	   *drain = fill->drain;
	int			nlanes = list_length(drain->lanes);

	fill->hungry = false;
	for (int i = 0; i < nlanes; i++)
		fill_lane(fill, list_nth(drain->lanes, (drain->turn + i) % nlanes));
	drain->turn = nlanes > 0 ? (drain->turn + 1) % nlanes : 0;
}

/*
 * Reads as many of a lane's customers as may be sent now, and makes their
 * requests ready.
 */
static void
fill_lane(Fill *fill, Lane *lane)
{
	Drain	   *drain = fill->drain;
	TimestampTz next_due = lane_next_due(lane);
	Account		account;
	Fault	   *fault;

	if (lane->nrows == 0 && next_due > fill->now)
	{
		fill->hungry = fill->hungry || !lane->held;
		if (next_due != DT_NOEND)
			note_time(drain, next_due - fill->now);
		else if (drain->at_end && lane->nflights == 0)
			hold_drop(lane);
		return;
	}
	if (lane->held && fill->now < lane->look_at)
	{
		note_time(drain, lane->probe_at - fill->now);
		return;
	}
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(lane->role)))
	{
		fail_lane(fill, lane);
		return;
	}

	fault = account_get(lane->server, lane->role, &account);
	if (fault)
	{
		expire_lane(fill, lane, account.retry_for);
		lane->look_at = fill->now + HELD_INTERVAL;
	}
	if (!hold_check(lane, fault, fill->now))
	{
		if (lane->nflights == 0)
			note_time(drain, lane->probe_at - fill->now);
		return;
	}
	if (rate_paused(account.serverid) > 0)
	{
		note_time(drain, rate_paused(account.serverid));
		return;
	}
	fill_room(fill, lane, &account);
}

/* As many as there are slots, and turns of the rate. */
static void
fill_room(Fill *fill, Lane *lane, const Account *account)
{
	Drain	   *drain = fill->drain;
	int			room = lane->held ? 1 : account->max_connections - count_flights(drain, lane);
	char	   *definition = account_definition(lane->server, lane->role);
	Waiting		row;

	room = Min(room, http_capacity() - count_flights(drain, NULL));
	for (int nlooks = 0; room > 0; nlooks++)
	{
		int64		left = rate_left(account->serverid, account->rate_limit);

		CHECK_FOR_INTERRUPTS();
		if (!lane_pop(lane, fill->now, &row))
		{
			fill->hungry = fill->hungry || !lane->held;
			if (lane_next_due(lane) != DT_NOEND)
				note_time(drain, lane_next_due(lane) - fill->now);
			return;
		}
		if (left > 0 || nlooks == LOOKS_PER_FILL)
		{
			lane_push_front(lane, row);
			drain->waits_for_turn = true;
			note_time(drain, left);
			return;
		}
		if (send_customer(fill, lane, row, account, definition))
		{
			rate_take(account->serverid, account->rate_limit);
			room--;
			if (lane->held)
				hold_probe(lane);
		}
	}
}

/* A role that was dropped does not come back. */
static void
fail_lane(Fill *fill, Lane *lane)
{
	Drain	   *drain = fill->drain;
	Waiting		place;

	for (int i = 0; lane_pop(lane, DT_NOEND, &place); i++)
	{
		QueueRow	row;
		Flight	   *flight;

		CHECK_FOR_INTERRUPTS();
		if (!store_find_waiting(&fill->waiting, place.id, &row))
			continue;
		flight = find_flight(drain, &row);
		if (flight)
			flight_note_again(flight, place);
		else if (i == LOOKS_PER_FILL || !claim_pick(row.role, row.customer))
		{
			/* The others can wait as well: nobody waits for them. */
			lane_push_later(lane, place, fill->now + WITHHELD_INTERVAL);
			drain->waits_for_turn = drain->waits_for_turn || i == LOOKS_PER_FILL;
			note_time(drain, i == LOOKS_PER_FILL ? 0 : WITHHELD_INTERVAL);
			return;
		}
		else if (row.keep)
			(void) store_delete(&fill->waiting, &row.tid, true);
		else
			(void) settle_failed(&row, "role does not exist any more", &fill->waiting,
								 &fill->settled, &drain->tally);
	}
	hold_lift(lane);
}


/* Rows age while they are held, too; the oldest come first. */
static void
expire_lane(Fill *fill, Lane *lane, double retry_for)
{
	Drain	   *drain = fill->drain;
	Waiting		place;

	for (int i = 0; i < LOOKS_PER_FILL && lane_pop(lane, fill->now, &place); i++)
	{
		QueueRow	row;
		Flight	   *flight;

		CHECK_FOR_INTERRUPTS();
		if (!store_find_waiting(&fill->waiting, place.id, &row))
			continue;
		flight = find_flight(drain, &row);
		if (flight)
			flight_note_again(flight, place);
		else if ((double) (fill->now - row.enqueued_at) / 1000 < retry_for)
		{
			lane_push_front(lane, place);
			return;
		}
		else if (!claim_pick(row.role, row.customer))
			lane_push_later(lane, place, fill->now + WITHHELD_INTERVAL);
		else if (row.keep)
			(void) store_delete(&fill->waiting, &row.tid, true);
		else
			settle_expired(&row, &fill->waiting, &fill->settled, &drain->tally);
	}
}


/* Of the lane's server, over all its lanes; of all servers without a lane. */
static int
count_flights(const Drain *drain, const Lane *lane)
{
	int			nflights = 0;
	ListCell   *cell;

	foreach(cell, drain->lanes)
	{
		const Lane *other = lfirst(cell);

		if (lane == NULL || strcmp(other->server, lane->server) == 0)
			nflights += other->nflights;
	}
	return nflights;
}

/*
 * Makes the request ready that a row's customer is due for.  False when there is
 * none now.
 */
static bool
send_customer(Fill *fill, Lane *lane, Waiting place, const Account *account,
			  const char *definition)
{
	Drain	   *drain = fill->drain;
	MemoryContext context;
	QueueRow	row;
	Flight	   *flight;
	Due			due;

	/* It may have gone with another row of its customer. */
	if (!store_find_waiting(&fill->waiting, place.id, &row))
		return false;
	if (row.keep && row.ord != row.id)
	{
		/* dt_retry()'s news has been heard. */
		(void) store_delete(&fill->waiting, &row.tid, false);
		return false;
	}
	flight = find_flight(drain, &row);
	if (flight)
	{
		flight_note_again(flight, place);
		return false;
	}
	if (is_put_off(fill, &row))
	{
		if (!row.keep)
			lane_push_later(lane, place, fill->put_off_until);
		return false;
	}
	if (!claim_pick(row.role, row.customer))
	{
		lane_push_later(lane, place, fill->now + WITHHELD_INTERVAL);
		return false;
	}

	context = take_context(drain);
	MemoryContextSwitchTo(context);
	due_read(&fill->waiting, &row, fill->now, account->retry_for, &due);
	settle_without_request(&due, &fill->waiting, &fill->settled, &drain->tally);
	if (due.parts != NIL)
	{
		flight = flight_make(context, lane, &due, account, definition);
		claim_fly(flight->tag);
		dlist_push_tail(&drain->ready, &flight->node);
		lane->nflights++;
		if (!row.keep)
			flight_note_again(flight, place);
	}
	else if (due.later != NIL)
	{
		fill->put_off = row;
		fill->put_off_until = due.due_at;
	}
	put_off_unsent(fill, lane, place, &due);
	MemoryContextSwitchTo(drain->turn_context);
	if (due.parts == NIL)
		give_context(drain, context);
	return due.parts != NIL;
}

/*
 * Has the row's customer been found to be due later, in this transaction?  Its
 * door is held since, and a customer with many rows is read but once.
 */
static bool
is_put_off(const Fill *fill, const QueueRow *row)
{
	return fill->put_off_until != DT_NOBEGIN && fill->put_off.customer == row->customer &&
		store_is_same_customer(&fill->put_off, row);
}

/*
 * Memory for one flight.  Contexts are used again, and keep what most flights
 * need: else memory would go back to the system, and come from it, in each turn.
 */
static MemoryContext
take_context(Drain *drain)
{
	MemoryContext context;

	if (drain->spares == NIL)
		return AllocSetContextCreate(drain->context, "doubletick flight",
									 FLIGHT_MEMORY, FLIGHT_MEMORY, ALLOCSET_DEFAULT_MAXSIZE);
	context = llast(drain->spares);
	drain->spares = list_delete_last(drain->spares);
	return context;
}

static void
give_context(Drain *drain, MemoryContext context)
{
	MemoryContext caller = MemoryContextSwitchTo(drain->context);

	MemoryContextReset(context);
	drain->spares = lappend(drain->spares, context);
	MemoryContextSwitchTo(caller);
}

/*
 * Every row that waits is carried by a flight, or has a place in a lane.  That of
 * the row which was looked at is given back here, if need be.  A keep is no row
 * that waits.
 */
static void
put_off_unsent(Fill *fill, Lane *lane, Waiting place, const Due *due)
{
	bool		is_settled = due->parts == NIL && due->later == NIL &&
		list_length(due->expired) + list_length(due->kept) < PAYLOAD_MAX_NAMES;

	if (due->parts == NIL && !is_settled && !due->customer.keep)
	{
		if (due->later != NIL)
			lane_push_later(lane, place, due->due_at);
		else
		{
			CommandCounterIncrement();	/* else the same are read again */
			lane_push(lane, place);
		}
	}

	if (is_settled && due->has_keeps)
	{
		CommandCounterIncrement();	/* that was of this very command */
		flight_forget_keeps(lane, &due->customer, &fill->waiting);
	}
}

/* The request of the row's customer that is not settled yet; NULL: none. */
static Flight *
find_flight(Drain *drain, const QueueRow *row)
{
	dlist_head *lists[] = {&drain->out, &drain->answered, &drain->ready};

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, lists[i])
		{
			Flight	   *flight = dlist_container(Flight, node, iter.cur);

			if (flight_is_of(flight, row))
				return flight;
		}
	}
	return NULL;
}

/*
 * Is it time to look for new rows?  When nothing is out, always: the caller may
 * be about to leave.
 */
static bool
may_look(Drain *drain)
{
	return !drain->at_end || rate_clock() >= drain->look_at ||
		(drain->nout == 0 && drain->nanswered == 0 && dlist_is_empty(&drain->ready));
}

static void
look(Fill *fill)
{
	Drain	   *drain = fill->drain;

	fill->nfound = 0;
	drain->at_end = !due_discover(&fill->waiting, &drain->horizon, DISCOVER_BATCH, discovered, fill);
	drain->looked_at = rate_clock();
	drain->look_at = drain->looked_at + LOOK_INTERVAL;
}

static void
discovered(void *arg, const QueueRow *place)
{
	Fill	   *fill = arg;
	Lane	   *lane = find_lane(fill->drain, place->server, place->role);

	lane_push(lane, (Waiting) {place->id, place->customer});
	if (place->keep && place->ord != place->id)
		lane_push(lane, (Waiting) {place->ord, place->customer});	/* see dt_retry() */
	fill->nfound++;
}

static Lane *
load_hold(void *arg, const char *server, Oid role)
{
	return find_lane(arg, server, role);
}

/* The lane of a server and a role, a new one if need be. */
static Lane *
find_lane(Drain *drain, const char *server, Oid role)
{
	MemoryContext caller;
	ListCell   *cell;

	if (drain->last_lane && drain->last_lane->role == role &&
		strcmp(drain->last_lane->server, server) == 0)
		return drain->last_lane;

	foreach(cell, drain->lanes)
	{
		Lane	   *lane = lfirst(cell);

		if (lane->role == role && strcmp(lane->server, server) == 0)
			return drain->last_lane = lane;
	}
	caller = MemoryContextSwitchTo(drain->context);
	drain->last_lane = lane_make(drain->context, server, role);
	drain->lanes = lappend(drain->lanes, drain->last_lane);
	MemoryContextSwitchTo(caller);
	return drain->last_lane;
}

/* There may be something to fill in so many microseconds. */
static void
note_time(Drain *drain, int64 microseconds)
{
	drain->fill_at = Min(drain->fill_at, rate_clock() + Max(microseconds, 0));
}

static void
land_settled(Drain *drain)
{
	while (!dlist_is_empty(&drain->settled))
	{
		Flight	   *flight = dlist_container(Flight, node, dlist_pop_head_node(&drain->settled));

		claim_land(flight->tag);
		give_context(drain, flight->context);
	}
}

static void
launch_ready(Drain *drain)
{
	while (!dlist_is_empty(&drain->ready))
	{
		Flight	   *flight = dlist_container(Flight, node, dlist_pop_head_node(&drain->ready));

		dlist_push_tail(&drain->out, &flight->node);
		drain->nout++;
		flight_launch(flight);
	}
}

static void
release_flights(dlist_head *flights)
{
	dlist_iter	iter;

	dlist_foreach(iter, flights)
		claim_land(dlist_container(Flight, node, iter.cur)->tag);
}

/*
 * New rows may have come: look at once, or soon.
 */
void
drain_wake(Drain *drain)
{
	if (drain->nout == 0)
		drain->look_at = 0;
	else
		drain->look_at = Min(drain->look_at, drain->looked_at + WAKE_INTERVAL);
	drain->fill_at = Min(drain->fill_at, drain->look_at);
}

/*
 * How long there will be nothing to do, unless something new comes, at most
 * "longest" milliseconds.
 */
long
drain_idle_time(const Drain *drain, long longest)
{
	int64		left = drain->fill_at - rate_clock();

	return (long) Max(Min(left / 1000 + 1, longest), 0);
}

/*
 * When there will be something to do, even if nothing new comes; DT_NOEND:
 * never.
 */
TimestampTz
drain_next_due(const Drain *drain)
{
	if (drain->fill_at == PG_INT64_MAX)
		return DT_NOEND;
	return GetCurrentTimestamp() + Max(drain->fill_at - rate_clock(), 0);
}

/*
 * Requests that are out, or whose answer is not settled.
 */
int
drain_in_flight(const Drain *drain)
{
	return drain->nout + drain->nanswered;
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
 * Removals that wait, in flight or not.  When all have been found the drainer
 * need not look, but keeps, and what is settled already, may be among them.
 */
int64
drain_count_waiting(Drain *drain, bool exactly)
{
	Store		waiting;
	int64		nrows = drain_in_flight(drain);
	ListCell   *cell;

	foreach(cell, drain->lanes)
		nrows += lane_count(lfirst(cell));
	if (drain->at_end && (nrows == 0 || !exactly))
		return nrows;

	begin(drain);
	store_open(&waiting, STORE_WAITING);
	nrows = store_count_waiting(&waiting);
	store_close(&waiting);
	commit(drain);
	return nrows;
}

/*
 * Deletes what the history need not keep any longer.  False when that was all.
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
	begin(drain);
	if (store_lock(&drain->waiting_oid))
	{
		store_open(&settled, STORE_SETTLED);
		npruned = store_prune(&settled, &drain->prune_from, before, PRUNE_BATCH);
		store_close(&settled);
	}
	commit(drain);
	return npruned == PRUNE_BATCH;
}

/*
 * Lets go of everything.  What is in flight is broken off, and waits to be sent
 * again.
 */
void
drain_end(Drain *drain)
{
	release_flights(&drain->out);
	release_flights(&drain->answered);
	release_flights(&drain->settled);
	release_flights(&drain->ready);
	claim_end_drain();
	MemoryContextDelete(drain->context);
}

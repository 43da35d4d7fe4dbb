/*-------------------------------------------------------------------------
 *
 * drain/schedule.c
 *		What goes out next, in a turn of the drain.
 *
 * A customer's rows are read when a slot and a turn of the rate are free, and
 * not before: until then a cancel or a keep can reach them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "api/pace.h"
#include "base/clock.h"
#include "drain/hold.h"
#include "drain/schedule.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* Rows found in one look. */
#define DISCOVER_BATCH 256

/* When all rows that were found have been looked at: until the next look, in µs. */
#define LOOK_INTERVAL (20 * INT64CONST(1000))

/* The same while no more can be sent to the servers that are known, in µs. */
#define FULL_INTERVAL (200 * INT64CONST(1000))

/* How long a customer is left alone whose rows somebody takes back, in µs. */
#define WITHHELD_INTERVAL (100 * INT64CONST(1000))

/* Memory kept for each request, in bytes. */
#define REQUEST_MEMORY (16 * 1024)

/* How long a lane is left alone whose definitions lack something, in µs. */
#define HELD_INTERVAL USECS_PER_SEC

/* Rows of a lane looked at in one transaction. */
#define LOOKS_PER_FILL 1000

static void discovered(void *arg, const QueueRow *place);
static void fill_slots(Fill *fill);
static void fill_lane(Fill *fill, Lane *lane);
static void fill_room(Fill *fill, Lane *lane, const Account *account);
static void fail_lane(Fill *fill, Lane *lane);
static void expire_lane(Fill *fill, Lane *lane, double retry_for);
static bool read_unsent(Fill *fill, Waiting place, QueueRow *row);
static int	count_requests(const Drain *drain, const Lane *lane);
static bool send_customer(Fill *fill, Lane *lane, Waiting place, const Account *account,
						  const char *definition);
static bool send_due(Fill *fill, Lane *lane, Waiting place, const Due *due,
					 const Account *account, const char *definition);
static bool is_put_off(Fill *fill, Waiting place);
static void put_off(Fill *fill, const Due *due);
static MemoryContext take_context(Drain *drain);
static void put_off_unsent(Fill *fill, Lane *lane, Waiting place, const Due *due);
static Request *find_request(Drain *drain, int64 customer);
static void note_time(Drain *drain, int64 microseconds);
static bool may_look(Drain *drain);
static void look(Fill *fill);

/*
 * Finds what waits, and makes as much of it ready as may be sent now.
 */
void
fill_turn(Fill *fill)
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
	else if (drain->nout > 0 || !dlist_is_empty(&drain->ready))
		note_time(drain, (fill->hungry ? drain->look_at : drain->looked_at + FULL_INTERVAL) -
				  clock_now());
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
		lane->has_gone = false;
		fill->hungry = fill->hungry || !lane->held;
		if (next_due != DT_NOEND)
			note_time(drain, next_due - fill->now);
		else if (drain->at_end && lane->nrequests == 0)
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
		if (lane->nrequests == 0)
			note_time(drain, lane->probe_at - fill->now);
		return;
	}
	if (pace_paused(account.serverid) > 0)
	{
		note_time(drain, pace_paused(account.serverid));
		return;
	}
	fill_room(fill, lane, &account);
}

/* As many as there are slots, and turns of the rate. */
static void
fill_room(Fill *fill, Lane *lane, const Account *account)
{
	Drain	   *drain = fill->drain;
	int			room = lane->held ? 1 : account->max_connections - count_requests(drain, lane);
	char	   *definition = account_definition(lane->server, lane->role);
	bool		has_turn = false;
	int64		turn_at = 0;
	int64		left = 0;
	Waiting		row;

	room = Min(room, http_capacity() - count_requests(drain, NULL));
	for (int nlooks = 0; room > 0; nlooks++)
	{
		CHECK_FOR_INTERRUPTS();
		if (!lane_pop(lane, fill->now, &row))
		{
			fill->hungry = fill->hungry || !lane->held;
			if (lane_next_due(lane) != DT_NOEND)
				note_time(drain, lane_next_due(lane) - fill->now);
			break;
		}
		if (!has_turn)
		{
			left = pace_claim(account->serverid, account->rate_limit);
			turn_at = clock_now();
		}
		has_turn = left == 0;
		if (!has_turn || nlooks == LOOKS_PER_FILL)
		{
			lane_push_front(lane, row);
			drain->waits_for_turn = true;
			note_time(drain, left);
			break;
		}
		if (send_customer(fill, lane, row, account, definition))
		{
			has_turn = false;
			room--;
			if (lane->held)
				hold_probe(lane);
		}
	}
	if (has_turn)
		pace_return(account->serverid, account->rate_limit, turn_at);
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

		if (!read_unsent(fill, place, &row))
			continue;
		if (i >= LOOKS_PER_FILL || !lock_partition(row.role, row.customer))
		{
			/* The others can wait as well: nobody waits for them. */
			lane_push_later(lane, place, fill->now + WITHHELD_INTERVAL);
			drain->waits_for_turn = drain->waits_for_turn || i >= LOOKS_PER_FILL;
			note_time(drain, i >= LOOKS_PER_FILL ? 0 : WITHHELD_INTERVAL);
			return;
		}
		if (row.keep)
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

		if (!read_unsent(fill, place, &row))
			continue;
		if ((double) (fill->now - row.enqueued_at) / 1000 < retry_for)
		{
			lane_push_front(lane, place);
			return;
		}
		if (!lock_partition(row.role, row.customer))
			lane_push_later(lane, place, fill->now + WITHHELD_INTERVAL);
		else if (row.keep)
			(void) store_delete(&fill->waiting, &row.tid, true);
		else
			settle_expired(&row, &fill->waiting, &fill->settled, &drain->tally);
	}
}

/* False when the row is gone, or its customer has a request out. */
static bool
read_unsent(Fill *fill, Waiting place, QueueRow *row)
{
	Request	   *request;

	CHECK_FOR_INTERRUPTS();
	if (!store_find_waiting(&fill->waiting, place.id, row))
		return false;
	request = find_request(fill->drain, place.customer);
	if (request)
		request_note_next(request, place);
	return request == NULL;
}

/* Of the lane's server, over all its lanes; of all servers without a lane. */
static int
count_requests(const Drain *drain, const Lane *lane)
{
	int			nrequests = 0;
	ListCell   *cell;

	foreach(cell, drain->lanes)
	{
		const Lane *other = lfirst(cell);

		if (lane == NULL || strcmp(other->server, lane->server) == 0)
			nrequests += other->nrequests;
	}
	return nrequests;
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
	Request	   *request;
	Due			due;
	bool		is_ready;

	/* Else a customer's rows would be read for each that went with another. */
	if (lane->has_gone && !store_find_waiting(&fill->waiting, place.id, &row))
		return false;

	if (is_put_off(fill, place))
	{
		lane_push_later(lane, place, fill->put_off_until);
		return false;
	}
	request = find_request(drain, place.customer);
	if (request)
	{
		request_note_next(request, place);
		return false;
	}
	if (!lock_partition(lane->role, place.customer))
	{
		lane_push_later(lane, place, fill->now + WITHHELD_INTERVAL);
		return false;
	}

	context = take_context(drain);
	MemoryContextSwitchTo(context);
	is_ready = due_read(&fill->waiting, place.id, place.customer, fill->now,
						account->retry_for, &due) &&
		send_due(fill, lane, place, &due, account, definition);
	MemoryContextSwitchTo(drain->turn_context);
	if (!is_ready)
		fill_give_context(drain, context);
	return is_ready;
}

/* The same, for what has been read in the memory context of a request. */
static bool
send_due(Fill *fill, Lane *lane, Waiting place, const Due *due, const Account *account,
		 const char *definition)
{
	Drain	   *drain = fill->drain;
	Request	   *request;

	if (due->customer.keep && due->customer.ord != due->customer.id)
	{
		/* dt_retry()'s news has been heard. */
		(void) store_delete(&fill->waiting, &due->customer.tid, false);
		return false;
	}
	settle_without_request(due, &fill->waiting, &fill->settled, &drain->tally);
	if (due->parts != NIL)
	{
		request = request_make(CurrentMemoryContext, lane, due, account, definition);
		lock_customer(request->tag);
		dlist_push_tail(&drain->ready, &request->node);
		lane->nrequests++;
		if (!due->customer.keep)
			request_note_next(request, place);
	}
	else if (due->later != NIL)
		put_off(fill, due);
	if (list_length(due->parts) + list_length(due->later) +
		list_length(due->expired) + list_length(due->kept) > 1)
		lane->has_gone = true;
	put_off_unsent(fill, lane, place, due);
	return due->parts != NIL;
}

/*
 * Has the row's customer been found to be due later, in this transaction?  Its
 * door is held since, and a customer with many rows is read but once.
 */
static bool
is_put_off(Fill *fill, Waiting place)
{
	QueueRow	row;

	return fill->put_off_until != DT_NOBEGIN && fill->put_off.customer == place.customer &&
		store_find_waiting(&fill->waiting, place.id, &row) &&
		store_is_same_customer(&fill->put_off, &row);
}

static void
put_off(Fill *fill, const Due *due)
{
	MemoryContext caller = MemoryContextSwitchTo(fill->drain->turn_context);

	fill->put_off = due->customer;
	fill->put_off.server = pstrdup(due->customer.server);
	fill->put_off.phone = pstrdup(due->customer.phone);
	fill->put_off.waba = due->customer.waba ? pstrdup(due->customer.waba) : NULL;
	fill->put_off_until = due->due_at;
	MemoryContextSwitchTo(caller);
}

/*
 * Memory for one request.  Contexts are used again, and keep what most flights
 * need: else memory would go back to the system, and come from it, in each turn.
 */
static MemoryContext
take_context(Drain *drain)
{
	MemoryContext context;

	if (drain->spares == NIL)
		return AllocSetContextCreate(drain->context, "doubletick request",
									 REQUEST_MEMORY, REQUEST_MEMORY, ALLOCSET_DEFAULT_MAXSIZE);
	context = llast(drain->spares);
	drain->spares = list_delete_last(drain->spares);
	return context;
}

/*
 * Memory that a request needs no longer.
 */
void
fill_give_context(Drain *drain, MemoryContext context)
{
	MemoryContext caller = MemoryContextSwitchTo(drain->context);

	MemoryContextReset(context);
	drain->spares = lappend(drain->spares, context);
	MemoryContextSwitchTo(caller);
}

/*
 * Every row that waits is carried by a request, or has a place in a lane.  That of
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
		settle_keeps(lane, &due->customer, &fill->waiting);
	}
}

/*
 * The request of a customer that is not settled yet; NULL: none.  Of two customers
 * with one number, one waits for the other.
 */
static Request *
find_request(Drain *drain, int64 customer)
{
	dlist_head *lists[] = {&drain->out, &drain->answered, &drain->ready};

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, lists[i])
		{
			Request	   *request = dlist_container(Request, node, iter.cur);

			if (request->due.customer.customer == customer)
				return request;
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
	return !drain->at_end || clock_now() >= drain->look_at ||
		(drain->nout == 0 && drain->nanswered == 0 && dlist_is_empty(&drain->ready));
}

static void
look(Fill *fill)
{
	Drain	   *drain = fill->drain;

	fill->nfound = 0;
	drain->at_end = !due_discover(&fill->waiting, &drain->horizon, DISCOVER_BATCH, discovered, fill);
	drain->looked_at = clock_now();
	drain->look_at = drain->looked_at + LOOK_INTERVAL;
}

static void
discovered(void *arg, const QueueRow *place)
{
	Fill	   *fill = arg;
	Lane	   *lane = fill_find_lane(fill->drain, place->server, place->role);

	lane_push(lane, place_of(place->id, place->customer));
	if (place->keep && place->ord != place->id) /* see dt_retry() */
		lane_push(lane, place_of(place->ord, place->customer));
	fill->nfound++;
}

/*
 * The lane of a server and a role, a new one if need be; for hold_load(), too.
 */
Lane *
fill_find_lane(void *arg, const char *server, Oid role)
{
	Drain	   *drain = arg;
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
	drain->fill_at = Min(drain->fill_at, clock_now() + Max(microseconds, 0));
}

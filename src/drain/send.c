/*-------------------------------------------------------------------------
 *
 * drain/send.c
 *		Makes the requests that can be sent now.
 *
 * A customer's rows are read when a slot and a turn of the pace are free, and not
 * before: until then a cancel or a keep reaches them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "account/account.h"
#include "api/capacity.h"
#include "api/pace.h"
#include "api/payload.h"
#include "base/clock.h"
#include "drain/hold.h"
#include "drain/turn.h"
#include "miscadmin.h"
#include "queue/customer_number.h"
#include "queue/shape.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* Time until the next try when another process or request is in the way, in µs. */
#define RETRY_INTERVAL (100 * INT64CONST(1000))

/*
 * So much longer for each row of the lane that waits for a time, in µs.  To look at a row
 * takes less than 1 µs: else the drainer would do nothing else while very many rows are
 * being cancelled, say.
 */
#define RETRY_INTERVAL_OF_ROW 10

/*
 * Who has just sent a request waits for the account's next turn by this much longer, in
 * µs, so that another server of the account goes first, if one waits for the same turn.
 * It costs nothing, since a turn may be claimed up to 20 ms before it comes.
 */
#define COURTESY 1000

/* A lane that is being served, and the account that its requests use. */
typedef struct Service
{
	Turn	   *turn;
	Lane	   *lane;
	Account		account;
	Pace		pace;
	char	   *definition;		/* see account_definition() */
} Service;

static int64 serve_lane(Turn *turn, Lane *lane);
static bool account_allows(Service *service);
static int64 send_customers(Service *service);
static int	share_of_server(Turn *turn, const Server *server);
static bool send_customer(Service *service, Position position);
static bool make_due_request(Service *service, Position position, const Due *due);
static void place_unsent_row(Turn *turn, Lane *lane, Position position, const Due *due);
static void place_deferred_row(Turn *turn, Lane *lane, Position position, const QueueRow *row);
static bool is_customer_deferred(Turn *turn, Position position, QueueRow *row);
static void defer_customer(Turn *turn, const Due *due, int64 wait);
static bool settle_unsendable(Turn *turn, Lane *lane, double retry_for, bool has_role);
static bool take_position(Turn *turn, int64 until, bool in_turn, Position *position);
static int64 time_of_retry(const Turn *turn, const Lane *lane);
static bool read_unsent_row(Turn *turn, Position position, QueueRow *row);

/*
 * Called in each turn of the drainer: serves lanes, in the order of the schedule,
 * while they can send and the turn's limits allow it.
 */
void
send_from_lanes(Turn *turn)
{
	Lane	   *lane;

	while (turn->nrows_left > 0 && requests_in_flight(turn->requests) < capacity_now() &&
		   (lane = schedule_next_lane(turn->schedule, turn->clock)) != NULL)
	{
		int64		next_at;

		turn->lane = lane;
		turn->row = 0;
		next_at = serve_lane(turn, lane);
		turn->lane = NULL;
		schedule_lane(turn->schedule, lane, turn->clock);
		schedule_server(turn->schedule, lane->server, next_at);
	}
}

/*
 * Makes as many requests of a lane as can be sent now.  Returns when its server
 * can be served again: the new Server.next_at.
 */
static int64
serve_lane(Turn *turn, Lane *lane)
{
	Service		service = {.turn = turn,.lane = lane};
	int64		paused;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(lane->key.role)))
	{
		if (!settle_unsendable(turn, lane, 0, false))
			lane->not_before = turn->clock + RETRY_INTERVAL;
		if (lane_count(lane) == 0)
			hold_forget(lane);
		return turn->clock;
	}
	if (!account_allows(&service))
	{
		/* A probe must wait for requests that are in flight. */
		lane->not_before = turn->clock + Max(hold_time_to_probe(lane, turn->now),
											 RETRY_INTERVAL);
		lane->sending_since = 0;
		return turn->clock;
	}
	service.pace = pace_of(&service.account);
	paused = pace_paused(&service.pace);
	if (paused > 0)
	{
		/* ALTER SERVER ends a pause, and does not wake the drainer. */
		lane->not_before = turn->clock + Min(paused, USECS_PER_SEC);
		return turn->clock;
	}
	lane->not_before = 0;
	if (lane->sending_since == 0 && !lane->held)
		lane->sending_since = turn->now;
	return send_customers(&service);
}

/* Looks the account up.  False when the lane is held, and its probe is not due. */
static bool
account_allows(Service *service)
{
	Turn	   *turn = service->turn;
	Lane	   *lane = service->lane;
	Fault	   *fault = account_get(lane_server(lane), lane->key.role, &service->account);

	/* Held removals expire, too, but only a server says when: "retry_for". */
	if (fault && OidIsValid(service->account.serverid))
		(void) settle_unsendable(turn, lane, service->account.retry_for, true);
	if (!hold_allows(lane, fault, turn->now))
		return false;
	service->definition = account_definition(lane_server(lane), lane->key.role);
	return true;
}

/*
 * Makes requests while there are slots and turns of the pace.  Claims a turn when
 * there is a row to look at, and gives it back if it was not used.
 */
static int64
send_customers(Service *service)
{
	Turn	   *turn = service->turn;
	Lane	   *lane = service->lane;
	Server	   *server = lane->server;
	const Account *account = &service->account;
	int			limit = Min(account->max_connections, share_of_server(turn, server));
	int			nslots = lane->held ? 1 : limit - server->nrequests;
	bool		has_turn = false;
	bool		has_sent = false;
	int64		claimed_at = 0;
	Position	position;

	nslots = Min(nslots, capacity_now() - requests_in_flight(turn->requests));
	while (nslots > 0 && lane_is_due(lane, turn->clock))
	{
		if (!has_turn)
		{
			int64		left = pace_claim(&service->pace);

			claimed_at = clock_now();
			if (left > 0)
			{
				/*
				 * ALTER SERVER may end the wait, and does not wake the
				 * drainer.
				 */
				left = Min(left, USECS_PER_SEC);
				return claimed_at + left + (has_sent && account->account ? COURTESY : 0);
			}
			has_turn = true;
		}
		if (!take_position(turn, turn->clock, true, &position))
			break;
		has_turn = !send_customer(service, position);
		if (has_turn)
			continue;
		has_sent = true;
		nslots--;
		if (lane->held)
			hold_note_probe(lane);
	}
	if (has_turn)
		pace_return(&service->pace, claimed_at);
	return server->nrequests < limit ? turn->clock : PG_INT64_MAX;
}

/*
 * How many of this process's slots a server may use: half of what other servers
 * leave, and at least one.  So a server that does not answer leaves some to others.
 */
static int
share_of_server(Turn *turn, const Server *server)
{
	int			nothers = requests_in_flight(turn->requests) - server->nrequests;

	return Max((capacity_now() - nothers) / 2, 1);
}

/*
 * Makes the request that is due for a row's customer.  False when none is due now,
 * or another process or request is in the way.
 */
static bool
send_customer(Service *service, Position position)
{
	Turn	   *turn = service->turn;
	Lane	   *lane = service->lane;
	MemoryContext context;
	QueueRow	row;
	Request    *request;
	Due			due;
	bool		is_ready;

	/* Saves reading the customer's rows for each of these. */
	if (lane->look_up_rows)
	{
		if (!store_find_waiting(&turn->waiting, position.id, &row))
			return false;
		if (row.keep && row.ord != row.id)
		{
			/* The marker row has done its work. */
			(void) store_delete(&turn->waiting, &row.tid, false);
			return false;
		}
	}

	if (is_customer_deferred(turn, position, &row))
	{
		place_deferred_row(turn, lane, position, &row);
		return false;
	}
	request = requests_find(turn->requests, lane, position.customer);
	if (request)
	{
		request_note_next(request, position);
		return false;
	}
	if (service->account.account &&
		requests_have_in_account(turn->requests, account_tag(service->account.account, position.customer)))
	{
		int64		retry_at = time_of_retry(turn, lane);

		lane_push_later(lane, position, retry_at);
		turn->requests->retry_at = Max(turn->requests->retry_at, retry_at);
		return false;
	}
	turn->nlocks_left--;
	if (!lock_partition(lane->key.role, position.customer))
	{
		lane_push_later(lane, position, time_of_retry(turn, lane));
		return false;
	}

	context = requests_take_context(turn->requests, turn->drain_context);
	turn->request_context = context;
	MemoryContextSwitchTo(context);
	is_ready = customer_read(&turn->waiting, position.id, position.customer, turn->now,
							 lane->sending_since ? lane->sending_since : turn->now,
							 &service->account, &due) &&
		make_due_request(service, position, &due);
	MemoryContextSwitchTo(turn->context);
	turn->request_context = NULL;
	if (!is_ready)
		requests_give_context(turn->requests, context);
	return is_ready;
}

/*
 * Settles what is not to be sent, and makes the request.  False if none is due, or
 * another database has one for this customer of the account in flight.
 */
static bool
make_due_request(Service *service, Position position, const Due *due)
{
	Turn	   *turn = service->turn;
	Lane	   *lane = service->lane;
	Request    *request;
	ListCell   *cell;

	settle_unsent(turn, due);
	if (list_length(due->send) + list_length(due->later) +
		list_length(due->expired) + list_length(due->kept) > 1)
		lane->look_up_rows = true;
	if (due->send == NIL)
	{
		place_unsent_row(turn, lane, position, due);
		return false;
	}
	foreach(cell, due->send)
	{
		const DueRow *row = lfirst(cell);

		shape_check_names(&turn->settled, row->tags, row->ntags);
		shape_check_names(&turn->settled, row->fields, row->nfields);
	}
	request = request_make(turn->requests, CurrentMemoryContext, lane, due, &service->account,
						   service->definition);
	if (request == NULL)
	{
		defer_customer(turn, due, time_of_retry(turn, lane) - turn->clock);
		lane_push_later(lane, position, turn->deferred_until);
		return false;
	}
	if (!due->asked.keep)
		request_note_next(request, position);
	turn->nrows_left -= list_length(due->send);
	return true;
}

/*
 * Nothing can be sent: gives the row that was looked at a position again, unless it
 * is settled.  A keep has one, too: it is mostly deleted with the customer's last
 * removal, but not if that is cancelled.
 */
static void
place_unsent_row(Turn *turn, Lane *lane, Position position, const Due *due)
{
	if (due->later != NIL)
	{
		defer_customer(turn, due, due->wait);
		place_deferred_row(turn, lane, position, &due->asked);
	}
	else if (list_length(due->expired) + list_length(due->kept) >= PAYLOAD_MAX_NAMES)
	{
		/* The customer may have more removals than were read. */
		CommandCounterIncrement();	/* else the same are read again */
		lane_push(lane, due->asked.xact, position);
	}
	else if (due->has_keeps)
	{
		CommandCounterIncrement();	/* so that what was settled is not seen */
		settle_keeps(turn, lane, &due->asked);
	}
}

/* Its customer was deferred.  A row that was tried goes first when it is due. */
static void
place_deferred_row(Turn *turn, Lane *lane, Position position, const QueueRow *row)
{
	if (row->attempts > 0)
		lane_push_later(lane, position, turn->deferred_until);
	else
		lane_push_delayed(lane, row->xact, position, turn->deferred_until);
}

/*
 * Has this transaction found the row's customer to be due later?  That is still so,
 * since its partition is locked; so a customer with many rows is read only once.
 */
static bool
is_customer_deferred(Turn *turn, Position position, QueueRow *row)
{
	return turn->deferred_until != 0 &&
		turn->deferred.customer == position.customer &&
		store_find_waiting(&turn->waiting, position.id, row) &&
		store_is_same_customer(&turn->deferred, row);
}

static void
defer_customer(Turn *turn, const Due *due, int64 wait)
{
	MemoryContext caller = MemoryContextSwitchTo(turn->context);

	turn->deferred = due->asked;
	turn->deferred.server = pstrdup(due->asked.server);
	turn->deferred.phone = pstrdup(due->asked.phone);
	turn->deferred.waba = due->asked.waba ? pstrdup(due->asked.waba) : NULL;
	turn->deferred_until = turn->clock + wait;
	MemoryContextSwitchTo(caller);
}

/*
 * Settles rows of a lane that cannot send: all of them if its role was dropped, else
 * those older than "retry_for", in ms.  It stops at the first younger row, as older
 * rows mostly come first.  False when it stopped, for a dropped role, at a row being
 * cancelled.
 */
static bool
settle_unsendable(Turn *turn, Lane *lane, double retry_for, bool has_role)
{
	int64		until = has_role ? turn->clock : PG_INT64_MAX;
	Position	position;

	while (take_position(turn, until, false, &position))
	{
		QueueRow	row;

		if (!read_unsent_row(turn, position, &row))
			continue;
		if (has_role && (double) (turn->now - row.enqueued_at) / 1000 < retry_for)
		{
			lane_push_again(lane, position);
			break;
		}
		turn->nlocks_left--;
		if (!lock_partition(row.role, row.customer))
		{
			lane_push_later(lane, position, time_of_retry(turn, lane));
			if (!has_role)
				return false;	/* "until" would take the same row again */
		}
		else if (row.keep)
			(void) store_delete(&turn->waiting, &row.tid, true);
		else if (!has_role)
			settle_roleless(turn, &row);
		else
			settle_expired(turn, &row);
	}
	return true;
}

/*
 * Takes the lane's next position, see lane_pop().  False when none is due, or a limit
 * is reached.
 */
static bool
take_position(Turn *turn, int64 until, bool in_turn, Position *position)
{
	CHECK_FOR_INTERRUPTS();
	if (turn->nlocks_left == 0 || clock_now() >= turn->deadline)
		turn->nrows_left = 0;
	if (turn->nrows_left <= 0 || !lane_pop(turn->lane, until, in_turn, position))
		return false;
	turn->nrows_left--;
	turn->row = position->id;
	turn->taken[turn->ntaken].lane = turn->lane;
	turn->taken[turn->ntaken++].position = *position;
	return true;
}

/*
 * When a row is looked at again that another process or request is in the way of.  Many
 * rows have the same time, so that a turn looks at all of them.
 */
static int64
time_of_retry(const Turn *turn, const Lane *lane)
{
	int64		retry_at = turn->clock + RETRY_INTERVAL + lane->nlater * RETRY_INTERVAL_OF_ROW;

	return retry_at - retry_at % RETRY_INTERVAL;
}

/* Reads a row.  False when it is gone, or its customer has a request in flight. */
static bool
read_unsent_row(Turn *turn, Position position, QueueRow *row)
{
	Request    *request;

	if (!store_find_waiting(&turn->waiting, position.id, row))
		return false;
	request = requests_find(turn->requests, turn->lane, position.customer);
	if (request)
		request_note_next(request, position);
	return request == NULL;
}

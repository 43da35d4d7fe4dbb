/*-------------------------------------------------------------------------
 *
 * drain/request.c
 *		A request for one customer's waiting removals, until it is answered.
 *
 * A request is made in the transaction that reads its rows, and leaves when that
 * has committed.  Its answer is settled in a later transaction (settle.c).  From when
 * the request is made until that one has committed, its customer is locked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/counters.h"
#include "api/endpoint.h"
#include "api/pace.h"
#include "api/payload.h"
#include "base/clock.h"
#include "base/names.h"
#include "drain/hold.h"
#include "drain/request.h"
#include "queue/customer_number.h"
#include "utils/memutils.h"

/* Memory that the context of a request keeps, in bytes. */
#define REQUEST_MEMORY (16 * 1024)

static Removal merge_removals(List *rows);
static void append_distinct_names(const char **to, int *nto, const char **names, int nnames);
static bool request_is_over(Request *request);
static void unlock_request(const Request *request);
static void unlock_requests(dlist_head *requests);

void
requests_init(Requests *requests)
{
	memset(requests, 0, sizeof(Requests));
	dlist_init(&requests->ready);
	dlist_init(&requests->out);
	dlist_init(&requests->answered);
	dlist_init(&requests->settled);
	dlist_init(&requests->stuck);
}

/*
 * How many requests are in flight, each of which uses a slot.  A crash between turns
 * repeats at most these.
 */
int
requests_in_flight(const Requests *requests)
{
	return requests->nready + requests->nout + requests->nanswered + requests->nstuck;
}

/*
 * Memory for one request.  Contexts are used again, and keep what most requests need:
 * else memory would go back to the system, and come from it, with each request.
 */
MemoryContext
requests_take_context(Requests *requests, MemoryContext parent)
{
	if (requests->nspares > 0)
		return requests->spares[--requests->nspares];
	return AllocSetContextCreate(parent, "doubletick request",
								 REQUEST_MEMORY, REQUEST_MEMORY, ALLOCSET_DEFAULT_MAXSIZE);
}

/*
 * Takes back the memory of a request that is not needed any more.
 */
void
requests_give_context(Requests *requests, MemoryContext context)
{
	if (requests->nspares == REQUESTS_MAX_SPARES)
		MemoryContextDelete(context);
	else
	{
		MemoryContextReset(context);
		requests->spares[requests->nspares++] = context;
	}
}

/*
 * How many rows the requests in flight carry.
 */
int64
requests_count_rows(Requests *requests)
{
	dlist_head *lists[] = {&requests->out, &requests->answered, &requests->stuck};
	int64		nrows = 0;

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, lists[i])
			nrows += list_length(dlist_container(Request, node, iter.cur)->due.send);
	}
	return nrows;
}

/*
 * A customer's request that is not settled; NULL when there is none.  Customers of
 * one lane and one phone wait for each other: they may be the same one to DoubleTick,
 * if one names the WABA number that the other takes from the server.
 */
Request *
requests_find(Requests *requests, const Lane *lane, int64 customer)
{
	dlist_head *lists[] = {&requests->out, &requests->answered, &requests->ready, &requests->stuck};

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, lists[i])
		{
			Request    *request = dlist_container(Request, node, iter.cur);

			if (request->lane == lane &&
				phone_of_customer_number(request->due.asked.customer) == phone_of_customer_number(customer))
				return request;
		}
	}
	return NULL;
}

/*
 * Does a request that is not settled belong to this customer of an account?  It may be
 * of any lane: the drainer's own locks do not keep it from locking the customer again.
 */
bool
requests_have_in_account(Requests *requests, AccountTag tag)
{
	dlist_head *lists[] = {&requests->out, &requests->answered, &requests->ready, &requests->stuck};

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, lists[i])
		{
			const Request *request = dlist_container(Request, node, iter.cur);

			if (request->account_tag.account == tag.account &&
				request->account_tag.phone == tag.phone)
				return true;
		}
	}
	return false;
}

/*
 * Called by send.c, with the partition locked: makes a customer's request, and locks
 * the customer.  "context", in which "due" lives, becomes the request's.  NULL, and
 * nothing is locked, while another database has a request in flight for this customer
 * of the account.
 */
Request *
request_make(Requests *requests, MemoryContext context, Lane *lane, const Due *due,
			 const Account *account, const char *definition)
{
	MemoryContext caller = MemoryContextSwitchTo(context);
	Request    *request = palloc0(sizeof(Request));
	Removal		removal = merge_removals(due->send);

	request->context = context;
	request->lane = lane;
	request->tag = customer_tag(&due->asked);
	request->due = *due;
	request->body = payload_utf8(payload_jsonb(&removal, account->waba_number), &request->length);
	request->nnames = removal.ntags + removal.nfields;
	request->target = endpoint_of(account);
	request->timeout = account->timeout;
	request->retry_for = account->retry_for;
	request->pace = pace_of(account);
	request->claimed_at = clock_now();
	request->definition = pstrdup(definition);
	request->hold = hold_number(lane);
	request->account_tag = account_tag(account->account, due->asked.customer);
	MemoryContextSwitchTo(caller);
	if (account->account && !lock_in_account(request->account_tag))
		return NULL;

	/* From now on, whoever ends the request unlocks what is locked. */
	dlist_push_tail(&requests->ready, &request->node);
	requests->nready++;
	request_count_slot(request, 1);
	lock_customer(request->tag);
	request->is_locked = true;
	return request;
}

/* One removal with each name of the rows once, and the first row's numbers. */
static Removal
merge_removals(List *rows)
{
	DueRow	   *first = linitial(rows);
	Removal		removal = {0};
	int			ntags = 0;
	int			nfields = 0;
	ListCell   *cell;

	removal.phone = first->row.phone;
	removal.waba = first->row.waba;
	foreach(cell, rows)
	{
		ntags += ((DueRow *) lfirst(cell))->ntags;
		nfields += ((DueRow *) lfirst(cell))->nfields;
	}
	removal.tags = palloc(sizeof(char *) * Max(ntags, 1));
	removal.fields = palloc(sizeof(char *) * Max(nfields, 1));
	foreach(cell, rows)
	{
		DueRow	   *row = lfirst(cell);

		append_distinct_names(removal.tags, &removal.ntags, row->tags, row->ntags);
		append_distinct_names(removal.fields, &removal.nfields, row->fields, row->nfields);
	}
	return removal;
}

static void
append_distinct_names(const char **to, int *nto, const char **names, int nnames)
{
	for (int i = 0; i < nnames; i++)
	{
		if (!names_have(to, *nto, names[i]))
			to[(*nto)++] = names[i];
	}
}

/*
 * Notes a row of the request's customer, to be looked at when the request is settled.
 * Does nothing if the request carries it.
 */
void
request_note_next(Request *request, Position position)
{
	MemoryContext caller;
	Position   *next;
	ListCell   *cell;

	foreach(cell, request->due.send)
	{
		if (((DueRow *) lfirst(cell))->row.id == position.id)
			return;
	}
	caller = MemoryContextSwitchTo(request->context);
	next = palloc(sizeof(Position));
	*next = position;
	request->next = lappend(request->next, next);
	MemoryContextSwitchTo(caller);
}

/*
 * Starts to send the requests that are ready.  Called when the transaction that made
 * them has committed.
 */
void
requests_send_ready(Requests *requests)
{
	MemoryContext caller = CurrentMemoryContext;

	while (!dlist_is_empty(&requests->ready))
	{
		Request    *request = dlist_head_element(Request, node, &requests->ready);

		MemoryContextSwitchTo(request->context);
		request->transfer = http_start(&request->target, request->body, request->length,
									   request->timeout);
		MemoryContextSwitchTo(caller);
		dlist_delete(&request->node);
		dlist_push_tail(&requests->out, &request->node);
		requests->nready--;
		requests->nout++;
		counters_add_sent(request->pace.serverid, false);
	}
}

/*
 * Moves the requests that are over from "out" to "answered".  True when any were.
 */
bool
requests_collect_answers(Requests *requests)
{
	int			nbefore = requests->nanswered;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &requests->out)
	{
		Request    *request = dlist_container(Request, node, iter.cur);

		if (!request_is_over(request))
			continue;
		counters_add_answer(request->pace.serverid, http_reply(request->transfer));
		dlist_delete(&request->node);
		dlist_push_tail(&requests->answered, &request->node);
		requests->nout--;
		requests->nanswered++;
	}
	return requests->nanswered > nbefore;
}

/* Has an answer come, or will none come?  Tells the pace when it was sent. */
static bool
request_is_over(Request *request)
{
	int64		sent_at = http_sent_at(request->transfer);

	if (sent_at != 0 && !request->is_sent)
	{
		pace_note_sent(&request->pace, request->claimed_at, sent_at);
		request->is_sent = true;
	}
	return http_reply(request->transfer) != NULL;
}

/*
 * Adds a request to its lane's and server's requests in flight (1), or takes it away
 * (-1), so that others can use its slot.
 */
void
request_count_slot(Request *request, int change)
{
	request->lane->nrequests += change;
	request->lane->server->nrequests += change;
}

/*
 * Puts the rows of a request back into its lane, since its transaction has failed.
 */
void
request_give_back(Request *request)
{
	ListCell   *cell;

	foreach(cell, request->due.send)
	{
		const QueueRow *row = &((DueRow *) lfirst(cell))->row;

		lane_push_again(request->lane, position_of(row->id, row->customer));
	}
	foreach(cell, request->next)
		lane_push_again(request->lane, *(Position *) lfirst(cell));
}

/*
 * Frees a request and unlocks its customer.
 */
void
request_free(Requests *requests, Request *request)
{
	if (request->transfer)
		http_release(request->transfer);
	unlock_request(request);
	requests_give_context(requests, request->context);
}

/*
 * Unlocks the customers of all requests.  Called when the drainer ends.
 */
void
requests_unlock_all(Requests *requests)
{
	unlock_requests(&requests->ready);
	unlock_requests(&requests->out);
	unlock_requests(&requests->answered);
	unlock_requests(&requests->settled);
	unlock_requests(&requests->stuck);
}

static void
unlock_requests(dlist_head *requests)
{
	dlist_iter	iter;

	dlist_foreach(iter, requests)
		unlock_request(dlist_container(Request, node, iter.cur));
}

static void
unlock_request(const Request *request)
{
	if (request->is_locked)
		unlock_customer(request->tag);
	if (request->account_tag.account != 0)
		unlock_in_account(request->account_tag);
}

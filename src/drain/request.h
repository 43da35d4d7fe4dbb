/*-------------------------------------------------------------------------
 *
 * drain/request.h
 *		A request of the queue, from its making to its settlement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_REQUEST_H
#define DOUBLETICK_DRAIN_REQUEST_H

#include "api/http.h"
#include "drain/customer.h"
#include "drain/lane.h"
#include "lib/ilist.h"
#include "queue/locks.h"

typedef struct Request
{
	dlist_node	node;
	MemoryContext context;		/* where all of it lives */
	Lane	   *lane;
	CustomerTag tag;
	Due			due;			/* "parts" is what it carries */
	List	   *again;			/* Waiting: rows to look at when it is settled */

	/* The request, and under which options. */
	HttpTarget	target;
	char	   *body;
	size_t		length;
	int			timeout;		/* ms */
	double		retry_for;		/* ms */
	Oid			serverid;
	char	   *definition;		/* see account_definition() */

	HttpTransfer *transfer;		/* NULL before it has left */
	double		rate_limit;		/* requests a second */
	int64		claimed_at;		/* clock_now(): when it was counted */
	bool		is_sent;		/* is it counted where it was sent? */
} Request;

/* What has become of rows, since somebody began to count. */
typedef struct Tally
{
	int64		sent;			/* requests */
	int64		done;
	int64		errored;		/* of those: with names that were not removed */
	int64		failed;
	int64		cancelled;		/* wholly taken back */
	int64		expired;		/* of the failed: for their age */
} Tally;

extern Request *request_make(MemoryContext context, Lane *lane, const Due *due,
						   const Account *account, const char *definition);
extern void request_note_next(Request *request, Waiting place);
extern void request_send(Request *request);
extern bool request_is_over(Request *request);

extern void settle_request(Request *request, Store *waiting, Store *settled, Tally *tally);
extern void settle_keeps(Lane *lane, const QueueRow *customer, Store *waiting);
extern void settle_without_request(const Due *due, Store *waiting, Store *settled,
								   Tally *tally);
extern void settle_expired(const QueueRow *row, Store *waiting, Store *settled,
						   Tally *tally);
extern bool settle_failed(const QueueRow *row, const char *error, Store *waiting,
						  Store *settled, Tally *tally);

#endif							/* DOUBLETICK_DRAIN_REQUEST_H */

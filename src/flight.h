/*-------------------------------------------------------------------------
 *
 * flight.h
 *		A request of the queue, from its making to its settlement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_FLIGHT_H
#define DOUBLETICK_FLIGHT_H

#include "claim.h"
#include "due.h"
#include "http.h"
#include "lane.h"
#include "lib/ilist.h"

typedef struct Flight
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
	int64		claimed_at;		/* rate_clock(): when it was counted */
	bool		is_sent;		/* is it counted where it was sent? */
} Flight;

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

extern Flight *flight_make(MemoryContext context, Lane *lane, const Due *due,
						   const Account *account, const char *definition);
extern void flight_note_again(Flight *flight, Waiting place);
extern void flight_launch(Flight *flight);
extern bool flight_is_over(Flight *flight);

extern void flight_settle(Flight *flight, Store *waiting, Store *settled, Tally *tally);
extern void flight_forget_keeps(Lane *lane, const QueueRow *customer, Store *waiting);
extern void settle_without_request(const Due *due, Store *waiting, Store *settled,
								   Tally *tally);
extern void settle_expired(const QueueRow *row, Store *waiting, Store *settled,
						   Tally *tally);
extern bool settle_failed(const QueueRow *row, const char *error, Store *waiting,
						  Store *settled, Tally *tally);

#endif							/* DOUBLETICK_FLIGHT_H */

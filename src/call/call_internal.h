/*-------------------------------------------------------------------------
 *
 * call/call_internal.h
 *		What a call consists of, for call.c and open_calls.c alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_CALL_INTERNAL_H
#define DOUBLETICK_CALL_CALL_INTERNAL_H

#include "account/account.h"
#include "api/http.h"
#include "call/call.h"
#include "lib/ilist.h"

typedef struct CallServer CallServer;

#define NOT_COUNTED PG_INT64_MIN

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

/* call.c */
extern void call_end(Call *call, Fault *fault);
extern void call_send(Call *call);
extern void call_read_answer(Call *call);

/* open_calls.c */
extern void open_calls_add(Call *call);
extern void call_count_in_flight(Call *call, int change);
extern int64 call_time_left(const Call *call);

#endif							/* DOUBLETICK_CALL_CALL_INTERNAL_H */

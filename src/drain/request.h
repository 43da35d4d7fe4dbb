/*-------------------------------------------------------------------------
 *
 * drain/request.h
 *		A request for one customer's waiting removals, until it is answered.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_REQUEST_H
#define DOUBLETICK_DRAIN_REQUEST_H

#include "api/http.h"
#include "api/pace.h"
#include "drain/customer.h"
#include "drain/lane.h"
#include "queue/locks.h"

typedef struct Request
{
	dlist_node	node;			/* in one of the lists of Requests */
	MemoryContext context;		/* of everything below */
	Lane	   *lane;
	CustomerTag tag;			/* locked until the request is settled, */
	bool		is_locked;		/* once it is made */
	AccountTag	account_tag;	/* the same, if its server has an account */
	Due			due;			/* "send" is what it carries */
	List	   *next;			/* Position: other rows of the customer, to go
								 * back into the lane when it is settled */

	/* The request, with the options as they were when it was made. */
	HttpTarget	target;
	char	   *body;
	size_t		length;
	int			nnames;
	int			timeout;		/* ms */
	double		retry_for;		/* ms */
	Pace		pace;
	char	   *definition;		/* see account_definition() */
	uint32		hold;			/* Lane.nholds of the hold that it can tell
								 * something about; 0: of none */

	HttpTransfer *transfer;		/* NULL before it has left */
	int64		claimed_at;		/* clock_now() of its turn in the pace */
	bool		is_sent;		/* does the pace know when it left? */
	int64		answer_is_with; /* id of the first row that has all of the
								 * answer; 0: none has */
} Request;

/*
 * The requests of a drainer.  Each is in one list: it moves from "ready" to "out" and
 * "answered", and is in "settled" while a transaction settles it.
 */
#define REQUESTS_MAX_SPARES 64

typedef struct Requests
{
	dlist_head	ready;
	dlist_head	out;
	dlist_head	answered;
	dlist_head	settled;
	dlist_head	stuck;			/* answered, and could not be settled: tried
								 * again later */
	MemoryContext spares[REQUESTS_MAX_SPARES];	/* contexts to use again */
	int			nspares;
	int			nready;
	int			nout;
	int			nanswered;
	int			nstuck;
	int64		retry_at;		/* when rows are looked at again that one of
								 * these is in the way of, though it is of
								 * another server; 0: there are none */
} Requests;

extern void requests_init(Requests *requests);
extern int	requests_in_flight(const Requests *requests);
extern int64 requests_count_rows(Requests *requests);
extern Request *requests_find(Requests *requests, const Lane *lane, int64 customer);
extern bool requests_have_in_account(Requests *requests, AccountTag tag);
extern bool requests_collect_answers(Requests *requests);
extern void requests_send_ready(Requests *requests);
extern void requests_unlock_all(Requests *requests);

extern Request *request_make(Requests *requests, MemoryContext context, Lane *lane,
							 const Due *due, const Account *account, const char *definition);
extern void request_note_next(Request *request, Position position);
extern void request_count_slot(Request *request, int change);
extern void request_give_back(Request *request);
extern void request_free(Requests *requests, Request *request);
extern MemoryContext requests_take_context(Requests *requests, MemoryContext parent);
extern void requests_give_context(Requests *requests, MemoryContext context);

#endif							/* DOUBLETICK_DRAIN_REQUEST_H */

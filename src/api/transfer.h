/*-------------------------------------------------------------------------
 *
 * api/transfer.h
 *		A request under way, as http.c drives it and outcome.c reads it.
 *
 * Only these two include this, by outcome.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_TRANSFER_H
#define DOUBLETICK_API_TRANSFER_H

#include "api/handle.h"
#include "api/http.h"
#include "api/inbox.h"
#include "api/transfer_clock.h"
#include "lib/ilist.h"

/* Ties a transfer to the memory context that it was started in. */
typedef struct HttpGuard
{
	MemoryContextCallback callback;
	HttpTransfer *transfer;		/* NULL once released */
} HttpGuard;

/* A request and what belongs to it; malloc'd and used again. */
struct HttpTransfer
{
	dlist_node	node;			/* in "idle" or, while it is running, in
								 * "under_way" */
	HttpGuard  *guard;			/* NULL when idle */
	bool		running;		/* is it on the multi handle? */

	Handle		handle;

	TransferTimer timer;		/* runs while it is on the multi handle, but
								 * not while it waits for a descriptor */
	bool		connect_only;	/* is nothing to be sent? */
	bool		not_silent;		/* see note_sending() */
	bool		afresh;			/* is it sent over a new connection for that? */

	/* What has come so far. */
	Inbox		inbox;
	int64		sent_at;		/* see http_sent_at() */
	bool		no_descriptor;	/* was there none for the last socket? */
	bool		is_last_wait;	/* see may_wait_for_descriptor() */
	char		error[CURL_ERROR_SIZE];

	HttpReply	reply;			/* once not running */
};

#endif							/* DOUBLETICK_API_TRANSFER_H */

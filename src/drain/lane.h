/*-------------------------------------------------------------------------
 *
 * drain/lane.h
 *		What waits for one server by one role, as the drainer knows it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_LANE_H
#define DOUBLETICK_DRAIN_LANE_H

#include "account/account.h"
#include "datatype/timestamp.h"
#include "lib/pairingheap.h"

/* A row to look at: a removal or a keep, which may be settled by now. */
typedef struct Waiting
{
	int64		id;
	int64		customer;		/* see store_customer() */
} Waiting;

typedef struct Lane
{
	MemoryContext context;		/* where all of it lives */
	const char *server;
	Oid			role;

	/* Rows to look at, in a ring: sixteen bytes for each that waits. */
	Waiting    *rows;
	size_t		first;
	size_t		nrows;
	size_t		capacity;

	pairingheap *later;			/* rows not to be looked at before a time */
	int64		nlater;

	bool		has_gone;		/* may some of them have gone with others? */

	/* Requests that are out, or whose answer is not yet settled. */
	int			nrequests;

	/* See hold.c. */
	TimestampTz look_at;		/* when to look again what its definitions
								 * lack */
	bool		held;
	const char *reason;
	const char *definition;
	TimestampTz since;
	TimestampTz probe_at;
} Lane;

/* The place of a row. */
static inline Waiting
place_of(int64 id, int64 customer)
{
	Waiting		place;

	place.id = id;
	place.customer = customer;
	return place;
}

extern Lane *lane_make(MemoryContext parent, const char *server, Oid role);
extern void lane_push(Lane *lane, Waiting row);
extern void lane_push_front(Lane *lane, Waiting row);
extern void lane_push_later(Lane *lane, Waiting row, TimestampTz when);
extern bool lane_pop(Lane *lane, TimestampTz now, Waiting *row);
extern TimestampTz lane_next_due(Lane *lane);
extern int64 lane_count(const Lane *lane);

#endif							/* DOUBLETICK_DRAIN_LANE_H */

/*-------------------------------------------------------------------------
 *
 * lane.h
 *		What waits for one server by one role, as the drainer knows it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_LANE_H
#define DOUBLETICK_LANE_H

#include "account.h"
#include "datatype/timestamp.h"
#include "lib/pairingheap.h"

typedef struct Lane
{
	MemoryContext context;		/* where all of it lives */
	const char *server;
	Oid			role;

	/* Rows to look at, by id, in a ring: eight bytes for each that waits. */
	int64	   *ids;
	size_t		first;
	size_t		nids;
	size_t		capacity;

	pairingheap *later;			/* rows not to be looked at before a time */

	/* Requests that are out, or whose answer is not yet settled. */
	int			nflights;

	/* See hold.c. */
	bool		held;
	const char *reason;
	const char *definition;
	TimestampTz since;
	TimestampTz probe_at;
} Lane;

extern Lane *lane_make(MemoryContext parent, const char *server, Oid role);
extern void lane_push(Lane *lane, int64 id);
extern void lane_push_front(Lane *lane, int64 id);
extern void lane_push_later(Lane *lane, int64 id, TimestampTz when);
extern int64 lane_pop(Lane *lane, TimestampTz now);
extern TimestampTz lane_next_due(Lane *lane);

#endif							/* DOUBLETICK_LANE_H */

/*-------------------------------------------------------------------------
 *
 * drain/lane.h
 *		A lane: what one role has waiting for one server, as the drainer knows it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_LANE_H
#define DOUBLETICK_DRAIN_LANE_H

#include "datatype/timestamp.h"
#include "drain/ring.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "utils/hsearch.h"

/*
 * What the lanes of one server share.  Times are by clock_now(), here and in
 * lanes: a clock that is set back must not keep anything waiting.
 */
typedef struct Server
{
	NameData	name;			/* the key in Schedule.servers */
	int			nlanes;
	int			nrequests;		/* in flight, of all lanes */
	dlist_head	line;			/* lanes with rows to look at now, the next to
								 * be served first */
	bool		is_scheduled;	/* is it in Schedule.servers_due? */
	pairingheap_node node;		/* its node there */
	int64		next_at;		/* when the first lane of the line can be
								 * served; PG_INT64_MAX: when a request of
								 * this server is settled */
} Server;

typedef struct LaneKey
{
	NameData	server;
	Oid			role;
} LaneKey;

typedef struct Lane Lane;

/* A transaction of which rows have been found of late; see lane_push(). */
typedef struct RecentXact
{
	Lane	   *lane;			/* NULL: the entry is free */
	int64		xact;			/* QueueRow.xact */
	int			nrows;			/* found in this lane */
} RecentXact;

#define GROUPS_NRECENT 256

/* The transactions whose rows wait in lanes, as far as they must be told apart. */
typedef struct Groups
{
	MemoryContext context;
	HTAB	   *large;			/* Group */
	RecentXact	recent[GROUPS_NRECENT];
} Groups;

/* Where a lane stands: see schedule_lane(). */
typedef enum LanePlace
{
	LANE_UNPLACED,
	LANE_IN_LINE,				/* of its server */
	LANE_TIMED,					/* in Schedule.lanes_timed */
	LANE_EMPTY					/* in Schedule.lanes_empty */
} LanePlace;

struct Lane
{
	LaneKey		key;			/* the key in Schedule.lanes */
	Server	   *server;
	MemoryContext context;		/* where positions and strings live */

	/* Rows to look at now: see lane.c. */
	int64		nrows;
	Ring		turns;			/* those of the transactions, in turn */
	Groups	   *groups;
	int64		last_xact;		/* whose small group is at the end of "turns", */
	size_t		last_nrows;		/* and how many rows it has there; 0: none */
	Ring		again;			/* rows that were taken, and wait again */
	bool		took_again;		/* was the last row taken from "again"? */

	/* Rows not to be looked at before a time. */
	pairingheap *later;			/* since they were tried, or are locked */
	pairingheap *delayed;		/* since their due_at has not come */
	int64		nlater;			/* in both */

	/*
	 * Is a row looked up by its id before its customer is read?  It may be
	 * settled, since it went out with others, or be a marker.
	 */
	bool		look_up_rows;

	int			nrequests;		/* in flight */

	LanePlace	place;
	dlist_node	line_node;		/* in the line, or in lanes_empty */
	pairingheap_node timed_node;
	int64		not_before;		/* not to be looked at before, since it is
								 * held or its server paused */
	int64		next_at;		/* if LANE_TIMED: until when it waits */

	TimestampTz sending_since;	/* since when it has not been held; 0: it is
								 * held, or was never served */

	/* See hold.c. */
	bool		held;
	uint32		nholds;			/* how many holds there were, this one
								 * included */
	const char *reason;
	const char *hint;			/* what mends it, or NULL */
	const char *definition;
	TimestampTz since;
	TimestampTz probe_at;
};

static inline const char *
lane_server(const Lane *lane)
{
	return NameStr(lane->key.server);
}

extern void groups_init(Groups *groups, MemoryContext context);
extern void lane_init(Lane *lane, Groups *groups);
extern void lane_free(Lane *lane);
extern void lane_push(Lane *lane, int64 xact, Position row);
extern void lane_push_again(Lane *lane, Position row);
extern void lane_push_later(Lane *lane, Position row, int64 when);
extern void lane_push_delayed(Lane *lane, int64 xact, Position row, int64 when);
extern bool lane_is_due(Lane *lane, int64 clock);
extern bool lane_pop(Lane *lane, int64 clock, bool in_turn, Position *row);
extern int64 lane_next_due(Lane *lane);
extern int64 lane_count(const Lane *lane);
extern const char *lane_role_name(const Lane *lane);

#endif							/* DOUBLETICK_DRAIN_LANE_H */

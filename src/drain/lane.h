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
#include "lib/ilist.h"
#include "lib/pairingheap.h"

/* A row to look at: a removal or a keep, which may be settled by now. */
typedef struct Position
{
	int64		id;
	int64		customer;		/* see store_customer() */
} Position;

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

/* Where a lane stands: see schedule_lane(). */
typedef enum LanePlace
{
	LANE_UNPLACED,
	LANE_IN_LINE,				/* of its server */
	LANE_TIMED,					/* in Schedule.lanes_timed */
	LANE_EMPTY					/* in Schedule.lanes_empty */
} LanePlace;

typedef struct Lane
{
	LaneKey		key;			/* the key in Schedule.lanes */
	Server	   *server;
	MemoryContext context;		/* where positions and strings live */

	/* Rows to look at, in a ring: sixteen bytes each. */
	Position   *rows;
	size_t		first;
	size_t		nrows;
	size_t		capacity;

	pairingheap *later;			/* rows not to be looked at before a time */
	int64		nlater;

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
	const char *definition;
	TimestampTz since;
	TimestampTz probe_at;
} Lane;

static inline Position
position_of(int64 id, int64 customer)
{
	Position	position;

	position.id = id;
	position.customer = customer;
	return position;
}

static inline const char *
lane_server(const Lane *lane)
{
	return NameStr(lane->key.server);
}

extern void lane_init(Lane *lane, MemoryContext context);
extern void lane_free(Lane *lane);
extern void lane_push(Lane *lane, Position row);
extern void lane_push_front(Lane *lane, Position row);
extern void lane_push_later(Lane *lane, Position row, int64 when);
extern bool lane_pop(Lane *lane, int64 clock, Position *row);
extern int64 lane_next_due(Lane *lane);
extern int64 lane_count(const Lane *lane);
extern const char *lane_role_name(const Lane *lane);

#endif							/* DOUBLETICK_DRAIN_LANE_H */

/*-------------------------------------------------------------------------
 *
 * drain/schedule.h
 *		Which lane is served next, and when.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_SCHEDULE_H
#define DOUBLETICK_DRAIN_SCHEDULE_H

#include "drain/lane.h"
#include "datatype/timestamp.h"
#include "utils/hsearch.h"

typedef struct Schedule
{
	MemoryContext context;		/* where all of it lives */
	HTAB	   *servers;		/* Server */
	HTAB	   *lanes;			/* Lane */
	Groups		groups;			/* whose rows wait in them */
	Lane	   *last_lane;		/* found last: likely that of the next row */
	pairingheap *servers_due;	/* servers with lanes in line, by next_at */
	pairingheap *lanes_timed;	/* lanes that wait for a time, by next_at */
	dlist_head	lanes_empty;	/* lanes in which nothing waits */
	int			nservers_in_line;	/* servers that have lanes in line */
} Schedule;

extern void schedule_init(Schedule *schedule, MemoryContext parent);
extern Lane *schedule_find_lane(Schedule *schedule, const char *server, Oid role);
extern void schedule_lane(Schedule *schedule, Lane *lane, int64 clock);
extern Lane *schedule_next_lane(Schedule *schedule, int64 clock);
extern void schedule_server(Schedule *schedule, Server *server, int64 next_at);
extern Lane *schedule_next_empty(Schedule *schedule);
extern void schedule_remove_lane(Schedule *schedule, Lane *lane);
extern void schedule_shrink(Schedule *schedule);
extern bool schedule_has_line(const Schedule *schedule);
extern int64 schedule_next_at(Schedule *schedule);
extern int64 schedule_next_due(Schedule *schedule);
extern int64 schedule_count(Schedule *schedule);

#endif							/* DOUBLETICK_DRAIN_SCHEDULE_H */

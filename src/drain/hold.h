/*-------------------------------------------------------------------------
 *
 * drain/hold.h
 *		Holds: what keeps a lane from sending, until it is mended.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_HOLD_H
#define DOUBLETICK_DRAIN_HOLD_H

#include "base/fault.h"
#include "drain/turn.h"

/* What dt_hold says of a lane, for dt_check(). */
typedef struct HoldReason
{
	bool		is_incomplete;	/* is something missing in the definition? */
	char	   *reason;
	char	   *hint;			/* NULL: none */
} HoldReason;

extern bool hold_find_reason(const char *server, Oid role, HoldReason *found);
extern void hold_load(Turn *turn);
extern void hold_write_all(Schedule *schedule);
extern bool hold_allows(Lane *lane, const Fault *fault, TimestampTz now);
extern int64 hold_time_to_probe(const Lane *lane, TimestampTz now);
extern void hold_lane(Lane *lane, const Fault *fault, const char *definition);
extern uint32 hold_number(const Lane *lane);
extern bool hold_believes(const Request *request);
extern void hold_note_probe(Lane *lane);
extern void hold_lift(Lane *lane);
extern void hold_forget(Lane *lane);

#endif							/* DOUBLETICK_DRAIN_HOLD_H */

/*-------------------------------------------------------------------------
 *
 * drain/tally.h
 *		What has become of removals: counted for each lane, warned of and reported.
 *
 *		tally_of_lane()				counts for the lane that a turn works on
 *		tally_prepare_warnings()	makes room for them, before the turn's commit
 *		tally_count_settled()		adds up, after it
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_TALLY_H
#define DOUBLETICK_DRAIN_TALLY_H

#include "drain/lane.h"

struct Drain;
struct Turn;

/* What has become of removals since the drainer began. */
typedef struct Tally
{
	int64		sent;			/* requests, not removals */
	int64		done;
	int64		errored;		/* of the done: not all names were removed */
	int64		failed;
	int64		cancelled;		/* keeps took back every name */
	int64		expired;		/* of the failed: for their age */
	int64		roleless;		/* of the failed: their role was dropped */
} Tally;

/* What was settled of one lane. */
typedef struct LaneTally
{
	LaneKey		key;
	NameData	role;			/* its name, see lane_role_name() */
	Oid			serverid;		/* InvalidOid: it was dropped */
	Tally		tally;
} LaneTally;

extern Tally *tally_of_lane(struct Turn *turn);
extern void tally_prepare_warnings(struct Drain *drain, const struct Turn *turn);
extern void tally_count_settled(struct Drain *drain, const struct Turn *turn);

#endif							/* DOUBLETICK_DRAIN_TALLY_H */

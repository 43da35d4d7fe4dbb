/*-------------------------------------------------------------------------
 *
 * api/pace.h
 *		The pace at which requests may leave for a server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_PACE_H
#define DOUBLETICK_API_PACE_H

#include "datatype/timestamp.h"

extern int64 pace_claim(Oid serverid, double per_second);
extern void pace_return(Oid serverid, double per_second, int64 claimed_at);
extern void pace_note_sent(Oid serverid, double per_second, int64 claimed_at, int64 sent_at);
extern void pace_pause(Oid serverid, int64 microseconds);
extern int64 pace_paused(Oid serverid);

#endif							/* DOUBLETICK_API_PACE_H */

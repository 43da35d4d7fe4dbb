/*-------------------------------------------------------------------------
 *
 * rate.h
 *		The pace at which requests may leave for a server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_RATE_H
#define DOUBLETICK_RATE_H

#include "datatype/timestamp.h"

extern int64 rate_left(Oid serverid, double per_second);
extern int64 rate_claim(Oid serverid, double per_second);
extern void rate_take(Oid serverid, double per_second);
extern int64 rate_wait(Oid serverid, double per_second);
extern void rate_pause(Oid serverid, int64 microseconds);
extern int64 rate_paused(Oid serverid);
extern void rate_sleep(int64 microseconds);
extern void rate_nap(int64 microseconds);
extern int64 rate_clock(void);

#endif							/* DOUBLETICK_RATE_H */

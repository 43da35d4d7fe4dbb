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

extern int64 rate_claim(Oid serverid, double per_second);
extern void rate_return(Oid serverid, double per_second, int64 claimed_at);
extern void rate_sent(Oid serverid, double per_second, int64 claimed_at, int64 sent_at);
extern int64 rate_wait(Oid serverid, double per_second);
extern void rate_pause(Oid serverid, int64 microseconds);
extern int64 rate_paused(Oid serverid);
extern void rate_sleep(int64 microseconds);
extern void rate_nap(int64 microseconds);
extern int64 rate_clock(void);

#endif							/* DOUBLETICK_RATE_H */

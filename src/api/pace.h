/*-------------------------------------------------------------------------
 *
 * api/pace.h
 *		The pace at which requests may leave for an account.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_PACE_H
#define DOUBLETICK_API_PACE_H

#include "account/option.h"
#include "datatype/timestamp.h"

/* What a request's pace depends on, as its server's options say. */
typedef struct Pace
{
	Oid			serverid;
	NameData	account;		/* "": the server has a pace of its own */
	double		rate_limit;		/* requests a second, 0: no limit */
} Pace;

extern Pace pace_of(const Account *account);
extern int64 pace_claim(const Pace *pace);
extern void pace_return(const Pace *pace, int64 claimed_at);
extern void pace_note_sent(const Pace *pace, int64 claimed_at, int64 sent_at);
extern void pace_pause(const Pace *pace, int64 microseconds);
extern int64 pace_paused(const Pace *pace);

#endif							/* DOUBLETICK_API_PACE_H */

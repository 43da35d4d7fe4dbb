/*-------------------------------------------------------------------------
 *
 * drain/outcome.h
 *		What becomes of a queued row after a request.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_OUTCOME_H
#define DOUBLETICK_DRAIN_OUTCOME_H

#include "api/http.h"

/*
 * Longest delay that an outcome can have, in ms: the longest Retry-After that is
 * obeyed, and the longest backoff.
 */
#define OUTCOME_MAX_DELAY ((60 + 15) * 60 * INT64CONST(1000))

/* What is known of a request that is over, and of one row that it carried. */
typedef struct Facts
{
	HttpResult	result;
	int			status;			/* HTTP status, when HTTP_ANSWERED */
	bool		is_object;		/* is the body a JSON object that jsonb can
								 * hold? */
	bool		no_route;		/* does it say "Cannot POST ..."? */
	int64		retry_after;	/* seconds, 0 when the server did not say */
	int			nrows;			/* rows that the request carried */
	int			attempts;		/* made for the row, this one included */
	double		age;			/* ms since the row was enqueued */
	double		retry_for;		/* ms */
} Facts;

typedef enum Verdict
{
	VERDICT_DONE,
	VERDICT_FAILED,
	VERDICT_AGAIN,				/* later, see the delays */
	VERDICT_PARTS,				/* at once, but with fewer other rows */
	VERDICT_HOLD				/* when the hold of its lane ends */
} Verdict;

typedef struct Outcome
{
	Verdict		verdict;
	int64		least_delay;	/* ms until the row may go again */
	int64		random_delay;	/* ms of which a random part comes on top */
	bool		pause;			/* is the server paused for that long? */
	bool		too_old;		/* has it failed only for its age? */
	int			together;		/* most rows that its next request may carry;
								 * 0: no such limit */
} Outcome;

extern Outcome outcome_of(const Facts *facts);

#endif							/* DOUBLETICK_DRAIN_OUTCOME_H */

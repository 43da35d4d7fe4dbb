/*-------------------------------------------------------------------------
 *
 * drain/outcome.c
 *		What becomes of a queued row after a request.
 *
 * outcome_of() is a pure function: it depends on nothing but its argument.
 * test/t/030_outcome.pl compares it with a table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "drain/outcome.h"

/*
 * Exponential backoff with full jitter, in ms: the n-th retry comes after a
 * random part of FIRST_BACKOFF * 2^(n-1), which is at most LAST_BACKOFF.
 */
#define FIRST_BACKOFF INT64CONST(1000)
#define LAST_BACKOFF (15 * 60 * INT64CONST(1000))

/* Longest wait that a server may ask for by Retry-After, in seconds. */
#define MAX_RETRY_AFTER (60 * 60)

StaticAssertDecl(OUTCOME_MAX_DELAY == MAX_RETRY_AFTER * 1000 + LAST_BACKOFF,
				 "a longer delay counts as a mistake of the clock");

/*
 * When a request for several rows has had no usable answer after this many attempts, they
 * are sent in parts: one of them, or all together, may be what the API cannot bear.
 */
#define WHOLE_ATTEMPTS 3

static Verdict verdict_of(const Facts *facts);
static bool is_carried_out(const Facts *facts);
static bool may_be_for_rows(const Facts *facts);
static Verdict verdict_of_status(const Facts *facts);

/*
 * Called by settle.c: the outcome for one row.
 */
Outcome
outcome_of(const Facts *facts)
{
	Outcome		outcome = {.verdict = verdict_of(facts)};

	/* One row must not take the others with it. */
	if (outcome.verdict == VERDICT_FAILED && facts->nrows > 1 && !is_carried_out(facts))
	{
		outcome.verdict = VERDICT_PARTS;
		outcome.together = facts->status == 413 || facts->result == HTTP_TOO_LONG ?
			facts->nrows / 2 : 1;
	}
	if (outcome.verdict != VERDICT_AGAIN)
		return outcome;

	if (facts->nrows > 1 && facts->attempts >= WHOLE_ATTEMPTS && may_be_for_rows(facts))
		outcome.together = facts->nrows / 2;
	outcome.least_delay = Min(facts->retry_after, MAX_RETRY_AFTER) * 1000;
	outcome.random_delay = Min(FIRST_BACKOFF << Min(facts->attempts - 1, 20), LAST_BACKOFF);
	outcome.pause = facts->result == HTTP_ANSWERED && facts->status == 429;
	outcome.too_old = facts->age >= facts->retry_for;
	if (outcome.too_old)
		outcome.verdict = VERDICT_FAILED;
	return outcome;
}

static Verdict
verdict_of(const Facts *facts)
{
	switch (facts->result)
	{
		case HTTP_ANSWERED:
			return verdict_of_status(facts);
		case HTTP_NO_TRUST:
			return VERDICT_HOLD;
		case HTTP_NO_CONNECTION:
		case HTTP_BROKEN_OFF:
		case HTTP_TIMED_OUT:
		case HTTP_NOT_HTTP:
		case HTTP_NO_MEMORY:
			return VERDICT_AGAIN;
		case HTTP_TOO_LONG:		/* and would be so again */
			return VERDICT_FAILED;
	}
	return VERDICT_FAILED;		/* keep compiler quiet */
}

static Verdict
verdict_of_status(const Facts *facts)
{
	if (facts->status >= 200 && facts->status < 300)
		return facts->is_object ? VERDICT_DONE : VERDICT_FAILED;
	if (facts->status >= 500 && facts->status < 600)
		return VERDICT_AGAIN;
	switch (facts->status)
	{
		case 401:
			return VERDICT_HOLD;
		case 404:
			if (facts->no_route)
				return VERDICT_HOLD;
			break;
		case 408:
		case 425:
		case 429:
			return VERDICT_AGAIN;
	}
	return VERDICT_FAILED;
}

/* Does the status say that the removals are done, although the answer cannot be used? */
static bool
is_carried_out(const Facts *facts)
{
	return facts->result == HTTP_ANSWERED && facts->status >= 200 && facts->status < 300;
}

/* May a request that is to be repeated have failed because of what it carried? */
static bool
may_be_for_rows(const Facts *facts)
{
	if (facts->result == HTTP_ANSWERED)
		return facts->status >= 500 || facts->status == 408;
	return facts->result == HTTP_BROKEN_OFF || facts->result == HTTP_TIMED_OUT ||
		facts->result == HTTP_NOT_HTTP;
}

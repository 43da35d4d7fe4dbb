/*-------------------------------------------------------------------------
 *
 * testing.c
 *		SQL functions that only tests have; empty unless built with TESTING=1.
 *
 * The tests declare them with CREATE FUNCTION: the extension's script does not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef DOUBLETICK_TESTING

#include "api/http.h"
#include "drain/outcome.h"
#include "fmgr.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(dt_test_outcome);
PG_FUNCTION_INFO_V1(dt_test_turn);

/*
 * dt_test_outcome(result int, status int, is_object bool, no_route bool,
 * retry_after bigint, coalesced bool, attempts int, age float8, retry_for float8)
 * returns text
 */
Datum
dt_test_outcome(PG_FUNCTION_ARGS)
{
	static const char *const verdicts[] = {"done", "failed", "again", "alone", "hold"};
	Facts		facts = {
		.result = PG_GETARG_INT32(0),
		.status = PG_GETARG_INT32(1),
		.is_object = PG_GETARG_BOOL(2),
		.no_route = PG_GETARG_BOOL(3),
		.retry_after = PG_GETARG_INT64(4),
		.coalesced = PG_GETARG_BOOL(5),
		.attempts = PG_GETARG_INT32(6),
		.age = PG_GETARG_FLOAT8(7),
		.retry_for = PG_GETARG_FLOAT8(8)
	};
	Outcome		outcome = outcome_of(&facts);

	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%s %lld+%lld%s%s", verdicts[outcome.verdict],
											  (long long) outcome.least_delay,
											  (long long) outcome.random_delay,
											  outcome.pause ? " pause" : "",
											  outcome.too_old ? " too old" : "")));
}

/*
 * dt_test_turn(timeout int) returns void
 */
Datum
dt_test_turn(PG_FUNCTION_ARGS)
{
	http_turn(PG_GETARG_INT32(0));
	PG_RETURN_VOID();
}

#endif							/* DOUBLETICK_TESTING */

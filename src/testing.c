/*-------------------------------------------------------------------------
 *
 * testing.c
 *		What only tests need; empty unless built with TESTING=1.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef DOUBLETICK_TESTING

#include <limits.h>
#include <signal.h>
#include <unistd.h>

#include "fault_point.h"
#include "fmgr.h"
#include "outcome.h"
#include "utils/builtins.h"
#include "utils/guc.h"

static char *setting_fault_point;
static int	setting_fault_point_skip;

PG_FUNCTION_INFO_V1(dt_test_outcome);

/*
 * Defines the settings doubletick.fault_point and doubletick.fault_point_skip.
 */
void
fault_point_init(void)
{
	DefineCustomStringVariable("doubletick.fault_point",
							   "Names the place where the process is to be killed.",
							   NULL, &setting_fault_point, "",
							   PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("doubletick.fault_point_skip",
							"Sets how often that place is passed unharmed.",
							NULL, &setting_fault_point_skip, 0, 0, INT_MAX,
							PGC_SUSET, 0, NULL, NULL, NULL);
}

/*
 * Kills the process, as the kernel would that is short of memory, if this is the
 * place.
 */
void
fault_point(const char *name)
{
	static int	passed = 0;

	if (strcmp(name, setting_fault_point) == 0 && passed++ == setting_fault_point_skip)
		kill(getpid(), SIGKILL);
}

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

#endif							/* DOUBLETICK_TESTING */

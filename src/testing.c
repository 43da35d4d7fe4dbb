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

#include "access/htup_details.h"
#include "api/http.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "drain/outcome.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "queue/customer_number.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

static void age_table(QueueRelation table, Datum interval, ArrayType *ids);
static bool array_contains(ArrayType *ids, int64 id);
static void run_alone(EXECUTOR_RUN_ARGUMENTS);

PG_FUNCTION_INFO_V1(dt_test_outcome);
PG_FUNCTION_INFO_V1(dt_test_customer);
PG_FUNCTION_INFO_V1(dt_test_time_passes);
PG_FUNCTION_INFO_V1(dt_test_turn);
PG_FUNCTION_INFO_V1(dt_test_take_run_hook);

/*
 * dt_test_outcome(result int, status int, is_object bool, no_route bool,
 * retry_after bigint, nrows int, attempts int, age float8, retry_for float8)
 * returns text
 */
Datum
dt_test_outcome(PG_FUNCTION_ARGS)
{
	static const char *const verdicts[] = {"done", "failed", "again", "parts", "hold"};
	Facts		facts = {
		.result = PG_GETARG_INT32(0),
		.status = PG_GETARG_INT32(1),
		.is_object = PG_GETARG_BOOL(2),
		.no_route = PG_GETARG_BOOL(3),
		.retry_after = PG_GETARG_INT64(4),
		.nrows = PG_GETARG_INT32(5),
		.attempts = PG_GETARG_INT32(6),
		.age = PG_GETARG_FLOAT8(7),
		.retry_for = PG_GETARG_FLOAT8(8)
	};
	Outcome		outcome = outcome_of(&facts);

	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%s %lld+%lld%s%s%s", verdicts[outcome.verdict],
											  (long long) outcome.least_delay,
											  (long long) outcome.random_delay,
											  outcome.pause ? " pause" : "",
											  outcome.too_old ? " too old" : "",
											  outcome.together ? psprintf(" together %d", outcome.together) : "")));
}

/*
 * dt_test_customer(server text, role oid, phone text, waba text) returns bigint
 *
 * What dt_waiting.customer is for these.
 */
Datum
dt_test_customer(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(customer_number(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									PG_GETARG_OID(1),
									text_to_cstring(PG_GETARG_TEXT_PP(2)),
									PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3))));
}

/*
 * dt_test_time_passes(passed interval, ids bigint[]) returns void
 *
 * Makes the queue as it will be when so much time has passed and nothing else has
 * happened: all its times are moved into the past.  With ids, only those rows of
 * the queue and the history.  A drain that is under way keeps what it has read.
 */
Datum
dt_test_time_passes(PG_FUNCTION_ARGS)
{
	Datum		interval = PG_GETARG_DATUM(0);
	ArrayType  *ids = PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1);

	age_table(RELATION_WAITING, interval, ids);
	age_table(RELATION_SETTLED, interval, ids);
	if (ids == NULL)
		age_table(RELATION_HOLD, interval, NULL);
	PG_RETURN_VOID();
}

/* The ids, where there are any, are those of the table's first column. */
static void
age_table(QueueRelation table, Datum interval, ArrayType *ids)
{
	Store		store;
	TupleDesc	desc;
	SysScanDesc scan;
	HeapTuple	tuple;

	store_open(&store, table);
	desc = RelationGetDescr(store.rel);
	/* This snapshot does not see the rows that are written here. */
	scan = systable_beginscan(store.rel, InvalidOid, false, GetActiveSnapshot(), 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[MaxHeapAttributeNumber];
		bool		nulls[MaxHeapAttributeNumber];
		HeapTuple	older;

		heap_deform_tuple(tuple, desc, values, nulls);
		if (ids && !array_contains(ids, DatumGetInt64(values[0])))
			continue;
		for (int i = 0; i < desc->natts; i++)
		{
			if (TupleDescAttr(desc, i)->atttypid == TIMESTAMPTZOID && !nulls[i])
				values[i] = DirectFunctionCall2(timestamptz_mi_interval, values[i], interval);
		}
		older = heap_form_tuple(desc, values, nulls);
		CatalogTupleUpdate(store.rel, &tuple->t_self, older);
		heap_freetuple(older);
	}
	systable_endscan(scan);
	store_close(&store);
}

static bool
array_contains(ArrayType *ids, int64 id)
{
	int64	   *values = (int64 *) ARR_DATA_PTR(ids);
	int			n = ArrayGetNItems(ARR_NDIM(ids), ARR_DIMS(ids));

	for (int i = 0; i < n; i++)
	{
		if (values[i] == id)
			return true;
	}
	return false;
}

/*
 * dt_test_turn(timeout int) returns void
 */
Datum
dt_test_turn(PG_FUNCTION_ARGS)
{
	http_turn(PG_GETARG_INT32(0), WAIT_ANSWER);
	PG_RETURN_VOID();
}

/*
 * dt_test_take_run_hook() returns void
 *
 * Does for the rest of the session what a library does that has its own
 * ExecutorRun_hook, and does not call the one that was there.
 */
Datum
dt_test_take_run_hook(PG_FUNCTION_ARGS pg_attribute_unused())
{
	ExecutorRun_hook = run_alone;
	PG_RETURN_VOID();
}

static void
run_alone(EXECUTOR_RUN_ARGUMENTS)
{
	standard_ExecutorRun(EXECUTOR_RUN_PASSED);
}

#endif							/* DOUBLETICK_TESTING */

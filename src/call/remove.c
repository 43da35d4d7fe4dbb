/*-------------------------------------------------------------------------
 *
 * call/remove.c
 *		The functions that send a removal at once, and wait for the answer.
 *		The caller's transaction stays open meanwhile; no table is written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call/call.h"
#include "call/open_calls.h"
#include "call/remove.h"
#include "miscadmin.h"
#include "utils/memutils.h"

static Jsonb *run_call(FunctionCallInfo fcinfo, bool raise);

PG_FUNCTION_INFO_V1(dt_payload);
PG_FUNCTION_INFO_V1(dt_remove_tags_custom_fields);
PG_FUNCTION_INFO_V1(dt_try_remove_tags_custom_fields);

/*
 * dt_payload(phone text, tags text[], fields text[], waba text) returns jsonb
 *
 * Lacks the server's waba_number, which only a request gets.
 */
Datum
dt_payload(PG_FUNCTION_ARGS)
{
	Removal		removal;
	Fault	   *fault = payload_read_arguments(fcinfo, &removal);

	if (fault)
	{
		fault_about(fault, removal.phone, NULL, GetUserId());
		fault_raise(fault);
	}
	PG_RETURN_JSONB_P(payload_jsonb(&removal, NULL));
}

/*
 * dt_remove_tags_custom_fields(phone text, tags text[], fields text[],
 * waba text, server text) returns jsonb
 */
Datum
dt_remove_tags_custom_fields(PG_FUNCTION_ARGS)
{
	PG_RETURN_JSONB_P(run_call(fcinfo, true));
}

/*
 * dt_try_remove_tags_custom_fields(phone text, tags text[], fields text[],
 * waba text, server text) returns jsonb
 */
Datum
dt_try_remove_tags_custom_fields(PG_FUNCTION_ARGS)
{
	PG_RETURN_JSONB_P(run_call(fcinfo, false));
}

/*
 * Makes a call in a memory context of its own, and waits until it is over.  "raise"
 * says whether a fault is raised or returned.
 */
static Jsonb *
run_call(FunctionCallInfo fcinfo, bool raise)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "doubletick call",
												  ALLOCSET_DEFAULT_SIZES);
	Call	   *call = call_make(context, fcinfo, raise);
	Jsonb	   *result;

	while (!call_is_over(call))
		calls_turn();
	MemoryContextSwitchTo(context);
	result = call_result(call);
	MemoryContextSwitchTo(caller);
	result = memcpy(palloc(VARSIZE(result)), result, VARSIZE(result));
	MemoryContextDelete(context);
	return result;
}

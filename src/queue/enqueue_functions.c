/*-------------------------------------------------------------------------
 *
 * queue/enqueue_functions.c
 *		The SQL functions that enqueue removals and keeps.
 *
 * They check the arguments and say whose request it is; enqueue.c does the rest.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/account.h"
#include "base/extension.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue/citus.h"
#include "queue/enqueue.h"
#include "settings.h"
#include "utils/builtins.h"

pg_noreturn static void raise_fault(FunctionCallInfo fcinfo, Fault *fault);
static bool has_no_names(FunctionCallInfo fcinfo);
static const char **read_names_leniently(FunctionCallInfo fcinfo, int argument, int *nnames);
static const char *get_server(FunctionCallInfo fcinfo);
static void get_requester(FunctionCallInfo fcinfo, Requester *requester);
static int64 enqueue_one(const Requester *requester, const Removal *removal);

PG_FUNCTION_INFO_V1(dt_enqueue_remove_tags_custom_fields);
PG_FUNCTION_INFO_V1(dt_try_enqueue_remove_tags_custom_fields);
PG_FUNCTION_INFO_V1(dt_keep);

/*
 * dt_enqueue_remove_tags_custom_fields(phone text, tags text[], fields text[],
 * waba text, server text) returns bigint
 */
Datum
dt_enqueue_remove_tags_custom_fields(PG_FUNCTION_ARGS)
{
	Requester	requester;
	Removal		removal;
	Fault	   *fault;

	queue_check_writable("dt_enqueue_remove_tags_custom_fields()");
	citus_check_transaction("dt_enqueue_remove_tags_custom_fields()");
	fault = payload_read_arguments(fcinfo, &removal);
	if (fault)
		raise_fault(fcinfo, fault);
	get_requester(fcinfo, &requester);
	PG_RETURN_INT64(enqueue_one(&requester, &removal));
}

/*
 * dt_try_enqueue_remove_tags_custom_fields(phone text, tags text[], fields text[],
 * waba text, server text) returns bigint
 *
 * Like its sibling, but inserts a removal with bad arguments into the history, as
 * failed.
 */
Datum
dt_try_enqueue_remove_tags_custom_fields(PG_FUNCTION_ARGS)
{
	Requester	requester;
	Removal		removal;
	Fault	   *fault;

	queue_check_writable("dt_try_enqueue_remove_tags_custom_fields()");
	citus_check_transaction("dt_try_enqueue_remove_tags_custom_fields()");
	fault = payload_read_arguments(fcinfo, &removal);
	get_requester(fcinfo, &requester);
	if (fault == NULL)
		PG_RETURN_INT64(enqueue_one(&requester, &removal));

	/* Records what was given, as far as it is a removal's. */
	removal.phone = PG_ARGISNULL(0) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(0));
	removal.waba = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));
	removal.tags = read_names_leniently(fcinfo, 1, &removal.ntags);
	removal.fields = read_names_leniently(fcinfo, 2, &removal.nfields);
	PG_RETURN_INT64(queue_add_failed(&requester, &removal, fault->message));
}

/*
 * dt_keep(phone text, tags text[], fields text[], waba text, server text) returns boolean
 *
 * For triggers that people write themselves: the customer has these names again, so
 * no removal that waits may take them.  True when one would have.
 */
Datum
dt_keep(PG_FUNCTION_ARGS)
{
	Requester	requester;
	Removal		names;
	Fault	   *fault;
	Queue	   *queue;

	queue_check_writable("dt_keep()");
	citus_check_transaction("dt_keep()");
	fault = payload_read_arguments(fcinfo, &names);
	if (fault && !has_no_names(fcinfo))
		raise_fault(fcinfo, fault);
	get_requester(fcinfo, &requester);
	if (fault)
		PG_RETURN_BOOL(false);
	queue = queue_open(1);
	queue_add_keep(queue, &requester, &names, NULL);
	queue_close(queue);
	PG_RETURN_BOOL(!payload_is_empty(&names));
}

/* A row that has no names is no fault of a keep, as it is of a removal. */
static bool
has_no_names(FunctionCallInfo fcinfo)
{
	for (int i = 1; i <= 2; i++)
	{
		if (!PG_ARGISNULL(i) && ARR_NDIM(PG_GETARG_ARRAYTYPE_P(i)) > 0)
			return false;
	}
	return true;
}

/* Says which row of a bulk statement it is. */
static void
raise_fault(FunctionCallInfo fcinfo, Fault *fault)
{
	fault_about(fault, PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0)),
				get_server(fcinfo), GetUserId());
	fault_raise(fault);
}

/* The names in an array of any shape, without nulls, for the history. */
static const char **
read_names_leniently(FunctionCallInfo fcinfo, int argument, int *nnames)
{
	Datum	   *elements;
	bool	   *nulls;
	const char **names;
	int			nelements;

	*nnames = 0;
	if (PG_ARGISNULL(argument))
		return NULL;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argument), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &nelements);
	names = palloc(sizeof(char *) * Max(nelements, 1));
	for (int i = 0; i < nelements; i++)
	{
		if (!nulls[i])
			names[(*nnames)++] = TextDatumGetCString(elements[i]);
	}
	return names;
}

/* The server that the fifth argument names, or else the setting. */
static const char *
get_server(FunctionCallInfo fcinfo)
{
	return PG_ARGISNULL(4) ? setting_server : text_to_cstring(PG_GETARG_TEXT_PP(4));
}

/* The current role, and the server.  Raises an error if there is no such server. */
static void
get_requester(FunctionCallInfo fcinfo, Requester *requester)
{
	const char *server = get_server(fcinfo);
	Fault	   *fault = account_check_server(server);

	if (fault && !PG_ARGISNULL(4))
		account_hint_argument(fault, server);
	if (fault)
		fault_raise(fault);
	requester->server = server;
	requester->role = GetUserId();
	requester->enqueued_by = GetOuterUserId();
	requester->delay = account_delay(server);
	requester->origin = 0;
}

static int64
enqueue_one(const Requester *requester, const Removal *removal)
{
	Queue	   *queue = queue_open(1);
	int64		id = queue_add_removal(queue, requester, removal);

	queue_close(queue);
	return id;
}

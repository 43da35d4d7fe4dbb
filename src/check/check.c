/*-------------------------------------------------------------------------
 *
 * check/check.c
 *		dt_check(): what is wrong in this database, and what mends it.
 *
 * Looks at everything that a removal needs on its way: our tables, settings, servers,
 * user mappings (servers.c), triggers (triggers.c), what waits, and the worker (queue.c).
 * Writes nothing, and sends no request.  The function is SECURITY DEFINER, since the
 * catalogs and tables that it reads are not everybody's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/extension.h"
#include "check/check.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/tuplestore.h"

static char *format_text(const char *format, va_list args) pg_attribute_printf(1, 0);

PG_FUNCTION_INFO_V1(dt_check);

/*
 * dt_check(connect boolean) returns table (object text, problem text, hint text)
 */
Datum
dt_check(PG_FUNCTION_ARGS)
{
	Check		check = {0};
	Fault	   *fault;

	InitMaterializedSRF(fcinfo, 0);
	check.result = (ReturnSetInfo *) fcinfo->resultinfo;
	check.connect = !PG_ARGISNULL(0) && PG_GETARG_BOOL(0);
	check.namespace = get_func_namespace(fcinfo->flinfo->fn_oid);
	check.schema = quote_identifier(get_namespace_name(check.namespace));

	fault = extension_version_fault();
	if (fault)
	{
		/* Nothing else can be looked at with the wrong library. */
		report_problem(&check, "extension doubletick", fault->hint, "%s", fault->message);
		PG_RETURN_NULL();
	}

	SPI_connect();
	check_tables(&check);
	check_privileges(&check);
	check_sequence_is_own(&check);
	check_owners(&check);
	check_settings(&check);
	check_servers(&check);
	check_triggers(&check);
	check_partitions(&check);
	check_first_copies(&check);
	if (check.tables_are_good)
		check_what_waits(&check);
	/* The queue of a standby is sent by its primary. */
	if (!RecoveryInProgress())
		check_worker(&check);
	SPI_finish();
	PG_RETURN_NULL();
}

/*
 * Adds a row to the result.  "hint" may be NULL.
 */
void
report_problem(Check *check, const char *object, const char *hint, const char *format,...)
{
	Datum		values[3];
	bool		nulls[3] = {false, false, hint == NULL};
	va_list		args;

	va_start(args, format);
	values[1] = CStringGetTextDatum(format_text(format, args));
	va_end(args);
	values[0] = CStringGetTextDatum(object);
	values[2] = hint ? CStringGetTextDatum(hint) : (Datum) 0;
	tuplestore_putvalues(check->result->setResult, check->result->setDesc, values, nulls);
}

/*
 * Calls a function that may raise an error, and returns the error as a fault.  What the
 * function has locked or opened is released.
 */
Fault *
catch_fault(void (*function) (void *), void *subject)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Fault	   *volatile fault = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		function(subject);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(error);
		fault = fault_make(error->sqlerrcode, "%s", error->message);
		if (error->hint || error->detail)
			fault_hint(fault, "%s", error->hint ? error->hint : error->detail);
	}
	PG_END_TRY();
	return fault;
}

/*
 * Runs a query, and returns its number of rows, which SPI_tuptable has.
 */
uint64
select_rows(const char *format,...)
{
	va_list		args;
	char	   *query;

	va_start(args, format);
	query = format_text(format, args);
	va_end(args);
	if (SPI_execute(query, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run query: %s", query);
	return SPI_processed;
}

/* As psprintf(), for those that are called with arguments of their own. */
static char *
format_text(const char *format, va_list args)
{
	StringInfoData text;
	int			needed;

	initStringInfo(&text);
	do
	{
		va_list		copy;

		va_copy(copy, args);
		needed = appendStringInfoVA(&text, format, copy);
		va_end(copy);
		if (needed > 0)
			enlargeStringInfo(&text, needed);
	} while (needed > 0);
	return text.data;
}

/*
 * A column of a row that select_rows() has put into SPI_tuptable; NULL for null.
 */
char *
selected_text(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

Oid
selected_oid(uint64 row, int column)
{
	bool		isnull;

	return DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
										  column, &isnull));
}

bool
selected_bool(uint64 row, int column)
{
	bool		isnull;

	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
									  column, &isnull));
}

/*-------------------------------------------------------------------------
 *
 * empty_trigger.c
 *		A trigger function that does nothing: what PostgreSQL itself takes to fire
 *		one, for "trigger" and "instructions" beside this file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(empty);

Datum
empty(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	return PointerGetDatum(NULL);
}

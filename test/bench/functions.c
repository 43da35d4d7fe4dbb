/*-------------------------------------------------------------------------
 *
 * functions.c
 *		Functions in the server, for "trigger" and "instructions" beside this file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "storage/fd.h"

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(empty);
PG_FUNCTION_INFO_V1(allow_descriptors);

/* A trigger that does nothing: what PostgreSQL itself takes to fire one. */
Datum
empty(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	return PointerGetDatum(NULL);
}

/*
 * Allows as many file descriptors as a server with max_files_per_process = 1000 does.
 * In single-user mode there are 32, which is enough for 3 connections.
 */
Datum
allow_descriptors(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	max_safe_fds = 990;			/* the server keeps 10 for itself */
	PG_RETURN_VOID();
}

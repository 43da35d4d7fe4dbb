/*-------------------------------------------------------------------------
 *
 * call/remove.h
 *		The functions that send a removal at once, and wait for the answer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_REMOVE_H
#define DOUBLETICK_CALL_REMOVE_H

#include "fmgr.h"

extern PGDLLEXPORT Datum dt_remove_tags_custom_fields(PG_FUNCTION_ARGS);
extern PGDLLEXPORT Datum dt_try_remove_tags_custom_fields(PG_FUNCTION_ARGS);

#endif							/* DOUBLETICK_CALL_REMOVE_H */

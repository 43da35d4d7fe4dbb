/*-------------------------------------------------------------------------
 *
 * definition.h
 *		What a trigger's definition says, checked and looked up.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DEFINITION_H
#define DOUBLETICK_DEFINITION_H

#include "column.h"
#include "commands/trigger.h"
#include "queue.h"

typedef struct Definition
{
	Columns		columns;
	Requester	requester;		/* but for "enqueued_by" */
} Definition;

extern Definition *definition_get(FunctionCallInfo fcinfo);

#endif							/* DOUBLETICK_DEFINITION_H */

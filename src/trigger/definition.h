/*-------------------------------------------------------------------------
 *
 * trigger/definition.h
 *		What a trigger's definition says, checked and looked up.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_TRIGGER_DEFINITION_H
#define DOUBLETICK_TRIGGER_DEFINITION_H

#include "commands/trigger.h"
#include "queue/enqueue.h"
#include "trigger/columns.h"

typedef struct Definition
{
	Columns		columns;
	Requester	requester;		/* but for "enqueued_by" */
} Definition;

extern Definition *definition_get(FunctionCallInfo fcinfo);

#endif							/* DOUBLETICK_TRIGGER_DEFINITION_H */

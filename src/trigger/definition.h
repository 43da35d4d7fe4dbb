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
	const char *own_waba;		/* the server's, which stands in for NULL; or
								 * NULL */
} Definition;

extern Definition *definition_get(FunctionCallInfo fcinfo);
extern const char *definition_waba(const Definition *definition, const char *waba);

#endif							/* DOUBLETICK_TRIGGER_DEFINITION_H */

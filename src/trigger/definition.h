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
	Requester	requester;		/* the caller sets "enqueued_by" */
	const char *own_waba;		/* the server's, which requests carry when a
								 * row has none; or NULL */
} Definition;

extern Definition *definition_get(FunctionCallInfo fcinfo);
extern Requester definition_check(Relation rel, const Trigger *trigger);
extern const char *definition_waba(const Definition *definition, const char *waba);

#endif							/* DOUBLETICK_TRIGGER_DEFINITION_H */

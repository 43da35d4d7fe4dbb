/*-------------------------------------------------------------------------
 *
 * trigger/trigger.c
 *		The trigger function: has DoubleTick follow a customers table.
 *
 * A trigger for each row compares the row before and after (row.c); a trigger
 * for each statement compares what its transition tables say of each customer
 * (statement.c).  Neither runs SQL or reads rows that the statement did not change.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "trigger/definition.h"
#include "trigger/row.h"
#include "trigger/statement.h"
#include "utils/rel.h"

static void name_trigger(void *data);

PG_FUNCTION_INFO_V1(dt_remove_tags_custom_fields_trigger);

/*
 * dt_remove_tags_custom_fields_trigger() returns trigger
 *
 * Arguments: the columns of phone, tags, fields and waba, and a server.
 */
Datum
dt_remove_tags_custom_fields_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	ErrorContextCallback context = {error_context_stack, name_trigger, data};
	Definition *definition;

	if (CALLED_AS_TRIGGER(fcinfo))
		error_context_stack = &context;
	definition = definition_get(fcinfo);
	definition->requester.enqueued_by = GetOuterUserId();
	if (TRIGGER_FIRED_FOR_ROW(data->tg_event))
		row_fired(definition, data);
	else
		statement_fired(definition, data);
	error_context_stack = context.previous;
	return PointerGetDatum(NULL);
}

/* For whoever changed a row, and may know of no trigger. */
static void
name_trigger(void *data)
{
	const TriggerData *trigger_data = data;

	errcontext("trigger \"%s\" of table \"%s\"", trigger_data->tg_trigger->tgname,
			   RelationGetRelationName(trigger_data->tg_relation));
}

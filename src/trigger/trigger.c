/*-------------------------------------------------------------------------
 *
 * trigger/trigger.c
 *		The trigger: a customers table changes, DoubleTick follows.
 *
 * For each row, the difference is taken between the two tuples; for each
 * statement, between what its transition tables say of each customer.  Neither
 * runs SQL, and neither looks at rows that the statement did not touch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "trigger/definition.h"
#include "trigger/difference.h"
#include "trigger/gains.h"
#include "trigger/statement.h"
#include "utils/rel.h"

static void row_fired(Definition *definition, const TriggerData *data);
static bool may_be_ours(const TriggerData *data);
static void renumber(Definition *definition, const TriggerData *data, TupleTableSlot *old,
					 TupleTableSlot *new);
static uint32 row_number(const TriggerData *data, const TupleTableSlot *slot);
static Removal *read_row(Definition *definition, TupleTableSlot *slot, Removal *row);

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
	Definition *definition = definition_get(fcinfo);

	definition->requester.enqueued_by = GetOuterUserId();
	if (TRIGGER_FIRED_FOR_ROW(data->tg_event))
		row_fired(definition, data);
	else
		statement_fired(definition, data);
	return PointerGetDatum(NULL);
}

/* What is allocated here goes when the trigger has returned. */
static void
row_fired(Definition *definition, const TriggerData *data)
{
	TupleTableSlot *old = NULL;
	TupleTableSlot *new = NULL;
	const Requester *requester = &definition->requester;
	Removal		had;
	Removal		has = {0};
	Removal		lost;
	Queue	   *queue;

	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		new = data->tg_trigslot;
	else
		old = data->tg_trigslot;
	if (TRIGGER_FIRED_BY_UPDATE(data->tg_event))
	{
		new = data->tg_newslot;
		if (columns_equal(&definition->columns, old, new))
		{
			if (gains_any() && may_be_ours(data))
				renumber(definition, data, old, new);
			return;
		}
	}
	difference_row(requester, read_row(definition, old, &had), row_number(data, old),
			   read_row(definition, new, &has), row_number(data, new), &lost);
	queue = queue_open(1);
	if (difference_may_keep(queue, requester, &has))
		difference_keep(queue, requester, &has);
	difference_remove(queue, requester, &lost);
	queue_close(queue);
}

/*
 * May this transaction have made the row as it was before?  Only a heap's rows
 * say, those that COPY has frozen among them.
 */
static bool
may_be_ours(const TriggerData *data)
{
	return data->tg_relation->rd_rel->relam != HEAP_TABLE_AM_OID ||
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetRawXmin(data->tg_trigtuple->t_data));
}

/* What a row has gained it has still, at another place. */
static void
renumber(Definition *definition, const TriggerData *data, TupleTableSlot *old,
		 TupleTableSlot *new)
{
	Removal		names;

	read_row(definition, old, &names);
	if (names.phone == NULL)
		return;
	gains_withdraw(&definition->requester, &names, row_number(data, old));
	gains_record(&definition->requester, &names, row_number(data, new));
}

/*
 * By its place, in a file: who rewrites the table gives its rows other places, and
 * a gain whose row is not known any more had better stay.  A foreign table's rows
 * have none.
 */
static uint32
row_number(const TriggerData *data, const TupleTableSlot *slot)
{
	uint32		number;

	if (slot == NULL || !ItemPointerIsValid(&slot->tts_tid))
		return GAINS_ANY_ROW;
	number = hash_bytes((const unsigned char *) &slot->tts_tid, sizeof(ItemPointerData));
	number = hash_combine(number, RelationGetRelid(data->tg_relation));
	number = hash_combine(number, data->tg_relation->rd_rel->relfilenode);
	return Max(number, GAINS_ANY_ROW + 1);
}

static Removal *
read_row(Definition *definition, TupleTableSlot *slot, Removal *row)
{
	if (slot == NULL)
		return NULL;
	columns_read_customer(&definition->columns, slot, row);
	columns_read_names(&definition->columns, slot, row);
	return row;
}

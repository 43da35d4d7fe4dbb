/*-------------------------------------------------------------------------
 *
 * trigger/row.c
 *		The trigger at row level.
 *
 * It fires once for each changed row, usually after all rows of the statement
 * have been changed.  A row whose columns of interest are equal before and after
 * must cost next to nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_trigger.h"
#include "common/hashfn.h"
#include "trigger/difference.h"
#include "trigger/gains.h"
#include "trigger/row.h"
#include "utils/rel.h"

static void renumber_row(Definition *definition, const TriggerData *data);
static void adopt_gains(Definition *definition, const TriggerData *data, const Removal *had);
static bool row_may_have_gained(const TriggerData *data);
static uint32 number_by_place(const TriggerData *data, const TupleTableSlot *slot);

/*
 * Called when a trigger for each row has fired: enqueues a removal of what the row's
 * customer has lost, and a keep of what it has.  The caller's memory context lives
 * until the trigger function has returned.
 */
void
row_fired(Definition *definition, const TriggerData *data)
{
	Columns    *columns = &definition->columns;
	TupleTableSlot *old = NULL;
	TupleTableSlot *new = NULL;
	Removal		had;
	Removal		has;
	Removal		lost;
	bool		has_more;		/* may "has" lack names? */
	Queue	   *queue;

	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		new = data->tg_trigslot;
	else
		old = data->tg_trigslot;
	if (TRIGGER_FIRED_BY_UPDATE(data->tg_event))
	{
		new = data->tg_newslot;
		if (columns_equal(columns, old, new))
		{
			if (gains_any() && row_may_have_gained(data))
				renumber_row(definition, data);
			return;
		}
	}
	has_more = columns_read_versions(columns, old, new, gains_any(), &had, &has);
	if (new == NULL && gains_any() && !TRIGGER_FOR_UPDATE(data->tg_trigger->tgtype) &&
		row_may_have_gained(data))
		adopt_gains(definition, data, &had);
	difference_row(definition, &had, number_by_place(data, old), &has, number_by_place(data, new),
				   &lost);
	queue = queue_open(1);
	if (difference_may_keep(queue, &has, has_more))
	{
		if (has_more)
			columns_read_names(columns, new, &has);
		difference_keep(queue, definition, &has, &lost);
	}
	difference_remove(queue, definition, &lost);
	queue_close(queue);
}

/* An UPDATE has moved the row: its gains get the number of its new place. */
static void
renumber_row(Definition *definition, const TriggerData *data)
{
	Removal		names;

	columns_read_row(&definition->columns, data->tg_trigslot, &names);
	gains_renumber(definition, &names, number_by_place(data, data->tg_trigslot),
				   number_by_place(data, data->tg_newslot));
}

/*
 * A trigger that does not fire on UPDATE has not seen how a row moved that this
 * transaction has written.
 */
static void
adopt_gains(Definition *definition, const TriggerData *data, const Removal *had)
{
	Removal		names = *had;

	gains_adopt(definition, &names, number_by_place(data, data->tg_trigslot));
}

/*
 * Can this transaction have written the old version of the row?  If not, the row has
 * gained nothing so far.  Only a heap's rows say who wrote them; those that COPY has
 * frozen do, too.
 */
static bool
row_may_have_gained(const TriggerData *data)
{
	return data->tg_relation->rd_rel->relam != HEAP_TABLE_AM_OID ||
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetRawXmin(data->tg_trigtuple->t_data));
}

/*
 * The row's number for gains.c: a hash of its TID and of the table's file.  The file
 * counts because a rewrite of the table gives its rows other TIDs: then no row must
 * be taken for one that has gained something.  Rows of a foreign table have no TID.
 */
static uint32
number_by_place(const TriggerData *data, const TupleTableSlot *slot)
{
	uint32		number;

	if (slot == NULL || !ItemPointerIsValid(&slot->tts_tid))
		return GAINS_ANY_ROW;
	number = hash_bytes((const unsigned char *) &slot->tts_tid, sizeof(ItemPointerData));
	number = hash_combine(number, RelationGetRelid(data->tg_relation));
	number = hash_combine(number, data->tg_relation->rd_rel->relfilenode);
	return Max(number, GAINS_ANY_ROW + 1);
}

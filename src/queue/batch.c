/*-------------------------------------------------------------------------
 *
 * queue/batch.c
 *		Rows that one statement enters into dt_waiting together.
 *
 * A statement may lose names of a hundred thousand customers.  Many tuples at
 * once fill a page under one lock and with one WAL record.  Into the index of
 * customers they come in no order at all: its entries are put by until there are
 * very many, and entered in its order, so that each finds the pages that the one
 * before it has used.  Until then nobody finds the rows, not even this
 * transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "queue/batch.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* Tuples of a batch: a few pages full, as a rule. */
#define MOST_TUPLES 256

/* Their bytes from which on they are entered, however few they are. */
#define MOST_BYTES (64 * 1024)

/* Entries that the index of customers still lacks: 1.5 MB. */
#define MOST_KEYS (64 * 1024)

struct Batch
{
	Store	   *waiting;
	MemoryContext context;		/* of tuples */
	int			ntuples;
	Size		nbytes;
	TupleTableSlot *slots[MOST_TUPLES]; /* NULL: not needed so far */
	HeapTuple	tuples[MOST_TUPLES];	/* the same, which the slots own */
	WaitingKey *keys;			/* of rows whose tuples are entered or not */
	int			nkeys;
	int			max_keys;
};

static void enter_tuples(Batch *batch);
static void enter_all(Batch *batch);
static inline int compare_keys(const WaitingKey *a, const WaitingKey *b);

#define ST_SORT sort_keys
#define ST_ELEMENT_TYPE WaitingKey
#define ST_COMPARE(a, b) compare_keys((a), (b))
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/*
 * A batch of about so many rows, for a table that stays open until
 * batch_finish().
 */
Batch *
batch_create(Store *waiting, int64 nrows)
{
	Batch	   *batch = palloc0(sizeof(Batch));

	batch->waiting = waiting;
	batch->context = AllocSetContextCreate(CurrentMemoryContext, "doubletick batch",
										   ALLOCSET_DEFAULT_SIZES);
	batch->max_keys = Max(MOST_TUPLES, Min(nrows, MOST_KEYS));
	batch->keys = palloc(sizeof(WaitingKey) * batch->max_keys);
	return batch;
}

/*
 * Adds a row, which is entered now or later.
 */
void
batch_add(Batch *batch, const QueueRow *row)
{
	MemoryContext caller = MemoryContextSwitchTo(batch->context);
	HeapTuple	tuple = store_form_waiting(batch->waiting, row);
	int			n = batch->ntuples++;

	MemoryContextSwitchTo(GetMemoryChunkContext(batch));
	if (batch->slots[n] == NULL)
		batch->slots[n] = MakeSingleTupleTableSlot(RelationGetDescr(batch->waiting->rel),
												   &TTSOpsHeapTuple);
	MemoryContextSwitchTo(caller);
	ExecStoreHeapTuple(tuple, batch->slots[n], true);
	batch->tuples[n] = tuple;
	batch->keys[batch->nkeys++] = store_key_of(row);
	batch->nbytes += tuple->t_len;
	if (batch->nkeys == batch->max_keys)
		enter_all(batch);
	else if (batch->ntuples == MOST_TUPLES || batch->nbytes >= MOST_BYTES)
		enter_tuples(batch);
}

/*
 * Enters what is left, and frees the batch.
 */
void
batch_finish(Batch *batch)
{
	enter_all(batch);
	for (int i = 0; i < MOST_TUPLES && batch->slots[i] != NULL; i++)
		ExecDropSingleTupleTableSlot(batch->slots[i]);
	MemoryContextDelete(batch->context);
	pfree(batch->keys);
	pfree(batch);
}

/* Into all but the index of customers. */
static void
enter_tuples(Batch *batch)
{
	Store	   *waiting = batch->waiting;
	WaitingKey *keys = &batch->keys[batch->nkeys - batch->ntuples];
	MemoryContext caller = MemoryContextSwitchTo(batch->context);

	if (batch->ntuples > 0)
		heap_multi_insert(waiting->rel, batch->slots, batch->ntuples, GetCurrentCommandId(true),
						  0, NULL);
	for (int i = 0; i < batch->ntuples; i++)
	{
		/* Where a copy went, if the tuple had to be made smaller. */
		keys[i].tid = batch->slots[i]->tts_tid;
		store_insert_key(waiting, BY_ID, &keys[i]);
		batch->tuples[i]->t_self = keys[i].tid;
		store_insert_index_entries(waiting, BY_CUSTOMER + 1, batch->tuples[i]);
		ExecClearTuple(batch->slots[i]);
	}
	batch->ntuples = 0;
	batch->nbytes = 0;
	MemoryContextSwitchTo(caller);
	MemoryContextReset(batch->context);
}

/* Into that, too. */
static void
enter_all(Batch *batch)
{
	enter_tuples(batch);
	sort_keys(batch->keys, batch->nkeys);
	for (int i = 0; i < batch->nkeys; i++)
	{
		CHECK_FOR_INTERRUPTS();
		store_insert_key(batch->waiting, BY_CUSTOMER, &batch->keys[i]);
	}
	batch->nkeys = 0;
}

/* In the order of the index. */
static inline int
compare_keys(const WaitingKey *a, const WaitingKey *b)
{
	if (a->customer != b->customer)
		return a->customer < b->customer ? -1 : 1;
	if (a->keep != b->keep)
		return a->keep ? 1 : -1;
	return (a->id > b->id) - (a->id < b->id);
}

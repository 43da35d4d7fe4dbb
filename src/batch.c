/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Rows that one statement enters into dt_waiting together.
 *
 * A statement may lose names of a hundred thousand customers.  Many tuples at
 * once fill a page under one lock and with one WAL record, and entries that an
 * index is given one after the other, in its order, find its pages still at
 * hand.  Until then nobody can see the rows, not even this transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "batch.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* Rows of a batch: a few pages full, as a rule. */
#define MOST_ROWS 256

/* Bytes of tuples from which on a batch is entered, however few rows it has. */
#define MOST_BYTES (64 * 1024)

/* The place of a row in the order of customers. */
typedef struct Place
{
	int64		customer;
	int			row;
} Place;

struct Batch
{
	Store	   *waiting;
	MemoryContext context;		/* of tuples */
	int			nrows;
	Size		nbytes;
	TupleTableSlot *slots[MOST_ROWS];	/* NULL: not needed so far */
	HeapTuple	tuples[MOST_ROWS];	/* the same, which the slots own */
	Place		places[MOST_ROWS];
};

static void enter(Batch *batch);
static int	compare_places(const void *a, const void *b);

/*
 * A batch for a table that stays open until batch_finish().
 */
Batch *
batch_create(Store *waiting)
{
	Batch	   *batch = palloc0(sizeof(Batch));

	batch->waiting = waiting;
	batch->context = AllocSetContextCreate(CurrentMemoryContext, "doubletick batch",
										   ALLOCSET_DEFAULT_SIZES);
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
	int			n = batch->nrows++;

	MemoryContextSwitchTo(GetMemoryChunkContext(batch));
	if (batch->slots[n] == NULL)
		batch->slots[n] = MakeSingleTupleTableSlot(RelationGetDescr(batch->waiting->rel),
												   &TTSOpsHeapTuple);
	MemoryContextSwitchTo(caller);
	ExecStoreHeapTuple(tuple, batch->slots[n], true);
	batch->tuples[n] = tuple;
	batch->places[n].customer = row->customer;
	batch->places[n].row = n;
	batch->nbytes += tuple->t_len;
	if (batch->nrows == MOST_ROWS || batch->nbytes >= MOST_BYTES)
		enter(batch);
}

/*
 * Enters what is left, and frees the batch.
 */
void
batch_finish(Batch *batch)
{
	enter(batch);
	for (int i = 0; i < MOST_ROWS && batch->slots[i] != NULL; i++)
		ExecDropSingleTupleTableSlot(batch->slots[i]);
	MemoryContextDelete(batch->context);
	pfree(batch);
}

static void
enter(Batch *batch)
{
	Store	   *waiting = batch->waiting;
	MemoryContext caller = MemoryContextSwitchTo(batch->context);

	if (batch->nrows > 0)
		heap_multi_insert(waiting->rel, batch->slots, batch->nrows, GetCurrentCommandId(true),
						  0, NULL);
	for (int i = 0; i < batch->nrows; i++)
	{
		/* Where a copy went, if the tuple had to be made smaller. */
		batch->tuples[i]->t_self = batch->slots[i]->tts_tid;
		store_insert_index_entry(waiting, BY_ID, batch->tuples[i]);
	}
	qsort(batch->places, batch->nrows, sizeof(Place), compare_places);
	for (int place = BY_CUSTOMER; place < waiting->nindexes; place++)
	{
		for (int i = 0; i < batch->nrows; i++)
			store_insert_index_entry(waiting, place, batch->tuples[batch->places[i].row]);
	}

	for (int i = 0; i < batch->nrows; i++)
		ExecClearTuple(batch->slots[i]);
	batch->nrows = 0;
	batch->nbytes = 0;
	MemoryContextSwitchTo(caller);
	MemoryContextReset(batch->context);
}

/* Rows of one customer stay in their order. */
static int
compare_places(const void *a, const void *b)
{
	const Place *x = a;
	const Place *y = b;

	if (x->customer != y->customer)
		return x->customer < y->customer ? -1 : 1;
	return x->row - y->row;
}

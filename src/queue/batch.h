/*-------------------------------------------------------------------------
 *
 * queue/batch.h
 *		Rows that one statement enters into dt_waiting together.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_BATCH_H
#define DOUBLETICK_QUEUE_BATCH_H

#include "queue/store.h"

typedef struct Batch Batch;

extern Batch *batch_create(Store *waiting, int64 nrows);
extern void batch_add(Batch *batch, const QueueRow *row);
extern void batch_finish(Batch *batch);

#endif							/* DOUBLETICK_QUEUE_BATCH_H */

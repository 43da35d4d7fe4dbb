/*-------------------------------------------------------------------------
 *
 * queue/history.h
 *		The history: the rows of dt_settled.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_HISTORY_H
#define DOUBLETICK_QUEUE_HISTORY_H

#include "compat.h"
#include "queue/waiting.h"

/* States of a settled row. */
#define STATE_DONE "done"
#define STATE_FAILED "failed"
#define STATE_CANCELLED "cancelled"

extern void history_insert(Store *settled, const QueueRow *row, const char *state,
						   Jsonb *answer, const char *error);
extern bool history_find_failed(Store *settled, int64 id, QueueRow *row);
extern int	history_prune(Store *settled, TimestampTz *from, TimestampTz before, int limit);

#endif							/* DOUBLETICK_QUEUE_HISTORY_H */

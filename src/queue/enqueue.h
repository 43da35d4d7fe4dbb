/*-------------------------------------------------------------------------
 *
 * queue/enqueue.h
 *		What users' transactions insert into the queue: removals and keeps.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_ENQUEUE_H
#define DOUBLETICK_QUEUE_ENQUEUE_H

#include "api/payload.h"
#include "queue/waiting.h"

/* Whose request it is, to which server it goes, and who caused it. */
typedef struct Requester
{
	const char *server;
	Oid			role;
	Oid			enqueued_by;
	int64		delay;			/* µs until a removal is due; see
								 * account_delay() */
	int64		origin;			/* the table whose trigger it is; 0: enqueued
								 * by hand */
} Requester;

/* The queue, open to insert into it. */
typedef struct Queue Queue;

extern Queue *queue_open(int64 nrows);
extern void queue_close(Queue *queue);
extern int64 queue_add_removal(Queue *queue, const Requester *requester, const Removal *removal);
extern bool queue_may_have_waiting(Queue *queue, const char *phone);
extern bool queue_may_have_names(const Removal *names);
extern void queue_add_keep(Queue *queue, const Requester *requester, Removal *names,
						   Removal *lost);
extern int64 queue_add_failed(const Requester *requester, const Removal *removal, const char *error);

extern void queue_make_marker(QueueRow *marker, const QueueRow *row);
extern void queue_make_row(QueueRow *row, const Requester *requester, const Removal *removal);
extern void queue_check_writable(const char *command);

#endif							/* DOUBLETICK_QUEUE_ENQUEUE_H */

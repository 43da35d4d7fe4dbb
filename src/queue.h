/*-------------------------------------------------------------------------
 *
 * queue.h
 *		The door to the queue: removals and keeps come in, and some go back.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_H
#define DOUBLETICK_QUEUE_H

#include "payload.h"

/* Whose request it is, to where, and who caused it. */
typedef struct Requester
{
	const char *server;
	Oid			role;
	Oid			enqueued_by;
} Requester;

/* The queue, open to be changed. */
typedef struct Queue Queue;

extern Queue *queue_open(int64 ncustomers);
extern void queue_close(Queue *queue);
extern int64 queue_remove(Queue *queue, const Requester *requester, const Removal *removal);
extern bool queue_may_have(Queue *queue, const Requester *requester, const Removal *names);
extern void queue_keep(Queue *queue, const Requester *requester, Removal *names);
extern int64 queue_fail(const Requester *requester, const Removal *removal, const char *error);

#endif							/* DOUBLETICK_QUEUE_H */

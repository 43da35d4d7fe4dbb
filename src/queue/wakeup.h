/*-------------------------------------------------------------------------
 *
 * queue/wakeup.h
 *		Wakes the worker when a transaction that has enqueued something commits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_WAKEUP_H
#define DOUBLETICK_QUEUE_WAKEUP_H

extern void wake_worker_at_commit(void);

#endif							/* DOUBLETICK_QUEUE_WAKEUP_H */

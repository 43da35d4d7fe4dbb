/*-------------------------------------------------------------------------
 *
 * wake.h
 *		Wakes the worker when a transaction that has enqueued something commits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_WAKE_H
#define DOUBLETICK_WAKE_H

extern void wake_worker_at_commit(void);

#endif							/* DOUBLETICK_WAKE_H */

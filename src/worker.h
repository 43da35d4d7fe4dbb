/*-------------------------------------------------------------------------
 *
 * worker.h
 *		The launcher, and a worker for each database whose queue has work.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_WORKER_H
#define DOUBLETICK_WORKER_H

extern void launcher_register(void);
extern void worker_wake_at_commit(void);

#endif							/* DOUBLETICK_WORKER_H */

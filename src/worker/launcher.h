/*-------------------------------------------------------------------------
 *
 * worker/launcher.h
 *		Starts a worker for each database whose queue has work.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_WORKER_LAUNCHER_H
#define DOUBLETICK_WORKER_LAUNCHER_H

extern void launcher_register(void);

#endif							/* DOUBLETICK_WORKER_LAUNCHER_H */

/*-------------------------------------------------------------------------
 *
 * launcher.h
 *		Starts a worker for each database whose queue has work.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_LAUNCHER_H
#define DOUBLETICK_LAUNCHER_H

extern void launcher_register(void);

#endif							/* DOUBLETICK_LAUNCHER_H */

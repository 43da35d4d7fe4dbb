/*-------------------------------------------------------------------------
 *
 * worker/process.h
 *		What the launcher and the workers have in common as processes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_WORKER_PROCESS_H
#define DOUBLETICK_WORKER_PROCESS_H

#include "base/shared.h"
#include "base/wait_event.h"
#include "postmaster/bgworker.h"

/* Pause before a worker that failed is started again, in µs: doubled each time. */
#define PROCESS_FIRST_PAUSE USECS_PER_SEC
#define PROCESS_LONGEST_PAUSE USECS_PER_MINUTE

extern void process_describe(BackgroundWorker *process, const char *kind);
extern void process_begin(Oid database);
extern bool process_reload(void);
extern void process_wait(WaitReason reason, int64 timeout);
extern int	process_put_off(SharedDatabase *database);

#endif							/* DOUBLETICK_WORKER_PROCESS_H */

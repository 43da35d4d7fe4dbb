/*-------------------------------------------------------------------------
 *
 * base/wait_event.h
 *		What a process of ours waits for, as pg_stat_activity shows it.
 *
 * From PostgreSQL 17 on each has a name of its own; before, all are "Extension".
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_WAIT_EVENT_H
#define DOUBLETICK_BASE_WAIT_EVENT_H

typedef enum WaitReason
{
	WAIT_ANSWER,				/* a call, for its answer */
	WAIT_RETRY,					/* a call, until it tries again */
	WAIT_PACE,					/* until "rate_limit" lets the next request go */
	WAIT_PAUSE,					/* until the pause after a 429 is over */
	WAIT_DRAIN,					/* the drainer, for answers or for what is due */
	WAIT_WORKER,				/* the worker, for something to do */
	WAIT_LAUNCHER,				/* the launcher, the same */
	WAIT_NREASONS
} WaitReason;

extern uint32 wait_event_number(WaitReason reason);

#endif							/* DOUBLETICK_BASE_WAIT_EVENT_H */

/*-------------------------------------------------------------------------
 *
 * base/wait_event.c
 *		What a process of ours waits for, as pg_stat_activity shows it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/wait_event.h"
#include "compat.h"

static const char *const names[WAIT_NREASONS] = {
	[WAIT_ANSWER] = "DoubletickAnswer",
	[WAIT_RETRY] = "DoubletickRetry",
	[WAIT_PACE] = "DoubletickPace",
	[WAIT_PAUSE] = "DoubletickPause",
	[WAIT_DRAIN] = "DoubletickDrain",
	[WAIT_WORKER] = "DoubletickWorker",
	[WAIT_LAUNCHER] = "DoubletickLauncher",
};

/*
 * The number under which PostgreSQL knows the reason.  It is asked for on first use: a
 * name takes one of the few places that all extensions share.
 */
uint32
wait_event_number(WaitReason reason)
{
	static uint32 numbers[WAIT_NREASONS];

	if (numbers[reason] == 0)
		numbers[reason] = new_wait_event(names[reason]);
	return numbers[reason];
}

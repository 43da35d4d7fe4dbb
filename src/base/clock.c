/*-------------------------------------------------------------------------
 *
 * base/clock.c
 *		A clock that is never set back, and a sleep that ends on interrupts.
 *
 * All durations in this extension are measured by this clock.  The time of day
 * is used only for times that a table stores or a user sees.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/clock.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"

/*
 * The time in microseconds.  Only differences mean something.  All processes of the
 * machine read the same clock, which starts anew when the machine does.
 */
int64
clock_now(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/*
 * Sleeps until the latch is set, which it resets, and at most for this many
 * microseconds.  Calls and the drainer use it while no answer can come.  A cancel or a
 * termination raises its error.
 */
void
clock_sleep_or_latch(int64 microseconds, WaitReason reason)
{
	if (microseconds < 1000)	/* a latch's timeout counts milliseconds */
		pg_usleep((long) Max(microseconds, 0));
	else
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (long) (microseconds / 1000), wait_event_number(reason));
		ResetLatch(MyLatch);
	}
	CHECK_FOR_INTERRUPTS();
}

/*-------------------------------------------------------------------------
 *
 * base/clock.h
 *		A clock that is never set back, and a sleep that ends on interrupts.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_CLOCK_H
#define DOUBLETICK_BASE_CLOCK_H

#include "base/wait_event.h"

extern int64 clock_now(void);
extern void clock_sleep_or_latch(int64 microseconds, WaitReason reason);

#endif							/* DOUBLETICK_BASE_CLOCK_H */

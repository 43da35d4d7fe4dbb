/*-------------------------------------------------------------------------
 *
 * base/clock.h
 *		A clock that is never set back, and sleeps that end on interrupts.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_CLOCK_H
#define DOUBLETICK_BASE_CLOCK_H

extern int64 clock_now(void);
extern void clock_sleep(int64 microseconds);
extern void clock_sleep_or_latch(int64 microseconds);

#endif							/* DOUBLETICK_BASE_CLOCK_H */

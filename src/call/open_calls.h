/*-------------------------------------------------------------------------
 *
 * call/open_calls.h
 *		The open calls of the process, and which of them may send.
 *
 *		calls_turn()		drives all open calls of the process
 *		calls_in_flight()	how many requests they have in flight
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_OPEN_CALLS_H
#define DOUBLETICK_CALL_OPEN_CALLS_H

extern void calls_turn(void);
extern int	calls_in_flight(void);

#endif							/* DOUBLETICK_CALL_OPEN_CALLS_H */

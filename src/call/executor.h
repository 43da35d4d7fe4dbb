/*-------------------------------------------------------------------------
 *
 * call/executor.h
 *		What is done when PostgreSQL starts and runs a statement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_EXECUTOR_H
#define DOUBLETICK_CALL_EXECUTOR_H

extern void executor_init(void);

#endif							/* DOUBLETICK_CALL_EXECUTOR_H */

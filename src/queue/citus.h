/*-------------------------------------------------------------------------
 *
 * queue/citus.h
 *		What would be enqueued by half of a statement that fails.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_CITUS_H
#define DOUBLETICK_QUEUE_CITUS_H

extern void citus_check_transaction(const char *command);

#endif							/* DOUBLETICK_QUEUE_CITUS_H */

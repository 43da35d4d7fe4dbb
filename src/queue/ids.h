/*-------------------------------------------------------------------------
 *
 * queue/ids.h
 *		The sequence that gives dt_waiting its ids.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_IDS_H
#define DOUBLETICK_QUEUE_IDS_H

extern int64 ids_next(void);
extern int64 ids_last(void);
extern void ids_advance(int64 id);

#endif							/* DOUBLETICK_QUEUE_IDS_H */

/*-------------------------------------------------------------------------
 *
 * change.h
 *		From what customers had and have to what is entered into the queue.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CHANGE_H
#define DOUBLETICK_CHANGE_H

#include "queue.h"

extern void change_row(Queue *queue, const Requester *requester, Removal *old, uint32 old_row,
					   const Removal *new, uint32 new_row, Removal *lost);
extern void change_remove(Queue *queue, const Requester *requester, Removal *lost);
extern bool change_is_same_customer(const Removal *row, const Removal *other);
extern void change_subtract(Removal *names, const Removal *others);
extern void change_intersect(Removal *names, const Removal *others);
extern Removal change_copy(const Removal *names);

#endif							/* DOUBLETICK_CHANGE_H */

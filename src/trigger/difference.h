/*-------------------------------------------------------------------------
 *
 * trigger/difference.h
 *		From what customers had and have to what is enqueued.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_TRIGGER_DIFFERENCE_H
#define DOUBLETICK_TRIGGER_DIFFERENCE_H

#include "trigger/definition.h"

extern void difference_row(const Definition *definition, const Removal *old, uint32 old_row,
						   const Removal *new, uint32 new_row, Removal *lost);
extern bool difference_may_keep(Queue *queue, const Removal *now, bool has_more);
extern void difference_keep(Queue *queue, const Definition *definition, Removal *now,
							Removal *lost);
extern void difference_remove(Queue *queue, const Definition *definition, Removal *lost);
extern bool difference_is_same_customer(const Definition *definition, const Removal *row,
										const Removal *other);
extern void difference_subtract(Removal *names, const Removal *others);
extern Removal difference_intersection(const Removal *names, const Removal *others);

#endif							/* DOUBLETICK_TRIGGER_DIFFERENCE_H */

/*-------------------------------------------------------------------------
 *
 * queue/shape.h
 *		Checks that a table of ours is what this library was built for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_SHAPE_H
#define DOUBLETICK_QUEUE_SHAPE_H

#include "queue/store.h"

extern void check_table_shape(Relation rel, QueueRelation table);
extern void check_index_shape(Relation rel, QueueRelation table, Relation index);
extern void shape_check_names(const Store *settled, const char **names, int nnames);

#endif							/* DOUBLETICK_QUEUE_SHAPE_H */

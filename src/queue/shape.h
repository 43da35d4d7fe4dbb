/*-------------------------------------------------------------------------
 *
 * queue/shape.h
 *		Checks that a table of ours is what this library was built for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_SHAPE_H
#define DOUBLETICK_QUEUE_SHAPE_H

#include "queue/relations.h"
#include "utils/relcache.h"

extern void check_table_shape(Relation rel, QueueRelation table);
extern void check_index_shape(Relation rel, QueueRelation table, Relation index);

#endif							/* DOUBLETICK_QUEUE_SHAPE_H */

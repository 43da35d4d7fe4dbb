/*-------------------------------------------------------------------------
 *
 * queue/relations.h
 *		What the extension owns in this database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_RELATIONS_H
#define DOUBLETICK_QUEUE_RELATIONS_H

#include "nodes/execnodes.h"
#include "utils/relcache.h"

/* A table, and then its indexes. */
typedef enum QueueRelation
{
	RELATION_WAITING,
	RELATION_WAITING_ID,			/* the sequence of its ids */
	RELATION_WAITING_PKEY,			/* (id) */
	RELATION_WAITING_CUSTOMER,		/* (customer, keep, id) */
	RELATION_SETTLED,
	RELATION_SETTLED_PKEY,			/* (id) */
	RELATION_SETTLED_AT,			/* (settled_at) */
	RELATION_HOLD,
	RELATION_HOLD_PKEY,			/* (server, role) */
	NRELATIONS
} QueueRelation;

extern bool relations_lock(Oid *waiting);
extern Oid	relation_oid(QueueRelation object);
extern IndexInfo *relation_index_info(Relation index);

#endif							/* DOUBLETICK_QUEUE_RELATIONS_H */

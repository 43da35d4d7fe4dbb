/*-------------------------------------------------------------------------
 *
 * queue/relations.h
 *		Which relations the extension owns in this database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_RELATIONS_H
#define DOUBLETICK_QUEUE_RELATIONS_H

typedef enum QueueRelation
{
	RELATION_WAITING,
	RELATION_WAITING_ID,		/* the sequence of ids */
	RELATION_WAITING_PKEY,		/* (id) */
	RELATION_WAITING_CUSTOMER,	/* (customer, keep, id) */
	RELATION_SETTLED,
	RELATION_SETTLED_ID,		/* (id), not unique: see history_find_failed() */
	RELATION_SETTLED_AT,		/* (settled_at) */
	RELATION_HOLD,
	RELATION_HOLD_PKEY,			/* (server, role) */
	NRELATIONS
} QueueRelation;

extern Oid	relation_oid(QueueRelation relation);
extern const char *relation_name(QueueRelation relation);
extern Oid	relation_lock(QueueRelation table);
extern bool relations_lock(Oid *waiting);
extern uint64 relations_generation(void);

#endif							/* DOUBLETICK_QUEUE_RELATIONS_H */

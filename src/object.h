/*-------------------------------------------------------------------------
 *
 * object.h
 *		What the extension owns in this database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_OBJECT_H
#define DOUBLETICK_OBJECT_H

#include "nodes/execnodes.h"
#include "utils/relcache.h"

/* A table, and then its indexes. */
typedef enum StoreObject
{
	STORE_WAITING,
	STORE_WAITING_ID,			/* the sequence of its ids */
	STORE_WAITING_PKEY,			/* (id) */
	STORE_WAITING_CUSTOMER,		/* (customer, keep, id) */
	STORE_SETTLED,
	STORE_SETTLED_PKEY,			/* (id) */
	STORE_SETTLED_AT,			/* (settled_at) */
	STORE_HOLD,
	STORE_HOLD_PKEY,			/* (server, role) */
	STORE_NOBJECTS
} StoreObject;

extern bool object_lock_all(Oid *waiting);
extern Oid	object_oid(StoreObject object);
extern IndexInfo *object_index_info(Relation index);

#endif							/* DOUBLETICK_OBJECT_H */

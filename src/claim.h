/*-------------------------------------------------------------------------
 *
 * claim.h
 *		Who may touch the queue's rows: locks that SQL cannot take.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CLAIM_H
#define DOUBLETICK_CLAIM_H

#include "store.h"

/* What stands for a customer in the lock table. */
typedef struct CustomerTag
{
	uint32		server;			/* hash of the server's name, as hashtext() */
	uint32		customer;		/* half of store_customer() */
} CustomerTag;

extern CustomerTag claim_tag(const QueueRow *row);

extern bool claim_drain(void);
extern void claim_end_drain(void);
extern bool claim_pick(Oid role, int64 customer);
extern void claim_fly(CustomerTag tag);
extern void claim_land(CustomerTag tag);
extern bool claim_withhold(const QueueRow *row);

#endif							/* DOUBLETICK_CLAIM_H */

/*-------------------------------------------------------------------------
 *
 * queue/locks.h
 *		Who may touch the queue's rows: locks that SQL cannot take.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_LOCKS_H
#define DOUBLETICK_QUEUE_LOCKS_H

#include "queue/waiting.h"

/* What stands for a customer in the lock table. */
typedef struct CustomerTag
{
	uint32		server;			/* hash of the server's name, as hashtext() */
	uint32		customer;		/* folded from customer_number()'s number */
} CustomerTag;

/* The same for all databases whose servers have one account. */
typedef struct AccountTag
{
	uint32		account;		/* hash of its name; 0: none */
	uint32		phone;			/* folded from phone_of_customer_number() */
} AccountTag;

extern CustomerTag customer_tag(const QueueRow *row);
extern AccountTag account_tag(const char *account, int64 customer);

extern bool lock_drain(void);
extern void unlock_drain(void);
extern char *lock_describe_drainer(void);
extern void lock_for_update(void);
extern bool lock_is_wanted_for_update(void);
extern bool lock_partition(Oid role, int64 customer);
extern void lock_customer(CustomerTag tag);
extern void unlock_customer(CustomerTag tag);
extern bool lock_in_account(AccountTag tag);
extern void unlock_in_account(AccountTag tag);
extern bool lock_against_sending(const QueueRow *row);

#endif							/* DOUBLETICK_QUEUE_LOCKS_H */

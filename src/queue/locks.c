/*-------------------------------------------------------------------------
 *
 * queue/locks.c
 *		Who may touch the queue's rows: locks that SQL cannot take.
 *
 * They are advisory locks of kinds that no SQL function reaches (those have 1
 * and 2 there), so PostgreSQL's lock manager lets go of them whatever ends a
 * session.  Three kinds:
 *
 * - the drain: one session in a database at a time, for as long as it drains;
 * - a request: a customer's request is out or not yet settled.  Held by the
 *	 drainer across transactions, and looked for by who wants to cancel;
 * - a door: one of NPARTITIONS of each role, which a customer's rows pass on their way out.  The
 *	 drainer holds it while it picks a customer; who cancels shares it with
 *	 others until its transaction ends, so that what it has taken back, and not
 *	 yet committed, cannot leave.  Few doors, for who cancels a million rows must
 *	 not fill the lock table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "queue/locks.h"
#include "storage/lock.h"

/*
 * Kinds of locks; dt_status looks for the second in pg_locks, which would show
 * one above 32767 as negative.
 */
#define LOCK_DRAIN 21808
#define LOCK_CUSTOMER 21809
#define LOCK_PARTITION 21810

#define NPARTITIONS 256

static bool acquire(uint32 field2, uint32 field3, uint16 kind, LOCKMODE mode,
					bool session, bool wait);
static void release(uint32 field2, uint32 field3, uint16 kind, LOCKMODE mode);
static uint32 partition_of(int64 customer);

/*
 * The customer of a row: server, role, phone and waba without a leading "+".
 * Two customers with one tag only keep each other waiting.
 */
CustomerTag
customer_tag(const QueueRow *row)
{
	CustomerTag tag;

	tag.server = DatumGetUInt32(hash_any((const unsigned char *) row->server, strlen(row->server)));
	tag.customer = (uint32) row->customer ^ (uint32) (row->customer >> 32);
	return tag;
}

/*
 * Makes this session the one that drains this database's queue.  False when
 * another one is.
 */
bool
lock_drain(void)
{
	return acquire(0, 0, LOCK_DRAIN, ExclusiveLock, true, false);
}

void
unlock_drain(void)
{
	release(0, 0, LOCK_DRAIN, ExclusiveLock);
}

/*
 * Takes the door of a customer until the transaction ends.  False when somebody
 * is taking something back there.
 */
bool
lock_partition(Oid role, int64 customer)
{
	return acquire(partition_of(customer), role, LOCK_PARTITION, ExclusiveLock, false, false);
}

static uint32
partition_of(int64 customer)
{
	return (uint32) customer % NPARTITIONS;
}

/*
 * The customer, whose door is held, has a request out from now on.
 */
void
lock_customer(CustomerTag tag)
{
	(void) acquire(tag.server, tag.customer, LOCK_CUSTOMER, ExclusiveLock, true, true);
}

/*
 * The customer's request is settled.
 */
void
unlock_customer(CustomerTag tag)
{
	release(tag.server, tag.customer, LOCK_CUSTOMER, ExclusiveLock);
}

/*
 * Keeps the customer's rows from leaving until the transaction ends.  False
 * when a request of it is out.
 */
bool
lock_against_sending(const QueueRow *row)
{
	CustomerTag tag = customer_tag(row);

	(void) acquire(partition_of(row->customer), row->role, LOCK_PARTITION, ShareLock, false, true);
	if (!acquire(tag.server, tag.customer, LOCK_CUSTOMER, ShareLock, true, false))
		return false;
	release(tag.server, tag.customer, LOCK_CUSTOMER, ShareLock);
	return true;
}

static bool
acquire(uint32 field2, uint32 field3, uint16 kind, LOCKMODE mode, bool session, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, field2, field3, kind);
	return LockAcquire(&tag, mode, session, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

static void
release(uint32 field2, uint32 field3, uint16 kind, LOCKMODE mode)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, field2, field3, kind);
	(void) LockRelease(&tag, mode, true);
}

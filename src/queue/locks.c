/*-------------------------------------------------------------------------
 *
 * queue/locks.c
 *		Who may touch the queue's rows: locks that SQL cannot take.
 *
 * They are advisory locks with a fourth key field that no SQL function uses
 * (those use 1 and 2), so PostgreSQL releases them whatever ends a session.  All but
 * one kind are those of this database.
 *
 * - Drain lock: the drainer holds it for as long as it drains the database's queue.
 * - Update lock: an update of the extension holds it while it waits for the drain
 *	 lock, and then both until it commits.  The drainer tests it, and makes room.
 * - Customer lock: the drainer holds it across transactions while a request of the
 *	 customer is in flight; dt_cancel() tests it.
 * - Account lock: the same for a customer's phone, among all databases of the cluster
 *	 whose servers have one account.
 * - Partition lock: one of 256 of a role.  The drainer takes it exclusively before
 *	 it reads a customer's rows; dt_cancel() takes it in share mode.  Both keep it until
 *	 their transaction ends, so that what dt_cancel() took out of the queue cannot be
 *	 sent before it commits.  There are few, so that cancelling a million rows does not
 *	 fill the lock table; and each role has its own, so that this delays no other
 *	 role's requests.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "queue/customer_number.h"
#include "queue/locks.h"
#include "storage/lock.h"
#include "utils/snapmgr.h"

/*
 * The fourth key field.  dt_status looks for customer locks in pg_locks, which
 * would show a number above 32767 as negative.
 */
#define LOCK_DRAIN 21808
#define LOCK_CUSTOMER 21809
#define LOCK_PARTITION 21810
#define LOCK_UPDATE 21811
#define LOCK_ACCOUNT 21812

#define NPARTITIONS 256

static bool take_queue_lock(uint32 field2, uint32 field3, uint16 kind, LOCKMODE mode,
							bool session, bool wait);
static void release_queue_lock(uint32 field2, uint32 field3, uint16 kind, LOCKMODE mode);
static LOCKTAG make_locktag(uint32 field2, uint32 field3, uint16 kind);

/*
 * What stands for a row's customer in the lock table.  Two customers may have the
 * same tag, and then only wait for each other.
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
 * What stands for a customer of an account, whatever the database, server and role.
 * Customers of one phone have the same tag, and wait for each other: they may be the
 * same one to DoubleTick, since a server may name the WABA number that a row does not.
 */
AccountTag
account_tag(const char *account, int64 customer)
{
	uint64		phone = phone_of_customer_number(customer);
	AccountTag	tag = {0};

	if (account)
	{
		tag.account = DatumGetUInt32(hash_any((const unsigned char *) account, strlen(account))) | 1;
		tag.phone = (uint32) phone ^ (uint32) (phone >> 32);
	}
	return tag;
}

/*
 * Makes this session the drainer of this database until it calls unlock_drain().
 * False when another session is the drainer.
 */
bool
lock_drain(void)
{
	return take_queue_lock(0, 0, LOCK_DRAIN, ExclusiveLock, true, false);
}

void
unlock_drain(void)
{
	release_queue_lock(0, 0, LOCK_DRAIN, ExclusiveLock);
}

/*
 * For a session that finds another one draining: which it is, and since when if the
 * session's role may see that; "" when it has ended meanwhile.  Needs SPI.  Literals
 * have quotes, so that no operator of another schema fits them better.
 */
char *
lock_describe_drainer(void)
{
	char	   *described;

	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute(psprintf("SELECT coalesce(pg_catalog.string_agg(pg_catalog.concat(' (PID ', pid,"
							 " CASE WHEN since IS NULL THEN '' ELSE pg_catalog.concat(', since ', since) END, ')'), ''), '')"
							 " FROM (SELECT pid, pg_catalog.date_trunc('second',"
							 " CASE WHEN backend_type = 'client backend' THEN query_start ELSE backend_start END) AS since"
							 " FROM pg_catalog.pg_locks JOIN pg_catalog.pg_stat_activity USING (pid)"
							 " WHERE locktype = 'advisory' AND database = '%u' AND classid = '0' AND objid = '0'"
							 " AND objsubid = '%d' AND granted) AS drainer", MyDatabaseId, LOCK_DRAIN),
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_locks");
	described = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	PopActiveSnapshot();
	return described;
}

/*
 * Called by the script that updates the extension: has the drainer settle what is in
 * flight and end, and allows no other until the transaction ends.
 */
void
lock_for_update(void)
{
	(void) take_queue_lock(0, 0, LOCK_UPDATE, ExclusiveLock, false, true);
	(void) take_queue_lock(0, 0, LOCK_DRAIN, ExclusiveLock, false, true);
}

/*
 * Called by the drainer in each turn: does an update of the extension wait for it?
 */
bool
lock_is_wanted_for_update(void)
{
	if (!take_queue_lock(0, 0, LOCK_UPDATE, ShareLock, true, false))
		return true;
	release_queue_lock(0, 0, LOCK_UPDATE, ShareLock);
	return false;
}

/*
 * Called by the drainer before it reads a customer's rows: takes the customer's
 * partition lock until the transaction ends.  False when a transaction in progress
 * has cancelled something in that partition, or tried to.
 */
bool
lock_partition(Oid role, int64 customer)
{
	return take_queue_lock((uint32) customer % NPARTITIONS, role, LOCK_PARTITION, ExclusiveLock,
						   false, false);
}

/*
 * Called by the drainer when it makes a request of the customer, whose partition it
 * has locked.
 */
void
lock_customer(CustomerTag tag)
{
	(void) take_queue_lock(tag.server, tag.customer, LOCK_CUSTOMER, ExclusiveLock, true, true);
}

/*
 * Called by the drainer when the customer's request is settled.
 */
void
unlock_customer(CustomerTag tag)
{
	release_queue_lock(tag.server, tag.customer, LOCK_CUSTOMER, ExclusiveLock);
}

/*
 * Called by the drainer when it makes a request of the customer, if its server has an
 * account that others may have: false when one of them has a request in flight.
 */
bool
lock_in_account(AccountTag tag)
{
	return take_queue_lock(tag.account, tag.phone, LOCK_ACCOUNT, ExclusiveLock, true, false);
}

/*
 * Called by the drainer when that request is settled.
 */
void
unlock_in_account(AccountTag tag)
{
	release_queue_lock(tag.account, tag.phone, LOCK_ACCOUNT, ExclusiveLock);
}

/*
 * Called by dt_cancel(): prevents the customer's rows from being sent until the
 * transaction ends.  False when a request of the customer is in flight.
 */
bool
lock_against_sending(const QueueRow *row)
{
	CustomerTag tag = customer_tag(row);

	(void) take_queue_lock((uint32) row->customer % NPARTITIONS, row->role, LOCK_PARTITION,
						   ShareLock, false, true);
	if (!take_queue_lock(tag.server, tag.customer, LOCK_CUSTOMER, ShareLock, true, false))
		return false;
	release_queue_lock(tag.server, tag.customer, LOCK_CUSTOMER, ShareLock);
	return true;
}

static bool
take_queue_lock(uint32 field2, uint32 field3, uint16 kind, LOCKMODE mode, bool session, bool wait)
{
	LOCKTAG		tag = make_locktag(field2, field3, kind);

	return LockAcquire(&tag, mode, session, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

static void
release_queue_lock(uint32 field2, uint32 field3, uint16 kind, LOCKMODE mode)
{
	LOCKTAG		tag = make_locktag(field2, field3, kind);

	(void) LockRelease(&tag, mode, true);
}

static LOCKTAG
make_locktag(uint32 field2, uint32 field3, uint16 kind)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, kind == LOCK_ACCOUNT ? InvalidOid : MyDatabaseId, field2, field3, kind);
	return tag;
}

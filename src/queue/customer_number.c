/*-------------------------------------------------------------------------
 *
 * queue/customer_number.c
 *		The number that stands for a customer, and the rows that a phone has.
 *
 * dt_waiting has an index of these numbers.  Those of all customers of one phone are
 * neighbours in it, whatever their roles and servers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "base/phone.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "queue/customer_number.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* A phone is a number below 2^50, and leaves so many of 64 bits. */
#define CUSTOMER_HASH_BITS 14
#define CUSTOMER_HASH_MASK ((UINT64CONST(1) << CUSTOMER_HASH_BITS) - 1)

static HeapTuple read_moved(Store *waiting, HeapTuple old, Snapshot dirty);

/*
 * A number that stands for a customer: server, role, phone and waba without a
 * leading "+".  Two customers of one phone may, rarely, have the same.
 *
 * The phone's digits are its upper bits: rows that are enqueued in the order of
 * their phones are then inserted into the index in nearly its own order.
 */
int64
customer_number(const char *server, Oid role, const char *phone, const char *waba)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) server, strlen(server), role);

	hash = phone_hash(waba, phone_hash(phone, hash));
	return (int64) (phone_value(phone) << CUSTOMER_HASH_BITS | (hash & CUSTOMER_HASH_MASK));
}

/*
 * The phone_value() of a customer with this number.
 */
uint64
phone_of_customer_number(int64 customer)
{
	return (uint64) customer >> CUSTOMER_HASH_BITS;
}

/*
 * Do two rows belong to the same customer?
 */
bool
store_is_same_customer(const QueueRow *row, const QueueRow *other)
{
	return row->role == other->role && strcmp(row->server, other->server) == 0 &&
		phone_equal(row->phone, other->phone) && phone_equal(row->waba, other->waba);
}

/*
 * Scans the rows of all customers with this phone: store_next_of_phone() returns them.
 * Makes the snapshot, which must last as long as the scan.
 */
SysScanDesc
store_scan_phone(Store *waiting, const char *phone, Snapshot snapshot)
{
	uint64		first = phone_value(phone) << CUSTOMER_HASH_BITS;
	ScanKeyData keys[2];

	InitNonVacuumableSnapshot(*snapshot, GlobalVisTestFor(waiting->rel));
	ScanKeyInit(&keys[0], WAITING_CUSTOMER, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum((int64) first));
	ScanKeyInit(&keys[1], WAITING_CUSTOMER, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum((int64) (first | CUSTOMER_HASH_MASK)));
	return store_scan(waiting, RELATION_WAITING_CUSTOMER, snapshot, 2, keys);
}

/*
 * The next row that waits, or may come to wait: it is committed, or of this transaction,
 * or "is_in_progress" in another one.  A row may be returned twice.
 *
 * A scan with a dirty snapshot could miss a row that the drainer moves meanwhile: the
 * old version is gone when it is looked at, and the new one is in the index behind the
 * scan.  So the scan returns old versions, too, and from these we go on to the new one.
 */
HeapTuple
store_next_of_phone(Store *waiting, SysScanDesc scan, bool *is_in_progress)
{
	HeapTuple	tuple;
	SnapshotData dirty;

	InitDirtySnapshot(dirty);
	while (HeapTupleIsValid(tuple = store_next(scan)))
	{
		if (!table_tuple_satisfies_snapshot(waiting->rel, scan->slot, &dirty))
			tuple = read_moved(waiting, tuple, &dirty);
		if (HeapTupleIsValid(tuple))
			break;
	}
	*is_in_progress = HeapTupleIsValid(tuple) && TransactionIdIsValid(dirty.xmin);
	return tuple;
}

/*
 * The new version of a row, in the current memory context; NULL if it was deleted.  After
 * a HOT update the scan itself comes to the new version.
 */
static HeapTuple
read_moved(Store *waiting, HeapTuple old, Snapshot dirty)
{
	ItemPointerData place = old->t_self;
	TableScanDesc scan;
	TupleTableSlot *slot;
	HeapTuple	moved = NULL;

	if (ItemPointerEquals(&place, &old->t_data->t_ctid) || HeapTupleIsHotUpdated(old))
		return NULL;
	scan = table_beginscan_tid(waiting->rel, dirty);
	table_tuple_get_latest_tid(scan, &place);
	table_endscan(scan);
	slot = table_slot_create(waiting->rel, NULL);
	if (table_tuple_fetch_row_version(waiting->rel, &place, dirty, slot))
		moved = ExecCopySlotHeapTuple(slot);
	ExecDropSingleTupleTableSlot(slot);
	return moved;
}

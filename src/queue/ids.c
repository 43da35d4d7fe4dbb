/*-------------------------------------------------------------------------
 *
 * queue/ids.c
 *		The sequence that gives dt_waiting its ids.
 *
 * A keep takes back only removals that were enqueued before it, and the drainer looks
 * for new rows above those that it has seen.  So a new id must be larger than those
 * of all rows that are there, also of rows that came with their ids from elsewhere.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_sequence.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "queue/ids.h"
#include "queue/relations.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* How many ids are left out when the sequence is advanced. */
#define ADVANCE_STEPS (1 << 20)

static void read_sequence_limits(Oid sequence, int64 *increment, int64 *max);
static void set_sequence(Oid sequence, int64 id);

/*
 * The next id.  The sequence caches none, so that a later call, in whichever
 * session, returns a larger id.
 */
int64
ids_next(void)
{
	return nextval_internal(relation_oid(RELATION_WAITING_ID), false);
}

/*
 * The last id that was given out, or a larger one after a crash.  It can become
 * smaller: by TRUNCATE ... RESTART IDENTITY, or setval().
 */
int64
ids_last(void)
{
	Relation	sequence = relation_open(relation_oid(RELATION_WAITING_ID), AccessShareLock);
	SysScanDesc scan = systable_beginscan(sequence, InvalidOid, false, SnapshotSelf, 0, NULL);
	HeapTuple	tuple = systable_getnext(scan);
	bool		isnull;
	int64		id;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "sequence \"%s\" is empty", RelationGetRelationName(sequence));
	/* last_value is the first column of a sequence. */
	id = DatumGetInt64(heap_getattr(tuple, 1, RelationGetDescr(sequence), &isnull));
	systable_endscan(scan);
	relation_close(sequence, AccessShareLock);
	return id;
}

/*
 * Called when a row has this id from elsewhere: makes the sequence give only larger
 * ones.  It goes on far above, so that this need not be done for each such row.  And a
 * sequence cannot be read and set in one step: the ids that other sessions take in
 * between must not be given again.  By whole increments, since servers that replicate
 * to each other may tell their ids apart by these.
 */
void
ids_advance(int64 id)
{
	Oid			sequence = relation_oid(RELATION_WAITING_ID);
	int64		last;
	int64		increment;
	int64		max;

	if (ids_last() > id)
		return;

	/*
	 * Two sessions must not set it at once.  nextval() does not wait for this
	 * lock.
	 */
	LockRelationOid(sequence, ShareUpdateExclusiveLock);
	last = ids_last();
	read_sequence_limits(sequence, &increment, &max);
	if (last <= id && (max - id) / increment > ADVANCE_STEPS)
		set_sequence(sequence, last + ((id - last) / increment + ADVANCE_STEPS) * increment);
	UnlockRelationOid(sequence, ShareUpdateExclusiveLock);
}

static void
read_sequence_limits(Oid sequence, int64 *increment, int64 *max)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(sequence));

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", sequence);
	*increment = ((Form_pg_sequence) GETSTRUCT(tuple))->seqincrement;
	*max = ((Form_pg_sequence) GETSTRUCT(tuple))->seqmax;
	ReleaseSysCache(tuple);
}

/* As its owner: whoever writes the row may have no privilege on the sequence. */
static void
set_sequence(Oid sequence, int64 id)
{
	Relation	rel = relation_open(sequence, AccessShareLock);
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(rel->rd_rel->relowner, context | SECURITY_LOCAL_USERID_CHANGE);
	(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence), Int64GetDatum(id));
	SetUserIdAndSecContext(user, context);
	relation_close(rel, AccessShareLock);
}

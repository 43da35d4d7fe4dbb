/*-------------------------------------------------------------------------
 *
 * queue/relations.c
 *		Which relations the extension owns in this database.
 *
 * They are looked up by their names in the extension's schema.  The OIDs are
 * cached until a relation among them changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/extension.h"
#include "queue/relations.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

static const char *const relation_names[NRELATIONS] = {
	[RELATION_WAITING] = "dt_waiting",
	[RELATION_WAITING_ID] = "dt_waiting_id_seq",
	[RELATION_WAITING_PKEY] = "dt_waiting_pkey",
	[RELATION_WAITING_CUSTOMER] = "dt_waiting_customer",
	[RELATION_SETTLED] = "dt_settled",
	[RELATION_SETTLED_ID] = "dt_settled_id",
	[RELATION_SETTLED_AT] = "dt_settled_settled_at",
	[RELATION_HOLD] = "dt_hold",
	[RELATION_HOLD_PKEY] = "dt_hold_pkey",
};

/*
 * The OIDs are valid if no relation among them has changed since their look-up
 * began.
 */
static Oid	relation_oids[NRELATIONS];
static uint64 nchanges = 1;
static uint64 nchanges_at_look_up = 0;

/* Of the sequence's row in pg_sequence, as its syscache has it. */
static uint32 sequence_hash;

static bool look_up_relations(void);
static void count_relation_change(Datum arg, Oid relid);
static void count_sequence_change(Datum arg, int cache, uint32 hash);

/*
 * The OID of a relation of ours; InvalidOid for an index that was dropped.  Raises
 * undefined_table when the extension, or a table of it, does not exist.
 */
Oid
relation_oid(QueueRelation relation)
{
	if (!look_up_relations())
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the tables of extension \"doubletick\" do not exist in this database")));
	return relation_oids[relation];
}

/*
 * The name of a relation of ours, without its schema.
 */
const char *
relation_name(QueueRelation relation)
{
	return relation_names[relation];
}

/*
 * Locks a table of ours until the transaction ends and returns its OID, or
 * InvalidOid when the extension does not exist.  Waits for a session that is
 * about to drop it.
 */
Oid
relation_lock(QueueRelation table)
{
	while (look_up_relations())
	{
		Oid			locked = relation_oids[table];

		/* Taking the lock processes invalidations. */
		LockRelationOid(locked, RowExclusiveLock);
		if (look_up_relations() && relation_oids[table] == locked)
			return locked;
		UnlockRelationOid(locked, RowExclusiveLock);
	}
	return InvalidOid;
}

/*
 * For the drainer, which runs many transactions: locks dt_waiting, and returns whether
 * it is the same table as at the first call.  "waiting" is InvalidOid then, and is set
 * to the OID; this changes when the extension is dropped and created again.
 *
 * Locks the sequence of ids, too, which the drainer reads.  DROP EXTENSION locks the
 * sequence before the table, and TRUNCATE ... RESTART IDENTITY the table before the
 * sequence.  So that neither ends in a deadlock, this waits for the sequence only while
 * it does not hold the table.
 */
bool
relations_lock(Oid *waiting)
{
	Oid			locked;

	while (OidIsValid(locked = relation_lock(RELATION_WAITING)))
	{
		Oid			sequence = relation_oid(RELATION_WAITING_ID);

		if (ConditionalLockRelationOid(sequence, AccessShareLock))
			break;
		UnlockRelationOid(locked, RowExclusiveLock);
		LockRelationOid(sequence, AccessShareLock);
		UnlockRelationOid(sequence, AccessShareLock);
	}
	if (!OidIsValid(*waiting))
		*waiting = locked;
	return OidIsValid(locked) && *waiting == locked;
}

/*
 * A number that differs from an earlier one when a relation of ours may have
 * changed in between.  Call it after relation_oid() or relation_lock().
 */
uint64
relations_generation(void)
{
	return nchanges_at_look_up;
}

/* Fills relation_oids.  False when the extension, or a table of it, does not exist. */
static bool
look_up_relations(void)
{
	static bool is_registered = false;
	uint64		nchanges_before = nchanges;
	Oid			schema;

	if (nchanges_at_look_up == nchanges)
		return true;
	if (!is_registered)
	{
		CacheRegisterRelcacheCallback(count_relation_change, (Datum) 0);
		CacheRegisterSyscacheCallback(SEQRELID, count_sequence_change, (Datum) 0);
	}
	is_registered = true;

	nchanges_at_look_up = 0;
	schema = extension_schema();
	if (!OidIsValid(schema))
		return false;
	for (int i = 0; i < NRELATIONS; i++)
	{
		relation_oids[i] = get_relname_relid(relation_names[i], schema);
		if (!OidIsValid(relation_oids[i]) &&
			(i == RELATION_WAITING || i == RELATION_WAITING_ID ||
			 i == RELATION_SETTLED || i == RELATION_HOLD))
			return false;
	}
	sequence_hash = GetSysCacheHashValue1(SEQRELID,
										  ObjectIdGetDatum(relation_oids[RELATION_WAITING_ID]));
	nchanges_at_look_up = nchanges_before;
	return true;
}

static void
count_relation_change(Datum arg pg_attribute_unused(), Oid relid)
{
	if (!OidIsValid(relid))
		nchanges++;
	for (int i = 0; i < NRELATIONS; i++)
	{
		if (relation_oids[i] == relid)
			nchanges++;
	}
}

/* ALTER SEQUENCE changes no relation, but what shape.c has checked. */
static void
count_sequence_change(Datum arg pg_attribute_unused(), int cache pg_attribute_unused(), uint32 hash)
{
	if (hash == 0 || hash == sequence_hash)
		nchanges++;
}

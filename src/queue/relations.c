/*-------------------------------------------------------------------------
 *
 * queue/relations.c
 *		What the extension owns in this database.
 *
 * Tables and indexes are looked up by their names in the extension's schema, once
 * for as long as none of them changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "queue/relations.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

static const char *const relation_names[NRELATIONS] = {
	[RELATION_WAITING] = "dt_waiting",
	[RELATION_WAITING_ID] = "dt_waiting_id_seq",
	[RELATION_WAITING_PKEY] = "dt_waiting_pkey",
	[RELATION_WAITING_CUSTOMER] = "dt_waiting_customer",
	[RELATION_SETTLED] = "dt_settled",
	[RELATION_SETTLED_PKEY] = "dt_settled_pkey",
	[RELATION_SETTLED_AT] = "dt_settled_settled_at",
	[RELATION_HOLD] = "dt_hold",
	[RELATION_HOLD_PKEY] = "dt_hold_pkey",
};

/*
 * Their OIDs.  They are good as long as no relation among them has changed since
 * the look-up began.
 */
static Oid	relation_oids[NRELATIONS];
static uint64 changes = 1;
static uint64 known_at = 0;

/* Where what is below lives; emptied when the OIDs are looked up anew. */
static MemoryContext info_context = NULL;

/* How to enter a tuple into an index of theirs; NULL: not known yet. */
static IndexInfo *index_infos[NRELATIONS];

static void raise_undefined(void) pg_attribute_noreturn();
static bool exist(void);
static bool find_objects(void);
static Oid	extension_schema(void);
static void forget_objects(Datum arg, Oid relid);

/*
 * Is the extension there, in this database, to stay until the transaction ends?
 * Whoever is about to drop it is waited for.  "waiting" is the OID of dt_waiting
 * at the last call, InvalidOid at the first: when the extension was dropped and
 * created again, it is not there any more.
 */
bool
relations_lock(Oid *waiting)
{
	while (exist())
	{
		Oid			found = relation_oids[RELATION_WAITING];

		/* What others have committed is known when the lock is held. */
		LockRelationOid(found, RowExclusiveLock);
		if (known_at == changes)
		{
			if (!OidIsValid(*waiting))
				*waiting = found;
			return *waiting == found;
		}
		UnlockRelationOid(found, RowExclusiveLock);
	}
	return false;
}

/*
 * The OID of one of the extension's objects; undefined_table when the extension
 * is not there, or not whole.
 */
Oid
relation_oid(QueueRelation object)
{
	if (!exist())
		raise_undefined();
	return relation_oids[object];
}

static void
raise_undefined(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("the tables of extension \"doubletick\" do not exist in this database")));
}

static bool
exist(void)
{
	return known_at == changes || find_objects();
}

/* Objects of the same names elsewhere are not ours: they lie in another schema. */
static bool
find_objects(void)
{
	uint64		now;
	Oid			schema;

	if (info_context == NULL)
	{
		info_context = AllocSetContextCreate(TopMemoryContext, "doubletick indexes",
											 ALLOCSET_SMALL_SIZES);
		CacheRegisterRelcacheCallback(forget_objects, (Datum) 0);
	}
	known_at = 0;
	memset(index_infos, 0, sizeof(index_infos));
	MemoryContextReset(info_context);

	now = changes;
	schema = extension_schema();
	if (!OidIsValid(schema))
		return false;
	for (int i = 0; i < NRELATIONS; i++)
	{
		relation_oids[i] = get_relname_relid(relation_names[i], schema);
		if (!OidIsValid(relation_oids[i]))
			return false;
	}
	known_at = now;
	return true;
}

static Oid
extension_schema(void)
{
	Oid			extension = get_extension_oid("doubletick", true);
	Oid			schema = InvalidOid;
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (!OidIsValid(extension))
		return InvalidOid;
	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema;
}

static void
forget_objects(Datum arg pg_attribute_unused(), Oid relid)
{
	if (!OidIsValid(relid))
		changes++;
	for (int i = 0; i < NRELATIONS; i++)
	{
		if (relation_oids[i] == relid)
			changes++;
	}
}

/*
 * How to enter a tuple into an index.  Kept for as long as the index is the same,
 * if it is ours.
 */
IndexInfo *
relation_index_info(Relation index)
{
	for (int i = 0; i < NRELATIONS; i++)
	{
		MemoryContext caller;

		if (relation_oids[i] != RelationGetRelid(index))
			continue;
		caller = MemoryContextSwitchTo(info_context);
		if (index_infos[i] == NULL)
			index_infos[i] = BuildIndexInfo(index);
		MemoryContextSwitchTo(caller);
		return index_infos[i];
	}
	return BuildIndexInfo(index);
}

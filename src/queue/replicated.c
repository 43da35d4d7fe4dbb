/*-------------------------------------------------------------------------
 *
 * queue/replicated.c
 *		What arrives in our tables by logical replication.
 *
 * A publication FOR ALL TABLES has our tables, too.  The publisher sends what waits
 * there; if the subscriber sent it as well, each request would leave twice.  So
 * a trigger that fires only for replicated changes (ENABLE REPLICA) marks the rows of
 * dt_waiting, and the drainer leaves marked rows alone.  When the subscriber takes the
 * publisher's place, dt_send_replicated() makes them its own.
 *
 * A new system identifier, or another database, would not tell: pg_upgrade gives one,
 * and what waits must be sent then.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "commands/trigger.h"
#include "compat.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue/customer_number.h"
#include "queue/enqueue.h"
#include "queue/ids.h"
#include "queue/phones.h"
#include "queue/waiting.h"
#include "queue/wakeup.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* What dt_send_replicated() has done so far. */
typedef struct Adoption
{
	MemoryContext context;		/* of one row */
	int64		nremovals;
	int64		greatest_id;
	QueueRow	removal;		/* one of them */
} Adoption;

static HeapTuple change_waiting(const TriggerData *trigger);
static bool is_replicated(Relation rel, HeapTuple tuple);
static HeapTuple mark_row(Relation rel, HeapTuple tuple);
static void refuse_while_subscribed(Oid waiting);
static void refuse_if_enabled(HeapTuple tuple);
static bool adopt_rows(Store *waiting, Adoption *adoption);
static void check_role(Oid role);
static void enqueue_marker(Store *waiting, const QueueRow *removal);

PG_FUNCTION_INFO_V1(dt_replicated_trigger);
PG_FUNCTION_INFO_V1(dt_send_replicated);

/*
 * dt_replicated_trigger() returns trigger
 *
 * Before a replicated change of a row of ours: under session_replication_role =
 * replica, which logical replication and its like set.  History and holds are those of
 * one database, so nothing of another one gets into them.
 */
Datum
dt_replicated_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Oid			table;
	HeapTuple	tuple = NULL;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("dt_replicated_trigger() must be called by a trigger BEFORE, FOR EACH ROW")));
	table = RelationGetRelid(trigger->tg_relation);
	if (SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
		tuple = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
			trigger->tg_newtuple : trigger->tg_trigtuple;
	else if (table == relation_oid(RELATION_WAITING))
		tuple = change_waiting(trigger);
	else if (table != relation_oid(RELATION_SETTLED) && table != relation_oid(RELATION_HOLD))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("table \"%s\" does not belong to extension \"doubletick\"",
						RelationGetRelationName(trigger->tg_relation))));
	return PointerGetDatum(tuple);	/* NULL: the change is left out */
}

/*
 * Rows that arrive are marked, and stay so when they are changed.  A change of a row
 * that is not marked means another row, which has the same id elsewhere.
 */
static HeapTuple
change_waiting(const TriggerData *trigger)
{
	Relation	rel = trigger->tg_relation;
	Store		waiting;

	/* Checks the table, and waits for its locks. */
	store_open(&waiting, RELATION_WAITING);
	store_close(&waiting);
	phones_forget();

	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		bool		isnull;
		Datum		id = heap_getattr(trigger->tg_trigtuple, WAITING_ID, RelationGetDescr(rel), &isnull);

		if (!isnull)
			ids_advance(DatumGetInt64(id));
		return mark_row(rel, trigger->tg_trigtuple);
	}
	if (!is_replicated(rel, trigger->tg_trigtuple))
		return NULL;
	return TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
		mark_row(rel, trigger->tg_newtuple) : trigger->tg_trigtuple;
}

static bool
is_replicated(Relation rel, HeapTuple tuple)
{
	bool		isnull;

	return DatumGetBool(heap_getattr(tuple, WAITING_REPLICATED, RelationGetDescr(rel), &isnull));
}

static HeapTuple
mark_row(Relation rel, HeapTuple tuple)
{
	int			column = WAITING_REPLICATED;
	Datum		value = BoolGetDatum(true);
	bool		isnull = false;

	return heap_modify_tuple_by_cols(tuple, RelationGetDescr(rel), 1, &column, &value, &isnull);
}

/*
 * dt_send_replicated() returns bigint
 *
 * A marker row tells the drainer that has passed over these rows to read the table
 * anew.
 */
Datum
dt_send_replicated(PG_FUNCTION_ARGS pg_attribute_unused())
{
	Store		waiting;
	Adoption	adoption = {0};

	queue_check_writable("dt_send_replicated()");
	store_open(&waiting, RELATION_WAITING);
	refuse_while_subscribed(RelationGetRelid(waiting.rel));
	adoption.context = AllocSetContextCreate(CurrentMemoryContext, "doubletick replicated",
											 ALLOCSET_DEFAULT_SIZES);
	while (adopt_rows(&waiting, &adoption))
		;
	if (adoption.nremovals > 0)
	{
		ids_advance(adoption.greatest_id);
		enqueue_marker(&waiting, &adoption.removal);
	}
	store_close(&waiting);
	MemoryContextDelete(adoption.context);
	PG_RETURN_INT64(adoption.nremovals);
}

/* While changes still arrive, the publisher may be sending the same removals. */
static void
refuse_while_subscribed(Oid waiting)
{
	Relation	rel = table_open(SubscriptionRelRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_subscription_rel_srrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(waiting));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Oid			oid = ((Form_pg_subscription_rel) GETSTRUCT(tuple))->srsubid;

		refuse_if_enabled(SearchSysCache1(SUBSCRIPTIONOID, ObjectIdGetDatum(oid)));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

static void
refuse_if_enabled(HeapTuple tuple)
{
	Form_pg_subscription subscription;
	const char *name;

	if (!HeapTupleIsValid(tuple))
		return;
	subscription = (Form_pg_subscription) GETSTRUCT(tuple);
	name = NameStr(subscription->subname);
	if (subscription->subenabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" still replicates table \"dt_waiting\"", name),
				 errdetail("The publisher sends what waits there."),
				 errhint("When it sends no more, execute ALTER SUBSCRIPTION %s DISABLE.",
						 quote_identifier(name))));
	ReleaseSysCache(tuple);
}

/*
 * Writes each marked row again, not marked.  A row that another transaction has changed
 * meanwhile is left for the next call: true when there may be such rows.
 */
static bool
adopt_rows(Store *waiting, Adoption *adoption)
{
	MemoryContext caller = CurrentMemoryContext;
	int64		xact = (int64) U64FromFullTransactionId(GetTopFullTransactionId());
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(waiting->rel, InvalidOid, false, snapshot, 0, NULL);
	bool		again = false;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		QueueRow	row;

		CHECK_FOR_INTERRUPTS();
		if (!is_replicated(waiting->rel, tuple))
			continue;
		MemoryContextReset(adoption->context);
		MemoryContextSwitchTo(adoption->context);
		store_read_waiting(waiting, tuple, &row);
		MemoryContextSwitchTo(caller);
		check_role(row.role);
		if (!store_delete(waiting, &row.tid, true))
		{
			again = true;
			continue;
		}
		row.replicated = false;
		row.xact = xact;
		/* An administrator may have corrected the role. */
		row.customer = customer_number(row.server, row.role, row.phone, row.waba);
		store_insert_waiting(waiting, &row);
		adoption->greatest_id = Max(adoption->greatest_id, row.id);
		if (!row.keep && adoption->nremovals++ == 0)
		{
			adoption->removal = row;
			adoption->removal.server = pstrdup(row.server);
			adoption->removal.phone = pstrdup(row.phone);
			adoption->removal.waba = row.waba ? pstrdup(row.waba) : NULL;
		}
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();	/* else the next call sees what this one has
								 * deleted */
	return again;
}

/* Without a role, the removal would fail for good. */
static void
check_role(Oid role)
{
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("replicated removals belong to a role with OID %u, which does not exist", role),
				 errhint("The role has another OID here. Execute UPDATE dt_waiting SET role = 'name'::regrole WHERE replicated AND role = %u.",
						 role)));
}

/* An empty keep whose "ord" is 0.  It goes the way of the removal's customer. */
static void
enqueue_marker(Store *waiting, const QueueRow *removal)
{
	Requester	requester = {.server = removal->server,.role = removal->role,.enqueued_by = removal->enqueued_by};
	Removal		nothing = {.phone = removal->phone,.waba = removal->waba};
	QueueRow	marker;

	queue_make_row(&marker, &requester, &nothing);
	marker.keep = true;
	marker.ord = 0;
	store_insert_waiting(waiting, &marker);
	wake_worker_at_commit();
}

/*-------------------------------------------------------------------------
 *
 * trigger/definition.c
 *		What a trigger's definition says, checked and looked up.
 *
 * This is done once per trigger, table and statement: a definition cannot change
 * while a statement runs.  PostgreSQL does not let a trigger function check
 * a definition when the trigger is created, so errors are raised when it first
 * fires.  Then the whole definition is checked, whichever event has fired it.
 *
 * The request belongs to the table's owner, as a foreign key's check does; the
 * session's settings and the updating role do not matter.  A partition's clone of
 * a trigger uses the owner of the table that the trigger was created on.  If it
 * used the partition's own, a row that moves between partitions of two owners
 * would be lost by one role and gained by another.
 *
 * A removal remembers its table, too: what a table's triggers have enqueued, they can
 * take back, whoever owns the table and whichever server they name by then.  All
 * partitions of a table count as this table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "account/account.h"
#include "base/extension.h"
#include "base/phone.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "trigger/definition.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* The server of triggers whose last argument names none. */
#define DEFAULT_SERVER "doubletick"

/* A trigger's arguments. */
enum
{
	ARGUMENT_PHONE,
	ARGUMENT_TAGS,
	ARGUMENT_FIELDS,
	ARGUMENT_WABA,
	ARGUMENT_SERVER,
	NARGUMENTS
};

static Definition *read_definition(Relation rel, const Trigger *trigger, MemoryContext context);
static void check_events(const Trigger *trigger);
static void check_transition_tables(const Trigger *trigger);
static void check_arguments(const Trigger *trigger);
static const char *get_argument(const Trigger *trigger, int n);
pg_noreturn static void refuse_definition(const Trigger *trigger, const char *problem,
										  const char *hint);
static void find_owner(Relation rel, const Trigger *trigger, Requester *requester);
static Oid	find_cloned_table(Oid trigger);
static Oid	find_whole_table(Oid partition);
static int64 number_of_table(Oid table);
static const char *find_own_waba(const char *servername, MemoryContext context);

/*
 * Called each time a trigger fires.  Raises an error if its definition is wrong.
 */
Definition *
definition_get(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"dt_remove_tags_custom_fields_trigger")));
	if (fcinfo->flinfo->fn_extra == NULL)
	{
		const TriggerData *data = (TriggerData *) fcinfo->context;

		fcinfo->flinfo->fn_extra = read_definition(data->tg_relation, data->tg_trigger,
												   fcinfo->flinfo->fn_mcxt);
	}
	return fcinfo->flinfo->fn_extra;
}

/*
 * Called by dt_check(): raises an error if the trigger's definition is wrong, else
 * returns whose requests the trigger makes.
 */
Requester
definition_check(Relation rel, const Trigger *trigger)
{
	return read_definition(rel, trigger, CurrentMemoryContext)->requester;
}

static Definition *
read_definition(Relation rel, const Trigger *trigger, MemoryContext context)
{
	Definition *definition = MemoryContextAllocZero(context, sizeof(Definition));
	Columns    *columns = &definition->columns;
	const char *server = get_argument(trigger, ARGUMENT_SERVER);

	extension_check_version();
	check_events(trigger);
	check_arguments(trigger);

	column_find_number(&columns->phone, rel, trigger->tgname,
					   get_argument(trigger, ARGUMENT_PHONE),
					   "phone", context);
	column_find_names(&columns->tags, rel, trigger->tgname,
					  get_argument(trigger, ARGUMENT_TAGS),
					  "tags", false, context);
	column_find_names(&columns->fields, rel, trigger->tgname,
					  get_argument(trigger, ARGUMENT_FIELDS),
					  "custom fields", true, context);
	column_find_number(&columns->waba, rel, trigger->tgname,
					   get_argument(trigger, ARGUMENT_WABA),
					   "WABA number", context);
	columns->last = Max(Max(columns->phone.attno, columns->tags.attno),
						Max(columns->fields.attno, columns->waba.attno));
	if (!TRIGGER_FOR_ROW(trigger->tgtype))
		columns_find_key(columns, rel, context);

	definition->requester.server =
		MemoryContextStrdup(context, *server == '\0' ? DEFAULT_SERVER : server);
	find_owner(rel, trigger, &definition->requester);
	definition->requester.delay = account_delay(definition->requester.server);
	if (columns->waba.attno != 0)
		definition->own_waba = find_own_waba(definition->requester.server, context);
	return definition;
}

static void
check_events(const Trigger *trigger)
{
	int16		type = trigger->tgtype;

	if (!TRIGGER_FOR_AFTER(type) || TRIGGER_FOR_TRUNCATE(type))
		refuse_definition(trigger, "must fire after INSERT, UPDATE or DELETE",
						  "Write AFTER INSERT OR UPDATE OR DELETE.");
	if (trigger->tgnattr > 0)
		refuse_definition(trigger, "is limited to some columns",
						  "Write UPDATE without OF: the trigger must see a row whenever it moves or its key changes.");
	if (trigger->tgqual)
		refuse_definition(trigger, "has a WHEN condition",
						  "Leave WHEN out: the trigger must see a row whenever it moves or its key changes.");
	if (!TRIGGER_FOR_ROW(type))
		check_transition_tables(trigger);
	else if (TRIGGER_FOR_DELETE(type) && !TRIGGER_FOR_INSERT(type))
		refuse_definition(trigger, "fires for each row on DELETE, but not on INSERT",
						  "A row that moves to another partition is deleted and inserted: write AFTER INSERT OR UPDATE OR DELETE.");
}

static void
check_transition_tables(const Trigger *trigger)
{
	int16		type = trigger->tgtype;

	if ((TRIGGER_FOR_INSERT(type) || TRIGGER_FOR_UPDATE(type)) && trigger->tgnewtable == NULL)
		refuse_definition(trigger, "fires for each statement, but has no NEW TABLE",
						  "Write REFERENCING NEW TABLE AS new for INSERT, OLD TABLE AS old NEW TABLE AS new for UPDATE.");
	if ((TRIGGER_FOR_DELETE(type) || TRIGGER_FOR_UPDATE(type)) && trigger->tgoldtable == NULL)
		refuse_definition(trigger, "fires for each statement, but has no OLD TABLE",
						  "Write REFERENCING OLD TABLE AS old for DELETE, OLD TABLE AS old NEW TABLE AS new for UPDATE.");
}

static void
check_arguments(const Trigger *trigger)
{
	if (trigger->tgnargs > NARGUMENTS)
		refuse_definition(trigger, "has too many arguments", TRIGGER_ARGUMENTS);
	if (*get_argument(trigger, ARGUMENT_PHONE) == '\0')
		refuse_definition(trigger, "names no column of the phone", TRIGGER_ARGUMENTS);
	if (*get_argument(trigger, ARGUMENT_TAGS) == '\0' && *get_argument(trigger, ARGUMENT_FIELDS) == '\0')
		refuse_definition(trigger, "names no column of tags or custom fields", TRIGGER_ARGUMENTS);
	if (strlen(get_argument(trigger, ARGUMENT_SERVER)) >= NAMEDATALEN)
		refuse_definition(trigger, "names a server whose name is too long",
						  "A server's name has at most 63 bytes.");
}

static const char *
get_argument(const Trigger *trigger, int n)
{
	return n < trigger->tgnargs ? trigger->tgargs[n] : "";
}

static void
refuse_definition(const Trigger *trigger, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("trigger \"%s\" %s", trigger->tgname, problem),
			 errhint("%s", hint)));
}

/* Looks up the table that the trigger was created on. */
static void
find_owner(Relation rel, const Trigger *trigger, Requester *requester)
{
	Oid			table = RelationGetRelid(rel);
	Form_pg_class form = rel->rd_rel;
	HeapTuple	tuple = NULL;

	if (trigger->tgisclone)
	{
		table = find_cloned_table(trigger->tgoid);
		tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for relation %u", table);
		form = (Form_pg_class) GETSTRUCT(tuple);
	}
	requester->role = form->relowner;
	requester->origin = number_of_table(form->relispartition ? find_whole_table(table) : table);
	if (tuple)
		ReleaseSysCache(tuple);
}

/* Goes from each clone to its parent. */
static Oid
find_cloned_table(Oid trigger)
{
	Oid			table = InvalidOid;
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);

	while (OidIsValid(trigger))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(trigger));
		scan = systable_beginscan(rel, TriggerOidIndexId, true, NULL, 1, &key);
		trigger = InvalidOid;
		tuple = systable_getnext(scan);
		if (HeapTupleIsValid(tuple))
		{
			table = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
			trigger = ((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid;
		}
		systable_endscan(scan);
	}
	table_close(rel, AccessShareLock);
	return table;
}

/* The topmost table of which this is a partition; itself while it is being detached. */
static Oid
find_whole_table(Oid partition)
{
	List	   *ancestors = get_partition_ancestors(partition);

	return ancestors == NIL ? partition : llast_oid(ancestors);
}

/*
 * The number, never 0, that stands for a table as an origin: a hash of its OID and of
 * what the OID is for, the cluster and the database.  Rows that somebody restores
 * elsewhere, where the OID may be another table's, are nobody's there.
 */
static int64
number_of_table(Oid table)
{
	uint64		hash = GetSystemIdentifier();

	hash = hash_bytes_uint32_extended(MyDatabaseId, hash);
	hash = hash_bytes_uint32_extended(table, hash);
	return (int64) (hash | 1);
}

/*
 * The server's WABA number, which requests carry when a row has none; or NULL.
 * A table without a column for WABA numbers does not need it: all its rows have none.
 */
static const char *
find_own_waba(const char *servername, MemoryContext context)
{
	const char *waba;

	(void) account_find_waba(servername, &waba);
	return waba ? MemoryContextStrdup(context, waba) : NULL;
}

/*
 * The WABA number of a row as far as it tells customers apart: NULL for the
 * server's own, whether the row names it or has none.
 */
const char *
definition_waba(const Definition *definition, const char *waba)
{
	if (waba && definition->own_waba && phone_equal(waba, definition->own_waba))
		return NULL;
	return waba;
}

/*-------------------------------------------------------------------------
 *
 * trigger/definition.c
 *		What a trigger's definition says, checked and looked up.
 *
 * Once per trigger, table and statement, for nothing of it can change while a
 * statement runs.  PostgreSQL does not ask a trigger function what it can do when
 * a trigger is created, so what is wrong is raised when it first fires; and
 * whichever event that is, the whole definition is looked at.
 *
 * The request is the table owner's, as a foreign key's check is: what the session
 * has set, and who updates, has no part in it.  The clone of a trigger on a
 * partition belongs to the table that the trigger was created on, which may have
 * another owner: else a row that moves between partitions would be lost by one
 * role and gained by another.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "trigger/definition.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* Where requests go unless the trigger's last argument says otherwise. */
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

static Definition *look_up(const TriggerData *data, MemoryContext context);
static void check_events(const TriggerData *data);
static void check_transition_tables(const Trigger *trigger);
static void check_arguments(const Trigger *trigger);
static const char *argument(const Trigger *trigger, int n);
static void refuse(const Trigger *trigger, const char *problem, const char *hint)
			pg_attribute_noreturn();
static Oid	owner_of(const TriggerData *data);
static bool find_parent(Oid trigger, Oid *parent, Oid *relation);

/*
 * The definition of the trigger that calls; raises what is wrong with it.
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
		fcinfo->flinfo->fn_extra = look_up((TriggerData *) fcinfo->context,
										   fcinfo->flinfo->fn_mcxt);
	return fcinfo->flinfo->fn_extra;
}

static Definition *
look_up(const TriggerData *data, MemoryContext context)
{
	const Trigger *trigger = data->tg_trigger;
	Relation	rel = data->tg_relation;
	Definition *definition = MemoryContextAllocZero(context, sizeof(Definition));
	Columns    *columns = &definition->columns;

	check_events(data);
	check_arguments(trigger);

	column_find_number(&columns->phone, rel, argument(trigger, ARGUMENT_PHONE),
					   "phone", context);
	column_find_names(&columns->tags, rel, argument(trigger, ARGUMENT_TAGS),
					  "tags", false, context);
	column_find_names(&columns->fields, rel, argument(trigger, ARGUMENT_FIELDS),
					  "custom fields", true, context);
	column_find_number(&columns->waba, rel, argument(trigger, ARGUMENT_WABA),
					   "waba", context);
	columns->last = Max(Max(columns->phone.attno, columns->tags.attno),
						Max(columns->fields.attno, columns->waba.attno));
	if (!TRIGGER_FIRED_FOR_ROW(data->tg_event))
		columns_find_key(columns, rel, context);

	definition->requester.server =
		MemoryContextStrdup(context, *argument(trigger, ARGUMENT_SERVER) == '\0' ?
							DEFAULT_SERVER : argument(trigger, ARGUMENT_SERVER));
	definition->requester.role = owner_of(data);
	return definition;
}

static void
check_events(const TriggerData *data)
{
	const Trigger *trigger = data->tg_trigger;
	int16		type = trigger->tgtype;

	if (!TRIGGER_FOR_AFTER(type) || TRIGGER_FOR_TRUNCATE(type))
		refuse(trigger, "must fire after INSERT, UPDATE or DELETE",
			   "Write AFTER INSERT OR UPDATE OR DELETE.");
	if (!TRIGGER_FOR_ROW(type))
		check_transition_tables(trigger);
	else if (TRIGGER_FOR_DELETE(type) && !TRIGGER_FOR_INSERT(type))
		refuse(trigger, "fires for each row on DELETE, but not on INSERT",
			   "A row that moves to another partition is deleted and inserted: write AFTER INSERT OR UPDATE OR DELETE.");
}

static void
check_transition_tables(const Trigger *trigger)
{
	int16		type = trigger->tgtype;

	if ((TRIGGER_FOR_INSERT(type) || TRIGGER_FOR_UPDATE(type)) && trigger->tgnewtable == NULL)
		refuse(trigger, "fires for each statement, but has no NEW TABLE",
			   "Write REFERENCING NEW TABLE AS new for INSERT, OLD TABLE AS old NEW TABLE AS new for UPDATE.");
	if ((TRIGGER_FOR_DELETE(type) || TRIGGER_FOR_UPDATE(type)) && trigger->tgoldtable == NULL)
		refuse(trigger, "fires for each statement, but has no OLD TABLE",
			   "Write REFERENCING OLD TABLE AS old for DELETE, OLD TABLE AS old NEW TABLE AS new for UPDATE.");
}

static void
check_arguments(const Trigger *trigger)
{
	const char *hint = "They name the columns of the phone, the tags, the custom fields and the waba, and a server; '' names none.";

	if (trigger->tgnargs > NARGUMENTS)
		refuse(trigger, "has too many arguments", hint);
	if (*argument(trigger, ARGUMENT_PHONE) == '\0')
		refuse(trigger, "names no column of the phone", hint);
	if (*argument(trigger, ARGUMENT_TAGS) == '\0' && *argument(trigger, ARGUMENT_FIELDS) == '\0')
		refuse(trigger, "names no column of tags or custom fields", hint);
	if (strlen(argument(trigger, ARGUMENT_SERVER)) >= NAMEDATALEN)
		refuse(trigger, "names a server that cannot be", "A server's name has at most 63 bytes.");
}

static const char *
argument(const Trigger *trigger, int n)
{
	return n < trigger->tgnargs ? trigger->tgargs[n] : "";
}

static void
refuse(const Trigger *trigger, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("trigger \"%s\" %s", trigger->tgname, problem),
			 errhint("%s", hint)));
}

/* Of the table that the trigger was created on. */
static Oid
owner_of(const TriggerData *data)
{
	Oid			owner = data->tg_relation->rd_rel->relowner;
	Oid			id = data->tg_trigger->tgoid;
	Oid			relation = InvalidOid;
	HeapTuple	tuple;

	if (!data->tg_trigger->tgisclone)
		return owner;
	while (find_parent(id, &id, &relation))
		 /* up */ ;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/* The trigger that this one is a clone of, if it is, and its own table. */
static bool
find_parent(Oid trigger, Oid *parent, Oid *relation)
{
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(rel, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);

		*relation = form->tgrelid;
		*parent = form->tgparentid;
		found = OidIsValid(form->tgparentid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

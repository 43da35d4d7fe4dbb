/*-------------------------------------------------------------------------
 *
 * check/triggers.c
 *		Do our triggers see each change, and can what they enqueue be sent?
 *
 * A trigger is read as it would be when it fires.  Changes that logical replication
 * makes fire only some triggers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_trigger.h"
#include "check/check.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "trigger/definition.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* The triggers "t" that call our function; for select_rows(), with the schema's OID. */
#define OUR_TRIGGERS \
	"pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid" \
	" AND p.proname = 'dt_remove_tags_custom_fields_trigger'" \
	" AND p.pronamespace = %u"

/*
 * Does a subscription change the table of "t", as such, in a partition, or as one?  If
 * dt_waiting comes with it, the publisher has the extension, and enqueues itself.
 */
#define IS_SUBSCRIBED \
	"EXISTS (SELECT FROM pg_catalog.pg_subscription_rel AS r WHERE (r.srrelid = t.tgrelid" \
	" OR r.srrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(t.tgrelid))" \
	" OR r.srrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(t.tgrelid)))" \
	" AND NOT EXISTS (SELECT FROM pg_catalog.pg_subscription_rel AS q" \
	" JOIN pg_catalog.pg_class AS c ON c.oid = q.srrelid WHERE q.srsubid = r.srsubid" \
	" AND c.relname = 'dt_waiting' AND c.relnamespace = p.pronamespace))"

/* A trigger that may raise an error when it is read. */
typedef struct TriggerSubject
{
	Relation	rel;
	const Trigger *trigger;
	Requester	requester;		/* whose requests it enters */
} TriggerSubject;

static void check_triggers_of_table(Check *check, Oid table, Oid function, bool is_subscribed);
static void check_trigger(Check *check, Relation rel, const Trigger *trigger, bool is_subscribed);
static void read_trigger(void *subject);
static void check_mode(Check *check, Oid table, const char *name, char mode, bool is_subscribed);
static char *table_name(Oid table);

/*
 * Every table that has our trigger; its partitions have clones of it.
 */
void
check_triggers(Check *check)
{
	uint64		ntables = select_rows("SELECT DISTINCT t.tgrelid, p.oid, " IS_SUBSCRIBED
									  " FROM " OUR_TRIGGERS " AND t.tgparentid = 0 ORDER BY 1",
									  check->namespace);
	SPITupleTable *tables = SPI_tuptable;

	for (uint64 i = 0; i < ntables; i++)
	{
		SPI_tuptable = tables;
		check_triggers_of_table(check, selected_oid(i, 1), selected_oid(i, 2), selected_bool(i, 3));
	}
}

static void
check_triggers_of_table(Check *check, Oid table, Oid function, bool is_subscribed)
{
	Relation	rel = try_relation_open(table, AccessShareLock);
	const TriggerDesc *triggers;
	bool		on_insert = false;
	bool		on_update = false;
	bool		on_delete = false;

	if (rel == NULL)
		return;					/* dropped since */
	/* a copy, since look-ups may have PostgreSQL free the relation's own */
	triggers = CopyTriggerDesc(rel->trigdesc);
	for (int i = 0; triggers && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (trigger->tgfoid != function || trigger->tgisclone)
			continue;
		check_trigger(check, rel, trigger, is_subscribed);
		on_insert |= TRIGGER_FOR_INSERT(trigger->tgtype) != 0;
		on_update |= TRIGGER_FOR_UPDATE(trigger->tgtype) != 0;
		on_delete |= TRIGGER_FOR_DELETE(trigger->tgtype) != 0;
	}
	if (!on_insert || !on_update || !on_delete)
		report_problem(check, psprintf("table %s", table_name(table)),
					   "A trigger must fire on each of INSERT, UPDATE and DELETE: else names are missed, or removed although they came back.",
					   "no trigger of the extension fires on %s",
					   !on_insert ? "INSERT" : !on_update ? "UPDATE" : "DELETE");
	relation_close(rel, AccessShareLock);
}

static void
check_trigger(Check *check, Relation rel, const Trigger *trigger, bool is_subscribed)
{
	TriggerSubject subject = {.rel = rel,.trigger = trigger};
	const char *object = psprintf("trigger %s on table %s", quote_identifier(trigger->tgname),
								  table_name(RelationGetRelid(rel)));
	bool		is_row = TRIGGER_FOR_ROW(trigger->tgtype);
	Fault	   *fault = catch_fault(read_trigger, &subject);

	if (fault)
		report_problem(check, object, fault->hint, "%s", fault->message);
	else
		check_account(check, subject.requester.server, subject.requester.role);
	check_mode(check, RelationGetRelid(rel), trigger->tgname, trigger->tgenabled,
			   is_subscribed && is_row);
	if (is_subscribed && !is_row)
		report_problem(check, object, "Create one trigger AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW, and ENABLE ALWAYS TRIGGER.",
					   "a subscription changes the table, and triggers FOR EACH STATEMENT do not fire for that");
	if (!is_row && rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		report_problem(check, object, "Create one trigger AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW.",
					   "the table is partitioned, and triggers FOR EACH STATEMENT miss statements that name a partition, and rows that MERGE moves");
}

static void
read_trigger(void *subject)
{
	TriggerSubject *trigger = subject;

	trigger->requester = definition_check(trigger->rel, trigger->trigger);
}

/*
 * It is the partition's clone of a trigger that fires for its rows.
 */
void
check_partitions(Check *check)
{
	uint64		nclones = select_rows("SELECT t.tgrelid, t.tgname, t.tgenabled, " IS_SUBSCRIBED
									  " FROM " OUR_TRIGGERS
									  " AND t.tgenabled <> (SELECT parent.tgenabled FROM pg_catalog.pg_trigger AS parent"
									  " WHERE parent.oid = t.tgparentid) ORDER BY 1",
									  check->namespace);
	SPITupleTable *clones = SPI_tuptable;

	for (uint64 i = 0; i < nclones; i++)
	{
		SPI_tuptable = clones;
		check_mode(check, selected_oid(i, 1), selected_text(i, 2), selected_text(i, 3)[0], selected_bool(i, 4));
	}
}

/* Does a trigger FOR EACH ROW fire for all changes that come? */
static void
check_mode(Check *check, Oid table, const char *name, char mode, bool is_subscribed)
{
	const char *on_table = table_name(table);
	const char *trigger = quote_identifier(name);
	const char *object;
	const char *always;

	if (on_table == NULL)
		return;
	object = psprintf("trigger %s on table %s", trigger, on_table);
	always = psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s;%s", on_table, trigger,
					  is_subscribed ? " -- if the publisher's table has no such trigger" : "");
	if (mode == TRIGGER_DISABLED)
		report_problem(check, object, is_subscribed ? always :
					   psprintf("ALTER TABLE %s ENABLE TRIGGER %s;", on_table, trigger),
					   "it is disabled");
	else if (mode == TRIGGER_FIRES_ON_REPLICA)
		report_problem(check, object, always, "it fires for replicated changes alone");
	else if (is_subscribed && mode != TRIGGER_FIRES_ALWAYS)
		report_problem(check, object, always,
					   "a subscription changes the table, and the trigger does not fire for that");
}

/*
 * Tables with our trigger that a subscription has not copied yet.
 */
void
check_first_copies(Check *check)
{
	uint64		ntables = select_rows("SELECT DISTINCT t.tgrelid, s.subname FROM " OUR_TRIGGERS
									  " JOIN pg_catalog.pg_subscription_rel AS r ON r.srrelid = t.tgrelid"
									  " JOIN pg_catalog.pg_subscription AS s ON s.oid = r.srsubid"
									  " AND r.srsubstate NOT IN ('s', 'r') ORDER BY 1, 2",
									  check->namespace);
	SPITupleTable *tables = SPI_tuptable;

	for (uint64 i = 0; i < ntables; i++)
	{
		const char *table;

		SPI_tuptable = tables;
		table = table_name(selected_oid(i, 1));
		if (table == NULL)
			continue;
		report_problem(check, psprintf("table %s", table),
					   "Changes arrive when the copy is complete. If it does not get on, see the server's log.",
					   "subscription \"%s\" has not copied the table yet", selected_text(i, 2));
	}
}

/*
 * The quoted name of a table; NULL if it was dropped.  The queries use the snapshot of the
 * statement that called dt_check(), and so still find such a table, long after.
 */
static char *
table_name(Oid table)
{
	char	   *name = get_rel_name(table);

	if (name == NULL)
		return NULL;
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)), name);
}

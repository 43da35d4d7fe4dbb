/*-------------------------------------------------------------------------
 *
 * check/check.c
 *		dt_check(): what is wrong in this database, and what mends it.
 *
 * Looks at everything that a removal needs on its way: our tables, settings, servers,
 * user mappings, triggers, what waits, and the worker.  Writes nothing, and sends no
 * request.  The function is SECURITY DEFINER, since the catalogs and tables that it
 * reads are not everybody's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "account/account.h"
#include "account/enabled.h"
#include "base/extension.h"
#include "base/shared.h"
#include "catalog/pg_trigger.h"
#include "check/agreement.h"
#include "check/connection.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "queue/store.h"
#include "settings.h"
#include "trigger/definition.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/tuplestore.h"
#include "utils/varlena.h"

/* A server and a role. */
typedef struct AccountKey
{
	const char *server;
	Oid			role;
} AccountKey;

/* The triggers "t" that call our function; for select_rows(), with the quoted schema. */
#define OUR_TRIGGERS \
	"pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid" \
	" AND p.proname = 'dt_remove_tags_custom_fields_trigger'" \
	" AND p.pronamespace = '%s'::pg_catalog.regnamespace"

/* Does a subscription change the table of "t", as such, in a partition, or as one? */
#define IS_SUBSCRIBED \
	"EXISTS (SELECT FROM pg_catalog.pg_subscription_rel AS r WHERE r.srrelid = t.tgrelid" \
	" OR r.srrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(t.tgrelid))" \
	" OR r.srrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(t.tgrelid)))"

/* What dt_check() has looked at so far, and where it reports. */
typedef struct Check
{
	ReturnSetInfo *result;
	bool		connect;		/* is each server to be connected to? */
	const char *schema;			/* the extension's, quoted */
	bool		tables_are_good;
	List	   *accounts;		/* AccountKey: those that were checked */
	List	   *faulty;			/* AccountKey: those that have a fault */
	List	   *named;			/* see agreement_check() */
} Check;

/* What may raise an error when it is looked at. */
typedef struct Subject
{
	QueueRelation table;
	Relation	rel;			/* a customers table, */
	const Trigger *trigger;		/* its trigger, */
	Requester	requester;		/* and whose requests that enters */
} Subject;

static void report_problem(Check *check, const char *object, const char *hint,
						   const char *format,...) pg_attribute_printf(4, 5);
static void check_tables(Check *check);
static void open_table(Subject *subject);
static void check_settings(Check *check);
static void check_servers(Check *check);
static void check_server(Check *check, const char *server, Oid owner, const char *ca_file);
static void check_triggers(Check *check);
static void check_triggers_of_table(Check *check, Oid table, Oid function, bool is_subscribed);
static void check_trigger(Check *check, Relation rel, const Trigger *trigger, bool is_subscribed);
static void read_trigger(Subject *subject);
static void check_mode(Check *check, Oid table, const char *name, char mode, bool is_subscribed);
static void check_partitions(Check *check);
static void check_first_copies(Check *check);
static void check_what_waits(Check *check);
static void check_account(Check *check, const char *server, Oid role);
static bool has_account(const List *accounts, const char *server, Oid role);
static List *add_account(List *accounts, const char *server, Oid role);
static void check_worker(Check *check);
static int64 count_waiting(Check *check);
static char *preload_command(void);
static Fault *catch_fault(void (*function) (Subject *), Subject *subject);
static uint64 select_rows(const char *format,...) pg_attribute_printf(1, 2);
static char *format_text(const char *format, va_list args) pg_attribute_printf(1, 0);
static char *get_text(uint64 row, int column);
static Oid	get_oid(uint64 row, int column);
static bool get_bool(uint64 row, int column);
static char *table_name(Oid table);

PG_FUNCTION_INFO_V1(dt_check);

/*
 * dt_check(connect boolean) returns table (object text, problem text, hint text)
 */
Datum
dt_check(PG_FUNCTION_ARGS)
{
	Check		check = {0};
	Fault	   *fault;

	InitMaterializedSRF(fcinfo, 0);
	check.result = (ReturnSetInfo *) fcinfo->resultinfo;
	check.connect = !PG_ARGISNULL(0) && PG_GETARG_BOOL(0);
	check.schema = quote_identifier(get_namespace_name(get_func_namespace(fcinfo->flinfo->fn_oid)));

	fault = extension_version_fault();
	if (fault)
	{
		/* Nothing else can be looked at with the wrong library. */
		report_problem(&check, "extension doubletick", fault->hint, "%s", fault->message);
		PG_RETURN_NULL();
	}

	SPI_connect();
	check_tables(&check);
	check_settings(&check);
	check_servers(&check);
	check_triggers(&check);
	check_partitions(&check);
	check_first_copies(&check);
	if (check.tables_are_good)
		check_what_waits(&check);
	/* The queue of a standby is sent by its primary. */
	if (!RecoveryInProgress())
		check_worker(&check);
	SPI_finish();
	PG_RETURN_NULL();
}

/* Adds a row to the result.  "hint" may be NULL. */
static void
report_problem(Check *check, const char *object, const char *hint, const char *format,...)
{
	Datum		values[3];
	bool		nulls[3] = {false, false, hint == NULL};
	va_list		args;

	va_start(args, format);
	values[1] = CStringGetTextDatum(format_text(format, args));
	va_end(args);
	values[0] = CStringGetTextDatum(object);
	values[2] = hint ? CStringGetTextDatum(hint) : (Datum) 0;
	tuplestore_putvalues(check->result->setResult, check->result->setDesc, values, nulls);
}

/* Tables of ours that this library cannot write. */
static void
check_tables(Check *check)
{
	static const QueueRelation tables[] = {RELATION_WAITING, RELATION_SETTLED, RELATION_HOLD};

	check->tables_are_good = true;
	for (int i = 0; i < (int) lengthof(tables); i++)
	{
		Subject		subject = {.table = tables[i]};
		Fault	   *fault = catch_fault(open_table, &subject);

		if (fault)
			report_problem(check, psprintf("table %s.%s", check->schema, relation_name(tables[i])),
						   fault->hint, "%s", fault->message);
		check->tables_are_good &= fault == NULL;
	}
}

static void
open_table(Subject *subject)
{
	Store		store;

	store_open(&store, subject->table);
	store_close(&store);
}

/* Is anything sent at all, and to a server that exists? */
static void
check_settings(Check *check)
{
	Fault	   *fault;

	if (!setting_enabled)
		report_problem(check, "setting doubletick.enabled", enabled_command(),
					   "it is off, so nothing is sent");
	if (select_rows("SELECT FROM pg_catalog.pg_foreign_server AS s"
					" JOIN pg_catalog.pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw"
					" WHERE w.fdwname = 'doubletick'") == 0)
		report_problem(check, psprintf("database %s", quote_identifier(get_database_name(MyDatabaseId))),
					   "CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick;",
					   "it has no DoubleTick server");
	else if ((fault = account_check_server(setting_server)) != NULL)
		report_problem(check, "setting doubletick.server", fault->hint, "%s", fault->message);
}

/* Every server, and every role that has a mapping on it. */
static void
check_servers(Check *check)
{
	uint64		nservers = select_rows("SELECT s.srvname, s.srvowner,"
									   " (SELECT option_value FROM pg_catalog.pg_options_to_table(s.srvoptions)"
									   "  WHERE option_name = 'ca_file')"
									   " FROM pg_catalog.pg_foreign_server AS s"
									   " JOIN pg_catalog.pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw"
									   " WHERE w.fdwname = 'doubletick' ORDER BY s.srvname");
	SPITupleTable *servers = SPI_tuptable;

	for (uint64 i = 0; i < nservers; i++)
	{
		SPI_tuptable = servers;
		check_server(check, get_text(i, 1), get_oid(i, 2), get_text(i, 3));
	}
}

/* A public mapping is checked as the server's owner would use it. */
static void
check_server(Check *check, const char *server, Oid owner, const char *ca_file)
{
	const char *object = psprintf("server %s", quote_identifier(server));
	Fault	   *fault;
	uint64		nmappings;
	SPITupleTable *mappings;

	if (ca_file && access(ca_file, R_OK) != 0)
		report_problem(check, object, "Put the file there, or name another one in the server's option \"ca_file\".",
					   "could not read file \"%s\" of option \"ca_file\": %s", ca_file, strerror(errno));

	fault = agreement_check(&check->named, server, owner);
	if (fault)
		report_problem(check, object, fault->hint, "%s", fault->message);

	nmappings = select_rows("SELECT CASE m.umuser WHEN 0 THEN %u ELSE m.umuser END"
							" FROM pg_catalog.pg_user_mapping AS m"
							" JOIN pg_catalog.pg_foreign_server AS s ON s.oid = m.umserver"
							" WHERE s.srvname = %s ORDER BY 1",
							owner, quote_literal_cstr(server));
	mappings = SPI_tuptable;
	if (nmappings == 0)
		report_problem(check, object,
					   psprintf("CREATE USER MAPPING FOR CURRENT_USER SERVER %s OPTIONS (api_key '...');",
								quote_identifier(server)),
					   "it has no user mapping, so nobody can send");
	for (uint64 i = 0; i < nmappings; i++)
	{
		SPI_tuptable = mappings;
		check_account(check, server, get_oid(i, 1));
	}
	if (check->connect)
	{
		fault = connection_check(server, owner);
		if (fault)
			report_problem(check, object, fault->hint, "%s", fault->message);
	}
}

/* Every table that has our trigger; its partitions have clones of it. */
static void
check_triggers(Check *check)
{
	uint64		ntables = select_rows("SELECT DISTINCT t.tgrelid, p.oid, " IS_SUBSCRIBED
									  " FROM " OUR_TRIGGERS " AND t.tgparentid = 0 ORDER BY 1", check->schema);
	SPITupleTable *tables = SPI_tuptable;

	for (uint64 i = 0; i < ntables; i++)
	{
		SPI_tuptable = tables;
		check_triggers_of_table(check, get_oid(i, 1), get_oid(i, 2), get_bool(i, 3));
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
	Subject		subject = {.rel = rel,.trigger = trigger};
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
}

static void
read_trigger(Subject *subject)
{
	subject->requester = definition_check(subject->rel, subject->trigger);
}

/* Does a trigger FOR EACH ROW fire for all changes that come? */
static void
check_mode(Check *check, Oid table, const char *name, char mode, bool is_subscribed)
{
	const char *on_table = table_name(table);
	const char *trigger = quote_identifier(name);
	const char *object = psprintf("trigger %s on table %s", trigger, on_table);
	const char *always = psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s;", on_table, trigger);

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

/* It is the partition's clone of a trigger that fires for its rows. */
static void
check_partitions(Check *check)
{
	uint64		nclones = select_rows("SELECT t.tgrelid, t.tgname, t.tgenabled, " IS_SUBSCRIBED
									  " FROM " OUR_TRIGGERS
									  " AND t.tgenabled <> (SELECT parent.tgenabled FROM pg_catalog.pg_trigger AS parent"
									  " WHERE parent.oid = t.tgparentid) ORDER BY 1", check->schema);
	SPITupleTable *clones = SPI_tuptable;

	for (uint64 i = 0; i < nclones; i++)
	{
		SPI_tuptable = clones;
		check_mode(check, get_oid(i, 1), get_text(i, 2), get_text(i, 3)[0], get_bool(i, 4));
	}
}

/* Tables with our trigger that a subscription has not copied yet. */
static void
check_first_copies(Check *check)
{
	uint64		ntables = select_rows("SELECT DISTINCT t.tgrelid, s.subname FROM " OUR_TRIGGERS
									  " JOIN pg_catalog.pg_subscription_rel AS r ON r.srrelid = t.tgrelid"
									  " JOIN pg_catalog.pg_subscription AS s ON s.oid = r.srsubid"
									  " AND r.srsubstate NOT IN ('s', 'r') ORDER BY 1, 2", check->schema);
	SPITupleTable *tables = SPI_tuptable;

	for (uint64 i = 0; i < ntables; i++)
	{
		SPI_tuptable = tables;
		report_problem(check, psprintf("table %s", table_name(get_oid(i, 1))),
					   "Changes arrive when the copy is complete. If it does not get on, see the server's log.",
					   "subscription \"%s\" has not copied the table yet", get_text(i, 2));
	}
}

/* Roles that have removals waiting, and what their requests are held for. */
static void
check_what_waits(Check *check)
{
	uint64		nlanes = select_rows("SELECT w.server, w.role, h.reason, h.definition <> ''"
									 " FROM (SELECT DISTINCT server, role FROM %1$s.dt_waiting WHERE NOT keep) AS w"
									 " LEFT JOIN %1$s.dt_hold AS h USING (server, role) ORDER BY 1, 2",
									 check->schema);
	SPITupleTable *lanes = SPI_tuptable;

	for (uint64 i = 0; i < nlanes; i++)
	{
		char	   *server;
		char	   *reason;
		Oid			role;

		SPI_tuptable = lanes;
		server = get_text(i, 1);
		role = get_oid(i, 2);
		reason = get_text(i, 3);
		check_account(check, server, role);
		if (reason && get_bool(i, 4) && !has_account(check->faulty, server, role))
			report_problem(check, psprintf("requests of role %s to server %s",
										   quote_identifier(GetUserNameFromId(role, true)),
										   quote_identifier(server)),
						   "They go on when the definition of server or user mapping has changed, or a probe succeeds; one leaves each minute.",
						   "they are held: %s", reason);
	}
}

/* Can a role send to a server?  Each is reported once. */
static void
check_account(Check *check, const char *server, Oid role)
{
	char	   *name = GetUserNameFromId(role, true);
	Account		account;
	Fault	   *fault;

	if (!setting_enabled || has_account(check->accounts, server, role))
		return;
	check->accounts = add_account(check->accounts, server, role);
	fault = account_get(server, role, &account);
	if (fault == NULL)
		return;
	check->faulty = add_account(check->faulty, server, role);
	report_problem(check, OidIsValid(account.serverid) && name
				   ? psprintf("user mapping for %s on server %s", quote_identifier(name), quote_identifier(server))
				   : psprintf("server %s", quote_identifier(server)),
				   fault->hint, "%s", fault->message);
}

static bool
has_account(const List *accounts, const char *server, Oid role)
{
	ListCell   *cell;

	foreach(cell, accounts)
	{
		const AccountKey *key = lfirst(cell);

		if (key->role == role && strcmp(key->server, server) == 0)
			return true;
	}
	return false;
}

static List *
add_account(List *accounts, const char *server, Oid role)
{
	AccountKey *key = palloc(sizeof(AccountKey));

	key->server = server;
	key->role = role;
	return lappend(accounts, key);
}

/* Who sends what waits? */
static void
check_worker(Check *check)
{
	int64		nwaiting = check->tables_are_good ? count_waiting(check) : 0;
	bool		is_running = false;
	bool		lacks_slot = false;

	if (shared == NULL)
	{
		if (check->named != NIL)
			report_problem(check, "library doubletick", preload_command(),
						   "it is not preloaded, so each session has a pace of its own for an account");
		if (nwaiting > 0)
			report_problem(check, "library doubletick", preload_command(),
						   "it is not preloaded, so no worker sends the " INT64_FORMAT " removals that wait",
						   nwaiting);
		return;
	}
	LWLockAcquire(shared->lock, LW_SHARED);
	is_running = shared->launcher != NULL;
	lacks_slot = shared->lacks_slot;
	LWLockRelease(shared->lock);
	if (!is_running)
		report_problem(check, "background process doubletick launcher",
					   "See the server's log; PostgreSQL starts it again within a minute.",
					   "it does not run, so no worker is started");
	else if (lacks_slot && nwaiting > 0)
		report_problem(check, "setting max_worker_processes",
					   psprintf("ALTER SYSTEM SET max_worker_processes = %d; then restart the server",
								max_worker_processes + 8),
					   "no slot is left for a worker");
}

static int64
count_waiting(Check *check)
{
	(void) select_rows("SELECT pg_catalog.count(*)::text FROM %s.dt_waiting WHERE NOT keep",
					   check->schema);
	return pg_strtoint64(get_text(0, 1));
}

/* The command that adds the library to those that are preloaded already. */
static char *
preload_command(void)
{
	char	   *names = pstrdup(GetConfigOption("shared_preload_libraries", true, false));
	StringInfoData command;
	List	   *libraries;
	ListCell   *cell;

	initStringInfo(&command);
	appendStringInfoString(&command, "ALTER SYSTEM SET shared_preload_libraries = ");
	if (SplitDirectoriesString(names, ',', &libraries))
	{
		foreach(cell, libraries)
			appendStringInfo(&command, "%s, ", quote_literal_cstr(lfirst(cell)));
	}
	appendStringInfoString(&command, "'doubletick'; then restart the server. Or call dt_process_queue() regularly.");
	return command.data;
}

/*
 * Calls a function that may raise an error, and returns the error as a fault.  What the
 * function has locked or opened is released.
 */
static Fault *
catch_fault(void (*function) (Subject *), Subject *subject)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Fault	   *volatile fault = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		function(subject);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(error);
		fault = fault_make(error->sqlerrcode, "%s", error->message);
		if (error->hint || error->detail)
			fault_hint(fault, "%s", error->hint ? error->hint : error->detail);
	}
	PG_END_TRY();
	return fault;
}

/* Runs a query, and returns its number of rows, which SPI_tuptable has. */
static uint64
select_rows(const char *format,...)
{
	va_list		args;
	char	   *query;

	va_start(args, format);
	query = format_text(format, args);
	va_end(args);
	if (SPI_execute(query, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run query: %s", query);
	return SPI_processed;
}

/* As psprintf(), for those that are called with arguments of their own. */
static char *
format_text(const char *format, va_list args)
{
	StringInfoData text;
	int			needed;

	initStringInfo(&text);
	do
	{
		va_list		copy;

		va_copy(copy, args);
		needed = appendStringInfoVA(&text, format, copy);
		va_end(copy);
		if (needed > 0)
			enlargeStringInfo(&text, needed);
	} while (needed > 0);
	return text.data;
}

static char *
get_text(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

static Oid
get_oid(uint64 row, int column)
{
	bool		isnull;

	return DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
										  column, &isnull));
}

static bool
get_bool(uint64 row, int column)
{
	bool		isnull;

	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
									  column, &isnull));
}

static char *
table_name(Oid table)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
									  get_rel_name(table));
}

/*-------------------------------------------------------------------------
 *
 * check/queue.c
 *		Can what waits be settled, who else may write it, is it held, and who sends it?
 *
 * The queue is read only when its tables are what the library needs, and not by SQL: the
 * schema's owner could give the schema another name meanwhile, and views of theirs the
 * names of our tables, whose functions would run as a superuser.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/shared.h"
#include "check/check.h"
#include "drain/hold.h"
#include "drain/lane.h"
#include "miscadmin.h"
#include "queue/waiting.h"
#include "settings.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

static void open_table(void *subject);
static List *find_waiting_lanes(void);
static int	compare_lane_keys(const ListCell *a, const ListCell *b);
static bool is_worker_running(void);
static int64 count_waiting(void);
static char *preload_command(void);

/*
 * Tables of ours that this library cannot write.
 */
void
check_tables(Check *check)
{
	static const QueueRelation tables[] = {RELATION_WAITING, RELATION_SETTLED, RELATION_HOLD};

	check->tables_are_good = true;
	for (int i = 0; i < (int) lengthof(tables); i++)
	{
		QueueRelation table = tables[i];
		Fault	   *fault = catch_fault(open_table, &table);

		if (fault)
			report_problem(check, psprintf("table %s.%s", check->schema, relation_name(table)),
						   fault->hint, "%s", fault->message);
		check->tables_are_good &= fault == NULL;
	}
}

static void
open_table(void *subject)
{
	const QueueRelation *table = subject;
	Store		store;

	store_open(&store, *table);
	store_close(&store);
}

/*
 * Privileges to write what only the library writes, or columns of it: GRANT ... ON ALL
 * TABLES IN SCHEMA and ALTER DEFAULT PRIVILEGES may have granted them.  DELETE is granted
 * on purpose where rows have arrived by logical replication: dt_cancel() says so.
 * nextval() does no harm.
 */
void
check_privileges(Check *check)
{
	uint64		ngrants = select_rows("SELECT c.relname, CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' ELSE 'table' END,"
									  " CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,"
									  " pg_catalog.string_agg(DISTINCT a.privilege_type, ', ' ORDER BY a.privilege_type)"
									  " FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL"
									  " (SELECT * FROM pg_catalog.aclexplode(c.relacl)"
									  " UNION SELECT x.* FROM pg_catalog.pg_attribute AS t, pg_catalog.aclexplode(t.attacl) AS x"
									  " WHERE t.attrelid = c.oid) AS a"
									  " WHERE c.relnamespace = %u AND c.relname IN"
									  " ('dt_waiting', 'dt_settled', 'dt_hold', 'dt_history', 'dt_waiting_id_seq')"
									  " AND a.grantee <> c.relowner AND a.privilege_type NOT IN ('SELECT', 'USAGE')"
									  " AND (c.relname, a.privilege_type) <> ('dt_waiting', 'DELETE')"
									  " GROUP BY 1, 2, 3 ORDER BY 1, 3", check->namespace);

	for (uint64 i = 0; i < ngrants; i++)
	{
		char	   *name = psprintf("%s.%s", check->schema, selected_text(i, 1));
		char	   *kind = selected_text(i, 2);
		char	   *grantee = selected_text(i, 3);
		char	   *privileges = selected_text(i, 4);

		report_problem(check, psprintf("%s %s", kind, name),
					   psprintf("REVOKE %s ON %s%s FROM %s;", privileges,
								strcmp(kind, "sequence") == 0 ? "SEQUENCE " : "", name, grantee),
					   "%s has %s on it, and so may send as any role or keep others from sending",
					   grantee, privileges);
	}
}

/*
 * From PostgreSQL 19 on a subscription may set sequences.  Then ids come out of order.
 */
void
check_sequence_is_own(Check *check)
{
	uint64		nsubscriptions = select_rows("SELECT s.subname FROM pg_catalog.pg_subscription AS s"
											 " JOIN pg_catalog.pg_subscription_rel AS r ON r.srsubid = s.oid"
											 " JOIN pg_catalog.pg_class AS c ON c.oid = r.srrelid"
											 " WHERE c.relnamespace = %u AND c.relname = 'dt_waiting_id_seq' ORDER BY 1",
											 check->namespace);

	for (uint64 i = 0; i < nsubscriptions; i++)
		report_problem(check, psprintf("sequence %s.dt_waiting_id_seq", check->schema),
					   psprintf("Take the publication FOR ALL SEQUENCES out of subscription %s.",
								quote_identifier(selected_text(i, 1))),
					   "subscription \"%s\" sets it, so that enqueueing may fail with \"duplicate key\"",
					   selected_text(i, 1));
}

/*
 * Tables and views whose owner is no superuser any more: scripts that give all tables of a
 * schema to a role do this.
 */
void
check_owners(Check *check)
{
	uint64		nrels = select_rows("SELECT c.relname, CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END,"
									" pg_catalog.quote_ident(o.rolname), pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(e.extowner))"
									" FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_roles AS o ON o.oid = c.relowner,"
									" pg_catalog.pg_extension AS e"
									" WHERE e.extname = 'doubletick' AND c.relnamespace = %u AND c.relname IN"
									" ('dt_waiting', 'dt_settled', 'dt_hold', 'dt_removals', 'dt_queue', 'dt_history', 'dt_status')"
									" AND NOT o.rolsuper AND c.relowner <> e.extowner ORDER BY 1", check->namespace);

	for (uint64 i = 0; i < nrels; i++)
	{
		char	   *name = psprintf("%s.%s", check->schema, selected_text(i, 1));
		char	   *kind = selected_text(i, 2);

		report_problem(check, psprintf("%s %s", kind, name),
					   psprintf("ALTER %s %s OWNER TO %s;", strcmp(kind, "view") == 0 ? "VIEW" : "TABLE",
								name, selected_text(i, 4)),
					   "it belongs to %s, who so may send as any role, or see what others have", selected_text(i, 3));
	}
}

/*
 * Roles that have removals waiting, and what their requests are held for.
 *
 * A hold for something that is missing (its definition is empty) may be out of date
 * if nobody drains, so check_account() is believed.  A worker looks each second, and
 * knows better: this session may have an older "doubletick.enabled".
 */
void
check_what_waits(Check *check)
{
	bool		believe_worker = setting_enabled && is_worker_running();
	ListCell   *cell;

	foreach(cell, find_waiting_lanes())
	{
		const LaneKey *lane = lfirst(cell);
		const char *server = NameStr(lane->server);
		char	   *role;
		HoldReason	hold;

		check_account(check, server, lane->role);
		if (!hold_find_reason(server, lane->role, &hold) ||
			(hold.is_incomplete && !believe_worker) || is_account_faulty(check, server, lane->role))
			continue;
		role = GetUserNameFromId(lane->role, true);
		report_problem(check, psprintf("requests of role %s to server %s",
									   role ? quote_identifier(role) : psprintf("%u", lane->role),
									   quote_identifier(server)),
					   hold.hint ? hold.hint : "They go on by themselves when this is mended: one request a minute tries.",
					   "they are held: %s", hold.reason);
	}
}

/*
 * The lanes in which removals wait, as a list of LaneKey in the order of their names.
 */
static List *
find_waiting_lanes(void)
{
	HASHCTL		info = {.keysize = sizeof(LaneKey),.entrysize = sizeof(LaneKey),.hcxt = CurrentMemoryContext};
	HTAB	   *found = hash_create("doubletick lanes", 64, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext row_context = AllocSetContextCreate(caller, "doubletick row", ALLOCSET_SMALL_SIZES);
	List	   *lanes = NIL;
	Store		waiting;
	SysScanDesc scan;
	HeapTuple	tuple;

	store_open(&waiting, RELATION_WAITING);
	scan = systable_beginscan(waiting.rel, InvalidOid, false, GetActiveSnapshot(), 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		QueueRow	row;
		LaneKey		key;
		LaneKey    *lane;
		bool		is_known;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(row_context);
		MemoryContextSwitchTo(row_context);
		store_read_place(&waiting, tuple, &row);
		MemoryContextSwitchTo(caller);
		if (row.keep)
			continue;
		memset(&key, 0, sizeof(key));
		namestrcpy(&key.server, row.server);
		key.role = row.role;
		lane = hash_search(found, &key, HASH_ENTER, &is_known);
		if (!is_known)
			lanes = lappend(lanes, lane);
	}
	systable_endscan(scan);
	store_close(&waiting);
	MemoryContextDelete(row_context);
	list_sort(lanes, compare_lane_keys);
	return lanes;
}

static int
compare_lane_keys(const ListCell *a, const ListCell *b)
{
	const LaneKey *one = lfirst(a);
	const LaneKey *other = lfirst(b);
	int			order = strcmp(NameStr(one->server), NameStr(other->server));

	if (order != 0)
		return order;
	return one->role < other->role ? -1 : one->role > other->role;
}

/*
 * Who sends what waits?
 */
void
check_worker(Check *check)
{
	int64		nwaiting = check->tables_are_good ? count_waiting() : 0;
	bool		is_running = false;
	bool		lacks_slot = false;

	if (shared == NULL)
	{
		if (check->named != NIL)
			report_problem(check, "library doubletick", preload_command(),
						   "it is not preloaded, so each session has a pace of its own for an account");
		if (nwaiting > 0)
			report_problem(check, "library doubletick", preload_command(),
						   "it is not preloaded, so no worker sends the removals that wait: " INT64_FORMAT,
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

static bool
is_worker_running(void)
{
	SharedDatabase *database;
	bool		is_running;

	if (shared == NULL)
		return false;
	database = shared_lock_database(MyDatabaseId, false);
	is_running = database && database->proc;
	shared_unlock();
	return is_running;
}

static int64
count_waiting(void)
{
	Store		waiting;
	int64		nrows;

	store_open(&waiting, RELATION_WAITING);
	nrows = store_count_waiting(&waiting);
	store_close(&waiting);
	return nrows;
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

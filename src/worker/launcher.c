/*-------------------------------------------------------------------------
 *
 * worker/launcher.c
 *		Starts a worker for each database whose queue has work.
 *
 * The launcher is connected to no database, so that it keeps none from being
 * dropped; it reads pg_database alone, which also says the names of databases for
 * the log.  It learns from shared memory which databases have work: sessions that
 * enqueue say so, and so do workers that leave while rows wait for their time.
 * Of what waited when the server started, or when a database was copied, nobody
 * says anything, and so each database is looked at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/clock.h"
#include "catalog/pg_database.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/rel.h"
#include "worker/launcher.h"
#include "worker/process.h"

/* Longest sleep, in µs; whoever has news sets the latch. */
#define LONGEST_SLEEP USECS_PER_MINUTE

/* When no slot is free: until the next try, even if no worker has left, in µs. */
#define SLOT_INTERVAL USECS_PER_SEC

/* When no slot has been lacking for so many µs, that one is lacking is news. */
#define WARN_INTERVAL USECS_PER_MINUTE

/* Workers that are being started only to look, at once. */
#define MAX_EXPLORING 2

/* No database comes after this one. */
#define LAST_DATABASE ((Oid) OID_MAX)

/*
 * The workers that this launcher has asked for: one for each entry of
 * shared->databases, NULL when it has ended.  Those of an earlier launcher are
 * known by their entries alone.
 */
static BackgroundWorkerHandle *handles[SHARED_MAX_DATABASES];

static void resign_as_launcher(int code, Datum arg);
static void reap_workers(void);
static void explore_databases(void);
static int	count_exploring(void);
static int64 start_due_workers(void);
static int64 time_to_start(int i);
static bool start_worker(int i);
static void log_failure(Oid database);
static void warn_of_slots(int i, const char *database);
static Oid	find_database(Oid from, NameData *name, bool *is_open);

PGDLLEXPORT void doubletick_launcher_main(Datum arg);

/*
 * Asks the postmaster for the launcher.  Called while it loads the library.
 */
void
launcher_register(void)
{
	BackgroundWorker process;

	process_describe(&process, "launcher");
	process.bgw_restart_time = 1;
	RegisterBackgroundWorker(&process);
}

/*
 * The launcher's process.
 */
void
doubletick_launcher_main(Datum arg pg_attribute_unused())
{
	process_begin(InvalidOid);
	before_shmem_exit(resign_as_launcher, (Datum) 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = MyProc;
	LWLockRelease(shared->lock);
	ereport(LOG,
			(errmsg("doubletick launcher has started"),
			 errdetail("It may start up to %d workers, one for each database, and fewer while other background processes run.",
					   max_worker_processes - 1)));

	for (;;)
	{
		int64		next;

		(void) process_reload();
		reap_workers();
		explore_databases();
		next = start_due_workers();
		process_wait(WAIT_LAUNCHER, (next - clock_now()) / 1000 + 1);
	}
}

static void
resign_as_launcher(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = NULL;
	LWLockRelease(shared->lock);
}

/* Workers whose process has ended; whether they failed they have noted themselves. */
static void
reap_workers(void)
{
	for (int i = 0; i < shared->ndatabases; i++)
	{
		const SharedDatabase *database = &shared->databases[i];
		pid_t		pid;

		if (handles[i] == NULL || GetBackgroundWorkerPid(handles[i], &pid) != BGWH_STOPPED)
			continue;
		pfree(handles[i]);
		handles[i] = NULL;
		if (database->failures == 1)
			log_failure(database->oid);
	}
}

/* A database that was dropped meanwhile has no name, and its worker is not missed. */
static void
log_failure(Oid database)
{
	NameData	name;
	bool		is_open;

	if (find_database(database, &name, &is_open) == database)
		ereport(LOG,
				(errmsg("doubletick worker of database \"%s\" has failed", NameStr(name)),
				 errdetail("It is started again, after pauses that grow to %d s.",
						   (int) (PROCESS_LONGEST_PAUSE / USECS_PER_SEC))));
}

/*
 * After a start of the server, has each database looked at, in the order of their
 * OIDs: few at a time, for a cluster may have thousands.  Those that are made later
 * come after them, until OIDs wrap around: a copy of a database has what waited in it.
 */
static void
explore_databases(void)
{
	while (shared->explored != LAST_DATABASE && count_exploring() < MAX_EXPLORING)
	{
		NameData	name;
		bool		is_open;
		Oid			oid = find_database(shared->explored + 1, &name, &is_open);
		SharedDatabase *database;

		if (!OidIsValid(oid))
			break;
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		shared->explored = oid;
		database = is_open ? shared_find_database(oid, true) : NULL;
		/* Where there is work, a worker comes anyway. */
		if (database && database->wanted_at == PG_INT64_MAX && database->proc == NULL)
		{
			database->wanted_at = 0;
			database->exploring = true;
		}
		LWLockRelease(shared->lock);
	}
}

static int
count_exploring(void)
{
	int			nexploring = 0;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < shared->ndatabases; i++)
		nexploring += OidIsValid(shared->databases[i].oid) && shared->databases[i].exploring;
	LWLockRelease(shared->lock);
	return nexploring;
}

/*
 * Starts the workers whose time has come.  Returns when to look again.
 *
 * When no slot is free, a worker that only waits is asked to leave, and the
 * database that got none is the first one in the next turn.
 */
static int64
start_due_workers(void)
{
	static int	first = 0;
	int64		now = clock_now();
	int64		next = now + LONGEST_SLEEP;
	bool		has_slots = true;
	int			ndatabases = shared->ndatabases;

	for (int n = 0; n < ndatabases && has_slots; n++)
	{
		int			i = (first + n) % ndatabases;

		if (time_to_start(i) <= now)
			has_slots = start_worker(i);
		if (has_slots)
			next = Min(next, Max(time_to_start(i), now));
		else
			first = i;
	}
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->lacks_slot = !has_slots;
	LWLockRelease(shared->lock);
	return has_slots ? next : now + SLOT_INTERVAL;
}

/*
 * When an entry's worker is to be started, by clock_now(); PG_INT64_MAX: one is
 * there, or none is wanted.
 */
static int64
time_to_start(int i)
{
	const SharedDatabase *database = &shared->databases[i];
	int64		start_at = PG_INT64_MAX;

	LWLockAcquire(shared->lock, LW_SHARED);
	if (OidIsValid(database->oid) && database->proc == NULL && handles[i] == NULL)
		start_at = Max(database->wanted_at, database->not_before);
	LWLockRelease(shared->lock);
	return start_at;
}

/* False when no slot is free. */
static bool
start_worker(int i)
{
	SharedDatabase *database = &shared->databases[i];
	Oid			oid = database->oid;
	BackgroundWorker process;
	NameData	name;
	bool		is_open;
	bool		is_dropped;
	int			nfailures = 0;

	is_dropped = find_database(oid, &name, &is_open) != oid;
	if (is_dropped || !is_open)
	{
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		if (is_dropped)
			memset(database, 0, sizeof(SharedDatabase));
		else
			nfailures = process_put_off(database);
		LWLockRelease(shared->lock);
		if (nfailures == 1)
			ereport(LOG,
					(errmsg("queue of database \"%s\" waits, since the database takes no connections",
							NameStr(name))));
		return true;
	}

	process_describe(&process, "worker");
	/* 63 bytes of a name leave room for the rest. */
	snprintf(process.bgw_name, BGW_MAXLEN, "doubletick worker of database \"%s\"", NameStr(name));
	process.bgw_main_arg = ObjectIdGetDatum(oid);
	process.bgw_restart_time = BGW_NEVER_RESTART;
	process.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&process, &handles[i]))
	{
		handles[i] = NULL;
		warn_of_slots(i, NameStr(name));
		return false;
	}

	/* A process that fails to come up says nothing: do not retry at once. */
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (database->proc == NULL)
		database->not_before = Max(database->not_before, clock_now() + PROCESS_FIRST_PAUSE);
	LWLockRelease(shared->lock);
	return true;
}

/* Once for each database, and then not until slots have sufficed for a while. */
static void
warn_of_slots(int i, const char *database)
{
	static int64 lacked_at[SHARED_MAX_DATABASES];
	int64		now = clock_now();
	bool		is_new = lacked_at[i] == 0 || now - lacked_at[i] > WARN_INTERVAL;

	lacked_at[i] = now;
	if (is_new)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("queue of database \"%s\" waits, since no background worker is free", database),
				 errhint("Raise \"max_worker_processes\".")));
}

/*
 * The first database from this OID on, InvalidOid when there is none; its name, and
 * whether it takes connections.  The table is scanned: without a database of its
 * own, a process cannot always open an index.
 */
static Oid
find_database(Oid from, NameData *name, bool *is_open)
{
	Oid			found = InvalidOid;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	*is_open = false;
	StartTransactionCommand();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (database->oid < from || (OidIsValid(found) && found < database->oid))
			continue;
		found = database->oid;
		*name = database->datname;
		*is_open = database->datallowconn && database->datconnlimit != DATCONNLIMIT_INVALID_DB;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	return found;
}

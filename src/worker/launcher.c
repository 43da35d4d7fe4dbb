/*-------------------------------------------------------------------------
 *
 * worker/launcher.c
 *		Starts a worker for each database whose queue has work.
 *
 * The launcher is connected to no database, so that it is in nobody's way; it
 * reads pg_database alone.  It learns from shared memory which databases have
 * work: from the sessions that enqueue, and from a worker that leaves while rows
 * wait for their time.  When the server starts nobody has told it anything yet,
 * and so every database is looked at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/clock.h"
#include "base/shared.h"
#include "catalog/pg_database.h"
#include "compat.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/launcher.h"

/* Pause before a worker that failed is started again: doubled each time, in ms. */
#define FIRST_PAUSE 1000
#define LAST_PAUSE (60 * 1000)

/* Longest sleep, in ms; whoever has news sets the latch. */
#define LONGEST_SLEEP (60 * 1000)

/* Workers that look at their databases for the first time, at once. */
#define MAX_EXPLORING 2

/* A worker that was asked for. */
typedef struct Started
{
	Oid			database;
	BackgroundWorkerHandle *handle;
} Started;

PGDLLEXPORT void doubletick_launcher_main(Datum arg);

static void leave(int code, Datum arg);
static List *list_databases(bool open_only);
static List *list_unexplored(void);
static void explore_some(List **unexplored);
static void adopt(void);
static void reap(List **started);
static void note_end(Oid oid);
static int64 start_due(List **started);
static bool is_in(Oid database, List *databases);
static bool start_worker(Oid database, List **started);
static void put_off(Oid database, bool *is_first);
static void forget(Oid database);

/*
 * Asks the postmaster for the launcher.  Called while it loads the library.
 */
void
launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "doubletick", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "doubletick_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "doubletick launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "doubletick launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

void
doubletick_launcher_main(Datum arg pg_attribute_unused())
{
	MemoryContext context;
	List	   *started = NIL;
	List	   *unexplored;
	uint32		wait_event;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	context = AllocSetContextCreate(TopMemoryContext, "doubletick launcher",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);

	wait_event = new_wait_event("DoubletickLauncher");
	before_shmem_exit(leave, (Datum) 0);
	adopt();
	unexplored = list_unexplored();

	for (;;)
	{
		int64		next;
		int64		left;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		reap(&started);
		explore_some(&unexplored);
		next = start_due(&started);
		left = Max(next - clock_now(), 0) / 1000 + 1;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (long) Min(left, LONGEST_SLEEP), wait_event);
		ResetLatch(MyLatch);
	}
}

static void
leave(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = NULL;
	LWLockRelease(shared->lock);
}

/*
 * After a start of the server, all databases are to be looked at; and again, if
 * the launcher that began with it did not come to the end.
 */
static List *
list_unexplored(void)
{
	bool		wanted;

	LWLockAcquire(shared->lock, LW_SHARED);
	wanted = shared->explore;
	LWLockRelease(shared->lock);
	return wanted ? list_databases(true) : NIL;
}

/* The databases that are there, or only those that take connections. */
static List *
list_databases(bool open_only)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *databases = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		bool		is_open = database->datallowconn &&
		database->datconnlimit != DATCONNLIMIT_INVALID_DB;

		if (is_open || !open_only)
		{
			MemoryContext caller = MemoryContextSwitchTo(context);

			databases = lappend_oid(databases, database->oid);
			MemoryContextSwitchTo(caller);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return databases;
}

/* Few at a time: a cluster may have thousands. */
static void
explore_some(List **unexplored)
{
	int			nexploring = 0;

	if (*unexplored == NIL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->ndatabases; i++)
	{
		if (OidIsValid(shared->databases[i].oid) && shared->databases[i].exploring)
			nexploring++;
	}
	while (nexploring < MAX_EXPLORING && *unexplored != NIL)
	{
		SharedDatabase *database = shared_find_database(linitial_oid(*unexplored), true);

		/* Where there is work, somebody looks anyway. */
		if (database && !database->wake && database->proc == NULL)
		{
			database->wake = database->exploring = true;
			nexploring++;
		}
		*unexplored = list_delete_first(*unexplored);
	}
	shared->explore = *unexplored != NIL;
	LWLockRelease(shared->lock);
}

/*
 * Begins to be the launcher.  One that was terminated has left its workers
 * behind; of their end we are told by themselves alone.  Those that have failed
 * since then, as when all sessions are terminated, have told nobody.
 */
static void
adopt(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = MyProc;
	for (int i = 0; i < shared->ndatabases; i++)
	{
		SharedDatabase *database = &shared->databases[i];

		if (database->starting && database->proc == NULL && !database->left)
			database->wake = true;
		database->starting = database->adopted = database->proc != NULL;
	}
	LWLockRelease(shared->lock);
}

/* Workers that have ended: of their own accord, or for another reason. */
static void
reap(List **started)
{
	Oid			ended[SHARED_MAX_DATABASES];
	int			nended = 0;
	ListCell   *cell;

	foreach(cell, *started)
	{
		Started    *worker = lfirst(cell);
		pid_t		pid;

		if (GetBackgroundWorkerPid(worker->handle, &pid) != BGWH_STOPPED)
			continue;
		note_end(worker->database);
		pfree(worker->handle);
		pfree(worker);
		*started = foreach_delete_current(*started, cell);
	}

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->ndatabases; i++)
	{
		if (shared->databases[i].adopted && shared->databases[i].proc == NULL)
			ended[nended++] = shared->databases[i].oid;
	}
	LWLockRelease(shared->lock);

	for (int i = 0; i < nended; i++)
		note_end(ended[i]);
}

static void
note_end(Oid oid)
{
	SharedDatabase *database;
	bool		failed = false;
	bool		is_first;

	database = shared_lock_database(oid, false);
	if (database)
	{
		/* The one that has ended may have found another one at work. */
		database->starting = database->adopted = database->proc != NULL;
		failed = !database->starting && !database->left;
	}
	shared_unlock();
	if (!failed)
		return;
	put_off(oid, &is_first);
	if (is_first)
		ereport(LOG,
				(errmsg("doubletick worker of database %u has failed", oid),
				 errdetail("It is started again, after pauses that grow to %d s.",
						   LAST_PAUSE / 1000)));
}

/* Tries again after a pause, which grows with each time. */
static void
put_off(Oid oid, bool *is_first)
{
	SharedDatabase *database;

	*is_first = false;
	database = shared_lock_database(oid, false);
	if (database)
	{
		int64		pause = Min((int64) FIRST_PAUSE << Min(database->failures, 16), LAST_PAUSE);

		*is_first = database->failures++ == 0;
		database->starting = false;
		database->exploring = false;	/* others need not wait for it */
		database->wake = true;
		database->next_try = clock_now() + pause * 1000;
	}
	shared_unlock();
}

/* Starts workers where there is work.  Returns when to look again, by clock_now(). */
static int64
start_due(List **started)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		clock = clock_now();
	int64		next = PG_INT64_MAX;
	Oid			due[SHARED_MAX_DATABASES];
	int			ndue = 0;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->ndatabases; i++)
	{
		SharedDatabase *database = &shared->databases[i];
		int64		when = database->next_try;
		bool		at_once = database->wake || database->has_prepared;

		if (!OidIsValid(database->oid) || database->starting ||
			(!at_once && database->wake_at == DT_NOEND))
			continue;
		if (!at_once)
			when = Max(when, clock + database->wake_at - now);
		if (when <= clock)
			due[ndue++] = database->oid;
		else
			next = Min(next, when);
	}
	LWLockRelease(shared->lock);

	for (int i = 0; i < ndue; i++)
	{
		if (!start_worker(due[i], started))
			next = Min(next, clock + FIRST_PAUSE * 1000);
	}
	return next;
}

/* False when it could not be started; it is tried again. */
static bool
start_worker(Oid oid, List **started)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	SharedDatabase *database;
	Started    *entry;
	bool		is_first;

	if (!is_in(oid, list_databases(false)))
	{
		forget(oid);
		return true;
	}
	if (!is_in(oid, list_databases(true)))
	{
		put_off(oid, &is_first);
		if (is_first)
			ereport(LOG,
					(errmsg("queue of database %u waits, since the database takes no connections", oid)));
		return false;
	}

	database = shared_lock_database(oid, false);
	database->starting = true;
	database->left = false;
	database->wake_at = DT_NOEND;
	shared_unlock();

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "doubletick", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "doubletick_worker_main", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "doubletick worker of database %u", oid);
	strlcpy(worker.bgw_type, "doubletick worker", BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(oid);
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		put_off(oid, &is_first);
		if (is_first)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("queue of database %u waits, since no background worker is free", oid),
					 errhint("Raise \"max_worker_processes\".")));
		return false;
	}
	entry = palloc(sizeof(Started));
	entry->database = oid;
	entry->handle = handle;
	*started = lappend(*started, entry);
	return true;
}

static bool
is_in(Oid oid, List *databases)
{
	bool		found = list_member_oid(databases, oid);

	list_free(databases);
	return found;
}

/* The database was dropped. */
static void
forget(Oid oid)
{
	SharedDatabase *database = shared_lock_database(oid, false);

	if (database)
		database->oid = InvalidOid;
	shared_unlock();
}

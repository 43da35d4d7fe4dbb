/*-------------------------------------------------------------------------
 *
 * worker/worker.c
 *		The worker of one database: the drainer with a process around it.
 *
 * It is started by the launcher, woken at the commit of whoever enqueues, and
 * leaves when it has been idle for a while.  It must be in nobody's way: between
 * transactions it looks whether somebody wants the database to himself, to drop
 * or rename or copy it, and then leaves at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "base/clock.h"
#include "base/shared.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "compat.h"
#include "drain/drain.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "settings.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/status.h"

/* Longest sleep, in ms: how soon it sees that it is in somebody's way. */
#define LONGEST_SLEEP 250L

/* Time between two looks at what is not urgent, in µs. */
#define CHORE_INTERVAL (250 * INT64CONST(1000))

/* Time between two prunings of the history, in µs. */
#define PRUNE_INTERVAL (60 * USECS_PER_SEC)

/* Time between two looks for prepared transactions, in µs. */
#define PREPARED_INTERVAL USECS_PER_SEC

/* For how long it waits for answers that are out, before it makes way, in µs. */
#define GRACE (500 * INT64CONST(1000))

/* After that many µs without an error it counts as sound. */
#define SOUND_AFTER (60 * USECS_PER_SEC)

/* What the worker knows of itself. */
typedef struct Worker
{
	Drain	   *drain;			/* NULL: another session drains */
	int64		started_at;		/* times by clock_now() */
	int64		worked_at;		/* when there was last something to do */
	int64		chores_at;		/* when to do what is not urgent */
	int64		prune_at;
	int64		prepared_at;	/* when to look for prepared transactions */
	bool		knows_prepared; /* has it looked for them yet? */
	bool		sound;			/* has it been at work for long enough? */
	bool		found;			/* has it found the extension? */
	bool		exploring;		/* has it found nothing to do so far? */
	char	   *settings;		/* what the database's settings came from */
	Tally		told;			/* what has been counted in shared memory */
	int64		warned_expired;
} Worker;

static void attach(Worker *worker);
static void detach(int code, Datum arg);
static void let_go(SharedDatabase *database);
static void run(Worker *worker);
static void do_chores(Worker *worker);
static void note_sound(Worker *worker);
static void wait_for_work(Worker *worker);
static bool take_wake(Worker *worker);
static bool note_prepared_ended(Worker *worker);
static bool find_prepared(void);
static void set_has_prepared(bool has_prepared, bool *previous);
static bool is_idle_for_long(const Worker *worker);
static bool try_to_leave(Worker *worker);
static bool is_in_the_way(void);
static char *database_settings(bool obey);
static void make_way(Worker *worker, const char *why);
static void finish(Worker *worker, int64 until);
static void tell(Worker *worker, const char *state);
static void warn_of_expired(Worker *worker);
static void begin_transaction(void);
static void commit_transaction(void);

PGDLLEXPORT void doubletick_worker_main(Datum arg);

static const DrainTransactions transactions = {begin_transaction, commit_transaction};

/*
 * The worker's process.  Its argument is the database's OID.
 */
void
doubletick_worker_main(Datum arg)
{
	Worker		worker = {0};

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	SetConfigOption("search_path", "", PGC_SUSET, PGC_S_OVERRIDE);
	lift_timeouts();
	pgstat_report_appname("doubletick worker");
	attach(&worker);

	worker.started_at = worker.worked_at = clock_now();
	PG_TRY();
	{
		run(&worker);
	}
	PG_CATCH();
	{
		status_report_error();
		PG_RE_THROW();
	}
	PG_END_TRY();
	proc_exit(0);
}

/*
 * From now on whoever commits work here sets our latch.  A launcher that has
 * just replaced another one may not know of a worker that is here already; then
 * this one is not needed.
 */
static void
attach(Worker *worker)
{
	SharedDatabase *database;
	bool		attached = false;

	before_shmem_exit(detach, (Datum) 0);
	database = shared_lock_database(MyDatabaseId, true);
	if (database && database->proc == NULL)
	{
		database->proc = MyProc;
		database->pid = MyProcPid;
		database->since = GetCurrentTimestamp();
		database->left = false;
		database->has_prepared = false; /* it will look for itself */
		attached = true;

		/* It looks at everything at once, and so needs no wake-up for that. */
		worker->exploring = database->exploring;
		if (worker->exploring)
		{
			database->wake = database->exploring = false;
			if (shared->launcher)
				SetLatch(&shared->launcher->procLatch);
		}
	}
	shared_unlock();
	if (!attached)
		proc_exit(0);
}

static void
detach(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, false);

	if (database && database->pid == MyProcPid)
		let_go(database);
	if (shared->launcher)
		SetLatch(&shared->launcher->procLatch);
	shared_unlock();
}

/* From now on nobody sets our latch. */
static void
let_go(SharedDatabase *database)
{
	database->proc = NULL;
	database->pid = 0;
	database->in_flight = 0;
	database->state[0] = '\0';
}

static void
run(Worker *worker)
{
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			if (worker->drain)
				drain_wake(worker->drain);
		}
		if (clock_now() >= worker->chores_at)
			do_chores(worker);

		if (worker->drain == NULL)
		{
			worker->drain = drain_start(TopMemoryContext, &transactions);
			if (worker->drain == NULL)
				tell(worker, "waiting for another session that drains");
		}
		if (worker->drain)
		{
			if (take_wake(worker))
			{
				drain_wake(worker->drain);
				worker->worked_at = clock_now();
			}
			switch (drain_turn(worker->drain))
			{
				case DRAIN_BUSY:
					worker->found = true;
					worker->exploring = false;
					worker->worked_at = clock_now();
					continue;
				case DRAIN_IDLE:
					worker->found = true;
					if (note_prepared_ended(worker))
						continue;
					break;
				case DRAIN_GONE:
					make_way(worker, worker->found ? "the extension was dropped" : NULL);
			}
		}
		if (is_idle_for_long(worker) && try_to_leave(worker))
		{
			warn_of_expired(worker);
			return;
		}
		wait_for_work(worker);
	}
}

/* What need not be done in each turn. */
static void
do_chores(Worker *worker)
{
	char	   *settings;

	worker->chores_at = clock_now() + CHORE_INTERVAL;
	if (is_in_the_way())
		make_way(worker, "database is wanted by another session");

	settings = database_settings(worker->settings == NULL);
	if (worker->settings && strcmp(worker->settings, settings) != 0)
	{
		finish(worker, PG_INT64_MAX);
		make_way(worker, "settings of the database have changed");
	}
	if (worker->settings)
		pfree(worker->settings);
	worker->settings = settings;

	if (!worker->sound && clock_now() - worker->started_at > SOUND_AFTER)
		note_sound(worker);
	if (worker->drain == NULL)
		return;
	if (drain_in_flight(worker->drain) > 0)
		tell(worker, "sending");
	if (clock_now() >= worker->prune_at && !drain_prune(worker->drain))
	{
		worker->prune_at = clock_now() + PRUNE_INTERVAL;
		warn_of_expired(worker);
	}
}

/* What may go wrong from now on is something new. */
static void
note_sound(Worker *worker)
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, false);

	if (database)
		database->failures = 0;
	shared_unlock();
	worker->sound = true;
}

static void
wait_for_work(Worker *worker)
{
	static uint32 wait_event = 0;
	long		timeout = worker->drain ? drain_idle_time(worker->drain, LONGEST_SLEEP) : LONGEST_SLEEP;

	if (wait_event == 0)
		wait_event = new_wait_event("DoubletickWorker");
	if (worker->drain)
		tell(worker, "idle");
	pgstat_report_activity(STATE_IDLE, NULL);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout, wait_event);
	ResetLatch(MyLatch);
}

/* Has somebody committed work since the last call? */
static bool
take_wake(Worker *worker)
{
	SharedDatabase *database;
	bool		wake;

	database = shared_lock_database(MyDatabaseId, false);
	wake = database && database->wake;
	if (wake)
		worker->exploring = database->wake = false;
	shared_unlock();
	return wake;
}

/*
 * The worker stays while there are prepared transactions, for COMMIT PREPARED
 * wakes nobody.  After a start of the server nobody knows whether there are any,
 * and so each worker looks once.  True when there are none any more: what they
 * have enqueued may be there by now, and is to be found before the worker leaves.
 */
static bool
note_prepared_ended(Worker *worker)
{
	bool		may_have;

	if (max_prepared_xacts == 0 || clock_now() < worker->prepared_at)
		return false;
	worker->prepared_at = clock_now() + PREPARED_INTERVAL;

	/* Cleared before the look, so that a PREPARE after it is not forgotten. */
	set_has_prepared(false, &may_have);
	if (worker->knows_prepared && !may_have)
		return false;
	worker->knows_prepared = true;
	if (!find_prepared())
		return true;
	set_has_prepared(true, &may_have);
	return false;
}

static void
set_has_prepared(bool has_prepared, bool *previous)
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, false);

	*previous = database && database->has_prepared;
	if (database)
		database->has_prepared = has_prepared;
	shared_unlock();
}

/* Are there prepared transactions in this database? */
static bool
find_prepared(void)
{
	bool		found;

	begin_transaction();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute("SELECT FROM pg_catalog.pg_prepared_xacts"
					" WHERE database = pg_catalog.current_database()", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_prepared_xacts");
	found = SPI_processed > 0;
	SPI_finish();
	PopActiveSnapshot();
	commit_transaction();
	return found;
}

/* After a start of the server nobody stays in databases where nothing waits. */
static bool
is_idle_for_long(const Worker *worker)
{
	if (worker->exploring && worker->drain && drain_next_due(worker->drain) == DT_NOEND)
		return true;
	return clock_now() - worker->worked_at >= setting_worker_idle_timeout * INT64CONST(1000);
}

/*
 * Leaves, unless work has come in this moment.  Tells the launcher when rows
 * that wait for their time want a worker again.
 */
static bool
try_to_leave(Worker *worker)
{
	SharedDatabase *database;
	TimestampTz next = DT_NOEND;
	bool		may_leave;

	if (worker->drain == NULL)
		next = GetCurrentTimestamp() + setting_worker_idle_timeout * INT64CONST(1000);
	else
		next = drain_next_due(worker->drain);

	database = shared_lock_database(MyDatabaseId, false);
	may_leave = database == NULL || (!database->wake && !database->has_prepared);
	if (may_leave && database)
	{
		let_go(database);
		database->left = true;
		database->failures = 0;
		database->wake_at = next;
	}
	shared_unlock();
	return may_leave;
}

/*
 * Does somebody want the database to himself?  He holds a lock on it that keeps
 * new sessions out, and waits for those that are there to leave.
 */
static bool
is_in_the_way(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	if (LockAcquire(&tag, RowExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, RowExclusiveLock, true);
	return false;
}

/*
 * Where the database's own settings stand, as text that is another one after
 * each ALTER DATABASE ... SET: a session has them from its beginning, and no
 * news of them.  "obey" takes them over once more: they may have changed between
 * that beginning and the first call.
 */
static char *
database_settings(bool obey)
{
	Relation	rel;
	ScanKeyData keys[1];
	SysScanDesc scan;
	HeapTuple	tuple;
	char		found[100] = "";

	begin_transaction();
	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(MyDatabaseId));
	scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, 1, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (((Form_pg_db_role_setting) GETSTRUCT(tuple))->setrole == InvalidOid)
			snprintf(found, sizeof(found), "%u (%u,%u)", HeapTupleHeaderGetRawXmin(tuple->t_data),
					 ItemPointerGetBlockNumber(&tuple->t_self),
					 ItemPointerGetOffsetNumber(&tuple->t_self));
	}
	systable_endscan(scan);
	if (obey)
		ApplySetting(NULL, MyDatabaseId, InvalidOid, rel, PGC_S_DATABASE);
	table_close(rel, AccessShareLock);
	commit_transaction();
	return MemoryContextStrdup(TopMemoryContext, found);
}

/*
 * Ends the process, so that the database is free; another one is started as soon
 * as it can be, if there is work.  Answers that come soon are still settled.
 */
static void
make_way(Worker *worker, const char *why)
{
	SharedDatabase *database;
	int64		next_try;

	if (why)
	{
		ereport(LOG, (errmsg("doubletick worker makes way: %s", why)));
		finish(worker, clock_now() + GRACE);
	}
	warn_of_expired(worker);

	/* The next one would only wait until the database is dropped, say. */
	next_try = clock_now() + (is_in_the_way() ? USECS_PER_SEC : 0);

	database = shared_lock_database(MyDatabaseId, false);
	if (database)
	{
		let_go(database);
		database->left = true;
		/* Without a reason, only if somebody has just committed work. */
		database->wake = database->wake || why != NULL;
		database->next_try = next_try;
	}
	shared_unlock();
	proc_exit(0);
}

/* Waits for answers that are out, until a time, or until it is in the way. */
static void
finish(Worker *worker, int64 until)
{
	while (worker->drain && clock_now() < until && drain_finish(worker->drain) == DRAIN_BUSY)
	{
		CHECK_FOR_INTERRUPTS();
		if (is_in_the_way())
			until = Min(until, clock_now() + GRACE);
	}
}

/* Tells dt_status and pg_stat_activity. */
static void
tell(Worker *worker, const char *state)
{
	pgstat_report_activity(STATE_RUNNING, state);
	status_report_work(state, worker->drain, &worker->told);
}

static void
warn_of_expired(Worker *worker)
{
	int64		nexpired = worker->drain ? drain_tally(worker->drain)->expired : 0;

	drain_warn_of_expired(nexpired - worker->warned_expired);
	worker->warned_expired = nexpired;
}

static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactIsoLevel = XACT_READ_COMMITTED;
}

static void
commit_transaction(void)
{
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

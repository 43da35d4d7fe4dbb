/*-------------------------------------------------------------------------
 *
 * worker/worker.c
 *		The worker of one database: the drainer with a process around it.
 *
 * The launcher starts it, whoever enqueues wakes it by COMMIT, and it leaves when
 * it has been idle for a while.  It must be in nobody's way: between transactions
 * it looks whether another session waits for exclusive use of the database, to
 * drop, rename or copy it, and then leaves at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "base/clock.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "settings.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/process.h"
#include "worker/status.h"
#include "worker/stored_settings.h"

/* Longest sleep, in ms: how soon it sees that it is in somebody's way. */
#define LONGEST_SLEEP 250L

/* Time between two looks at what is not urgent, in µs. */
#define CHORE_INTERVAL (250 * INT64CONST(1000))

/* Time between two prunings of the history, in µs. */
#define PRUNE_INTERVAL USECS_PER_MINUTE

/* Time between two looks for prepared transactions, in µs. */
#define PREPARED_INTERVAL USECS_PER_SEC

/* For how long one that still waits for something makes room, at least, in µs. */
#define ROOM_INTERVAL USECS_PER_SEC

/* For how long it waits for answers that are out, before it makes way, in µs. */
#define GRACE (500 * INT64CONST(1000))

/* What fails after a worker has run for so many ms is something new. */
#define SOUND_AFTER (60 * 1000)

/* What the worker knows of itself; times by clock_now(). */
typedef struct Worker
{
	Drain	   *drain;			/* NULL: another session drains */
	bool		has_drained;	/* has it found the extension? */
	bool		exploring;		/* has it found nothing to do so far? */
	bool		is_idle;		/* had the last turn nothing to do? */
	int64		worked_at;		/* when there was last something to do */
	int64		chores_at;		/* when to do what is not urgent */
	int64		prune_at;
	int64		prepared_at;	/* when to look for prepared transactions */
	bool		none_prepared;	/* were there none, and has none come since? */
} Worker;

static void name_database(void *name);
static void read_database_name(NameData *name);
static void register_worker(Worker *worker);
static void unregister_worker(int code, Datum oid);
static void work_until_spared(Worker *worker);
static DrainState drain_some(Worker *worker);
static bool take_wake_up(void);
static void do_chores(Worker *worker);
static void follow_settings(Worker *worker);
static void wait_for_work(Worker *worker);
static bool can_be_spared(const Worker *worker);
static bool try_to_leave(Worker *worker);
static bool find_prepared_transaction(void);
static bool is_database_wanted(void);
static void make_way(Worker *worker, const char *why);
static void warn_of_unsent(Worker *worker);
static void begin_transaction(void);
static void commit_transaction(void);

PGDLLEXPORT void doubletick_worker_main(Datum oid);

static const DrainTransactions transactions = {
	begin_transaction, commit_transaction, AbortCurrentTransaction
};

/*
 * The worker's process.
 */
void
doubletick_worker_main(Datum oid)
{
	Worker		worker = {0};
	NameData	name;
	ErrorContextCallback context = {.callback = name_database,.arg = &name};

	before_shmem_exit(unregister_worker, oid);
	process_begin(DatumGetObjectId(oid));
	read_database_name(&name);
	context.previous = error_context_stack;
	error_context_stack = &context;

	/*
	 * What the database's owner may have set.  ids_advance() sets the
	 * sequence, which is refused in read-only transactions.  Errors are
	 * caught: an answer that is no JSON, say, must not end the worker, or the
	 * next one would send the request again.
	 */
	SetConfigOption("search_path", "", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("exit_on_error", "off", PGC_SUSET, PGC_S_OVERRIDE);
	lift_timeouts();
	pgstat_report_appname("doubletick worker");
	register_worker(&worker);
	PG_TRY();
	{
		work_until_spared(&worker);
	}
	PG_CATCH();
	{
		status_report_error();
		PG_RE_THROW();
	}
	PG_END_TRY();
	warn_of_unsent(&worker);
	proc_exit(0);
}

/* Called for all that the worker logs from then on, which its CONTEXT shows. */
static void
name_database(void *name)
{
	errcontext("doubletick worker of database \"%s\"", NameStr(*(NameData *) name));
}

/* It stays: whoever renames the database waits until the worker has left. */
static void
read_database_name(NameData *name)
{
	begin_transaction();
	namestrcpy(name, get_database_name(MyDatabaseId));
	commit_transaction();
}

/*
 * From now on whoever commits work here sets our latch.  If a worker is here
 * already, one that a launcher has started which has ended since, this one is not
 * needed.
 */
static void
register_worker(Worker *worker)
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, true);
	bool		is_needed = database && database->proc == NULL;

	if (is_needed)
	{
		database->proc = MyProc;
		database->since = GetCurrentTimestamp();
		strlcpy(database->state, "starting", sizeof(database->state));
		database->not_before = 0;

		/* It looks at everything at once, and so needs no wake-up for that. */
		worker->exploring = database->exploring;
		if (worker->exploring)
		{
			database->wanted_at = PG_INT64_MAX;
			database->exploring = false;
			shared_wake_launcher();
		}
	}
	shared_unlock();
	if (!is_needed)
		proc_exit(0);
	worker->worked_at = clock_now();
}

/* Called when the process ends, whatever ends it: then "code" is not 0. */
static void
unregister_worker(int code, Datum oid)
{
	SharedDatabase *database = shared_lock_database(DatumGetObjectId(oid), false);

	if (database && database->proc == MyProc)
	{
		if (code == 0 ||
			TimestampDifferenceExceeds(database->since, GetCurrentTimestamp(), SOUND_AFTER))
			database->failures = 0;
		database->proc = NULL;
		database->in_flight = 0;
		database->state[0] = '\0';
	}
	if (database && database->proc == NULL && code != 0)
		(void) process_put_off(database);
	shared_wake_launcher();
	shared_unlock();
}

static void
work_until_spared(Worker *worker)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "doubletick worker",
												  ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		if (process_reload() && worker->drain)
			drain_wake(worker->drain);
		if (clock_now() >= worker->chores_at)
			do_chores(worker);
		if (drain_some(worker) == DRAIN_BUSY)
			continue;
		if (can_be_spared(worker) && try_to_leave(worker))
			break;
		wait_for_work(worker);
	}
}

/* One turn of the drain, unless another session drains. */
static DrainState
drain_some(Worker *worker)
{
	DrainState	state;

	if (worker->drain == NULL)
		worker->drain = drain_start(TopMemoryContext, &transactions);
	if (worker->drain == NULL)
	{
		status_report_work("waiting for another session that drains", NULL);
		return DRAIN_IDLE;
	}

	if (take_wake_up())
	{
		/*
		 * It may have been committed after ALTER DATABASE ... SET
		 * doubletick.enabled.
		 */
		if (worker->is_idle)
			follow_settings(worker);
		drain_wake(worker->drain);
		worker->exploring = worker->none_prepared = false;
		worker->worked_at = clock_now();
	}
	state = drain_turn(worker->drain);
	if (state == DRAIN_GONE)
		make_way(worker, worker->has_drained ? "the extension was dropped" : NULL);
	if (state == DRAIN_UPDATE)
		make_way(worker, "the extension is to be updated");
	worker->has_drained = true;
	worker->is_idle = state == DRAIN_IDLE;
	if (state == DRAIN_BUSY)
	{
		worker->exploring = false;
		worker->worked_at = clock_now();
	}
	return state;
}

/* Has work been committed, or a transaction prepared, since the last call? */
static bool
take_wake_up(void)
{
	SharedDatabase *database = shared_lock_database(MyDatabaseId, false);
	bool		is_wanted = database && database->wanted_at <= clock_now();

	if (is_wanted)
		database->wanted_at = PG_INT64_MAX;
	shared_unlock();
	return is_wanted;
}

/* What need not be done in each turn. */
static void
do_chores(Worker *worker)
{
	worker->chores_at = clock_now() + CHORE_INTERVAL;
	if (is_database_wanted())
		make_way(worker, "database is wanted by another session");
	follow_settings(worker);

	if (worker->drain == NULL)
		return;
	if (drain_in_flight(worker->drain) > 0)
		status_report_work("sending", worker->drain);
	if (clock_now() >= worker->prune_at && !drain_prune(worker->drain))
	{
		worker->prune_at = clock_now() + PRUNE_INTERVAL;
		warn_of_unsent(worker);
	}
}

/* Makes way for another worker if this one cannot know of a setting by itself. */
static void
follow_settings(Worker *worker)
{
	bool		is_changed;

	begin_transaction();
	is_changed = stored_settings_changed();
	commit_transaction();
	if (is_changed)
		make_way(worker, "settings of the database or of roles have changed");
}

static void
wait_for_work(Worker *worker)
{
	long		longest = LONGEST_SLEEP;

	if (worker->drain)
	{
		status_report_work("idle", worker->drain);
		longest = drain_idle_time(worker->drain, LONGEST_SLEEP);
	}
	pgstat_report_activity(STATE_IDLE, NULL);
	process_wait(WAIT_WORKER, longest);
}

/*
 * Can the worker be spared?  It has nothing to do now.  After a start of the server
 * nobody stays in databases where nothing waits, and when another database waits
 * for a worker's slot, whoever is idle makes room.
 */
static bool
can_be_spared(const Worker *worker)
{
	if (shared->lacks_slot)
		return true;
	if (worker->exploring && worker->drain && drain_next_due(worker->drain) == DT_NOEND)
		return true;
	return clock_now() - worker->worked_at >= setting_worker_idle_timeout * INT64CONST(1000);
}

/*
 * May the worker leave?  Not while there are prepared transactions, for COMMIT
 * PREPARED wakes nobody; when they have ended the queue is looked at once more,
 * since what they have enqueued may have come.  And not when work has just been
 * committed, or a transaction prepared.  Else the launcher is told when a worker
 * is wanted again: when the next row is due, or, while another session drains,
 * after a while.
 */
static bool
try_to_leave(Worker *worker)
{
	bool		makes_room = shared->lacks_slot;
	bool		may_have_prepared = max_prepared_xacts > 0 && !worker->none_prepared;
	int64		wanted_at = PG_INT64_MAX;
	SharedDatabase *database;
	bool		is_wanted;

	if (may_have_prepared && !makes_room)
	{
		if (clock_now() >= worker->prepared_at)
		{
			worker->prepared_at = clock_now() + PREPARED_INTERVAL;
			worker->none_prepared = !find_prepared_transaction();
		}
		return false;
	}

	if (makes_room && (may_have_prepared || worker->drain == NULL))
		wanted_at = clock_now() + ROOM_INTERVAL;
	else if (worker->drain == NULL)
		wanted_at = clock_now() + setting_worker_idle_timeout * INT64CONST(1000);
	if (worker->drain && drain_next_due(worker->drain) != DT_NOEND)
		wanted_at = Min(wanted_at,
						clock_now() + (drain_next_due(worker->drain) - GetCurrentTimestamp()));

	/* While another session drains, this worker can do nothing for anybody. */
	database = shared_lock_database(MyDatabaseId, false);
	is_wanted = database && database->wanted_at <= clock_now() &&
		!(makes_room && worker->drain == NULL);
	if (database && !is_wanted)
	{
		database->wanted_at = wanted_at;
		if (makes_room)
			shared->lacks_slot = false; /* one that leaves is enough */
	}
	shared_unlock();
	return !is_wanted;
}

/* Is there a prepared transaction in this database? */
static bool
find_prepared_transaction(void)
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

/*
 * Is another session waiting for exclusive use of this database (DROP, RENAME,
 * TEMPLATE)?  It holds a lock on the database, which keeps new sessions out, and
 * waits for those that are there to leave.
 */
static bool
is_database_wanted(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	if (LockAcquire(&tag, RowExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, RowExclusiveLock, true);
	return false;
}

/*
 * Ends the process before its time, after answers that come soon are settled.
 * Another worker is started as soon as one can be; without a reason, only if work
 * has been committed since.
 */
static void
make_way(Worker *worker, const char *why)
{
	int64		until = clock_now() + GRACE;
	SharedDatabase *database;
	bool		is_wanted;

	if (why)
		ereport(LOG, (errmsg("doubletick worker makes way: %s", why)));
	while (why && worker->drain && clock_now() < until &&
		   drain_finish(worker->drain) == DRAIN_BUSY)
		CHECK_FOR_INTERRUPTS();
	warn_of_unsent(worker);

	/* The next one could only wait until the database is dropped, say. */
	is_wanted = is_database_wanted();
	database = shared_lock_database(MyDatabaseId, false);
	if (database && why)
		database->wanted_at = 0;
	if (database && is_wanted)
		database->not_before = clock_now() + USECS_PER_SEC;
	shared_unlock();
	proc_exit(0);
}

static void
warn_of_unsent(Worker *worker)
{
	if (worker->drain)
		drain_warn_of_unsent(worker->drain);
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

/*-------------------------------------------------------------------------
 *
 * call/executor.c
 *		What is done when PostgreSQL starts and runs a statement.
 *
 * A statement that calls DoubleTick gets a plan that keeps many calls in flight.  It
 * gets it when it starts, and for this execution alone: neither the planner nor a
 * cached plan, and no other extension that looks at the statement, sees anything of it.
 * Until the session has planned such a statement, all this costs one comparison for
 * each start.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call/call_scan.h"
#include "call/executor.h"
#include "call/function.h"
#include "call/rewrite.h"
#include "compat.h"
#include "executor/executor.h"
#include "pgstat.h"
#include "settings.h"
#include "utils/memutils.h"

static ExecutorStart_hook_type next_start = NULL;
static ExecutorRun_hook_type next_run = NULL;

static void start_statement(QueryDesc *statement, int eflags);
static void call_next_start(QueryDesc *statement, int eflags);
static void run_statement(EXECUTOR_RUN_ARGUMENTS);

/*
 * Called once, when the library is loaded.
 */
void
executor_init(void)
{
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = start_statement;
	next_run = ExecutorRun_hook;
	ExecutorRun_hook = run_statement;
}

/*
 * Starts a statement, with another plan if that helps.  The plan lives as long as the
 * execution, since functions may start thousands of them in memory that lives longer.
 *
 * With track_functions = all, PostgreSQL counts each call of a function, which it
 * could not do if we made them.
 */
static void
start_statement(QueryDesc *statement, int eflags)
{
	PlannedStmt *original = statement->plannedstmt;
	PlannedStmt *rewritten;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;

	if (!function_is_any_planned() || setting_max_in_flight == 1 ||
		pgstat_track_functions == TRACK_FUNC_ALL)
	{
		call_next_start(statement, eflags);
		return;
	}

	context = AllocSetContextCreate(caller, "doubletick plan", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(context);
	rewritten = rewrite_statement(original);
	MemoryContextSwitchTo(caller);
	if (rewritten == NULL)
	{
		MemoryContextDelete(context);
		call_next_start(statement, eflags);
		return;
	}
	statement->plannedstmt = rewritten;
	call_next_start(statement, eflags);
	statement->plannedstmt = original;
	MemoryContextSetParent(context, statement->estate->es_query_cxt);
}

static void
call_next_start(QueryDesc *statement, int eflags)
{
	if (next_start)
		next_start(statement, eflags);
	else
		standard_ExecutorStart(statement, eflags);
}

/* Tells our nodes how many rows the caller wants before it looks at them. */
static void
run_statement(EXECUTOR_RUN_ARGUMENTS)
{
	call_scan_note_run(statement->estate, count);
	if (next_run)
		next_run(EXECUTOR_RUN_PASSED);
	else
		standard_ExecutorRun(EXECUTOR_RUN_PASSED);
}

/*-------------------------------------------------------------------------
 *
 * call/call_scan.c
 *		The plan node that keeps the calls of many rows in flight.
 *
 * It reads rows of the node below ahead, makes the calls of each, and hands the rows up
 * in their order, each when its calls are over.  To read ahead is what a Sort or a
 * Material does, too.  What is wrong with a call is raised when its row is handed up.
 *
 * rows_ahead() says how many rows may be read ahead: never one whose calls might not
 * have been made if there were no call scan, unless the statement fails.  So no row is
 * left when the executor stops: a cursor may go backwards then, or be closed.
 *
 * A row is handed up when none of the requests is on its way to DoubleTick: a connection
 * that is half made would time out while the executor is elsewhere, and requests would
 * leave late, and all at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/allocation.h"
#include "base/clock.h"
#include "call/call.h"
#include "call/call_scan.h"
#include "call/cursor_row.h"
#include "call/function.h"
#include "call/open_calls.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/executor.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "nodes/extensible.h"
#include "nodes/makefuncs.h"
#include "settings.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* Time between two reports of progress, in µs. */
#define REPORT_INTERVAL (5 * USECS_PER_SEC)

/* How many rows are read while the first one could be handed up: a part of the ring. */
#define BATCHES 8

/* A call of each row. */
typedef struct CallColumn
{
	bool		raise;			/* does its function raise faults? */
	bool		is_strict;		/* is its result null if an argument is? */
	List	   *arguments;		/* of ExprState */
	FunctionCallInfo fcinfo;
} CallColumn;

/* A row that is read and not yet handed up, or that was handed up last. */
typedef struct CallRow
{
	MemoryContext context;		/* of all that belongs to it; NULL: unused */
	MinimalTuple columns;
	ItemPointerData place;		/* in the table, if there is one */
	Call	  **calls;			/* NULL: the result is null */
} CallRow;

typedef struct CallScanState
{
	CustomScanState custom;		/* must be the first */
	Demand		demand;
	int			ncalls;			/* for a row */
	CallColumn *calls;

	/* Rows in the order in which they were read. */
	CallRow    *ring;
	int			size;			/* one more than may be read ahead */
	int			first;
	int			nrows;
	CallRow    *last;			/* handed up last; NULL: none */
	bool		at_end;
	TupleTableSlot *columns;	/* of the row that is handed up */
	ScanState  *table;			/* that a cursor's row is of; NULL: none */
	int64		nhanded;		/* since the first row, or the last rescan */

	/* What ExecutorRun() was told. */
	dlist_node	node;			/* in "scans" */
	MemoryContextCallback callback;
	bool		is_told;
	uint64		count;			/* 0: all rows */

	/* For EXPLAIN, and to report progress. */
	int64		nmade;			/* calls */
	int64		nrequests;
	int			peak;			/* most requests in flight */
	int64		started;		/* clock_now() */
	int64		reported;
} CallScanState;

/* The call scans that the process executes. */
static dlist_head scans = DLIST_STATIC_INIT(scans);

static Node *create_state(CustomScan *plan);
static int64 private_number(CustomScan *plan, int n);
static void begin_scan(CustomScanState *custom, EState *estate, int eflags);
static void init_call(CallScanState *scan, CallColumn *column, FuncExpr *expr);
static void forget_scan(void *arg);
static TupleTableSlot *next_row(CustomScanState *custom);
static bool wait_for_row(CallScanState *scan);
static int	rows_ahead(CallScanState *scan);
static CallRow *nth_row(CallScanState *scan, int n);
static void read_row(CallScanState *scan);
static Call *make_call(CallScanState *scan, CallColumn *column, CallRow *row);
static bool succeeds_alone(CallScanState *scan, const Call *call);
static bool is_row_over(CallScanState *scan, CallRow *row);
static bool have_all_left(CallScanState *scan);
static void hand_up(CallScanState *scan, TupleTableSlot *slot);
static void release_row(CallScanState *scan, CallRow *row);
static void free_ring(CallScanState *scan);
static void drive_calls(CallScanState *scan);
static void report_progress(CallScanState *scan);
static void end_scan(CustomScanState *custom);
static void restart_scan(CustomScanState *custom);
static void release_all(CallScanState *scan);
static void explain_scan(CustomScanState *custom, List *ancestors, ExplainState *es);

static const CustomScanMethods scan_methods = {
	.CustomName = "DoubletickCalls",
	.CreateCustomScanState = create_state,
};

static const CustomExecMethods exec_methods = {
	.CustomName = "DoubletickCalls",
	.BeginCustomScan = begin_scan,
	.ExecCustomScan = next_row,
	.EndCustomScan = end_scan,
	.ReScanCustomScan = restart_scan,
	.ExplainCustomScan = explain_scan,
};

/*
 * A plan node without its child, its target list and its costs.  The first "ncalls" of
 * custom_scan_tlist are to be calls, over columns of the child, and all others the
 * child's columns.
 */
CustomScan *
call_scan_make(const Demand *demand, int ncalls)
{
	CustomScan *scan = makeNode(CustomScan);
	int64		numbers[] = {ncalls, demand->sure, demand->bound, demand->is_drained, demand->is_one_to_one};

	scan->flags = CUSTOMPATH_SUPPORT_BACKWARD_SCAN;
	scan->methods = &scan_methods;
	for (int i = 0; i < (int) lengthof(numbers); i++)
		scan->custom_private = lappend(scan->custom_private,
									   makeConst(INT8OID, -1, InvalidOid, sizeof(int64),
												 Int64GetDatum(numbers[i]), false, FLOAT8PASSBYVAL));
	return scan;
}

static int64
private_number(CustomScan *plan, int n)
{
	return DatumGetInt64(((Const *) list_nth(plan->custom_private, n))->constvalue);
}

/*
 * Called whenever the executor is about to be run: tells the statement's call scans how
 * many rows the caller wants, 0 for all.  A scan that is not told, since another library
 * has taken our place, reads no row ahead.
 */
void
call_scan_note_run(EState *estate, uint64 count)
{
	dlist_iter	iter;

	dlist_foreach(iter, &scans)
	{
		CallScanState *scan = dlist_container(CallScanState, node, iter.cur);

		if (scan->custom.ss.ps.state == estate)
		{
			scan->count = count;
			scan->is_told = true;
		}
	}
}

static Node *
create_state(CustomScan *plan)
{
	CallScanState *scan = palloc0(sizeof(CallScanState));

	NodeSetTag(scan, T_CustomScanState);
	scan->custom.methods = &exec_methods;
	scan->ncalls = (int) private_number(plan, 0);
	scan->demand.sure = private_number(plan, 1);
	scan->demand.bound = private_number(plan, 2);
	scan->demand.is_drained = private_number(plan, 3) != 0;
	scan->demand.is_one_to_one = private_number(plan, 4) != 0;
	return (Node *) scan;
}

static void
begin_scan(CustomScanState *custom, EState *estate, int eflags)
{
	CallScanState *scan = (CallScanState *) custom;
	CustomScan *plan = (CustomScan *) custom->ss.ps.plan;

	outerPlanState(custom) = ExecInitNode(outerPlan(plan), estate, eflags);
	scan->columns = ExecInitExtraTupleSlot(estate, ExecGetResultType(outerPlanState(custom)),
										   &TTSOpsMinimalTuple);
	scan->calls = palloc0(sizeof(CallColumn) * scan->ncalls);
	for (int i = 0; i < scan->ncalls; i++)
	{
		TargetEntry *entry = list_nth(plan->custom_scan_tlist, i);

		init_call(scan, &scan->calls[i], castNode(FuncExpr, entry->expr));
	}
	scan->size = Max(setting_max_in_flight / scan->ncalls, 1) + 1;
	scan->ring = palloc0(sizeof(CallRow) * scan->size);

	/* ExecSetTupleBound() does not know this node, so it stops here. */
	if (scan->demand.bound >= 0)
		ExecSetTupleBound(scan->demand.bound, outerPlanState(custom));

	if (estate->es_plannedstmt->commandType == CMD_SELECT)
		scan->table = cursor_row_scan(outerPlanState(custom));
	if (scan->table)
		custom->ss.ss_currentRelation = scan->table->ss_currentRelation;

	dlist_push_tail(&scans, &scan->node);
	scan->callback.func = forget_scan;
	scan->callback.arg = scan;
	MemoryContextRegisterResetCallback(estate->es_query_cxt, &scan->callback);
}

/*
 * The call itself is initialized, but never evaluated: so PostgreSQL checks the right to
 * execute the function, and tells others of it, as ever.
 */
static void
init_call(CallScanState *scan, CallColumn *column, FuncExpr *expr)
{
	PlanState  *ps = &scan->custom.ss.ps;
	int			narguments = list_length(expr->args);

	(void) ExecInitExpr((Expr *) expr, ps);
	column->raise = function_raises(expr->funcid);
	column->is_strict = func_strict(expr->funcid);
	column->arguments = ExecInitExprList(expr->args, ps);
	column->fcinfo = palloc0(SizeForFunctionCallInfo(narguments));
	InitFunctionCallInfoData(*column->fcinfo, NULL, narguments, expr->inputcollid, NULL, NULL);
}

/* Called when the statement's memory is freed, be it by an error; its rows are by then. */
static void
forget_scan(void *arg)
{
	dlist_delete(&((CallScanState *) arg)->node);
	allocation_give_back();
}

/* Called for each row: hands the next one up. */
static TupleTableSlot *
next_row(CustomScanState *custom)
{
	CallScanState *scan = (CallScanState *) custom;
	ExprContext *econtext = custom->ss.ps.ps_ExprContext;
	TupleTableSlot *slot = custom->ss.ss_ScanTupleSlot;

	if (scan->last)
		release_row(scan, scan->last);
	scan->last = NULL;
	ResetExprContext(econtext);
	ExecClearTuple(slot);
	if (!wait_for_row(scan))
		return NULL;
	hand_up(scan, slot);
	if (custom->ss.ps.ps_ProjInfo == NULL)
		return slot;
	econtext->ecxt_scantuple = slot;
	return ExecProject(custom->ss.ps.ps_ProjInfo);
}

/*
 * Reads ahead, and drives calls until the first row can be handed up.  False if there
 * is no row.
 */
static bool
wait_for_row(CallScanState *scan)
{
	int			nahead = rows_ahead(scan);
	int			nread = 0;

	for (;;)
	{
		bool		is_ready = scan->nrows > 0 && is_row_over(scan, nth_row(scan, 0));

		/* To drive calls costs more than a row: do it for many rows at once. */
		if (!scan->at_end && scan->nrows < nahead &&
			!(is_ready && nread >= Max(nahead / BATCHES, 1)))
		{
			read_row(scan);
			nread++;
		}
		else if (scan->nrows == 0)
		{
			scan->at_end = false;	/* the child may be asked again */
			free_ring(scan);
			return false;
		}
		else if (is_ready && have_all_left(scan))
			return true;
		else
			drive_calls(scan);
	}
}

/*
 * How many rows there may be that are read and not handed up, at least 1.  The first row
 * goes alone, so that what is wrong with all, such as a wrong key, is found by one call.
 * Nobody runs the executor that evaluates a changed row again (EvalPlanQual), so a scan
 * in it is not told and reads no row ahead.
 */
static int
rows_ahead(CallScanState *scan)
{
	EState	   *estate = scan->custom.ss.ps.state;
	int64		nrows = scan->size - 1;

	if (scan->nhanded == 0 || !scan->is_told || !ScanDirectionIsForward(estate->es_direction))
		return 1;
	if (scan->demand.sure >= 0)
		nrows = Min(nrows, scan->demand.sure - scan->nhanded);
	if (!scan->demand.is_drained && scan->count != 0)
	{
		if (estate->es_plannedstmt->commandType != CMD_SELECT || !scan->demand.is_one_to_one)
			return 1;
		nrows = Min(nrows, (int64) (scan->count - estate->es_processed));
	}
	return (int) Max(nrows, 1);
}

/* The n-th of the rows that are read ahead, from 0; or the place of the next one. */
static CallRow *
nth_row(CallScanState *scan, int n)
{
	return &scan->ring[(scan->first + n) % scan->size];
}

/* Reads a row of the child, and makes its calls. */
static void
read_row(CallScanState *scan)
{
	EState	   *estate = scan->custom.ss.ps.state;
	TupleTableSlot *slot = ExecProcNode(outerPlanState(&scan->custom));
	CallRow    *row = nth_row(scan, scan->nrows);
	MemoryContext caller;

	if (TupIsNull(slot))
	{
		scan->at_end = true;
		return;
	}
	if (scan->started == 0)
		scan->started = scan->reported = clock_now();
	if (row->context == NULL)
		row->context = AllocSetContextCreate(estate->es_query_cxt, "doubletick call",
											 ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(row->context);
	row->columns = ExecCopySlotMinimalTuple(slot);
	row->calls = palloc0(sizeof(Call *) * scan->ncalls);
	MemoryContextSwitchTo(caller);
	if (scan->table)
		row->place = cursor_row_place(scan->table);

	scan->custom.ss.ps.ps_ExprContext->ecxt_outertuple = slot;
	scan->nrows++;
	for (int i = 0; i < scan->ncalls; i++)
	{
		row->calls[i] = make_call(scan, &scan->calls[i], row);
		if (scan->nhanded == 0 && !succeeds_alone(scan, row->calls[i]))
			break;
	}
}

/*
 * Of the first row even the calls go one after the other.  False if a fault is raised
 * when the row is handed up, so that its next call must not be made.
 */
static bool
succeeds_alone(CallScanState *scan, const Call *call)
{
	if (call == NULL)
		return true;
	while (!call_is_over(call))
		drive_calls(scan);
	return !call_will_raise(call);
}

/* NULL if a function that was made STRICT gets a null argument. */
static Call *
make_call(CallScanState *scan, CallColumn *column, CallRow *row)
{
	FunctionCallInfo fcinfo = column->fcinfo;
	int			n = 0;
	ListCell   *cell;

	foreach(cell, column->arguments)
	{
		NullableDatum *argument = &fcinfo->args[n++];

		argument->value = ExecEvalExprSwitchContext(lfirst(cell), scan->custom.ss.ps.ps_ExprContext,
													&argument->isnull);
		if (argument->isnull && column->is_strict)
			return NULL;
	}
	scan->nmade++;
	return call_make(row->context, fcinfo, column->raise);
}

static bool
is_row_over(CallScanState *scan, CallRow *row)
{
	for (int i = 0; i < scan->ncalls; i++)
	{
		if (row->calls[i] && !call_is_over(row->calls[i]))
			return false;
	}
	return true;
}

/* Is no request on its way, without having been sent? */
static bool
have_all_left(CallScanState *scan)
{
	for (int n = 0; n < scan->nrows; n++)
	{
		CallRow    *row = nth_row(scan, n);

		for (int i = 0; i < scan->ncalls; i++)
		{
			if (row->calls[i] && call_is_leaving(row->calls[i]))
				return false;
		}
	}
	return true;
}

/* Puts the first row into a slot; raises the first fault of its calls that is raised. */
static void
hand_up(CallScanState *scan, TupleTableSlot *slot)
{
	CallRow    *row = nth_row(scan, 0);
	int			ncolumns = scan->columns->tts_tupleDescriptor->natts;
	MemoryContext caller = MemoryContextSwitchTo(row->context);

	scan->last = row;
	scan->first = (scan->first + 1) % scan->size;
	scan->nrows--;
	scan->nhanded++;

	for (int i = 0; i < scan->ncalls; i++)
	{
		Call	   *call = row->calls[i];

		slot->tts_isnull[i] = call == NULL;
		slot->tts_values[i] = 0;
		if (call == NULL)
			continue;
		scan->nrequests += call_requests(call);
		slot->tts_values[i] = JsonbPGetDatum(call_result(call));
	}
	MemoryContextSwitchTo(caller);

	ExecStoreMinimalTuple(row->columns, scan->columns, false);
	slot_getallattrs(scan->columns);
	memcpy(&slot->tts_values[scan->ncalls], scan->columns->tts_values, sizeof(Datum) * ncolumns);
	memcpy(&slot->tts_isnull[scan->ncalls], scan->columns->tts_isnull, sizeof(bool) * ncolumns);
	ExecStoreVirtualTuple(slot);

	if (scan->table)
	{
		slot->tts_tid = row->place;
		slot->tts_tableOid = RelationGetRelid(scan->custom.ss.ss_currentRelation);
	}
}

/* Ends the calls of a row, too. */
static void
release_row(CallScanState *scan, CallRow *row)
{
	ExecClearTuple(scan->columns);
	MemoryContextReset(row->context);
	row->calls = NULL;
}

/* Called when there are no more rows: other scans of the statement may need the memory. */
static void
free_ring(CallScanState *scan)
{
	for (int i = 0; i < scan->size; i++)
	{
		if (scan->ring[i].context)
			MemoryContextDelete(scan->ring[i].context);
		scan->ring[i].context = NULL;
	}
}

static void
drive_calls(CallScanState *scan)
{
	calls_turn();
	scan->peak = Max(scan->peak, calls_in_flight());
	report_progress(scan);
}

/* Tells the user how far the statement has come. */
static void
report_progress(CallScanState *scan)
{
	int64		now = clock_now();

	if (now < scan->reported + REPORT_INTERVAL)
		return;
	scan->reported = now;
	ereport(NOTICE,
			(errmsg("calls: " INT64_FORMAT " made, %d in flight, %.1f per second",
					scan->nmade, calls_in_flight(),
					(double) scan->nmade / ((double) (now - scan->started) / USECS_PER_SEC))));
}

static void
end_scan(CustomScanState *custom)
{
	release_all((CallScanState *) custom);
	ExecEndNode(outerPlanState(custom));
}

static void
restart_scan(CustomScanState *custom)
{
	CallScanState *scan = (CallScanState *) custom;

	release_all(scan);
	scan->at_end = false;
	scan->nhanded = 0;
	if (outerPlanState(custom)->chgParam == NULL)
		ExecReScan(outerPlanState(custom));
}

static void
release_all(CallScanState *scan)
{
	if (scan->last)
		release_row(scan, scan->last);
	scan->last = NULL;
	while (scan->nrows > 0)
		release_row(scan, nth_row(scan, --scan->nrows));
}

static void
explain_scan(CustomScanState *custom, List *ancestors pg_attribute_unused(), ExplainState *es)
{
	CallScanState *scan = (CallScanState *) custom;

	ExplainPropertyInteger("Calls per Row", NULL, scan->ncalls, es);
	ExplainPropertyInteger("Max in Flight", NULL, setting_max_in_flight, es);
	if (!es->analyze)
		return;
	ExplainPropertyInteger("Calls", NULL, scan->nmade, es);
	ExplainPropertyInteger("Requests", NULL, scan->nrequests, es);
	ExplainPropertyInteger("Peak in Flight", NULL, scan->peak, es);
}

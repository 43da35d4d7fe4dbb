/*-------------------------------------------------------------------------
 *
 * call/rewrite.c
 *		Rewrites the plan of a statement so that many of its calls are in
 *		flight at once.
 *
 * A node that computes calls in its target list is split.  Below stays a copy that
 * computes the arguments; above goes a call scan (call_scan.c), which reads ahead, makes
 * the calls of many rows, and hands the rows up in their order:
 *
 *		SeqScan: id, f(phone) || x		becomes		CallScan: id, call || x
 *													  SeqScan: id, phone, x
 *
 * This is pure: nodes that change are copied, and all others are shared with the plan
 * that was given, which is not changed.
 *
 * What is rewritten is a list of what is known to be safe: kinds of nodes on the way from
 * the top, and kinds of expressions beside a call (expression.c).  All else, and so
 * whatever a later PostgreSQL adds, is left as it is, and its calls are made one after
 * the other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "call/call_scan.h"
#include "call/expression.h"
#include "call/function.h"
#include "call/rewrite.h"
#include "common/int.h"
#include "compat.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"

/* Kinds of nodes whose target lists may be split; their order does not matter. */
typedef struct Maker
{
	NodeTag		tag;
	Size		size;
} Maker;

static const Maker makers[] = {
	{T_Result, sizeof(Result)},
	{T_SeqScan, sizeof(SeqScan)},
	{T_SampleScan, sizeof(SampleScan)},
	{T_IndexScan, sizeof(IndexScan)},
	{T_IndexOnlyScan, sizeof(IndexOnlyScan)},
	{T_BitmapHeapScan, sizeof(BitmapHeapScan)},
	{T_TidScan, sizeof(TidScan)},
	{T_TidRangeScan, sizeof(TidRangeScan)},
	{T_SubqueryScan, sizeof(SubqueryScan)},
	{T_FunctionScan, sizeof(FunctionScan)},
	{T_TableFuncScan, sizeof(TableFuncScan)},
	{T_ValuesScan, sizeof(ValuesScan)},
	{T_CteScan, sizeof(CteScan)},
	{T_NamedTuplestoreScan, sizeof(NamedTuplestoreScan)},
	{T_ForeignScan, sizeof(ForeignScan)},
	{T_NestLoop, sizeof(NestLoop)},
	{T_MergeJoin, sizeof(MergeJoin)},
	{T_HashJoin, sizeof(HashJoin)},
	{T_Agg, sizeof(Agg)},
	{T_Group, sizeof(Group)},
	{T_WindowAgg, sizeof(WindowAgg)},
};

/* A target list that is split. */
typedef struct Split
{
	int			ncalls;			/* how many are made ahead for a row */
	bool		is_ahead;		/* those of the entry that is worked on? */
	List	   *calls;			/* these, with columns as arguments */
	List	   *columns;		/* target list of the node below */
	List	   *output;			/* target list of the call scan */
} Split;

static const Demand all_rows = {.sure = -1,.bound = -1,.is_one_to_one = true};

static Plan *rewrite_plan(Plan *plan, Demand demand, bool is_limited);
static Plan *rewrite_below(Plan *plan, Size size, Demand demand, bool is_limited);
static Plan *rewrite_modify(ModifyTable *modify);
static Plan *rewrite_limit(Limit *limit, Demand demand);
static bool read_limit(Node *expr, int64 *number);
static Plan *rewrite_subquery(SubqueryScan *scan, Demand demand, bool is_limited);
static Plan *rewrite_append(Append *append, Demand demand);
static Plan *split_maker(Plan *plan, Demand demand);
static const Maker *find_maker(Plan *plan);
static bool split_returning(ModifyTable *modify, Split *split, List **lists);
static Plan *add_call_scan(Plan *below, const Split *split, const Demand *demand);
static List *scan_columns(const Split *split);
static bool split_target_list(List *targetlist, Split *split);
static Node *move_above(Node *node, void *context);
static Expr *make_ahead(FuncExpr *call, Split *split);
static Var *column_below(Split *split, Expr *expr, int varno);
static void *copy_node(const void *node, Size size);

/*
 * Called when a statement starts: its plan with call scans in it, or NULL when there
 * is no call that can be made ahead.  Only the nodes that the walk from the top reaches
 * are changed; subplans never are.
 */
PlannedStmt *
rewrite_statement(PlannedStmt *statement)
{
	PlannedStmt *copy;
	Plan	   *plan = statement->planTree ? rewrite_plan(statement->planTree, all_rows, false) : NULL;

	if (plan == NULL)
		return NULL;
	copy = copy_node(statement, sizeof(PlannedStmt));
	copy->planTree = plan;
	return copy;
}

/*
 * A changed copy of a plan; NULL when nothing in it changes.  "is_limited" says whether
 * a Limit is above.
 */
static Plan *
rewrite_plan(Plan *plan, Demand demand, bool is_limited)
{
	if (find_maker(plan) && expression_has_call((Node *) plan->targetlist))
		return split_maker(plan, demand);

	switch (nodeTag(plan))
	{
		case T_ModifyTable:
			return rewrite_modify((ModifyTable *) plan);
		case T_Limit:
			return rewrite_limit((Limit *) plan, demand);
		case T_SubqueryScan:
			return rewrite_subquery((SubqueryScan *) plan, demand, is_limited);
		case T_Append:
			return is_limited ? NULL : rewrite_append((Append *) plan, demand);
		case T_Result:
			if (plan->qual != NIL)
			{
				demand.bound = -1;
				demand.is_one_to_one = false;
			}
			return rewrite_below(plan, sizeof(Result), demand, is_limited);
		case T_Sort:
			demand.sure = -1;
			demand.bound = -1;
			demand.is_drained = true;
			return rewrite_below(plan, sizeof(Sort), demand, is_limited);
		default:
			return NULL;
	}
}

/* For a node whose only child may change. */
static Plan *
rewrite_below(Plan *plan, Size size, Demand demand, bool is_limited)
{
	Plan	   *child = outerPlan(plan) ? rewrite_plan(outerPlan(plan), demand, is_limited) : NULL;
	Plan	   *copy;

	if (child == NULL)
		return NULL;
	copy = copy_node(plan, size);
	outerPlan(copy) = child;
	return copy;
}

/* Both what it reads and RETURNING may have calls.  It reads all rows, if it may. */
static Plan *
rewrite_modify(ModifyTable *modify)
{
	Plan	   *child = rewrite_plan(outerPlan(modify), all_rows, false);
	ModifyTable *copy = copy_node(modify, sizeof(ModifyTable));
	Split		split;
	List	   *lists;

	if (child)
		outerPlan(copy) = child;
	if (!split_returning(modify, &split, &lists))
		return child ? &copy->plan : NULL;

	/* The executor takes the first list for the node's own. */
	copy->returningLists = lists;
	copy->plan.targetlist = linitial(lists);
	return add_call_scan(&copy->plan, &split, &all_rows);
}

/* Only with constants, which parameters of a custom plan have become. */
static Plan *
rewrite_limit(Limit *limit, Demand demand)
{
	int64		count;
	int64		offset;

	if (limit->limitOption != LIMIT_OPTION_COUNT ||
		!read_limit(limit->limitCount, &count) || !read_limit(limit->limitOffset, &offset))
		return NULL;
	offset = Max(offset, 0);
	if (count >= 0)
		demand.sure = demand.sure < 0 ? count : Min(demand.sure, count);
	demand.bound = count < 0 ? -1 : count;
	if (demand.sure >= 0 && pg_add_s64_overflow(demand.sure, offset, &demand.sure))
		demand.sure = -1;
	if (demand.bound >= 0 && pg_add_s64_overflow(demand.bound, offset, &demand.bound))
		demand.bound = -1;
	return rewrite_below(&limit->plan, sizeof(Limit), demand, true);
}

/* False unless it is a constant; -1 for no limit. */
static bool
read_limit(Node *expr, int64 *number)
{
	*number = -1;
	if (expr == NULL)
		return true;
	if (!IsA(expr, Const))
		return false;
	if (!((Const *) expr)->constisnull)
		*number = DatumGetInt64(((Const *) expr)->constvalue);
	return true;
}

static Plan *
rewrite_subquery(SubqueryScan *scan, Demand demand, bool is_limited)
{
	Plan	   *child;
	SubqueryScan *copy;

	if (scan->scan.plan.qual != NIL)
	{
		demand.bound = -1;
		demand.is_one_to_one = false;
	}
	child = rewrite_plan(scan->subplan, demand, is_limited);
	if (child == NULL)
		return NULL;
	copy = copy_node(scan, sizeof(SubqueryScan));
	copy->subplan = child;
	return &copy->scan.plan;
}

/* Each child reads ahead by itself. */
static Plan *
rewrite_append(Append *append, Demand demand)
{
	List	   *children = NIL;
	bool		is_changed = false;
	Append	   *copy;
	ListCell   *cell;

	demand.bound = -1;
	foreach(cell, append->appendplans)
	{
		Plan	   *child = lfirst(cell);
		Plan	   *changed = child->async_capable ? NULL : rewrite_plan(child, demand, false);

		is_changed |= changed != NULL;
		children = lappend(children, changed ? changed : child);
	}
	if (!is_changed)
		return NULL;
	copy = copy_node(append, sizeof(Append));
	copy->appendplans = children;
	return &copy->plan;
}

/* NULL if it cannot be split. */
static Plan *
split_maker(Plan *plan, Demand demand)
{
	Split		split;
	Plan	   *copy;

	if (plan->parallel_aware || !split_target_list(plan->targetlist, &split))
		return NULL;
	copy = copy_node(plan, find_maker(plan)->size);
	copy->targetlist = split.columns;
	return add_call_scan(copy, &split, &demand);
}

/*
 * The kind of a node whose target list may be split; NULL for others.  A WindowAgg must
 * not have conditions: it makes the calls of a row before it looks at them, and its run
 * condition refers to the columns of its target list by their numbers.
 */
static const Maker *
find_maker(Plan *plan)
{
	if ((IsA(plan, Result) && outerPlan(plan) == NULL) ||
		(IsA(plan, WindowAgg) && (plan->qual != NIL || ((WindowAgg *) plan)->runCondition != NIL)) ||
		(IsA(plan, ForeignScan) && ((ForeignScan *) plan)->operation != CMD_SELECT) ||
		(IsA(plan, Agg) && ((Agg *) plan)->aggsplit != AGGSPLIT_SIMPLE))
		return NULL;
	for (int i = 0; i < (int) lengthof(makers); i++)
	{
		if (makers[i].tag == nodeTag(plan))
			return &makers[i];
	}
	return NULL;
}

/*
 * Splits the lists of RETURNING, one for each table.  All must split alike: rows of all
 * tables go through one call scan.  False if they cannot be split.
 */
static bool
split_returning(ModifyTable *modify, Split *split, List **lists)
{
	ListCell   *cell;

	*lists = NIL;
	foreach(cell, modify->returningLists)
	{
		Split		other;

		if (!expression_has_call(lfirst(cell)) || !split_target_list(lfirst(cell), &other))
			return false;
		if (*lists == NIL)
			*split = other;
		else if (!equal(split->calls, other.calls) || !equal(split->output, other.output) ||
				 !equal(scan_columns(split), scan_columns(&other)))
			return false;
		*lists = lappend(*lists, other.columns);
	}
	return *lists != NIL;
}

/* Puts a call scan above a node that computes its columns. */
static Plan *
add_call_scan(Plan *below, const Split *split, const Demand *demand)
{
	CustomScan *scan = call_scan_make(demand, split->ncalls);
	Plan	   *plan = &scan->scan.plan;
	ListCell   *cell;

	plan->startup_cost = below->startup_cost;
	plan->total_cost = below->total_cost;
	plan->plan_rows = below->plan_rows;
	plan->plan_width = below->plan_width;
	plan->extParam = below->extParam;
	plan->allParam = below->allParam;
	plan->plan_node_id = -1;
	plan->targetlist = split->output;
	outerPlan(plan) = below;

	foreach(cell, split->calls)
		scan->custom_scan_tlist = lappend(scan->custom_scan_tlist,
										  makeTargetEntry(lfirst(cell),
														  list_length(scan->custom_scan_tlist) + 1,
														  NULL, false));
	scan->custom_scan_tlist = list_concat(scan->custom_scan_tlist, scan_columns(split));
	return plan;
}

/* The columns as the call scan has them, after its calls. */
static List *
scan_columns(const Split *split)
{
	List	   *columns = NIL;
	ListCell   *cell;

	foreach(cell, split->columns)
	{
		TargetEntry *entry = lfirst(cell);

		columns = lappend(columns,
						  makeTargetEntry((Expr *) makeVarFromTargetEntry(OUTER_VAR, entry),
										  split->ncalls + entry->resno, NULL, false));
	}
	return columns;
}

/*
 * False if the node must be left alone, or no call can be made ahead.
 */
static bool
split_target_list(List *targetlist, Split *split)
{
	ListCell   *cell;

	memset(split, 0, sizeof(Split));
	if (expression_changes_settings((Node *) targetlist))
		return false;
	foreach(cell, targetlist)
	{
		Node	   *expr = (Node *) ((TargetEntry *) lfirst(cell))->expr;
		ExpressionPlace place = expression_place(expr);

		if (place == PLACE_UNKNOWN)
			return false;
		if (place == PLACE_AHEAD)
			split->ncalls += expression_count_calls(expr);
	}
	if (split->ncalls == 0)
		return false;

	foreach(cell, targetlist)
	{
		TargetEntry *entry = copy_node(lfirst(cell), sizeof(TargetEntry));
		ExpressionPlace place = expression_place((Node *) entry->expr);

		split->is_ahead = place == PLACE_AHEAD;
		if (place == PLACE_BELOW)
			entry->expr = (Expr *) column_below(split, entry->expr, INDEX_VAR);
		else
			entry->expr = (Expr *) move_above((Node *) entry->expr, split);
		split->output = lappend(split->output, entry);
	}

	/* A call scan keeps rows as tuples. */
	return list_length(split->columns) <= MaxTupleAttributeNumber;
}

/* An expression that is computed above: its Vars are columns of the node below. */
static Node *
move_above(Node *node, void *context)
{
	Split	   *split = context;

	if (node == NULL)
		return NULL;
	if (split->is_ahead && function_is_call(node))
		return (Node *) make_ahead((FuncExpr *) node, split);
	if (IsA(node, Var))
		return (Node *) column_below(split, (Expr *) node, INDEX_VAR);
	return expression_tree_mutator(node, move_above, context);
}

/* Has a call made ahead.  Returns what stands for its result above. */
static Expr *
make_ahead(FuncExpr *call, Split *split)
{
	FuncExpr   *ahead = copy_node(call, sizeof(FuncExpr));
	ListCell   *cell;

	ahead->args = NIL;
	foreach(cell, call->args)
	{
		Expr	   *argument = lfirst(cell);

		if (!IsA(argument, Const))
			argument = (Expr *) column_below(split, argument, OUTER_VAR);
		ahead->args = lappend(ahead->args, argument);
	}
	split->calls = lappend(split->calls, ahead);
	return (Expr *) makeVar(INDEX_VAR, list_length(split->calls), exprType((Node *) call),
							exprTypmod((Node *) call), exprCollation((Node *) call), 0);
}

/*
 * Has the node below compute an expression.  Returns what stands for it: in the
 * arguments of calls (OUTER_VAR), or in what is computed above (INDEX_VAR).
 */
static Var *
column_below(Split *split, Expr *expr, int varno)
{
	int			number = list_length(split->columns) + 1;

	split->columns = lappend(split->columns, makeTargetEntry(expr, number, NULL, false));
	return makeVar(varno, varno == INDEX_VAR ? split->ncalls + number : number,
				   exprType((Node *) expr), exprTypmod((Node *) expr),
				   exprCollation((Node *) expr), 0);
}

static void *
copy_node(const void *node, Size size)
{
	return memcpy(palloc(size), node, size);
}

/*-------------------------------------------------------------------------
 *
 * call/expression.c
 *		Where an expression that may have calls can be computed.
 *
 * Nothing volatile that a target list computes is computed ahead of its time, but the
 * calls: all other volatile expressions are computed above, when their row is handed up.
 * Only kinds of expressions that are listed here are moved, so whatever a later
 * PostgreSQL adds stays where it is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call/expression.h"
#include "call/function.h"
#include "compat.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "utils/fmgroids.h"

static bool has_call_walker(Node *node, void *context);
static bool has_set_config_walker(Node *node, void *context);
static bool count_calls_walker(Node *node, void *context);
static bool is_sure(Node *node);
static bool is_sure_subscript(SubscriptingRef * ref);
static bool are_sure(List *nodes);
static bool is_immovable(Node *node, void *context);

/*
 * Called for each entry of a target list.  SubPlans belong to their node, and may hide
 * what is volatile.
 */
ExpressionPlace
expression_place(Node *expr)
{
	if (contain_subplans(expr) || expression_returns_set(expr))
		return PLACE_UNKNOWN;
	if (!contain_volatile_functions(expr))
		return PLACE_BELOW;
	if (expression_has_call(expr) && is_sure(expr))
		return PLACE_AHEAD;
	return is_immovable(expr, NULL) ? PLACE_UNKNOWN : PLACE_ABOVE;
}

/*
 * Is each call in an expression made whatever its other parts say, with arguments that
 * may be computed early?  And may the rest be computed above?  So a call must stand
 * under nothing that decides whether it is made, as CASE and AND do.
 */
static bool
is_sure(Node *node)
{
	if (function_is_call(node))
		return !contain_volatile_functions((Node *) ((FuncExpr *) node)->args);

	switch (nodeTag(node))
	{
		case T_FuncExpr:
			return are_sure(((FuncExpr *) node)->args);
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
			return are_sure(((OpExpr *) node)->args);
		case T_ScalarArrayOpExpr:
			return are_sure(((ScalarArrayOpExpr *) node)->args);
		case T_MinMaxExpr:
			return are_sure(((MinMaxExpr *) node)->args);
		case T_BoolExpr:
			if (((BoolExpr *) node)->boolop == NOT_EXPR)
				return are_sure(((BoolExpr *) node)->args);
			break;
		case T_RowExpr:
			return are_sure(((RowExpr *) node)->args);
		case T_ArrayExpr:
			return are_sure(((ArrayExpr *) node)->elements);
		case T_RelabelType:
			return is_sure((Node *) ((RelabelType *) node)->arg);
		case T_CoerceViaIO:
			return is_sure((Node *) ((CoerceViaIO *) node)->arg);
		case T_CoerceToDomain:
			return is_sure((Node *) ((CoerceToDomain *) node)->arg);
		case T_FieldSelect:
			return is_sure((Node *) ((FieldSelect *) node)->arg);
		case T_NullTest:
			return is_sure((Node *) ((NullTest *) node)->arg);
		case T_BooleanTest:
			return is_sure((Node *) ((BooleanTest *) node)->arg);
		case T_SubscriptingRef:
			return is_sure_subscript((SubscriptingRef *) node);
		default:
			break;
	}
	return !expression_has_call(node) && !is_immovable(node, NULL);
}

/* Of null nothing is taken, and then the subscripts are not computed. */
static bool
is_sure_subscript(SubscriptingRef * ref)
{
	return ref->refassgnexpr == NULL && is_sure((Node *) ref->refexpr) &&
		!expression_has_call((Node *) ref->refupperindexpr) &&
		!expression_has_call((Node *) ref->reflowerindexpr) &&
		!is_immovable((Node *) ref->refupperindexpr, NULL) &&
		!is_immovable((Node *) ref->reflowerindexpr, NULL);
}

static bool
are_sure(List *nodes)
{
	ListCell   *cell;

	foreach(cell, nodes)
	{
		if (!is_sure(lfirst(cell)))
			return false;
	}
	return true;
}

/*
 * Has an expression a part that cannot be computed above its node?  Only what is listed
 * here can.
 */
static bool
is_immovable(Node *node, void *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Var:
		case T_Const:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_FieldSelect:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_CoerceToDomain:
		case T_CaseExpr:
		case T_CaseTestExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_SQLValueFunction:
		case T_NextValueExpr:
		case T_RowExpr:
		case T_ArrayExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_SubscriptingRef:
		case T_List:
			return expression_tree_walker(node, is_immovable, context);
		case T_Param:
			return ((Param *) node)->paramkind != PARAM_EXTERN;
		default:
			return true;
	}
}

/*
 * Is a call anywhere in an expression, or in a list of them?
 */
bool
expression_has_call(Node *node)
{
	return has_call_walker(node, NULL);
}

static bool
has_call_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return function_is_call(node) || expression_tree_walker(node, has_call_walker, context);
}

/*
 * Does an expression change settings?  Then the call of the next row may read what this
 * row has set, such as "doubletick.server", so it cannot be made ahead.
 */
bool
expression_changes_settings(Node *node)
{
	return has_set_config_walker(node, NULL);
}

static bool
has_set_config_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return (IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid == F_SET_CONFIG) ||
		expression_tree_walker(node, has_set_config_walker, context);
}

/*
 * The calls in an expression, of which none is in the arguments of another one.
 */
int
expression_count_calls(Node *node)
{
	int			ncalls = 0;

	(void) count_calls_walker(node, &ncalls);
	return ncalls;
}

static bool
count_calls_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (function_is_call(node))
	{
		(*(int *) context)++;
		return false;
	}
	return expression_tree_walker(node, count_calls_walker, context);
}

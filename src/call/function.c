/*-------------------------------------------------------------------------
 *
 * call/function.c
 *		Which function calls in a plan are calls of DoubleTick.
 *
 * The planner tells us of a function by its support function, the first time before
 * the statement starts that loaded the library.  The functions of a session whose
 * statements call none are never looked at.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call/function.h"
#include "call/remove.h"
#include "fmgr.h"
#include "nodes/pg_list.h"
#include "nodes/supportnodes.h"
#include "utils/memutils.h"

/* Functions with our support function that this session has planned, by OID. */
static List *planned = NIL;

static bool is_direct(Oid function, bool *raises);

PG_FUNCTION_INFO_V1(dt_call_support);

/*
 * dt_call_support(internal) returns internal
 *
 * The support function of the functions that call DoubleTick.  It simplifies nothing:
 * it only notes that a statement calls one of them.
 */
Datum
dt_call_support(PG_FUNCTION_ARGS)
{
	Node	   *request = (Node *) PG_GETARG_POINTER(0);

	if (IsA(request, SupportRequestSimplify))
	{
		MemoryContext caller = MemoryContextSwitchTo(TopMemoryContext);

		planned = list_append_unique_oid(planned, ((SupportRequestSimplify *) request)->fcall->funcid);
		MemoryContextSwitchTo(caller);
	}
	PG_RETURN_POINTER(NULL);
}

/*
 * Has this session planned a statement that calls DoubleTick?  Called for every
 * statement that starts.
 */
bool
function_is_any_planned(void)
{
	return planned != NIL;
}

/*
 * Is this a call of DoubleTick, and nothing in between?
 */
bool
function_is_call(const Node *node)
{
	bool		raises;

	return node != NULL && IsA(node, FuncExpr) &&
		list_member_oid(planned, ((const FuncExpr *) node)->funcid) &&
		is_direct(((const FuncExpr *) node)->funcid, &raises);
}

/*
 * Does the function of a call raise its faults, or return them?
 */
bool
function_raises(Oid function)
{
	bool		raises = true;

	(void) is_direct(function, &raises);
	return raises;
}

/*
 * Does a call of the function enter our C function at once?  Not if it is SECURITY
 * DEFINER, has settings of its own, or another library watches it; and the OID may be
 * that of another function by now.
 */
static bool
is_direct(Oid function, bool *raises)
{
	FmgrInfo	info;

	fmgr_info(function, &info);
	*raises = info.fn_addr == dt_remove_tags_custom_fields;
	return *raises || info.fn_addr == dt_try_remove_tags_custom_fields;
}

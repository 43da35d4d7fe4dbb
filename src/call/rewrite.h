/*-------------------------------------------------------------------------
 *
 * call/rewrite.h
 *		Rewrites the plan of a statement so that many of its calls are in
 *		flight at once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_REWRITE_H
#define DOUBLETICK_CALL_REWRITE_H

#include "nodes/plannodes.h"

extern PlannedStmt *rewrite_statement(PlannedStmt *statement);

#endif							/* DOUBLETICK_CALL_REWRITE_H */

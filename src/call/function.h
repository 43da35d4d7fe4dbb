/*-------------------------------------------------------------------------
 *
 * call/function.h
 *		Which function calls in a plan are calls of DoubleTick.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_FUNCTION_H
#define DOUBLETICK_CALL_FUNCTION_H

#include "nodes/primnodes.h"

extern bool function_is_any_planned(void);
extern bool function_is_call(const Node *node);
extern bool function_raises(Oid function);

#endif							/* DOUBLETICK_CALL_FUNCTION_H */

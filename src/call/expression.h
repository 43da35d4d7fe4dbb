/*-------------------------------------------------------------------------
 *
 * call/expression.h
 *		Where an expression that may have calls can be computed.
 *
 *		expression_place()				where is an entry of a target list computed?
 *		expression_has_call()			has it a call?
 *		expression_changes_settings()	may no call beside it be made ahead?
 *		expression_count_calls()		how many calls has it?
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_EXPRESSION_H
#define DOUBLETICK_CALL_EXPRESSION_H

#include "nodes/primnodes.h"

/* Where an entry of a target list is computed. */
typedef enum ExpressionPlace
{
	PLACE_BELOW,				/* as before, and passed on */
	PLACE_AHEAD,				/* its calls ahead, the rest above */
	PLACE_ABOVE,				/* when the row is handed up, calls included */
	PLACE_UNKNOWN				/* the node must be left alone */
} ExpressionPlace;

extern ExpressionPlace expression_place(Node *expr);
extern bool expression_has_call(Node *node);
extern bool expression_changes_settings(Node *node);
extern int	expression_count_calls(Node *node);

#endif							/* DOUBLETICK_CALL_EXPRESSION_H */

/*-------------------------------------------------------------------------
 *
 * call/call.h
 *		One call of dt_remove_tags_custom_fields() or its dt_try_ sibling, in
 *		steps: many of them may be open at once.
 *
 *		call_make()		checks the arguments; sends nothing
 *		call_is_over()	has it a result?
 *		call_result()	the function's result, or its error
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_CALL_H
#define DOUBLETICK_CALL_CALL_H

#include "api/payload.h"
#include "fmgr.h"

typedef struct Call Call;

extern Call *call_make(MemoryContext context, FunctionCallInfo fcinfo, bool raise);
extern bool call_is_over(const Call *call);
extern bool call_is_leaving(const Call *call);
extern int	call_requests(const Call *call);
extern bool call_will_raise(const Call *call);
extern Jsonb *call_result(const Call *call);

#endif							/* DOUBLETICK_CALL_CALL_H */

/*-------------------------------------------------------------------------
 *
 * api/counters.h
 *		Counts, for each server, what was sent to it and what came of that.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_COUNTERS_H
#define DOUBLETICK_API_COUNTERS_H

#include "api/http.h"
#include "base/shared.h"

extern void counters_add_sent(Oid serverid, bool is_call);
extern void counters_add_answer(Oid serverid, const HttpReply *reply);
extern void counters_add_settled(Oid serverid, int64 done, int64 errored, int64 failed,
								 int64 cancelled);

#endif							/* DOUBLETICK_API_COUNTERS_H */

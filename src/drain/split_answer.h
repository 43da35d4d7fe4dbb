/*-------------------------------------------------------------------------
 *
 * drain/split_answer.h
 *		One row's part of the answer to a request that carried several.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_SPLIT_ANSWER_H
#define DOUBLETICK_DRAIN_SPLIT_ANSWER_H

#include "compat.h"
#include "drain/customer.h"

extern Jsonb *split_answer(Jsonb *answer, const DueRow *row);
extern char *answer_errors(Jsonb *answer);

#endif							/* DOUBLETICK_DRAIN_SPLIT_ANSWER_H */

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
extern bool answer_is_searchable(Jsonb *answer, int nnames);
extern bool answer_accounts_for(Jsonb *answer, const DueRow *row);
extern char *answer_problems(Jsonb *answer, const DueRow *row);

#endif							/* DOUBLETICK_DRAIN_SPLIT_ANSWER_H */

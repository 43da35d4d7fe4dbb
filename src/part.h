/*-------------------------------------------------------------------------
 *
 * part.h
 *		One row's part of an answer to several.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_PART_H
#define DOUBLETICK_PART_H

#include "due.h"

extern Jsonb *part_answer(Jsonb *answer, const DuePart *part);
extern char *part_errors(Jsonb *answer);

#endif							/* DOUBLETICK_PART_H */

/*-------------------------------------------------------------------------
 *
 * gains.h
 *		What this transaction's rows have gained so far.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_GAINS_H
#define DOUBLETICK_GAINS_H

#include "queue.h"

/* The number of a row that cannot be told from others. */
#define GAINS_ANY_ROW 1

extern bool gains_any(void);
extern void gains_add(const Requester *requester, const Removal *gained, uint32 row);
extern void gains_take(const Requester *requester, Removal *names, uint32 row);
extern void gains_owe(const Requester *requester, const Removal *names);
extern void gains_cover(const Requester *requester, Removal *lost, uint32 row);

#endif							/* DOUBLETICK_GAINS_H */

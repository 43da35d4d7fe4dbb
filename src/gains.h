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

extern void gains_remember(const Requester *requester, const Removal *gained, const Removal *kept);
extern void gains_cover(const Requester *requester, Removal *lost, bool owned);

#endif							/* DOUBLETICK_GAINS_H */

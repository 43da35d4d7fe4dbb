/*-------------------------------------------------------------------------
 *
 * trigger/gains.h
 *		What this transaction's rows have gained so far.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_TRIGGER_GAINS_H
#define DOUBLETICK_TRIGGER_GAINS_H

#include "queue/enqueue.h"

/* The number of a row that cannot be told from others. */
#define GAINS_ANY_ROW 1

extern bool gains_any(void);
extern void gains_record(const Requester *requester, const Removal *gained, uint32 row);
extern void gains_withdraw(const Requester *requester, Removal *names, uint32 row);
extern void gains_note_suppressed(const Requester *requester, const Removal *names);
extern void gains_withhold_lost(const Requester *requester, Removal *lost, uint32 row);

#endif							/* DOUBLETICK_TRIGGER_GAINS_H */

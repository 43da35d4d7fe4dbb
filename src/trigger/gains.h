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

/* Row number used when rows cannot be identified (no key, foreign tables). */
#define GAINS_ANY_ROW 1

extern bool gains_any(void);
extern void gains_record(const Requester *requester, Removal *gained, uint32 row);
extern void gains_renumber(const Requester *requester, Removal *names, uint32 from, uint32 to);
extern void gains_note_suppressed(const Requester *requester, Removal *names);
extern void gains_withhold_lost(const Requester *requester, Removal *lost, uint32 row);

#endif							/* DOUBLETICK_TRIGGER_GAINS_H */

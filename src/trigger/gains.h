/*-------------------------------------------------------------------------
 *
 * trigger/gains.h
 *		What this transaction's rows have gained so far.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_TRIGGER_GAINS_H
#define DOUBLETICK_TRIGGER_GAINS_H

#include "trigger/definition.h"

/* Row number used when rows cannot be identified (no key, foreign tables). */
#define GAINS_ANY_ROW 1

extern bool gains_any(void);
extern void gains_record(const Definition *definition, Removal *gained, uint32 row);
extern void gains_renumber(const Definition *definition, Removal *names, uint32 from, uint32 to);
extern void gains_adopt(const Definition *definition, Removal *names, uint32 row);
extern void gains_note_suppressed(const Definition *definition, Removal *names);
extern void gains_withhold_lost(const Definition *definition, Removal *lost, uint32 row);

#endif							/* DOUBLETICK_TRIGGER_GAINS_H */

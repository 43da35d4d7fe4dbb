/*-------------------------------------------------------------------------
 *
 * trigger/row.h
 *		The trigger at row level.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_TRIGGER_ROW_H
#define DOUBLETICK_TRIGGER_ROW_H

#include "trigger/definition.h"

extern void row_fired(Definition *definition, const TriggerData *data);

#endif							/* DOUBLETICK_TRIGGER_ROW_H */

/*-------------------------------------------------------------------------
 *
 * trigger/statement.h
 *		The trigger at statement level.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_TRIGGER_STATEMENT_H
#define DOUBLETICK_TRIGGER_STATEMENT_H

#include "trigger/definition.h"

extern void statement_fired(Definition *definition, const TriggerData *data);

#endif							/* DOUBLETICK_TRIGGER_STATEMENT_H */

/*-------------------------------------------------------------------------
 *
 * statement.h
 *		The trigger at statement level.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_STATEMENT_H
#define DOUBLETICK_STATEMENT_H

#include "definition.h"

extern void statement_fired(Definition *definition, const TriggerData *data);

#endif							/* DOUBLETICK_STATEMENT_H */

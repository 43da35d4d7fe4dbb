/*-------------------------------------------------------------------------
 *
 * call/cursor_row.h
 *		Where the row of a cursor is in its table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_CURSOR_ROW_H
#define DOUBLETICK_CALL_CURSOR_ROW_H

#include "nodes/execnodes.h"

extern ScanState *cursor_row_scan(PlanState *node);
extern ItemPointerData cursor_row_place(const ScanState *scan);

#endif							/* DOUBLETICK_CALL_CURSOR_ROW_H */

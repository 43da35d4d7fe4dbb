/*-------------------------------------------------------------------------
 *
 * call/cursor_row.c
 *		Where the row of a cursor is in its table, for UPDATE ... WHERE CURRENT OF.
 *
 * PostgreSQL's execCurrentOf() looks for a scan of the table in the cursor's plan, but
 * not below a node of ours.  From it, it takes ss_currentRelation, and the place in
 * ss_ScanTupleSlot: a call scan sets both.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relscan.h"
#include "call/cursor_row.h"
#include "executor/tuptable.h"

/*
 * Called when a call scan starts: the scan of a table whose rows are those of the node;
 * NULL if there is none.  The nodes are those through which execCurrentOf() finds one.
 */
ScanState *
cursor_row_scan(PlanState *node)
{
	if (node == NULL)
		return NULL;
	switch (nodeTag(node))
	{
		case T_SeqScanState:
		case T_SampleScanState:
		case T_IndexScanState:
		case T_IndexOnlyScanState:
		case T_BitmapHeapScanState:
		case T_TidScanState:
		case T_TidRangeScanState:
			return (ScanState *) node;
		case T_ResultState:
		case T_LimitState:
			return cursor_row_scan(outerPlanState(node));
		case T_SubqueryScanState:
			return cursor_row_scan(((SubqueryScanState *) node)->subplan);
		default:
			return NULL;
	}
}

/*
 * Where the scan's row is.  The slot of an index-only scan does not know it.
 */
ItemPointerData
cursor_row_place(const ScanState *scan)
{
	if (IsA(scan, IndexOnlyScanState))
		return ((const IndexOnlyScanState *) scan)->ioss_ScanDesc->xs_heaptid;
	return scan->ss_ScanTupleSlot->tts_tid;
}

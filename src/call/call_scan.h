/*-------------------------------------------------------------------------
 *
 * call/call_scan.h
 *		The plan node that keeps the calls of many rows in flight.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CALL_CALL_SCAN_H
#define DOUBLETICK_CALL_CALL_SCAN_H

#include "nodes/execnodes.h"
#include "nodes/plannodes.h"

/*
 * What the nodes above a call scan want of it.  A number of rows is -1 when there is
 * no such bound.
 */
typedef struct Demand
{
	int64		sure;			/* so many rows are asked for, if there are */
	int64		bound;			/* and never more than these */
	bool		is_drained;		/* all rows are read before the first goes on */
	bool		is_one_to_one;	/* does each row become one of the
								 * statement's? */
} Demand;

extern CustomScan *call_scan_make(const Demand *demand, int ncalls);
extern void call_scan_note_run(EState *estate, uint64 count);

#endif							/* DOUBLETICK_CALL_CALL_SCAN_H */

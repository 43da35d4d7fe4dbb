/*-------------------------------------------------------------------------
 *
 * report.h
 *		What dt_status shows of a worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_REPORT_H
#define DOUBLETICK_REPORT_H

#include "drain.h"

extern void report_work(const char *state, const Drain *drain, Tally *told);
extern void report_error(void);

#endif							/* DOUBLETICK_REPORT_H */

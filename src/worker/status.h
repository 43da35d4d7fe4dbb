/*-------------------------------------------------------------------------
 *
 * worker/status.h
 *		What dt_status shows of a worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_WORKER_STATUS_H
#define DOUBLETICK_WORKER_STATUS_H

#include "drain/drain.h"

extern void status_report_work(const char *state, const Drain *drain);
extern void status_report_error(void);

#endif							/* DOUBLETICK_WORKER_STATUS_H */

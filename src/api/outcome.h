/*-------------------------------------------------------------------------
 *
 * api/outcome.h
 *		What has come of a transfer that has ended.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_OUTCOME_H
#define DOUBLETICK_API_OUTCOME_H

#include "api/transfer.h"

extern void outcome_read(HttpTransfer *transfer, CURLcode code);

#endif							/* DOUBLETICK_API_OUTCOME_H */

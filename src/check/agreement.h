/*-------------------------------------------------------------------------
 *
 * check/agreement.h
 *		Do the servers of one account agree on its limit?
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CHECK_AGREEMENT_H
#define DOUBLETICK_CHECK_AGREEMENT_H

#include "base/fault.h"
#include "nodes/pg_list.h"

extern Fault *agreement_check(List **servers, const char *server, Oid role);

#endif							/* DOUBLETICK_CHECK_AGREEMENT_H */

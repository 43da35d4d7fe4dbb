/*-------------------------------------------------------------------------
 *
 * check/connection.h
 *		Can a server be connected to?
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CHECK_CONNECTION_H
#define DOUBLETICK_CHECK_CONNECTION_H

#include "base/fault.h"

extern Fault *connection_check(const char *server, Oid role);

#endif							/* DOUBLETICK_CHECK_CONNECTION_H */

/*-------------------------------------------------------------------------
 *
 * base/extension.h
 *		The extension as this database has it: its schema and its version.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_EXTENSION_H
#define DOUBLETICK_BASE_EXTENSION_H

#include "base/fault.h"

extern Oid	extension_schema(void);
extern void extension_check_version(void);
extern Fault *extension_version_fault(void);

#endif							/* DOUBLETICK_BASE_EXTENSION_H */

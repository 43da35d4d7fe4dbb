/*-------------------------------------------------------------------------
 *
 * base/fault_point.h
 *		Places where a test can have the process killed, an error raised, or an
 *		allocation fail.
 *
 * Only a build with TESTING=1, which the tests use, has them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_FAULT_POINT_H
#define DOUBLETICK_BASE_FAULT_POINT_H

#ifdef DOUBLETICK_TESTING
extern void fault_point_init(void);
extern void fault_point(const char *name);
#define FAULT_POINT(name) fault_point(name)
extern bool fault_allocation(void);
#define FAULT_ALLOCATION() fault_allocation()
extern MemoryContext __wrap_AllocSetContextCreateInternal(MemoryContext parent,
														  const char *name, Size least,
														  Size first, Size largest);
extern MemoryContext __real_AllocSetContextCreateInternal(MemoryContext parent,
														  const char *name, Size least,
														  Size first, Size largest);
#else
#define fault_point_init() ((void) 0)
#define FAULT_POINT(name) ((void) 0)
#define FAULT_ALLOCATION() false
#endif

#endif							/* DOUBLETICK_BASE_FAULT_POINT_H */

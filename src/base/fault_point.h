/*-------------------------------------------------------------------------
 *
 * base/fault_point.h
 *		Places where a test can have the process killed, or an error raised.
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
#else
#define fault_point_init() ((void) 0)
#define FAULT_POINT(name) ((void) 0)
#endif

#endif							/* DOUBLETICK_BASE_FAULT_POINT_H */

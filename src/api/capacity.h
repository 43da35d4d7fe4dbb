/*-------------------------------------------------------------------------
 *
 * api/capacity.h
 *		How many connections the process may have open.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_CAPACITY_H
#define DOUBLETICK_API_CAPACITY_H

extern int	capacity_now(void);
extern void capacity_reduce(int nopen);
extern bool capacity_restore(void);

#endif							/* DOUBLETICK_API_CAPACITY_H */

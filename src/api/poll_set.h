/*-------------------------------------------------------------------------
 *
 * api/poll_set.h
 *		The sockets that are waited for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_POLL_SET_H
#define DOUBLETICK_API_POLL_SET_H

extern void poll_set_watch(int fd, short events);
extern void poll_set_clear(void);
extern void poll_set_wait(int timeout);
extern bool poll_set_next(int *fd, short *events);

#endif							/* DOUBLETICK_API_POLL_SET_H */

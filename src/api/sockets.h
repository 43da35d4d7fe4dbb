/*-------------------------------------------------------------------------
 *
 * api/sockets.h
 *		The sockets of connections, as PostgreSQL wants them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_SOCKETS_H
#define DOUBLETICK_API_SOCKETS_H

extern int	sockets_open(int family, int type, int protocol, bool *no_descriptor,
						 bool *no_memory);
extern int	sockets_close(int fd);
extern void sockets_forget_closed(void);
extern int	sockets_count(void);
extern bool sockets_use(int own_port, bool with_input);

#endif							/* DOUBLETICK_API_SOCKETS_H */

/*-------------------------------------------------------------------------
 *
 * api/sockets.c
 *		The sockets of connections, as PostgreSQL wants them.
 *
 * PostgreSQL counts them among the file descriptors of the process, and programs
 * that COPY starts do not inherit them.  http.c calls this from libcurl's callbacks:
 * nothing here may raise an error or use palloc().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/sockets.h"
#include "lib/ilist.h"
#include "storage/fd.h"

/* A socket of a connection, malloc'd. */
typedef struct HttpSocket
{
	dlist_node	node;			/* in "sockets" */
	int			fd;
	ino_t		inode;			/* tells whether "fd" is still this socket */
	int			own_port;		/* 0: not connected yet */
	bool		used;			/* has it had a request? */
} HttpSocket;

static dlist_head sockets = DLIST_STATIC_INIT(sockets);
static int	nsockets = 0;

static ino_t inode_of(int fd);
static void forget_socket(HttpSocket *sock);
static int	own_port_of(int fd);
static bool has_input(int fd);

/*
 * Opens a socket for libcurl; -1 when there is none, and then why, if that is a lack
 * of descriptors or of memory.
 */
int
sockets_open(int family, int type, int protocol, bool *no_descriptor, bool *no_memory)
{
	HttpSocket *sock;

	sockets_forget_closed();
	*no_descriptor = !AcquireExternalFD();
	if (*no_descriptor)
		return -1;
	sock = calloc(1, sizeof(HttpSocket));
	if (sock == NULL)
		*no_memory = true;
	else
		sock->fd = socket(family, type, protocol);
	if (sock == NULL || sock->fd < 0)
	{
		free(sock);
		ReleaseExternalFD();
		return -1;
	}
	(void) fcntl(sock->fd, F_SETFD, FD_CLOEXEC);
	sock->inode = inode_of(sock->fd);
	dlist_push_head(&sockets, &sock->node);
	nsockets++;
	return sock->fd;
}

/*
 * Closes a socket for libcurl, with the result of close().
 */
int
sockets_close(int fd)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &sockets)
	{
		HttpSocket *sock = dlist_container(HttpSocket, node, iter.cur);

		if (sock->fd == fd)
		{
			forget_socket(sock);
			break;
		}
	}
	return close(fd);
}

/*
 * Forgets sockets that were closed otherwise.  Before 8.1, libcurl itself closes one that
 * is not connected yet, for instance when time is up.
 */
void
sockets_forget_closed(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &sockets)
	{
		HttpSocket *sock = dlist_container(HttpSocket, node, iter.cur);

		if (!sock->used && inode_of(sock->fd) != sock->inode)
			forget_socket(sock);
	}
}

/* Of whatever has this descriptor now; 0 if nothing has. */
static ino_t
inode_of(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 ? status.st_ino : 0;
}

static void
forget_socket(HttpSocket *sock)
{
	dlist_delete(&sock->node);
	free(sock);
	nsockets--;
	ReleaseExternalFD();
}

/*
 * How many are open.
 */
int
sockets_count(void)
{
	return nsockets;
}

/*
 * Notes that the connection with this port of ours gets a request.  False when it has
 * had one before and something can be read from it now, unless "with_input": libcurl
 * then is to use another connection.
 */
bool
sockets_use(int own_port, bool with_input)
{
	dlist_iter	iter;

	dlist_foreach(iter, &sockets)
	{
		HttpSocket *sock = dlist_container(HttpSocket, node, iter.cur);

		if (sock->own_port == 0)
			sock->own_port = own_port_of(sock->fd);
		if (sock->own_port != own_port)
			continue;
		if (sock->used && !with_input && has_input(sock->fd))
			return false;
		sock->used = true;
	}
	return true;
}

/* The port of this side; libcurl tells a connection by it. */
static int
own_port_of(int fd)
{
	struct sockaddr_storage address = {0};
	socklen_t	length = sizeof(address);

	if (getsockname(fd, (struct sockaddr *) &address, &length) != 0)
		return 0;
	return ntohs(address.ss_family == AF_INET6 ?
				 ((struct sockaddr_in6 *) &address)->sin6_port :
				 ((struct sockaddr_in *) &address)->sin_port);
}

/* Can something be read: bytes, the end of the connection, or an error? */
static bool
has_input(int fd)
{
	char		byte;

	return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 ||
		(errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

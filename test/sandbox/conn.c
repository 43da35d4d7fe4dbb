/*-------------------------------------------------------------------------
 *
 * conn.c
 *		Bytes in and out of one connection, plain or TLS, and the ways to end it.
 *
 * All calls block.  The end of the stream and an error are the same thing to
 * every caller: the peer is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* macOS has no such flag, and reports the peer's FIN as POLLHUP. */
#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

/* A request's head, and room behind it for a body to pass through. */
#define IN_SIZE			(MAX_HEAD + 16 * 1024)

/* How long to wait for a client to see an answer to what it is still sending. */
#define LINGER_MS		1000

static void note_arrival(Conn *conn);
static void discard_input(int fd, int ms);
static int64_t now_ms(void);

Conn *
conn_new(int fd, const Listener *listener, uint64_t id)
{
	Conn	   *conn = checked(calloc(1, sizeof(Conn)));
	int			on = 1;

	conn->fd = fd;
	conn->listener = listener;
	conn->id = id;
	conn->in = checked(malloc(IN_SIZE));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return conn;
}

/* Does the TLS handshake, where there is TLS. */
bool
conn_handshake(Conn *conn)
{
	if (conn->listener->tls == NULL)
		return true;
	conn->tls = checked(SSL_new(conn->listener->tls));
	return SSL_set_fd(conn->tls, conn->fd) == 1 && SSL_accept(conn->tls) == 1;
}

/* Waits for bytes and returns how many came; 0 when there will be no more. */
size_t
conn_recv(Conn *conn, void *data, size_t len)
{
	ssize_t		n;

	note_arrival(conn);
	if (conn->tls != NULL)
		n = SSL_read(conn->tls, data, len > INT_MAX ? INT_MAX : (int) len);
	else
	{
		do
			n = recv(conn->fd, data, len, 0);
		while (n < 0 && errno == EINTR);
	}
	return n > 0 ? (size_t) n : 0;
}

/*
 * Waits for bytes and notes when they arrived.  Where the kernel can say, it is
 * asked: on a busy machine some time may pass before this thread reads them, and
 * a test of the pace needs to know when a request was sent.  What OpenSSL has
 * read already counts as arriving now.
 */
static void
note_arrival(Conn *conn)
{
	char		byte;
	char		control[CMSG_SPACE(sizeof(struct timespec))];
	struct iovec data = {.iov_base = &byte,.iov_len = 1};
	struct msghdr message = {
		.msg_iov = &data,.msg_iovlen = 1,
		.msg_control = control,.msg_controllen = sizeof(control)
	};
	struct timespec when;

	if (conn->tls != NULL && SSL_has_pending(conn->tls))
		message.msg_controllen = 0;
	else
	{
		while (recvmsg(conn->fd, &message, MSG_PEEK) < 0 && errno == EINTR)
			continue;
	}
	clock_gettime(CLOCK_REALTIME, &when);
#ifdef SCM_TIMESTAMPNS
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
		 header = CMSG_NXTHDR(&message, header))
	{
		if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_TIMESTAMPNS)
			memcpy(&when, CMSG_DATA(header), sizeof(when));
	}
#endif
	conn->arrived = (double) when.tv_sec + (double) when.tv_nsec / 1e9;
}

/*
 * Adds at least one byte to the input buffer, first making room above the
 * floor.  False: the peer is gone, or the buffer is full.
 */
bool
conn_fill(Conn *conn)
{
	size_t		n;

	if (conn->start == conn->end)
		conn->start = conn->end = conn->floor;
	else if (conn->end == IN_SIZE && conn->start > conn->floor)
	{
		memmove(conn->in + conn->floor, conn->in + conn->start,
				conn->end - conn->start);
		conn->end -= conn->start - conn->floor;
		conn->start = conn->floor;
	}
	if (conn->end == IN_SIZE)
		return false;
	n = conn_recv(conn, conn->in + conn->end, IN_SIZE - conn->end);
	conn->end += n;
	return n > 0;
}

/* Sends it all; false when the peer is gone. */
bool
conn_send(Conn *conn, const void *data, size_t len)
{
	const char *at = data;

	while (len > 0)
	{
		ssize_t		n;

		if (conn->tls != NULL)
			n = SSL_write(conn->tls, at, len > INT_MAX ? INT_MAX : (int) len);
		else
			n = send(conn->fd, at, len, 0);
		if (n <= 0)
		{
			if (conn->tls == NULL && n < 0 && errno == EINTR)
				continue;
			return false;
		}
		at += n;
		len -= (size_t) n;
	}
	return true;
}

/*
 * Waits "ms" milliseconds (-1: for ever), but no longer than the peer stays.
 * Does not touch what the peer may have sent meanwhile.
 */
bool
peer_left(Conn *conn, int ms)
{
	struct pollfd pfd = {.fd = conn->fd,.events = POLLRDHUP};
	int64_t		until = now_ms() + ms;

	for (;;)
	{
		int			n = poll(&pfd, 1, ms);

		if (n >= 0)
			return n > 0;
		if (errno != EINTR)
			return true;
		if (ms >= 0)
			ms = until > now_ms() ? (int) (until - now_ms()) : 0;
	}
}

/*
 * Waits until the descriptor "fd" is readable: true; or until the peer is gone:
 * false.
 */
bool
peer_waits(Conn *conn, int fd)
{
	struct pollfd pfds[] = {
		{.fd = conn->fd,.events = POLLRDHUP},
		{.fd = fd,.events = POLLIN}
	};

	while (poll(pfds, 2, -1) < 0)
	{
		if (errno != EINTR)
			return false;
	}
	return pfds[0].revents == 0;
}

/* Ends the connection in the way told and frees it. */
void
conn_end(Conn *conn, After how)
{
	if (how == AFTER_RESET)
	{
		struct linger hard = {.l_onoff = 1,.l_linger = 0};

		setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	}
	else
	{
		/* Unread input would turn the FIN into an RST. */
		if (conn->tls != NULL && SSL_is_init_finished(conn->tls))
			SSL_shutdown(conn->tls);
		shutdown(conn->fd, SHUT_WR);
		discard_input(conn->fd, how == AFTER_LINGER ? LINGER_MS : 0);
	}
	SSL_free(conn->tls);
	close(conn->fd);
	free(conn->in);
	buffer_free(&conn->body);
	buffer_free(&conn->out);
	free(conn);
}

/* Reads and forgets what arrives within "ms", or what is there already. */
static void
discard_input(int fd, int ms)
{
	int64_t		until = now_ms() + ms;
	char		waste[16 * 1024];

	for (;;)
	{
		struct pollfd pfd = {.fd = fd,.events = POLLIN};
		int64_t		left = until - now_ms();

		if (left < 0 || poll(&pfd, 1, (int) left) <= 0 ||
			recv(fd, waste, sizeof(waste), 0) <= 0)
			break;
	}
}

static int64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

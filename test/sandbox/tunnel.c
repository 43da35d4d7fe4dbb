/*-------------------------------------------------------------------------
 *
 * tunnel.c
 *		CONNECT: enough of a forward proxy to test a client's proxy setting.
 *
 * It leads to this machine only.  The two directions are independent, and
 * neither may block the other, so this is the one place that does not block.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes on their way from one end of the tunnel to the other. */
typedef struct Direction
{
	int			from;
	int			to;
	size_t		start;
	size_t		end;
	bool		ended;			/* "from" has said all it will say */
	bool		closed;			/* and "to" has been told */
	char		bytes[16 * 1024];
} Direction;

static int	port_on_loopback(Slice target);
static int	connect_to(int port);
static bool send_all(int fd, const char *data, size_t len);
static void pump(Direction *there, Direction *back);
static bool advance(Direction *way, bool may_read, bool may_write);
static void set_nonblocking(int fd, bool on);

/* Serves one CONNECT request.  The connection ends with the tunnel. */
After
tunnel(Conn *conn, const Request *req)
{
	static const char established[] = "HTTP/1.1 200 Connection Established\r\n\r\n";
	int			port = port_on_loopback(req->path);
	int			fd;

	stats_connect();
	if (port == 0)
		return refuse(conn, req, 403, AFTER_CLOSE);
	fd = connect_to(port);
	if (fd < 0)
		return refuse(conn, req, 502, AFTER_CLOSE);

	/* What came right behind the request already is for the other end. */
	if (conn_send(conn, established, sizeof(established) - 1) &&
		send_all(fd, conn->in + conn->start, conn->end - conn->start))
	{
		Direction	there = {.from = conn->fd,.to = fd};
		Direction	back = {.from = fd,.to = conn->fd};

		set_nonblocking(fd, true);
		set_nonblocking(conn->fd, true);
		pump(&there, &back);
		set_nonblocking(conn->fd, false);
	}
	close(fd);
	return AFTER_CLOSE;
}

/* The port of "host:port", or 0 when the host is another machine. */
static int
port_on_loopback(Slice target)
{
	static const char *const hosts[] = {"localhost:", "127.0.0.1:"};
	size_t		h;

	for (h = 0; h < 2; h++)
	{
		size_t		len = strlen(hosts[h]);
		int			port = 0;
		size_t		i;

		if (target.len <= len || target.len > len + 5 ||
			memcmp(target.at, hosts[h], len) != 0)
			continue;
		for (i = len; i < target.len; i++)
		{
			if (target.at[i] < '0' || target.at[i] > '9')
				return 0;
			port = port * 10 + (target.at[i] - '0');
		}
		return port <= 65535 ? port : 0;
	}
	return 0;
}

static int
connect_to(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,.sin_port = htons((uint16_t) port)};
	int			fd = socket(AF_INET, SOCK_STREAM, 0);
	int			on = 1;

	if (fd < 0)
		return -1;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *) &address, sizeof(address)) != 0)
	{
		close(fd);
		return -1;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return fd;
}

static bool
send_all(int fd, const char *data, size_t len)
{
	while (len > 0)
	{
		ssize_t		n = send(fd, data, len, 0);

		if (n < 0 && errno != EINTR)
			return false;
		if (n > 0)
		{
			data += n;
			len -= (size_t) n;
		}
	}
	return true;
}

/*
 * Carries bytes both ways until both have ended, or an end is broken.  An end
 * that nothing is wanted of is left out of the poll: its hang-up would be
 * reported again and again.
 */
static void
pump(Direction *there, Direction *back)
{
	Direction  *ways[2] = {there, back};
	bool		alive = true;

	while (alive && !(there->closed && back->closed))
	{
		struct pollfd pfds[2] = {{.fd = there->from}, {.fd = back->from}};
		int			i;

		for (i = 0; i < 2; i++)
		{
			if (ways[i]->end > ways[i]->start)
				pfds[1 - i].events |= POLLOUT;
			else if (!ways[i]->ended)
				pfds[i].events |= POLLIN;
		}
		for (i = 0; i < 2; i++)
		{
			if (pfds[i].events == 0)
				pfds[i].fd = -1;
		}
		if (poll(pfds, 2, -1) < 0 && errno != EINTR)
			return;
		for (i = 0; i < 2 && alive; i++)
			alive = advance(ways[i], pfds[i].revents != 0, pfds[1 - i].revents != 0);
	}
}

/* Moves bytes of one direction; false when an end is broken. */
static bool
advance(Direction *way, bool may_read, bool may_write)
{
	ssize_t		n;

	if (way->end > way->start)
	{
		if (!may_write)
			return true;
		n = send(way->to, way->bytes + way->start, way->end - way->start, 0);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		way->start += (size_t) n;
	}
	else if (!way->ended && may_read)
	{
		n = recv(way->from, way->bytes, sizeof(way->bytes), 0);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		way->start = 0;
		way->end = (size_t) n;
		way->ended = n == 0;
	}
	if (way->ended && !way->closed)
	{
		shutdown(way->to, SHUT_WR);
		way->closed = true;
	}
	return true;
}

static void
set_nonblocking(int fd, bool on)
{
	int			flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

/*-------------------------------------------------------------------------
 *
 * server.c
 *		An HTTP server whose answers are random, for test/fuzz/answers.
 *
 * One process and one thread, so that it costs little beside the session that it
 * tries.  It reads requests as the extension sends them, and nothing else: a phone
 * and a tag decide, with the seed, each byte of the answer.  "GET /" gives the number of
 * answers that were sent.
 *
 *	 server SEED		prints its port and its process id, and ends when its standard input does
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNS 4096
#define MAX_EVENTS 64

/* How long AFTER_IDLE_CLOSE waits, in ms. */
#define IDLE_CLOSE 3

typedef struct Conn
{
	bool		is_open;
	Buffer		in;
	Answer		answer;
	size_t		sent;
	int			piece;			/* the one that is being sent */
	bool		is_sending;
	int64_t		close_at;		/* 0: never */
} Conn;

static Conn conns[MAX_CONNS];	/* by file descriptor */
static int	epoll_fd;
static uint64_t seed;
static unsigned long nanswers;
static unsigned long nconnections;
static int	nclosing;			/* how many have close_at */
static int	last_fd;			/* the largest that a connection has had */

static void serve(int listener);
static int	listen_on_loopback(int *port);
static void accept_all(int listener);
static void watch(int fd, int operation, unsigned events);
static void read_requests(int fd);
static bool answer_request(int fd);
static void answer_with_count(Answer *answer);
static bool find_text(const char *text, const char *before, char *value, size_t length);
static void send_pieces(int fd);
static void finish_answer(int fd);
static void close_conn(int fd, bool reset);
static void close_idle(void);
static int64_t now_ms(void);
static void die(const char *what);

int
main(int argc, char **argv)
{
	int			port;
	int			listener;

	if (argc != 2)
	{
		fprintf(stderr, "usage: %s SEED\n", argv[0]);
		return 2;
	}
	seed = strtoull(argv[1], NULL, 10);
	signal(SIGPIPE, SIG_IGN);
	listener = listen_on_loopback(&port);
	printf("%d %d\n", port, (int) getpid());
	fflush(stdout);
	serve(listener);
	return 0;
}

static void
serve(int listener)
{
	struct epoll_event events[MAX_EVENTS];

	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		die("epoll_create1");
	watch(listener, EPOLL_CTL_ADD, EPOLLIN);
	watch(STDIN_FILENO, EPOLL_CTL_ADD, EPOLLIN);
	for (;;)
	{
		int			n = epoll_wait(epoll_fd, events, MAX_EVENTS, nclosing > 0 ? 1 : -1);

		for (int i = 0; i < n; i++)
		{
			int			fd = events[i].data.fd;

			if (fd == STDIN_FILENO)
				return;
			if (fd == listener)
				accept_all(listener);
			else if (conns[fd].is_sending)
				send_pieces(fd);
			else if (conns[fd].is_open)
				read_requests(fd);
		}
		close_idle();
	}
}

static int
listen_on_loopback(int *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t	length = sizeof(address);
	int			fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(fd, SOMAXCONN) != 0 ||
		getsockname(fd, (struct sockaddr *) &address, &length) != 0)
		die("listen");
	*port = ntohs(address.sin_port);
	return fd;
}

static void
accept_all(int listener)
{
	int			one = 1;
	int			fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
	{
		Conn	   *conn;

		if (fd >= MAX_CONNS)
		{
			close(fd);
			continue;
		}
		/* Pieces are to arrive as they are written. */
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		conn = &conns[fd];
		last_fd = fd > last_fd ? fd : last_fd;
		conn->is_open = true;
		conn->in.length = 0;
		conn->is_sending = false;
		conn->close_at = 0;
		nconnections++;
		watch(fd, EPOLL_CTL_ADD, EPOLLIN);
	}
}

static void
watch(int fd, int operation, unsigned events)
{
	struct epoll_event event = {.events = events,.data.fd = fd};

	if (epoll_ctl(epoll_fd, operation, fd, &event) != 0)
		die("epoll_ctl");
}

static void
read_requests(int fd)
{
	Conn	   *conn = &conns[fd];
	char		bytes[65536];
	ssize_t		n = recv(fd, bytes, sizeof(bytes), 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
	{
		close_conn(fd, false);
		return;
	}
	if (conn->close_at != 0)
	{
		conn->close_at = 0;
		nclosing--;
	}
	buffer_add(&conn->in, bytes, n);
	if (answer_request(fd))
		send_pieces(fd);
}

/* If a whole request is there, makes the answer to it. */
static bool
answer_request(int fd)
{
	Conn	   *conn = &conns[fd];
	Answer	   *answer = &conn->answer;
	char		phone[PHONE_LENGTH + 1];
	char		tag[TAG_LENGTH + 1];
	char	   *end;
	char	   *length;
	size_t		total;

	buffer_add(&conn->in, "", 1);	/* for strstr() */
	conn->in.length--;
	end = strstr(conn->in.data, "\r\n\r\n");
	if (end == NULL)
		return false;
	length = strstr(conn->in.data, "Content-Length: ");
	total = end + 4 - conn->in.data;
	if (length != NULL && length < end)
		total += strtoul(length + strlen("Content-Length: "), NULL, 10);
	if (conn->in.length < total)
		return false;

	answer->bytes.length = 0;
	if (strncmp(conn->in.data, "GET ", 4) == 0)
		answer_with_count(answer);
	else if (find_text(end, "\"phone\": \"", phone, PHONE_LENGTH) &&
			 find_text(end, "\"tags\": [\"", tag, TAG_LENGTH))
	{
		make_answer(answer, seed, phone, tag);
		nanswers++;
	}
	else
	{
		fprintf(stderr, "not a request that test/fuzz/answers makes:\n%s\n", conn->in.data);
		exit(1);
	}
	conn->in.length = 0;		/* requests are not pipelined */
	conn->sent = 0;
	conn->piece = 0;
	conn->is_sending = true;
	return true;
}

static void
answer_with_count(Answer *answer)
{
	buffer_add_format(&answer->bytes, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%lu %lu\n",
					  nanswers, nconnections);
	answer->npieces = 1;
	answer->ends[0] = answer->bytes.length;
	answer->after = AFTER_CLOSE;
}

/* Copies the value of fixed length that follows a text. */
static bool
find_text(const char *text, const char *before, char *value, size_t length)
{
	const char *found = strstr(text, before);

	if (found == NULL || strlen(found) < strlen(before) + length)
		return false;
	memcpy(value, found + strlen(before), length);
	value[length] = '\0';
	return true;
}

static void
send_pieces(int fd)
{
	Conn	   *conn = &conns[fd];
	Answer	   *answer = &conn->answer;

	while (conn->piece < answer->npieces)
	{
		size_t		end = answer->ends[conn->piece];
		ssize_t		n = end > conn->sent ?
			send(fd, answer->bytes.data + conn->sent, end - conn->sent, MSG_NOSIGNAL) : 0;

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
		{
			watch(fd, EPOLL_CTL_MOD, EPOLLOUT);
			return;
		}
		if (n < 0)
		{
			close_conn(fd, false);
			return;
		}
		conn->sent += n;
		if (conn->sent >= end)
			conn->piece++;
	}
	finish_answer(fd);
}

static void
finish_answer(int fd)
{
	Conn	   *conn = &conns[fd];

	conn->is_sending = false;
	switch (conn->answer.after)
	{
		case AFTER_CLOSE:
			close_conn(fd, false);
			return;
		case AFTER_RESET:
			close_conn(fd, true);
			return;
		case AFTER_IDLE_CLOSE:
			conn->close_at = now_ms() + IDLE_CLOSE;
			nclosing++;
			break;
		case AFTER_KEEP:
			break;
	}
	watch(fd, EPOLL_CTL_MOD, EPOLLIN);
}

static void
close_conn(int fd, bool reset)
{
	Conn	   *conn = &conns[fd];
	struct linger linger = {.l_onoff = 1,.l_linger = 0};

	if (reset)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	if (conn->close_at != 0)
		nclosing--;
	conn->is_open = false;
	conn->is_sending = false;
	conn->close_at = 0;
	close(fd);
}

static void
close_idle(void)
{
	static int64_t closed_at = 0;
	int64_t		now;

	if (nclosing == 0)
		return;
	now = now_ms();
	if (now == closed_at)
		return;
	closed_at = now;
	for (int fd = 0; fd <= last_fd; fd++)
	{
		if (conns[fd].close_at != 0 && conns[fd].close_at <= now)
			close_conn(fd, false);
	}
}

static int64_t
now_ms(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * INT64_C(1000) + time.tv_nsec / 1000000;
}

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

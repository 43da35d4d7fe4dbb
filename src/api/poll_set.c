/*-------------------------------------------------------------------------
 *
 * api/poll_set.c
 *		The sockets that are waited for.
 *
 * It is poll(), in one call for all sockets: PostgreSQL's WaitEventSet cannot forget a
 * socket, and a process has few enough connections (capacity_now()).
 *
 * http.c calls poll_set_watch() from libcurl's callbacks, also while it goes through the
 * sockets that are ready: nothing in here may raise an error or use palloc().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <poll.h>

#include "api/allocation.h"
#include "api/poll_set.h"

#define FIRST_SIZE 16

static struct pollfd *polled = NULL;
static int	npolled = 0;
static int	size = 0;

/* The entries before this one are yet to be looked at by poll_set_next(). */
static int	next = 0;

static struct pollfd *entry_of(int fd);

/*
 * Has the set wait for these events of a socket, POLLIN or POLLOUT or both, and no longer
 * for others; 0: for none.  Without the memory for it, sets allocation_failed.
 */
void
poll_set_watch(int fd, short events)
{
	struct pollfd *entry = entry_of(fd);

	if (entry == NULL && events == 0)
		return;
	if (events == 0)
	{
		/* If the last entry has not been looked at, "entry" has not, either. */
		*entry = polled[--npolled];
		return;
	}
	if (entry == NULL)
	{
		if (npolled == size)
		{
			int			larger = size == 0 ? FIRST_SIZE : 2 * size;
			struct pollfd *grown = allocation_realloc(polled, larger * sizeof(struct pollfd));

			if (grown == NULL)
				return;
			polled = grown;
			size = larger;
		}
		entry = &polled[npolled++];
		entry->fd = fd;
	}
	entry->events = events;
	entry->revents = 0;
}

/*
 * Forgets all sockets.
 */
void
poll_set_clear(void)
{
	npolled = next = 0;
}

static struct pollfd *
entry_of(int fd)
{
	for (int i = 0; i < npolled; i++)
	{
		if (polled[i].fd == fd)
			return &polled[i];
	}
	return NULL;
}

/*
 * Waits until a socket is ready or a signal comes, at most "timeout" milliseconds.
 */
void
poll_set_wait(int timeout)
{
	next = poll(polled, npolled, timeout) > 0 ? npolled : 0;
}

/*
 * The next socket that the last wait has found ready, and for what; false when there is
 * no other.  The set may be changed in between.
 */
bool
poll_set_next(int *fd, short *events)
{
	while (next > 0)
	{
		struct pollfd *entry = &polled[--next];

		if (next >= npolled || entry->revents == 0)
			continue;
		*fd = entry->fd;
		*events = entry->revents;
		entry->revents = 0;
		return true;
	}
	return false;
}

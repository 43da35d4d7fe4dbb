/*-------------------------------------------------------------------------
 *
 * hold.c
 *		The answers that are held until a test releases them.
 *
 * A thread whose request falls under a rule with "hold" waits here, after the
 * request is in the journal and before a byte of its answer leaves.  It waits
 * on two descriptors: its connection, which says when the client goes away,
 * and a pipe of its own, to which a release writes.
 *
 * A Hold belongs to its thread, which frees it.  The list of those that are
 * not released yet is behind one lock.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct Hold
{
	Hold	   *next;			/* of those not released yet */
	char	   *phone;			/* without "+" */
	bool		released;		/* no longer in the list */
	bool		in_journal;		/* is to be counted? */
	int			pipe[2];		/* readable once it is released */
};

static bool hold_matches(const Hold *hold, const char *phone);
static void hold_let_go(Hold **place);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Hold *holds;

/*
 * Makes a hold for a request to this phone, which can be released from now on.
 * rule_take calls this under the lock of the rules: whoever deletes a rule
 * releases all requests that have been given this rule.
 */
Hold *
hold_new(const char *phone)
{
	Hold	   *hold = checked(calloc(1, sizeof(Hold)));

	hold->phone = checked(strdup(bare_phone(phone)));
	if (pipe(hold->pipe) != 0)
		die("could not make a pipe: %s", strerror(errno));
	pthread_mutex_lock(&lock);
	hold->next = holds;
	holds = hold;
	pthread_mutex_unlock(&lock);
	return hold;
}

/*
 * Waits until the hold is released, and frees it.  To be called when the
 * journal has the request: hold_count counts it from here on.  False: the
 * client went away meanwhile.
 */
bool
hold_wait(Hold *hold, Conn *conn)
{
	bool		stayed;
	Hold	  **place = &holds;

	pthread_mutex_lock(&lock);
	hold->in_journal = true;
	pthread_mutex_unlock(&lock);

	stayed = peer_waits(conn, hold->pipe[0]);

	pthread_mutex_lock(&lock);
	if (!hold->released)
	{
		while (*place != hold)
			place = &(*place)->next;
		hold_let_go(place);
	}
	pthread_mutex_unlock(&lock);
	close(hold->pipe[0]);
	close(hold->pipe[1]);
	free(hold->phone);
	free(hold);
	return stayed;
}

/* Releases what is held for a phone, or ANY_PHONE.  Returns how many. */
int
hold_release(const char *phone)
{
	Hold	  **place = &holds;
	int			n = 0;

	pthread_mutex_lock(&lock);
	while (*place != NULL)
	{
		if (hold_matches(*place, phone))
		{
			hold_let_go(place);
			n++;
		}
		else
			place = &(*place)->next;
	}
	pthread_mutex_unlock(&lock);
	return n;
}

/* How many requests are held for a phone, or ANY_PHONE. */
int
hold_count(const char *phone)
{
	const Hold *hold;
	int			n = 0;

	pthread_mutex_lock(&lock);
	for (hold = holds; hold != NULL; hold = hold->next)
	{
		if (hold->in_journal && hold_matches(hold, phone))
			n++;
	}
	pthread_mutex_unlock(&lock);
	return n;
}

static bool
hold_matches(const Hold *hold, const char *phone)
{
	return strcmp(phone, ANY_PHONE) == 0 || strcmp(hold->phone, bare_phone(phone)) == 0;
}

/* Takes a hold out of the list and wakes its thread; the caller has the lock. */
static void
hold_let_go(Hold **place)
{
	Hold	   *hold = *place;

	*place = hold->next;
	hold->released = true;
	if (write(hold->pipe[1], "x", 1) != 1)
		die("could not release a request: %s", strerror(errno));
}

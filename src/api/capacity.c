/*-------------------------------------------------------------------------
 *
 * api/capacity.c
 *		How many connections the process may have open.
 *
 * Each takes a file descriptor, of which PostgreSQL says how many there are.  Others may
 * take them meanwhile, so when there was none left for a connection, it is fewer for a
 * while.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/capacity.h"
#include "base/clock.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

/* Descriptors of latches and the like, which PostgreSQL counts as those of others. */
#define OTHER_DESCRIPTORS 5

/* For how long a lack of descriptors has us open fewer connections, in µs. */
#define LACK_TIME USECS_PER_SEC

/* The capacity after a lack; 0: there was none. */
static int	reduced = 0;
static int64 reduced_at;		/* by clock_now() */

/*
 * How many connections the process may have open at once, and so requests in flight.
 * PostgreSQL grants a third of its file descriptors to others (AcquireExternalFD()), and
 * takes some of these itself, in each process; we leave a quarter of the rest to name
 * resolution and to other extensions.
 */
int
capacity_now(void)
{
	if (reduced > 0)
		return reduced;
	return Max((max_safe_fds / 3 - OTHER_DESCRIPTORS) * 3 / 4, 1);
}

/*
 * Called when there was no descriptor for one more connection: there may be no more than
 * the "nopen" that are open.
 */
void
capacity_reduce(int nopen)
{
	reduced = Max(Min(capacity_now() - 1, nopen), 1);
	reduced_at = clock_now();
}

/*
 * Called before a request: forgets a lack of LACK_TIME ago.  True if the capacity has
 * changed.
 */
bool
capacity_restore(void)
{
	if (reduced == 0 || clock_now() - reduced_at < LACK_TIME)
		return false;
	reduced = 0;
	return true;
}

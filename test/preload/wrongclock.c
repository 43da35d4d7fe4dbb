/*-------------------------------------------------------------------------
 *
 * wrongclock.c
 *		A time of day that is wrong, for 097_clock.pl.
 *
 * Preloaded into the server, this adds to what PostgreSQL takes for the time of day as
 * many seconds as the file CLOCK_OFFSET says, a variable of the environment.  The test
 * writes the file anew to have the clock step.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

static long
read_offset(void)
{
	const char *path = getenv("CLOCK_OFFSET");
	FILE	   *file = path ? fopen(path, "r") : NULL;
	long		seconds = 0;

	if (file == NULL)
		return 0;
	if (fscanf(file, "%ld", &seconds) != 1)
		seconds = 0;
	fclose(file);
	return seconds;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	int			(*real) (struct timeval *, void *);
	int			result;

	*(void **) &real = dlsym(RTLD_NEXT, "gettimeofday");
	result = real(now, zone);
	now->tv_sec += read_offset();
	return result;
}

/*-------------------------------------------------------------------------
 *
 * getenv.c
 *		Tells which variables of the environment a process asks for, for
 *		018_environment.pl.
 *
 * Preloaded into the server, this writes a line to standard error (the server's
 * log) for each variable that is asked for, with the process id.  What libc itself
 * asks for, in its resolver for instance, does not come by here.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char *
tell_and_ask(const char *function, const char *name)
{
	char	   *(*real) (const char *);

	*(void **) &real = dlsym(RTLD_NEXT, function);
	fprintf(stderr, "getenv: %d asks for %s\n", (int) getpid(), name);
	return real(name);
}

char *
getenv(const char *name)
{
	return tell_and_ask("getenv", name);
}

char *
secure_getenv(const char *name)
{
	return tell_and_ask("secure_getenv", name);
}

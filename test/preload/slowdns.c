/*-------------------------------------------------------------------------
 *
 * slowdns.c
 *		A name server that does not answer, for 020_interrupts.pl.
 *
 * Preloaded into the server, this hangs the look-up of one name for a minute,
 * and tells on standard error (the server's log) whether the thread that looks
 * it up has PostgreSQL's signals blocked.  Other names are looked up as ever.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NAME "hanging.invalid"
#define SECONDS 60

int
getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
			struct addrinfo **result)
{
	static const int signals[] = {
		SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGCHLD, SIGURG
	};
	int			(*real) (const char *, const char *, const struct addrinfo *,
						 struct addrinfo **);
	sigset_t	mask;
	int			open = 0;

	*(void **) &real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (name == NULL || strcmp(name, NAME) != 0)
		return real(name, service, hints, result);

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		open += !sigismember(&mask, signals[i]);
	fprintf(stderr, "slowdns: looking up %s with %d signals open\n", name, open);

	/* A sleep that signals do not end, as a resolver's wait would not. */
	for (unsigned left = SECONDS; left > 0;)
		left = sleep(left);
	return EAI_AGAIN;
}

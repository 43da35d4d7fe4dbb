/*-------------------------------------------------------------------------
 *
 * slowdns.c
 *		A name server that misbehaves, for 020_interrupts.pl and 060_names.pl.
 *
 * Preloaded into the server, this answers for a few names of the domain "invalid",
 * which no real name server knows.  Other names are looked up as ever.
 *
 * The look-up of one name hangs for a minute.  It tells on standard error (the
 * server's log) whether the thread that looks it up has PostgreSQL's signals blocked.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HANGING "hanging.invalid"
#define SECONDS 60

#define MAX_ADDRESSES 40

typedef int (*LookUp) (const char *name, const char *service, const struct addrinfo *hints,
					   struct addrinfo **result);

/*
 * Names and their addresses, in order; "again": at the first look-up of a process there
 * is no such name, which libcurl from 8.16 on remembers for a while.
 */
static const struct
{
	const char *name;
	bool		again;
	const char *addresses[MAX_ADDRESSES];
}			names[] = {
	{"one.sandbox.invalid", false, {"127.0.0.1"}},
	{"second.sandbox.invalid", false, {"127.0.0.2", "127.0.0.1"}},
	{"dead.sandbox.invalid", false, {"127.0.0.2", "127.0.0.4", "127.0.0.5"}},
	{"silent.sandbox.invalid", false, {"127.0.0.3", "127.0.0.1"}},
	{"all-silent.sandbox.invalid", false, {"127.0.0.3"}},
	{"six.sandbox.invalid", false, {"::1"}},
	{"six-first.sandbox.invalid", false, {"::1", "127.0.0.1"}},
	{"again.sandbox.invalid", true, {"127.0.0.1"}}
};

static int	hang(void);
static int	answer(LookUp real, int n, const char *service, const struct addrinfo *hints,
				   struct addrinfo **result);

int
getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
			struct addrinfo **result)
{
	LookUp		real;

	*(void **) &real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (name == NULL)
		return real(name, service, hints, result);
	if (strcmp(name, HANGING) == 0)
		return hang();
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		if (strcmp(name, names[i].name) == 0)
			return answer(real, i, service, hints, result);
	}
	return real(name, service, hints, result);
}

static int
hang(void)
{
	static const int signals[] = {
		SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGCHLD, SIGURG
	};
	sigset_t	mask;
	int			open = 0;

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		open += !sigismember(&mask, signals[i]);
	fprintf(stderr, "slowdns: looking up %s with %d signals open\n", HANGING, open);

	/* A sleep that signals do not end, as a resolver's wait would not. */
	for (unsigned left = SECONDS; left > 0;)
		left = sleep(left);
	return EAI_AGAIN;
}

/* The addresses of the n-th name, as far as they are of the family that is asked for. */
static int
answer(LookUp real, int n, const char *service, const struct addrinfo *hints,
	   struct addrinfo **result)
{
	static bool asked[sizeof(names) / sizeof(names[0])];
	struct addrinfo **last = result;

	if (names[n].again && !asked[n])
	{
		asked[n] = true;
		return EAI_NONAME;
	}
	*result = NULL;
	for (int i = 0; i < MAX_ADDRESSES && names[n].addresses[i] != NULL; i++)
	{
		struct addrinfo numeric = {.ai_family = AF_UNSPEC,.ai_socktype = SOCK_STREAM};

		if (hints != NULL)
			numeric = *hints;
		numeric.ai_flags = AI_NUMERICHOST;
		if (real(names[n].addresses[i], service, &numeric, last) != 0)
			*last = NULL;
		while (*last != NULL)
			last = &(*last)->ai_next;
	}
	return *result == NULL ? EAI_NONAME : 0;
}

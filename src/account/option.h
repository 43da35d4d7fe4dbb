/*-------------------------------------------------------------------------
 *
 * account/option.h
 *		Options of servers and user mappings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_ACCOUNT_OPTION_H
#define DOUBLETICK_ACCOUNT_OPTION_H

#include "nodes/pg_list.h"

/* Longest key that is sent, in bytes: servers take 8 kB for all headers. */
#define OPTION_MAX_KEY 4096

/* Longest delay, in ms: 7 days. */
#define OPTION_MAX_DELAY (7.0 * 24 * 60 * 60 * 1000)

/* Options of a server and of a role's mapping on it; durations in ms. */
typedef struct Account
{
	Oid			serverid;
	const char *account;		/* its name; NULL: it is the server's own */
	const char *base_url;		/* without a slash at its end */
	const char *waba_number;	/* NULL: none */
	const char *database;		/* NULL: any */
	int			timeout;		/* of a call, or of a queued request */
	int			connect_timeout;
	int			max_connections;
	double		rate_limit;		/* requests a second, 0: no limit */
	double		retry_for;		/* age at which a removal is given up */
	double		delay;			/* least age at which a removal is sent */
	const char *ca_file;		/* NULL: the system's */
	const char *proxy;			/* NULL: none */
	const char *api_key;		/* secret */
	const char *api_key_file;	/* NULL: the key is given itself */
} Account;

extern const Account option_defaults;

extern void option_read(Account *account, List *options, Oid catalog);
extern void option_check(const Account *account);
extern void option_copy(Account *to, const Account *from);
extern const char *option_key_problem(const char *key, size_t length);

#endif							/* DOUBLETICK_ACCOUNT_OPTION_H */

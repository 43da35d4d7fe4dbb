/*-------------------------------------------------------------------------
 *
 * account.h
 *		Where to send, as whom and how fast: what CREATE SERVER and CREATE
 *		USER MAPPING say.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_ACCOUNT_H
#define DOUBLETICK_ACCOUNT_H

#include "fault.h"
#include "http.h"

/* Options of a server and of a role's mapping on it; durations in ms. */
typedef struct Account
{
	Oid			serverid;
	const char *base_url;		/* without a slash at its end */
	const char *waba_number;	/* NULL: none */
	const char *database;		/* NULL: any */
	int			timeout;		/* of one call */
	int			connect_timeout;
	int			max_connections;
	double		rate_limit;		/* requests a second, 0: no limit */
	double		retry_for;		/* of a queued request */
	const char *ca_file;		/* NULL: the system's */
	const char *proxy;			/* NULL: none */
	const char *api_key;		/* secret */
	const char *api_key_file;	/* NULL: the key is given itself */
} Account;

extern Fault *account_get(const char *servername, Oid roleid, Account *account);
extern HttpTarget account_target(const Account *account);
extern char *account_definition(const char *servername, Oid roleid);

#endif							/* DOUBLETICK_ACCOUNT_H */

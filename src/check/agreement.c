/*-------------------------------------------------------------------------
 *
 * check/agreement.c
 *		Do the servers of one account agree on its limit?
 *
 * Those of this database are compared; other databases cannot be read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/account.h"
#include "check/agreement.h"
#include "foreign/foreign.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"

/* A server that names an account. */
typedef struct NamedServer
{
	const char *name;
	const char *account;
	double		rate_limit;		/* 0: none */
} NamedServer;

static Fault *compare_limits(const NamedServer *server, const NamedServer *other);
static bool is_larger(double rate_limit, double other);
static const char *verb_for_rate_limit(const char *servername);

/*
 * Called by dt_check() for each server: a fault if it has another limit than a server of
 * the same account that was checked before.  "servers" has these, and gets this one.
 * "role" is any.
 */
Fault *
agreement_check(List **servers, const char *server, Oid role)
{
	NamedServer *this = palloc(sizeof(NamedServer));
	Fault	   *fault = NULL;
	Account		account;
	ListCell   *cell;

	/* Other faults are reported elsewhere; the server's options are there. */
	(void) account_get(server, role, &account);
	if (account.account == NULL)
		return NULL;
	this->name = server;
	this->account = account.account;
	this->rate_limit = account.rate_limit;
	foreach(cell, *servers)
	{
		const NamedServer *other = lfirst(cell);

		if (fault == NULL && strcmp(this->account, other->account) == 0)
			fault = compare_limits(this, other);
	}
	*servers = lappend(*servers, this);
	return fault;
}

/* The smaller limit is the safe one. */
static Fault *
compare_limits(const NamedServer *server, const NamedServer *other)
{
	const NamedServer *larger = is_larger(server->rate_limit, other->rate_limit) ? server : other;
	const NamedServer *smaller = larger == server ? other : server;

	if (server->rate_limit == other->rate_limit)
		return NULL;
	return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
								 "its \"rate_limit\" is %.15g, but that of server \"%s\" of the same account is %.15g",
								 server->rate_limit, other->name, other->rate_limit),
					  "ALTER SERVER %s OPTIONS (%s rate_limit '%.15g');",
					  quote_identifier(larger->name), verb_for_rate_limit(larger->name),
					  smaller->rate_limit);
}

static bool
is_larger(double rate_limit, double other)
{
	return other != 0 && (rate_limit == 0 || rate_limit > other);
}

/* How ALTER SERVER gives a server another limit. */
static const char *
verb_for_rate_limit(const char *servername)
{
	ListCell   *cell;

	foreach(cell, GetForeignServerByName(servername, false)->options)
	{
		if (strcmp(((DefElem *) lfirst(cell))->defname, "rate_limit") == 0)
			return "SET";
	}
	return "ADD";
}

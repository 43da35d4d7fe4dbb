/*-------------------------------------------------------------------------
 *
 * check/servers.c
 *		Is anything sent, and can each role send that has a user mapping?
 *
 * A role's account is asked for as a call does it, so what a call would raise is
 * reported.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "account/account.h"
#include "account/enabled.h"
#include "check/agreement.h"
#include "check/check.h"
#include "check/connection.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "settings.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* A server and a role. */
typedef struct AccountKey
{
	const char *server;
	Oid			role;
} AccountKey;

static void check_server(Check *check, const char *server, Oid owner, const char *ca_file);
static bool has_account(const List *accounts, const char *server, Oid role);
static List *add_account(List *accounts, const char *server, Oid role);

/*
 * Is anything sent at all, and to a server that exists?
 */
void
check_settings(Check *check)
{
	Fault	   *fault;

	if (!setting_enabled)
		report_problem(check, "setting doubletick.enabled", enabled_command(),
					   "it is off, so nothing is sent");
	if (select_rows("SELECT FROM pg_catalog.pg_foreign_server AS s"
					" JOIN pg_catalog.pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw"
					" WHERE w.fdwname = 'doubletick'") == 0)
		report_problem(check, psprintf("database %s", quote_identifier(get_database_name(MyDatabaseId))),
					   "CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick;",
					   "it has no DoubleTick server");
	else if ((fault = account_check_server(setting_server)) != NULL)
		report_problem(check, "setting doubletick.server", fault->hint, "%s", fault->message);
}

/*
 * Every server, and every role that has a mapping on it.
 */
void
check_servers(Check *check)
{
	uint64		nservers = select_rows("SELECT s.srvname, s.srvowner,"
									   " (SELECT option_value FROM pg_catalog.pg_options_to_table(s.srvoptions)"
									   "  WHERE option_name = 'ca_file')"
									   " FROM pg_catalog.pg_foreign_server AS s"
									   " JOIN pg_catalog.pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw"
									   " WHERE w.fdwname = 'doubletick' ORDER BY s.srvname");
	SPITupleTable *servers = SPI_tuptable;

	for (uint64 i = 0; i < nservers; i++)
	{
		SPI_tuptable = servers;
		check_server(check, selected_text(i, 1), selected_oid(i, 2), selected_text(i, 3));
	}
}

/* A public mapping is checked as the server's owner would use it. */
static void
check_server(Check *check, const char *server, Oid owner, const char *ca_file)
{
	const char *object = psprintf("server %s", quote_identifier(server));
	Fault	   *fault;
	uint64		nmappings;
	SPITupleTable *mappings;

	if (ca_file && access(ca_file, R_OK) != 0)
		report_problem(check, object, "Put the file there, or name another one in the server's option \"ca_file\".",
					   "could not read file \"%s\" of option \"ca_file\": %s", ca_file, strerror(errno));

	fault = agreement_check(&check->named, server, owner);
	if (fault)
		report_problem(check, object, fault->hint, "%s", fault->message);

	nmappings = select_rows("SELECT CASE m.umuser WHEN 0 THEN %u ELSE m.umuser END"
							" FROM pg_catalog.pg_user_mapping AS m"
							" JOIN pg_catalog.pg_foreign_server AS s ON s.oid = m.umserver"
							" WHERE s.srvname = %s ORDER BY 1",
							owner, quote_literal_cstr(server));
	mappings = SPI_tuptable;
	if (nmappings == 0)
		report_problem(check, object,
					   psprintf("CREATE USER MAPPING FOR CURRENT_USER SERVER %s OPTIONS (api_key '...');",
								quote_identifier(server)),
					   "it has no user mapping, so nobody can send");
	for (uint64 i = 0; i < nmappings; i++)
	{
		SPI_tuptable = mappings;
		check_account(check, server, selected_oid(i, 1));
	}
	if (check->connect)
	{
		fault = connection_check(server, owner);
		if (fault)
			report_problem(check, object, fault->hint, "%s", fault->message);
	}
}

/*
 * Can a role send to a server?  Each is reported once.
 */
void
check_account(Check *check, const char *server, Oid role)
{
	char	   *name = GetUserNameFromId(role, true);
	Account		account;
	Fault	   *fault;

	if (!setting_enabled || has_account(check->accounts, server, role))
		return;
	check->accounts = add_account(check->accounts, server, role);
	fault = account_get(server, role, &account);
	if (fault == NULL)
		return;
	check->faulty = add_account(check->faulty, server, role);
	report_problem(check, OidIsValid(account.serverid) && name
				   ? psprintf("user mapping for %s on server %s", quote_identifier(name), quote_identifier(server))
				   : psprintf("server %s", quote_identifier(server)),
				   fault->hint, "%s", fault->message);
}

/*
 * Has check_account() reported a fault of the account?
 */
bool
is_account_faulty(const Check *check, const char *server, Oid role)
{
	return has_account(check->faulty, server, role);
}

static bool
has_account(const List *accounts, const char *server, Oid role)
{
	ListCell   *cell;

	foreach(cell, accounts)
	{
		const AccountKey *key = lfirst(cell);

		if (key->role == role && strcmp(key->server, server) == 0)
			return true;
	}
	return false;
}

static List *
add_account(List *accounts, const char *server, Oid role)
{
	AccountKey *key = palloc(sizeof(AccountKey));

	key->server = server;
	key->role = role;
	return lappend(accounts, key);
}

/*-------------------------------------------------------------------------
 *
 * account/enabled.c
 *		What switches requests on again when doubletick.enabled is off.
 *
 * The setting may have been changed in several places, and a hint that names the
 * wrong one does not help.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/enabled.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#define SETTING "doubletick.enabled"

static const char *read_source(void);

/*
 * Called when doubletick.enabled is off: the SQL command that undoes this, where it was
 * done.  Needs a transaction and a snapshot.
 */
char *
enabled_command(void)
{
	const char *source = read_source();
	const char *database = quote_identifier(get_database_name(MyDatabaseId));
	Oid			role = GetAuthenticatedUserId();	/* whose settings count */

	/*
	 * RESET would not do: PostgreSQL forgets what was before, if we were not
	 * loaded.
	 */
	if (strcmp(source, "session") == 0 || strcmp(source, "client") == 0)
		return pstrdup("SET " SETTING " = on;");
	if (strcmp(source, "database user") == 0)
		return psprintf("ALTER ROLE %s IN DATABASE %s RESET " SETTING ";",
						quote_identifier(GetUserNameFromId(role, false)), database);
	if (strcmp(source, "user") == 0)
		return psprintf("ALTER ROLE %s RESET " SETTING ";",
						quote_identifier(GetUserNameFromId(role, false)));
	if (strcmp(source, "database") == 0)
		return psprintf("ALTER DATABASE %s RESET " SETTING ";", database);
	if (strcmp(source, "global") == 0)
		return pstrdup("ALTER ROLE ALL RESET " SETTING ";");
	/* What the command line says counts more than what ALTER SYSTEM writes. */
	if (strcmp(source, "command line") == 0)
		return psprintf("ALTER DATABASE %s SET " SETTING " = on; "
						"-- or start PostgreSQL without this setting on its command line", database);
	return pstrdup("ALTER SYSTEM SET " SETTING " = on; SELECT pg_reload_conf();");
}

/* Where the value comes from, as pg_settings says it. */
static const char *
read_source(void)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *source;

	SPI_connect();
	if (SPI_execute("SELECT source FROM pg_catalog.pg_settings WHERE name = '" SETTING "'",
					true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read pg_settings");
	source = MemoryContextStrdup(caller, SPI_getvalue(SPI_tuptable->vals[0],
													  SPI_tuptable->tupdesc, 1));
	SPI_finish();
	return source;
}

/*-------------------------------------------------------------------------
 *
 * settings.c
 *		The configuration parameters doubletick.*, and their check hooks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "datatype/timestamp.h"
#include "settings.h"
#include "utils/guc.h"

char	   *setting_server;
bool		setting_enabled;
int			setting_max_in_flight;
int			setting_history_retention;
int			setting_worker_idle_timeout;

static bool check_server(char **newval, void **extra, GucSource source);

/*
 * Defines the parameters.  Called once, when the library is loaded.
 */
void
settings_init(void)
{
	DefineCustomStringVariable("doubletick.server",
							   "Names the foreign server that requests go to.",
							   "In a pooled session, use the argument \"server\": SET would reach those who use the session next.",
							   &setting_server,
							   "doubletick",
							   PGC_USERSET,
							   0,
							   check_server,
							   NULL,
							   NULL);

	/*
	 * Without preloading, values are set before the library is loaded, and
	 * only the last of them is kept, such as that of the connection's options
	 * over that of the database.  If it is then refused, since the role may
	 * not set this, the value that it replaced is lost.  It may have been
	 * off, so where there is a value at all, the default is off.
	 */
	DefineCustomBoolVariable("doubletick.enabled",
							 "Lets requests leave this server.",
							 "When off, calls fail without sending anything.",
							 &setting_enabled,
							 GetConfigOption("doubletick.enabled", true, false) == NULL,
							 PGC_SUSET,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomIntVariable("doubletick.max_in_flight",
							"Sets how many calls of a statement may be in flight at once.",
							"With 1 they are made one after the other.",
							&setting_max_in_flight,
							8,
							1, 256,
							PGC_USERSET,
							0,
							NULL,
							NULL,
							NULL);

	/* For superusers, since a session that drains the queue prunes all rows. */
	DefineCustomIntVariable("doubletick.history_retention",
							"Sets how long settled removals are kept in dt_history.",
							"-1 keeps them for ever.",
							&setting_history_retention,
							7 * SECS_PER_DAY,
							-1, INT_MAX,
							PGC_SUSET,
							GUC_UNIT_S,
							NULL,
							NULL,
							NULL);

	DefineCustomIntVariable("doubletick.worker_idle_timeout",
							"Sets how long a worker stays that has nothing to do.",
							NULL,
							&setting_worker_idle_timeout,
							60 * 1000,
							10, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);

	MarkGUCPrefixReserved("doubletick");
}

/*
 * Refuses what cannot be a server's name.  Whether the server exists is checked when
 * it is used, since that needs a transaction.
 */
static bool
check_server(char **newval, void **extra pg_attribute_unused(),
			 GucSource source pg_attribute_unused())
{
	size_t		length = strlen(*newval);

	if (length > 0 && length < NAMEDATALEN)
		return true;
	GUC_check_errdetail("A server's name has 1 to %d bytes.", NAMEDATALEN - 1);
	return false;
}

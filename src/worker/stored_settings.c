/*-------------------------------------------------------------------------
 *
 * worker/stored_settings.c
 *		Settings of databases and roles, which a running session is not told of.
 *
 * A session reads what ALTER DATABASE and ALTER ROLE have stored when it begins, and
 * only then.  A worker may run for days, and must obey such settings, above all
 * "doubletick.enabled".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_db_role_setting.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "worker/stored_settings.h"

/*
 * Where settings that a session begins with are stored, besides the configuration file, in
 * the order in which PostgreSQL applies them: the first that has a setting counts.
 */
static const struct
{
	bool		of_database;	/* or of all databases */
	bool		of_role;		/* or of all roles */
	GucSource	source;
}			stored_settings[] = {
	{true, true, PGC_S_DATABASE_USER},
	{false, true, PGC_S_USER},
	{true, false, PGC_S_DATABASE},
	{false, false, PGC_S_GLOBAL},
};

/* Room for the places of all of them. */
#define PLACES_LENGTH (lengthof(stored_settings) * 40)

static void read_places(char *places, bool apply);
static int	append_place(char *places, int length, Relation rel, Oid database, Oid role);
static bool has_lost_setting(void);

/*
 * For the worker, in a transaction: is another process needed, since settings have
 * changed after this one read them?  They may have done so before the first call, since
 * the connection began.  Then a new value is applied; one that was reset needs another
 * process.
 */
bool
stored_settings_changed(void)
{
	static char known[PLACES_LENGTH] = "";
	char		places[PLACES_LENGTH];
	bool		is_first = known[0] == '\0';

	read_places(places, is_first);
	if (is_first ? has_lost_setting() : strcmp(known, places) != 0)
		return true;
	strlcpy(known, places, sizeof(known));
	return false;
}

/*
 * Where the settings of the database and of the worker's role are stored, which is
 * another place after each change.  With "apply", applies them.
 */
static void
read_places(char *places, bool apply)
{
	int			length = 0;
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);

	for (int i = 0; i < (int) lengthof(stored_settings); i++)
	{
		Oid			database = stored_settings[i].of_database ? MyDatabaseId : InvalidOid;
		Oid			role = stored_settings[i].of_role ? GetAuthenticatedUserId() : InvalidOid;

		length = append_place(places, length, rel, database, role);
		if (apply)
			ApplySetting(NULL, database, role, rel, stored_settings[i].source);
	}
	table_close(rel, AccessShareLock);
}

/* Appends where the settings of one database and role are, and returns the new length. */
static int
append_place(char *places, int length, Relation rel, Oid database, Oid role)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *end = places + length;
	size_t		room = PLACES_LENGTH - length;

	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(database));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(role));
	scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		length += snprintf(end, room, "%u (%u,%u) ", HeapTupleHeaderGetRawXmin(tuple->t_data),
						   ItemPointerGetBlockNumber(&tuple->t_self),
						   ItemPointerGetOffsetNumber(&tuple->t_self));
	else
		length += snprintf(end, room, "none ");
	systable_endscan(scan);
	return length;
}

/*
 * Was one of our settings, which this session has from its database or role, reset
 * meanwhile?  Others are left alone: another worker would not know better why one is not
 * listed.
 */
static bool
has_lost_setting(void)
{
	bool		is_found;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute("SELECT FROM pg_catalog.pg_settings WHERE name LIKE 'doubletick.%'"
					" AND source IN ('database user', 'user', 'database', 'global') AND (source, name) NOT IN"
					" (SELECT CASE WHEN s.setdatabase = 0 AND s.setrole = 0 THEN 'global'"
					" WHEN s.setrole = 0 THEN 'database' WHEN s.setdatabase = 0 THEN 'user' ELSE 'database user' END,"
					" lower(split_part(setting, '=', 1))"
					" FROM pg_catalog.pg_db_role_setting AS s, unnest(s.setconfig) AS setting"
					" WHERE s.setdatabase IN (SELECT 0 UNION ALL SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
					" AND s.setrole IN (SELECT 0 UNION ALL SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_settings");
	is_found = SPI_processed > 0;
	SPI_finish();
	PopActiveSnapshot();
	return is_found;
}

/*-------------------------------------------------------------------------
 *
 * account/enabled.c
 *		What switches requests on again when doubletick.enabled is off.
 *
 * The setting may have been changed in five places, and a hint that names the wrong
 * one does not help.  So they are looked up, the one that counts most first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "account/enabled.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#define SETTING "doubletick.enabled"

static bool is_set_for(Oid database, Oid role);
static bool array_has_setting(ArrayType *settings);

/*
 * Called when doubletick.enabled is off: the SQL command that undoes this, where it was
 * done.  Needs a transaction.
 */
char *
enabled_command(void)
{
	bool		was_on = false;
	Oid			role = GetSessionUserId();
	const char *database = quote_identifier(get_database_name(MyDatabaseId));
	const char *role_name = OidIsValid(role) ? quote_identifier(GetUserNameFromId(role, false)) : "";

	(void) parse_bool(GetConfigOptionResetString(SETTING), &was_on);
	if (was_on)
		return pstrdup("RESET " SETTING ";");
	if (OidIsValid(role) && is_set_for(MyDatabaseId, role))
		return psprintf("ALTER ROLE %s IN DATABASE %s RESET " SETTING ";", role_name, database);
	if (OidIsValid(role) && is_set_for(InvalidOid, role))
		return psprintf("ALTER ROLE %s RESET " SETTING ";", role_name);
	if (is_set_for(MyDatabaseId, InvalidOid))
		return psprintf("ALTER DATABASE %s RESET " SETTING ";", database);
	if (is_set_for(InvalidOid, InvalidOid))
		return pstrdup("ALTER ROLE ALL RESET " SETTING ";");
	return pstrdup("ALTER SYSTEM SET " SETTING " = on; SELECT pg_reload_conf();");
}

/* Has ALTER DATABASE or ALTER ROLE changed the setting?  InvalidOid: for all of them. */
static bool
is_set_for(Oid database, Oid role)
{
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(database));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(role));
	scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		settings = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
											RelationGetDescr(rel), &isnull);

		found = !isnull && array_has_setting(DatumGetArrayTypeP(settings));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

static bool
array_has_setting(ArrayType *settings)
{
	Datum	   *elements;
	int			nelements;

	deconstruct_array(settings, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &nelements);
	for (int i = 0; i < nelements; i++)
	{
		if (strncmp(TextDatumGetCString(elements[i]), SETTING "=", strlen(SETTING "=")) == 0)
			return true;
	}
	return false;
}

/*-------------------------------------------------------------------------
 *
 * base/extension.c
 *		The extension as this database has it: its schema and its version.
 *
 * After an update, a session may still have the old library, and after an
 * installation a session has the new library before the database is updated.  Each
 * library works with the SQL objects of its own version alone, and refuses all others
 * before it does anything.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "base/extension.h"
#include "base/shared.h"
#include "catalog/pg_extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* What both forms of the error say of the two versions. */
#define VERSION_MESSAGE \
	"extension \"doubletick\" has version %s in this database, but this session has its library for version %s"

/*
 * The version is right if nothing has changed since it was read.  PostgreSQL tells
 * nobody of a new version by itself, but an update also changes functions or tables.
 */
static uint64 nchanges = 1;
static uint64 nchanges_at_check = 0;

static bool read_extension(Oid *schema, char **version);
static char *find_other_version(void);
static void watch_changes(void);
static void count_function_change(Datum arg, SyscacheId cacheid, uint32 hashvalue);
static void count_relation_change(Datum arg, Oid relid);
static char *hint_about_version(const char *version);
static bool is_older(const char *version, const char *other);

/*
 * The extension's schema; InvalidOid when the extension does not exist.
 */
Oid
extension_schema(void)
{
	Oid			schema = InvalidOid;

	(void) read_extension(&schema, NULL);
	return schema;
}

/*
 * Called before anything is read, written or sent for the database.  Raises an error
 * if its SQL objects are not those that this library was built for.
 */
void
extension_check_version(void)
{
	char	   *version = find_other_version();

	if (version)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg(VERSION_MESSAGE, version, DOUBLETICK_SQL_VERSION),
				 errhint("%s", hint_about_version(version))));
}

/*
 * The same as a value, for calls and dt_status; NULL when the versions are the same.
 */
Fault *
extension_version_fault(void)
{
	char	   *version = find_other_version();

	if (version == NULL)
		return NULL;
	return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
								 VERSION_MESSAGE, version, DOUBLETICK_SQL_VERSION),
					  "%s", hint_about_version(version));
}

/* The version of the SQL objects if it is another one, else NULL. */
static char *
find_other_version(void)
{
	uint64		nchanges_before;
	char	   *version;

	watch_changes();
	if (nchanges_at_check == nchanges)
		return NULL;
	nchanges_before = nchanges;
	if (read_extension(NULL, &version) && strcmp(version, DOUBLETICK_SQL_VERSION) != 0)
		return version;
	nchanges_at_check = nchanges_before;
	return NULL;
}

static void
watch_changes(void)
{
	static bool is_registered = false;

	if (is_registered)
		return;
	CacheRegisterSyscacheCallback(PROCOID, count_function_change, (Datum) 0);
	CacheRegisterRelcacheCallback(count_relation_change, (Datum) 0);
	is_registered = true;
}

static void
count_function_change(Datum arg pg_attribute_unused(), SyscacheId cacheid pg_attribute_unused(),
					  uint32 hashvalue pg_attribute_unused())
{
	nchanges++;
}

static void
count_relation_change(Datum arg pg_attribute_unused(), Oid relid pg_attribute_unused())
{
	nchanges++;
}

/* False when the extension does not exist.  NULL for what the caller does not need. */
static bool
read_extension(Oid *schema, char **version)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		is_found;
	bool		isnull;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("doubletick"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	is_found = HeapTupleIsValid(tuple);
	if (is_found && schema)
		*schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	if (is_found && version)
		*version = TextDatumGetCString(heap_getattr(tuple, Anum_pg_extension_extversion,
													RelationGetDescr(rel), &isnull));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return is_found;
}

/* What mends it when the SQL objects are of this version. */
static char *
hint_about_version(const char *version)
{
	if (is_older(version, DOUBLETICK_SQL_VERSION))
		return pstrdup("Execute ALTER EXTENSION doubletick UPDATE.");
	return psprintf("%s  If that does not help, install version %s of doubletick.",
					shared ? "Restart the server, which has preloaded the library." : "Connect again.",
					version);
}

/* Versions are numbers with points between them; of others, none is older. */
static bool
is_older(const char *version, const char *other)
{
	int			numbers[2][3] = {{0}};

	(void) sscanf(version, "%d.%d.%d", &numbers[0][0], &numbers[0][1], &numbers[0][2]);
	(void) sscanf(other, "%d.%d.%d", &numbers[1][0], &numbers[1][1], &numbers[1][2]);
	for (int i = 0; i < 3; i++)
	{
		if (numbers[0][i] != numbers[1][i])
			return numbers[0][i] < numbers[1][i];
	}
	return false;
}

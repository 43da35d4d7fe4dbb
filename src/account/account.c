/*-------------------------------------------------------------------------
 *
 * account/account.c
 *		The account that a role uses on a server: the options of both the server
 *		and the user mapping.
 *
 * An account is looked up once and cached until one of its catalogs changes, so
 * that a changed option takes effect at the next request.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "account/account.h"
#include "account/enabled.h"
#include "account/option.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "compat.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "settings.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#define WRAPPER "doubletick"

/*
 * The account that was looked up last.  It is valid while no invalidation has been
 * processed since the look-up began.
 */
static uint64 ninvalidations = 1;
static uint64 cached_at = 0;	/* ninvalidations then, 0: nothing is cached */
static Oid	cached_role;
static char cached_name[NAMEDATALEN];
static Account cached_account;
static MemoryContext cache_context = NULL;

static Fault *refill_cache(const char *servername, Oid roleid, Account *account);
static void invalidate_cache(Datum arg, SyscacheId cacheid, uint32 hashvalue);
static Fault *look_up_account(const char *servername, Oid roleid, Account *account);
static void watch_catalogs(void);
static Fault *check_server(const char *servername, int64 *delay);
static char *list_servers(void);
static Fault *find_server(const char *servername, bool by_argument, ForeignServer **server);
static Fault *read_options(const char *servername, Account *account, List *of_server,
						   List *of_mapping);
static TransactionId xmin_of(SyscacheId cache, Oid oid);
static UserMapping *find_mapping(Oid serverid, Oid roleid, bool *is_public);
static Fault *read_key_file(const char *path, const char **key);
static Fault *read_open_key_file(int fd, const char *path, const char **key);

/*
 * Called before each request, and by dt_status: fills "account" with what a request
 * of this role to this server needs, as it is defined now.  Strings live in the
 * current memory context.  Returns NULL if a request may be sent, else why not:
 * undefined_object without a server, role or mapping, insufficient_privilege without
 * USAGE, and object_not_in_prerequisite_state for all else.  Even then "account" has
 * the server's options, or the defaults if there is no such server.  If they cannot be
 * read, "retry_for" is infinite: nothing may be given up by a default.
 */
Fault *
account_get(const char *servername, Oid roleid, Account *account)
{
	Fault	   *fault = NULL;

	/* Process pending invalidations: within one statement nothing else would. */
	AcceptInvalidationMessages();

	if (cached_at != ninvalidations || cached_role != roleid ||
		strcmp(cached_name, servername) != 0)
		fault = refill_cache(servername, roleid, account);
	if (fault == NULL)
		option_copy(account, &cached_account);

	if (!setting_enabled)
		return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 "requests are switched off by \"doubletick.enabled\""),
						  "Switch them on again: %s", enabled_command());
	if (fault)
		return fault;
	if (account->api_key_file)
		return read_key_file(account->api_key_file, &account->api_key);
	return NULL;
}

/* Looks the account up in the catalogs, and caches it if there is no fault. */
static Fault *
refill_cache(const char *servername, Oid roleid, Account *account)
{
	uint64		now = ninvalidations;
	MemoryContext caller = CurrentMemoryContext;
	Fault	   *fault;

	watch_catalogs();
	fault = look_up_account(servername, roleid, account);
	if (fault)
		return fault;

	cached_at = 0;				/* until all of it is copied */
	MemoryContextReset(cache_context);
	MemoryContextSwitchTo(cache_context);
	option_copy(&cached_account, account);
	MemoryContextSwitchTo(caller);
	cached_role = roleid;
	strlcpy(cached_name, servername, NAMEDATALEN);
	cached_at = now;
	return NULL;
}

/* Called before a look-up: the first call has "ninvalidations" count from then on. */
static void
watch_catalogs(void)
{
	static const SyscacheId caches[] = {
		FOREIGNSERVEROID, FOREIGNDATAWRAPPEROID, USERMAPPINGOID,
		AUTHOID, AUTHMEMROLEMEM, DATABASEOID
	};

	if (cache_context != NULL)
		return;
	cache_context = AllocSetContextCreate(TopMemoryContext, "doubletick account",
										  ALLOCSET_SMALL_SIZES);
	for (int i = 0; i < (int) lengthof(caches); i++)
		CacheRegisterSyscacheCallback(caches[i], invalidate_cache, (Datum) 0);
}

static void
invalidate_cache(Datum arg pg_attribute_unused(), SyscacheId cacheid pg_attribute_unused(),
				 uint32 hashvalue pg_attribute_unused())
{
	ninvalidations++;
}

static Fault *
look_up_account(const char *servername, Oid roleid, Account *account)
{
	const char *role;
	ForeignServer *server;
	UserMapping *mapping;
	bool		is_public;
	Fault	   *fault;

	*account = option_defaults;
	fault = find_server(servername, false, &server);
	if (fault)
		return fault;
	account->serverid = server->serverid;
	fault = read_options(servername, account, server->options, NIL);
	if (fault)
	{
		/* Perhaps it comes behind the option that cannot be read. */
		account->retry_for = get_float8_infinity();
		return fault;
	}
	account->retry_for += account->delay;	/* counts from when it is due */

	role = GetUserNameFromId(roleid, true);
	if (role == NULL)
		return fault_make(ERRCODE_UNDEFINED_OBJECT, "role %u does not exist", roleid);
	if (server_usage_aclcheck(server->serverid, roleid) != ACLCHECK_OK)
		return fault_hint(fault_make(ERRCODE_INSUFFICIENT_PRIVILEGE,
									 "permission denied for foreign server %s", servername),
						  "Grant it: GRANT USAGE ON FOREIGN SERVER %s TO %s;",
						  quote_identifier(servername), quote_identifier(role));

	mapping = find_mapping(server->serverid, roleid, &is_public);
	if (mapping == NULL)
		return fault_hint(fault_make(ERRCODE_UNDEFINED_OBJECT,
									 "role \"%s\" has no user mapping on server \"%s\"", role, servername),
						  "Create it: CREATE USER MAPPING FOR %s SERVER %s OPTIONS (api_key '...');",
						  quote_identifier(role), quote_identifier(servername));

	fault = read_options(servername, account, NIL, mapping->options);
	if (fault)
		return fault;

	if (account->database &&
		strcmp(account->database, get_database_name(MyDatabaseId)) != 0)
		return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 "server \"%s\" sends nothing from database \"%s\"",
									 servername, get_database_name(MyDatabaseId)),
						  "Its option \"database\" lets it send from database \"%s\" alone.",
						  account->database);
	if (account->api_key == NULL && account->api_key_file == NULL)
		return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 "user mapping of role \"%s\" on server \"%s\" has no API key",
									 role, servername),
						  "Add it: ALTER USER MAPPING FOR %s SERVER %s OPTIONS (ADD api_key '...');",
						  is_public ? "PUBLIC" : quote_identifier(role),
						  quote_identifier(servername));
	return NULL;
}

/*
 * Finds a server of ours; a Fault when there is none of that name.  "by_argument" says
 * that the argument "server" of a function has named it.
 */
static Fault *
find_server(const char *servername, bool by_argument, ForeignServer **server)
{
	*server = strlen(servername) < NAMEDATALEN ? GetForeignServerByName(servername, true) : NULL;
	if (*server == NULL)
	{
		char	   *others = list_servers();
		Fault	   *fault = fault_make(ERRCODE_UNDEFINED_OBJECT, "server \"%s\" does not exist",
									   servername);

		if (others[0] == '\0')
			return fault_hint(fault, "Create it: CREATE SERVER %s FOREIGN DATA WRAPPER " WRAPPER ";",
							  quote_identifier(servername));
		return fault_hint(fault, "%s names it; this database has %s.",
						  by_argument ? "The argument \"server\"" :
						  "\"doubletick.server\", or the last argument of a trigger,", others);
	}
	if (strcmp(GetForeignDataWrapper((*server)->fdwid)->fdwname, WRAPPER) != 0)
		return fault_hint(fault_make(ERRCODE_UNDEFINED_OBJECT,
									 "server \"%s\" is not a DoubleTick server", servername),
						  by_argument ? "In the argument \"server\", name a server of the foreign-data wrapper \"%s\"." :
						  "Set \"doubletick.server\" to the name of a server of the foreign-data wrapper \"%s\". In a pooled session, name it in the argument \"server\".",
						  WRAPPER);
	return NULL;
}

/* The DoubleTick servers of this database for a hint, at most five; "" without any. */
static char *
list_servers(void)
{
	Relation	rel = table_open(ForeignServerRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	Oid			wrapper = get_foreign_data_wrapper_oid(WRAPPER, true);
	StringInfoData list;
	int			nservers = 0;
	HeapTuple	tuple;

	initStringInfo(&list);
	while (nservers < 5 && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_foreign_server server = (Form_pg_foreign_server) GETSTRUCT(tuple);

		if (server->srvfdw == wrapper)
			appendStringInfo(&list, "%s\"%s\"", nservers++ > 0 ? ", " : "", NameStr(server->srvname));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return list.data;
}

/*
 * The command that gives a role another API key, for hints.
 */
char *
account_key_command(const char *servername, Oid roleid)
{
	ForeignServer *server = GetForeignServerByName(servername, true);
	const char *role = GetUserNameFromId(roleid, true);
	bool		is_public = false;
	UserMapping *mapping = server && role ? find_mapping(server->serverid, roleid, &is_public) : NULL;
	ListCell   *cell;

	if (mapping == NULL)
		return pstrdup("Set the right API key in the user mapping.");	/* dropped meanwhile */
	role = is_public ? "PUBLIC" : quote_identifier(role);
	foreach(cell, mapping->options)
	{
		DefElem    *option = lfirst(cell);

		if (strcmp(option->defname, "api_key_file") == 0)
			return psprintf("Put the right API key into the file that the user mapping for %s on server %s names.",
							role, quote_identifier(servername));
	}
	return psprintf("Set the right API key: ALTER USER MAPPING FOR %s SERVER %s OPTIONS (SET api_key '...');",
					role, quote_identifier(servername));
}

/*
 * Called before SQL enqueues a removal, so that nobody fills the queue with servers
 * that do not exist.  NULL when there is a server of ours with this name, else
 * a Fault: undefined_object.
 */
Fault *
account_check_server(const char *servername)
{
	int64		delay;

	return check_server(servername, &delay);
}

/*
 * Called before the fault of a function is raised whose argument "server" has named the
 * server: if the fault is that it names none, the hint speaks of the argument.
 */
void
account_hint_argument(Fault *fault, const char *servername)
{
	ForeignServer *server;
	Fault	   *same = find_server(servername, true, &server);

	if (same && same->sqlstate == fault->sqlstate)
		fault->hint = same->hint;
}

/*
 * Called when a removal is enqueued: its server's option "delay", in µs; 0 without
 * such a server, and when its options cannot be used.
 */
int64
account_delay(const char *servername)
{
	int64		delay;

	return check_server(servername, &delay) ? 0 : delay;
}

static Fault *
check_server(const char *servername, int64 *delay)
{
	static uint64 checked_at = 0;
	static char checked_name[NAMEDATALEN];
	static int64 checked_delay;
	uint64		now;
	ForeignServer *server;
	Account		account = option_defaults;
	Fault	   *fault;

	watch_catalogs();
	if (checked_at != ninvalidations || strcmp(checked_name, servername) != 0)
	{
		now = ninvalidations;
		fault = find_server(servername, false, &server);
		if (fault)
			return fault;
		if (read_options(servername, &account, server->options, NIL) != NULL)
			account.delay = 0;
		strlcpy(checked_name, servername, NAMEDATALEN);
		checked_delay = (int64) (account.delay * 1000);
		checked_at = now;
	}
	*delay = checked_delay;
	return NULL;
}

/*
 * Called where rows are compared: the WABA number that requests to this server carry
 * when a row has none; NULL when the server has none either.  False when there is no
 * such server.
 */
bool
account_find_waba(const char *servername, const char **waba)
{
	ForeignServer *server = GetForeignServerByName(servername, true);
	ListCell   *cell;

	*waba = NULL;
	foreach(cell, server ? server->options : NIL)
	{
		DefElem    *option = lfirst(cell);

		if (strcmp(option->defname, "waba_number") == 0)
			*waba = defGetString(option);
	}
	return server != NULL;
}

/*
 * Reads options into "account".  The validator has refused bad ones, but an
 * administrator may have dropped it, or it was that of another version.  Its error
 * becomes a Fault here, since it must stop neither the drainer nor dt_status.  It may
 * be caught without a subtransaction, because reading options takes nothing but
 * memory.
 */
static Fault *
read_options(const char *servername, Account *account, List *of_server, List *of_mapping)
{
	MemoryContext caller = CurrentMemoryContext;
	Fault	   *volatile fault = NULL;

	PG_TRY();
	{
		option_read(account, of_server, ForeignServerRelationId);
		option_read(account, of_mapping, UserMappingRelationId);
		option_check(account);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_FDW_ERROR)
			PG_RE_THROW();
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		fault = fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
						   "server \"%s\" cannot be used: %s", servername, error->message);
		if (error->hint)
			fault_hint(fault, "%s", error->hint);
	}
	PG_END_TRY();
	return fault;
}

/*
 * For the drainer, which lets a held lane go on when this changes: a text that says
 * which catalog rows define the account, and which transactions wrote them.  It does
 * not change when a file of a key or of certificates does.
 */
char *
account_definition(const char *servername, Oid roleid)
{
	ForeignServer *server = GetForeignServerByName(servername, true);
	bool		is_public;
	UserMapping *mapping = server ? find_mapping(server->serverid, roleid, &is_public) : NULL;

	if (mapping == NULL)
		return pstrdup("");
	return psprintf("%u %u, %u %u",
					server->serverid, account_server_xmin(server->serverid),
					mapping->umid, xmin_of(USERMAPPINGOID, mapping->umid));
}

/*
 * For pace.c: which transaction wrote the server's definition.
 */
TransactionId
account_server_xmin(Oid serverid)
{
	return xmin_of(FOREIGNSERVEROID, serverid);
}

static TransactionId
xmin_of(SyscacheId cache, Oid oid)
{
	HeapTuple	tuple = SearchSysCache1(cache, ObjectIdGetDatum(oid));
	TransactionId xmin = InvalidTransactionId;

	if (HeapTupleIsValid(tuple))
	{
		xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);
		ReleaseSysCache(tuple);
	}
	return xmin;
}

/* The role's own mapping, or the public one; NULL when there is neither. */
static UserMapping *
find_mapping(Oid serverid, Oid roleid, bool *is_public)
{
	*is_public = !SearchSysCacheExists2(USERMAPPINGUSERSERVER,
										ObjectIdGetDatum(roleid), ObjectIdGetDatum(serverid));
	if (*is_public &&
		!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(InvalidOid), ObjectIdGetDatum(serverid)))
		return NULL;
	return GetUserMapping(roleid, serverid);
}

/*
 * Reads the key from a file, without the line end.  The file needs the permissions
 * that PostgreSQL demands of ssl_key_file: either it belongs to PostgreSQL's user and
 * is closed to all others, or it belongs to root and its group may read it.
 */
static Fault *
read_key_file(const char *path, const char **key)
{
	Fault	   *fault;
	int			fd;

	/* Without O_NONBLOCK, opening a named pipe would wait. */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
		return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 "could not open API key file \"%s\": %m", path),
						  "Put the key there, in a file that the operating system user who runs the server can read; or name another file in the user mapping.");
	fault = read_open_key_file(fd, path, key);
	CloseTransientFile(fd);
	return fault;
}

static Fault *
read_open_key_file(int fd, const char *path, const char **key)
{
	char		buf[OPTION_MAX_KEY + 3];	/* a line end, and a byte too many */
	const char *problem;
	struct stat st;
	int			length;

	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		return fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
						  "API key file \"%s\" is not a regular file", path);
	if ((st.st_uid != geteuid() && st.st_uid != 0) ||
		(st.st_mode & (st.st_uid == 0 ? S_IWGRP | S_IXGRP | S_IRWXO : S_IRWXG | S_IRWXO)))
		return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 "API key file \"%s\" is open to others", path),
						  "It must belong to the server's user with mode 0600 or less, "
						  "or to root with mode 0640 or less.");

	length = read(fd, buf, sizeof(buf));
	if (length < 0)
		return fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
						  "could not read API key file \"%s\": %m", path);
	if (length > 0 && buf[length - 1] == '\n')
		length--;
	if (length > 0 && buf[length - 1] == '\r')
		length--;
	problem = option_key_problem(buf, length);
	if (problem)
		return fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
						  "API key in file \"%s\" %s", path, problem);
	*key = pnstrdup(buf, length);
	return NULL;
}

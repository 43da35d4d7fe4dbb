/*-------------------------------------------------------------------------
 *
 * account.c
 *		Options of servers and user mappings of the foreign-data wrapper
 *		"doubletick": checked when they are set, and again when they are used.
 *
 * Each option has a function that reads its value into its member of an
 * Account, and raises an error if it is no good.  The validator reads into an Account that
 * it throws away, so that what it lets pass is what works later.
 *
 * No message here may contain the value of a user mapping's option.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/reloptions.h"
#include "account.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "compat.h"
#include "fault.h"
#include "foreign/foreign.h"
#include "http.h"
#include "miscadmin.h"
#include "payload.h"
#include "settings.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/syscache.h"

#define WRAPPER "doubletick"

/* Longest key that is sent, in bytes: servers take 8 kB for all headers. */
#define MAX_KEY 4096

typedef struct AccountOption
{
	const char *name;
	Oid			catalog;		/* the kind of object that has it */
	bool		superuser_only; /* may only a superuser set it? */
	void		(*read) (const char *name, const char *value, void *member);
	size_t		offset;			/* of that member in Account */
} AccountOption;

static void read_database(const char *name, const char *value, void *member);
static void read_base_url(const char *name, const char *value, void *member);
static void read_waba_number(const char *name, const char *value, void *member);
static void read_timeout(const char *name, const char *value, void *member);
static void read_max_connections(const char *name, const char *value, void *member);
static void read_rate_limit(const char *name, const char *value, void *member);
static void read_retry_for(const char *name, const char *value, void *member);
static void read_path(const char *name, const char *value, void *member);
static void read_proxy(const char *name, const char *value, void *member);
static void read_api_key(const char *name, const char *value, void *member);

#define SERVER(name, superuser_only, read) \
	{#name, ForeignServerRelationId, superuser_only, read, offsetof(Account, name)}
#define MAPPING(name, superuser_only, read) \
	{#name, UserMappingRelationId, superuser_only, read, offsetof(Account, name)}

static const AccountOption account_options[] = {
	SERVER(base_url, false, read_base_url),
	SERVER(waba_number, false, read_waba_number),
	SERVER(database, false, read_database),
	SERVER(timeout, false, read_timeout),
	SERVER(connect_timeout, false, read_timeout),
	SERVER(max_connections, false, read_max_connections),
	SERVER(rate_limit, false, read_rate_limit),
	SERVER(retry_for, false, read_retry_for),
	SERVER(ca_file, true, read_path),
	SERVER(proxy, true, read_proxy),
	MAPPING(api_key, false, read_api_key),
	MAPPING(api_key_file, true, read_path),
};

static const Account defaults = {
	.base_url = "https://public.doubletick.io",
	.timeout = 10 * 1000,
	.connect_timeout = 3 * 1000,
	.max_connections = 16,
	.rate_limit = 20,
	.retry_for = 3.0 * 24 * 60 * 60 * 1000,
};

static UserMapping *find_mapping(Oid serverid, Oid roleid);
static const AccountOption *find_option(const char *name, Oid catalog);
static void read_options(Account *account, List *options, Oid catalog);
static void refuse_unknown(const char *name, Oid catalog) pg_attribute_noreturn();
static void warn_if_missing(const char *name, const char *path);
static void refuse_value(const char *name, const char *value, const char *hint)
			pg_attribute_noreturn();
static bool parse_duration(const char *value, double min, double max, double *result);
static const char *key_problem(const char *key, size_t length);
static Fault *read_key_file(const char *path, const char **key);
static Fault *read_open_key_file(int fd, const char *path, const char **key);
static void refuse_url(const char *name, const char *problem) pg_attribute_noreturn();

PG_FUNCTION_INFO_V1(dt_fdw_validator);

/*
 * dt_fdw_validator(options text[], catalog oid) returns void
 *
 * Called by CREATE and ALTER of the wrapper, its servers and its mappings,
 * with all options that the object will have.
 */
Datum
dt_fdw_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	Account		account = defaults;
	ListCell   *cell;

	read_options(&account, options, catalog);
	if (account.api_key && account.api_key_file)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options \"api_key\" and \"api_key_file\" exclude each other")));

	foreach(cell, options)
	{
		DefElem    *def = lfirst(cell);

		if (find_option(def->defname, catalog)->superuser_only && !superuser())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to set option \"%s\"", def->defname),
					 errdetail("Only a superuser may set this option, or change an object that has it.")));
	}
	if (account.ca_file)
		warn_if_missing("ca_file", account.ca_file);
	if (account.api_key_file)
		warn_if_missing("api_key_file", account.api_key_file);
	PG_RETURN_VOID();
}

/*
 * Fills "account" with what a request of this role to this server needs, as it
 * is defined now.  Strings live in the current memory context.  Returns NULL
 * when all is well, else what stands in the way: undefined_object without a
 * server or a mapping, insufficient_privilege without USAGE, and
 * object_not_in_prerequisite_state when nothing may leave or there is no key.
 */
Fault *
account_get(const char *servername, Oid roleid, Account *account)
{
	const char *role = quote_identifier(GetUserNameFromId(roleid, false));
	ForeignServer *server;
	UserMapping *mapping;

	if (!setting_enabled)
		return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 "requests are switched off by \"doubletick.enabled\""),
						  "A superuser can change this for the cluster, the database or the role.");

	server = GetForeignServerByName(servername, true);
	if (server == NULL)
		return fault_hint(fault_make(ERRCODE_UNDEFINED_OBJECT,
									 "server \"%s\" does not exist", servername),
						  "Create it: CREATE SERVER %s FOREIGN DATA WRAPPER " WRAPPER ";",
						  quote_identifier(servername));
	if (strcmp(GetForeignDataWrapper(server->fdwid)->fdwname, WRAPPER) != 0)
		return fault_hint(fault_make(ERRCODE_UNDEFINED_OBJECT,
									 "server \"%s\" is not a DoubleTick server", servername),
						  "Set \"doubletick.server\" to the name of a server of the foreign-data wrapper \"%s\".",
						  WRAPPER);
	if (server_usage_aclcheck(server->serverid, roleid) != ACLCHECK_OK)
		return fault_hint(fault_make(ERRCODE_INSUFFICIENT_PRIVILEGE,
									 "permission denied for foreign server %s", servername),
						  "Grant it: GRANT USAGE ON FOREIGN SERVER %s TO %s;",
						  quote_identifier(servername), role);

	mapping = find_mapping(server->serverid, roleid);
	if (mapping == NULL)
		return fault_hint(fault_make(ERRCODE_UNDEFINED_OBJECT,
									 "role %s has no user mapping on server \"%s\"", role, servername),
						  "Create it: CREATE USER MAPPING FOR %s SERVER %s OPTIONS (api_key '...');",
						  role, quote_identifier(servername));

	*account = defaults;
	account->serverid = server->serverid;
	read_options(account, server->options, ForeignServerRelationId);
	read_options(account, mapping->options, UserMappingRelationId);

	if (account->database &&
		strcmp(account->database, get_database_name(MyDatabaseId)) != 0)
		return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 "server \"%s\" sends nothing from database \"%s\"",
									 servername, get_database_name(MyDatabaseId)),
						  "Its option \"database\" lets it send from database \"%s\" alone.",
						  account->database);
	if (account->api_key_file)
		return read_key_file(account->api_key_file, &account->api_key);
	if (account->api_key == NULL)
		return fault_hint(fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 "user mapping of role %s on server \"%s\" has no API key",
									 role, servername),
						  "Add it: ALTER USER MAPPING FOR %s SERVER %s OPTIONS (ADD api_key '...');",
						  OidIsValid(mapping->userid) ? role : "PUBLIC", quote_identifier(servername));
	return NULL;
}

/* The role's own mapping, or the public one; NULL when there is neither. */
static UserMapping *
find_mapping(Oid serverid, Oid roleid)
{
	if (!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(roleid), ObjectIdGetDatum(serverid)) &&
		!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(InvalidOid), ObjectIdGetDatum(serverid)))
		return NULL;
	return GetUserMapping(roleid, serverid);
}

static const AccountOption *
find_option(const char *name, Oid catalog)
{
	for (int i = 0; i < (int) lengthof(account_options); i++)
	{
		if (account_options[i].catalog == catalog &&
			strcmp(account_options[i].name, name) == 0)
			return &account_options[i];
	}
	return NULL;
}

static void
read_options(Account *account, List *options, Oid catalog)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *def = lfirst(cell);
		const AccountOption *option = find_option(def->defname, catalog);

		if (option == NULL)
			refuse_unknown(def->defname, catalog);
		option->read(option->name, defGetString(def), (char *) account + option->offset);
	}
}

static void
refuse_unknown(const char *name, Oid catalog)
{
	StringInfoData valid;

	initStringInfo(&valid);
	for (int i = 0; i < (int) lengthof(account_options); i++)
	{
		if (account_options[i].catalog == catalog)
			appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "",
							 account_options[i].name);
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 valid.len > 0
			 ? errhint("Valid options in this context are: %s", valid.data)
			 : errhint("There are no valid options in this context.")));
}

/* A dump must restore where the file is not, so this is no error. */
static void
warn_if_missing(const char *name, const char *path)
{
	if (access(path, R_OK) != 0)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\" of option \"%s\": %m", path, name),
				 errdetail("Requests will fail until it is there.")));
}

static void
read_base_url(const char *name, const char *value, void *member)
{
	const char *problem = http_url_problem(value, HTTP_URL_BASE);

	if (problem)
		refuse_url(name, problem);
	*(const char **) member = value;
}

static void
read_proxy(const char *name, const char *value, void *member)
{
	const char *problem = http_url_problem(value, HTTP_URL_PROXY);

	if (problem)
		refuse_url(name, problem);
	*(const char **) member = value;
}

static void
read_waba_number(const char *name, const char *value, void *member)
{
	if (!payload_is_e164(value))
		refuse_value(name, value, PAYLOAD_E164_HINT);
	*(const char **) member = value;
}

static void
read_database(const char *name, const char *value, void *member)
{
	if (value[0] == '\0' || strlen(value) >= NAMEDATALEN)
		refuse_value(name, value, psprintf("A database's name has 1 to %d bytes.",
										   NAMEDATALEN - 1));
	*(const char **) member = value;
}

/* Longest timeout: an hour; a call holds its transaction's locks. */
static void
read_timeout(const char *name, const char *value, void *member)
{
	double		duration;

	if (!parse_duration(value, 1, 60 * 60 * 1000, &duration))
		refuse_value(name, value, "Write a duration from 1ms to 1h, such as \"10s\" or \"500ms\".");
	*(int *) member = (int) duration;
}

/* Longest age: a year, which is far past the use of a removal. */
static void
read_retry_for(const char *name, const char *value, void *member)
{
	if (!parse_duration(value, 1, 365.0 * 24 * 60 * 60 * 1000, member))
		refuse_value(name, value, "Write a duration from 1ms to 365d, such as \"3d\" or \"12h\".");
}

static void
read_max_connections(const char *name, const char *value, void *member)
{
	if (!parse_int(value, member, 0, NULL) || *(int *) member < 1 || *(int *) member > 1000)
		refuse_value(name, value, "Write a whole number from 1 to 1000.");
}

static void
read_rate_limit(const char *name, const char *value, void *member)
{
	double	   *rate = member;

	if (!parse_real(value, rate, 0, NULL) || !(*rate >= 0 && *rate <= 100000) ||
		(*rate > 0 && *rate < 0.001))
		refuse_value(name, value, "Write requests a second, from 0.001 to 100000, or 0 for no limit.");
}

/* Paths are the server's, whose working directory is nothing to rely on. */
static void
read_path(const char *name, const char *value, void *member)
{
	if (!is_absolute_path(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" must be an absolute path", name)));
	*(const char **) member = value;
}

static void
read_api_key(const char *name, const char *value, void *member)
{
	const char *problem = key_problem(value, strlen(value));

	if (problem)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" %s", name, problem)));
	*(const char **) member = value;
}

/* A duration as PostgreSQL's settings have them, in milliseconds. */
static bool
parse_duration(const char *value, double min, double max, double *result)
{
	return parse_real(value, result, GUC_UNIT_MS, NULL) && *result >= min && *result <= max;
}

/*
 * What is wrong with a key, as the end of a sentence; NULL when nothing is.
 * A header's value can hold no control characters, and loses outer blanks.
 */
static const char *
key_problem(const char *key, size_t length)
{
	if (length == 0)
		return "must not be empty";
	if (length > MAX_KEY)
		return "is too long";
	for (size_t i = 0; i < length; i++)
	{
		if ((unsigned char) key[i] < ' ' || (unsigned char) key[i] > '~')
			return "must be printable ASCII";
	}
	if (key[0] == ' ' || key[length - 1] == ' ')
		return "must not start or end with a blank";
	return NULL;
}

/*
 * The key in a file: its content, but for one line end.  The file must be
 * guarded as PostgreSQL wants ssl_key_file to be: owned by the server's user
 * and closed to all others, or owned by root and perhaps readable by the group.
 */
static Fault *
read_key_file(const char *path, const char **key)
{
	Fault	   *fault;
	int			fd;

	/* A named pipe must not hang us before we see that it is one. */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
		return fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
						  "could not open API key file \"%s\": %m", path);
	fault = read_open_key_file(fd, path, key);
	CloseTransientFile(fd);
	return fault;
}

static Fault *
read_open_key_file(int fd, const char *path, const char **key)
{
	char		buf[MAX_KEY + 3];	/* with a line end, and a byte too many */
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
	problem = key_problem(buf, length);
	if (problem)
		return fault_make(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
						  "API key in file \"%s\" %s", path, problem);
	*key = pnstrdup(buf, length);
	return NULL;
}

/* The URL itself may hold a password: it is not shown. */
static void
refuse_url(const char *name, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" %s", name, problem)));
}

static void
refuse_value(const char *name, const char *value, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"", name, value),
			 errhint("%s", hint)));
}

/*-------------------------------------------------------------------------
 *
 * account/option.c
 *		Options of servers and user mappings of the foreign-data wrapper
 *		"doubletick", and its validator.
 *
 * Each option has a function that reads its value into a member of an Account, and
 * raises an error if the value is not valid.  The validator reads into an Account
 * that it throws away: what it accepts can be read later.
 *
 * No message may contain the value of a user mapping's option.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "access/reloptions.h"
#include "account/option.h"
#include "account/url.h"
#include "base/phone.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "compat.h"
#include "miscadmin.h"
#include "utils/guc.h"

typedef void OptionReader (const char *name, const char *value, void *member);

typedef struct AccountOption
{
	const char *name;
	Oid			catalog;		/* the kind of object that has it */
	bool		superuser_only; /* may only a superuser set it? */
	OptionReader *read;
	size_t		offset;			/* of the member in Account */
	bool		is_string;		/* is the member a string? */
} AccountOption;

static OptionReader read_account,
			read_database,
			read_base_url,
			read_waba_number,
			read_timeout,
			read_max_connections,
			read_rate_limit,
			read_retry_for,
			read_delay,
			read_path,
			read_proxy,
			read_api_key;

#define SERVER_STRING(name, superuser_only, read) \
	{#name, ForeignServerRelationId, superuser_only, read, offsetof(Account, name), true}
#define SERVER_NUMBER(name, read) \
	{#name, ForeignServerRelationId, false, read, offsetof(Account, name), false}
#define MAPPING_STRING(name, superuser_only, read) \
	{#name, UserMappingRelationId, superuser_only, read, offsetof(Account, name), true}

static const AccountOption account_options[] = {
	SERVER_STRING(base_url, false, read_base_url),
	SERVER_STRING(waba_number, false, read_waba_number),
	SERVER_STRING(database, false, read_database),
	SERVER_STRING(account, false, read_account),
	SERVER_NUMBER(timeout, read_timeout),
	SERVER_NUMBER(connect_timeout, read_timeout),
	SERVER_NUMBER(max_connections, read_max_connections),
	SERVER_NUMBER(rate_limit, read_rate_limit),
	SERVER_NUMBER(retry_for, read_retry_for),
	SERVER_NUMBER(delay, read_delay),
	SERVER_STRING(ca_file, true, read_path),
	SERVER_STRING(proxy, true, read_proxy),
	MAPPING_STRING(api_key, false, read_api_key),
	MAPPING_STRING(api_key_file, true, read_path),
};

const Account option_defaults = {
	.base_url = "https://public.doubletick.io",
	.timeout = 10 * 1000,
	.connect_timeout = 3 * 1000,
	.max_connections = 16,
	.rate_limit = 20,
	.retry_for = 3.0 * 24 * 60 * 60 * 1000,
};

static const AccountOption *find_option(const char *name, Oid catalog);
pg_noreturn static void refuse_unknown_option(const char *name, Oid catalog);
static void warn_if_missing(const char *name, const char *path);
static const char *text_problem(const char *text, size_t length, size_t longest);
static bool parse_duration(const char *value, double min, double max, double *result);
pg_noreturn static void refuse_option(const char *name, const char *problem);
pg_noreturn static void refuse_value(const char *name, const char *value, const char *hint);

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
	Account		account = option_defaults;
	ListCell   *cell;

	option_read(&account, options, catalog);
	option_check(&account);

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
	if (account.api_key && pg_strncasecmp(account.api_key, "Bearer ", strlen("Bearer ")) == 0)
		ereport(WARNING,
				(errmsg("option \"api_key\" starts with \"Bearer\""),
				 errdetail("DoubleTick expects the key alone.")));
	PG_RETURN_VOID();
}

/*
 * Copies an account, with its strings, into the current memory context.
 */
void
option_copy(Account *to, const Account *from)
{
	*to = *from;
	for (int i = 0; i < (int) lengthof(account_options); i++)
	{
		const AccountOption *option = &account_options[i];
		const char **string = (const char **) ((char *) to + option->offset);

		if (option->is_string && *string)
			*string = pstrdup(*string);
	}
}

/*
 * Raises an error for options that are valid by themselves, but not together.
 */
void
option_check(const Account *account)
{
	if (account->api_key && account->api_key_file)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options \"api_key\" and \"api_key_file\" exclude each other"),
				 errhint("Give one of them. ALTER USER MAPPING can replace the one by the other: OPTIONS (DROP api_key, ADD api_key_file '...').")));

	/* Plain text must not leave the machine through a proxy. */
	if (account->proxy && url_is_plain_text(account->base_url) && !url_is_loopback(account->proxy))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"base_url\" must start with https://, since requests go through a proxy")));
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

/*
 * Reads the options of one object into "account"; raises an error for an
 * unknown option or a bad value.
 */
void
option_read(Account *account, List *options, Oid catalog)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *def = lfirst(cell);
		const AccountOption *option = find_option(def->defname, catalog);

		if (option == NULL)
			refuse_unknown_option(def->defname, catalog);
		option->read(option->name, defGetString(def), (char *) account + option->offset);
	}
}

static void
refuse_unknown_option(const char *name, Oid catalog)
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

/* Not an error, since a dump must restore on a machine without the file. */
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
	const char *problem = url_base_problem(value);
	size_t		length = strlen(value);

	if (problem)
		refuse_option(name, problem);
	while (value[length - 1] == '/')
		length--;
	*(const char **) member = pnstrdup(value, length);
}

static void
read_proxy(const char *name, const char *value, void *member)
{
	const char *problem = url_proxy_problem(value);

	if (problem)
		refuse_option(name, problem);
	*(const char **) member = value;
}

static void
read_waba_number(const char *name, const char *value, void *member)
{
	if (!phone_is_e164(value))
		refuse_value(name, value, PHONE_E164_HINT);
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

/* ASCII, since databases of one account may have different encodings. */
static void
read_account(const char *name, const char *value, void *member)
{
	const char *problem = text_problem(value, strlen(value), NAMEDATALEN - 1);

	if (problem)
		refuse_option(name, problem);
	*(const char **) member = value;
}

/* At most an hour: while a call waits, its transaction holds its locks. */
static void
read_timeout(const char *name, const char *value, void *member)
{
	double		duration;

	if (!parse_duration(value, 1, 60 * 60 * 1000, &duration))
		refuse_value(name, value, "Write a duration from 1ms to 1h, such as \"10s\" or \"500ms\".");
	*(int *) member = (int) duration;
}

/* At most a year; an older removal is of no use. */
static void
read_retry_for(const char *name, const char *value, void *member)
{
	if (!parse_duration(value, 1, 365.0 * 24 * 60 * 60 * 1000, member))
		refuse_value(name, value, "Write a duration from 1ms to 365d, such as \"3d\" or \"12h\".");
}

/* At most a week, so that retry_for can be longer. */
static void
read_delay(const char *name, const char *value, void *member)
{
	if (!parse_duration(value, 0, OPTION_MAX_DELAY, member))
		refuse_value(name, value, "Write a duration from 0 to 7d, such as \"10min\".");
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

/* A relative path would depend on the working directory of the server. */
static void
read_path(const char *name, const char *value, void *member)
{
	if (!is_absolute_path(value))
		refuse_option(name, "must be an absolute path");
	*(const char **) member = value;
}

static void
read_api_key(const char *name, const char *value, void *member)
{
	const char *problem = option_key_problem(value, strlen(value));

	if (problem)
		refuse_option(name, problem);
	*(const char **) member = value;
}

/* Reads a duration, written as for PostgreSQL's settings, in milliseconds. */
static bool
parse_duration(const char *value, double min, double max, double *result)
{
	return parse_real(value, result, GUC_UNIT_MS, NULL) && *result >= min && *result <= max;
}

/*
 * What is wrong with a key, as the end of a sentence; NULL when nothing is.  A
 * header's value cannot contain control characters, and loses outer blanks.
 */
const char *
option_key_problem(const char *key, size_t length)
{
	return text_problem(key, length, OPTION_MAX_KEY);
}

static const char *
text_problem(const char *text, size_t length, size_t longest)
{
	if (length == 0)
		return "must not be empty";
	if (length > longest)
		return "is too long";
	for (size_t i = 0; i < length; i++)
	{
		if ((unsigned char) text[i] < ' ' || (unsigned char) text[i] > '~')
			return "must be printable ASCII";
	}
	if (text[0] == ' ' || text[length - 1] == ' ')
		return "must not start or end with a blank";
	return NULL;
}

/* Does not show the value, which may hold a password or a key. */
static void
refuse_option(const char *name, const char *problem)
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

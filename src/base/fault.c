/*-------------------------------------------------------------------------
 *
 * base/fault.c
 *		What went wrong with one call, as jsonb and as an error.
 *
 * Every fault has one shape for SQL: an object with the keys "statusCode",
 * "error" and "message", after the API's own error bodies.  Where the API
 * answered with such an object its keys are kept and the missing ones are
 * filled in.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/fault.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

static const char *condition_name(int sqlstate);
static const char *reason_phrase(int status);
static char *format(int format_errno, const char *fmt, va_list args)
			pg_attribute_printf(2, 0);
static void push_status(JsonbBuild *build, int status);
static void push_members(JsonbBuild *build, Jsonb *object);

/*
 * A fault without an answer from the API; the caller adds what else it knows.
 * "fmt" makes the primary message, where control characters become blanks; %m
 * is the errno of the call.
 */
Fault *
fault_make(int sqlstate, const char *fmt,...)
{
	int			save_errno = errno;
	Fault	   *fault = palloc0(sizeof(Fault));
	va_list		args;

	va_start(args, fmt);
	fault->message = format(save_errno, fmt, args);
	va_end(args);

	/* One line, whatever a user or a server has put into it. */
	for (char *c = fault->message; *c; c++)
	{
		if ((unsigned char) *c < ' ' || *c == 0x7f)
			*c = ' ';
	}
	fault->sqlstate = sqlstate;
	return fault;
}

/*
 * Adds a hint, one or more sentences, and returns the same fault.
 */
Fault *
fault_hint(Fault *fault, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	fault->hint = format(0, fmt, args);
	va_end(args);
	return fault;
}

/*
 * How much of a string to show, at most "limit" bytes, so that no character is
 * cut.  In a SQL_ASCII database we take it for UTF-8: the API's words are.
 */
int
fault_cliplen(const char *string, int limit)
{
	int			encoding = GetDatabaseEncoding();

	return pg_encoding_mbcliplen(encoding == PG_SQL_ASCII ? PG_UTF8 : encoding,
								 string, strlen(string), limit);
}

/*
 * The fault as dt_try_remove_tags_custom_fields() returns it, and as the
 * DETAIL of the error that dt_remove_tags_custom_fields() raises.
 *
 * jsonb keeps the last of several values of a key: the API's words go over
 * ours, and the status that was received over everything.
 */
Jsonb *
fault_jsonb(const Fault *fault)
{
	JsonbBuild	build = {0};
	const char *error = reason_phrase(fault->status);

	jsonb_push(&build, WJB_BEGIN_OBJECT, NULL);
	jsonb_push_string(&build, WJB_KEY, "error");
	jsonb_push_string(&build, WJB_VALUE, error ? error : condition_name(fault->sqlstate));
	jsonb_push_string(&build, WJB_KEY, "message");
	jsonb_push_string(&build, WJB_VALUE, fault->message);
	if (fault->body)
		push_members(&build, fault->body);
	jsonb_push_string(&build, WJB_KEY, "statusCode");
	push_status(&build, fault->status);
	jsonb_push(&build, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(build.result);
}

/*
 * Raises the fault.  The one place where a call's errors leave.
 */
void
fault_raise(const Fault *fault)
{
	Jsonb	   *object = fault_jsonb(fault);

	ereport(ERROR,
			(errcode(fault->sqlstate),
			 errmsg_internal("%s", fault->message),
			 errdetail_internal("%s", JsonbToCString(NULL, &object->root, VARSIZE(object))),
			 fault->hint ? errhint("%s", fault->hint) : 0));
	pg_unreachable();
}

/*
 * The name that PL/pgSQL's EXCEPTION clause has for a SQLSTATE (PostgreSQL
 * documentation, appendix A), for those of our faults that no HTTP status
 * gives a phrase to.
 */
static const char *
condition_name(int sqlstate)
{
	switch (sqlstate)
	{
		case ERRCODE_INVALID_PARAMETER_VALUE:
			return "invalid_parameter_value";
		case ERRCODE_NULL_VALUE_NOT_ALLOWED:
			return "null_value_not_allowed";
		case ERRCODE_UNDEFINED_OBJECT:
			return "undefined_object";
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
			return "object_not_in_prerequisite_state";
		case ERRCODE_INSUFFICIENT_PRIVILEGE:
			return "insufficient_privilege";
		case ERRCODE_SYSTEM_ERROR:
			return "system_error";
		case ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION:
			return "fdw_unable_to_establish_connection";
		case ERRCODE_FDW_UNABLE_TO_CREATE_REPLY:
			return "fdw_unable_to_create_reply";
	}
	elog(ERROR, "no condition name for SQLSTATE %s", unpack_sql_state(sqlstate));
	return NULL;				/* keep compiler quiet */
}

/*
 * What the API itself puts under "error" for a status (API.md; the phrases
 * are those of RFC 9110 and RFC 8470), for the bodies that leave it out.
 */
static const char *
reason_phrase(int status)
{
	switch (status)
	{
		case 400:
			return "Bad Request";
		case 401:
			return "Unauthorized";
		case 403:
			return "Forbidden";
		case 404:
			return "Not Found";
		case 408:
			return "Request Timeout";
		case 409:
			return "Conflict";
		case 422:
			return "Unprocessable Entity";
		case 425:
			return "Too Early";
		case 429:
			return "Too Many Requests";
		case 500:
			return "Internal Server Error";
		case 502:
			return "Bad Gateway";
		case 503:
			return "Service Unavailable";
		case 504:
			return "Gateway Timeout";
	}
	return NULL;
}

static char *
format(int format_errno, const char *fmt, va_list args)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (;;)
	{
		va_list		copy;
		int			needed;

		va_copy(copy, args);
		errno = format_errno;
		needed = appendStringInfoVA(&buf, fmt, copy);
		va_end(copy);
		if (needed == 0)
			return buf.data;
		enlargeStringInfo(&buf, needed);
	}
}

/* The HTTP status as a number, or null where there was none. */
static void
push_status(JsonbBuild *build, int status)
{
	JsonbValue	value;

	if (status == 0)
		value.type = jbvNull;
	else
	{
		value.type = jbvNumeric;
		value.val.numeric = int64_to_numeric(status);
	}
	jsonb_push(build, WJB_VALUE, &value);
}

/* Copies the members of an object, but for nulls, which say nothing. */
static void
push_members(JsonbBuild *build, Jsonb *object)
{
	JsonbIterator *iterator = JsonbIteratorInit(&object->root);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&iterator, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&iterator, &value, true);
		if (value.type == jbvNull)
			continue;
		jsonb_push(build, WJB_KEY, &key);
		jsonb_push(build, WJB_VALUE, &value);
	}
}

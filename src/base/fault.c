/*-------------------------------------------------------------------------
 *
 * base/fault.c
 *		What went wrong with a call or a queued removal, as jsonb and as an error.
 *
 * SQL sees every fault as an object with the keys "statusCode", "error" and
 * "message", as the API's own error bodies have them.  If the API answered with an
 * object, its keys are kept and the missing ones are filled in.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/fault.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

/* A message shows at most this many bytes of a phone. */
#define PHONE_LENGTH 64

typedef struct CodeName
{
	int			code;
	const char *name;
} CodeName;

/*
 * What the API itself puts under "error" for a status (API.md; the phrases are
 * those of RFC 9110, 4918, 5842, 6585, 7725 and 8470).  For answers whose body lacks
 * this key, as those of proxies do.
 */
static const CodeName reason_phrases[] = {
	{400, "Bad Request"},
	{401, "Unauthorized"},
	{402, "Payment Required"},
	{403, "Forbidden"},
	{404, "Not Found"},
	{405, "Method Not Allowed"},
	{406, "Not Acceptable"},
	{407, "Proxy Authentication Required"},
	{408, "Request Timeout"},
	{409, "Conflict"},
	{410, "Gone"},
	{411, "Length Required"},
	{412, "Precondition Failed"},
	{413, "Content Too Large"},
	{414, "URI Too Long"},
	{415, "Unsupported Media Type"},
	{416, "Range Not Satisfiable"},
	{417, "Expectation Failed"},
	{421, "Misdirected Request"},
	{422, "Unprocessable Entity"},
	{423, "Locked"},
	{424, "Failed Dependency"},
	{425, "Too Early"},
	{426, "Upgrade Required"},
	{428, "Precondition Required"},
	{429, "Too Many Requests"},
	{431, "Request Header Fields Too Large"},
	{451, "Unavailable For Legal Reasons"},
	{500, "Internal Server Error"},
	{501, "Not Implemented"},
	{502, "Bad Gateway"},
	{503, "Service Unavailable"},
	{504, "Gateway Timeout"},
	{505, "HTTP Version Not Supported"},
	{507, "Insufficient Storage"},
	{508, "Loop Detected"},
	{511, "Network Authentication Required"},
};

/*
 * The names that PL/pgSQL's EXCEPTION clause has for SQLSTATEs (PostgreSQL
 * documentation, appendix A).  A fault without a reason phrase has one of these.
 */
static const CodeName condition_names[] = {
	{ERRCODE_INVALID_PARAMETER_VALUE, "invalid_parameter_value"},
	{ERRCODE_NULL_VALUE_NOT_ALLOWED, "null_value_not_allowed"},
	{ERRCODE_UNDEFINED_OBJECT, "undefined_object"},
	{ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "object_not_in_prerequisite_state"},
	{ERRCODE_INSUFFICIENT_PRIVILEGE, "insufficient_privilege"},
	{ERRCODE_SYSTEM_ERROR, "system_error"},
	{ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION, "fdw_unable_to_establish_connection"},
	{ERRCODE_FDW_UNABLE_TO_CREATE_REPLY, "fdw_unable_to_create_reply"},
	{ERRCODE_OUT_OF_MEMORY, "out_of_memory"},
};

static const char *name_of_code(const CodeName *names, int nnames, int code);
static char *format_message(int format_errno, const char *fmt, va_list args)
			pg_attribute_printf(2, 0);
static void push_status(JsonbBuild *build, int status);
static void push_body_members(JsonbBuild *build, Jsonb *object);

/*
 * Makes a fault; the caller adds the API's answer, if there is one.  "fmt" makes
 * the primary message; %m in it is the caller's errno.  Control characters become
 * blanks, so that the message is one line whatever a user or a server put into it.
 */
Fault *
fault_make(int sqlstate, const char *fmt,...)
{
	int			save_errno = errno;
	Fault	   *fault = palloc0(sizeof(Fault));
	va_list		args;

	va_start(args, fmt);
	fault->message = format_message(save_errno, fmt, args);
	va_end(args);

	fault_make_one_line(fault->message);
	fault->sqlstate = sqlstate;
	return fault;
}

/*
 * Makes blanks of control characters, also for what is said of names in the history.
 */
void
fault_make_one_line(char *text)
{
	for (char *c = text; *c; c++)
	{
		if ((unsigned char) *c < ' ' || *c == 0x7f)
			*c = ' ';
	}
}

/*
 * Adds a hint, one or more sentences, and returns the same fault.
 */
Fault *
fault_hint(Fault *fault, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	fault->hint = format_message(0, fmt, args);
	va_end(args);
	return fault;
}

/*
 * Says which removal the fault is about: a statement may have made thousands.  "phone"
 * is as given, NULL for a null; "server" is NULL if the fault has nothing to do with it.
 */
void
fault_about(Fault *fault, const char *phone, const char *server, Oid role)
{
	const char *shown = "null";
	const char *role_name = GetUserNameFromId(role, true);

	if (phone)
		shown = *phone ? pnstrdup(phone, fault_cliplen(phone, PHONE_LENGTH)) : "\"\"";
	fault->context = server ?
		psprintf("removal for phone %s, server \"%s\", role \"%s\"", shown, server,
				 role_name ? role_name : "unknown") :
		psprintf("removal for phone %s", shown);
	fault_make_one_line(fault->context);
}

/*
 * The length, in bytes, at which a message cuts a string: at most "limit", and never
 * inside a character.  In a SQL_ASCII database, it takes the string for UTF-8.
 */
int
fault_cliplen(const char *string, int limit)
{
	int			encoding = GetDatabaseEncoding();

	return pg_encoding_mbcliplen(encoding == PG_SQL_ASCII ? PG_UTF8 : encoding,
								 string, strlen(string), limit);
}

/*
 * The fault as dt_try_remove_tags_custom_fields() returns it, and as the DETAIL of
 * the error that dt_remove_tags_custom_fields() raises.
 *
 * jsonb keeps the last of several values of a key: the API's values replace ours,
 * and the status that was received replaces the one in the body.
 */
Jsonb *
fault_jsonb(const Fault *fault)
{
	JsonbBuild	build = {0};
	const char *error = fault_reason_phrase(fault->status);

	if (error == NULL)
		error = name_of_code(condition_names, lengthof(condition_names), fault->sqlstate);
	if (error == NULL)
		elog(ERROR, "no condition name for SQLSTATE %s", unpack_sql_state(fault->sqlstate));

	jsonb_push(&build, WJB_BEGIN_OBJECT, NULL);
	jsonb_push_string(&build, WJB_KEY, "error");
	jsonb_push_string(&build, WJB_VALUE, error);
	jsonb_push_string(&build, WJB_KEY, "message");
	jsonb_push_string(&build, WJB_VALUE, fault->excerpt ?
					  psprintf("%s: \"%s\"", fault->message, fault->excerpt) : fault->message);
	if (fault->body)
		push_body_members(&build, fault->body);
	jsonb_push_string(&build, WJB_KEY, "statusCode");
	push_status(&build, fault->status);
	jsonb_push(&build, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(build.result);
}

/*
 * Raises the fault as an error.
 */
void
fault_raise(const Fault *fault)
{
	Jsonb	   *object = fault_jsonb(fault);

	ereport(ERROR,
			(errcode(fault->sqlstate),
			 errmsg_internal("%s", fault->message),
			 errdetail_internal("%s", JsonbToCString(NULL, &object->root, VARSIZE(object))),
			 fault->hint ? errhint("%s", fault->hint) : 0,
			 fault->context ? errcontext("%s", fault->context) : 0));
	pg_unreachable();
}

/*
 * The usual words for an HTTP status that the API may answer with; NULL for others.
 */
const char *
fault_reason_phrase(int status)
{
	return name_of_code(reason_phrases, lengthof(reason_phrases), status);
}

static const char *
name_of_code(const CodeName *names, int nnames, int code)
{
	for (int i = 0; i < nnames; i++)
	{
		if (names[i].code == code)
			return names[i].name;
	}
	return NULL;
}

static char *
format_message(int format_errno, const char *fmt, va_list args)
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

/* Pushes the HTTP status as a number, or null when there was no answer. */
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

/* Copies the members of the API's error object, without those that are null. */
static void
push_body_members(JsonbBuild *build, Jsonb *object)
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

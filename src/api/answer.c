/*-------------------------------------------------------------------------
 *
 * api/answer.c
 *		Turns the reply to a request into jsonb, or into a fault.
 *
 * Everything that can happen to a request gets its SQLSTATE here (see the table in
 * doc/calls.md, "Errors").  None is of class 08, which connection pools take for a dead
 * database connection.
 *
 * A body may be in any encoding, be no JSON, or be JSON that jsonb cannot hold.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/answer.h"
#include "common/string.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* How many bytes a message shows of an answer that is no JSON. */
#define EXCERPT_LENGTH 200

/* How many bytes of the API's message go into the primary message. */
#define MESSAGE_LENGTH 500

#define HARMLESS "to repeat it does no harm, unless a name was put back meanwhile."
#define MAYBE_DONE "The removal may have been carried out; " HARMLESS
#define CHECK_BASE_URL "Check whether the server's option \"base_url\" leads to DoubleTick."

/* Most digits that the exponents in an answer may stand for, all together. */
#define MAX_DIGITS (64 * 1024)

/* Longest answer that is remembered, in bytes, and what is made of it. */
#define REMEMBERED_BODY 512
#define REMEMBERED_JSON 1024

/* What a fault says of a request that has no answer; by HttpResult. */
typedef struct TransportFault
{
	int			sqlstate;
	const char *message;		/* libcurl's words follow */
	const char *hint;
	bool		again;			/* see Answer */
} TransportFault;

static const TransportFault transport_faults[] = {
	[HTTP_NO_CONNECTION] = {
		ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION, "could not connect to DoubleTick",
		"Check the server's options \"base_url\", \"proxy\", \"connect_timeout\" and "
		"\"timeout\", and whether this machine may reach that address.", true
	},
	[HTTP_NO_TRUST] = {
		ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION, "could not establish TLS with DoubleTick",
		"Check the server's options \"base_url\" and \"ca_file\"; "
		"without the latter, the system's certificate bundle must be installed.", false
	},
	[HTTP_BROKEN_OFF] = {
		ERRCODE_FDW_UNABLE_TO_CREATE_REPLY, "connection to DoubleTick broke off",
		MAYBE_DONE, true
	},
	[HTTP_TIMED_OUT] = {
		ERRCODE_FDW_UNABLE_TO_CREATE_REPLY, "DoubleTick did not answer in time",
		MAYBE_DONE " The server's option \"timeout\" says how long to wait.", true
	},
	[HTTP_NOT_HTTP] = {
		ERRCODE_FDW_UNABLE_TO_CREATE_REPLY, "answer is not usable HTTP", CHECK_BASE_URL, false
	},
	[HTTP_TOO_LONG] = {
		ERRCODE_FDW_UNABLE_TO_CREATE_REPLY, "answer is too long", CHECK_BASE_URL, false
	},
	[HTTP_NO_MEMORY] = {
		ERRCODE_OUT_OF_MEMORY, "out of memory while an HTTP answer was read", MAYBE_DONE, false
	},
};

/*
 * The last answer that was a JSON object.  Many customers who lose the same names have
 * answers that are alike, and to parse one takes a tenth of what a request does.
 */
static char last_body[REMEMBERED_BODY];
static size_t last_length = 0;	/* 0: there is none */
static union
{
	Jsonb		json;
	char		bytes[REMEMBERED_JSON];
}			last_object;

static void read_transport_fault(const HttpReply *reply, Answer *answer);
static void read_success(const HttpReply *reply, Answer *answer);
static void read_refusal(const HttpReply *reply, Answer *answer);
static int	sqlstate_of_status(int status);
static bool is_no_route(const char *message);
static const char *hint_of_refusal(int status, const char *message);
static Jsonb *object_of(const char *body, size_t length);
static Jsonb *parse_object(const char *body, size_t length);
static bool has_huge_number(const char *body);
static char *api_message(Jsonb *object);
static void append_json_value(StringInfo buf, JsonbValue *value);
static char *excerpt(const char *bytes, size_t length);

/*
 * Called for each reply: says what it means.  Allocates in the current memory context.
 */
void
answer_read(const HttpReply *reply, Answer *answer)
{
	memset(answer, 0, sizeof(Answer));

	if (reply->result != HTTP_ANSWERED)
		read_transport_fault(reply, answer);
	else if (reply->status >= 200 && reply->status < 300)
		read_success(reply, answer);
	else
		read_refusal(reply, answer);

	answer->status = reply->result == HTTP_ANSWERED ? reply->status : 0;
	if (answer->fault)
		answer->fault->status = answer->status;
}

static void
read_transport_fault(const HttpReply *reply, Answer *answer)
{
	const TransportFault *known = &transport_faults[reply->result];
	char	   *error = excerpt(reply->error, strlen(reply->error));
	size_t		length = strlen(error);

	if (length > 0 && error[length - 1] == '.')
		error[length - 1] = '\0';

	answer->fault = fault_make(known->sqlstate, "%s: %s", known->message, error);
	fault_hint(answer->fault, "%s", known->hint);
	answer->again = known->again;
}

/* Every 2xx with a JSON object is a success (API.md). */
static void
read_success(const HttpReply *reply, Answer *answer)
{
	answer->body = object_of(reply->body, reply->length);
	if (answer->body == NULL)
	{
		char	   *shown = excerpt(reply->body, reply->length);
		bool		is_page = shown[0] == '<';

		answer->fault = fault_make(ERRCODE_FDW_UNABLE_TO_CREATE_REPLY,
								   "answer with HTTP status %d is not a JSON object that jsonb can hold%s%s%s",
								   reply->status, is_page ? "" : ": \"", is_page ? "" : shown,
								   is_page ? "" : "\"");
		if (is_page)
			answer->fault->excerpt = shown;
		fault_hint(answer->fault, "Something other than DoubleTick may have answered: "
				   "check the server's options \"base_url\" and \"proxy\". " MAYBE_DONE);
	}
}

static void
read_refusal(const HttpReply *reply, Answer *answer)
{
	Jsonb	   *body = object_of(reply->body, reply->length);
	const char *what = "was refused";
	char	   *message = body ? api_message(body) : excerpt(reply->body, reply->length);
	bool		is_page = body == NULL && message[0] == '<';
	const char *phrase = fault_reason_phrase(reply->status);
	const char *hint = hint_of_refusal(reply->status, body ? message : NULL);

	if (reply->status < 400)
		what = "was redirected";
	else if (reply->status >= 500)
		what = "failed";
	answer->fault = fault_make(sqlstate_of_status(reply->status),
							   "request %s with HTTP status %d%s%s%s", what, reply->status,
							   !is_page && message[0] ? ": " : phrase ? " (" : "",
							   !is_page && message[0] ? message : phrase ? phrase : "",
							   (!is_page && message[0]) || phrase == NULL ? "" : ")");
	answer->fault->body = body;
	if (is_page)
		answer->fault->excerpt = message;
	if (hint)
		fault_hint(answer->fault, "%s", hint);
	answer->no_route = reply->status == 404 && is_no_route(message);
	answer->again = reply->status == 429 || reply->status == 502 ||
		reply->status == 503 || reply->status == 504;
}

static int
sqlstate_of_status(int status)
{
	switch (status)
	{
		case 401:
		case 403:
			return ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
		case 408:				/* these two are about the API's time, */
		case 425:				/* not about what was sent */
			return ERRCODE_SYSTEM_ERROR;
		case 429:
			return ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
	}
	if (status >= 400 && status < 500)
		return ERRCODE_INVALID_PARAMETER_VALUE;
	if (status >= 500 && status < 600)
		return ERRCODE_SYSTEM_ERROR;
	return ERRCODE_FDW_UNABLE_TO_CREATE_REPLY;
}

/*
 * Does the API's framework say that there is nothing at this address (API.md)?  The library
 * below it says so on a page.  "message" is the API's own, or an excerpt of another body.
 */
static bool
is_no_route(const char *message)
{
	static const char said[] = "Cannot POST ";
	static const char before[] = "<pre>";
	const char *on_page = message[0] == '<' ? strstr(message, before) : NULL;

	if (on_page)
		message = on_page + strlen(before);
	return strncmp(message, said, strlen(said)) == 0;
}

/* "message" is the API's own, NULL when the body is not the API's. */
static const char *
hint_of_refusal(int status, const char *message)
{
	switch (status)
	{
		case 401:
		case 403:
			return "Set the right API key in the user mapping.";
		case 404:				/* the customer, or the address */
			if (message && !is_no_route(message))
				return NULL;
			return "Check the server's option \"base_url\".";
		case 429:
			return "Lower the server's option \"rate_limit\".";
	}
	if (status >= 300 && status < 400)
		return "Redirects are never followed. Check the server's option \"base_url\".";
	if (status >= 500 && status < 600)
		return "The fault is at DoubleTick, or on the way to it; " HARMLESS;
	return NULL;
}

/*
 * The body as jsonb, NULL when it is no JSON object or jsonb cannot hold it.
 */
static Jsonb *
object_of(const char *body, size_t length)
{
	Jsonb	   *object;

	if (length > 0 && length == last_length && memcmp(body, last_body, length) == 0)
		return memcpy(palloc(VARSIZE(&last_object)), &last_object, VARSIZE(&last_object));

	object = parse_object(body, length);
	if (object && length <= REMEMBERED_BODY && VARSIZE(object) <= REMEMBERED_JSON)
	{
		memcpy(last_body, body, length);
		memcpy(&last_object, object, VARSIZE(object));
		last_length = length;
	}
	return object;
}

/*
 * Like object_of(), without looking at the last answer.
 *
 * jsonb_in() and the conversion before it raise errors.  Without a subtransaction
 * an error may be caught only if nothing but memory is held when it is raised.
 * That is so: parsing takes nothing else, and the look-up of a conversion releases
 * its catalog entries before it fails.  Other errors, such as a cancel or a lack of
 * memory, are raised again.
 */
static Jsonb *
parse_object(const char *body, size_t length)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *volatile json = NULL;

	/* jsonb_in() reads a C string.  These checks raise no error. */
	if (strlen(body) != length || !pg_verify_mbstr(PG_UTF8, body, length, true) ||
		has_huge_number(body))
		return NULL;

	PG_TRY();
	{
		const char *string = pg_is_ascii(body) ? body :
		pg_any_to_server(body, length, PG_UTF8);

		json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(string)));
	}
	PG_CATCH();
	{
		int			code = geterrcode();

		if (ERRCODE_TO_CATEGORY(code) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(code) != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
			ERRCODE_TO_CATEGORY(code) != ERRCODE_FEATURE_NOT_SUPPORTED &&
			code != ERRCODE_UNDEFINED_FUNCTION) /* no such conversion */
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();

	return json && JB_ROOT_IS_OBJECT(json) ? json : NULL;
}

/*
 * Are there numbers whose exponents are large, or are large together?  jsonb stores
 * such a number in a few bytes and writes all its digits, and a body may have 170,000
 * of them: of 1 MiB, 170 MB would get into the DETAIL of an error, and into the log.
 */
static bool
has_huge_number(const char *body)
{
	bool		in_string = false;
	int			ndigits = 0;

	for (const char *c = body; *c; c++)
	{
		if (*c == '"')
			in_string = !in_string;
		else if (in_string && *c == '\\' && c[1] != '\0')
			c++;
		else if (!in_string && (*c == 'e' || *c == 'E'))
		{
			const char *digits = c + 1 + strspn(c + 1, "+-0");

			if (strspn(digits, "0123456789") > 3)
				return true;
			ndigits += atoi(digits);
			if (ndigits > MAX_DIGITS)
				return true;
		}
	}
	return false;
}

/*
 * The API's "message", clipped: a string, or an array of strings when several rules
 * were broken (API.md).  Empty when there is none.
 */
static char *
api_message(Jsonb *object)
{
	JsonbValue *message = getKeyJsonValueFromContainer(&object->root, "message",
													   strlen("message"), NULL);
	StringInfoData buf;

	initStringInfo(&buf);
	if (message && message->type == jbvBinary &&
		JsonContainerIsArray(message->val.binary.data))
	{
		JsonbContainer *array = message->val.binary.data;

		for (uint32 i = 0; i < JsonContainerSize(array) && buf.len <= MESSAGE_LENGTH; i++)
		{
			if (i > 0)
				appendStringInfoString(&buf, "; ");
			append_json_value(&buf, getIthJsonbValueFromContainer(array, i));
		}
	}
	else if (message && message->type != jbvNull)
		append_json_value(&buf, message);

	if (buf.len > MESSAGE_LENGTH)
		strcpy(buf.data + fault_cliplen(buf.data, MESSAGE_LENGTH - 3), "...");
	return buf.data;
}

/* Appends a string as it is, anything else as JSON text. */
static void
append_json_value(StringInfo buf, JsonbValue *value)
{
	if (value->type == jbvString)
		appendBinaryStringInfo(buf, value->val.string.val, value->val.string.len);
	else
	{
		Jsonb	   *json = JsonbValueToJsonb(value);

		JsonbToCString(buf, &json->root, VARSIZE(json));
	}
}

/* The first bytes as ASCII: others are escaped, and runs of blanks become one. */
static char *
excerpt(const char *bytes, size_t length)
{
	StringInfoData buf;
	bool		blank = true;

	initStringInfo(&buf);
	for (size_t i = 0; i < length && i < EXCERPT_LENGTH; i++)
	{
		unsigned char c = bytes[i];

		if (c > ' ' && c < 0x7f)
			appendStringInfoChar(&buf, c);
		else if (c == ' ' || (c >= '\t' && c <= '\r'))
		{
			if (!blank)
				appendStringInfoChar(&buf, ' ');
		}
		else
			appendStringInfo(&buf, "\\x%02x", c);
		blank = c == ' ' || (c >= '\t' && c <= '\r');
	}
	if (length > EXCERPT_LENGTH)
		appendStringInfoString(&buf, "...");
	else if (buf.len > 0 && blank)
		buf.data[--buf.len] = '\0';
	return buf.data;
}

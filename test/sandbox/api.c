/*-------------------------------------------------------------------------
 *
 * api.c
 *		The API as its description has it: who may call, what a request must
 *		look like, and the body that goes with each status.
 *
 * The bodies have the shape of NestJS, the framework the service shows itself
 * to be written with; validation failures come as its class-validator words
 * them.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <string.h>

static bool is_authorized(const Request *req);
static bool is_json_type(const Request *req);
static json_t *problems_with(const json_t *body);
static void check_phone(json_t *problems, const char *key, const json_t *value);
static void check_names(json_t *problems, const char *key, const json_t *value);
static void complain(json_t *problems, const char *before, const char *key,
					 const char *after);

/* Is this the one request the API knows? */
bool
is_api_request(const Request *req)
{
	return slice_is(req->method, "POST") && slice_is(req->path, API_PATH);
}

/* The answer of a service that is well, doing what it says. */
void
api_answer(Exchange *x)
{
	const char *phone;
	json_t	   *problems;

	if (!is_api_request(x->req))
	{
		answer_no_route(&x->answer, x->req);
		return;
	}
	if (!is_authorized(x->req))
	{
		answer_canned(&x->answer, 401);
		return;
	}
	if (!is_json_type(x->req))
	{
		answer_message(&x->answer, 400,
					   json_string("Content-Type must be application/json"));
		return;
	}
	if (!json_is_object(x->body))
	{
		answer_message(&x->answer, 400,
					   json_sprintf("Unexpected token in JSON at position %d", x->bad_at));
		return;
	}
	problems = problems_with(x->body);
	if (json_array_size(problems) > 0)
	{
		answer_message(&x->answer, 400, problems);
		return;
	}
	json_decref(problems);

	phone = json_string_value(json_object_get(x->body, "phone"));
	answer_json(&x->answer, 201,
				customer_remove(phone, json_object_get(x->body, "customFields"),
								json_object_get(x->body, "tags")));
}

/* The key stands alone in the header: "Bearer" before it makes it wrong. */
static bool
is_authorized(const Request *req)
{
	const Slice *sent = find_header(req, "Authorization");
	size_t		i;
	json_t	   *key;

	if (sent == NULL || sent->len == 0)
		return false;
	if (settings.any_key)
		return true;
	json_array_foreach(settings.keys, i, key)
	{
		if (slice_is(*sent, json_string_value(key)))
			return true;
	}
	return false;
}

/* application/json, whatever its parameters. */
static bool
is_json_type(const Request *req)
{
	const Slice *sent = find_header(req, "Content-Type");
	const char *end;
	Slice		type;

	if (sent == NULL)
		return false;
	type = *sent;
	end = memchr(type.at, ';', type.len);
	if (end != NULL)
		type.len = (size_t) (end - type.at);
	while (type.len > 0 && type.at[type.len - 1] == ' ')
		type.len--;
	return slice_is_nocase(type, "application/json");
}

/* All that is wrong with a request's body, as an array of sentences. */
static json_t *
problems_with(const json_t *body)
{
	static const char *const known[] = {"phone", "tags", "customFields", "wabaNumber"};
	json_t	   *problems = checked(json_array());
	const json_t *waba = json_object_get(body, "wabaNumber");
	const char *key;
	json_t	   *value;

	json_object_foreach((json_t *) body, key, value)
	{
		size_t		i = 0;

		while (i < 4 && strcmp(key, known[i]) != 0)
			i++;
		if (i == 4)
			complain(problems, "property ", key, " should not exist");
	}
	check_phone(problems, "phone", json_object_get(body, "phone"));
	check_names(problems, "tags", json_object_get(body, "tags"));
	check_names(problems, "customFields", json_object_get(body, "customFields"));
	if (waba != NULL)
		check_phone(problems, "wabaNumber", waba);
	return problems;
}

static void
check_phone(json_t *problems, const char *key, const json_t *value)
{
	if (!json_is_string(value))
		complain(problems, "", key, " must be a string");
	if (!is_phone(value))
		complain(problems, "", key, " must be a valid phone number");
}

/* As there, what is no array also has no values that are strings. */
static void
check_names(json_t *problems, const char *key, const json_t *value)
{
	if (!is_all_strings(value))
		complain(problems, "each value in ", key, " must be a string");
	if (!json_is_array(value))
		complain(problems, "", key, " must be an array");
}

static void
complain(json_t *problems, const char *before, const char *key, const char *after)
{
	json_array_append_new(problems, json_sprintf("%s%s%s", before, key, after));
}

/* An array, and nothing in it but strings. */
bool
is_all_strings(const json_t *value)
{
	size_t		i;
	json_t	   *name;

	json_array_foreach(value, i, name)
	{
		if (!json_is_string(name))
			return false;
	}
	return json_is_array(value);
}

/* E.164: an optional "+", then 7 to 15 digits, the first of them not 0. */
bool
is_phone(const json_t *value)
{
	const char *digits;
	size_t		len;

	if (!json_is_string(value) ||
		strlen(json_string_value(value)) != json_string_length(value))
		return false;
	digits = bare_phone(json_string_value(value));
	len = strlen(digits);
	return len >= 7 && len <= 15 && digits[0] != '0' &&
		strspn(digits, "0123456789") == len;
}

/* An answer with a JSON body, whose reference it takes. */
void
answer_json(Answer *answer, int status, json_t *body)
{
	answer->status = status;
	answer->content_type = JSON_TYPE;
	answer->body.len = 0;
	buffer_add_json(&answer->body, checked(body));
	json_decref(body);
}

/* What the framework says when nothing is at that path. */
void
answer_no_route(Answer *answer, const Request *req)
{
	Buffer		text = {0};
	Slice		message;

	buffer_addf(&text, "Cannot %.*s %.*s", (int) req->method.len, req->method.at,
				(int) req->path.len, req->path.at);
	message.at = text.data;
	message.len = text.len;
	answer_message(answer, 404, slice_to_json(message));
	buffer_free(&text);
}

/* {"message":...,"error":"Bad Request","statusCode":400}; takes the reference. */
void
answer_message(Answer *answer, int status, json_t *message)
{
	answer_json(answer, status,
				json_pack("{so ss si}", "message", checked(message),
						  "error", reason_phrase(status), "statusCode", status));
}

/* The body that the API's description, or the proxy before it, has for a status. */
void
answer_canned(Answer *answer, int status)
{
	static const struct
	{
		int			status;
		const char *message;
	}			messages[] = {
		{400, "error_message"},
		{401, "Invalid public api key"},
		{403, "Forbidden resource"},
		{404, "Customer not found"},
		{409, "Conflicting update of the customer"},
		{422, "invalid file type for audio: text/html; charset=utf-8"},
	};
	size_t		i;

	for (i = 0; i < sizeof(messages) / sizeof(messages[0]); i++)
	{
		if (messages[i].status == status)
		{
			answer_message(answer, status, json_string(messages[i].message));
			return;
		}
	}
	if (status >= 502 && status <= 504)
	{
		answer->status = status;
		answer->content_type = "text/html";
		answer->body.len = 0;
		buffer_addf(&answer->body,
					"<html>\r\n<head><title>%d %s</title></head>\r\n<body>\r\n"
					"<center><h1>%d %s</h1></center>\r\n<hr><center>nginx</center>\r\n"
					"</body>\r\n</html>\r\n",
					status, reason_phrase(status), status, reason_phrase(status));
		return;
	}
	answer_json(answer, status,
				json_pack("{si ss}", "statusCode", status, "message",
						  status == 429 ? "ThrottlerException: Too Many Requests" :
						  status == 500 ? "Internal server error" :
						  reason_phrase(status)));
}

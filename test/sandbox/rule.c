/*-------------------------------------------------------------------------
 *
 * rule.c
 *		The rules by which a test makes the sandbox misbehave, and the answer
 *		that a rule asks for.
 *
 * A rule is the JSON object that was PUT, checked once on its way in and only
 * read from then on, but for "times", which counts down under the lock.  The
 * threads that use a rule hold a reference to it, taken and given back under
 * the lock too: jansson's own counting is not quite free of races.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/evp.h>

/* What a rule may hold. */
typedef struct RuleKey
{
	const char *name;
	bool		(*fits) (const json_t *value);
	const char *must_be;
} RuleKey;

static bool fits_count(const json_t *value);
static bool fits_status(const json_t *value);
static bool fits_body(const json_t *value);
static bool fits_base64(const json_t *value);
static bool fits_string(const json_t *value);
static bool fits_headers(const json_t *value);
static bool fits_retry_after(const json_t *value);
static bool fits_fault(const json_t *value);
static bool fits_bool(const json_t *value);
static bool decode_base64(const char *text, Buffer *out);
static bool is_success(int status);
static void add_body(const json_t *rule, Answer *answer);
static void add_headers(const json_t *rule, Answer *answer);
static void add_retry_after(const json_t *value, Answer *answer);

static const RuleKey rule_keys[] = {
	{"times", fits_count, "a number of requests"},
	{"larger_than", fits_count, "a number of bytes"},
	{"status", fits_status, "an HTTP status from 200 to 999"},
	{"body", fits_body, "a string or a JSON value"},
	{"body_base64", fits_base64, "bytes in base64"},
	{"content_type", fits_string, "a string"},
	{"headers", fits_headers, "an object of strings"},
	{"delay_ms", fits_count, "a number of milliseconds"},
	{"retry_after", fits_retry_after, "a string or {\"date_in\": seconds}"},
	{"fault", fits_fault, "the name of a fault"},
	{"interval_ms", fits_count, "a number of milliseconds"},
	{"location", fits_string, "a string"},
	{"apply", fits_bool, "true or false"},
	{"hold", fits_bool, "true or false"},
};

#define NUM_RULE_KEYS	(sizeof(rule_keys) / sizeof(rule_keys[0]))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static json_t *rules;			/* by phone without "+" */

/* What is wrong with a rule, as a JSON string; NULL when it will do. */
json_t *
rule_wrong(const json_t *rule)
{
	const char *key;
	json_t	   *value;

	if (!json_is_object(rule))
		return json_string("a rule must be a JSON object");
	json_object_foreach((json_t *) rule, key, value)
	{
		size_t		i = 0;

		while (i < NUM_RULE_KEYS && strcmp(key, rule_keys[i].name) != 0)
			i++;
		if (i == NUM_RULE_KEYS)
			return json_sprintf("a rule has no \"%s\"", key);
		if (!rule_keys[i].fits(value))
			return json_sprintf("\"%s\" must be %s", key, rule_keys[i].must_be);
	}
	return NULL;
}

/* Takes the reference to a checked rule. */
void
rule_put(const char *phone, json_t *rule)
{
	pthread_mutex_lock(&lock);
	if (rules == NULL)
		rules = checked(json_object());
	json_object_set_new(rules, bare_phone(phone), rule);
	pthread_mutex_unlock(&lock);
}

/*
 * Forgets one phone's rule, and releases what is held for the phone; with NULL,
 * all of them.
 */
void
rule_clear(const char *phone)
{
	pthread_mutex_lock(&lock);
	if (phone != NULL)
		json_object_del(rules, bare_phone(phone));
	else
	{
		json_decref(rules);
		rules = NULL;
	}
	hold_release(phone ? phone : ANY_PHONE);
	pthread_mutex_unlock(&lock);
}

/*
 * A reference to the rule for this phone's next request, or NULL.  A rule that
 * has been applied as often as it should stays where it is: the phone is back
 * to normal and does not fall to the rule for any phone.  "hold" is set if the
 * rule says that the answer is to be held.
 */
json_t *
rule_take(const char *phone, size_t length, Hold **hold)
{
	json_t	   *rule;
	json_t	   *times;

	pthread_mutex_lock(&lock);
	rule = json_object_get(rules, bare_phone(phone));
	if (rule == NULL)
		rule = json_object_get(rules, ANY_PHONE);
	if ((long) length <= rule_int(rule, "larger_than", -1))
		rule = NULL;
	times = json_object_get(rule, "times");
	if (times != NULL)
	{
		json_int_t	left = json_integer_value(times);

		if (left > 0)
			json_integer_set(times, left - 1);
		else
			rule = NULL;
	}
	json_incref(rule);
	*hold = json_is_true(json_object_get(rule, "hold")) ? hold_new(phone) : NULL;
	pthread_mutex_unlock(&lock);
	return rule;
}

/* Gives back what rule_take returned. */
void
rule_release(json_t *rule)
{
	if (rule == NULL)
		return;
	pthread_mutex_lock(&lock);
	json_decref(rule);
	pthread_mutex_unlock(&lock);
}

/* A number of a rule, be there a rule or not. */
int
rule_int(const json_t *rule, const char *key, int otherwise)
{
	json_t	   *value = json_object_get(rule, key);

	return value ? (int) json_integer_value(value) : otherwise;
}

/*
 * Makes the answer that the rule asks for.  It is the normal one, with all it
 * does to the customer, unless the rule brings its own body, a status other
 * than 2xx or a fault that has an answer of its own; "apply" does to the
 * customer what was asked for in these cases too, as when an answer is lost.
 */
void
rule_compose(Exchange *x)
{
	const json_t *rule = x->rule;
	Answer	   *answer = &x->answer;
	int			own = x->fault ? x->fault->status : 0;
	int			status = rule_int(rule, "status", own);
	bool		normal = own == 0 && (status == 0 || is_success(status)) &&
		json_object_get(rule, "body") == NULL &&
		json_object_get(rule, "body_base64") == NULL;
	const char *type;

	if (normal || json_is_true(json_object_get(rule, "apply")))
		api_answer(x);
	if (!normal)
	{
		answer_canned(answer, status ? status : 201);
		add_body(rule, answer);
	}
	else if (status != 0 && is_success(answer->status))
		answer->status = status;

	if (!status_has_body(answer->status))
		answer->body.len = 0;

	type = json_string_value(json_object_get(rule, "content_type"));
	if (type != NULL)
		answer->content_type = type[0] ? type : NULL;
	add_headers(rule, answer);
}

static bool
is_success(int status)
{
	return status >= 200 && status <= 299;
}

/* Replaces the body by the rule's own; a string goes out as it is. */
static void
add_body(const json_t *rule, Answer *answer)
{
	json_t	   *base64 = json_object_get(rule, "body_base64");
	json_t	   *body = json_object_get(rule, "body");

	if (base64 == NULL && body == NULL)
		return;
	answer->content_type = JSON_TYPE;
	answer->body.len = 0;
	if (base64 != NULL)
		decode_base64(json_string_value(base64), &answer->body);
	else if (json_is_string(body))
		buffer_add(&answer->body, json_string_value(body), json_string_length(body));
	else
		buffer_add_json(&answer->body, body);
}

static void
add_headers(const json_t *rule, Answer *answer)
{
	json_t	   *retry_after = json_object_get(rule, "retry_after");
	const char *name;
	json_t	   *value;

	json_object_foreach(json_object_get(rule, "headers"), name, value)
	{
		buffer_addf(&answer->headers, "%s: %s\r\n", name, json_string_value(value));
	}
	if (retry_after != NULL)
		add_retry_after(retry_after, answer);
}

static void
add_retry_after(const json_t *value, Answer *answer)
{
	char		date[64];

	if (json_is_string(value))
	{
		buffer_addf(&answer->headers, "Retry-After: %s\r\n", json_string_value(value));
		return;
	}
	http_date(time(NULL) +
			  (time_t) json_integer_value(json_object_get(value, "date_in")),
			  date, sizeof(date));
	buffer_addf(&answer->headers, "Retry-After: %s\r\n", date);
}

static bool
fits_count(const json_t *value)
{
	return json_is_integer(value) && json_integer_value(value) >= 0 &&
		json_integer_value(value) <= INT32_MAX;
}

static bool
fits_status(const json_t *value)
{
	return json_is_integer(value) && json_integer_value(value) >= 200 &&
		json_integer_value(value) <= 999;
}

static bool
fits_body(const json_t *value)
{
	return value != NULL;
}

static bool
fits_base64(const json_t *value)
{
	Buffer		decoded = {0};
	bool		fits;

	fits = json_is_string(value) && decode_base64(json_string_value(value), &decoded);
	buffer_free(&decoded);
	return fits;
}

static bool
fits_string(const json_t *value)
{
	return json_is_string(value);
}

static bool
fits_headers(const json_t *value)
{
	const char *name;
	json_t	   *header;

	json_object_foreach((json_t *) value, name, header)
	{
		if (!json_is_string(header))
			return false;
	}
	return json_is_object(value);
}

static bool
fits_retry_after(const json_t *value)
{
	json_t	   *date_in = json_object_get(value, "date_in");

	return json_is_string(value) ||
		(json_object_size(value) == 1 && json_is_integer(date_in) &&
		 llabs(json_integer_value(date_in)) <= INT32_MAX);
}

static bool
fits_fault(const json_t *value)
{
	return fault_find(json_string_value(value)) != NULL;
}

static bool
fits_bool(const json_t *value)
{
	return json_is_boolean(value);
}

/* Appends the bytes of a base64 text, which must be padded and of one line. */
static bool
decode_base64(const char *text, Buffer *out)
{
	size_t		len = strlen(text);
	int			decoded;

	if (len == 0)
		return true;
	if (len % 4 != 0 || len > MAX_BODY)
		return false;
	buffer_reserve(out, len);
	decoded = EVP_DecodeBlock((unsigned char *) out->data + out->len,
							  (const unsigned char *) text, (int) len);
	if (decoded < 0)
		return false;
	/* OpenSSL counts the padding as bytes. */
	decoded -= (text[len - 1] == '=') + (text[len - 2] == '=');
	out->len += (size_t) decoded;
	return true;
}

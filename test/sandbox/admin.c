/*-------------------------------------------------------------------------
 *
 * admin.c
 *		/sandbox/...: how a test sets the sandbox up and asks what has happened.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <stdlib.h>
#include <string.h>

typedef void (*AdminFunction) (const Request *req, const char *phone, Answer *answer);

/* One thing that can be asked for; phone is whether the path goes on with one. */
typedef struct Route
{
	const char *method;
	const char *path;
	bool		phone;
	AdminFunction run;
} Route;

static bool decode_phone(Slice text, char *phone, size_t size);
static json_t *body_or_problem(const Request *req, Answer *answer);
static void put_customer(const Request *req, const char *phone, Answer *answer);
static void get_customer(const Request *req, const char *phone, Answer *answer);
static void delete_customers(const Request *req, const char *phone, Answer *answer);
static void put_rule(const Request *req, const char *phone, Answer *answer);
static void delete_rules(const Request *req, const char *phone, Answer *answer);
static void post_release(const Request *req, const char *phone, Answer *answer);
static void get_held(const Request *req, const char *phone, Answer *answer);
static void get_journal(const Request *req, const char *phone, Answer *answer);
static void delete_journal(const Request *req, const char *phone, Answer *answer);
static void get_stats(const Request *req, const char *phone, Answer *answer);
static void delete_stats(const Request *req, const char *phone, Answer *answer);

static const Route routes[] = {
	{"PUT", "customers/", true, put_customer},
	{"GET", "customers/", true, get_customer},
	{"DELETE", "customers", false, delete_customers},
	{"PUT", "rules/", true, put_rule},
	{"DELETE", "rules/", true, delete_rules},
	{"DELETE", "rules", false, delete_rules},
	{"POST", "release/", true, post_release},
	{"POST", "release", false, post_release},
	{"GET", "held/", true, get_held},
	{"GET", "held", false, get_held},
	{"GET", "journal", false, get_journal},
	{"DELETE", "journal", false, delete_journal},
	{"GET", "stats", false, get_stats},
	{"DELETE", "stats", false, delete_stats},
};

/* Answers one administrative request; without more ado it is 204. */
After
admin(Conn *conn, const Request *req)
{
	Answer		answer = {.status = 204};
	Slice		rest = req->path;
	const Route *route = NULL;
	char		phone[64];
	size_t		i;

	rest.at += strlen(ADMIN_PREFIX);
	rest.len -= strlen(ADMIN_PREFIX);
	for (i = 0; i < sizeof(routes) / sizeof(routes[0]) && route == NULL; i++)
	{
		size_t		len = strlen(routes[i].path);
		Slice		tail;

		if (!slice_is(req->method, routes[i].method) || rest.len < len ||
			memcmp(rest.at, routes[i].path, len) != 0)
			continue;
		tail.at = rest.at + len;
		tail.len = rest.len - len;
		if (routes[i].phone ? decode_phone(tail, phone, sizeof(phone)) : tail.len == 0)
			route = &routes[i];
	}
	if (route != NULL)
		route->run(req, route->phone ? phone : NULL, &answer);
	else
		answer_no_route(&answer, req);

	answer_whole(&answer, req, !req->keep_alive, &conn->out);
	answer_free(&answer);
	if (!conn_send(conn, conn->out.data, conn->out.len) || !req->keep_alive)
		return AFTER_CLOSE;
	return AFTER_KEEP;
}

/* The end of a path, without its percent escapes. */
static bool
decode_phone(Slice text, char *phone, size_t size)
{
	size_t		len = 0;
	size_t		i;

	for (i = 0; i < text.len; i++)
	{
		char		c = text.at[i];

		if (c == '%' && text.len - i > 2)
		{
			char		hex[3] = {text.at[i + 1], text.at[i + 2], '\0'};

			c = (char) strtol(hex, NULL, 16);
			i += 2;
		}
		if (len == size - 1 || c == '/' || c == '\0')
			return false;
		phone[len++] = c;
	}
	phone[len] = '\0';
	return len > 0;
}

/* The body as JSON; where it is none, the answer says so. */
static json_t *
body_or_problem(const Request *req, Answer *answer)
{
	json_error_t error;
	json_t	   *body;

	body = json_loadb(req->body.at, req->body.len, JSON_ALLOW_NUL, &error);
	if (body == NULL)
		answer_message(answer, 400, json_string(error.text));
	return body;
}

static void
put_customer(const Request *req, const char *phone, Answer *answer)
{
	json_t	   *body = body_or_problem(req, answer);
	json_t	   *tags = json_object_get(body, "tags");
	json_t	   *fields = json_object_get(body, "customFields");
	json_t	   *phone_text = json_string(bare_phone(phone));

	if (body != NULL)
	{
		if (!is_phone(phone_text))
			answer_message(answer, 400, json_string("not a phone number"));
		else if (!is_all_strings(tags) || !is_all_strings(fields))
			answer_message(answer, 400,
						   json_string("tags and customFields must be arrays of strings"));
		else
			customer_put(phone, json_pack("{so so}", "tags", json_deep_copy(tags),
										  "customFields", json_deep_copy(fields)));
	}
	json_decref(phone_text);
	json_decref(body);
}

static void
get_customer(const Request *req, const char *phone, Answer *answer)
{
	json_t	   *customer = customer_get(phone);

	(void) req;
	if (customer == NULL)
	{
		answer_canned(answer, 404);
		return;
	}
	json_object_set_new(customer, "phone", json_string(bare_phone(phone)));
	answer_json(answer, 200, customer);
}

static void
delete_customers(const Request *req, const char *phone, Answer *answer)
{
	(void) req;
	(void) phone;
	(void) answer;
	customer_clear();
}

static void
put_rule(const Request *req, const char *phone, Answer *answer)
{
	json_t	   *rule = body_or_problem(req, answer);
	json_t	   *wrong;

	if (rule == NULL)
		return;
	wrong = rule_wrong(rule);
	if (wrong == NULL)
		rule_put(phone, rule);
	else
	{
		answer_message(answer, 400, wrong);
		json_decref(rule);
	}
}

/* One phone's, or all. */
static void
delete_rules(const Request *req, const char *phone, Answer *answer)
{
	(void) req;
	(void) answer;
	rule_clear(phone);
}

/* Lets the answers go that are held now, for one phone or all, and counts them. */
static void
post_release(const Request *req, const char *phone, Answer *answer)
{
	(void) req;
	answer_json(answer, 200, json_pack("{si}", "released",
									   hold_release(phone ? phone : ANY_PHONE)));
}

/* How many answers are held, for one phone or all. */
static void
get_held(const Request *req, const char *phone, Answer *answer)
{
	(void) req;
	answer_json(answer, 200, json_pack("{si}", "held",
									   hold_count(phone ? phone : ANY_PHONE)));
}

/* All of it, or what came after ?since=N. */
static void
get_journal(const Request *req, const char *phone, Answer *answer)
{
	uint64_t	since = 0;
	size_t		i;

	(void) phone;
	if (req->query.len > 6 && memcmp(req->query.at, "since=", 6) == 0)
	{
		for (i = 6; i < req->query.len && req->query.at[i] >= '0' &&
			 req->query.at[i] <= '9'; i++)
			since = since * 10 + (uint64_t) (req->query.at[i] - '0');
	}
	answer_json(answer, 200, journal_since(since));
}

static void
delete_journal(const Request *req, const char *phone, Answer *answer)
{
	(void) req;
	(void) phone;
	(void) answer;
	journal_clear();
}

static void
get_stats(const Request *req, const char *phone, Answer *answer)
{
	(void) req;
	(void) phone;
	answer_json(answer, 200, stats_get());
}

static void
delete_stats(const Request *req, const char *phone, Answer *answer)
{
	(void) req;
	(void) phone;
	(void) answer;
	stats_reset();
}

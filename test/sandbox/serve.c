/*-------------------------------------------------------------------------
 *
 * serve.c
 *		What happens on one connection: request after request is read, told
 *		apart, written down, and answered or mistreated.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <string.h>

static After serve_request(Conn *conn, const Request *req);
static After serve_api(Conn *conn, const Request *req);
static void read_json(Exchange *x);
static void find_rule(Exchange *x);
static void count_connection(Conn *conn);

/* The life of a connection, from its accept to its end. */
void
serve(Conn *conn)
{
	Request		req;
	After		after = AFTER_KEEP;

	if (conn->listener->tls != NULL)
		count_connection(conn);
	if (!conn_handshake(conn))
		after = AFTER_CLOSE;
	while (after == AFTER_KEEP)
	{
		int			wrong = read_request(conn, &req);

		if (wrong < 0)
			after = AFTER_CLOSE;
		else if (wrong > 0)
			after = refuse(conn, &req, wrong, AFTER_LINGER);
		else
			after = serve_request(conn, &req);
	}
	conn_end(conn, after);
}

/* The plain listener also is the control panel and a proxy. */
static After
serve_request(Conn *conn, const Request *req)
{
	if (conn->listener->tls == NULL)
	{
		if (slice_is(req->method, "CONNECT"))
			return tunnel(conn, req);
		if (req->path.len >= strlen(ADMIN_PREFIX) &&
			memcmp(req->path.at, ADMIN_PREFIX, strlen(ADMIN_PREFIX)) == 0)
			return admin(conn, req);
		count_connection(conn);
	}
	return serve_api(conn, req);
}

/*
 * Counts a connection once.  One to the plain listener counts when it first
 * carries something else than administration, so that a test's own look at
 * the statistics does not show in them.
 */
static void
count_connection(Conn *conn)
{
	if (!conn->counted)
		stats_connection();
	conn->counted = true;
}

/*
 * One API request.  The journal has it before anything goes out: a test that
 * has seen the answer, or any part of it, finds it there.
 */
static After
serve_api(Conn *conn, const Request *req)
{
	Exchange	x = {.conn = conn,.req = req};
	After		after;
	int			delay;

	stats_enter();
	x.in_flight = true;
	read_json(&x);
	find_rule(&x);
	if (settings.journal)
		x.entry = journal_record(&x);

	if (x.rule != NULL)
		rule_compose(&x);
	else
		api_answer(&x);

	delay = rule_int(x.rule, "delay_ms", 0);
	if (x.hold != NULL && !hold_wait(x.hold, conn))
		after = AFTER_CLOSE;
	else if (delay > 0 && peer_left(conn, delay))
		after = AFTER_CLOSE;
	else if (x.fault != NULL)
		after = x.fault->run(&x);
	else
		after = exchange_send(&x);

	exchange_leave(&x);
	answer_free(&x.answer);
	json_decref(x.body);
	rule_release(x.rule);
	return after;
}

/* Parses the body; what is wrong with it is for the answer to say. */
static void
read_json(Exchange *x)
{
	json_error_t error;

	x->body = json_loadb(x->req->body.at, x->req->body.len,
						 JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
	if (x->body == NULL)
		x->bad_at = error.position;
}

/* A rule goes by the phone, be the rest of the request right or not. */
static void
find_rule(Exchange *x)
{
	const char *phone;

	if (!is_api_request(x->req))
		return;
	phone = json_string_value(json_object_get(x->body, "phone"));
	x->rule = rule_take(phone ? phone : "", x->req->body.len, &x->hold);
	if (x->rule != NULL)
		x->fault = fault_find(json_string_value(json_object_get(x->rule, "fault")));
}

/*
 * Takes the exchange out of the count of those in flight.  To be called before
 * the last byte of an answer leaves: the client's next request, on another
 * connection, may overtake anything done after it.
 */
void
exchange_leave(Exchange *x)
{
	if (x->in_flight)
		stats_leave();
	x->in_flight = false;
}

/* Sends the answer as it is. */
After
exchange_send(Exchange *x)
{
	Conn	   *conn = x->conn;

	answer_whole(&x->answer, x->req, !x->req->keep_alive, &conn->out);
	journal_status(x->entry, x->answer.status);
	exchange_leave(x);
	if (!conn_send(conn, conn->out.data, conn->out.len))
		return AFTER_CLOSE;
	return x->req->keep_alive ? AFTER_KEEP : AFTER_CLOSE;
}

/* Answers what is not let in, by the API's body for a status. */
After
refuse(Conn *conn, const Request *req, int status, After after)
{
	Answer		answer = {0};

	answer_canned(&answer, status);
	answer_whole(&answer, req, true, &conn->out);
	conn_send(conn, conn->out.data, conn->out.len);
	answer_free(&answer);
	return after;
}

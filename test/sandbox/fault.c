/*-------------------------------------------------------------------------
 *
 * fault.c
 *		The misbehaviours.
 *
 * Each is one function that sends, or does not send, what it is named for, and
 * says what shall become of the connection.  Those that go on for ever block in
 * the write or in poll until the peer goes away.  Those with a status of their
 * own do not make the normal answer, and so leave the customer alone.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#ifdef __linux__
#include <linux/sockios.h>
#endif

/* What the endless ones write at a time. */
#define BLOCK			(16 * 1024)

/* Up to how much of a header line libcurl 7.88 hands over at a time. */
#define PIECE			(16 * 1024)

/* How far a "truncate" answer's Content-Length overstates its body. */
#define MISSING_BYTES	64

/* Length of the header of a gzip stream without a name. */
#define GZIP_HEADER		10

/* After how long an answer comes that nobody asked for. */
#define UNASKED_MS		50

#define CHUNKED			"Transfer-Encoding: chunked\r\n"

static After hang(Exchange *x);
static After reset(Exchange *x);
static After reset_body(Exchange *x);
static After truncate_body(Exchange *x);
static After truncate_chunked(Exchange *x);
static After slow(Exchange *x);
static After not_http(Exchange *x);
static After empty(Exchange *x);
static After endless(Exchange *x);
static After send_bomb(Exchange *x);
static After gzip_whole(Exchange *x);
static After gzip_bad(Exchange *x);
static After header_flood(Exchange *x);
static After long_header(Exchange *x);
static After bad_chunks(Exchange *x);
static After chunked(Exchange *x);
static After redirect(Exchange *x);
static After interim(Exchange *x);
static After endless_interim(Exchange *x);
static After close_after(Exchange *x);
static After close_idle(Exchange *x);
static After echo_key(Exchange *x);
static After no_content(Exchange *x);
static After fold_first(Exchange *x);
static After fold_tab(Exchange *x);
static After fold_interim(Exchange *x);
static After fold_long(Exchange *x);
static After long_first(Exchange *x);
static After end_status_line_by(Exchange *x, const char *text);
static After unasked(Exchange *x);
static After unasked_refusal(Exchange *x);
static After until_close(Exchange *x);
static After until_cut(Exchange *x);

static void answering(Exchange *x);
static void send_out(Exchange *x);
static void head_only(Exchange *x, const char *framing);
static void await_sent(Conn *conn);
static After send_forever(Exchange *x, const void *block, size_t len, int pause_ms);
static void pack_body(Answer *answer);
static void add_chunk(Buffer *out, const char *data, size_t len);

static const Fault faults[] = {
	{"hang", 201, hang},
	{"reset", 201, reset},
	{"reset_body", 0, reset_body},
	{"truncate", 0, truncate_body},
	{"truncate_chunked", 0, truncate_chunked},
	{"slow", 0, slow},
	{"not_http", 201, not_http},
	{"empty", 201, empty},
	{"endless", 201, endless},
	{"gzip_bomb", 201, send_bomb},
	{"gzip", 0, gzip_whole},
	{"bad_gzip", 0, gzip_bad},
	{"header_flood", 201, header_flood},
	{"long_header", 201, long_header},
	{"bad_chunks", 201, bad_chunks},
	{"chunked", 0, chunked},
	{"redirect", 302, redirect},
	{"interim", 0, interim},
	{"endless_interim", 201, endless_interim},
	{"close", 0, close_after},
	{"close_idle", 0, close_idle},
	{"echo_key", 400, echo_key},
	{"no_content", 0, no_content},
	{"fold_first", 0, fold_first},
	{"fold_tab", 0, fold_tab},
	{"fold_interim", 0, fold_interim},
	{"fold_long", 0, fold_long},
	{"long_first", 0, long_first},
	{"unasked", 0, unasked},
	{"unasked_refusal", 0, unasked_refusal},
	{"until_close", 0, until_close},
	{"until_cut", 0, until_cut},
};

/* NULL when there is none of that name. */
const Fault *
fault_find(const char *name)
{
	size_t		i;

	if (name == NULL)
		return NULL;
	for (i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
	{
		if (strcmp(faults[i].name, name) == 0)
			return &faults[i];
	}
	return NULL;
}

/* Reads the request and never answers it. */
static After
hang(Exchange *x)
{
	while (!peer_left(x->conn, -1))
		continue;
	return AFTER_CLOSE;
}

/* RST before a byte of the answer. */
static After
reset(Exchange *x)
{
	exchange_leave(x);
	return AFTER_RESET;
}

/* RST after half of the body. */
static After
reset_body(Exchange *x)
{
	Buffer	   *out = &x->conn->out;

	answer_whole(&x->answer, x->req, false, out);
	out->len -= x->answer.body.len - x->answer.body.len / 2;
	send_out(x);
	await_sent(x->conn);
	return AFTER_RESET;
}

/*
 * A whole body, but announced as a longer one, and a clean end: a client that
 * does not count would take it for the answer.
 */
static After
truncate_body(Exchange *x)
{
	char		framing[64];

	snprintf(framing, sizeof(framing), "Content-Length: %zu\r\n",
			 x->answer.body.len + MISSING_BYTES);
	head_only(x, framing);
	buffer_add(&x->conn->out, x->answer.body.data, x->answer.body.len);
	send_out(x);
	return AFTER_CLOSE;
}

/* The same in chunks: the last one never comes. */
static After
truncate_chunked(Exchange *x)
{
	head_only(x, CHUNKED);
	add_chunk(&x->conn->out, x->answer.body.data, x->answer.body.len);
	send_out(x);
	return AFTER_CLOSE;
}

/* The normal answer, byte by byte. */
static After
slow(Exchange *x)
{
	Buffer	   *out = &x->conn->out;
	int			interval = rule_int(x->rule, "interval_ms", 100);
	size_t		i;

	answer_whole(&x->answer, x->req, !x->req->keep_alive, out);
	journal_status(x->entry, x->answer.status);
	for (i = 0; i < out->len; i++)
	{
		if (i == out->len - 1)
			exchange_leave(x);
		if (!conn_send(x->conn, out->data + i, 1) || peer_left(x->conn, interval))
			return AFTER_CLOSE;
	}
	return x->req->keep_alive ? AFTER_KEEP : AFTER_CLOSE;
}

static After
not_http(Exchange *x)
{
	static const char greeting[] = "SSH-2.0-OpenSSH_9.2\r\n";

	exchange_leave(x);
	conn_send(x->conn, greeting, sizeof(greeting) - 1);
	return AFTER_CLOSE;
}

/* A clean end without a byte. */
static After
empty(Exchange *x)
{
	exchange_leave(x);
	return AFTER_CLOSE;
}

/* A JSON document whose string never ends. */
static After
endless(Exchange *x)
{
	static const char opening[] = "{\"message\":\"";
	Buffer	   *out = &x->conn->out;
	char		block[BLOCK];

	memset(block, 'x', sizeof(block));
	head_only(x, CHUNKED);
	add_chunk(out, opening, sizeof(opening) - 1);
	send_out(x);
	out->len = 0;
	add_chunk(out, block, sizeof(block));
	return send_forever(x, out->data, out->len, 0);
}

/* Small on the wire, 64 MiB when decoded, and JSON all the way. */
static After
send_bomb(Exchange *x)
{
	const Buffer *bomb = gzip_bomb();

	buffer_addf(&x->answer.headers, "Content-Encoding: gzip\r\n");
	x->answer.body.len = 0;
	buffer_add(&x->answer.body, bomb->data, bomb->len);
	return exchange_send(x);
}

/* The normal answer, compressed as it should be. */
static After
gzip_whole(Exchange *x)
{
	pack_body(&x->answer);
	return exchange_send(x);
}

/* Looks like gzip up to the first block, whose type does not exist. */
static After
gzip_bad(Exchange *x)
{
	pack_body(&x->answer);
	x->answer.body.data[GZIP_HEADER] = (char) 0xFF;
	return exchange_send(x);
}

/* Headers for ever, each of another name. */
static After
header_flood(Exchange *x)
{
	Buffer	   *out = &x->conn->out;
	unsigned long n = 0;

	head_only(x, "");
	out->len -= 2;
	send_out(x);
	for (;;)
	{
		out->len = 0;
		while (out->len < BLOCK)
			buffer_addf(out, "X-Flood-%lu: drop\r\n", n++);
		if (!conn_send(x->conn, out->data, out->len))
			return AFTER_CLOSE;
	}
}

/* One header whose line never ends. */
static After
long_header(Exchange *x)
{
	Buffer	   *out = &x->conn->out;
	char		block[BLOCK];

	memset(block, 'x', sizeof(block));
	head_only(x, "");
	out->len -= 2;
	buffer_addf(out, "X-Long: ");
	send_out(x);
	return send_forever(x, block, sizeof(block), 0);
}

/* A chunk whose size is no number. */
static After
bad_chunks(Exchange *x)
{
	head_only(x, CHUNKED);
	buffer_addf(&x->conn->out, "nonsense\r\n{}\r\n0\r\n\r\n");
	send_out(x);
	return AFTER_CLOSE;
}

/* The normal answer in small chunks, with an extension and a trailer. */
static After
chunked(Exchange *x)
{
	Buffer	   *out = &x->conn->out;
	const Buffer *body = &x->answer.body;
	size_t		at;

	answer_head(&x->answer, x->req, CHUNKED "Trailer: X-Sandbox-Trailer\r\n",
				!x->req->keep_alive, out);
	for (at = 0; at < body->len; at += 7)
		add_chunk(out, body->data + at, body->len - at < 7 ? body->len - at : 7);
	buffer_addf(out, "0;last=yes\r\nX-Sandbox-Trailer: done\r\n\r\n");
	send_out(x);
	return x->req->keep_alive ? AFTER_KEEP : AFTER_CLOSE;
}

/* To where the rule says, or to the same path where all is well. */
static After
redirect(Exchange *x)
{
	const char *location = json_string_value(json_object_get(x->rule, "location"));

	if (location != NULL)
		buffer_addf(&x->answer.headers, "Location: %s\r\n", location);
	else
		buffer_addf(&x->answer.headers, "Location: https://localhost:%d%.*s\r\n",
					settings.listeners[LISTEN_HTTPS].port,
					(int) x->req->path.len, x->req->path.at);
	return exchange_send(x);
}

/* Three interim answers, then the normal one. */
static After
interim(Exchange *x)
{
	static const char before[] =
		"HTTP/1.1 100 Continue\r\n\r\n"
		"HTTP/1.1 102 Processing\r\n\r\n"
		"HTTP/1.1 103 Early Hints\r\nLink: </hint>; rel=preload\r\n\r\n";

	if (!conn_send(x->conn, before, sizeof(before) - 1))
		return AFTER_CLOSE;
	return exchange_send(x);
}

/* Interim answers for ever; paced, since each of them is work for the client. */
static After
endless_interim(Exchange *x)
{
	static const char hint[] =
		"HTTP/1.1 103 Early Hints\r\nLink: </hint>; rel=preload\r\n\r\n";

	journal_status(x->entry, 103);
	return send_forever(x, hint, sizeof(hint) - 1, 10);
}

/* The normal answer, then an end that no header has announced. */
static After
close_after(Exchange *x)
{
	answer_whole(&x->answer, x->req, false, &x->conn->out);
	send_out(x);
	return AFTER_CLOSE;
}

/*
 * The normal answer; the connection then stays until the next request begins
 * to arrive, and ends instead of answering it.  This is what a client sees that
 * reuses a connection in the moment the server drops it as idle.
 */
static After
close_idle(Exchange *x)
{
	answer_whole(&x->answer, x->req, false, &x->conn->out);
	send_out(x);
	if (x->conn->start == x->conn->end)
		conn_fill(x->conn);
	return AFTER_CLOSE;
}

/* A refusal that repeats the caller's secret, as careless servers do. */
static After
echo_key(Exchange *x)
{
	const Slice *sent = find_header(x->req, "Authorization");
	Buffer		text = {0};
	Slice		message;

	buffer_addf(&text, "Invalid public api key ");
	if (sent != NULL)
		buffer_add(&text, sent->at, sent->len);
	message.at = text.data;
	message.len = text.len;
	answer_message(&x->answer, x->answer.status, slice_to_json(message));
	buffer_free(&text);
	return exchange_send(x);
}

/* Done, and nothing to say about it. */
static After
no_content(Exchange *x)
{
	if (x->answer.status < 300)
	{
		x->answer.status = 204;
		x->answer.content_type = NULL;
		x->answer.body.len = 0;
	}
	return exchange_send(x);
}

/* The normal answer, but its first header line goes on with one that is not there. */
static After
fold_first(Exchange *x)
{
	return end_status_line_by(x, "\r\n a: b");
}

static After
fold_tab(Exchange *x)
{
	return end_status_line_by(x, "\r\n\ta: b");
}

/* The same after an interim answer without headers. */
static After
fold_interim(Exchange *x)
{
	static const char before[] = "HTTP/1.1 100 Continue\r\n\r\n";

	if (!conn_send(x->conn, before, sizeof(before) - 1))
		return AFTER_CLOSE;
	return fold_first(x);
}

/* The same after a status line so long that libcurl hands it over in pieces. */
static After
fold_long(Exchange *x)
{
	char		text[PIECE + 200];

	snprintf(text, sizeof(text), "%0*d\r\n a: b", PIECE + 100, 0);
	return end_status_line_by(x, text);
}

/* The normal answer, but the second piece of its first header line begins with a blank. */
static After
long_first(Exchange *x)
{
	char		text[PIECE + 200];

	snprintf(text, sizeof(text), "\r\nX-Long: %0*d and more", PIECE - 8, 0);
	return end_status_line_by(x, text);
}

/* The normal answer, with some more at the end of its status line. */
static After
end_status_line_by(Exchange *x, const char *text)
{
	Buffer	   *out = &x->conn->out;
	Buffer		whole = {0};
	const char *eol;
	size_t		len;

	answer_whole(&x->answer, x->req, !x->req->keep_alive, &whole);
	eol = memchr(whole.data, '\r', whole.len);
	len = eol - whole.data;
	out->len = 0;
	buffer_add(out, whole.data, len);
	buffer_add(out, text, strlen(text));
	buffer_add(out, whole.data + len, whole.len - len);
	buffer_free(&whole);
	send_out(x);
	return x->req->keep_alive ? AFTER_KEEP : AFTER_CLOSE;
}

/* The normal answer, and a moment later once more: the next request would get it. */
static After
unasked(Exchange *x)
{
	Buffer	   *out = &x->conn->out;

	answer_whole(&x->answer, x->req, false, out);
	send_out(x);
	if (!peer_left(x->conn, UNASKED_MS))
		conn_send(x->conn, out->data, out->len);
	return AFTER_KEEP;
}

/* The normal answer, and a moment later a refusal of no request, and the end. */
static After
unasked_refusal(Exchange *x)
{
	static const char refusal[] =
		"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

	answer_whole(&x->answer, x->req, false, &x->conn->out);
	send_out(x);
	if (!peer_left(x->conn, UNASKED_MS))
		conn_send(x->conn, refusal, sizeof(refusal) - 1);
	return AFTER_CLOSE;
}

/* The normal answer without a length: it ends with the connection. */
static After
until_close(Exchange *x)
{
	head_only(x, "");
	buffer_add(&x->conn->out, x->answer.body.data, x->answer.body.len);
	send_out(x);
	return AFTER_CLOSE;
}

/*
 * Half of it, and over TLS without a close_notify: as if somebody on the way had cut
 * the connection.
 */
static After
until_cut(Exchange *x)
{
	head_only(x, "");
	buffer_add(&x->conn->out, x->answer.body.data, x->answer.body.len / 2);
	send_out(x);
	await_sent(x->conn);
	if (x->conn->tls != NULL)
		SSL_set_quiet_shutdown(x->conn->tls, 1);
	return AFTER_CLOSE;
}

/* To be called before the first byte of the answer leaves. */
static void
answering(Exchange *x)
{
	journal_status(x->entry, x->answer.status);
	exchange_leave(x);
}

/* Sends what was laid out; who cares to know that the peer is gone asks later. */
static void
send_out(Exchange *x)
{
	answering(x);
	conn_send(x->conn, x->conn->out.data, x->conn->out.len);
}

/* Lays out the head of an answer whose body will be none of the usual. */
static void
head_only(Exchange *x, const char *framing)
{
	answer_head(&x->answer, x->req, framing, false, &x->conn->out);
}

/*
 * Waits until the peer's kernel has all that was sent: an RST overtakes what is
 * still on this side.  The rest of the wait is for the peer to read it.
 */
static void
await_sent(Conn *conn)
{
	int			i;

	for (i = 0; i < 100; i++)
	{
#ifdef SIOCOUTQ
		int			unsent = 0;

		if (i > 0 && ioctl(conn->fd, SIOCOUTQ, &unsent) == 0 && unsent == 0)
			break;
#else
		if (i == 5)
			break;
#endif
		if (peer_left(conn, 10))
			break;
	}
}

static After
send_forever(Exchange *x, const void *block, size_t len, int pause_ms)
{
	exchange_leave(x);
	while (conn_send(x->conn, block, len) &&
		   (pause_ms == 0 || !peer_left(x->conn, pause_ms)))
		continue;
	return AFTER_CLOSE;
}

static void
add_chunk(Buffer *out, const char *data, size_t len)
{
	if (len == 0)
		return;
	buffer_addf(out, "%zx\r\n", len);
	buffer_add(out, data, len);
	buffer_addf(out, "\r\n");
}

/* Replaces the body by its gzip stream, and says so. */
static void
pack_body(Answer *answer)
{
	Buffer		packed = {0};

	gzip(&answer->body, &packed);
	buffer_free(&answer->body);
	answer->body = packed;
	buffer_addf(&answer->headers, "Content-Encoding: gzip\r\n");
}

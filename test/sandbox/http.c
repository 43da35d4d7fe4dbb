/*-------------------------------------------------------------------------
 *
 * http.c
 *		Reads HTTP/1.x requests and lays out answers.
 *
 * Strict on purpose: what a lenient server would guess at, this one refuses,
 * so that a client's mistake shows in a test and not in production.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* A chunk's size line; extensions longer than this are nobody's. */
#define MAX_CHUNK_LINE	256

/* What read_request returns when there is nobody to answer. */
#define GONE			(-1)

static int	read_head(Conn *conn, Request *req);
static int	read_body(Conn *conn, Request *req);
static int	read_chunked(Conn *conn);
static int	read_line(Conn *conn, Slice *line);
static bool read_exactly(Conn *conn, size_t len);
static bool parse_request_line(Slice line, Request *req);
static bool parse_header(Slice line, Header *header);
static bool parse_length(Slice text, int base, uint64_t *length);
static bool next_line(Slice *rest, Slice *line);
static Slice trimmed(const char *from, const char *to);
static bool wants_to_stay(const Request *req);

/*
 * Reads one request.  Returns 0, the status that refuses it (the connection is
 * of no further use then), or -1 when the peer went away.
 */
int
read_request(Conn *conn, Request *req)
{
	int			wrong;

	conn->floor = 0;
	conn->body.len = 0;
	wrong = read_head(conn, req);
	if (wrong == 0 && !slice_is(req->method, "CONNECT"))
		wrong = read_body(conn, req);
	req->at = conn->arrived;
	return wrong;
}

/* Reads up to the empty line and leaves the input buffer's floor behind it. */
static int
read_head(Conn *conn, Request *req)
{
	size_t		searched = 0;

	memset(req, 0, offsetof(Request, headers));
	req->body.at = "";
	req->body.len = 0;
	for (;;)
	{
		size_t		len = conn->end - conn->start;
		size_t		from = searched > 3 ? searched - 3 : 0;
		const char *end = NULL;

		if (len > from)
			end = memmem(conn->in + conn->start + from, len - from, "\r\n\r\n", 4);
		if (end != NULL)
		{
			req->head.at = conn->in + conn->start;
			req->head.len = (size_t) (end - req->head.at) + 2;
			break;
		}
		if (len >= MAX_HEAD)
			return 431;
		searched = len;
		if (!conn_fill(conn))
			return GONE;
	}
	if (req->head.len > MAX_HEAD)
		return 431;
	conn->start += req->head.len + 2;
	conn->floor = conn->start;
	return parse_head(req->head, req) ? 0 : 400;
}

/* Takes a head apart: the request line and headers, each with its CRLF. */
bool
parse_head(Slice head, Request *req)
{
	Slice		line;

	req->head = head;
	req->nheaders = 0;
	if (!next_line(&head, &line) || !parse_request_line(line, req))
		return false;
	while (next_line(&head, &line))
	{
		if (req->nheaders == MAX_HEADERS ||
			!parse_header(line, &req->headers[req->nheaders]))
			return false;
		req->nheaders++;
	}
	req->keep_alive = wants_to_stay(req);
	return true;
}

/* "POST /path?query HTTP/1.1"; the target may be absolute, as to a proxy. */
static bool
parse_request_line(Slice line, Request *req)
{
	const char *end = line.at + line.len;
	const char *target = memchr(line.at, ' ', line.len);
	const char *version;
	const char *query;

	if (target == NULL || target == line.at)
		return false;
	req->method.at = line.at;
	req->method.len = (size_t) (target - line.at);
	target++;
	version = memchr(target, ' ', (size_t) (end - target));
	if (version == NULL || version == target || end - version != 9 ||
		memcmp(version, " HTTP/1.", 8) != 0 || (version[8] != '0' && version[8] != '1'))
		return false;
	req->http10 = version[8] == '0';

	if (version - target > 7 && strncasecmp(target, "http://", 7) == 0)
	{
		target = memchr(target + 7, '/', (size_t) (version - target - 7));
		if (target == NULL)
			return false;
	}
	query = memchr(target, '?', (size_t) (version - target));
	req->path.at = target;
	req->path.len = (size_t) ((query ? query : version) - target);
	req->query.at = query ? query + 1 : version;
	req->query.len = (size_t) (version - req->query.at);
	return true;
}

/* "Name: value"; no space may precede the colon, and no line be folded. */
static bool
parse_header(Slice line, Header *header)
{
	const char *colon = memchr(line.at, ':', line.len);
	const char *c;

	if (colon == NULL || colon == line.at)
		return false;
	for (c = line.at; c < colon; c++)
	{
		if ((unsigned char) *c <= ' ' || (unsigned char) *c >= 0x7F)
			return false;
	}
	header->name.at = line.at;
	header->name.len = (size_t) (colon - line.at);
	header->value = trimmed(colon + 1, line.at + line.len);
	return true;
}

/* Takes the next line, without its CRLF, off "rest". */
static bool
next_line(Slice *rest, Slice *line)
{
	const char *end = memmem(rest->at, rest->len, "\r\n", 2);

	if (end == NULL)
		return false;
	line->at = rest->at;
	line->len = (size_t) (end - rest->at);
	rest->at += line->len + 2;
	rest->len -= line->len + 2;
	return true;
}

static Slice
trimmed(const char *from, const char *to)
{
	Slice		result;

	while (from < to && (*from == ' ' || *from == '\t'))
		from++;
	while (from < to && (to[-1] == ' ' || to[-1] == '\t'))
		to--;
	result.at = from;
	result.len = (size_t) (to - from);
	return result;
}

static bool
wants_to_stay(const Request *req)
{
	const Slice *connection = find_header(req, "Connection");

	if (connection != NULL && slice_is_nocase(*connection, "close"))
		return false;
	if (connection != NULL && slice_is_nocase(*connection, "keep-alive"))
		return true;
	return !req->http10;
}

const Slice *
find_header(const Request *req, const char *name)
{
	int			i;

	for (i = 0; i < req->nheaders; i++)
	{
		if (slice_is_nocase(req->headers[i].name, name))
			return &req->headers[i].value;
	}
	return NULL;
}

/* Reads the body, by its announced length or in chunks. */
static int
read_body(Conn *conn, Request *req)
{
	const Slice *coding = find_header(req, "Transfer-Encoding");
	const Slice *announced = find_header(req, "Content-Length");
	const Slice *expect = find_header(req, "Expect");
	uint64_t	length = 0;
	int			wrong = 0;
	int			i;

	/* Two lengths, or a length and chunks, are how requests are smuggled. */
	for (i = 0; i < req->nheaders; i++)
	{
		if (slice_is_nocase(req->headers[i].name, "Content-Length") &&
			&req->headers[i].value != announced)
			return 400;
	}
	if (coding != NULL && announced != NULL)
		return 400;
	if (coding != NULL && !slice_is_nocase(*coding, "chunked"))
		return 501;
	if (announced != NULL && !parse_length(*announced, 10, &length))
		return 400;
	if (length > MAX_BODY)
		return 413;

	if (expect != NULL && (coding != NULL || length > 0))
	{
		if (!slice_is_nocase(*expect, "100-continue"))
			return 417;
		if (conn->start == conn->end &&
			!conn_send(conn, "HTTP/1.1 100 Continue\r\n\r\n", 25))
			return GONE;
	}
	if (coding != NULL)
		wrong = read_chunked(conn);
	else if (!read_exactly(conn, (size_t) length))
		wrong = GONE;
	if (conn->body.len > 0)
	{
		req->body.at = conn->body.data;
		req->body.len = conn->body.len;
	}
	return wrong;
}

static int
read_chunked(Conn *conn)
{
	Slice		line;
	int			wrong;

	for (;;)
	{
		const char *extension;
		uint64_t	size;

		if ((wrong = read_line(conn, &line)) != 0)
			return wrong;
		extension = memchr(line.at, ';', line.len);
		if (extension != NULL)
			line = trimmed(line.at, extension);
		if (!parse_length(line, 16, &size))
			return 400;
		if (size > MAX_BODY - conn->body.len)
			return 413;
		if (size == 0)
			break;
		if (!read_exactly(conn, (size_t) size))
			return GONE;
		if ((wrong = read_line(conn, &line)) != 0)
			return wrong;
		if (line.len > 0)
			return 400;
	}
	/* The trailer, which says nothing that is wanted here. */
	do
	{
		if ((wrong = read_line(conn, &line)) != 0)
			return wrong;
	} while (line.len > 0);
	return 0;
}

/* Takes one line off the input; it stays valid until more is read. */
static int
read_line(Conn *conn, Slice *line)
{
	for (;;)
	{
		Slice		rest;

		rest.at = conn->in + conn->start;
		rest.len = conn->end - conn->start;
		if (next_line(&rest, line))
		{
			conn->start += line->len + 2;
			return 0;
		}
		if (rest.len > MAX_CHUNK_LINE)
			return 400;
		if (!conn_fill(conn))
			return GONE;
	}
}

/* Appends "len" bytes to the body: those already read, then from the peer. */
static bool
read_exactly(Conn *conn, size_t len)
{
	Buffer	   *body = &conn->body;
	size_t		have = conn->end - conn->start;

	if (have > len)
		have = len;
	buffer_reserve(body, len);
	buffer_add(body, conn->in + conn->start, have);
	conn->start += have;
	for (len -= have; len > 0;)
	{
		size_t		n = conn_recv(conn, body->data + body->len, len);

		if (n == 0)
			return false;
		body->len += n;
		len -= n;
	}
	return true;
}

/* Digits and nothing else, few enough not to overflow. */
static bool
parse_length(Slice text, int base, uint64_t *length)
{
	size_t		i;

	*length = 0;
	if (text.len == 0 || text.len > 15)
		return false;
	for (i = 0; i < text.len; i++)
	{
		char		c = text.at[i];
		int			digit;

		if (c >= '0' && c <= '9')
			digit = c - '0';
		else if (base == 16 && (c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			digit = (c | 0x20) - 'a' + 10;
		else
			return false;
		*length = *length * (uint64_t) base + (uint64_t) digit;
	}
	return true;
}

const char *
reason_phrase(int status)
{
	static const struct
	{
		int			status;
		const char *phrase;
	}			phrases[] = {
		{200, "OK"}, {201, "Created"}, {202, "Accepted"}, {204, "No Content"},
		{301, "Moved Permanently"}, {302, "Found"}, {303, "See Other"},
		{304, "Not Modified"}, {307, "Temporary Redirect"},
		{308, "Permanent Redirect"}, {400, "Bad Request"}, {401, "Unauthorized"},
		{403, "Forbidden"}, {404, "Not Found"}, {405, "Method Not Allowed"},
		{408, "Request Timeout"}, {409, "Conflict"}, {410, "Gone"},
		{413, "Payload Too Large"}, {417, "Expectation Failed"},
		{422, "Unprocessable Entity"}, {425, "Too Early"},
		{429, "Too Many Requests"}, {431, "Request Header Fields Too Large"},
		{500, "Internal Server Error"}, {501, "Not Implemented"},
		{502, "Bad Gateway"}, {503, "Service Unavailable"},
		{504, "Gateway Timeout"},
	};
	size_t		i;

	for (i = 0; i < sizeof(phrases) / sizeof(phrases[0]); i++)
	{
		if (phrases[i].status == status)
			return phrases[i].phrase;
	}
	return "Unnamed";
}

/* RFC 9110's IMF-fixdate; the process stays in the C locale. */
void
http_date(time_t when, char *buf, size_t size)
{
	struct tm	tm;

	gmtime_r(&when, &tm);
	strftime(buf, size, "%a, %d %b %Y %H:%M:%S GMT", &tm);
}

/*
 * The status line and all headers, with the empty line after them.  "framing"
 * is the header that tells where the body ends, with its CRLF.
 */
void
answer_head(const Answer *answer, const Request *req, const char *framing,
			bool close, Buffer *out)
{
	char		date[64];

	http_date(time(NULL), date, sizeof(date));
	out->len = 0;
	buffer_addf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\n", answer->status,
				reason_phrase(answer->status), date);
	if (answer->content_type != NULL)
		buffer_addf(out, "Content-Type: %s\r\n", answer->content_type);
	buffer_addf(out, "%s", framing);
	if (answer->headers.len > 0)
		buffer_add(out, answer->headers.data, answer->headers.len);
	if (close)
		buffer_addf(out, "Connection: close\r\n");
	else if (req->http10)
		buffer_addf(out, "Connection: keep-alive\r\n");
	buffer_addf(out, "\r\n");
}

/* The whole answer, body and all. */
void
answer_whole(const Answer *answer, const Request *req, bool close, Buffer *out)
{
	char		framing[64] = "";

	if (status_has_body(answer->status))
		snprintf(framing, sizeof(framing), "Content-Length: %zu\r\n",
				 answer->body.len);
	answer_head(answer, req, framing, close, out);
	if (status_has_body(answer->status) && !slice_is(req->method, "HEAD"))
		buffer_add(out, answer->body.data, answer->body.len);
}

/* Some statuses end with their head, whatever one would like to add. */
bool
status_has_body(int status)
{
	return status >= 200 && status != 204 && status != 304;
}

void
answer_free(Answer *answer)
{
	buffer_free(&answer->headers);
	buffer_free(&answer->body);
	memset(answer, 0, sizeof(*answer));
}

/*-------------------------------------------------------------------------
 *
 * answer.c
 *		A random HTTP answer: one as a server makes it, one of the corpus, either of
 *		them damaged, or bytes without any sense.
 *
 * Invariant: an answer that is sent in pieces, and perhaps has bytes after its end,
 * has no mark.  Such bytes may arrive just after the next request was sent, and then
 * no client can tell them from the answer to that.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include <stdio.h>
#include <string.h>
#include <zlib.h>

static const int statuses[] = {
	200, 200, 201, 201, 201, 201, 201, 201, 202, 203, 204, 205, 206, 226, 299, 300, 301, 302, 304, 307, 308,
	400, 400, 402, 403, 404, 404, 405, 406, 407, 408, 409, 410, 413, 415, 417, 421, 422, 422, 425, 428,
	429, 431, 451, 499, 500, 500, 501, 502, 503, 504, 505, 511, 520, 599, 600, 700, 999
};

static const char *const headers[] = {
	"Content-Type: application/json", "Content-Type: text/html; charset=utf-16", "Server: nginx", "X-Empty:", "X-Blank: \t ",
	"Connection: keep-alive", "Connection: close", "Connection: upgrade\r\nUpgrade: h2c", "Keep-Alive: timeout=0",
	"Retry-After: 1", "Retry-After: 0", "Retry-After: -1", "Retry-After: 99999999999999999999", "Retry-After: 3600",
	"Retry-After: Fri, 31 Dec 1999 23:59:59 GMT", "Retry-After: Fri, 31 Dec 2099 23:59:59 GMT", "Retry-After: soon",
	"Retry-After:", "Retry-After: 1.5", "Retry-After: 1, 2", "Retry-After: 0x10", "Retry-After: \xff",
	"Location: https://127.0.0.1/", "Location: //", "Location: file:///etc/passwd", "Location:", "Location: http://[::1",
	"Set-Cookie: a=b; Domain=localhost", "Set-Cookie: \x01\x02", "WWW-Authenticate: Basic realm=\"x\"", "WWW-Authenticate: Negotiate",
	"WWW-Authenticate: NTLM TlRMTVNTUAACAAAA", "WWW-Authenticate: Digest nonce=", "Proxy-Authenticate: NTLM", "Trailer: X-Late",
	"Alt-Svc: h3=\":443\"", "Strict-Transport-Security: max-age=1", "Content-Range: bytes 0-1/2", "Accept-Ranges: bytes",
	"Transfer-Encoding: identity", "Content-Encoding: identity", "Content-Encoding: br", "Content-Encoding: x-unknown",
	"Last-Modified: x", "Date: x", "X-Folded: a\r\n b", " X-Blank-First: a", "X-No-Colon", ": no name", "X-Nul: a\x02"
};

static void make_whole(Buffer *bytes, Random *random, const char *mark);
static void add_interim(Buffer *bytes, Random *random);
static void add_status_line(Buffer *bytes, Random *random, int status, const char *reason);
static void add_headers(Buffer *bytes, Random *random);
static void add_framed_body(Buffer *bytes, Random *random, const char *mark);
static void add_gzip(Buffer *bytes, const Buffer *body);
static void add_chunks(Buffer *bytes, Random *random, const Buffer *body);
static void make_case(Buffer *bytes, Random *random, const char *mark);
static void make_noise(Buffer *bytes, Random *random);
static void damage(Buffer *bytes, Random *random);
static void cut_into_pieces(Answer *answer, Random *random);

/*
 * The answer to a request for this phone and tag.  The same seed, phone and tag make the
 * same bytes.
 */
void
make_answer(Answer *answer, uint64_t seed, const char *phone, const char *tag)
{
	Random		random = random_of(seed, phone);
	Buffer	   *bytes = &answer->bytes;
	size_t		dice = random_below(&random, 1000);
	bool		is_damaged = random_chance(&random, 0.4);
	bool		is_cut = random_chance(&random, 0.15);
	char		mark[MARK_LENGTH + 1];

	snprintf(mark, sizeof(mark), is_cut ? "no mark in this answer.." : "M%s:%s:M", phone, tag);
	answer->after = AFTER_KEEP;
	if (dice < 650)
		make_whole(bytes, &random, mark);
	else if (dice < 960)
	{
		make_case(bytes, &random, mark);
		answer->after = AFTER_IDLE_CLOSE;
	}
	else if (dice < 985)
	{
		make_noise(bytes, &random);
		answer->after = AFTER_IDLE_CLOSE;
	}
	else
	{
		/* Nothing at all. */
		is_damaged = false;
		answer->after = dice < 990 ? AFTER_CLOSE : dice < 995 ? AFTER_RESET : AFTER_IDLE_CLOSE;
	}

	if (is_damaged)
	{
		damage(bytes, &random);
		answer->after = AFTER_IDLE_CLOSE;
	}
	/* The client waits for the rest until its timeout, if it misses something. */
	if (answer->after == AFTER_IDLE_CLOSE && random_chance(&random, 0.01))
		answer->after = AFTER_KEEP;
	else if (bytes->length > 0 && random_chance(&random, 0.1))
		answer->after = random_chance(&random, 0.2) ? AFTER_RESET : AFTER_CLOSE;

	answer->npieces = 1;
	answer->ends[0] = bytes->length;
	if (is_cut)
		cut_into_pieces(answer, &random);
}

/* As a server might make it, though not always a good one. */
static void
make_whole(Buffer *bytes, Random *random, const char *mark)
{
	static const char *const reasons[] = {" OK", " Created", "", " ", " \xff", " Too Many Requests"};
	int			status = statuses[random_below(random, LENGTH(statuses))];

	/* A 401 holds a lane of the queue, and a 404 that has no route, too. */
	if (random_chance(random, 0.01))
		status = 401;
	if (random_chance(random, 0.05))
		add_interim(bytes, random);
	add_status_line(bytes, random, status, reasons[random_below(random, LENGTH(reasons))]);
	add_headers(bytes, random);
	add_framed_body(bytes, random, mark);
	/* An answer that nobody asked for. */
	if (random_chance(random, 0.05))
	{
		buffer_add_text(bytes, "HTTP/1.1 201 Created\r\n");
		add_framed_body(bytes, random, mark);
	}
}

static void
add_interim(Buffer *bytes, Random *random)
{
	size_t		n = 1 + random_below(random, random_chance(random, 0.05) ? 200 : 4);

	while (n-- > 0)
	{
		add_status_line(bytes, random, 100 + (int) random_below(random, 5), " Wait");
		add_headers(bytes, random);
		buffer_add_text(bytes, "\r\n");
	}
}

/* Now and then in a form that only a tolerant client takes, or before a folded line. */
static void
add_status_line(Buffer *bytes, Random *random, int status, const char *reason)
{
	static const char *const odd[] = {"http/1.1 ", "HTTP/ 1. 1 ", "HTTP/1.1 \t", "HTTP/1.1  ", "HTTP/2 00", "HTTP/2"};

	if (random_chance(random, 0.03))
		buffer_add_text(bytes, odd[random_below(random, LENGTH(odd))]);
	else
		buffer_add_format(bytes, "HTTP/1.%d ", random_chance(random, 0.95));
	buffer_add_format(bytes, "%d%s\r\n", status, reason);
	if (random_chance(random, 0.03))
		buffer_add_text(bytes, random_chance(random, 0.5) ? " a: b\r\n" : "\ta\r\n");
}

static void
add_headers(Buffer *bytes, Random *random)
{
	size_t		n = random_below(random, random_chance(random, 0.01) ? 300 : 4);

	while (n-- > 0)
	{
		buffer_add_text(bytes, headers[random_below(random, LENGTH(headers))]);
		buffer_add_text(bytes, random_chance(random, 0.98) ? "\r\n" : "\n");
	}
}

/* The last headers and the body. */
static void
add_framed_body(Buffer *bytes, Random *random, const char *mark)
{
	Buffer		body = {0};
	Buffer		packed = {0};
	Buffer	   *sent = &body;

	add_random_body(&body, random, mark);
	if (random_chance(random, 0.1))
	{
		add_gzip(&packed, &body);
		buffer_add_format(bytes, "Content-Encoding: %s\r\n", random_chance(random, 0.8) ? "gzip" : "deflate");
		sent = &packed;
	}
	if (random_chance(random, 0.2))
	{
		buffer_add_text(bytes, "Transfer-Encoding: chunked\r\n\r\n");
		add_chunks(bytes, random, sent);
	}
	else
	{
		size_t		length = sent->length;

		if (random_chance(random, 0.05))
			length += random_below(random, 20) - 10;	/* a lie */
		buffer_add_format(bytes, "Content-Length: %zu\r\n\r\n", length);
		buffer_add(bytes, sent->data, sent->length);
	}
	buffer_free(&body);
	buffer_free(&packed);
}

static void
add_gzip(Buffer *bytes, const Buffer *body)
{
	static unsigned char packed[4 * 1024 * 1024];
	z_stream	stream = {0};

	if (deflateInit2(&stream, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
		return;
	stream.next_in = (Bytef *) body->data;
	stream.avail_in = body->length;
	stream.next_out = packed;
	stream.avail_out = sizeof(packed);
	deflate(&stream, Z_FINISH);
	buffer_add(bytes, packed, stream.total_out);
	deflateEnd(&stream);
}

static void
add_chunks(Buffer *bytes, Random *random, const Buffer *body)
{
	static const char *const extensions[] = {"", "", "", "", ";a=b", " ", ";\xff", "\t"};

	for (size_t at = 0; at < body->length;)
	{
		size_t		length = 1 + random_below(random, body->length - at);

		buffer_add_format(bytes, random_chance(random, 0.9) ? "%zx%s\r\n" : "000%zX%s\r\n", length,
						  extensions[random_below(random, LENGTH(extensions))]);
		buffer_add(bytes, body->data + at, length);
		buffer_add_text(bytes, "\r\n");
		at += length;
	}
	buffer_add_text(bytes, "0\r\n");
	if (random_chance(random, 0.2))
		buffer_add_text(bytes, "X-Late: a\r\nRetry-After: 7\r\n");
	buffer_add_text(bytes, "\r\n");
}

static void
make_case(Buffer *bytes, Random *random, const char *mark)
{
	const Case *chosen = &corpus[random_below(random, ncorpus)];

	for (size_t i = 0; i < chosen->length; i++)
	{
		if (chosen->bytes[i] == '\1')
			buffer_add_text(bytes, mark);
		else
			buffer_add(bytes, chosen->bytes + i, 1);
	}
}

static void
make_noise(Buffer *bytes, Random *random)
{
	size_t		n = random_below(random, 400);

	if (random_chance(random, 0.5))
		buffer_add_text(bytes, "HTTP/1.1 ");
	while (n-- > 0)
	{
		if (random_chance(random, 0.3))
		{
			const Case *token = &tokens[random_below(random, ntokens)];

			buffer_add(bytes, token->bytes, token->length);
		}
		else
		{
			unsigned char byte = random_next(random) & 0xff;

			buffer_add(bytes, &byte, 1);
		}
	}
}

/* Mostly once, in the first bytes, where the status line and the headers are. */
static void
damage(Buffer *bytes, Random *random)
{
	size_t		times = 1 + random_below(random, random_chance(random, 0.2) ? 20 : 2);

	while (times-- > 0 && bytes->length > 0)
	{
		size_t		within = random_chance(random, 0.7) && bytes->length > 100 ? 100 : bytes->length;
		size_t		at = random_below(random, within);
		size_t		length = 1 + random_below(random, bytes->length - at < 16 ? bytes->length - at : 16);
		const Case *token = &tokens[random_below(random, ntokens)];
		char		byte = random_next(random) & 0xff;
		char		copy[16];

		switch (random_below(random, 8))
		{
			case 0:
				bytes->data[at] ^= 1 << random_below(random, 8);
				break;
			case 1:
				bytes->data[at] = byte;
				break;
			case 2:
				buffer_replace(bytes, at, length, "", 0);
				break;
			case 3:
				memcpy(copy, bytes->data + at, length);
				buffer_replace(bytes, random_below(random, within), 0, copy, length);
				break;
			case 4:
				bytes->length = at;
				break;
			default:
				buffer_replace(bytes, at, random_chance(random, 0.5) ? 0 : length, token->bytes, token->length);
		}
	}
}

static void
cut_into_pieces(Answer *answer, Random *random)
{
	size_t		length = answer->bytes.length;
	size_t		at = 0;

	answer->npieces = 1 + random_below(random, MAX_PIECES);
	for (int i = 0; i < answer->npieces - 1; i++)
	{
		at += random_below(random, length - at + 1) / 2;
		answer->ends[i] = at;
	}
	answer->ends[answer->npieces - 1] = length;
}

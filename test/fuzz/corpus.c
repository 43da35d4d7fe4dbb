/*-------------------------------------------------------------------------
 *
 * corpus.c
 *		Answers that are known to be hard to read, and the pieces that damage others.
 *
 * The byte \1 stands for the mark, which has MARK_LENGTH (24) bytes.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#define CASE(text) {text, sizeof(text) - 1}

/* 32 bytes with the mark. */
#define OBJECT "{\"a\":\"" "\1" "\"}"
#define LENGTH_OF_OBJECT "Content-Length: 32\r\n"
#define CREATED "HTTP/1.1 201 Created\r\n"
#define GOOD CREATED LENGTH_OF_OBJECT "\r\n" OBJECT
#define CONTINUE "HTTP/1.1 100 Continue\r\n\r\n"

const Case corpus[] = {
	CASE(GOOD),
	CASE(CREATED "Connection: close\r\n\r\n" OBJECT),
	CASE(CREATED "\r\n" OBJECT),
	CASE("HTTP/1.0 201 Created\r\n\r\n" OBJECT),
	CASE("HTTP/1.0 201 Created\r\nConnection: keep-alive\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),

	/* Unasked answers, and answers in a row. */
	CASE(GOOD GOOD),
	CASE(GOOD "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
	CASE("HTTP/1.1 204 No Content\r\n\r\n" GOOD),
	CASE("HTTP/1.1 204 No Content\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 304 Not Modified\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 0\r\n\r\n" GOOD),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" GOOD),

	/* Interim answers. */
	CASE(CONTINUE GOOD),
	CASE(CONTINUE CONTINUE CONTINUE GOOD),
	CASE("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nRetry-After: 9\r\n\r\n" GOOD),
	CASE("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" GOOD),
	CASE("HTTP/1.1 101 Switching Protocols\r\n\r\n\0\0\0\0\4\0\0\0\0\0"),
	CASE("HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n" GOOD),
	CASE("HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n" GOOD),
	CASE("HTTP/1.1 199 Odd\r\n\r\n" GOOD),
	CASE(CONTINUE),
	CASE("HTTP/1.1 100\r\n\r\nHTTP/1.1 100\r\n\r\n" CREATED),

	/* Status lines. */
	CASE("HTTP/1.1 000 Zero\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 99 Low\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 1000 High\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 -201 Negative\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 2147483848 Large\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 2O1 Letter\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1\t201\tTab\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1  201 Blanks\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1201 None\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 201\0 Nul\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/2 201\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/2.0 201 Two\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/3 201 Three\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/9.9 201 Nine\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/0.9 201 Old\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("http/1.1 201 Small\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTPS/1.1 201 S\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("ICY 200 OK\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("RTSP/1.0 200 OK\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("\r\n" GOOD),
	CASE("\n\n\n" GOOD),
	CASE(" " GOOD),
	CASE("\0" GOOD),
	CASE("HTTP"),
	CASE("HTTP/1.1"),
	CASE("HTTP/1.1 201"),
	CASE("HTTP/1.1 201 Created\r"),
	CASE("HTTP/1.1 201 Created\r\n"),
	CASE("HTTP/1.1 201 Created\n" "Content-Length: 32\n\n" OBJECT),
	CASE("HTTP/1.1 201 Created\rContent-Length: 32\r\r" OBJECT),

	/* No HTTP. */
	CASE(OBJECT),
	CASE("<html>\1</html>"),
	CASE("SSH-2.0-OpenSSH_9.2\r\n"),
	CASE("220 mail.example.com ESMTP\r\n"),
	CASE("\x15\x03\x01\0\x02\x02\x46"),
	CASE("\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x64\0\4\0\0\xff\xff\0\5\0\0\x40\0"),

	/* Headers. */
	CASE("HTTP/1.1 201 X\r\n a: b\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 201 X\r\n\ta\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 201 X\r\n \r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "A: b\r\n c\r\n\td\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "Content-Length:\r\n 32\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length : 32\r\n\r\n" OBJECT),
	CASE(CREATED ": a\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "no colon\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "A: \0\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "A\0: b\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "Set-Cookie: =\r\nSet-Cookie: a\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),

	/* Lengths. */
	CASE(CREATED "Content-Length: 31\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 33\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: -1\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: +32\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 0x20\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 32, 32\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 32\r\nContent-Length: 5\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 5\r\nContent-Length: 32\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 9223372036854775807\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 18446744073709551616\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 99999999999999999999999\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: \r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: a\r\n\r\n" OBJECT),
	CASE(CREATED "Content-Length: 2000000\r\n\r\n" OBJECT),

	/* Chunks. */
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20\n" OBJECT "\n0\n\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20;a=\"b\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20 \r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n0x20\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n-20\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n" OBJECT),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n10000000000000020\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n1f\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n21\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20\r\n" OBJECT "0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20\r\n" OBJECT "\r\n0\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20\r\n" OBJECT "\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20\r\n" OBJECT "\r\n0\r\nA: b\r\n c\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n20\r\n" OBJECT "\r\n0\r\n a: b\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n\r\n0;" "\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: chunked\r\n" LENGTH_OF_OBJECT "\r\n20\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED LENGTH_OF_OBJECT "Transfer-Encoding: chunked\r\n\r\n" OBJECT),
	CASE(CREATED "Transfer-Encoding: chunked, chunked\r\n\r\n20\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: gzip, chunked\r\n\r\n20\r\n" OBJECT "\r\n0\r\n\r\n"),
	CASE(CREATED "Transfer-Encoding: identity\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "Transfer-Encoding: xchunked\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.0 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n" OBJECT "\r\n0\r\n\r\n"),

	/* Encodings. */
	CASE(CREATED "Content-Encoding: gzip\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "Content-Encoding: gzip, gzip, gzip, gzip, gzip, gzip, gzip\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"),
	CASE(CREATED "Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\3\x03\0\0\0\0\0\0\0\0\0"),
	CASE(CREATED "Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08\x1f\0\0\0\0\0\3"),
	CASE(CREATED "Content-Encoding: deflate\r\nContent-Length: 8\r\n\r\n\x78\x9c\x03\0\0\0\0\1"),
	CASE(CREATED "Content-Encoding: br\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE(CREATED "Content-Encoding: zstd\r\nContent-Length: 4\r\n\r\n\x28\xb5\x2f\xfd"),
	CASE(CREATED "Content-Encoding: \r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 204 No Content\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08"),

	/* Refusals and redirects. */
	CASE("HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 307 Temporary\r\nLocation: /customer/remove-tags-custom-fields\r\nContent-Length: 0\r\n\r\n"),
	CASE("HTTP/1.1 300 Choices\r\nLocation: gopher://x\r\nContent-Length: 0\r\n\r\n"),
	CASE("HTTP/1.1 407 Proxy\r\nProxy-Authenticate: Basic\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 417 Expectation Failed\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 416 Range\r\nContent-Range: bytes */1\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 421 Misdirected\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.2\r\nConnection: Upgrade\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 429 Slow\r\nRetry-After: 9223372036854775807\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 429 Slow\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 429 Slow\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 503 Busy\r\nRetry-After: -5\r\nRetry-After: 5\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT),
	CASE("HTTP/1.1 503 Busy\r\nRetry-After: 4294967296\r\n" LENGTH_OF_OBJECT "\r\n" OBJECT)
};

const size_t ncorpus = LENGTH(corpus);

const Case tokens[] = {
	CASE("\r\n"), CASE("\n"), CASE("\r"), CASE(" "), CASE("\t"), CASE(":"), CASE("\0"), CASE("\x80"), CASE("\xff"), CASE(";"), CASE(","),
	CASE("\r\n\r\n"), CASE("\r\n "), CASE("\r\n\t"), CASE("0\r\n\r\n"), CASE("-1"), CASE("18446744073709551615"), CASE("ffffffffffffffff\r\n"),
	CASE("HTTP/1.1 "), CASE("HTTP/1.1 100 Continue\r\n\r\n"), CASE("HTTP/1.1 201 Created\r\n"), CASE("HTTP/1.1 204 X\r\n\r\n"),
	CASE("Content-Length: "), CASE("Content-Length: 0\r\n"), CASE("Content-Length: 9223372036854775807\r\n"), CASE("Transfer-Encoding: chunked\r\n"),
	CASE("Content-Encoding: gzip\r\n"), CASE("Content-Encoding: gzip,gzip,gzip,gzip,gzip,gzip\r\n"), CASE("Connection: close\r\n"), CASE("Retry-After: "), CASE("Location: "),
	CASE("\x1f\x8b\x08\0"), CASE("{"), CASE("}"), CASE("["), CASE("\""), CASE("\\"), CASE("\\u0000"), CASE("\\ud800"), CASE("1e99999"), CASE("null"),
	CASE("\"statusCode\": "), CASE("\"message\": ["), CASE("\xc3\x28"), CASE("\xed\xa0\x80")
};

const size_t ntokens = LENGTH(tokens);

/*-------------------------------------------------------------------------
 *
 * account/url.c
 *		Which URLs the options base_url and proxy may hold.
 *
 * libcurl decides where a request goes.  We accept a small part of RFC 3986, which
 * all versions of libcurl read in the same way: a scheme, a host (a name, an IPv4
 * address, or an IPv6 address in brackets), a port, and a path.  We refuse what two
 * parsers could read differently.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "account/url.h"

/* Longest URL, in bytes. */
#define MAX_URL 1000

/* Longest host name, in bytes (RFC 1035, section 2.3.4). */
#define MAX_HOST 253

#define MAX_PORT 65535

#define DIGITS "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

/* A URL taken apart; the parts point into it. */
typedef struct Url
{
	const char *scheme;
	size_t		scheme_length;
	const char *host;			/* an IPv6 address without its brackets */
	size_t		host_length;
	bool		is_ipv6;
	const char *path;			/* to the end of the URL */
} Url;

/* Each list ends with NULL. */
static const char *const base_schemes[] = {"http", "https", NULL};
static const char *const proxy_schemes[] = {
	"http", "https", "socks4", "socks4a", "socks5", "socks5h", NULL
};

static const char *url_problem(const char *url, Url *parts, const char *const *schemes,
							   const char *scheme_problem);
static bool parse_url(const char *url, Url *parts);
static const char *skip_port(const char *colon);
static bool has_scheme(const Url *parts, const char *scheme);
static bool is_loopback(const Url *parts);

/*
 * What is wrong with the value of the option "base_url", as the end of a sentence
 * that starts with the option; NULL when nothing is.
 */
const char *
url_base_problem(const char *url)
{
	Url			parts;
	const char *problem = url_problem(url, &parts, base_schemes, "must start with https://");

	if (problem == NULL && has_scheme(&parts, "http") && !is_loopback(&parts))
		return "must start with https://, since its host is not a loopback address";
	return problem;
}

/*
 * The same for the option "proxy".
 */
const char *
url_proxy_problem(const char *url)
{
	Url			parts;
	const char *problem = url_problem(url, &parts, proxy_schemes,
									  "must start with http://, https:// or socks5h://");

	if (problem == NULL && parts.path[0] != '\0' && strcmp(parts.path, "/") != 0)
		return "must not contain a path";
	return problem;
}

/*
 * Do requests to this URL, which url_base_problem() accepts, leave unencrypted?
 */
bool
url_is_plain_text(const char *url)
{
	Url			parts;

	return parse_url(url, &parts) && has_scheme(&parts, "http");
}

/*
 * Do requests to this URL, which one of the above accepts, stay on this machine?
 */
bool
url_is_loopback(const char *url)
{
	Url			parts;

	return parse_url(url, &parts) && is_loopback(&parts);
}

static const char *
url_problem(const char *url, Url *parts, const char *const *schemes,
			const char *scheme_problem)
{
	for (const char *c = url; *c; c++)
	{
		if ((unsigned char) *c <= ' ' || (unsigned char) *c >= 0x7f)
			return "must be printable ASCII without blanks";
		if (*c == '@')
			return "must not contain a user or password";
		if (*c == '?' || *c == '#')
			return "must not contain a query or fragment";
		if (*c == '\\')
			return "must not contain a backslash";
	}
	if (strlen(url) > MAX_URL)
		return "is too long";
	if (!parse_url(url, parts))
		return strstr(url, "://") ? "is not a URL" : scheme_problem;
	while (*schemes && !has_scheme(parts, *schemes))
		schemes++;
	if (*schemes == NULL)
		return scheme_problem;
	if (parts->host_length == 0)
		return "has no host";
	return parts->host_length > MAX_HOST ? "has a host that is too long" : NULL;
}

/* Accepts an empty host before a path, as file URLs have it, for a better message. */
static bool
parse_url(const char *url, Url *parts)
{
	const char *end;

	parts->scheme = url;
	parts->scheme_length = strspn(url, LETTERS DIGITS "+-.");
	end = url + parts->scheme_length;
	if (parts->scheme_length == 0 || strspn(url, LETTERS) == 0 || strncmp(end, "://", 3) != 0)
		return false;

	parts->is_ipv6 = end[3] == '[';
	parts->host = end + 3 + parts->is_ipv6;
	parts->host_length = strspn(parts->host, parts->is_ipv6 ?
								DIGITS "abcdefABCDEF:." : LETTERS DIGITS "-._");
	end = parts->host + parts->host_length;
	if (parts->is_ipv6 && *end++ != ']')
		return false;
	if (parts->host_length == 0 && (parts->is_ipv6 || *end != '/'))
		return false;

	parts->path = skip_port(end);
	return parts->path && (parts->path[0] == '\0' || parts->path[0] == '/');
}

/* Returns what follows the port, if there is one; NULL when the port is not valid. */
static const char *
skip_port(const char *colon)
{
	size_t		ndigits;

	if (*colon != ':')
		return colon;
	ndigits = strspn(colon + 1, DIGITS);
	if (ndigits == 0 || ndigits > 5 || atoi(colon + 1) > MAX_PORT)
		return NULL;
	return colon + 1 + ndigits;
}

static bool
has_scheme(const Url *parts, const char *scheme)
{
	return strlen(scheme) == parts->scheme_length &&
		pg_strncasecmp(parts->scheme, scheme, parts->scheme_length) == 0;
}

/* libcurl itself resolves "localhost" to loopback addresses, always. */
static bool
is_loopback(const Url *parts)
{
	struct in_addr v4;
	struct in6_addr v6;
	char		host[MAX_HOST + 1];

	if (parts->host_length > MAX_HOST)
		return false;
	memcpy(host, parts->host, parts->host_length);
	host[parts->host_length] = '\0';
	if (parts->is_ipv6)
		return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
	if (inet_aton(host, &v4) != 0)	/* 127.1, too, as libcurl reads it */
		return (ntohl(v4.s_addr) >> 24) == 127;
	return pg_strcasecmp(host, "localhost") == 0;
}

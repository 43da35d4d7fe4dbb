/*-------------------------------------------------------------------------
 *
 * api/handle.c
 *		Handles for requests (easy handles of libcurl), set up for where they go.
 *
 * To set one up takes some forty options, so it is done only if a request goes elsewhere
 * than the one before.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/allocation.h"
#include "api/handle.h"
#include "api/trust.h"

/* How long a parsed certificate bundle is used before it is read again, in s. */
#define CA_CACHE_TIMEOUT 600L

/*
 * How long a resolved name is used before it is looked up again, in s.  From 8.16 on
 * libcurl also remembers, for half of that, that a name could not be resolved: with
 * its default of 60 s, trying again within a call would be in vain.
 */
#define DNS_CACHE_TIMEOUT 2L

/*
 * What libcurl allocates for each request to send it from, in bytes; a longer one goes in
 * pieces.  With its default, four times as much, the memory of 64 requests would be given
 * back to the kernel in each turn, and fetched again (see allocation_keep_memory()).
 */
#define UPLOAD_BUFFER (16 * 1024L)

#define USER_AGENT "doubletick/" DOUBLETICK_VERSION

/* A directory of certificates that has none, and can never have one. */
#define NO_DIRECTORY "/dev/null"

static CURL *new_easy(void);
static const char *find_trust(const HttpTarget *target, const char **directory);
static char *target_text(const HttpTarget *target, const char *ca_file, const char *directory);
static bool has_text(const char *text, const HttpTarget *target, const char *ca_file,
					 const char *directory);
static bool skip_line(const char **text, const char *line);
static void set_fixed_options(CURL *easy);
static void set_target_options(Handle *handle, const HttpTarget *target,
							   const char *ca_file, const char *directory);
static void add_header(Handle *handle, const char *line);
static void forget_target(Handle *handle);

/*
 * Sets a handle up for a target.  True if it has lost all its options for that, those
 * included that the caller had set; raises an error without memory.
 */
bool
handle_set_up(Handle *handle, const HttpTarget *target)
{
	const char *directory = NULL;
	const char *ca_file = find_trust(target, &directory);
	char	   *text;

	if (handle->target && has_text(handle->target, target, ca_file, directory))
		return false;
	if (handle->easy == NULL)
		handle->easy = new_easy();
	forget_target(handle);
	curl_easy_reset(handle->easy);
	set_fixed_options(handle->easy);
	set_target_options(handle, target, ca_file, directory);

	/* curl_easy_reset() does not say when it has lacked memory for an option. */
	text = target_text(target, ca_file, directory);

	if (!allocation_failed)
		handle->target = allocation_strdup(text);
	pfree(text);
	if (handle->target == NULL)
		libcurl_check(CURLE_OUT_OF_MEMORY, "handle_set_up");
	return true;
}

/*
 * Frees all of a handle that no request uses; the next one gets a new handle.
 */
void
handle_forget(Handle *handle)
{
	sigset_t	saved;

	libcurl_block_signals(&saved);
	curl_easy_cleanup(handle->easy);
	libcurl_restore_signals(&saved);
	handle->easy = NULL;
	forget_target(handle);
}

static CURL *
new_easy(void)
{
	CURL	   *easy;
	sigset_t	saved;

	libcurl_block_signals(&saved);
	easy = curl_easy_init();
	libcurl_restore_signals(&saved);
	if (easy == NULL)
		libcurl_check(CURLE_OUT_OF_MEMORY, "curl_easy_init");
	return easy;
}

/*
 * The file of certificates that are trusted; sets "directory" if there is one of them.
 *
 * Trusted is either one PEM bundle or the system's directory.  With both, the bundle
 * would be parsed for each connection: libcurl does not keep a parsed bundle if there
 * is a directory, even a default one, and parsing it is most of what a new connection
 * costs (test/bench/call).  From 8.17 on, libcurl replaces a directory or a bundle that
 * is not set by the system's.  The system's directory would add to the trust in
 * "ca_file", which must be all that is trusted, so one without certificates is set; and
 * beside the system's directory, one of its own files is the bundle.
 */
static const char *
find_trust(const HttpTarget *target, const char **directory)
{
	const		curl_version_info_data *info = libcurl_info;
	const char *file = NULL;

	if (target->ca_file != NULL)
	{
		if (info->version_num >= 0x081100)
			*directory = NO_DIRECTORY;
		return target->ca_file;
	}
	/* OpenSSL can use the system's directory if that has hashed names. */
	if (info->capath && info->ssl_version && strncmp(info->ssl_version, "OpenSSL/", 8) == 0)
		file = trust_hashed_file(info->capath);
	if (file == NULL)
		return info->cainfo;
	*directory = info->capath;
	return file;
}

/* All that the options of a handle depend on, as one string to compare. */
static char *
target_text(const HttpTarget *target, const char *ca_file, const char *directory)
{
	return psprintf("%s\n%s\n%s\n%s\n%s\n%d", target->url, target->authorization,
					ca_file ? ca_file : "", directory ? directory : "",
					target->proxy ? target->proxy : "", target->connect_timeout);
}

/* Is that the target's text?  To make a text for each request would take longer. */
static bool
has_text(const char *text, const HttpTarget *target, const char *ca_file, const char *directory)
{
	return skip_line(&text, target->url) && skip_line(&text, target->authorization) &&
		skip_line(&text, ca_file) && skip_line(&text, directory) &&
		skip_line(&text, target->proxy) && atoi(text) == target->connect_timeout;
}

/* Advances beyond the line, "" if it is NULL.  False when another one is there. */
static bool
skip_line(const char **text, const char *line)
{
	size_t		length = line ? strlen(line) : 0;

	if (strncmp(*text, line ? line : "", length) != 0 || (*text)[length] != '\n')
		return false;
	*text +=length + 1;
	return true;
}

/* What is the same for every request. */
static void
set_fixed_options(CURL *easy)
{
	SET_OPTION(easy, CURLOPT_POST, 1L);
	SET_OPTION(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET_OPTION(easy, CURLOPT_ACCEPT_ENCODING, "");
	SET_OPTION(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	SET_OPTION(easy, CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_BUFFER);

	/* No signals, and no wait for the resolver when a transfer is aborted. */
	SET_OPTION(easy, CURLOPT_NOSIGNAL, 1L);
	SET_OPTION(easy, CURLOPT_QUICK_EXIT, 1L);

	/* HTTP only, and only to base_url, whatever environment or server say. */
	SET_OPTION(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	SET_OPTION(easy, CURLOPT_FOLLOWLOCATION, 0L);
	SET_OPTION(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SET_OPTION(easy, CURLOPT_NOPROXY, "");
	SET_OPTION(easy, CURLOPT_HEADEROPT, (long) CURLHEADER_SEPARATE);
	SET_OPTION(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);

	/* Most are libcurl's defaults, but nothing may change them. */
	SET_OPTION(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	SET_OPTION(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	SET_OPTION(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET_OPTION(easy, CURLOPT_PROXY_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET_OPTION(easy, CURLOPT_CA_CACHE_TIMEOUT, CA_CACHE_TIMEOUT);
	SET_OPTION(easy, CURLOPT_DNS_CACHE_TIMEOUT, DNS_CACHE_TIMEOUT);

	/* Before 8.1 a session is freed twice if there was no memory to cache it. */
	SET_OPTION(easy, CURLOPT_SSL_SESSIONID_CACHE, (long) (libcurl_info->version_num >= 0x080100));
}

/*
 * What differs from target to target.  libcurl copies strings, but not the parsed URL
 * and the headers.
 *
 * The URL is parsed here, since libcurl would parse CURLOPT_URL for each request.
 */
static void
set_target_options(Handle *handle, const HttpTarget *target,
				   const char *ca_file, const char *directory)
{
	CURL	   *easy = handle->easy;
	char	   *authorization = psprintf(HANDLE_AUTHORIZATION "%s", target->authorization);

	add_header(handle, authorization);
	add_header(handle, "Content-Type: application/json");
	add_header(handle, "Accept: application/json");
	add_header(handle, "User-Agent: " USER_AGENT);

	/* Before a body of more than 1 MiB libcurl would ask, and wait. */
	add_header(handle, "Expect:");

	/*
	 * No compressed answer is asked for: it is short, and with the header a
	 * request would take 8,000 instructions more.  One that comes is unpacked
	 * all the same.
	 */
	add_header(handle, "Accept-Encoding:");
	SET_OPTION(easy, CURLOPT_HTTPHEADER, handle->headers);
	pfree(authorization);

	handle->url = curl_url();
	if (handle->url == NULL ||
		(curl_url_set(handle->url, CURLUPART_URL, target->url, 0) != CURLUE_OK && allocation_failed))
		libcurl_check(CURLE_OUT_OF_MEMORY, "curl_url_set");
	SET_OPTION(easy, CURLOPT_CURLU, handle->url);
	SET_OPTION(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) Max(target->connect_timeout, 1));

	/* Without the empty string libcurl would use the environment's proxies. */
	SET_OPTION(easy, CURLOPT_PROXY, target->proxy ? target->proxy : "");

	/* For CONNECT, which has none of our header lines. */
	if (target->proxy)
		SET_OPTION(easy, CURLOPT_USERAGENT, USER_AGENT);

	/* A TLS library that knows no directories refuses to set or unset one. */
	(void) curl_easy_setopt(easy, CURLOPT_CAPATH, directory);
	(void) curl_easy_setopt(easy, CURLOPT_PROXY_CAPATH, directory);
	if (ca_file != NULL)
	{
		SET_OPTION(easy, CURLOPT_CAINFO, ca_file);
		SET_OPTION(easy, CURLOPT_PROXY_CAINFO, ca_file);
	}
}

static void
add_header(Handle *handle, const char *line)
{
	struct curl_slist *longer = curl_slist_append(handle->headers, line);

	if (longer == NULL)
		libcurl_check(CURLE_OUT_OF_MEMORY, "curl_slist_append");
	handle->headers = longer;
}

static void
forget_target(Handle *handle)
{
	curl_url_cleanup(handle->url);
	handle->url = NULL;
	curl_slist_free_all(handle->headers);
	handle->headers = NULL;
	free(handle->target);
	handle->target = NULL;
}

/*-------------------------------------------------------------------------
 *
 * api/http.c
 *		HTTP by libcurl, inside a PostgreSQL process.
 *
 * The only file that includes libcurl.  The rules:
 *
 * - libcurl never blocks.  The process has one multi handle, and drives it in
 *	 turns of at most POLL_SLICE milliseconds, between which the caller serves
 *	 interrupts.  A signal ends the wait of a turn; one that comes just before the
 *	 wait is served at the end of it.
 * - No error is thrown through libcurl: callbacks neither palloc nor ereport, they
 *	 set a flag and return short.
 * - Signals are blocked around every call that may start a thread: libcurl's
 *	 resolver thread inherits the mask, and must not run PostgreSQL's handlers.
 * - libcurl's memory is malloc'd.  A transfer belongs to the memory context that
 *	 was current when it was started.  When the context is reset, be it by an
 *	 error, the transfer is aborted and its easy handle is kept for the next one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>
#include <signal.h>

#include "api/allocation.h"
#include "api/http.h"
#include "api/inbox.h"
#include "api/sockets.h"
#include "api/transfer_clock.h"
#include "api/trust.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "compat.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/pmsignal.h"
#include "utils/memutils.h"

/*
 * Which libcurl this is, is asked at run time (libcurl_version()): its headers may be
 * older or newer than the library.  So what older headers lack is made here.
 */
#define OLDEST_LIBCURL 0x075800

#if LIBCURL_VERSION_NUM < OLDEST_LIBCURL
#error "doubletick needs libcurl 7.88 or newer"
#endif
#if LIBCURL_VERSION_NUM < 0x080600
#define CURLE_TOO_LARGE ((CURLcode) 100)
#endif
#if LIBCURL_VERSION_NUM < 0x081400
#define CURLMOPT_QUICK_EXIT ((CURLMoption) (CURLOPTTYPE_LONG + 21))
#endif

/* Longest wait between two looks at interrupts, in ms. */
#define POLL_SLICE 10

/* How long a parsed certificate bundle is used before it is read again, in s. */
#define CA_CACHE_TIMEOUT 600L

/*
 * How long a resolved name is used before it is looked up again, in s.  From 8.16 on
 * libcurl also remembers, for half of that, that a name could not be resolved: with
 * its default of 60 s, trying again within a call would be in vain.
 */
#define DNS_CACHE_TIMEOUT 2L

/* Descriptors of latches and the like, which PostgreSQL counts as those of others. */
#define OTHER_DESCRIPTORS 5

/* For how long a lack of file descriptors has us open fewer connections, in µs. */
#define LACK_TIME USECS_PER_SEC

/* A directory of certificates that has none, and can never have one. */
#define NO_DIRECTORY "/dev/null"

#define AUTHORIZATION "Authorization: "

/* Ties a transfer to the memory context that it was started in. */
typedef struct HttpGuard
{
	MemoryContextCallback callback;
	HttpTransfer *transfer;		/* NULL once released */
} HttpGuard;

/* An easy handle and what belongs to it; malloc'd and used again. */
struct HttpTransfer
{
	dlist_node	node;			/* in "idle", else unlinked */
	CURL	   *easy;			/* NULL when idle and not reusable */
	HttpGuard  *guard;			/* NULL when idle */
	bool		running;		/* is it on the multi handle? */

	/* What the handle is set up for; NULL when it is not. */
	CURLU	   *url;
	struct curl_slist *headers; /* the first is Authorization */
	char	   *target;			/* malloc'd, see target_text() */

	TransferTimer timer;		/* runs while it is on the multi handle, but
								 * not while it waits for a descriptor */
	bool		connect_only;	/* is nothing to be sent? */
	bool		not_silent;		/* see note_sending() */
	bool		afresh;			/* is it sent over a new connection for that? */

	/* What has come so far. */
	Inbox		inbox;
	int64		sent_at;		/* see http_sent_at() */
	bool		no_descriptor;	/* was there none for the last socket? */
	bool		is_last_wait;	/* see may_wait_for_descriptor() */
	char		error[CURL_ERROR_SIZE];

	HttpReply	reply;			/* once not running */
};

static CURLM *multi = NULL;
static dlist_head idle = DLIST_STATIC_INIT(idle);

/* Has a transfer been added that libcurl has not looked at yet? */
static bool added = false;

/* How many connections may be open, after a lack of descriptors; 0: there was none. */
static int	lacking_capacity = 0;
static int64 lacking_since;		/* by clock_now() */

static void set_up_libcurl(void);
static void check_libcurl_version(void);
static unsigned int libcurl_version(void);
static void limit_connections(void);
static HttpTransfer *idle_or_new_transfer(void);
static void guard_transfer(HttpTransfer *transfer, HttpGuard *guard);
static void release_guarded_transfer(void *arg);
static void set_up_transfer(HttpTransfer *transfer, const HttpTarget *target);
static char *target_text(const HttpTarget *target);
static void set_fixed_options(HttpTransfer *transfer);
static void set_target_options(HttpTransfer *transfer, const HttpTarget *target);
static const char *find_system_trust(const char **directory);
static void add_header(HttpTransfer *transfer, const char *line);
static void forget_target(HttpTransfer *transfer);
static bool is_easy_reusable(void);
static void free_easy(HttpTransfer *transfer);
static void wait_for_sockets(int timeout, WaitReason reason);
static void collect_finished(void);
static CURLMcode send_afresh(HttpTransfer *transfer);
static bool may_wait_for_descriptor(HttpTransfer *transfer, CURLcode code);
static CURLMcode send_with_fewer(HttpTransfer *transfer);
static void restart_timer(HttpTransfer *transfer);
static void end_overdue(HttpTransfer *transfer);
static void read_outcome(HttpTransfer *transfer, CURLcode code);
static HttpResult classify_outcome(const HttpTransfer *transfer, CURLcode code);
static bool is_handshake_broken_off(const HttpTransfer *transfer);
static int	note_sending(void *arg, char *peer, char *own, int peer_port, int own_port);
static curl_socket_t open_socket(void *arg, curlsocktype purpose,
								 struct curl_sockaddr *address);
static int	close_socket(void *arg, curl_socket_t fd);
static void block_signals(sigset_t *saved);
static void restore_signals(const sigset_t *saved);
static void check_easy(CURLcode code, const char *what);
static void check_multi(CURLMcode code, const char *what);

#define SET_OPTION(easy, option, value) \
	check_easy(curl_easy_setopt((easy), (option), (value)), #option)

/*
 * Starts a POST, or only connects; this ends after "timeout" milliseconds of the
 * transfer clock at the latest.  "body" must stay where it is until the transfer is
 * released, or is aborted when the current memory context is reset.
 */
HttpTransfer *
http_start(const HttpTarget *target, const char *body, size_t length, int timeout)
{
	HttpGuard  *guard = palloc(sizeof(HttpGuard));
	HttpTransfer *transfer;
	CURLMcode	code;

	allocation_failed = false;
	set_up_libcurl();
	if (lacking_capacity > 0 && clock_now() - lacking_since >= LACK_TIME)
	{
		lacking_capacity = 0;
		limit_connections();
	}
	transfer = idle_or_new_transfer();
	guard_transfer(transfer, guard);
	set_up_transfer(transfer, target);

	SET_OPTION(transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) length);
	SET_OPTION(transfer->easy, CURLOPT_POSTFIELDS, body);
	SET_OPTION(transfer->easy, CURLOPT_FRESH_CONNECT, (long) target->connect_only);
	SET_OPTION(transfer->easy, CURLOPT_CONNECT_ONLY, (long) target->connect_only);
	transfer->connect_only = target->connect_only;

	transfer->not_silent = false;
	transfer->afresh = false;
	transfer->no_descriptor = false;
	transfer->is_last_wait = false;
	transfer->sent_at = 0;
	transfer->error[0] = '\0';

	code = curl_multi_add_handle(multi, transfer->easy);
	transfer->running = (code == CURLM_OK);
	check_multi(code, "curl_multi_add_handle");
	transfer_timer_start(&transfer->timer, transfer, Max(timeout, 1));
	added = true;
	return transfer;
}

/*
 * Waits until a socket is ready or a signal comes, at most "timeout" milliseconds
 * (a negative one counts as 0) and no longer than POLL_SLICE, and lets libcurl do
 * what there is to do.  Transfers whose time is up end after that, so that an answer
 * that is there counts.  Callers serve interrupts between turns.
 */
void
http_turn(int timeout, WaitReason reason)
{
	int64		start = clock_now();
	HttpTransfer *overdue;
	int			nrunning;
	sigset_t	saved;
	CURLMcode	code;

	if (IsUnderPostmaster && !PostmasterIsAlive())
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("terminating connection due to unexpected postmaster exit")));

	if (!added)
		wait_for_sockets(transfer_timer_limit(Min(timeout, POLL_SLICE)), reason);
	added = false;

	block_signals(&saved);
	code = curl_multi_perform(multi, &nrunning);
	collect_finished();
	transfer_clock_advance(clock_now() - start);
	while ((overdue = transfer_timer_next_overdue()) != NULL)
		end_overdue(overdue);
	restore_signals(&saved);
	check_multi(code, "curl_multi_perform");
}

/*
 * The reply, which lives until http_release(); NULL while the transfer is under way.
 */
const HttpReply *
http_reply(HttpTransfer *transfer)
{
	return transfer->running ? NULL : &transfer->reply;
}

/*
 * When the request was sent, by clock_now(); 0 when it has not been sent, for instance
 * since its connection is still being made.
 */
int64
http_sent_at(HttpTransfer *transfer)
{
	return transfer->sent_at;
}

/*
 * Gives a transfer's handle back, aborting the transfer if it is under way.
 */
void
http_release(HttpTransfer *transfer)
{
	bool		lacked_memory = allocation_failed || transfer->inbox.no_memory;
	sigset_t	saved;

	transfer->guard->transfer = NULL;
	transfer->guard = NULL;
	if (transfer->running)
	{
		/* This closes its connection, too. */
		block_signals(&saved);
		(void) curl_multi_remove_handle(multi, transfer->easy);
		restore_signals(&saved);
		transfer->running = false;
	}
	transfer_timer_stop(&transfer->timer);

	/*
	 * A connection that was only made ends with its handle.  And with libcurl
	 * 8.14 a handle that lacked memory once may fail for ever.
	 */
	if (!is_easy_reusable() || transfer->connect_only || lacked_memory)
		free_easy(transfer);
	inbox_clear(&transfer->inbox);
	dlist_push_head(&idle, &transfer->node);
}

/*
 * libcurl is set up when a process first needs it, since that must follow the fork.
 *
 * Two variables of the environment, which it reads meanwhile, are removed: they would
 * have it write the keys of TLS sessions to a file, or use another TLS library.
 * set_fixed_options() overrides the variables that it reads later.  OPENSSL_CONF and
 * the like stay: PostgreSQL's own TLS may need them, and the postmaster may have read
 * them long ago.  doc/security.md lists them all.
 */
static void
set_up_libcurl(void)
{
	static const char *const unwanted[] = {"SSLKEYLOGFILE", "CURL_SSL_BACKEND"};
	sigset_t	saved;
	CURLcode	code;

	if (multi != NULL)
		return;

	check_libcurl_version();
	for (int i = 0; i < (int) lengthof(unwanted); i++)
		(void) unsetenv(unwanted[i]);
	block_signals(&saved);
	code = curl_global_init_mem(CURL_GLOBAL_DEFAULT, allocation_malloc, free,
								allocation_realloc, allocation_strdup, allocation_calloc);
	if (code == CURLE_OK)
		multi = curl_multi_init();
	restore_signals(&saved);
	check_easy(code, "curl_global_init");
	if (multi == NULL)
		check_easy(CURLE_OUT_OF_MEMORY, "curl_multi_init");

	/* From 8.20 on, resolver threads belong to the multi handle. */
	if (libcurl_version() >= 0x081400)
		(void) curl_multi_setopt(multi, CURLMOPT_QUICK_EXIT, 1L);
	limit_connections();
}

/* The server may run with an older library than the one that we were built with. */
static void
check_libcurl_version(void)
{
	if (libcurl_version() < OLDEST_LIBCURL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("libcurl %s is too old for doubletick",
						curl_version_info(CURLVERSION_NOW)->version),
				 errhint("Install libcurl 7.88 or newer, and restart the server.")));
}

static unsigned int
libcurl_version(void)
{
	return curl_version_info(CURLVERSION_NOW)->version_num;
}

/*
 * How many connections a process may have open at once, and so requests in flight.
 * PostgreSQL grants a third of its file descriptors to others (AcquireExternalFD()), and
 * takes some of these itself, in each process; we leave a quarter of the rest to name
 * resolution and to other extensions.  When there was none left for a connection, it is
 * fewer for a while.
 */
int
http_capacity(void)
{
	if (lacking_capacity > 0)
		return lacking_capacity;
	return Max((max_safe_fds / 3 - OTHER_DESCRIPTORS) * 3 / 4, 1);
}

/*
 * Connections that are kept count, too: libcurl closes one of them for a new one, and
 * has a transfer wait if there is none.  All targets share one pool of them, from which
 * requests of many servers may be in flight.
 */
static void
limit_connections(void)
{
	(void) curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) http_capacity());
	(void) curl_multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long) http_capacity());
}

static HttpTransfer *
idle_or_new_transfer(void)
{
	HttpTransfer *transfer;
	sigset_t	saved;

	if (dlist_is_empty(&idle))
	{
		transfer = calloc(1, sizeof(HttpTransfer));
		if (transfer == NULL)
			check_easy(CURLE_OUT_OF_MEMORY, "http_start");
		dlist_push_head(&idle, &transfer->node);
	}
	transfer = dlist_head_element(HttpTransfer, node, &idle);
	if (transfer->easy == NULL)
	{
		block_signals(&saved);
		transfer->easy = curl_easy_init();
		restore_signals(&saved);
		if (transfer->easy == NULL)
			check_easy(CURLE_OUT_OF_MEMORY, "curl_easy_init");
	}
	dlist_delete(&transfer->node);
	return transfer;
}

/* Has the transfer released when the current memory context is reset. */
static void
guard_transfer(HttpTransfer *transfer, HttpGuard *guard)
{
	guard->transfer = transfer;
	guard->callback.func = release_guarded_transfer;
	guard->callback.arg = guard;
	transfer->guard = guard;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &guard->callback);
}

static void
release_guarded_transfer(void *arg)
{
	HttpGuard  *guard = arg;

	if (guard->transfer != NULL)
		http_release(guard->transfer);
}

/* Sets the options only if the target differs from that of the last request. */
static void
set_up_transfer(HttpTransfer *transfer, const HttpTarget *target)
{
	char	   *text = target_text(target);

	if (transfer->target == NULL || strcmp(transfer->target, text) != 0)
	{
		forget_target(transfer);
		curl_easy_reset(transfer->easy);
		set_fixed_options(transfer);
		set_target_options(transfer, target);
		transfer->target = strdup(text);
		if (transfer->target == NULL)
			check_easy(CURLE_OUT_OF_MEMORY, "http_start");
	}
	pfree(text);
}

/* All that the options of a handle depend on, as one string to compare. */
static char *
target_text(const HttpTarget *target)
{
	return psprintf("%s\n%s\n%s\n%s\n%d", target->url, target->authorization,
					target->ca_file ? target->ca_file : "",
					target->proxy ? target->proxy : "", target->connect_timeout);
}

/* What is the same for every request. */
static void
set_fixed_options(HttpTransfer *transfer)
{
	CURL	   *easy = transfer->easy;

	SET_OPTION(easy, CURLOPT_PRIVATE, transfer);
	SET_OPTION(easy, CURLOPT_ERRORBUFFER, transfer->error);
	SET_OPTION(easy, CURLOPT_HEADERFUNCTION, inbox_add_header);
	SET_OPTION(easy, CURLOPT_HEADERDATA, &transfer->inbox);
	SET_OPTION(easy, CURLOPT_WRITEFUNCTION, inbox_add_body);
	SET_OPTION(easy, CURLOPT_WRITEDATA, &transfer->inbox);
	SET_OPTION(easy, CURLOPT_PREREQFUNCTION, note_sending);
	SET_OPTION(easy, CURLOPT_PREREQDATA, transfer);
	SET_OPTION(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	SET_OPTION(easy, CURLOPT_OPENSOCKETDATA, transfer);
	SET_OPTION(easy, CURLOPT_CLOSESOCKETFUNCTION, close_socket);

	SET_OPTION(easy, CURLOPT_POST, 1L);
	SET_OPTION(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET_OPTION(easy, CURLOPT_ACCEPT_ENCODING, "");
	SET_OPTION(easy, CURLOPT_USERAGENT, "doubletick/" DOUBLETICK_VERSION);
	SET_OPTION(easy, CURLOPT_TCP_KEEPALIVE, 1L);

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

	/*
	 * Before 8.1 a session is cached with its handle, which is not used
	 * again, and is freed twice if there was no memory to cache it.
	 */
	SET_OPTION(easy, CURLOPT_SSL_SESSIONID_CACHE, (long) is_easy_reusable());
}

/*
 * What differs from target to target.  libcurl copies strings, but not the parsed URL
 * and the headers.
 *
 * The URL is parsed here, since libcurl would parse CURLOPT_URL for each request.
 *
 * Trusted is either one PEM bundle or the system's directory.  With both, the bundle
 * would be parsed for each connection: libcurl does not keep a parsed bundle if there
 * is a directory, even a default one, and parsing it is most of what a new connection
 * costs (test/bench/call).  From 8.17 on, libcurl replaces a directory or a bundle that
 * is not set by the system's.  The system's directory would add to the trust in
 * "ca_file", which must be all that is trusted, so one without certificates is set; and
 * beside the system's directory, one of its own files is the bundle.
 */
static void
set_target_options(HttpTransfer *transfer, const HttpTarget *target)
{
	CURL	   *easy = transfer->easy;
	char	   *authorization = psprintf(AUTHORIZATION "%s", target->authorization);
	const char *ca_file = target->ca_file;
	const char *directory = NULL;

	add_header(transfer, authorization);
	add_header(transfer, "Content-Type: application/json");
	add_header(transfer, "Accept: application/json");
	add_header(transfer, "Expect:");	/* saves a round trip */
	SET_OPTION(easy, CURLOPT_HTTPHEADER, transfer->headers);
	pfree(authorization);

	transfer->url = curl_url();
	if (transfer->url == NULL ||
		(curl_url_set(transfer->url, CURLUPART_URL, target->url, 0) != CURLUE_OK && allocation_failed))
		check_easy(CURLE_OUT_OF_MEMORY, "curl_url_set");
	SET_OPTION(easy, CURLOPT_CURLU, transfer->url);
	SET_OPTION(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) Max(target->connect_timeout, 1));

	/* Without the empty string libcurl would use the environment's proxies. */
	SET_OPTION(easy, CURLOPT_PROXY, target->proxy ? target->proxy : "");

	if (ca_file != NULL && libcurl_version() >= 0x081100)
		directory = NO_DIRECTORY;
	if (ca_file == NULL)
		ca_file = find_system_trust(&directory);
	/* A TLS library that knows no directories refuses to set or unset one. */
	(void) curl_easy_setopt(easy, CURLOPT_CAPATH, directory);
	(void) curl_easy_setopt(easy, CURLOPT_PROXY_CAPATH, directory);
	if (ca_file != NULL)
	{
		SET_OPTION(easy, CURLOPT_CAINFO, ca_file);
		SET_OPTION(easy, CURLOPT_PROXY_CAINFO, ca_file);
	}
}

/*
 * The file of certificates that the system trusts: the bundle, or if OpenSSL can use the
 * system's directory, a file of this, and sets "directory" to it.
 */
static const char *
find_system_trust(const char **directory)
{
	const		curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);
	const char *file = NULL;

	if (info->capath && info->ssl_version && strncmp(info->ssl_version, "OpenSSL/", 8) == 0)
		file = trust_hashed_file(info->capath);
	if (file == NULL)
		return info->cainfo;
	*directory = info->capath;
	return file;
}

static void
add_header(HttpTransfer *transfer, const char *line)
{
	struct curl_slist *longer = curl_slist_append(transfer->headers, line);

	if (longer == NULL)
		check_easy(CURLE_OUT_OF_MEMORY, "curl_slist_append");
	transfer->headers = longer;
}

static void
forget_target(HttpTransfer *transfer)
{
	curl_url_cleanup(transfer->url);
	transfer->url = NULL;
	curl_slist_free_all(transfer->headers);
	transfer->headers = NULL;
	free(transfer->target);
	transfer->target = NULL;
}

/*
 * May an easy handle be used for a second request?  Before 8.1 libcurl keeps a
 * pointer to the last header of an answer after freeing it, and writes there if the
 * next answer's first header line begins with a blank.
 */
static bool
is_easy_reusable(void)
{
	return libcurl_version() >= 0x080100;
}

static void
free_easy(HttpTransfer *transfer)
{
	sigset_t	saved;

	block_signals(&saved);
	curl_easy_cleanup(transfer->easy);
	restore_signals(&saved);
	transfer->easy = NULL;
	forget_target(transfer);
}

static void
wait_for_sockets(int timeout, WaitReason reason)
{
	CURLMcode	code;

	pgstat_report_wait_start(wait_event_number(reason));
	code = curl_multi_poll(multi, NULL, 0, timeout, NULL);
	pgstat_report_wait_end();
	check_multi(code, "curl_multi_poll");
}

/* Called with signals blocked: must not throw. */
static void
collect_finished(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		HttpTransfer *transfer;
		CURLcode	code = message->data.result;	/* gone with the message */

		(void) curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &transfer);
		(void) curl_multi_remove_handle(multi, transfer->easy);
		if (transfer->not_silent && !transfer->afresh && send_afresh(transfer) == CURLM_OK)
			continue;
		if (may_wait_for_descriptor(transfer, code) && send_with_fewer(transfer) == CURLM_OK)
			continue;
		transfer->running = false;
		transfer_timer_stop(&transfer->timer);
		read_outcome(transfer, code);
	}
}

/* Sends a request over a new connection, since the one it had was not silent. */
static CURLMcode
send_afresh(HttpTransfer *transfer)
{
	transfer->afresh = true;
	transfer->error[0] = '\0';
	added = true;
	(void) curl_easy_setopt(transfer->easy, CURLOPT_FRESH_CONNECT, 1L);
	return curl_multi_add_handle(multi, transfer->easy);
}

/*
 * Did a transfer fail for want of a descriptor, of which other connections have some?  It
 * waits again and again while fewer connections are allowed each time, and once when it
 * is but one.
 */
static bool
may_wait_for_descriptor(HttpTransfer *transfer, CURLcode code)
{
	return code != CURLE_OK && transfer->no_descriptor && transfer->sent_at == 0 &&
		sockets_count() > 0 && !transfer->is_last_wait;
}

/*
 * Lets libcurl have no more connections than there are, so that it closes one that is
 * kept, or has the transfer wait until another one ends.  That does not count as time
 * for which there was no connection.
 */
static CURLMcode
send_with_fewer(HttpTransfer *transfer)
{
	lacking_capacity = Max(Min(http_capacity() - 1, sockets_count()), 1);
	lacking_since = clock_now();
	limit_connections();
	transfer->is_last_wait = lacking_capacity == 1;
	transfer_timer_stop(&transfer->timer);
	transfer->no_descriptor = false;
	transfer->error[0] = '\0';
	added = true;
	return curl_multi_add_handle(multi, transfer->easy);
}

/* Called when a transfer gets its connection, or a socket for it. */
static void
restart_timer(HttpTransfer *transfer)
{
	if (!transfer->timer.is_running)
		transfer_timer_start(&transfer->timer, transfer, transfer->timer.timeout);
}

/* Ends a transfer whose time is up.  Called with signals blocked: must not throw. */
static void
end_overdue(HttpTransfer *transfer)
{
	(void) curl_multi_remove_handle(multi, transfer->easy);
	transfer->running = false;
	snprintf(transfer->error, CURL_ERROR_SIZE, "%s within %d ms",
			 transfer->sent_at == 0 ? "no connection" :
			 transfer->inbox.header_bytes == 0 ? "no answer" : "no whole answer",
			 transfer->timer.timeout);
	read_outcome(transfer, CURLE_OPERATION_TIMEDOUT);
}

static void
read_outcome(HttpTransfer *transfer, CURLcode code)
{
	HttpReply  *reply = &transfer->reply;
	Inbox	   *inbox = &transfer->inbox;
	const char *secret = transfer->headers->data + strlen(AUTHORIZATION);
	long		status = 0;
	curl_off_t	retry_after = 0;

	/*
	 * A header line without end never reaches inbox_add_header(): libcurl has
	 * a limit of its own for one line, larger than ours for all.
	 */
	if (code == CURLE_TOO_LARGE)
		inbox->too_long = "headers";
	if (code != CURLE_OK && allocation_failed)
		inbox->no_memory = true;
	else if (code == CURLE_OUT_OF_MEMORY)
		inbox->too_long = "headers";
	allocation_failed = false;

	if (inbox->too_long)		/* libcurl only says "failed writing" */
		snprintf(transfer->error, CURL_ERROR_SIZE, "more than %d bytes of %s",
				 strcmp(inbox->too_long, "headers") == 0 ? INBOX_MAX_HEADERS : INBOX_MAX_BODY,
				 inbox->too_long);
	else if (transfer->no_descriptor)
		strlcpy(transfer->error, "no file descriptor is left in this session", CURL_ERROR_SIZE);
	else if (code == CURLE_OK && !inbox->head_ended && !transfer->connect_only)
		strlcpy(transfer->error, "transfer closed before the end of the headers", CURL_ERROR_SIZE);
	else if (transfer->error[0] == '\0')
		strlcpy(transfer->error, curl_easy_strerror(code), CURL_ERROR_SIZE);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER, &retry_after);

	if (inbox->length > 0)
		inbox_blot_out(inbox->body, inbox->length, secret);
	inbox_blot_out(transfer->error, strlen(transfer->error), secret);

	reply->result = classify_outcome(transfer, code);
	reply->status = (int) status;
	reply->body = inbox->length > 0 ? inbox->body : "";
	reply->length = inbox->length;
	reply->retry_after = Max(retry_after, 0);
	reply->error = transfer->error;
}

static HttpResult
classify_outcome(const HttpTransfer *transfer, CURLcode code)
{
	if (transfer->inbox.no_memory)
		return HTTP_NO_MEMORY;
	if (transfer->inbox.too_long)
		return HTTP_TOO_LONG;

	switch (code)
	{
		case CURLE_OK:
			if (transfer->connect_only)
				return HTTP_ANSWERED;
			/* libcurl takes a head that is cut off for the whole answer. */
			return transfer->inbox.head_ended ? HTTP_ANSWERED : HTTP_BROKEN_OFF;
		case CURLE_SSL_CONNECT_ERROR:
			return is_handshake_broken_off(transfer) ? HTTP_NO_CONNECTION : HTTP_NO_TRUST;
		case CURLE_SSL_ENGINE_NOTFOUND:
		case CURLE_SSL_ENGINE_SETFAILED:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_USE_SSL_FAILED:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
			return HTTP_NO_TRUST;
		case CURLE_UNSUPPORTED_PROTOCOL:	/* HTTP/0.9, or no HTTP at all */
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_BAD_CONTENT_ENCODING:
		case CURLE_BAD_FUNCTION_ARGUMENT:	/* a folded line without a header */
			return HTTP_NOT_HTTP;
		default:
			if (transfer->sent_at == 0)
				return HTTP_NO_CONNECTION;
			return code == CURLE_OPERATION_TIMEDOUT ? HTTP_TIMED_OUT : HTTP_BROKEN_OFF;
	}
}

/*
 * Did the other side go away in the middle of the handshake, as it does when it is
 * restarted?  libcurl has one code for this and for a handshake that was refused;
 * only the words differ.
 */
static bool
is_handshake_broken_off(const HttpTransfer *transfer)
{
	static const char *const words[] = {
		"Recv failure", "Send failure", "SSL_ERROR_SYSCALL", "unexpected eof"
	};

	for (int i = 0; i < (int) lengthof(words); i++)
	{
		if (strstr(transfer->error, words[i]) != NULL)
			return true;
	}
	return false;
}

/*
 * Called by libcurl when a request has its connection, just before it is sent.
 *
 * A connection is not silent if something can be read from it now: that is not the
 * answer to this request, so the connection is closed and a new one used.  It may be
 * a TLS session ticket, but then this only costs a connection.  New connections are
 * not checked, since servers send tickets there.
 */
static int
note_sending(void *arg, char *peer pg_attribute_unused(), char *own pg_attribute_unused(),
			 int peer_port pg_attribute_unused(), int own_port)
{
	HttpTransfer *transfer = arg;

	restart_timer(transfer);
	if (!sockets_use(own_port, transfer->afresh))
	{
		transfer->not_silent = true;
		return CURL_PREREQFUNC_ABORT;
	}
	transfer->sent_at = clock_now();
	return CURL_PREREQFUNC_OK;
}

/* Called by libcurl to open and close a socket. */
static curl_socket_t
open_socket(void *arg, curlsocktype purpose pg_attribute_unused(),
			struct curl_sockaddr *address)
{
	HttpTransfer *transfer = arg;
	int			fd = sockets_open(address->family, address->socktype, address->protocol,
								  &transfer->no_descriptor, &transfer->inbox.no_memory);

	if (fd < 0)
		return CURL_SOCKET_BAD;
	restart_timer(transfer);
	return fd;
}

static int
close_socket(void *arg pg_attribute_unused(), curl_socket_t fd)
{
	return sockets_close(fd);
}

/* Blocks all signals; PostgreSQL's own set leaves SIGQUIT open. */
static void
block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	(void) pthread_sigmask(SIG_SETMASK, &all, saved);
}

static void
restore_signals(const sigset_t *saved)
{
	(void) pthread_sigmask(SIG_SETMASK, saved, NULL);
}

static void
check_easy(CURLcode code, const char *what)
{
	if (code == CURLE_OUT_OF_MEMORY || (code != CURLE_OK && allocation_failed))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed in libcurl: %s.", what)));
	if (code != CURLE_OK)
		elog(ERROR, "libcurl: %s: %s", what, curl_easy_strerror(code));
}

static void
check_multi(CURLMcode code, const char *what)
{
	if (code == CURLM_OUT_OF_MEMORY || (code != CURLM_OK && allocation_failed))
		check_easy(CURLE_OUT_OF_MEMORY, what);
	if (code != CURLM_OK)
		elog(ERROR, "libcurl: %s: %s", what, curl_multi_strerror(code));
}

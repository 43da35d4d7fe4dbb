/*-------------------------------------------------------------------------
 *
 * api/http.c
 *		HTTP by libcurl, inside a PostgreSQL process.
 *
 * Only this file, libcurl.c, handle.c and outcome.c know libcurl.  The rules:
 *
 * - libcurl never blocks.  The process has one multi handle, and drives it in
 *	 turns of at most POLL_SLICE milliseconds, between which the caller serves
 *	 interrupts.  A signal ends the wait of a turn; one that comes just before the
 *	 wait is served at the end of it.
 * - libcurl is told which sockets are ready (curl_multi_socket_action()), and looks
 *	 at no other, but for what FORGETS_NO_ADDRESS says: curl_multi_perform() would
 *	 ask the kernel about each transfer.
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

#include <poll.h>

#include "api/allocation.h"
#include "api/capacity.h"
#include "api/http.h"
#include "api/outcome.h"
#include "api/poll_set.h"
#include "api/sockets.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/pmsignal.h"
#include "utils/memutils.h"

/* Longest wait between two looks at interrupts, in ms. */
#define POLL_SLICE 10

/*
 * When an address does not answer, libcurl 7.88 goes on to the next one, but opens no
 * socket for it before somebody has it look at the transfer again, and sets no timer.  So
 * before this version, which is the oldest that is known to do so by itself, it looks at
 * all transfers from time to time while one is being connected.
 */
#define FORGETS_NO_ADDRESS 0x080e00

/*
 * Before this version libcurl keeps a pointer to the last header of a handle's last answer
 * after freeing it, and writes there if the first header line of the next answer begins
 * with a blank.  So it has to give each header line to inbox_add_head_or_body(), which it
 * does before it looks at the line, and which ends the transfer in that case.  But it does
 * not give it the trailers of a proxy's answer to CONNECT, for which it may write there,
 * too: so what goes by a proxy gets a new handle.
 */
#define FORGETS_LAST_HEADER 0x080100

static CURLM *multi = NULL;
static dlist_head idle = DLIST_STATIC_INIT(idle);
static dlist_head under_way = DLIST_STATIC_INIT(under_way);

/* When libcurl wants to look at its timers, by clock_now(); PG_INT64_MAX: never. */
static int64 look_at = PG_INT64_MAX;

/* When libcurl may look at all transfers again, by clock_now(). */
static int64 look_at_all_at = 0;

static void make_multi(void);
static void limit_connections(void);
static HttpTransfer *idle_or_new_transfer(void);
static void set_callbacks(HttpTransfer *transfer);
static void guard_transfer(HttpTransfer *transfer, HttpGuard *guard);
static void release_guarded_transfer(void *arg);
static void wait_for_sockets(int timeout, int64 now, WaitReason reason);
static CURLMcode drive_transfers(void);
static bool is_any_connecting(void);
static int	set_timer(CURLM *handle, long timeout, void *arg);
static int	watch_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg);
static void collect_finished(void);
static void stop_running(HttpTransfer *transfer);
static void end_without_memory(void);
static CURLMcode send_afresh(HttpTransfer *transfer);
static bool may_wait_for_descriptor(HttpTransfer *transfer, CURLcode code);
static CURLMcode send_with_fewer(HttpTransfer *transfer);
static void restart_timer(HttpTransfer *transfer);
static void end_overdue(HttpTransfer *transfer);
static size_t note_header(char *data, size_t size, size_t nitems, void *arg);
static int	note_sending(void *arg, char *peer, char *own, int peer_port, int own_port);
static curl_socket_t open_socket(void *arg, curlsocktype purpose,
								 struct curl_sockaddr *address);
static int	close_socket(void *arg, curl_socket_t fd);
static void check_multi(CURLMcode code, const char *what);

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
	CURL	   *easy;
	CURLMcode	code;

	allocation_failed = false;
	libcurl_set_up();
	if (multi == NULL)
		make_multi();
	if (capacity_restore())
		limit_connections();
	transfer = idle_or_new_transfer();
	guard_transfer(transfer, guard);
	if (target->proxy && libcurl_info->version_num < FORGETS_LAST_HEADER)
		handle_forget(&transfer->handle);
	if (handle_set_up(&transfer->handle, target))
		set_callbacks(transfer);
	easy = transfer->handle.easy;

	SET_OPTION(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) length);
	SET_OPTION(easy, CURLOPT_POSTFIELDS, body);
	SET_OPTION(easy, CURLOPT_FRESH_CONNECT, (long) target->connect_only);
	SET_OPTION(easy, CURLOPT_CONNECT_ONLY, (long) target->connect_only);
	transfer->connect_only = target->connect_only;

	transfer->not_silent = false;
	transfer->afresh = false;
	transfer->no_descriptor = false;
	transfer->is_last_wait = false;
	transfer->sent_at = 0;
	transfer->error[0] = '\0';

	code = curl_multi_add_handle(multi, easy);
	transfer->running = (code == CURLM_OK);
	check_multi(code, "curl_multi_add_handle");
	dlist_push_tail(&under_way, &transfer->node);
	transfer_timer_start(&transfer->timer, transfer, Max(timeout, 1));
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
	sigset_t	saved;
	CURLMcode	code;
	bool		lacks_memory;

	if (IsUnderPostmaster && !PostmasterIsAlive())
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("terminating connection due to unexpected postmaster exit")));

	wait_for_sockets(transfer_timer_limit(Min(timeout, POLL_SLICE)), start, reason);

	libcurl_block_signals(&saved);
	allocation_failed = false;
	code = drive_transfers();
	lacks_memory = allocation_failed || code == CURLM_OUT_OF_MEMORY;
	collect_finished();
	if (lacks_memory || code != CURLM_OK)
		end_without_memory();
	transfer_clock_advance(clock_now() - start);
	while ((overdue = transfer_timer_next_overdue()) != NULL)
		end_overdue(overdue);
	libcurl_restore_signals(&saved);
	if (!lacks_memory)
		check_multi(code, "curl_multi_socket_action");
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
		libcurl_block_signals(&saved);
		(void) curl_multi_remove_handle(multi, transfer->handle.easy);
		libcurl_restore_signals(&saved);
		stop_running(transfer);
	}
	transfer_timer_stop(&transfer->timer);
	if (transfer->sent_at == 0)
		sockets_forget_closed();

	/*
	 * A connection that was only made ends with its handle.  And with libcurl
	 * 8.14 a handle that lacked memory once may fail for ever.
	 */
	if (transfer->connect_only || lacked_memory)
		handle_forget(&transfer->handle);
	inbox_clear(&transfer->inbox);
	dlist_push_head(&idle, &transfer->node);
}

static void
make_multi(void)
{
	sigset_t	saved;

	libcurl_block_signals(&saved);
	multi = curl_multi_init();
	libcurl_restore_signals(&saved);
	if (multi == NULL)
		libcurl_check(CURLE_OUT_OF_MEMORY, "curl_multi_init");

	/* These cannot fail. */
	(void) curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, watch_socket);
	(void) curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, set_timer);
	/* From 8.20 on, resolver threads belong to the multi handle. */
	if (libcurl_info->version_num >= 0x081400)
		(void) curl_multi_setopt(multi, CURLMOPT_QUICK_EXIT, 1L);
	limit_connections();
}

/*
 * Connections that are kept count, too: libcurl closes one of them for a new one, and
 * has a transfer wait if there is none.  All targets share one pool of them, from which
 * requests of many servers may be in flight.
 */
static void
limit_connections(void)
{
	(void) curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) capacity_now());
	(void) curl_multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long) capacity_now());
}

static HttpTransfer *
idle_or_new_transfer(void)
{
	HttpTransfer *transfer;

	if (dlist_is_empty(&idle))
	{
		transfer = calloc(1, sizeof(HttpTransfer));
		if (transfer == NULL)
			libcurl_check(CURLE_OUT_OF_MEMORY, "http_start");
		dlist_push_head(&idle, &transfer->node);
	}
	transfer = dlist_head_element(HttpTransfer, node, &idle);
	dlist_delete(&transfer->node);
	return transfer;
}

/* Has libcurl tell the transfer what happens. */
static void
set_callbacks(HttpTransfer *transfer)
{
	CURL	   *easy = transfer->handle.easy;

	SET_OPTION(easy, CURLOPT_PRIVATE, transfer);
	SET_OPTION(easy, CURLOPT_ERRORBUFFER, transfer->error);
	SET_OPTION(easy, CURLOPT_HEADERFUNCTION, note_header);
	SET_OPTION(easy, CURLOPT_HEADERDATA, transfer);
	SET_OPTION(easy, CURLOPT_WRITEFUNCTION, inbox_add_body);
	SET_OPTION(easy, CURLOPT_WRITEDATA, &transfer->inbox);
	if (libcurl_info->version_num < FORGETS_LAST_HEADER)
	{
		SET_OPTION(easy, CURLOPT_HEADER, 1L);
		SET_OPTION(easy, CURLOPT_WRITEFUNCTION, inbox_add_head_or_body);
	}
	SET_OPTION(easy, CURLOPT_PREREQFUNCTION, note_sending);
	SET_OPTION(easy, CURLOPT_PREREQDATA, transfer);
	SET_OPTION(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	SET_OPTION(easy, CURLOPT_OPENSOCKETDATA, transfer);
	SET_OPTION(easy, CURLOPT_CLOSESOCKETFUNCTION, close_socket);
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

/* Waits at most "timeout" milliseconds, and not beyond libcurl's next timer. */
static void
wait_for_sockets(int timeout, int64 now, WaitReason reason)
{
	if (look_at != PG_INT64_MAX)
		timeout = (int) Min(timeout, Max(look_at - now + 999, 0) / 1000);

	pgstat_report_wait_start(wait_event_number(reason));
	poll_set_wait(timeout);
	pgstat_report_wait_end();
}

/*
 * Has libcurl do what the sockets that are ready, and its timers, allow.  Called with
 * signals blocked: must not throw.
 */
static CURLMcode
drive_transfers(void)
{
	CURLMcode	code = CURLM_OK;
	int			nrunning;
	int			fd;
	short		events;

	while (code == CURLM_OK && poll_set_next(&fd, &events))
	{
		int			bits = 0;

		if (events & POLLIN)
			bits |= CURL_CSELECT_IN;
		if (events & POLLOUT)
			bits |= CURL_CSELECT_OUT;
		if (events & ~(POLLIN | POLLOUT))
			bits |= CURL_CSELECT_ERR;
		code = curl_multi_socket_action(multi, fd, bits, &nrunning);
	}
	if (code == CURLM_OK && clock_now() >= look_at)
	{
		look_at = PG_INT64_MAX;
		code = curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &nrunning);
	}
	if (code == CURLM_OK && libcurl_info->version_num < FORGETS_NO_ADDRESS &&
		clock_now() >= look_at_all_at && is_any_connecting())
	{
		look_at_all_at = clock_now() + POLL_SLICE * INT64CONST(1000);
		code = curl_multi_socket_all(multi, &nrunning);
	}
	return code;
}

static bool
is_any_connecting(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &under_way)
	{
		if (dlist_container(HttpTransfer, node, iter.cur)->sent_at == 0)
			return true;
	}
	return false;
}

/* Called by libcurl: it wants to look at its timers in so many milliseconds; -1: never. */
static int
set_timer(CURLM *handle pg_attribute_unused(), long timeout, void *arg pg_attribute_unused())
{
	look_at = timeout < 0 ? PG_INT64_MAX : clock_now() + timeout * INT64CONST(1000);
	return 0;
}

/*
 * Called by libcurl: it wants to know when the socket is ready for "what".  Without the
 * memory to note that, allocation_failed is set, and http_turn() ends all transfers.
 */
static int
watch_socket(CURL *easy pg_attribute_unused(), curl_socket_t fd, int what,
			 void *arg pg_attribute_unused(), void *socket_arg pg_attribute_unused())
{
	short		events = 0;

	if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
		events |= POLLIN;
	if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
		events |= POLLOUT;
	poll_set_watch(fd, events);
	return 0;
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
		(void) curl_multi_remove_handle(multi, transfer->handle.easy);
		if (transfer->not_silent && !transfer->afresh && send_afresh(transfer) == CURLM_OK)
			continue;
		if (may_wait_for_descriptor(transfer, code) && send_with_fewer(transfer) == CURLM_OK)
			continue;
		stop_running(transfer);
		outcome_read(transfer, code);
	}
}

/* Called when a transfer has left the multi handle for good. */
static void
stop_running(HttpTransfer *transfer)
{
	transfer->running = false;
	dlist_delete(&transfer->node);
	transfer_timer_stop(&transfer->timer);
}

/*
 * Ends all transfers and begins anew, when libcurl lacked memory while it drove them:
 * it may have lost what it knows of a socket, and 7.88 divides by zero when it next has
 * a socket of that number.  Called with signals blocked: must not throw.
 */
static void
end_without_memory(void)
{
	while (!dlist_is_empty(&under_way))
	{
		HttpTransfer *transfer = dlist_head_element(HttpTransfer, node, &under_way);

		(void) curl_multi_remove_handle(multi, transfer->handle.easy);
		stop_running(transfer);
		transfer->inbox.no_memory = true;
		outcome_read(transfer, CURLE_OUT_OF_MEMORY);
	}
	(void) curl_multi_cleanup(multi);
	multi = NULL;
	poll_set_clear();
	look_at = PG_INT64_MAX;
}

/* Sends a request over a new connection, since the one it had was not silent. */
static CURLMcode
send_afresh(HttpTransfer *transfer)
{
	transfer->afresh = true;
	transfer->error[0] = '\0';
	(void) curl_easy_setopt(transfer->handle.easy, CURLOPT_FRESH_CONNECT, 1L);
	return curl_multi_add_handle(multi, transfer->handle.easy);
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
	capacity_reduce(sockets_count());
	limit_connections();
	transfer->is_last_wait = capacity_now() == 1;
	transfer_timer_stop(&transfer->timer);
	transfer->no_descriptor = false;
	transfer->error[0] = '\0';
	return curl_multi_add_handle(multi, transfer->handle.easy);
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
	(void) curl_multi_remove_handle(multi, transfer->handle.easy);
	stop_running(transfer);
	snprintf(transfer->error, CURL_ERROR_SIZE, "%s within %d ms",
			 transfer->sent_at == 0 ? "no connection" :
			 transfer->inbox.header_bytes == 0 ? "no answer" : "no whole answer",
			 transfer->timer.timeout);
	outcome_read(transfer, CURLE_OPERATION_TIMEDOUT);
}

/* Called by libcurl with each header line, the status line and the blank line included. */
static size_t
note_header(char *data, size_t size, size_t nitems, void *arg)
{
	HttpTransfer *transfer = arg;
	long		status = 0;

	(void) curl_easy_getinfo(transfer->handle.easy, CURLINFO_RESPONSE_CODE, &status);
	return inbox_add_header(&transfer->inbox, data, size * nitems, status);
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

static void
check_multi(CURLMcode code, const char *what)
{
	if (code == CURLM_OUT_OF_MEMORY || (code != CURLM_OK && allocation_failed))
		libcurl_check(CURLE_OUT_OF_MEMORY, what);
	if (code != CURLM_OK)
		elog(ERROR, "libcurl: %s: %s", what, curl_multi_strerror(code));
}

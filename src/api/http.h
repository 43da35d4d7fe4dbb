/*-------------------------------------------------------------------------
 *
 * api/http.h
 *		HTTP POST: bytes out, a status and bytes back.
 *
 * Many transfers may be under way in one process:
 *
 *		http_start()	one or more transfers
 *		http_turn()		waits a little and drives all of them
 *		http_reply()	the reply to one, NULL while it is under way
 *		http_release()	gives its handle back
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_HTTP_H
#define DOUBLETICK_API_HTTP_H

#include "base/wait_event.h"

/* Where requests go and how. */
typedef struct HttpTarget
{
	const char *url;			/* http or https */
	const char *authorization;	/* value of that header; secret */
	const char *ca_file;		/* PEM bundle to trust, NULL for the system's */
	const char *proxy;			/* URL, NULL for none */
	int			connect_timeout;	/* ms, TLS handshake included */
	bool		connect_only;	/* is nothing to be sent? */
} HttpTarget;

typedef enum HttpResult
{
	HTTP_ANSWERED,				/* "status" and "body" are set */
	HTTP_NO_CONNECTION,			/* not resolved, refused, or too slow */
	HTTP_NO_TRUST,				/* TLS could not be agreed upon */
	HTTP_BROKEN_OFF,			/* connected, but no whole answer came */
	HTTP_TIMED_OUT,				/* connected, but no answer in time */
	HTTP_NOT_HTTP,				/* an answer that is not HTTP */
	HTTP_TOO_LONG,				/* a body or headers beyond our bounds */
	HTTP_NO_MEMORY				/* out of memory, here */
} HttpResult;

typedef struct HttpReply
{
	HttpResult	result;
	int			status;			/* HTTP status */
	const char *body;			/* "length" bytes and a NUL, in no encoding */
	size_t		length;
	int64		retry_after;	/* seconds, 0 when the server did not say */
	const char *error;			/* libcurl's words when not HTTP_ANSWERED */
} HttpReply;

typedef struct HttpTransfer HttpTransfer;

extern HttpTransfer *http_start(const HttpTarget *target, const char *body,
								size_t length, int timeout);
extern void http_turn(int timeout, WaitReason reason);
extern const HttpReply *http_reply(HttpTransfer *transfer);
extern void http_release(HttpTransfer *transfer);
extern int64 http_sent_at(HttpTransfer *transfer);

#endif							/* DOUBLETICK_API_HTTP_H */

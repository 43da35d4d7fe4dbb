/*-------------------------------------------------------------------------
 *
 * api/outcome.c
 *		What has come of a transfer that has ended: libcurl's code and what the inbox
 *		has, as one of the results that callers tell apart, and its words.
 *
 * libcurl has one code for different things, and different ones for the same thing from
 * version to version.  It may have repeated the key in its words: that is blotted out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/allocation.h"
#include "api/outcome.h"

static HttpResult classify_outcome(const HttpTransfer *transfer, CURLcode code);
static bool is_handshake_broken_off(const HttpTransfer *transfer);

/*
 * Makes the reply of a transfer that has left the multi handle with this code.  Called
 * with signals blocked: must not throw.
 */
void
outcome_read(HttpTransfer *transfer, CURLcode code)
{
	HttpReply  *reply = &transfer->reply;
	Inbox	   *inbox = &transfer->inbox;
	const char *secret = transfer->handle.headers->data + strlen(HANDLE_AUTHORIZATION);
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

	/* Where we have ended the transfer, libcurl only says "failed writing". */
	if (inbox->too_long)
		snprintf(transfer->error, CURL_ERROR_SIZE, "more than %d bytes of %s",
				 strcmp(inbox->too_long, "headers") == 0 ? INBOX_MAX_HEADERS : INBOX_MAX_BODY,
				 inbox->too_long);
	else if (inbox->is_folded)
		strlcpy(transfer->error, "the first header line begins with a blank", CURL_ERROR_SIZE);
	else if (inbox->ncodings > 1)
		strlcpy(transfer->error, "the answer is compressed more than once", CURL_ERROR_SIZE);
	else if (transfer->no_descriptor)
		strlcpy(transfer->error, "no file descriptor is left in this session", CURL_ERROR_SIZE);
	else if (code == CURLE_OK && !inbox->head_ended && !transfer->connect_only)
		strlcpy(transfer->error, "transfer closed before the end of the headers", CURL_ERROR_SIZE);
	else if (transfer->error[0] == '\0')
		strlcpy(transfer->error, curl_easy_strerror(code), CURL_ERROR_SIZE);
	(void) curl_easy_getinfo(transfer->handle.easy, CURLINFO_RESPONSE_CODE, &status);
	(void) curl_easy_getinfo(transfer->handle.easy, CURLINFO_RETRY_AFTER, &retry_after);

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

/* What the code means for the caller: above all, may the request have arrived? */
static HttpResult
classify_outcome(const HttpTransfer *transfer, CURLcode code)
{
	if (transfer->inbox.no_memory)
		return HTTP_NO_MEMORY;
	if (transfer->inbox.too_long)
		return HTTP_TOO_LONG;
	if (transfer->inbox.is_folded || transfer->inbox.ncodings > 1)
		return HTTP_NOT_HTTP;

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

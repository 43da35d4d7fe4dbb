/*-------------------------------------------------------------------------
 *
 * api/inbox.c
 *		An HTTP answer as it comes in, bounded.
 *
 * Filled from libcurl's callbacks, through which no error may be thrown: so
 * nothing here pallocs or ereports, the buffer is malloc'd, and what goes wrong
 * is remembered for later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/inbox.h"

/* A buffer larger than this is not kept for the next answer, in bytes. */
#define KEEP (64 * 1024)

/*
 * Shortest secret to look for in what the server sent, in bytes: a shorter one
 * would be found by chance.
 */
#define MIN_SECRET 8

/*
 * Forgets the answer; a buffer of common size stays for the next one.
 */
void
inbox_clear(Inbox *inbox)
{
	char	   *body = inbox->body;
	size_t		capacity = inbox->capacity;

	memset(inbox, 0, sizeof(Inbox));
	if (capacity > KEEP)
		free(body);
	else
	{
		inbox->body = body;
		inbox->capacity = capacity;
	}
}

/*
 * Counts a header line of so many bytes.  False when that is too many.
 */
bool
inbox_add_header(Inbox *inbox, size_t length)
{
	inbox->header_bytes += length;
	if (inbox->header_bytes > INBOX_MAX_HEADERS)
		inbox->too_long = "headers";
	return inbox->too_long == NULL;
}

/*
 * Appends a piece of the body.  False when it is too long, or when there is no
 * memory for it.
 */
bool
inbox_add_body(Inbox *inbox, const char *data, size_t length)
{
	size_t		needed = inbox->length + length + 1;

	if (needed > INBOX_MAX_BODY + 1)
	{
		inbox->too_long = "body";
		return false;
	}
	if (needed > inbox->capacity)
	{
		size_t		capacity = Max(needed, 2 * inbox->capacity);
		char	   *larger = realloc(inbox->body, capacity);

		if (larger == NULL)
		{
			inbox->no_memory = true;
			return false;
		}
		inbox->body = larger;
		inbox->capacity = capacity;
	}
	memcpy(inbox->body + inbox->length, data, length);
	inbox->length += length;
	inbox->body[inbox->length] = '\0';
	return true;
}

/*
 * Overwrites a secret wherever it stands, with as many asterisks, so that JSON
 * stays what it was: a server may echo the key in what it answers, and answers
 * are shown, logged and stored.
 */
void
inbox_blot_out(char *bytes, size_t length, const char *secret)
{
	size_t		secret_length = strlen(secret);
	char	   *found;

	if (secret_length < MIN_SECRET)
		return;
	while ((found = memmem(bytes, length, secret, secret_length)) != NULL)
	{
		memset(found, '*', secret_length);
		length -= (found + secret_length) - bytes;
		bytes = found + secret_length;
	}
}

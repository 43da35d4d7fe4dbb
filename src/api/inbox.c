/*-------------------------------------------------------------------------
 *
 * api/inbox.c
 *		An HTTP answer as it comes in, bounded.
 *
 * libcurl calls these functions for each piece that comes, and no error may be thrown
 * through libcurl: nothing here pallocs or ereports, the buffer is malloc'd, and the
 * inbox says what went wrong.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/allocation.h"
#include "api/inbox.h"

/* Largest buffer that stays for the next answer, in bytes. */
#define MAX_IDLE_BUFFER (64 * 1024)

/* Shortest secret to blot out, in bytes; a shorter one would be found by chance. */
#define MIN_SECRET 8

/* A status that looks like that of an interim answer, and is a last one. */
#define SWITCHING_PROTOCOLS 101

static int	count_codings(const char *line, size_t length);
static size_t length_of_token(const char *token, const char *end);
static bool is_plain_coding(const char *coding, size_t length);
static char *find_byte(char *bytes, char *end, char byte);
static size_t length_of_escaped(const char *bytes, const char *end, const char *secret);
static int	length_of_character(const char *at, const char *end, char character);

/*
 * Empties the inbox; a buffer of common size stays for the next answer.
 */
void
inbox_clear(Inbox *inbox)
{
	char	   *body = inbox->body;
	size_t		capacity = inbox->capacity;

	memset(inbox, 0, sizeof(Inbox));
	if (capacity > MAX_IDLE_BUFFER)
	{
		free(body);
		allocation_note_freed(capacity);
	}
	else
	{
		inbox->body = body;
		inbox->capacity = capacity;
	}
}

/*
 * Counts the bytes of a header line and the compressions that it names, and notes where
 * the headers end, which is not at the end of an interim answer (1xx).  "status" is that
 * of the answer at hand, as libcurl has read it: it takes lines for a status line that
 * nobody else would.  Returns the number of bytes, or 0 to end the transfer.
 */
size_t
inbox_add_header(Inbox *inbox, const char *line, size_t length, long status)
{
	if (line[0] == '\r' || line[0] == '\n')
	{
		inbox->in_head = false;
		if (status / 100 != 1 || status == SWITCHING_PROTOCOLS)
			inbox->head_ended = true;
	}
	else if (inbox->in_head)
		inbox->has_header = true;
	else
		inbox->in_head = true;
	inbox->line_length = 0;
	inbox->header_bytes += length;
	if (inbox->header_bytes > INBOX_MAX_HEADERS)
	{
		inbox->too_long = "headers";
		return 0;
	}
	inbox->ncodings += count_codings(line, length);
	return inbox->ncodings > 1 ? 0 : length;
}

/*
 * How many compressions a header line names.  An answer may have one.  If it is compressed
 * four times, some hundred bytes may be 60 GB in between and nothing in the end: libcurl
 * would unpack them for minutes, and INBOX_MAX_BODY would not be reached.
 */
static int
count_codings(const char *line, size_t length)
{
	static const char *const headers[] = {"Content-Encoding:", "Transfer-Encoding:"};
	const char *end = line + length;
	int			ncodings = 0;

	for (int i = 0; i < (int) lengthof(headers); i++)
	{
		size_t		name_length = strlen(headers[i]);
		const char *at = line + name_length;

		if (length < name_length || pg_strncasecmp(line, headers[i], name_length) != 0)
			continue;
		while (at < end)
		{
			size_t		coding_length = length_of_token(at, end);

			ncodings += coding_length > 0 && !is_plain_coding(at, coding_length);
			at += coding_length + 1;
		}
	}
	return ncodings;
}

/* The bytes before the next comma or blank. */
static size_t
length_of_token(const char *token, const char *end)
{
	const char *at = token;

	while (at < end && strchr(", \t\r\n", *at) == NULL)
		at++;
	return at - token;
}

/* Is it one that changes nothing, or only how the end of the body is found? */
static bool
is_plain_coding(const char *coding, size_t length)
{
	static const char *const plain[] = {"chunked", "identity", "none"};

	for (int i = 0; i < (int) lengthof(plain); i++)
	{
		if (strlen(plain[i]) == length && pg_strncasecmp(coding, plain[i], length) == 0)
			return true;
	}
	return false;
}

/*
 * Appends a piece of the decoded body.  A callback of libcurl: returns the number of
 * bytes, or 0 to end the transfer.
 */
size_t
inbox_add_body(char *data, size_t size, size_t nitems, void *arg)
{
	Inbox	   *inbox = arg;
	size_t		length = size * nitems;
	size_t		needed = inbox->length + length + 1;

	if (needed > INBOX_MAX_BODY + 1)
	{
		inbox->too_long = "body";
		return 0;
	}
	if (needed > inbox->capacity)
	{
		size_t		capacity = Max(needed, 2 * inbox->capacity);
		char	   *larger = realloc(inbox->body, capacity);

		if (larger == NULL)
		{
			inbox->no_memory = true;
			return 0;
		}
		inbox->body = larger;
		inbox->capacity = capacity;
	}
	memcpy(inbox->body + inbox->length, data, length);
	inbox->length += length;
	inbox->body[inbox->length] = '\0';
	return length;
}

/*
 * What libcurl calls instead of inbox_add_body() if it is to hand over header lines, too.
 * Each line comes here first, a long one in several pieces, and then as a whole to
 * inbox_add_header().  Ends the transfer if the first header line begins with a blank.
 */
size_t
inbox_add_head_or_body(char *data, size_t size, size_t nitems, void *arg)
{
	Inbox	   *inbox = arg;
	size_t		length = size * nitems;

	if (inbox->head_ended)
		return inbox_add_body(data, size, nitems, arg);
	if (inbox->line_length == 0 && !inbox->has_header && (data[0] == ' ' || data[0] == '\t'))
	{
		inbox->is_folded = true;
		return 0;
	}
	inbox->line_length += length;
	return length;
}

/*
 * Overwrites a secret, printable ASCII, with asterisks: a server may repeat the key in
 * its answer, and answers are shown, logged and stored.  In JSON, each character may
 * be escaped or not.  The length stays the same, so JSON stays JSON.
 */
void
inbox_blot_out(char *bytes, size_t length, const char *secret)
{
	char	   *end = bytes + length;
	size_t		secret_length = strlen(secret);
	char	   *plain;			/* the next place where it may begin, */
	char	   *escaped;		/* and where it may begin with an escape */

	if (secret_length < MIN_SECRET)
		return;
	plain = find_byte(bytes, end, *secret);
	escaped = find_byte(bytes, end, '\\');
	while ((bytes = Min(plain, escaped)) < end)
	{
		size_t		found = secret_length;

		if ((size_t) (end - bytes) < found || memcmp(bytes, secret, found) != 0)
			found = length_of_escaped(bytes, end, secret);
		memset(bytes, '*', found);
		bytes += Max(found, 1);
		if (plain < bytes)
			plain = find_byte(bytes, end, *secret);
		if (escaped < bytes)
			escaped = find_byte(bytes, end, '\\');
	}
}

/* The first such byte; "end" when there is none. */
static char *
find_byte(char *bytes, char *end, char byte)
{
	char	   *found = memchr(bytes, byte, end - bytes);

	return found ? found : end;
}

/* The length of the secret here, as JSON may have it; 0 if it is not here. */
static size_t
length_of_escaped(const char *bytes, const char *end, const char *secret)
{
	const char *at = bytes;

	for (; *secret; secret++)
	{
		int			length = length_of_character(at, end, *secret);

		if (length == 0)
			return 0;
		at += length;
	}
	return at - bytes;
}

static int
length_of_character(const char *at, const char *end, char character)
{
	char		code[sizeof("\\u0000")];

	if (at >= end || *at != '\\')
		return at < end && *at == character ? 1 : 0;
	snprintf(code, sizeof(code), "\\u%04x", (unsigned char) character);
	if (end - at >= 6 && at[1] == 'u' && pg_strncasecmp(at, code, 6) == 0)
		return 6;
	return end - at >= 2 && at[1] == character && strchr("\"\\/", character) ? 2 : 0;
}

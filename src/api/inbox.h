/*-------------------------------------------------------------------------
 *
 * api/inbox.h
 *		An HTTP answer as it comes in, bounded.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_INBOX_H
#define DOUBLETICK_API_INBOX_H

/* Longest body that we read, in bytes after decompression. */
#define INBOX_MAX_BODY (1024 * 1024)

/* Headers of one answer, interim ones included, in bytes.  nginx sends 4 kB. */
#define INBOX_MAX_HEADERS (64 * 1024)

/* All zeros is an empty inbox.  The flags say why a transfer was ended. */
typedef struct Inbox
{
	char	   *body;			/* malloc'd; a NUL follows "length" bytes */
	size_t		length;
	size_t		capacity;
	size_t		header_bytes;
	bool		in_head;		/* has a status line come, and not yet the
								 * blank line after its headers? */
	bool		has_header;		/* has a header come, of any answer? */
	bool		is_folded;		/* has the first one begun with a blank? */
	size_t		line_length;	/* see inbox_add_head_or_body() */
	bool		head_ended;		/* has the blank line after the headers come? */
	const char *too_long;		/* "headers", "body", or NULL */
	int			ncodings;		/* compressions that its headers name */
	bool		no_memory;		/* was there none for the body? */
} Inbox;

extern void inbox_clear(Inbox *inbox);
extern size_t inbox_add_header(Inbox *inbox, const char *line, size_t length, long status);
extern size_t inbox_add_body(char *data, size_t size, size_t nitems, void *arg);
extern size_t inbox_add_head_or_body(char *data, size_t size, size_t nitems, void *arg);
extern void inbox_blot_out(char *bytes, size_t length, const char *secret);

#endif							/* DOUBLETICK_API_INBOX_H */

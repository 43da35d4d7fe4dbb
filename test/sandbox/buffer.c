/*-------------------------------------------------------------------------
 *
 * buffer.c
 *		Growing buffers and slices, the sandbox's only string library.
 *
 * Running out of memory ends the process: a test stand-in has nothing better
 * to do.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Ends the process with a message. */
void
die(const char *format,...)
{
	va_list		args;

	fputs("sandbox: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* Passes on what an allocating function returned, which must not be NULL. */
void *
checked(void *p)
{
	if (p == NULL)
		die("out of memory");
	return p;
}

/* Makes room for "more" bytes, and one for vsnprintf's NUL. */
void
buffer_reserve(Buffer *buf, size_t more)
{
	size_t		need = buf->len + more + 1;

	if (need <= buf->size)
		return;
	if (need < buf->size * 2)
		need = buf->size * 2;
	if (need < 512)
		need = 512;
	buf->data = checked(realloc(buf->data, need));
	buf->size = need;
}

void
buffer_add(Buffer *buf, const void *data, size_t len)
{
	if (len == 0)
		return;
	buffer_reserve(buf, len);
	memcpy(buf->data + buf->len, data, len);
	buf->len += len;
}

void
buffer_addf(Buffer *buf, const char *format,...)
{
	va_list		args;
	int			len;

	va_start(args, format);
	len = vsnprintf(NULL, 0, format, args);
	va_end(args);
	if (len < 0)
		die("could not format \"%s\"", format);

	buffer_reserve(buf, (size_t) len);
	va_start(args, format);
	vsnprintf(buf->data + buf->len, (size_t) len + 1, format, args);
	va_end(args);
	buf->len += (size_t) len;
}

static int
add_dumped(const char *data, size_t len, void *buf)
{
	buffer_add(buf, data, len);
	return 0;
}

/*
 * Adds JSON text, in UTF-8 and without spaces, as the service writes it.  16
 * digits show the microseconds of a time of day and no noise behind them.
 */
void
buffer_add_json(Buffer *buf, const json_t *value)
{
	json_dump_callback(value, add_dumped, buf,
					   JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(16));
}

void
buffer_free(Buffer *buf)
{
	free(buf->data);
	memset(buf, 0, sizeof(*buf));
}

bool
slice_is(Slice slice, const char *text)
{
	return slice.len == strlen(text) && memcmp(slice.at, text, slice.len) == 0;
}

bool
slice_is_nocase(Slice slice, const char *text)
{
	return slice.len == strlen(text) && strncasecmp(slice.at, text, slice.len) == 0;
}

/*
 * A JSON string of what a client sent.  Where that is not UTF-8, every byte
 * above ASCII becomes U+FFFD, so that it can be shown at all.
 */
json_t *
slice_to_json(Slice slice)
{
	json_t	   *string = json_stringn(slice.at ? slice.at : "", slice.len);
	Buffer		shown = {0};
	size_t		i;

	if (string != NULL)
		return string;
	for (i = 0; i < slice.len; i++)
	{
		if ((unsigned char) slice.at[i] < 0x80)
			buffer_add(&shown, slice.at + i, 1);
		else
			buffer_add(&shown, "\xEF\xBF\xBD", 3);
	}
	string = checked(json_stringn(shown.data, shown.len));
	buffer_free(&shown);
	return string;
}

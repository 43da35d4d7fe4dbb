/*-------------------------------------------------------------------------
 *
 * buffer.c
 *		Bytes that grow, and random numbers that a seed decides.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void buffer_reserve(Buffer *buffer, size_t length);

static void
buffer_reserve(Buffer *buffer, size_t length)
{
	if (buffer->length + length <= buffer->capacity)
		return;
	buffer->capacity = 2 * (buffer->length + length);
	buffer->data = realloc(buffer->data, buffer->capacity);
	if (buffer->data == NULL)
		abort();
}

void
buffer_add(Buffer *buffer, const void *bytes, size_t length)
{
	if (length == 0)
		return;
	buffer_reserve(buffer, length);
	memcpy(buffer->data + buffer->length, bytes, length);
	buffer->length += length;
}

void
buffer_add_text(Buffer *buffer, const char *text)
{
	buffer_add(buffer, text, strlen(text));
}

void
buffer_add_format(Buffer *buffer, const char *format,...)
{
	char		text[1024];
	va_list		arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	buffer_add_text(buffer, text);
}

/* Puts other bytes in the place of those that begin at "at". */
void
buffer_replace(Buffer *buffer, size_t at, size_t old_length,
			   const void *bytes, size_t length)
{
	buffer_reserve(buffer, length);
	memmove(buffer->data + at + length, buffer->data + at + old_length,
			buffer->length - at - old_length);
	memcpy(buffer->data + at, bytes, length);
	buffer->length += length - old_length;
}

void
buffer_free(Buffer *buffer)
{
	free(buffer->data);
}

/* The same seed and text give the same numbers, on every machine. */
Random
random_of(uint64_t seed, const char *text)
{
	Random		random = {seed * UINT64_C(0x9e3779b97f4a7c15)};

	for (; *text; text++)
	{
		random.state ^= (unsigned char) *text;
		random_next(&random);
	}
	return random;
}

/* SplitMix64, by Sebastiano Vigna: public domain. */
uint64_t
random_next(Random *random)
{
	uint64_t	z = (random->state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

size_t
random_below(Random *random, size_t limit)
{
	return limit == 0 ? 0 : random_next(random) % limit;
}

bool
random_chance(Random *random, double probability)
{
	return (random_next(random) >> 11) * 0x1.0p-53 < probability;
}

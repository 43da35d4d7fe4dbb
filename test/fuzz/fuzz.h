/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *		What the parts of the server of random answers share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "M", the phone, ":", the tag, ":M"; see test/fuzz/answers.sql. */
#define PHONE_LENGTH 12
#define TAG_LENGTH 8
#define MARK_LENGTH (PHONE_LENGTH + TAG_LENGTH + 4)

#define MAX_PIECES 4

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

typedef struct Buffer
{
	char	   *data;
	size_t		length;
	size_t		capacity;
} Buffer;

typedef struct Random
{
	uint64_t	state;
} Random;

/* What happens to the connection when the answer is sent. */
typedef enum After
{
	AFTER_KEEP,					/* nothing, as a good server does */
	AFTER_IDLE_CLOSE,			/* it is closed if no request comes soon */
	AFTER_CLOSE,
	AFTER_RESET
} After;

typedef struct Answer
{
	Buffer		bytes;
	size_t		ends[MAX_PIECES];	/* where the pieces end that are sent one by
									 * one */
	int			npieces;
	After		after;
} Answer;

/* A case of the corpus: '\1' stands for the mark. */
typedef struct Case
{
	const char *bytes;
	size_t		length;
} Case;

extern const Case corpus[];
extern const size_t ncorpus;
extern const Case tokens[];
extern const size_t ntokens;

/* buffer.c */
extern void buffer_add(Buffer *buffer, const void *bytes, size_t length);
extern void buffer_add_text(Buffer *buffer, const char *text);
extern void buffer_add_format(Buffer *buffer, const char *format,...)
			__attribute__((format(printf, 2, 3)));
extern void buffer_replace(Buffer *buffer, size_t at, size_t old_length,
						   const void *bytes, size_t length);

extern void buffer_free(Buffer *buffer);
extern Random random_of(uint64_t seed, const char *text);
extern uint64_t random_next(Random *random);
extern size_t random_below(Random *random, size_t limit);
extern bool random_chance(Random *random, double probability);

/* body.c */
extern void add_random_body(Buffer *body, Random *random, const char *mark);

/* answer.c */
extern void make_answer(Answer *answer, uint64_t seed, const char *phone, const char *tag);

#endif							/* FUZZ_H */

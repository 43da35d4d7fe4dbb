/*-------------------------------------------------------------------------
 *
 * body.c
 *		A random body of an answer: the API's shapes, JSON that jsonb cannot hold,
 *		and what is no JSON at all.
 *
 * The mark comes first or early, so that it is in the excerpt that a message shows.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include <string.h>

/* Values that are valid in some places, and in others are not. */
static const char *const odd_values[] = {
	"null", "true", "0", "-0", "1e3", "1e999", "1e1000", "1e99999", "-1e-99999", "1E+400",
	"12345678901234567890123456789012345678901234567890", "0.1e00000000001", "1e", "01", "--1", "NaN", "Infinity",
	"\"\"", "\"\\u0000\"", "\"\\ud800\"", "\"\\udc00\\ud800\"", "\"\\ud83d\\ude00\"", "\"\\u00e9\"",
	"\"\xc3\xa9\"", "\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xc0\x80\"",
	"\"\\x\"", "\"\t\"", "\"line\\nline\"", "\"e5\"", "\"1e99999\"", "\"\\\"1e99999\"", "\"unclosed", "[]", "{}", "[[]]", "[null]",
	"{\"a\":}", "[1,]", "{\"a\":1,\"a\":2}", "[\"a\", 1, {\"b\": null}, [2]]", "{\"\": \"\"}", "undefined", "'single'"
};

/* Keys that the extension reads, and some that it does not. */
static const char *const keys[] = {
	"message", "error", "statusCode", "tags", "customFields", "removed", "errored", "tag",
	"customField", "success", "", "\\u0041", "Message", "a"
};

static const char *const texts[] = {
	"", "<html><head><title>502 Bad Gateway</title></head></html>", "OK", "null", "[]", "\"text\"", "12", "true",
	"Cannot POST /customer/remove-tags-custom-fields", "key_fuzz", "\xef\xbb\xbf{}", "\xff\xfe{\0}\0",
	"   \t\r\n  ", "{", "}", "{}{}", "[{}]", "{\"a\": 1} x", "\x1f\x8b\x08", "\xe2\x82"
};

static void add_success(Buffer *body, Random *random, const char *mark);
static void add_list(Buffer *body, Random *random, const char *key, const char *name, const char *value);
static void add_refusal(Buffer *body, Random *random, const char *mark);
static void add_message(Buffer *body, Random *random, const char *mark);
static void add_object(Buffer *body, Random *random, const char *mark, int depth);
static void add_value(Buffer *body, Random *random, int depth);
static void add_deep(Buffer *body, Random *random, const char *mark);
static void add_long(Buffer *body, Random *random, const char *mark);
static void add_times(Buffer *body, const char *text, size_t times);
static void add_text(Buffer *body, Random *random, const char *mark);
static void add_bytes(Buffer *body, Random *random, const char *mark);
static void add_repeated_key(Buffer *body, Random *random, const char *mark);

typedef struct Shape
{
	int			weight;			/* of 100 */
	void		(*add) (Buffer *body, Random *random, const char *mark);
} Shape;

static void add_any_object(Buffer *body, Random *random, const char *mark);

static const Shape shapes[] = {
	{30, add_success}, {25, add_refusal}, {15, add_any_object}, {3, add_deep}, {2, add_long},
	{15, add_text}, {8, add_bytes}, {2, add_repeated_key}
};

void
add_random_body(Buffer *body, Random *random, const char *mark)
{
	size_t		dice = random_below(random, 100);
	size_t		i = 0;

	while (dice >= (size_t) shapes[i].weight)
		dice -= shapes[i++].weight;
	shapes[i].add(body, random, mark);
}

/* The shape that API.md has for a 2xx. */
static void
add_success(Buffer *body, Random *random, const char *mark)
{
	buffer_add_format(body, "{\"mark\": \"%s\", ", mark);
	add_list(body, random, "customFields", "customField", "field");
	buffer_add_text(body, ", ");
	add_list(body, random, "tags", "tag", mark);
	buffer_add_text(body, "}");
}

/* Under "removed" or "errored", in one of the forms that were seen. */
static void
add_list(Buffer *body, Random *random, const char *key, const char *name, const char *value)
{
	buffer_add_format(body, "\"%s\": ", key);
	switch (random_below(random, 6))
	{
		case 0:
			buffer_add_text(body, "{\"removed\": [], \"errored\": []}");
			break;
		case 1:
			buffer_add_format(body, "{\"removed\": [\"%s\"], \"errored\": []}", value);
			break;
		case 2:
			buffer_add_format(body, "{\"removed\": [], \"errored\": [{\"%s\": \"%s\", \"error\": \"no\"}]}", name, value);
			break;
		case 3:
			buffer_add_format(body, "{\"errored\": [\"%s\", null, 1], \"removed\": {}}", value);
			break;
		case 4:
			add_value(body, random, 2);
			break;
		default:
			buffer_add_text(body, "{\"removed\": ");
			add_value(body, random, 2);
			buffer_add_text(body, ", \"errored\": ");
			add_value(body, random, 2);
			buffer_add_text(body, "}");
	}
}

/* The framework's shape of an error. */
static void
add_refusal(Buffer *body, Random *random, const char *mark)
{
	buffer_add_text(body, "{");
	if (random_chance(random, 0.8))
		buffer_add_format(body, "\"statusCode\": %d, ", 100 + (int) random_below(random, 600));
	buffer_add_text(body, "\"message\": ");
	add_message(body, random, mark);
	if (random_chance(random, 0.7))
	{
		buffer_add_text(body, ", \"error\": ");
		if (random_chance(random, 0.8))
			buffer_add_text(body, "\"Bad Request\"");
		else
			add_value(body, random, 2);
	}
	buffer_add_text(body, "}");
}

static void
add_message(Buffer *body, Random *random, const char *mark)
{
	switch (random_below(random, 6))
	{
		case 0:
			buffer_add_format(body, "[\"%s\", \"tags must be an array\"]", mark);
			break;
		case 1:
			buffer_add_format(body, "{\"mark\": \"%s\"}", mark);
			break;
		case 2:
			add_value(body, random, 3);
			buffer_add_format(body, ", \"mark\": \"%s\"", mark);
			break;
		default:
			buffer_add_format(body, "\"%s\"", mark);
	}
}

static void
add_any_object(Buffer *body, Random *random, const char *mark)
{
	add_object(body, random, mark, 4);
}

static void
add_object(Buffer *body, Random *random, const char *mark, int depth)
{
	size_t		n = random_below(random, 5);

	buffer_add_text(body, "{");
	if (mark[0])
		buffer_add_format(body, "\"mark\": \"%s\"%s", mark, n > 0 ? ", " : "");
	for (size_t i = 0; i < n; i++)
	{
		buffer_add_format(body, "%s\"%s\": ", i > 0 ? ", " : "", keys[random_below(random, LENGTH(keys))]);
		add_value(body, random, depth - 1);
	}
	buffer_add_text(body, "}");
}

static void
add_value(Buffer *body, Random *random, int depth)
{
	size_t		n = random_below(random, 4);

	if (depth > 0 && random_chance(random, 0.3))
		add_object(body, random, "", depth);
	else if (depth > 0 && random_chance(random, 0.2))
	{
		buffer_add_text(body, "[");
		for (size_t i = 0; i < n; i++)
		{
			buffer_add_text(body, i > 0 ? ", " : "");
			add_value(body, random, depth - 1);
		}
		buffer_add_text(body, "]");
	}
	/* Mostly what is valid, else no object would be. */
	else if (random_chance(random, 0.9))
		buffer_add_text(body, odd_values[random_below(random, 6)]);
	else
		buffer_add_text(body, odd_values[random_below(random, LENGTH(odd_values))]);
}

static void
add_deep(Buffer *body, Random *random, const char *mark)
{
	size_t		depth = (size_t) 1 << random_below(random, 16);
	bool		is_array = random_chance(random, 0.5);

	buffer_add_format(body, "{\"message\": \"%s\", \"a\": ", mark);
	add_times(body, is_array ? "[" : "{\"a\":", depth);
	buffer_add_text(body, "1");
	if (random_chance(random, 0.8))
		add_times(body, is_array ? "]" : "}", depth);
	buffer_add_text(body, "}");
}

/* Up to twice of what the extension takes, but mostly much less. */
static void
add_long(Buffer *body, Random *random, const char *mark)
{
	static const char *const parts[] = {"x", "\\u00e9", "\xc3\xa9", "1e999,", "\\\"", " ", "\xf0\x9f\x98\x80"};
	const char *part = parts[random_below(random, LENGTH(parts))];
	size_t		length = (size_t) 1 << (10 + random_below(random, random_chance(random, 0.05) ? 12 : 7));

	buffer_add_format(body, "{\"message\": \"%s", mark);
	add_times(body, part, length / strlen(part) + random_below(random, 3));
	buffer_add_text(body, "\"}");
}

static void
add_times(Buffer *body, const char *text, size_t times)
{
	while (times-- > 0)
		buffer_add_text(body, text);
}

static void
add_text(Buffer *body, Random *random, const char *mark)
{
	buffer_add_text(body, mark);
	buffer_add_text(body, texts[random_below(random, LENGTH(texts))]);
	if (random_chance(random, 0.1))
		buffer_add(body, "\0", 1);
}

static void
add_bytes(Buffer *body, Random *random, const char *mark)
{
	size_t		n = random_below(random, 300);

	buffer_add_text(body, mark);
	while (n-- > 0)
	{
		unsigned char byte = random_next(random) & 0xff;

		buffer_add(body, &byte, 1);
	}
}

static void
add_repeated_key(Buffer *body, Random *random, const char *mark)
{
	size_t		n = random_below(random, 2000);

	buffer_add_text(body, "{");
	while (n-- > 0)
		buffer_add_format(body, "\"%s%d\": [], ", keys[random_below(random, LENGTH(keys))], (int) random_below(random, 50));
	buffer_add_format(body, "\"message\": \"%s\"}", mark);
}

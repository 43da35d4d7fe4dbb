/*-------------------------------------------------------------------------
 *
 * base/phone.c
 *		What a phone number is, and when two of them are the same.
 *
 * A number, of a customer or of a WABA, is kept and sent as it was given.  Two
 * numbers are the same when they have the same digits: a leading "+" does not
 * count.  (trigger/difference.c has its own comparison for unusable numbers.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/fault.h"
#include "base/phone.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

/* A message shows at most this many bytes of a bad number. */
#define SHOWN_LENGTH 64

/* Characters that a copied number may contain, and that do not show or look like others. */
typedef struct UnclearCharacters
{
	pg_wchar	first;
	pg_wchar	last;
	const char *name;
} UnclearCharacters;

static const UnclearCharacters unclear_characters[] = {
	{0x09, 0x09, "tab"},
	{0x0A, 0x0A, "line feed"},
	{0x0D, 0x0D, "carriage return"},
	{0x01, 0x1F, "control character"},
	{0x7F, 0x9F, "control character"},
	{0xA0, 0xA0, "no-break space"},
	{0xAD, 0xAD, "soft hyphen"},
	{0x2000, 0x200A, "space"},
	{0x200B, 0x200B, "zero width space"},
	{0x200C, 0x200D, "zero width joiner or non-joiner"},
	{0x200E, 0x200F, "direction mark"},
	{0x202A, 0x202E, "direction mark"},
	{0x202F, 0x202F, "narrow no-break space"},
	{0x2060, 0x2060, "word joiner"},
	{0x2066, 0x2069, "direction mark"},
	{0xFEFF, 0xFEFF, "byte order mark"},
	{0xFF0B, 0xFF0B, "full-width plus sign"},
	{0xFF10, 0xFF19, "full-width digit"},
};

static char *unclear_problem(const char *shown);
static const char *digits_of(const char *number);

PG_FUNCTION_INFO_V1(dt_same_number);

/*
 * dt_same_number(number text, other text) returns boolean
 *
 * phone_equal() for the view dt_queue; NULL stands for no number.
 */
Datum
dt_same_number(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(phone_equal(PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0)),
							   PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1))));
}

/*
 * Is this an E.164 number as API.md accepts it: an optional "+", then 7 to 15 digits,
 * of which the first is not 0?
 */
bool
phone_is_e164(const char *number)
{
	const char *digits = digits_of(number);
	size_t		ndigits = strspn(digits, "0123456789");

	return digits[ndigits] == '\0' && ndigits >= 7 && ndigits <= 15 && *digits != '0';
}

/*
 * The message about a number that phone_is_e164() refuses.  "what" is the name of
 * the argument or column that holds it.
 */
char *
phone_problem(const char *what, const char *number)
{
	const char *shown = pnstrdup(number, fault_cliplen(number, SHOWN_LENGTH));

	return psprintf("%s is not a number in international format: \"%s\"%s", what, shown,
					unclear_problem(shown));
}

/*
 * Names the first character that a reader of the message cannot see or takes for
 * another one; or "".  A SQL_ASCII database mostly has UTF-8; in encodings whose
 * characters have other numbers than Unicode's, only control characters are found.
 */
static char *
unclear_problem(const char *shown)
{
	int			encoding = GetDatabaseEncoding();
	int			length = strlen(shown);
	int			position = 1;

	if (encoding == PG_SQL_ASCII && pg_encoding_verifymbstr(PG_UTF8, shown, length) == length)
		encoding = PG_UTF8;
	for (const char *c = shown; *c; c += pg_encoding_mblen(encoding, c))
	{
		unsigned char byte = *c;
		pg_wchar	code = 0;

		if (encoding == PG_UTF8)
			code = utf8_to_unicode((const unsigned char *) c);
		else if (byte < 0x80 || encoding == PG_LATIN1)
			code = byte;
		for (int i = 0; i < (int) lengthof(unclear_characters); i++)
		{
			const UnclearCharacters *known = &unclear_characters[i];

			if (code >= known->first && code <= known->last)
				return psprintf(" contains U+%04X (%s) at position %d", code, known->name, position);
		}
		position++;
	}
	return "";
}

/*
 * Are these the same number?  NULL, which is no number, equals only NULL.
 */
bool
phone_equal(const char *number, const char *other)
{
	if (number == NULL || other == NULL)
		return number == other;
	return strcmp(digits_of(number), digits_of(other)) == 0;
}

/*
 * A hash that is the same for equal numbers.  The hash of NULL is the seed.
 */
uint64
phone_hash(const char *number, uint64 seed)
{
	const char *digits;

	if (number == NULL)
		return seed;
	digits = digits_of(number);
	return hash_bytes_extended((const unsigned char *) digits, strlen(digits), seed);
}

/*
 * The digits of an E.164 number as an integer below 2^50.  Equal numbers have equal
 * values, and numbers of the same length have the order of their texts.
 */
uint64
phone_value(const char *number)
{
	uint64		value = 0;

	for (const char *digit = digits_of(number); *digit; digit++)
		value = value * 10 + (*digit - '0');
	return value;
}

/* The number without a leading "+". */
static const char *
digits_of(const char *number)
{
	return number + (*number == '+');
}

/*-------------------------------------------------------------------------
 *
 * base/phone.h
 *		What a phone number is, and when two of them are the same.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_PHONE_H
#define DOUBLETICK_BASE_PHONE_H

/* Hint of errors about a bad phone number or WABA number. */
#define PHONE_E164_HINT \
	"Write an optional \"+\", the country code and the number: 7 to 15 digits, " \
	"the first not 0, without separators."

extern bool phone_is_e164(const char *number);
extern char *phone_problem(const char *what, const char *number);
extern bool phone_equal(const char *number, const char *other);
extern uint64 phone_hash(const char *number, uint64 seed);
extern uint64 phone_value(const char *number);

#endif							/* DOUBLETICK_BASE_PHONE_H */

/*-------------------------------------------------------------------------
 *
 * base/fault.h
 *		What went wrong with a call or a queued removal, as a value.
 *
 * dt_remove_tags_custom_fields() raises a fault, and its dt_try_ sibling returns
 * it as jsonb.  The drainer records it in the history, or holds a lane for it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_FAULT_H
#define DOUBLETICK_BASE_FAULT_H

#include "compat.h"

typedef struct Fault
{
	int			sqlstate;		/* code to raise it with, MAKE_SQLSTATE form */
	int			status;			/* HTTP status, 0 when there was no answer */
	char	   *message;		/* lower-case, one line, server encoding */
	char	   *hint;			/* a sentence, or NULL */
	Jsonb	   *body;			/* the API's own error object, or NULL */
	char	   *excerpt;		/* of an answer that is a web page, or NULL:
								 * only the JSON form shows it */
	char	   *context;		/* which removal it is about, or NULL */
} Fault;

extern Fault *fault_make(int sqlstate, const char *fmt,...) pg_attribute_printf(2, 3);
extern Fault *fault_hint(Fault *fault, const char *fmt,...) pg_attribute_printf(2, 3);
extern void fault_make_one_line(char *text);
extern void fault_about(Fault *fault, const char *phone, const char *server, Oid role);
extern int	fault_cliplen(const char *string, int limit);
extern const char *fault_reason_phrase(int status);
extern Jsonb *fault_jsonb(const Fault *fault);
pg_noreturn extern void fault_raise(const Fault *fault);

#endif							/* DOUBLETICK_BASE_FAULT_H */

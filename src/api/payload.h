/*-------------------------------------------------------------------------
 *
 * api/payload.h
 *		The arguments of a removal, checked, and the request body made of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_PAYLOAD_H
#define DOUBLETICK_API_PAYLOAD_H

#include "base/fault.h"
#include "fmgr.h"
#include "utils/array.h"

/* How many names one request may have, tags and fields together (DESIGN.md). */
#define PAYLOAD_MAX_NAMES 1000

/*
 * How many bytes they may have together in JSON.  The API repeats every name in its
 * answer, perhaps with what was wrong with it, and we read no answer of more than
 * 1 MiB (INBOX_MAX_BODY).
 */
#define PAYLOAD_MAX_BYTES (512 * 1024)

/* One removal.  Strings in the server encoding; names are distinct. */
typedef struct Removal
{
	const char *phone;			/* E.164, as given */
	const char *waba;			/* the same, or NULL: the server's, if any */
	const char **tags;
	int			ntags;
	const char **fields;
	int			nfields;
} Removal;

extern Fault *payload_read_arguments(FunctionCallInfo fcinfo, Removal *removal);
extern Fault *payload_check(text *phone, ArrayType *tags, ArrayType *fields,
							text *waba, Removal *removal);
extern Jsonb *payload_jsonb(const Removal *removal, const char *default_waba);
extern char *payload_utf8(Jsonb *payload, size_t *length);
extern bool payload_is_empty(const Removal *removal);
extern bool payload_has_utf8_form(const char *string, int length);
extern size_t payload_json_length(const char *string);

#endif							/* DOUBLETICK_API_PAYLOAD_H */

/*-------------------------------------------------------------------------
 *
 * api/answer.h
 *		What the API's answer to one request means.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_ANSWER_H
#define DOUBLETICK_API_ANSWER_H

#include "api/http.h"
#include "base/fault.h"

typedef struct Answer
{
	int			status;			/* HTTP status, 0 when there was no answer */
	Jsonb	   *body;			/* of a success: the API's object, else NULL */
	Fault	   *fault;			/* what went wrong, NULL for a success */
	bool		again;			/* may the same succeed a moment later? */
	bool		no_route;		/* does it say that base_url is wrong? */
} Answer;

extern void answer_read(const HttpReply *reply, Answer *answer);

#endif							/* DOUBLETICK_API_ANSWER_H */

/*-------------------------------------------------------------------------
 *
 * api/handle.h
 *		Handles for requests (easy handles of libcurl).
 *
 * Only handle.c and, by transfer.h, http.c and outcome.c include this.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_HANDLE_H
#define DOUBLETICK_API_HANDLE_H

#include "api/http.h"
#include "api/libcurl.h"

/* The name of the first header, before its value, which is secret. */
#define HANDLE_AUTHORIZATION "Authorization: "

/* An easy handle that is set up, and for what.  Zeroes are a valid one. */
typedef struct Handle
{
	CURL	   *easy;			/* NULL until it is set up first */
	CURLU	   *url;
	struct curl_slist *headers; /* the first is Authorization */
	char	   *target;			/* malloc'd, see target_text() */
} Handle;

extern bool handle_set_up(Handle *handle, const HttpTarget *target);
extern void handle_forget(Handle *handle);

#define SET_OPTION(easy, option, value) \
	libcurl_check(curl_easy_setopt((easy), (option), (value)), #option)

#endif							/* DOUBLETICK_API_HANDLE_H */

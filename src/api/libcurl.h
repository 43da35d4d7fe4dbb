/*-------------------------------------------------------------------------
 *
 * api/libcurl.h
 *		libcurl in a PostgreSQL process: set-up, signals, errors.
 *
 * Only the files that know libcurl include this: libcurl.c, handle.c, http.c, outcome.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_LIBCURL_H
#define DOUBLETICK_API_LIBCURL_H

/* curl_multi_socket_all() is deprecated, but http.c needs it for old versions. */
#define CURL_DISABLE_DEPRECATION
#include <curl/curl.h>
#include <signal.h>

/*
 * Which libcurl this is, is asked at run time (libcurl_info): its headers may be older or
 * newer than the library.  So what older headers lack is made here.
 */
#if LIBCURL_VERSION_NUM < 0x075800
#error "doubletick needs libcurl 7.88 or newer"
#endif
#if LIBCURL_VERSION_NUM < 0x080600
#define CURLE_TOO_LARGE ((CURLcode) 100)
#endif
#if LIBCURL_VERSION_NUM < 0x081400
#define CURLMOPT_QUICK_EXIT ((CURLMoption) (CURLOPTTYPE_LONG + 21))
#endif

/* The libcurl that runs, once libcurl_set_up() has been called. */
extern const curl_version_info_data *libcurl_info;

extern void libcurl_set_up(void);
extern void libcurl_block_signals(sigset_t *saved);
extern void libcurl_restore_signals(const sigset_t *saved);
extern void libcurl_check(CURLcode code, const char *what);

#endif							/* DOUBLETICK_API_LIBCURL_H */

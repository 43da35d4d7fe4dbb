/*-------------------------------------------------------------------------
 *
 * api/libcurl.c
 *		libcurl in a PostgreSQL process: set-up, signals, errors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/allocation.h"
#include "api/libcurl.h"

#define OLDEST_LIBCURL 0x075800

const		curl_version_info_data *libcurl_info = NULL;

static bool is_set_up = false;

static void check_libcurl_version(void);

/*
 * Called before anything else of libcurl, and when a process first needs it, since that
 * must follow the fork.
 *
 * Two variables of the environment, which libcurl reads meanwhile, are removed: they
 * would have it write the keys of TLS sessions to a file, or use another TLS library.
 * handle.c overrides the variables that it reads later.  OPENSSL_CONF and the like stay:
 * PostgreSQL's own TLS may need them, and the postmaster may have read them long ago.
 * doc/security.md lists them all.
 */
void
libcurl_set_up(void)
{
	static const char *const unwanted[] = {"SSLKEYLOGFILE", "CURL_SSL_BACKEND"};
	sigset_t	saved;
	CURLcode	code;

	if (is_set_up)
		return;

	libcurl_info = curl_version_info(CURLVERSION_NOW);
	check_libcurl_version();
	for (int i = 0; i < (int) lengthof(unwanted); i++)
		(void) unsetenv(unwanted[i]);
	allocation_keep_memory();
	libcurl_block_signals(&saved);
	code = curl_global_init_mem(CURL_GLOBAL_DEFAULT, allocation_malloc, free,
								allocation_realloc, allocation_strdup, allocation_calloc);
	libcurl_restore_signals(&saved);
	libcurl_check(code, "curl_global_init");
	is_set_up = true;
}

/* The server may run with an older library than the one that we were built with. */
static void
check_libcurl_version(void)
{
	if (libcurl_info->version_num < OLDEST_LIBCURL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("libcurl %s is too old for doubletick", libcurl_info->version),
				 errhint("Install libcurl 7.88 or newer, and restart the server.")));
}

/*
 * Blocks all signals, around what may start a thread; PostgreSQL's own set leaves
 * SIGQUIT open.
 */
void
libcurl_block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	(void) pthread_sigmask(SIG_SETMASK, &all, saved);
}

/*
 * Sets the mask that was saved.
 */
void
libcurl_restore_signals(const sigset_t *saved)
{
	(void) pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/*
 * Raises an error if a function of libcurl, "what", has failed.
 */
void
libcurl_check(CURLcode code, const char *what)
{
	if (code == CURLE_OUT_OF_MEMORY || (code != CURLE_OK && allocation_failed))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed in libcurl: %s.", what)));
	if (code != CURLE_OK)
		elog(ERROR, "libcurl: %s: %s", what, curl_easy_strerror(code));
}

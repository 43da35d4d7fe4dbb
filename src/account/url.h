/*-------------------------------------------------------------------------
 *
 * account/url.h
 *		Which URLs the options base_url and proxy may hold.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_ACCOUNT_URL_H
#define DOUBLETICK_ACCOUNT_URL_H

extern const char *url_base_problem(const char *url);
extern const char *url_proxy_problem(const char *url);
extern bool url_is_plain_text(const char *url);
extern bool url_is_loopback(const char *url);

#endif							/* DOUBLETICK_ACCOUNT_URL_H */

/*-------------------------------------------------------------------------
 *
 * bench.h
 *		What the benchmarks share: a clock, medians, libpq and a plain libcurl
 *		handle.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_H
#define BENCH_H

#include <curl/curl.h>
#include <libpq-fe.h>

/* Most values that median() takes. */
#define MAX_ROUNDS 200

extern void die(const char *what, const char *why) __attribute__((noreturn));
extern double now(void);
extern double cpu_seconds(int pid);
extern int	compare(const void *a, const void *b);
extern double median(const double *values, int n);
extern PGconn *connect_to(const char *conninfo);
extern void run(PGconn *conn, const char *sql);
extern CURL *plain_handle(const char *url, const char *ca_file, const char *key);

#endif							/* BENCH_H */

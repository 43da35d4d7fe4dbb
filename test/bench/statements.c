/*-------------------------------------------------------------------------
 *
 * statements.c
 *		What a statement with many calls in flight costs.
 *
 * Usage: statements CONNINFO URL CA_FILE API_KEY PART [N]
 *
 * Run by the script "statements" beside this file, which prepares all of that.  The
 * parts:
 *
 *	share N		rows per second at 50 ms, as a share of N / 50 ms
 *	returning N	UPDATE ... RETURNING beside SELECT, the same rows
 *	multi N		against a loop of plain libcurl with N transfers in flight
 *	idle		a statement without calls, with the library loaded or not
 *	hang		10 rows to an API that does not answer
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

#define LATENCY 0.050			/* of the sandbox, in s */
#define ROUNDS 9
#define CALL "dt_try_remove_tags_custom_fields(phone, '{lead}')"
#define FIRST_PHONE 919800000000

static void fill(PGconn *conn, int nrows);
static double timed(PGconn *conn, const char *sql);
static void share(PGconn *conn, int n);
static void returning(PGconn *conn, int n);
static void multi(PGconn *conn, const char *url, const char *ca_file, const char *key, int n);
static double multi_round(CURLM *curlm, CURL **easy, char **bodies, int n, int nrequests);
static void idle(const char *conninfo);
static void hang(PGconn *conn);

int
main(int argc, char **argv)
{
	PGconn	   *conn;
	int			n = argc > 6 ? atoi(argv[6]) : 0;
	char		sql[64];

	if (argc < 6)
		die("usage", "statements CONNINFO URL CA_FILE API_KEY PART [N]");
	curl_global_init(CURL_GLOBAL_DEFAULT);
	conn = connect_to(argv[1]);
	run(conn, "LOAD 'doubletick'");
	run(conn, "SET jit = off");
	if (n > 0)
	{
		snprintf(sql, sizeof(sql), "SET doubletick.max_in_flight = %d", n);
		run(conn, sql);
	}
	if (strcmp(argv[5], "share") == 0)
		share(conn, n);
	else if (strcmp(argv[5], "returning") == 0)
		returning(conn, n);
	else if (strcmp(argv[5], "multi") == 0)
		multi(conn, argv[2], argv[3], argv[4], n);
	else if (strcmp(argv[5], "idle") == 0)
		idle(argv[1]);
	else if (strcmp(argv[5], "hang") == 0)
		hang(conn);
	else
		die("part", argv[5]);
	PQfinish(conn);
	return 0;
}

static void
fill(PGconn *conn, int nrows)
{
	char		sql[256];

	run(conn, "TRUNCATE c");
	snprintf(sql, sizeof(sql), "INSERT INTO c SELECT (%lld + n)::text FROM generate_series(1, %d) AS n",
			 (long long) FIRST_PHONE, nrows);
	run(conn, sql);
	run(conn, "VACUUM ANALYZE c");
}

static double
timed(PGconn *conn, const char *sql)
{
	double		start = now();

	run(conn, sql);
	return now() - start;
}

/* The first call goes alone, so N - 1 of N slots are idle for one latency. */
static void
share(PGconn *conn, int n)
{
	int			nrows = 50 * n;
	double		seconds[3];
	double		took;

	fill(conn, nrows);
	run(conn, "SELECT phone, " CALL " FROM c LIMIT 300");	/* connects */
	for (int i = 0; i < 3; i++)
		seconds[i] = timed(conn, "SELECT phone, " CALL " FROM c");
	took = median(seconds, 3);
	printf("%3d in flight, 50 ms      %8.1f rows/s, %.2f of what is possible\n", n, nrows / took,
		   nrows / took / (n / LATENCY));
}

static void
returning(PGconn *conn, int n)
{
	int			nrows = 50 * n;
	double		select;
	double		update;

	fill(conn, nrows);
	run(conn, "SELECT phone, " CALL " FROM c LIMIT 300");
	select = timed(conn, "SELECT phone, " CALL " FROM c");
	update = timed(conn, "UPDATE c SET answer = NULL RETURNING phone, " CALL);
	printf("%3d in flight, 50 ms      UPDATE ... RETURNING takes %.2f times what SELECT takes\n",
		   n, update / select);
	update = timed(conn, "UPDATE c SET answer = " CALL);
	printf("%3d in flight, 50 ms      UPDATE ... SET takes %.2f times what SELECT takes\n",
		   n, update / select);
}

static void
multi(PGconn *conn, const char *url, const char *ca_file, const char *key, int n)
{
	int			nrows = 4000;
	CURLM	   *curlm = curl_multi_init();
	CURL	  **easy = calloc(n, sizeof(CURL *));
	char	  **bodies = calloc(n, sizeof(char *));
	double		plain[ROUNDS];
	double		sql[ROUNDS];
	double		ratio[ROUNDS];
	double		cpu[ROUNDS];
	int			pid = PQbackendPID(conn);

	curl_multi_setopt(curlm, CURLMOPT_MAXCONNECTS, (long) n);
	for (int i = 0; i < n; i++)
	{
		easy[i] = plain_handle(url, ca_file, key);
		bodies[i] = calloc(1, 256);
	}
	fill(conn, nrows);
	timed(conn, "SELECT phone, " CALL " FROM c");
	multi_round(curlm, easy, bodies, n, nrows);
	for (int i = 0; i < ROUNDS; i++)
	{
		double		of_plain = cpu_seconds(getpid());
		double		of_sql;

		plain[i] = multi_round(curlm, easy, bodies, n, nrows);
		of_plain = cpu_seconds(getpid()) - of_plain;
		of_sql = cpu_seconds(pid);
		sql[i] = timed(conn, "SELECT phone, " CALL " FROM c");
		of_sql = cpu_seconds(pid) - of_sql;
		ratio[i] = plain[i] / sql[i];
		cpu[i] = of_plain / of_sql;
	}
	printf("%3d in flight, 0 ms       %8.1f rows/s, plain libcurl %8.1f requests/s, %.2f of it; by CPU time %.2f\n", n,
		   nrows / median(sql, ROUNDS), nrows / median(plain, ROUNDS), median(ratio, ROUNDS),
		   median(cpu, ROUNDS));
}

/* Sends requests for distinct phones, n at a time. */
static double
multi_round(CURLM *curlm, CURL **easy, char **bodies, int n, int nrequests)
{
	double		start = now();
	int			nsent = 0;
	int			ndone = 0;

	for (int i = 0; i < n; i++)
		curl_easy_setopt(easy[i], CURLOPT_PRIVATE, bodies[i]);
	for (int i = 0; ndone < nrequests;)
	{
		CURLMsg    *message;
		int			left;

		for (; i < n && nsent < nrequests; i++, nsent++)
		{
			snprintf(bodies[i], 256, "{\"tags\": [\"lead\"], \"phone\": \"%lld\", \"customFields\": []}",
					 (long long) FIRST_PHONE + nsent);
			curl_easy_setopt(easy[i], CURLOPT_POSTFIELDS, bodies[i]);
			curl_multi_add_handle(curlm, easy[i]);
		}
		curl_multi_perform(curlm, &left);
		while ((message = curl_multi_info_read(curlm, &left)) != NULL)
		{
			CURL	   *done = message->easy_handle;
			char	   *body;

			if (message->data.result != CURLE_OK)
				die("plain libcurl", curl_easy_strerror(message->data.result));
			ndone++;
			curl_multi_remove_handle(curlm, done);
			if (nsent == nrequests)
				continue;
			curl_easy_getinfo(done, CURLINFO_PRIVATE, &body);
			snprintf(body, 256, "{\"tags\": [\"lead\"], \"phone\": \"%lld\", \"customFields\": []}",
					 (long long) FIRST_PHONE + nsent++);
			curl_easy_setopt(done, CURLOPT_POSTFIELDS, body);
			curl_multi_add_handle(curlm, done);
		}
		if (ndone < nrequests)
			curl_multi_poll(curlm, NULL, 0, 10, NULL);
	}
	return now() - start;
}

/* Three sessions in turns: without the library, with it, and after a call. */
static void
idle(const char *conninfo)
{
	static const char *const names[] = {"not loaded", "loaded", "after a call"};
	PGconn	   *conn[3];
	double		seconds[3][51];

	for (int i = 0; i < 3; i++)
		conn[i] = connect_to(conninfo);
	run(conn[1], "LOAD 'doubletick'");
	run(conn[2], "SELECT dt_try_remove_tags_custom_fields('919800000000', '{lead}')");
	for (int round = 0; round < 51; round++)
	{
		for (int i = 0; i < 3; i++)
		{
			double		start = now();

			for (int n = 0; n < 500; n++)
				run(conn[i], "SELECT n FROM plain WHERE n = 7");
			seconds[i][round] = (now() - start) / 500;
		}
	}
	for (int i = 0; i < 3; i++)
	{
		printf("a statement without calls %8.2f us, library %s, ratio %.3f\n", median(seconds[i], 51) * 1e6,
			   names[i], median(seconds[i], 51) / median(seconds[0], 51));
		PQfinish(conn[i]);
	}
}

static void
hang(PGconn *conn)
{
	fill(conn, 10);
	printf("10 rows, no answer        %8.2f s with a timeout of 3 s\n",
		   timed(conn, "SELECT phone, " CALL " FROM c"));
}

/*-------------------------------------------------------------------------
 *
 * queue.c
 *		What the queue costs: enqueueing against a plain INSERT of the same
 *		columns, draining against plain libcurl with as many connections.
 *
 * Usage: queue enqueue CONNINFO
 *		  queue drain CONNINFO URL CA_FILE API_KEY CONNECTIONS REQUESTS DELAY
 *		  queue grown CONNINFO CONNINFO REQUESTS WHAT [hold]
 *
 * DELAY is the server's, in ms.  "grown" compares draining in two databases, in
 * turns; with "hold", a snapshot is held in the second all the while.  Run by
 * the script "queue" beside this file, which prepares all of that.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

#define ROUNDS 15				/* of each side, taking turns */
#define ROWS 20000				/* enqueued by one statement */
#define STATEMENTS 500			/* of one row each, in a round */

#define INSERT "INSERT INTO plain (ord, xact, customer, enqueued_at, due_at, role, enqueued_by, attempts, " \
	"keep, together, server, phone, waba, tags, fields) SELECT i, 1, 919876500000 + i, now(), now(), 10, 10, 0, " \
	"false, 0, 'doubletick', '9198765' || lpad(i::text, 5, '0'), NULL, '{lead,vip}', '{plan}' FROM generate_series(1, %d) AS i"
#define ENQUEUE "SELECT count(dt_enqueue_remove_tags_custom_fields('9198765' || lpad(i::text, 5, '0'), " \
	"'{lead,vip}', '{plan}')) FROM generate_series(1, %d) AS i"
#define EMPTY "TRUNCATE plain, dt_waiting, dt_settled"
#define BODY "{\"tags\": [\"lead\", \"vip\"], \"phone\": \"9198765%05d\", \"customFields\": [\"plan\"]}"

static void compare_enqueueing(PGconn *conn);
static double enqueue_once(PGconn *conn, const char *format, int nrows);
static double enqueue_singly(PGconn *conn, const char *format);
static void compare_draining(char **argv);
static double drain(PGconn *conn, int nrequests);
static double drain_plainly(char **argv, int nconnections, int nrequests);
static void compare_grown(int argc, char **argv);
static void report(const char *what, const char *unit, double *ours, const char *other,
				   double *theirs);

int
main(int argc, char **argv)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
	if (argc == 3 && strcmp(argv[1], "enqueue") == 0)
		compare_enqueueing(connect_to(argv[2]));
	else if (argc == 9 && strcmp(argv[1], "drain") == 0)
		compare_draining(argv);
	else if (argc >= 6 && strcmp(argv[1], "grown") == 0)
		compare_grown(argc, argv);
	else
		die("usage", "see queue.c");
	return 0;
}

/* In one statement of many rows, and in many transactions of one row. */
static void
compare_enqueueing(PGconn *conn)
{
	double		ours[ROUNDS];
	double		theirs[ROUNDS];

	run(conn, "SET jit = off");
	for (int i = -1; i < ROUNDS; i++)	/* the first is to warm up */
	{
		run(conn, EMPTY);
		theirs[i < 0 ? 0 : i] = enqueue_once(conn, INSERT, ROWS);
		ours[i < 0 ? 0 : i] = enqueue_once(conn, ENQUEUE, ROWS);
	}
	report("enqueue, one statement", "us a row", ours, "INSERT", theirs);

	for (int i = -1; i < ROUNDS; i++)
	{
		run(conn, EMPTY);
		theirs[i < 0 ? 0 : i] = enqueue_singly(conn, INSERT);
		ours[i < 0 ? 0 : i] = enqueue_singly(conn, ENQUEUE);
	}
	report("enqueue, row by row", "us a row", ours, "INSERT", theirs);
	run(conn, EMPTY);
}

static double
enqueue_once(PGconn *conn, const char *format, int nrows)
{
	char		sql[1024];
	double		start = now();

	snprintf(sql, sizeof(sql), format, nrows);
	run(conn, sql);
	return (now() - start) * 1e6 / nrows;
}

static double
enqueue_singly(PGconn *conn, const char *format)
{
	double		total = 0;

	for (int i = 0; i < STATEMENTS; i++)
		total += enqueue_once(conn, format, 1);
	return total / STATEMENTS;
}

static void
compare_draining(char **argv)
{
	PGconn	   *conn = connect_to(argv[2]);
	int			nconnections = atoi(argv[6]);
	int			nrequests = atoi(argv[7]);
	int			delay = atoi(argv[8]);
	double		ours[ROUNDS];
	double		theirs[ROUNDS];
	double		cpu[ROUNDS];
	int			pid = PQbackendPID(conn);
	char		what[100];

	run(conn, "SET client_min_messages = warning");
	snprintf(what, sizeof(what), "drain, %d connections, %d ms", nconnections, delay);
	for (int i = -1; i < ROUNDS; i++)
	{
		double		of_plain = cpu_seconds(getpid());
		double		of_drain;

		theirs[i < 0 ? 0 : i] = drain_plainly(argv, nconnections, nrequests);
		of_plain = cpu_seconds(getpid()) - of_plain;
		enqueue_once(conn, ENQUEUE, nrequests);
		of_drain = cpu_seconds(pid);
		ours[i < 0 ? 0 : i] = drain(conn, nrequests);
		cpu[i < 0 ? 0 : i] = of_plain / (cpu_seconds(pid) - of_drain);
	}
	report(what, "requests/s", ours, "libcurl", theirs);
	printf("%-36s by CPU time, ratio %.2f\n", what, median(cpu, ROUNDS));
	if (delay > 0)
		printf("%-36s %.2f of connections divided by delay (%.0f/s)\n", what,
			   median(ours, ROUNDS) / (nconnections * 1000.0 / delay), nconnections * 1000.0 / delay);
}

/* Requests per second of a CALL that sends what has been enqueued. */
static double
drain(PGconn *conn, int nrequests)
{
	double		start = now();

	run(conn, "CALL dt_process_queue()");
	return nrequests / (now() - start);
}

/* The same by libcurl's multi interface: a slot refills as its answer comes. */
static double
drain_plainly(char **argv, int nconnections, int nrequests)
{
	static CURLM *multi = NULL;
	static CURL **handles;
	static char (*bodies)[256];
	int			nstarted = 0;
	int			ndone = 0;
	int			nrunning;
	double		start;

	if (multi == NULL)
	{
		multi = curl_multi_init();
		curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) nconnections);
		handles = calloc(nconnections, sizeof(CURL *));
		bodies = calloc(nconnections, sizeof(*bodies));
		for (int i = 0; i < nconnections; i++)
		{
			handles[i] = plain_handle(argv[3], argv[4], argv[5]);
			curl_easy_setopt(handles[i], CURLOPT_PRIVATE, bodies[i]);
		}
	}

	start = now();
	for (; nstarted < nconnections && nstarted < nrequests; nstarted++)
	{
		snprintf(bodies[nstarted], sizeof(*bodies), BODY, nstarted + 1);
		curl_easy_setopt(handles[nstarted], CURLOPT_POSTFIELDS, bodies[nstarted]);
		curl_multi_add_handle(multi, handles[nstarted]);
	}
	while (ndone < nrequests)
	{
		CURLMsg    *message;
		int			left;

		curl_multi_perform(multi, &nrunning);
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			CURL	   *handle = message->easy_handle;
			long		status;
			char	   *body;

			curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
			if (message->data.result != CURLE_OK || status != 201)
				die("plain libcurl", curl_easy_strerror(message->data.result));
			ndone++;
			curl_multi_remove_handle(multi, handle);
			if (nstarted == nrequests)
				continue;
			curl_easy_getinfo(handle, CURLINFO_PRIVATE, &body);
			snprintf(body, sizeof(*bodies), BODY, ++nstarted);
			curl_multi_add_handle(multi, handle);
		}
		if (ndone < nrequests)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
	return nrequests / (now() - start);
}

/* Here nothing is emptied in between: what is settled and dead piles up. */
static void
compare_grown(int argc, char **argv)
{
	PGconn	   *fresh = connect_to(argv[2]);
	PGconn	   *grown = connect_to(argv[3]);
	PGconn	   *holder = connect_to(argv[3]);
	int			nrequests = atoi(argv[4]);
	double		ours[ROUNDS];
	double		theirs[ROUNDS];

	run(fresh, "SET client_min_messages = warning");
	run(grown, "SET client_min_messages = warning");
	if (argc > 6)
	{
		run(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ");
		run(holder, "SELECT count(*) FROM dt_waiting");
	}
	for (int i = -1; i < ROUNDS; i++)
	{
		run(fresh, "VACUUM dt_waiting");
		enqueue_once(fresh, ENQUEUE, nrequests);
		theirs[i < 0 ? 0 : i] = drain(fresh, nrequests);
		enqueue_once(grown, ENQUEUE, nrequests);
		ours[i < 0 ? 0 : i] = drain(grown, nrequests);
	}
	report(argv[5], "requests/s", ours, "without", theirs);
}

static void
report(const char *what, const char *unit, double *ours, const char *other, double *theirs)
{
	double		ratio[ROUNDS];

	for (int i = 0; i < ROUNDS; i++)
		ratio[i] = ours[i] / theirs[i];
	printf("%-36s %9.1f %s, %s %9.1f, ratio %.2f (median of %d rounds)\n",
		   what, median(ours, ROUNDS), unit, other, median(theirs, ROUNDS),
		   median(ratio, ROUNDS), ROUNDS);
	fflush(stdout);
}

/*-------------------------------------------------------------------------
 *
 * call.c
 *		What a call costs: dt_remove_tags_custom_fields() against a plain
 *		libcurl loop that sends the same request to the same server.
 *
 * Usage: call CONNINFO URL CA_FILE BUNDLE API_KEY
 *
 * CA_FILE is the sandbox's authority, BUNDLE the system's certificates and it.
 * Run by the script "call" beside this file, which prepares all of that.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

#define ROUNDS 25				/* of each side, taking turns */
#define CALLS 1000				/* in a round */
#define CONNECTIONS 20			/* opened in a round */
#define CANCELS 50

/* The request; phones are rules of the sandbox, set by the script. */
#define BODY "{\"tags\": [\"lead\"], \"phone\": \"%s\", \"customFields\": [\"plan\"]}"
#define QUERY "SELECT count(dt_remove_tags_custom_fields('%s', '{lead}', '{plan}')) " \
	"FROM generate_series(1, %d)"
#define PHONE "919876543210"
#define CLOSING_PHONE "919876543211"	/* answers, then closes the connection */
#define HANGING_PHONE "919876543212"	/* never answers */

static double plain_round(CURL *curl, const char *phone, int calls);
static double sql_round(PGconn *conn, const char *phone, int calls);
static void compare_calls(PGconn *conn, CURL *curl, const char *what,
						  const char *phone, int calls);
static void time_connections(PGconn *conn);
static void first_connection(const char *conninfo, const char *server);
static void cancel_latency(PGconn *conn, PGconn *other);

int
main(int argc, char **argv)
{
	PGconn	   *conn;
	PGconn	   *other;
	CURL	   *curl;

	if (argc != 6)
		die("usage", "call CONNINFO URL CA_FILE BUNDLE API_KEY");
	conn = connect_to(argv[1]);
	curl_global_init(CURL_GLOBAL_DEFAULT);

	/* To compile a statement that runs once is no part of a call. */
	run(conn, "SET jit = off");
	curl = plain_handle(argv[2], argv[3], argv[5]);
	compare_calls(conn, curl, "kept connection", PHONE, CALLS);
	curl_easy_cleanup(curl);

	run(conn, "SET doubletick.server = bundle");
	curl = plain_handle(argv[2], argv[4], argv[5]);
	compare_calls(conn, curl, "new connection, full bundle", CLOSING_PHONE, CONNECTIONS);
	curl_easy_cleanup(curl);
	first_connection(argv[1], "bundle");
	run(conn, "SET doubletick.server = directory");
	time_connections(conn);
	first_connection(argv[1], "directory");

	run(conn, "SET doubletick.server = doubletick");
	other = connect_to(argv[1]);
	cancel_latency(conn, other);
	PQfinish(other);
	PQfinish(conn);
	return 0;
}

/* Both sides in turns, so that what the machine does meanwhile hits both. */
static void
compare_calls(PGconn *conn, CURL *curl, const char *what, const char *phone, int calls)
{
	double		plain[ROUNDS];
	double		sql[ROUNDS];
	double		ratio[ROUNDS];

	plain_round(curl, phone, calls / 10);	/* warm up */
	sql_round(conn, phone, calls / 10);
	for (int i = 0; i < ROUNDS; i++)
	{
		plain[i] = plain_round(curl, phone, calls);
		sql[i] = sql_round(conn, phone, calls);
		ratio[i] = sql[i] / plain[i];
	}
	printf("%-28s SQL %8.1f us, plain libcurl %8.1f us, ratio %.2f (median of %d rounds of %d)\n",
		   what, median(sql, ROUNDS) * 1e6, median(plain, ROUNDS) * 1e6,
		   median(ratio, ROUNDS), ROUNDS, calls);
}

/* New connections where the system's directory is trusted. */
static void
time_connections(PGconn *conn)
{
	double		sql[ROUNDS];

	sql_round(conn, CLOSING_PHONE, CONNECTIONS);
	for (int i = 0; i < ROUNDS; i++)
		sql[i] = sql_round(conn, CLOSING_PHONE, CONNECTIONS);
	qsort(sql, ROUNDS, sizeof(double), compare);
	printf("%-28s SQL %8.1f us, at best %8.1f (%d rounds of %d)\n", "new connection, directory",
		   median(sql, ROUNDS) * 1e6, sql[0] * 1e6, ROUNDS, CONNECTIONS);
}

/* The first call of a session also sets libcurl up, and parses a bundle. */
static void
first_connection(const char *conninfo, const char *server)
{
	double		first[ROUNDS];
	char		what[64];

	for (int i = 0; i < ROUNDS; i++)
	{
		PGconn	   *conn = connect_to(conninfo);
		char		set[64];

		snprintf(set, sizeof(set), "SET doubletick.server = %s", server);
		run(conn, "LOAD 'doubletick'");
		run(conn, set);
		first[i] = sql_round(conn, PHONE, 1);
		PQfinish(conn);
	}
	qsort(first, ROUNDS, sizeof(double), compare);
	snprintf(what, sizeof(what), "first call, %s", server);
	printf("%-28s SQL %8.1f us, at best %8.1f (%d sessions)\n", what,
		   median(first, ROUNDS) * 1e6, first[0] * 1e6, ROUNDS);
}

/* From another session's pg_cancel_backend() to the end of the query. */
static void
cancel_latency(PGconn *conn, PGconn *other)
{
	double		latency[CANCELS];
	char		sql[256];
	char		cancel[64];

	snprintf(sql, sizeof(sql), QUERY, HANGING_PHONE, 1);
	snprintf(cancel, sizeof(cancel), "SELECT pg_cancel_backend(%d)", PQbackendPID(conn));
	for (int i = 0; i < CANCELS; i++)
	{
		PGresult   *result;
		double		start;

		if (!PQsendQuery(conn, sql))
			die("send", PQerrorMessage(conn));
		/* At some point of the wait, another one each time. */
		usleep(20000 + (i * 7919) % 10000);
		start = now();
		run(other, cancel);
		result = PQgetResult(conn);
		latency[i] = now() - start;
		if (strcmp(PQresultErrorField(result, PG_DIAG_SQLSTATE), "57014") != 0)
			die("cancel", PQresultErrorMessage(result));
		PQclear(result);
		while ((result = PQgetResult(conn)) != NULL)
			PQclear(result);
	}
	qsort(latency, CANCELS, sizeof(double), compare);
	printf("%-28s median %.2f ms, worst %.2f ms of %d\n", "cancel of a hanging call",
		   latency[CANCELS / 2] * 1e3, latency[CANCELS - 1] * 1e3, CANCELS);
}

static double
plain_round(CURL *curl, const char *phone, int calls)
{
	char		body[256];
	double		start = now();

	snprintf(body, sizeof(body), BODY, phone);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	for (int i = 0; i < calls; i++)
	{
		CURLcode	code = curl_easy_perform(curl);
		long		status;

		curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
		if (code != CURLE_OK || status != 201)
			die("plain libcurl", curl_easy_strerror(code));
	}
	return (now() - start) / calls;
}

static double
sql_round(PGconn *conn, const char *phone, int calls)
{
	char		sql[256];
	double		start = now();

	snprintf(sql, sizeof(sql), QUERY, phone, calls);
	run(conn, sql);
	return (now() - start) / calls;
}

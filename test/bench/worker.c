/*-------------------------------------------------------------------------
 *
 * worker.c
 *		What the worker costs: how long after a commit the request arrives, and
 *		how many it sends while sessions enqueue.
 *
 * Usage: worker latency CONNINFO URL CA_FILE API_KEY ADMIN_URL SAMPLES
 *		  worker rate CONNINFO URL CA_FILE API_KEY ADMIN_URL CONNECTIONS SECONDS
 *
 * Receipt is when the sandbox has read the request, by its own clock, which is
 * the machine's, as ours is.  Run by the script "worker" beside this file, which
 * prepares all of that.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#define SESSIONS 4

#define ENQUEUE "SELECT dt_enqueue_remove_tags_custom_fields('91987%07d', '{lead}', '{plan}')"
#define BODY "{\"tags\": [\"lead\"], \"phone\": \"91987%07d\", \"customFields\": [\"plan\"]}"

/* What an administrative request has answered. */
typedef struct Answer
{
	char		text[65536];
	size_t		length;
} Answer;

static void measure_latency(char **argv);
static double wall_clock(void);
static void ask(const char *method, const char *admin, const char *path, Answer *answer);
static size_t keep(char *data, size_t size, size_t nitems, void *arg);
static double number_after(const char *text, const char *key);
static double received_at(const char *admin);
static void report(const char *what, double *values, int n);
static void measure_rate(char **argv);
static void enqueue_for(const char *conninfo, int session, double seconds);
static double count_requests(const char *admin);
static double plain_rate(char **argv, int nconnections, double seconds);

int
main(int argc, char **argv)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
	if (argc == 8 && strcmp(argv[1], "latency") == 0)
		measure_latency(argv);
	else if (argc == 9 && strcmp(argv[1], "rate") == 0)
		measure_rate(argv);
	else
		die("usage", "see worker.c");
	return 0;
}

/* The two take turns, so that what disturbs one disturbs the other. */
static void
measure_latency(char **argv)
{
	PGconn	   *conn = connect_to(argv[2]);
	CURL	   *curl = plain_handle(argv[3], argv[4], argv[5]);
	int			n = atoi(argv[7]);
	double	   *ours = calloc(n, sizeof(double));
	double	   *theirs = calloc(n, sizeof(double));
	double	   *whole = calloc(n, sizeof(double));

	for (int i = -20; i < n; i++)	/* the first are to warm up */
	{
		char		text[256];
		double		start;
		double		commit;
		double		at;
		CURLcode	code;

		snprintf(text, sizeof(text), BODY, i + 20);
		curl_easy_setopt(curl, CURLOPT_POSTFIELDS, text);
		start = now();
		code = curl_easy_perform(curl);
		if (code != CURLE_OK)
			die("plain libcurl", curl_easy_strerror(code));
		theirs[i < 0 ? 0 : i] = now() - start;

		ask("DELETE", argv[6], "journal", NULL);
		snprintf(text, sizeof(text), ENQUEUE, i + 20);
		run(conn, "BEGIN");
		run(conn, text);
		commit = wall_clock();
		run(conn, "COMMIT");
		start = wall_clock();
		at = received_at(argv[6]);
		ours[i < 0 ? 0 : i] = at - start;
		whole[i < 0 ? 0 : i] = at - commit;
		usleep(2000);			/* until it is settled, and the worker idle */
	}
	report("plain round trip", theirs, n);
	report("COMMIT sent to receipt", whole, n);
	report("COMMIT done to receipt", ours, n);
	printf("%-28s %.2f of the round trip (median), %.2f (99th percentile)\n", "COMMIT done to receipt",
		   ours[n / 2] / theirs[n / 2], ours[n * 99 / 100] / theirs[n * 99 / 100]);
}

static double
wall_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Polls until there is a request in the journal. */
static double
received_at(const char *admin)
{
	double		deadline = now() + 60;

	while (now() < deadline)
	{
		Answer		answer = {.length = 0};
		double		at;

		usleep(500);
		ask("GET", admin, "journal", &answer);
		at = number_after(answer.text, "\"at\":");
		if (at > 0)
			return at;
	}
	die("journal", "no request has arrived");
}

static void
ask(const char *method, const char *admin, const char *path, Answer *answer)
{
	static CURL *curl = NULL;
	char		url[512];
	CURLcode	code;

	if (curl == NULL)
		curl = curl_easy_init();
	snprintf(url, sizeof(url), "%s/%s", admin, path);
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, keep);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
	code = curl_easy_perform(curl);
	if (code != CURLE_OK)
		die(url, curl_easy_strerror(code));
}

static size_t
keep(char *data, size_t size, size_t nitems, void *arg)
{
	Answer	   *answer = arg;
	size_t		length = size * nitems;

	if (answer && answer->length + length < sizeof(answer->text))
	{
		memcpy(answer->text + answer->length, data, length);
		answer->length += length;
		answer->text[answer->length] = '\0';
	}
	return length;
}

static double
number_after(const char *text, const char *key)
{
	const char *found = strstr(text, key);

	return found ? strtod(found + strlen(key), NULL) : -1;
}

/* Sorts the values. */
static void
report(const char *what, double *values, int n)
{
	qsort(values, n, sizeof(double), compare);
	printf("%-28s median %.2f ms, 99th percentile %.2f ms of %d\n", what,
		   values[n / 2] * 1e3, values[n * 99 / 100] * 1e3, n);
}

/* The sessions enqueue row by row; what arrives meanwhile is counted. */
static void
measure_rate(char **argv)
{
	int			nconnections = atoi(argv[7]);
	double		seconds = atof(argv[8]);
	double		plain = plain_rate(argv, nconnections, seconds);
	double		before = count_requests(argv[6]);
	double		rate;
	PGconn	   *conn;
	PGresult   *result;

	for (int i = 0; i < SESSIONS; i++)
	{
		if (fork() == 0)
		{
			enqueue_for(argv[2], i, seconds);
			_exit(0);
		}
	}
	sleep((unsigned) seconds);
	rate = (count_requests(argv[6]) - before) / seconds;
	while (wait(NULL) > 0)
		;
	conn = connect_to(argv[2]);
	result = PQexec(conn, "SELECT count(*), (SELECT count(*) FROM dt_settled) FROM dt_waiting");
	printf("%-28s %.0f requests/s while %d sessions enqueue (%s rows left behind, %s settled)\n", "worker",
		   rate, SESSIONS, PQgetvalue(result, 0, 0), PQgetvalue(result, 0, 1));
	printf("%-28s %.0f requests/s, ratio %.2f\n", "plain libcurl, alone", plain, rate / plain);
	PQclear(result);
}

static void
enqueue_for(const char *conninfo, int session, double seconds)
{
	PGconn	   *conn = connect_to(conninfo);
	double		end = now() + seconds;

	for (int i = 0; now() < end; i++)
	{
		char		text[256];

		snprintf(text, sizeof(text), ENQUEUE, session * 1000000 + 100000 + i);
		run(conn, text);
	}
	PQfinish(conn);
}

static double
count_requests(const char *admin)
{
	Answer		answer = {.length = 0};

	ask("GET", admin, "stats", &answer);
	return number_after(answer.text, "\"requests\":");
}

/* As many as by libcurl's multi interface, with nothing else to do. */
static double
plain_rate(char **argv, int nconnections, double seconds)
{
	CURLM	   *multi = curl_multi_init();
	char		body[256];
	double		start = now();
	int			ndone = 0;
	int			nrunning;

	snprintf(body, sizeof(body), BODY, 1);
	for (int i = 0; i < nconnections; i++)
	{
		CURL	   *handle = plain_handle(argv[3], argv[4], argv[5]);

		curl_easy_setopt(handle, CURLOPT_POSTFIELDS, body);
		curl_multi_add_handle(multi, handle);
	}
	while (now() < start + seconds)
	{
		CURLMsg    *message;
		int			left;

		curl_multi_perform(multi, &nrunning);
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			CURL	   *handle = message->easy_handle;

			if (message->data.result != CURLE_OK)
				die("plain libcurl", curl_easy_strerror(message->data.result));
			ndone++;
			curl_multi_remove_handle(multi, handle);
			curl_multi_add_handle(multi, handle);
		}
		curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
	return ndone / (now() - start);
}

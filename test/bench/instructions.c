/*-------------------------------------------------------------------------
 *
 * instructions.c
 *		The plain side of "instructions": sends the same requests by libcurl alone.
 *
 * Usage: instructions URL CA_FILE API_KEY CONNECTIONS REQUESTS
 *
 * With one connection it is a loop of curl_easy_perform(); with more, libcurl's
 * multi interface, in which a slot sends again when its answer has come.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"

#define FIRST_PHONE 917000000001LL
#define MAX_CONNECTIONS 256

static void set_body(CURL *curl, int n);
static void check_answer(CURL *curl, CURLcode code);
static void send_one_by_one(CURL *curl, int nrequests);
static void send_by_multi(CURL **handles, int nconnections, int nrequests);

int
main(int argc, char **argv)
{
	CURL	   *handles[MAX_CONNECTIONS];
	int			nconnections;

	if (argc != 6 || atoi(argv[4]) < 1 || atoi(argv[4]) > MAX_CONNECTIONS)
		die("usage", "instructions URL CA_FILE API_KEY CONNECTIONS REQUESTS");
	nconnections = atoi(argv[4]);
	curl_global_init(CURL_GLOBAL_DEFAULT);
	for (int i = 0; i < nconnections; i++)
		handles[i] = plain_handle(argv[1], argv[2], argv[3]);
	if (nconnections == 1)
		send_one_by_one(handles[0], atoi(argv[5]));
	else
		send_by_multi(handles, nconnections, atoi(argv[5]));
	return 0;
}

static void
send_one_by_one(CURL *curl, int nrequests)
{
	for (int i = 0; i < nrequests; i++)
	{
		set_body(curl, i);
		check_answer(curl, curl_easy_perform(curl));
	}
}

static void
send_by_multi(CURL **handles, int nconnections, int nrequests)
{
	CURLM	   *multi = curl_multi_init();
	int			nstarted;
	int			ndone = 0;

	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) nconnections);
	for (nstarted = 0; nstarted < nconnections && nstarted < nrequests; nstarted++)
	{
		set_body(handles[nstarted], nstarted);
		curl_multi_add_handle(multi, handles[nstarted]);
	}
	while (ndone < nrequests)
	{
		CURLMsg    *message;
		int			left;

		curl_multi_perform(multi, &left);
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			CURL	   *curl = message->easy_handle;

			check_answer(curl, message->data.result);
			ndone++;
			curl_multi_remove_handle(multi, curl);
			if (nstarted < nrequests)
			{
				set_body(curl, nstarted++);
				curl_multi_add_handle(multi, curl);
			}
		}
		if (ndone < nrequests)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
}

/* Another customer's request. */
static void
set_body(CURL *curl, int n)
{
	char		body[256];

	snprintf(body, sizeof(body), "{\"tags\": [\"lead\"], \"phone\": \"%lld\", \"customFields\": [\"plan\"]}",
			 FIRST_PHONE + n);
	curl_easy_setopt(curl, CURLOPT_COPYPOSTFIELDS, body);
}

static void
check_answer(CURL *curl, CURLcode code)
{
	long		status;

	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	if (code != CURLE_OK || status != 201)
		die("plain libcurl", curl_easy_strerror(code));
}

/*-------------------------------------------------------------------------
 *
 * journal.c
 *		What the sandbox remembers: every API request, and a few counters.
 *
 * An entry keeps the bytes as they came; it becomes JSON when somebody asks.
 * The request pays for one copy and one short lock.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct Entry
{
	double		at;
	const char *listener;
	uint64_t	connection;
	const char *fault;
	int			status;			/* 0: not answered yet */
	size_t		head_len;
	size_t		body_len;
	char		bytes[];		/* head, then body */
} Entry;

static json_t *entry_to_json(uint64_t number, const Entry *entry);
static json_t *headers_to_json(const Request *req);
static json_t *header_or_null(const Request *req, const char *name);
static void count(uint64_t *counter);
static json_int_t counted(const uint64_t *counter);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Entry **entries;
static size_t num_entries;
static size_t max_entries;

/* Entries before the first that is kept; numbers are never used twice. */
static uint64_t forgotten;

/* These are touched by every request and have no order to keep: no lock. */
static struct
{
	uint64_t	requests;
	uint64_t	connections;
	uint64_t	connects;
	uint64_t	in_flight;
	uint64_t	max_in_flight;
}			stats;

/* Writes down a request that has been read.  Returns its number, from 1. */
uint64_t
journal_record(const Exchange *x)
{
	const Request *req = x->req;
	Entry	   *entry;
	uint64_t	number;

	entry = checked(malloc(sizeof(Entry) + req->head.len + req->body.len));
	entry->at = req->at;
	entry->listener = x->conn->listener->name;
	entry->connection = x->conn->id;
	entry->fault = x->fault ? x->fault->name : NULL;
	entry->status = 0;
	entry->head_len = req->head.len;
	entry->body_len = req->body.len;
	memcpy(entry->bytes, req->head.at, req->head.len);
	memcpy(entry->bytes + req->head.len, req->body.at, req->body.len);

	pthread_mutex_lock(&lock);
	if (num_entries == max_entries)
	{
		max_entries = max_entries ? max_entries * 2 : 256;
		entries = checked(realloc(entries, max_entries * sizeof(Entry *)));
	}
	entries[num_entries++] = entry;
	number = forgotten + num_entries;
	pthread_mutex_unlock(&lock);
	return number;
}

/* Adds what was answered, if the entry is still there.  Entry 0 is none. */
void
journal_status(uint64_t entry, int status)
{
	if (entry == 0)
		return;
	pthread_mutex_lock(&lock);
	if (entry > forgotten && entry <= forgotten + num_entries)
		entries[entry - forgotten - 1]->status = status;
	pthread_mutex_unlock(&lock);
}

void
journal_clear(void)
{
	size_t		i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < num_entries; i++)
		free(entries[i]);
	forgotten += num_entries;
	num_entries = 0;
	pthread_mutex_unlock(&lock);
}

/* The entries with numbers above "since", in order. */
json_t *
journal_since(uint64_t since)
{
	json_t	   *result = checked(json_array());
	size_t		i;

	pthread_mutex_lock(&lock);
	for (i = since > forgotten ? (size_t) (since - forgotten) : 0; i < num_entries; i++)
		json_array_append_new(result, entry_to_json(forgotten + i + 1, entries[i]));
	pthread_mutex_unlock(&lock);
	return result;
}

static json_t *
entry_to_json(uint64_t number, const Entry *entry)
{
	Request		req;
	Slice		head = {entry->bytes, entry->head_len};
	Slice		body = {entry->bytes + entry->head_len, entry->body_len};
	json_t	   *parsed;
	json_t	   *result = checked(json_object());

	parse_head(head, &req);
	parsed = json_loadb(body.at, body.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
	if (parsed == NULL)
		json_object_set_new(result, "raw", slice_to_json(body));
	json_object_set_new(result, "body", parsed ? parsed : json_null());

	json_object_set_new(result, "n", json_integer((json_int_t) number));
	json_object_set_new(result, "at", json_real(entry->at));
	json_object_set_new(result, "listener", json_string(entry->listener));
	json_object_set_new(result, "connection", json_integer((json_int_t) entry->connection));
	json_object_set_new(result, "method", slice_to_json(req.method));
	json_object_set_new(result, "path", slice_to_json(req.path));
	json_object_set_new(result, "authorization", header_or_null(&req, "Authorization"));
	json_object_set_new(result, "user_agent", header_or_null(&req, "User-Agent"));
	json_object_set_new(result, "content_type", header_or_null(&req, "Content-Type"));
	json_object_set_new(result, "headers", headers_to_json(&req));
	json_object_set_new(result, "status",
						entry->status ? json_integer(entry->status) : json_null());
	json_object_set_new(result, "fault",
						entry->fault ? json_string(entry->fault) : json_null());
	return result;
}

/* Lower-case names; the values of a repeated one are joined, as RFC 9110 has it. */
static json_t *
headers_to_json(const Request *req)
{
	json_t	   *headers = checked(json_object());
	char		name[MAX_HEAD];
	int			i;

	for (i = 0; i < req->nheaders; i++)
	{
		const Header *header = &req->headers[i];
		json_t	   *value = slice_to_json(header->value);
		const char *before;
		size_t		c;

		for (c = 0; c < header->name.len; c++)
			name[c] = (char) tolower((unsigned char) header->name.at[c]);
		name[c] = '\0';
		before = json_string_value(json_object_get(headers, name));
		if (before != NULL)
		{
			json_t	   *both = json_sprintf("%s, %s", before, json_string_value(value));

			json_decref(value);
			value = both;
		}
		json_object_set_new(headers, name, value);
	}
	return headers;
}

static json_t *
header_or_null(const Request *req, const char *name)
{
	const Slice *value = find_header(req, name);

	return value ? slice_to_json(*value) : json_null();
}

static void
count(uint64_t *counter)
{
	__atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
}

static json_int_t
counted(const uint64_t *counter)
{
	return (json_int_t) __atomic_load_n(counter, __ATOMIC_SEQ_CST);
}

void
stats_connection(void)
{
	count(&stats.connections);
}

void
stats_connect(void)
{
	count(&stats.connects);
}

/* An API request has been read. */
void
stats_enter(void)
{
	uint64_t	now;
	uint64_t	max;

	count(&stats.requests);
	now = __atomic_add_fetch(&stats.in_flight, 1, __ATOMIC_SEQ_CST);
	max = __atomic_load_n(&stats.max_in_flight, __ATOMIC_SEQ_CST);
	while (now > max &&
		   !__atomic_compare_exchange_n(&stats.max_in_flight, &max, now, false,
										__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		continue;
}

/* It is answered, or never will be. */
void
stats_leave(void)
{
	__atomic_sub_fetch(&stats.in_flight, 1, __ATOMIC_SEQ_CST);
}

json_t *
stats_get(void)
{
	return json_pack("{sI sI sI sI sI}",
					 "requests", counted(&stats.requests),
					 "connections", counted(&stats.connections),
					 "connects", counted(&stats.connects),
					 "in_flight", counted(&stats.in_flight),
					 "max_in_flight", counted(&stats.max_in_flight));
}

/* What is in flight goes on being in flight. */
void
stats_reset(void)
{
	__atomic_store_n(&stats.requests, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&stats.connections, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&stats.connects, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&stats.max_in_flight,
					 __atomic_load_n(&stats.in_flight, __ATOMIC_SEQ_CST),
					 __ATOMIC_SEQ_CST);
}

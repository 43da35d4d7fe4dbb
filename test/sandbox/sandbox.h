/*-------------------------------------------------------------------------
 *
 * sandbox.h
 *		A local stand-in for the DoubleTick HTTP API, for the tests and for
 *		trying things out.
 *
 * It answers as the real service does (api.c, customer.c), unless a rule for
 * the request's phone tells it to misbehave (rule.c, fault.c), and it tells
 * what it has received (journal.c).  It trusts whoever can reach 127.0.0.1 and
 * is no server for anything else.
 *
 * One blocking thread serves one connection for as long as it lasts.  What the
 * threads share is behind one lock each in customer.c, rule.c, hold.c and
 * journal.c; a Conn, a Request and an Exchange belong to their thread alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SANDBOX_H
#define SANDBOX_H

/* For memmem, strcasecmp and POLLRDHUP; must precede every system header. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <jansson.h>
#include <openssl/ssl.h>

/* What a request may measure.  DoubleTick's own limits are not known. */
#define MAX_HEAD		(64 * 1024)
#define MAX_BODY		(16 * 1024 * 1024)
#define MAX_HEADERS		128

#define API_PATH		"/customer/remove-tags-custom-fields"
#define ADMIN_PREFIX	"/sandbox/"
#define ANY_PHONE		"*"
#define JSON_TYPE		"application/json; charset=utf-8"

#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

/* A run of bytes that somebody else owns; not NUL-terminated. */
typedef struct Slice
{
	const char *at;
	size_t		len;
} Slice;

/* A growing run of bytes of its own. */
typedef struct Buffer
{
	char	   *data;
	size_t		len;
	size_t		size;
} Buffer;

/* One listening socket; tls is NULL where plain HTTP is spoken. */
typedef struct Listener
{
	const char *name;
	int			fd;
	int			port;
	SSL_CTX    *tls;
} Listener;

enum
{
	LISTEN_HTTPS,
	LISTEN_HTTP,
	LISTEN_EXPIRED,
	LISTEN_WRONGHOST,
	LISTEN_TLS11,
	LISTEN_SELFSIGNED,
	NUM_LISTENERS
};

/*
 * One accepted connection.  Received bytes wait in in[start..end); bytes below
 * "floor" are the head of the current request and do not move until it is done.
 */
typedef struct Conn
{
	int			fd;
	SSL		   *tls;
	const Listener *listener;
	uint64_t	id;
	bool		counted;		/* already part of stats.connections? */
	double		arrived;		/* when the latest bytes did, as in Request */
	char	   *in;
	size_t		floor;
	size_t		start;
	size_t		end;
	Buffer		body;			/* the current request's body */
	Buffer		out;			/* the current answer as it goes out */
} Conn;

/* What becomes of the connection after an answer, or the lack of one. */
typedef enum After
{
	AFTER_KEEP,					/* wait for the next request */
	AFTER_CLOSE,				/* close_notify and FIN */
	AFTER_LINGER,				/* the same, for a request not read to its end */
	AFTER_RESET					/* RST */
} After;

typedef struct Header
{
	Slice		name;
	Slice		value;
} Header;

/* One request as read; the slices point into its connection's buffers. */
typedef struct Request
{
	Slice		head;			/* request line and headers, as received */
	Slice		method;
	Slice		path;			/* without the query */
	Slice		query;
	bool		http10;
	bool		keep_alive;
	int			nheaders;
	Header		headers[MAX_HEADERS];
	Slice		body;
	double		at;				/* when it arrived, seconds since the epoch */
} Request;

/* An answer before it is laid out as bytes. */
typedef struct Answer
{
	int			status;
	const char *content_type;	/* NULL: no such header */
	Buffer		headers;		/* further lines, each with its CRLF */
	Buffer		body;
} Answer;

typedef struct Fault Fault;
typedef struct Hold Hold;

/* One API request and all that is known about it while it is dealt with. */
typedef struct Exchange
{
	Conn	   *conn;
	const Request *req;
	json_t	   *body;			/* parsed request body, or NULL */
	int			bad_at;			/* where parsing it stopped */
	json_t	   *rule;			/* the rule that applies, or NULL */
	const Fault *fault;			/* the rule's fault, or NULL */
	Hold	   *hold;			/* by which the rule holds the answer, or NULL */
	Answer		answer;
	uint64_t	entry;			/* its number in the journal */
	bool		in_flight;		/* counted in stats.in_flight? */
} Exchange;

/* A misbehaviour. */
struct Fault
{
	const char *name;
	int			status;			/* of its own answer; 0: wraps the normal one */
	After		(*run) (Exchange *x);
};

/* Settings, constant once the listeners are open. */
typedef struct Settings
{
	json_t	   *keys;			/* array of accepted API keys */
	bool		any_key;
	bool		any_name;		/* has every customer every name? */
	bool		journal;
	Listener	listeners[NUM_LISTENERS];
} Settings;

extern Settings settings;

/* buffer.c */
extern void die(const char *format,...) PRINTF_LIKE(1, 2) __attribute__((noreturn));
extern void *checked(void *p);
extern void buffer_reserve(Buffer *buf, size_t more);
extern void buffer_add(Buffer *buf, const void *data, size_t len);
extern void buffer_addf(Buffer *buf, const char *format,...) PRINTF_LIKE(2, 3);
extern void buffer_add_json(Buffer *buf, const json_t *value);
extern void buffer_free(Buffer *buf);
extern bool slice_is(Slice slice, const char *text);
extern bool slice_is_nocase(Slice slice, const char *text);
extern json_t *slice_to_json(Slice slice);

/* tls.c */
extern void tls_setup(Listener *listeners, const char *ca_path);

/* conn.c */
extern Conn *conn_new(int fd, const Listener *listener, uint64_t id);
extern bool conn_handshake(Conn *conn);
extern bool conn_fill(Conn *conn);
extern size_t conn_recv(Conn *conn, void *data, size_t len);
extern bool conn_send(Conn *conn, const void *data, size_t len);
extern bool peer_left(Conn *conn, int ms);
extern bool peer_waits(Conn *conn, int fd);
extern void conn_end(Conn *conn, After how);

/* http.c */
extern bool parse_head(Slice head, Request *req);
extern int	read_request(Conn *conn, Request *req);
extern const Slice *find_header(const Request *req, const char *name);
extern const char *reason_phrase(int status);
extern bool status_has_body(int status);
extern void http_date(time_t when, char *buf, size_t size);
extern void answer_head(const Answer *answer, const Request *req,
						const char *framing, bool close, Buffer *out);
extern void answer_whole(const Answer *answer, const Request *req,
						 bool close, Buffer *out);
extern void answer_free(Answer *answer);

/* serve.c */
extern void serve(Conn *conn);
extern void exchange_leave(Exchange *x);
extern After exchange_send(Exchange *x);
extern After refuse(Conn *conn, const Request *req, int status, After after);

/* tunnel.c */
extern After tunnel(Conn *conn, const Request *req);

/* api.c */
extern bool is_api_request(const Request *req);
extern bool is_phone(const json_t *value);
extern bool is_all_strings(const json_t *value);
extern void answer_canned(Answer *answer, int status);
extern void answer_no_route(Answer *answer, const Request *req);
extern void answer_json(Answer *answer, int status, json_t *body);
extern void answer_message(Answer *answer, int status, json_t *message);
extern void api_answer(Exchange *x);

/* customer.c */
extern const char *bare_phone(const char *phone);
extern void customer_put(const char *phone, json_t *customer);
extern json_t *customer_get(const char *phone);
extern void customer_clear(void);
extern json_t *customer_remove(const char *phone, const json_t *fields,
							   const json_t *tags);

/* rule.c */
extern json_t *rule_wrong(const json_t *rule);
extern void rule_put(const char *phone, json_t *rule);
extern void rule_clear(const char *phone);
extern json_t *rule_take(const char *phone, size_t length, Hold **hold);
extern void rule_release(json_t *rule);
extern int	rule_int(const json_t *rule, const char *key, int otherwise);
extern void rule_compose(Exchange *x);

/* hold.c */
extern Hold *hold_new(const char *phone);
extern bool hold_wait(Hold *hold, Conn *conn);
extern int	hold_release(const char *phone);
extern int	hold_count(const char *phone);

/* fault.c */
extern const Fault *fault_find(const char *name);

/* gzip.c */
extern void gzip(const Buffer *plain, Buffer *packed);
extern const Buffer *gzip_bomb(void);

/* admin.c */
extern After admin(Conn *conn, const Request *req);

/* journal.c */
extern uint64_t journal_record(const Exchange *x);
extern void journal_status(uint64_t entry, int status);
extern void journal_clear(void);
extern json_t *journal_since(uint64_t since);
extern void stats_connection(void);
extern void stats_connect(void);
extern void stats_enter(void);
extern void stats_leave(void);
extern json_t *stats_get(void);
extern void stats_reset(void);

#endif							/* SANDBOX_H */

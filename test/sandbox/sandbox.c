/*-------------------------------------------------------------------------
 *
 * sandbox.c
 *		Starts the sandbox: arguments, listeners, one thread per connection,
 *		and an end that leaves nothing behind.
 *
 * It listens on 127.0.0.1 only.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Enough for TLS and a few blocks on the stack, times many connections. */
#define THREAD_STACK	(512 * 1024)

/* How long to leave a full table of descriptors alone. */
#define ACCEPT_PAUSE_MS	10

#define DEFAULT_KEY		"key_sandbox"
#define DEFAULT_SERVER	"sandbox"

static void read_arguments(int argc, char **argv);
static int	port_of(const char *text);
static const char *server_of(const char *text);
static void usage(FILE *to);
static void make_directory(void);
static void open_listener(Listener *listener, int port);
static void catch_signals(void);
static void stop(int signo);
static void write_summary(void);
static void announce(void);
static char *sql_literal(const char *text);
static void accept_until_told(void);
static bool stdin_ended(void);
static void accept_waiting(const Listener *listener);
static void start_thread(Conn *conn);
static void *connection_main(void *conn);
static void clean_up(void);
static char *path_in_dir(const char *name);

Settings	settings = {
	.journal = true,
	.listeners = {
		[LISTEN_HTTPS] = {"https", -1, 0, NULL},
		[LISTEN_HTTP] = {"http", -1, 0, NULL},
		[LISTEN_EXPIRED] = {"expired", -1, 0, NULL},
		[LISTEN_WRONGHOST] = {"wronghost", -1, 0, NULL},
		[LISTEN_TLS11] = {"tls11", -1, 0, NULL},
		[LISTEN_SELFSIGNED] = {"selfsigned", -1, 0, NULL},
	},
};

static char *dir;				/* where ca.pem and sandbox.json are */
static bool dir_is_ours;		/* made by this process */
static char *ca_path;
static char *summary_path;
static bool until_eof;
static int	https_port;
static int	http_port;
static const char *server = DEFAULT_SERVER; /* that the printed SQL creates */

/* A signal handler's way to wake the main loop. */
static int	stop_pipe[2];

int
main(int argc, char **argv)
{
	int			i;

	read_arguments(argc, argv);
	catch_signals();
	json_object_seed(0);
	make_directory();
	tls_setup(settings.listeners, ca_path);
	for (i = 0; i < NUM_LISTENERS; i++)
		open_listener(&settings.listeners[i], i == LISTEN_HTTPS ? https_port : i == LISTEN_HTTP ? http_port : 0);
	write_summary();
	announce();
	accept_until_told();
	clean_up();

	/* The connections' threads are still at work: no exit handlers. */
	_exit(0);
}

static void
read_arguments(int argc, char **argv)
{
	static const struct option options[] = {
		{"dir", required_argument, NULL, 'd'},
		{"key", required_argument, NULL, 'k'},
		{"no-journal", no_argument, NULL, 'n'},
		{"until-eof", no_argument, NULL, 'e'},
		{"port", required_argument, NULL, 'p'},
		{"http-port", required_argument, NULL, 'P'},
		{"any-key", no_argument, NULL, 'a'},
		{"any-name", no_argument, NULL, 'A'},
		{"server", required_argument, NULL, 's'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}
	};
	int			c;

	settings.keys = checked(json_array());
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (c)
		{
			case 'd':
				dir = optarg;
				break;
			case 'k':
				json_array_append_new(settings.keys, checked(json_string(optarg)));
				break;
			case 'n':
				settings.journal = false;
				break;
			case 'e':
				until_eof = true;
				break;
			case 'p':
				https_port = port_of(optarg);
				break;
			case 'P':
				http_port = port_of(optarg);
				break;
			case 'a':
				settings.any_key = true;
				break;
			case 'A':
				settings.any_name = true;
				break;
			case 's':
				server = server_of(optarg);
				break;
			case 'h':
				usage(stdout);
				exit(0);
			default:
				usage(stderr);
				exit(2);
		}
	}
	if (optind < argc)
	{
		fprintf(stderr, "sandbox: unexpected argument \"%s\"\n", argv[optind]);
		usage(stderr);
		exit(2);
	}
	if (json_array_size(settings.keys) == 0)
		json_array_append_new(settings.keys, json_string(DEFAULT_KEY));
}

static int
port_of(const char *text)
{
	char	   *end;
	long		port = strtol(text, &end, 10);

	if (*end == '\0' && port > 0 && port <= 65535)
		return (int) port;
	fprintf(stderr, "sandbox: invalid port \"%s\"\n", text);
	exit(2);
}

/* Only names that SQL takes without quotation marks. */
static const char *
server_of(const char *text)
{
	if (*text != '\0' && strspn(text, "abcdefghijklmnopqrstuvwxyz_") == strlen(text))
		return text;
	fprintf(stderr, "sandbox: invalid server name \"%s\"\n", text);
	exit(2);
}

static void
usage(FILE *to)
{
	fputs("A local stand-in for the DoubleTick API.\n\n"
		  "Usage: sandbox [OPTION]...\n\n"
		  "  --dir DIR     put ca.pem and sandbox.json there, not in a temporary directory\n"
		  "  --key KEY     accept this API key (may be repeated; default " DEFAULT_KEY ")\n"
		  "  --any-key     accept any API key that is not empty\n"
		  "  --any-name    let every customer have every tag and custom field\n"
		  "  --port N      the https port (default: one that is free)\n"
		  "  --http-port N the http port (default: one that is free)\n"
		  "  --server NAME the server that the printed SQL creates (default " DEFAULT_SERVER ")\n"
		  "  --no-journal  do not keep the requests\n"
		  "  --until-eof   exit when standard input ends\n"
		  "  --help        show this help\n", to);
}

/*
 * Readable by all: the server under test often runs as another user, and there
 * is nothing secret in it.
 */
static void
make_directory(void)
{
	const char *tmp = getenv("TMPDIR");
	Buffer		template = {0};

	if (dir == NULL)
	{
		buffer_addf(&template, "%s/doubletick-sandbox.XXXXXX", tmp && *tmp ? tmp : "/tmp");
		dir = mkdtemp(template.data);
		if (dir == NULL)
			die("could not make a temporary directory: %s", strerror(errno));
		dir_is_ours = true;
	}
	else if (mkdir(dir, 0755) == 0)
		dir_is_ours = true;
	else if (errno != EEXIST)
		die("could not make directory \"%s\": %s", dir, strerror(errno));

	dir = realpath(dir, NULL);
	if (dir == NULL || (dir_is_ours && chmod(dir, 0755) != 0))
		die("could not use the directory: %s", strerror(errno));
	ca_path = path_in_dir("ca.pem");
	summary_path = path_in_dir("sandbox.json");
}

static char *
path_in_dir(const char *name)
{
	Buffer		path = {0};

	buffer_addf(&path, "%s/%s", dir, name);
	return path.data;
}

/* Port 0 is any that is free. */
static void
open_listener(Listener *listener, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,.sin_port = htons((uint16_t) port)};
	socklen_t	len = sizeof(address);
	int			on = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener->fd = socket(AF_INET, SOCK_STREAM, 0);
	if (listener->fd < 0 ||
		setsockopt(listener->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
		bind(listener->fd, (struct sockaddr *) &address, len) != 0 ||
		listen(listener->fd, SOMAXCONN) != 0 ||
		fcntl(listener->fd, F_SETFL, O_NONBLOCK) != 0 ||
		getsockname(listener->fd, (struct sockaddr *) &address, &len) != 0)
	{
		int			why = errno;

		clean_up();
		die("could not listen on port %d: %s", port, strerror(why));
	}
#ifdef SO_TIMESTAMPNS
	/* Its connections inherit this, which tells note_arrival when data came. */
	setsockopt(listener->fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on));
#endif
	listener->port = ntohs(address.sin_port);
}

static void
catch_signals(void)
{
	struct sigaction action = {.sa_handler = stop,.sa_flags = SA_RESTART};

	if (pipe(stop_pipe) != 0)
		die("could not make a pipe: %s", strerror(errno));
	sigemptyset(&action.sa_mask);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
}

static void
stop(int signo)
{
	int			saved = errno;

	(void) signo;
	if (write(stop_pipe[1], "x", 1) < 0)
	{
		/* The pipe is full of the same news. */
	}
	errno = saved;
}

/* sandbox.json: where everything is, for programs. */
static void
write_summary(void)
{
	json_t	   *summary = checked(json_object());
	Buffer		aside = {0};
	int			i;

	json_object_set_new(summary, "pid", json_integer(getpid()));
	for (i = 0; i < NUM_LISTENERS; i++)
		json_object_set_new(summary, settings.listeners[i].name,
							json_integer(settings.listeners[i].port));
	json_object_set_new(summary, "ca_file", json_string(ca_path));
	json_object_set(summary, "key", json_array_get(settings.keys, 0));

	buffer_addf(&aside, "%s.new", summary_path);
	if (json_dump_file(summary, aside.data, JSON_INDENT(2)) != 0 ||
		rename(aside.data, summary_path) != 0)
		die("could not write \"%s\": %s", summary_path, strerror(errno));
	buffer_free(&aside);
	json_decref(summary);
}

/*
 * Says where everything is, for people.  The server has a name of its own, since one
 * called doubletick may be the real one; the one of an earlier sandbox is replaced.  A
 * server with another name is not, nor need a session choose "doubletick".
 */
static void
announce(void)
{
	char	   *ca = sql_literal(ca_path);
	char	   *key = sql_literal(json_string_value(json_array_get(settings.keys, 0)));
	int			https = settings.listeners[LISTEN_HTTPS].port;

	printf("https    https://localhost:%d\n"
		   "http     http://127.0.0.1:%d\n"
		   "CA file  %s\n\n",
		   https, settings.listeners[LISTEN_HTTP].port, ca_path);
	printf("CREATE EXTENSION IF NOT EXISTS doubletick;\n");
	if (strcmp(server, DEFAULT_SERVER) == 0)
		printf("DROP SERVER IF EXISTS %s CASCADE;\n", server);
	printf("CREATE SERVER %s FOREIGN DATA WRAPPER doubletick"
		   " OPTIONS (base_url 'https://localhost:%d', ca_file %s);\n"
		   "CREATE USER MAPPING FOR CURRENT_USER SERVER %s"
		   " OPTIONS (api_key %s);\n",
		   server, https, ca, server, key);
	if (strcmp(server, "doubletick") != 0)
		printf("SET doubletick.server = '%s';  -- a trigger names it as its last argument\n", server);
	printf("\nready\n");
	fflush(stdout);
	free(ca);
	free(key);
}

/* In single quotes, with those inside doubled. */
static char *
sql_literal(const char *text)
{
	Buffer		literal = {0};

	buffer_addf(&literal, "'");
	for (; *text; text++)
		buffer_addf(&literal, *text == '\'' ? "''" : "%c", *text);
	buffer_addf(&literal, "'");
	return literal.data;
}

/* The main loop: accepts until a signal comes or standard input ends. */
static void
accept_until_told(void)
{
	struct pollfd pfds[NUM_LISTENERS + 2];
	int			i;

	for (;;)
	{
		for (i = 0; i < NUM_LISTENERS; i++)
			pfds[i] = (struct pollfd) {.fd = settings.listeners[i].fd,.events = POLLIN};
		pfds[i++] = (struct pollfd) {.fd = stop_pipe[0],.events = POLLIN};
		pfds[i] = (struct pollfd) {.fd = until_eof ? STDIN_FILENO : -1,.events = POLLIN};

		if (poll(pfds, NUM_LISTENERS + 2, -1) < 0)
		{
			if (errno == EINTR)
				continue;
			die("could not wait for connections: %s", strerror(errno));
		}
		if (pfds[NUM_LISTENERS].revents != 0)
			return;
		if (pfds[NUM_LISTENERS + 1].revents != 0 && stdin_ended())
			return;
		for (i = 0; i < NUM_LISTENERS; i++)
		{
			if (pfds[i].revents != 0)
				accept_waiting(&settings.listeners[i]);
		}
	}
}

static bool
stdin_ended(void)
{
	char		waste[512];

	return read(STDIN_FILENO, waste, sizeof(waste)) <= 0;
}

/* Takes all connections that wait at a listener. */
static void
accept_waiting(const Listener *listener)
{
	static uint64_t connections;
	struct timespec pause = {0, ACCEPT_PAUSE_MS * 1000000L};

	for (;;)
	{
		int			fd = accept(listener->fd, NULL, NULL);

		if (fd < 0)
		{
			if (errno == EMFILE || errno == ENFILE)
				nanosleep(&pause, NULL);
			if (errno != EINTR && errno != ECONNABORTED)
				return;
			continue;
		}
		/* Some systems let it inherit the listener's O_NONBLOCK. */
		fcntl(fd, F_SETFL, 0);
		start_thread(conn_new(fd, listener, ++connections));
	}
}

static void
start_thread(Conn *conn)
{
	pthread_attr_t attr;
	pthread_t	thread;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, THREAD_STACK);
	if (pthread_create(&thread, &attr, connection_main, conn) != 0)
		conn_end(conn, AFTER_RESET);
	pthread_attr_destroy(&attr);
}

static void *
connection_main(void *conn)
{
	serve(conn);
	return NULL;
}

/* Removes what the start has made, but for what is in a directory we were given. */
static void
clean_up(void)
{
	if (!dir_is_ours)
		return;
	unlink(ca_path);
	unlink(summary_path);
	rmdir(dir);
}

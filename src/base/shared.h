/*-------------------------------------------------------------------------
 *
 * base/shared.h
 *		What the processes of a cluster share, when the library is preloaded.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_SHARED_H
#define DOUBLETICK_BASE_SHARED_H

#include "datatype/timestamp.h"
#include "storage/lwlock.h"
#include "storage/proc.h"

/* Limits: databases whose queues have work, and servers or accounts that have a pace. */
#define SHARED_MAX_DATABASES 1024
#define SHARED_MAX_PACES 1024

/* What was sent is counted in spans of this many seconds, for the last minute. */
#define SHARED_SPAN 10
#define SHARED_NSPANS 6

/* A server of any database. */
typedef struct PaceServer
{
	Oid			database;
	Oid			oid;
} PaceServer;

/* The pace of an account, or of one server; times by clock_now(). */
typedef struct PaceEntry
{
	bool		is_used;
	NameData	account;		/* "": it is that of one server, */
	PaceServer	server;			/* this one */

	int64		last_turn;		/* see pace.c; PG_INT64_MIN: none yet */
	int64		last_interval;	/* of the server whose turn it was, in µs */
	int64		paused_until;	/* 0: not paused; see pace_pause() */
	PaceServer	paused_server;	/* which got the 429 */
	TransactionId paused_xmin;	/* of this server's definition then */
	TransactionId paused_next_xid;	/* the next xid then */
} PaceEntry;

/* What was sent is counted by seconds, to show the present pace. */
#define COUNTERS_NSECONDS 16

typedef struct SecondCount
{
	int64		second;			/* clock_now() in seconds */
	int64		sent;			/* requests */
} SecondCount;

/* Answers are counted by the first digit of their status; 0: none came; 6: it is larger. */
#define COUNTERS_NCLASSES 7

/* What was sent to a server, and what came of it; see counters.c. */
typedef struct CountersEntry
{
	Oid			database;
	Oid			server;			/* InvalidOid: the entry is free */
	TimestampTz since;
	int64		used_at;		/* clock_now() */
	int64		requests;
	int64		calls;			/* of the requests: a session waited */
	int64		answers[COUNTERS_NCLASSES];
	int64		too_fast;		/* of the answers: HTTP status 429 */

	/* Removals that the queue has settled. */
	int64		done;
	int64		errored;		/* of the done: not all names were removed */
	int64		failed;
	int64		cancelled;		/* all their names came back */
	SecondCount seconds[COUNTERS_NSECONDS];
} CountersEntry;

/* What a database's worker did in one span. */
typedef struct SharedSpan
{
	int64		number;			/* seconds since the epoch / SHARED_SPAN */
	int64		sent;			/* requests */
	int64		failed;			/* removals */
} SharedSpan;

/* A database whose queue has work, or had; times by clock_now(). */
typedef struct SharedDatabase
{
	Oid			oid;			/* InvalidOid: the entry is free */
	int64		wanted_at;		/* when a worker is to look at the queue; 0:
								 * at once, PG_INT64_MAX: not before somebody
								 * enqueues */
	bool		exploring;		/* is it to leave at once if nothing waits? */

	/* Its worker. */
	PGPROC	   *proc;			/* NULL: it does not run */
	TimestampTz since;			/* when it started */
	int			failures;		/* in a row */
	int64		not_before;		/* when the next one may be started */

	/* What dt_status shows. */
	char		state[64];
	int			in_flight;
	SharedSpan	spans[SHARED_NSPANS];
	char		last_error[256];
} SharedDatabase;

/*
 * Code that holds one of the locks must not raise an error: a process that then ends
 * would take "lock" in its exit callback while it still holds it.
 */
typedef struct Shared
{
	LWLock	   *lock;			/* of all but these */
	LWLock	   *pace_lock;		/* of paces and counters */
	PGPROC	   *launcher;		/* NULL when it does not run */
	bool		lacks_slot;		/* does a database wait for a worker's slot? */
	Oid			explored;		/* since the server started, workers were
								 * wanted for databases up to this OID */
	int			ndatabases;		/* entries used so far, free ones included */
	SharedDatabase databases[SHARED_MAX_DATABASES];
	PaceEntry	paces[SHARED_MAX_PACES];
	CountersEntry counters[SHARED_MAX_PACES];
} Shared;

/* NULL when the library is not preloaded. */
extern Shared *shared;

extern void shared_init(void);
extern SharedDatabase *shared_lock_database(Oid oid, bool create);
extern void shared_unlock(void);
extern SharedDatabase *shared_find_database(Oid oid, bool create);
extern void shared_wake_launcher(void);

#endif							/* DOUBLETICK_BASE_SHARED_H */

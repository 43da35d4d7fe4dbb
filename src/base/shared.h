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

/* How many databases may have work in their queues, and servers a pace. */
#define SHARED_MAX_DATABASES 1024
#define SHARED_MAX_PACES 1024

/* Requests are counted in spans of so many seconds, for the last minute. */
#define SHARED_SPAN 10
#define SHARED_NSPANS 6

/* The pace of a server; times by clock_now(). */
typedef struct PaceEntry
{
	Oid			database;
	Oid			server;			/* InvalidOid: the entry is free */
	int64		last_turn;		/* see pace.c; PG_INT64_MIN: none yet */
	int64		paused_until;	/* 0: not paused */
	TransactionId paused_xmin;	/* of the server's definition then */
} PaceEntry;

/* Requests of a span of time. */
typedef struct SharedSpan
{
	int64		number;			/* seconds since the epoch / SHARED_SPAN */
	int64		sent;
	int64		failed;
} SharedSpan;

/* A database whose queue has work, or had; times by clock_now(). */
typedef struct SharedDatabase
{
	Oid			oid;			/* InvalidOid: the entry is free */
	int64		wanted_at;		/* when a worker is to look at the queue; 0:
								 * at once, PG_INT64_MAX: not before somebody
								 * enqueues */
	bool		exploring;		/* is it to look only whether there is work? */

	/* Its worker. */
	PGPROC	   *proc;			/* NULL: it does not run */
	TimestampTz since;
	int			failures;		/* in a row */
	int64		not_before;		/* when the next one may be started */

	/* What dt_status shows. */
	char		state[64];
	int			in_flight;
	SharedSpan	spans[SHARED_NSPANS];
	char		last_error[256];
} SharedDatabase;

/*
 * Nothing that may raise an error is done while one of the locks is held: a process
 * that ends takes "lock" before PostgreSQL releases the locks that it holds.
 */
typedef struct Shared
{
	LWLock	   *lock;			/* for all but the paces */
	LWLock	   *pace_lock;
	PGPROC	   *launcher;		/* NULL when it does not run */
	bool		lacks_slot;		/* does a database wait for a worker's slot? */
	Oid			explored;		/* databases up to this OID have been looked
								 * at since the server started */
	int			ndatabases;		/* entries in use or free, from the first */
	SharedDatabase databases[SHARED_MAX_DATABASES];
	PaceEntry	paces[SHARED_MAX_PACES];
} Shared;

/* NULL when the library is not preloaded. */
extern Shared *shared;

extern void shared_init(void);
extern SharedDatabase *shared_lock_database(Oid oid, bool create);
extern void shared_unlock(void);
extern SharedDatabase *shared_find_database(Oid oid, bool create);
extern void shared_wake_launcher(void);

#endif							/* DOUBLETICK_BASE_SHARED_H */

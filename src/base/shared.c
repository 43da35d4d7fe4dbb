/*-------------------------------------------------------------------------
 *
 * base/shared.c
 *		What the processes of a cluster share, when the library is preloaded.
 *
 * Nothing in here points into a process, but for PGPROCs, which are shared
 * themselves.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/shared.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"

#define TRANCHE "doubletick"

Shared	   *shared = NULL;

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static void request(void);
static void startup(void);
static bool is_quiet(const SharedDatabase *database);

/*
 * Asks for the memory.  Called while the postmaster loads the library.
 */
void
shared_init(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup;
}

static void
request(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(Shared)));
	RequestNamedLWLockTranche(TRANCHE, 2);
}

static void
startup(void)
{
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("doubletick", sizeof(Shared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(Shared));
		shared->lock = &GetNamedLWLockTranche(TRANCHE)[0].lock;
		shared->pace_lock = &GetNamedLWLockTranche(TRANCHE)[1].lock;
	}
	LWLockRelease(AddinShmemInitLock);
}

/*
 * Locks all but the paces, and finds the entry of a database: shared_unlock()
 * when it has been changed.
 */
SharedDatabase *
shared_lock_database(Oid oid, bool create)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	return shared_find_database(oid, create);
}

void
shared_unlock(void)
{
	LWLockRelease(shared->lock);
}

/*
 * The entry of a database; NULL when there is none, or, if one was to be made,
 * no room.  The caller holds the lock, exclusively if one is to be made.
 */
SharedDatabase *
shared_find_database(Oid oid, bool create)
{
	SharedDatabase *unused = NULL;
	SharedDatabase *quiet = NULL;

	for (int i = 0; i < shared->ndatabases; i++)
	{
		if (shared->databases[i].oid == oid)
			return &shared->databases[i];
		if (!OidIsValid(shared->databases[i].oid))
			unused = &shared->databases[i];
		else if (is_quiet(&shared->databases[i]))
			quiet = &shared->databases[i];
	}
	if (!create)
		return NULL;
	if (unused == NULL && shared->ndatabases < SHARED_MAX_DATABASES)
		unused = &shared->databases[shared->ndatabases++];
	if (unused == NULL)
		unused = quiet;
	if (unused == NULL)
		return NULL;
	memset(unused, 0, sizeof(SharedDatabase));
	unused->oid = oid;
	unused->wanted_at = PG_INT64_MAX;
	return unused;
}

/* May the entry be forgotten for the sake of another one? */
static bool
is_quiet(const SharedDatabase *database)
{
	return database->wanted_at == PG_INT64_MAX && database->proc == NULL;
}

/*
 * Has the launcher look at what has changed.  The caller holds the lock.
 */
void
shared_wake_launcher(void)
{
	if (shared->launcher)
		SetLatch(&shared->launcher->procLatch);
}

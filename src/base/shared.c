/*-------------------------------------------------------------------------
 *
 * base/shared.c
 *		What the processes of a cluster share, when the library is preloaded.
 *
 * No pointer here leads into the memory of one process: PGPROCs are shared, too.
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

static void request_shared_memory(void);
static void attach_shared_memory(void);
static bool is_entry_reusable(const SharedDatabase *database);

/*
 * Has shared memory requested.  _PG_init() calls it in the postmaster.
 */
void
shared_init(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared_memory;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = attach_shared_memory;
}

static void
request_shared_memory(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(Shared)));
	RequestNamedLWLockTranche(TRANCHE, 2);
}

static void
attach_shared_memory(void)
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
 * Locks everything but the paces, and returns the database's entry, as
 * shared_find_database() does.  The caller calls shared_unlock() soon after.
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
 * Returns the entry of a database, or NULL when there is none.  With "create" it
 * makes one, and NULL means that all entries are in use.  The caller holds the lock,
 * with "create" exclusively.
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
		else if (is_entry_reusable(&shared->databases[i]))
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

/* May the entry be given to another database? */
static bool
is_entry_reusable(const SharedDatabase *database)
{
	return database->wanted_at == PG_INT64_MAX && database->proc == NULL;
}

/*
 * Wakes the launcher after an entry has changed.  The caller holds the lock.
 */
void
shared_wake_launcher(void)
{
	if (shared->launcher)
		SetLatch(&shared->launcher->procLatch);
}

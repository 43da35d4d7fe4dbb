/*-------------------------------------------------------------------------
 *
 * queue.c
 *		The door to the queue: removals and keeps come in, and some go back.
 *
 * A user's transaction only inserts: it never waits for the drainer, and fails
 * for nothing that the drainer does, at any isolation level.  What comes in is
 * a removal, or a keep: names that a customer has again.  A keep takes those
 * names back from removals that were entered before it (see due.c).
 *
 * Only dt_cancel() and dt_retry() take a row away, each under the customer's
 * door (claim.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "claim.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "names.h"
#include "queue.h"
#include "settings.h"
#include "store.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static void fill_row(QueueRow *row, const Requester *requester, const Removal *removal);
static void check_writable(const char *command);
static bool find_withheld(Store *waiting, int64 id, QueueRow *row);
static void check_sendable(const QueueRow *row);

PG_FUNCTION_INFO_V1(dt_enqueue_remove_tags_custom_fields);
PG_FUNCTION_INFO_V1(dt_cancel);
PG_FUNCTION_INFO_V1(dt_retry);

/*
 * dt_enqueue_remove_tags_custom_fields(phone text, tags text[], fields text[],
 * waba text) returns bigint
 */
Datum
dt_enqueue_remove_tags_custom_fields(PG_FUNCTION_ARGS)
{
#define ARGUMENT(n, get) (PG_ARGISNULL(n) ? NULL : get(n))
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	Requester	requester;
	Removal		removal;
	Fault	   *fault;
	int64		id;

	check_writable("dt_enqueue_remove_tags_custom_fields()");

	context = AllocSetContextCreate(caller, "doubletick enqueue", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	fault = payload_check(ARGUMENT(0, PG_GETARG_TEXT_PP),
						  ARGUMENT(1, PG_GETARG_ARRAYTYPE_P),
						  ARGUMENT(2, PG_GETARG_ARRAYTYPE_P),
						  ARGUMENT(3, PG_GETARG_TEXT_PP), &removal);
	if (fault)
		fault_raise(fault);

	requester.server = setting_server;
	requester.role = GetUserId();
	requester.enqueued_by = GetOuterUserId();
	id = queue_remove(&requester, &removal);

	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	PG_RETURN_INT64(id);
#undef ARGUMENT
}

/*
 * Enters a removal that payload_check() has passed.  Returns its id.
 */
int64
queue_remove(const Requester *requester, const Removal *removal)
{
	Store		waiting;
	QueueRow	row;

	store_open(&waiting, STORE_WAITING);
	fill_row(&row, requester, removal);
	store_insert_waiting(&waiting, &row);
	store_close(&waiting);
	return row.id;
}

/*
 * Enters that the customer has these names again: what waits to remove them
 * will not.  Where nothing does, nothing is entered.
 *
 * Removals of transactions still under way count as waiting, for they may
 * commit.  The look is no snapshot's, and so takes no predicate lock that could
 * make a serializable transaction fail.
 */
void
queue_keep(const Requester *requester, const Removal *names)
{
	Relation	rel = store_table(STORE_WAITING, RowExclusiveLock);
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	QueueRow	keep;
	bool		wanted = false;

	keep.server = requester->server;
	keep.role = requester->role;
	keep.phone = names->phone;
	keep.waba = names->waba;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, WAITING_CUSTOMER, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(payload_digits(names->phone)));
	scan = systable_beginscan(rel, store_oid(STORE_WAITING_CUSTOMER), true, &dirty, 1, &key);
	while (!wanted && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		QueueRow	row;
		int			ntags;
		int			nfields;
		const char **tags;
		const char **fields;

		store_read_waiting(rel, tuple, &row);
		if (row.keep || !store_is_same_customer(&row, &keep))
			continue;
		tags = names_of_array(row.tags, &ntags);
		fields = names_of_array(row.fields, &nfields);
		wanted = names_intersect(tags, ntags, names->tags, names->ntags) > 0 ||
			names_intersect(fields, nfields, names->fields, names->nfields) > 0;
	}
	systable_endscan(scan);
	table_close(rel, NoLock);

	if (wanted)
	{
		Store		waiting;

		store_open(&waiting, STORE_WAITING);
		fill_row(&keep, requester, names);
		keep.keep = true;
		store_insert_waiting(&waiting, &keep);
		store_close(&waiting);
	}
}

/*
 * Enters a removal that can never be sent into the history, as failed.  Returns
 * its id.
 */
int64
queue_fail(const Requester *requester, const Removal *removal, const char *error)
{
	Store		settled;
	QueueRow	row = {0};

	row.id = store_next_id();
	row.enqueued_at = GetCurrentTimestamp();
	row.role = requester->role;
	row.enqueued_by = requester->enqueued_by;
	row.server = requester->server;
	row.phone = removal->phone ? removal->phone : "";
	row.waba = removal->waba;
	row.tags = names_to_array(removal->tags, removal->ntags);
	row.fields = names_to_array(removal->fields, removal->nfields);
	store_open(&settled, STORE_SETTLED);
	store_insert_settled(&settled, &row, STATE_FAILED, NULL, error);
	store_close(&settled);
	return row.id;
}

static void
fill_row(QueueRow *row, const Requester *requester, const Removal *removal)
{
	memset(row, 0, sizeof(QueueRow));
	row->id = store_next_id();
	row->ord = row->id;
	row->customer = payload_digits(removal->phone);
	row->enqueued_at = GetCurrentTimestamp();
	row->due_at = row->enqueued_at;
	row->role = requester->role;
	row->enqueued_by = requester->enqueued_by;
	row->server = requester->server;
	row->phone = removal->phone;
	row->waba = removal->waba;
	row->tags = names_to_array(removal->tags, removal->ntags);
	row->fields = names_to_array(removal->fields, removal->nfields);
}

/*
 * dt_cancel(id bigint) returns boolean
 */
Datum
dt_cancel(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Store		waiting;
	Store		settled;
	QueueRow	row;
	bool		taken;

	check_writable("dt_cancel()");

	/* What this statement has enqueued can be cancelled, too. */
	CommandCounterIncrement();
	store_open(&waiting, STORE_WAITING);
	taken = find_withheld(&waiting, id, &row) && store_delete(&waiting, &row.tid, true);
	if (taken)
	{
		store_open(&settled, STORE_SETTLED);
		store_insert_settled(&settled, &row, STATE_CANCELLED, NULL, "taken out by dt_cancel");
		store_close(&settled);
	}
	store_close(&waiting);
	PG_RETURN_BOOL(taken && row.attempts == 0);
}

/*
 * The waiting removal with this id, kept from leaving until the transaction
 * ends; false when it is out, or is not there for this role.
 */
static bool
find_withheld(Store *waiting, int64 id, QueueRow *row)
{
	/* Once to see which door to hold, and again when it is held. */
	return store_find_waiting(waiting->rel, id, SnapshotSelf, row) &&
		!row->keep && has_privs_of_role(GetUserId(), row->role) &&
		claim_withhold(claim_tag(row)) &&
		store_find_waiting(waiting->rel, id, SnapshotSelf, row);
}

/*
 * dt_retry(id bigint) returns boolean
 */
Datum
dt_retry(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Store		settled;
	Store		waiting;
	QueueRow	row;
	char	   *state;
	bool		found;

	check_writable("dt_retry()");

	CommandCounterIncrement();
	store_open(&settled, STORE_SETTLED);
	found = store_find_settled(settled.rel, id, SnapshotSelf, &row, &state) &&
		strcmp(state, STATE_FAILED) == 0 && has_privs_of_role(GetUserId(), row.role);
	if (found)
		check_sendable(&row);
	found = found && store_delete(&settled, &row.tid, true);
	if (found)
	{
		/* Names that came back before now are to be removed all the same. */
		row.ord = store_next_id();
		row.customer = payload_digits(row.phone);
		row.enqueued_at = GetCurrentTimestamp();
		row.due_at = row.enqueued_at;
		store_open(&waiting, STORE_WAITING);
		store_insert_waiting(&waiting, &row);
		store_close(&waiting);
	}
	store_close(&settled);
	PG_RETURN_BOOL(found);
}

/* The trigger's failed rows may hold what no request can. */
static void
check_sendable(const QueueRow *row)
{
	Removal		removal;
	Fault	   *fault = payload_check(cstring_to_text(row->phone), row->tags, row->fields,
									  row->waba ? cstring_to_text(row->waba) : NULL, &removal);

	if (fault)
		fault_raise(fault);
}

static void
check_writable(const char *command)
{
	PreventCommandIfReadOnly(command);
	PreventCommandDuringRecovery(command);
	PreventCommandIfParallelMode(command);
}

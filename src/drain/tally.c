/*-------------------------------------------------------------------------
 *
 * drain/tally.c
 *		What has become of removals: counted for each lane, warned of and reported.
 *
 * A turn counts by itself.  Its counts are added to the drainer's when it has
 * committed, so those of a turn that failed are never seen.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/counters.h"
#include "drain/drain_internal.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"

static LaneTally *tally_find(List *tallies, const LaneKey *key);
static void warn_of_unsent(const LaneTally *unsent);

/*
 * Where the turn counts what it settles of the lane that it works on.
 */
Tally *
tally_of_lane(Turn *turn)
{
	const Lane *lane = turn->lane;
	LaneTally  *tally = tally_find(turn->tallies, &lane->key);

	if (tally == NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(turn->context);

		tally = palloc0(sizeof(LaneTally));
		tally->key = lane->key;
		namestrcpy(&tally->role, lane_role_name(lane));
		tally->serverid = get_foreign_server_oid(lane_server(lane), true);
		turn->tallies = lappend(turn->tallies, tally);
		MemoryContextSwitchTo(caller);
	}
	return &tally->tally;
}

/*
 * Makes room for what is to be warned of, since nothing may fail when the transaction
 * has committed.  If it fails, the entries stay, and count nothing.
 */
void
tally_prepare_warnings(Drain *drain, const Turn *turn)
{
	MemoryContext caller = MemoryContextSwitchTo(drain->context);
	ListCell   *cell;

	foreach(cell, turn->tallies)
	{
		const LaneTally *settled = lfirst(cell);
		LaneTally  *unsent;

		if (settled->tally.expired + settled->tally.roleless == 0 ||
			tally_find(drain->unsent, &settled->key))
			continue;
		unsent = palloc0(sizeof(LaneTally));
		unsent->key = settled->key;
		unsent->role = settled->role;
		drain->unsent = lappend(drain->unsent, unsent);
	}
	MemoryContextSwitchTo(caller);
}

/*
 * Called when the turn has committed.
 */
void
tally_count_settled(Drain *drain, const Turn *turn)
{
	ListCell   *cell;

	foreach(cell, turn->tallies)
	{
		const LaneTally *settled = lfirst(cell);
		const Tally *tally = &settled->tally;
		LaneTally  *unsent = tally_find(drain->unsent, &settled->key);

		drain->tally.sent += tally->sent;
		drain->tally.done += tally->done;
		drain->tally.errored += tally->errored;
		drain->tally.failed += tally->failed;
		drain->tally.cancelled += tally->cancelled;
		if (unsent)
		{
			unsent->tally.expired += tally->expired;
			unsent->tally.roleless += tally->roleless;
		}
		if (OidIsValid(settled->serverid))
			counters_add_settled(settled->serverid, tally->done, tally->errored,
								 tally->failed, tally->cancelled);
	}
}

/* The tally of a lane in a list, or NULL. */
static LaneTally *
tally_find(List *tallies, const LaneKey *key)
{
	ListCell   *cell;

	foreach(cell, tallies)
	{
		LaneTally  *tally = lfirst(cell);

		if (tally->key.role == key->role &&
			strcmp(NameStr(tally->key.server), NameStr(key->server)) == 0)
			return tally;
	}
	return NULL;
}

/*
 * Warns of removals that have failed without an answer since the last call: one line
 * for each lane and reason.
 */
void
drain_warn_of_unsent(Drain *drain)
{
	ListCell   *cell;

	foreach(cell, drain->unsent)
		warn_of_unsent(lfirst(cell));
	list_free_deep(drain->unsent);
	drain->unsent = NIL;
}

static void
warn_of_unsent(const LaneTally *unsent)
{
	int64		nexpired = unsent->tally.expired;
	int64		nroleless = unsent->tally.roleless;
	const char *server = NameStr(unsent->key.server);

	if (nexpired > 0)
		ereport(WARNING,
				(errmsg_plural("gave up " INT64_FORMAT " removal of role \"%s\" for server \"%s\", for its age",
							   "gave up " INT64_FORMAT " removals of role \"%s\" for server \"%s\", for their age",
							   (unsigned long) nexpired, nexpired, NameStr(unsent->role), server),
				 errdetail("The server's option \"retry_for\" says how long they may wait."),
				 errhint("See dt_history; dt_retry sends one again.")));
	if (nroleless > 0)
		ereport(WARNING,
				(errmsg_plural("failed " INT64_FORMAT " removal for server \"%s\", since its role (OID %u) does not exist any more",
							   "failed " INT64_FORMAT " removals for server \"%s\", since their role (OID %u) does not exist any more",
							   (unsigned long) nroleless, nroleless, server, unsent->key.role),
				 errhint("See dt_history; enqueue them again as another role.")));
}

/*-------------------------------------------------------------------------
 *
 * drain/hold.c
 *		Holds: what keeps a lane from sending, until it is mended.
 *
 * A lane is held because its server, user mapping or key is missing or incomplete:
 * then it goes on as soon as that is mended.  Or DoubleTick refused the key, the
 * address or the connection, or work on the lane raised an error: then it goes on
 * when the definition has changed or a probe, one request a minute, succeeds.
 *
 * Holds are kept in dt_hold, so that there is one warning and one probe a minute
 * even if one session after another is the drainer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "account/account.h"
#include "api/pace.h"
#include "base/extension.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_collation.h"
#include "drain/hold.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue/store.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* Time between two probes, in µs. */
#define PROBE_INTERVAL USECS_PER_MINUTE

/* Columns of dt_hold. */
typedef enum HoldColumn
{
	HOLD_SERVER = 1,
	HOLD_ROLE,
	HOLD_SINCE,
	HOLD_PROBE_AT,
	HOLD_DEFINITION,
	HOLD_REASON,
	HOLD_HINT,
	HOLD_NCOLUMNS = HOLD_HINT
} HoldColumn;

static bool is_same_reason(const char *reason, const char *other);
static size_t length_without_detail(const char *reason);
static void set_reason(Lane *lane, const char *reason, const char *hint,
					   const char *definition);
static void free_reason(Lane *lane);
static void write_hold(const Lane *lane);
static void delete_hold(Store *hold, const Lane *lane);
static SysScanDesc scan_hold(Store *hold, const char *server, Oid role);

PG_FUNCTION_INFO_V1(dt_held);

/*
 * dt_held(server text, role oid) returns text
 *
 * For dt_status: what is missing in the definitions of a server and a role, or the
 * pause of the server, if this process knows of one.  NULL when requests can leave,
 * or when the caller may not see the role's requests.
 */
Datum
dt_held(PG_FUNCTION_ARGS)
{
	const char *server = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			role = PG_GETARG_OID(1);
	Account		account;
	Pace		pace;
	Fault	   *fault;
	int64		paused;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
		PG_RETURN_NULL();
	if (!has_privs_of_role(GetUserId(), role) &&
		!has_privs_of_role(GetUserId(), ROLE_PG_MONITOR))
		PG_RETURN_NULL();
	fault = extension_version_fault();
	if (fault == NULL)
		fault = account_get(server, role, &account);
	if (fault)
		PG_RETURN_TEXT_P(cstring_to_text(fault->message));
	pace = pace_of(&account);
	paused = pace_paused(&pace);
	if (paused > 0)
		PG_RETURN_TEXT_P(cstring_to_text(psprintf("paused for another " INT64_FORMAT " s, since DoubleTick answered with HTTP status 429; ALTER SERVER ends this",
												  (paused + USECS_PER_SEC - 1) / USECS_PER_SEC)));
	PG_RETURN_NULL();
}

/*
 * Called in a drainer's first turn: holds the lanes that the last drainer held.
 */
void
hold_load(Turn *turn)
{
	Store		hold;
	SysScanDesc scan;
	HeapTuple	tuple;

	store_open(&hold, RELATION_HOLD);
	scan = store_scan(&hold, RELATION_HOLD_PKEY, SnapshotSelf, 0, NULL);
	while (HeapTupleIsValid(tuple = store_next(scan)))
	{
		Datum		values[HOLD_NCOLUMNS + STORE_DROPPED_COLUMNS];
		bool		nulls[HOLD_NCOLUMNS + STORE_DROPPED_COLUMNS];
		Lane	   *lane;

		heap_deform_tuple(tuple, RelationGetDescr(hold.rel), values, nulls);
		lane = schedule_find_lane(turn->schedule, TextDatumGetCString(values[HOLD_SERVER - 1]),
								  DatumGetObjectId(values[HOLD_ROLE - 1]));
		set_reason(lane, TextDatumGetCString(values[HOLD_REASON - 1]),
				   nulls[HOLD_HINT - 1] ? NULL : TextDatumGetCString(values[HOLD_HINT - 1]),
				   TextDatumGetCString(values[HOLD_DEFINITION - 1]));
		lane->since = DatumGetTimestampTz(values[HOLD_SINCE - 1]);
		lane->probe_at = DatumGetTimestampTz(values[HOLD_PROBE_AT - 1]);
		schedule_lane(turn->schedule, lane, turn->clock);
	}
	store_end_scan(scan);
	store_close(&hold);
}

/*
 * Writes the holds as the drainer knows them.  Called after a transaction that has
 * failed, which may have changed some.
 */
void
hold_write_all(Schedule *schedule)
{
	Store		hold;
	SysScanDesc scan;
	HeapTuple	tuple;
	HASH_SEQ_STATUS status;
	Lane	   *lane;

	store_open(&hold, RELATION_HOLD);
	scan = store_scan(&hold, RELATION_HOLD_PKEY, SnapshotSelf, 0, NULL);
	while (HeapTupleIsValid(tuple = store_next(scan)))
		(void) store_delete(&hold, &tuple->t_self, true);
	store_end_scan(scan);
	store_close(&hold);

	hash_seq_init(&status, schedule->lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
	{
		if (lane->held)
			write_hold(lane);
	}
}

/*
 * Called by send.c: may the lane send?  If its definitions lack something ("fault"),
 * it is held.  A lane that is held for another reason may send when its definition
 * has changed; until then it may send one request a minute, the probe.
 */
bool
hold_allows(Lane *lane, const Fault *fault, TimestampTz now)
{
	if (fault)
	{
		hold_lane(lane, fault, "");
		return false;
	}
	if (lane->held &&
		strcmp(lane->definition, account_definition(lane_server(lane), lane->key.role)) != 0)
		hold_lift(lane);
	return !lane->held || (hold_time_to_probe(lane, now) == 0 && lane->nrequests == 0);
}

/*
 * Time until the next probe of a held lane, in µs.
 */
int64
hold_time_to_probe(const Lane *lane, TimestampTz now)
{
	/* A clock that was ahead must not put the probe off for longer. */
	if (lane->probe_at > now + PROBE_INTERVAL)
		return 0;
	return Max(lane->probe_at - now, 0);
}

/*
 * Holds the lane, or goes on holding it.  "definition" is the account_definition()
 * under which the fault occurred, or "" when the account is not complete.  Warns
 * once of each reason, however often its details change.
 */
void
hold_lane(Lane *lane, const Fault *fault, const char *definition)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		known = lane->held && is_same_reason(lane->reason, fault->message);

	if (known && strcmp(lane->reason, fault->message) == 0 &&
		strcmp(lane->definition, definition) == 0 && hold_time_to_probe(lane, now) > 0)
		return;
	if (!lane->held)
		lane->since = now;
	lane->probe_at = now + PROBE_INTERVAL;
	set_reason(lane, fault->message, fault->hint, definition);
	write_hold(lane);
	if (!known)
		ereport(WARNING,
				(errcode(fault->sqlstate),
				 errmsg("requests of role \"%s\" to server \"%s\" are held: %s",
						lane_role_name(lane), lane_server(lane), fault->message),
				 errdetail("They wait, and go on by themselves when this is mended."),
				 fault->hint ? errhint("%s", fault->hint) : 0,
				 fault->context ? errcontext("%s", fault->context) : 0));
}

/*
 * Do the messages differ at most in the detail that follows the first colon?  What
 * DoubleTick, TLS or the system says there may be new each time.
 */
static bool
is_same_reason(const char *reason, const char *other)
{
	size_t		length = length_without_detail(reason);

	return length == length_without_detail(other) && strncmp(reason, other, length) == 0;
}

static size_t
length_without_detail(const char *reason)
{
	const char *detail = strstr(reason, ": ");

	return detail ? (size_t) (detail - reason) : strlen(reason);
}

/*
 * The number of the hold that the lane has now; 0 if it has none.
 */
uint32
hold_number(const Lane *lane)
{
	return lane->held ? lane->nholds : 0;
}

/*
 * Called by settle.c: does the answer to this request say whether its lane can send?
 * If the lane is held, only the answer to a probe of this hold does: other requests
 * left before it began, and it has been warned of.  If the lane is not held, the
 * answer says so unless the definition has changed since then, or the role is gone.
 */
bool
hold_believes(const Request *request)
{
	const Lane *lane = request->lane;

	if (lane->held)
		return request->hold == lane->nholds;
	return SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(lane->key.role)) &&
		strcmp(request->definition, account_definition(lane_server(lane), lane->key.role)) == 0;
}

/*
 * Called when the probe of a held lane is made: the next one may be made a minute
 * later, whatever becomes of this one.
 */
void
hold_note_probe(Lane *lane)
{
	lane->probe_at = GetCurrentTimestamp() + PROBE_INTERVAL;
	write_hold(lane);
}

/*
 * Ends the hold of a lane, if there is one, and logs that the lane goes on: unless its
 * role was dropped while the probe was out, for then what else waits fails.
 */
void
hold_lift(Lane *lane)
{
	if (lane->held && SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(lane->key.role)))
		ereport(LOG,
				(errmsg("requests of role \"%s\" to server \"%s\" go on",
						lane_role_name(lane), lane_server(lane))));
	hold_forget(lane);
}

/*
 * Ends a hold and logs nothing.  Called for lanes in which nothing waits any more.
 */
void
hold_forget(Lane *lane)
{
	Store		hold;

	if (!lane->held)
		return;
	store_open(&hold, RELATION_HOLD);
	delete_hold(&hold, lane);
	store_close(&hold);
	lane->held = false;
	lane->not_before = 0;
	free_reason(lane);
}

/* First does what may fail, so that the lane stays as it is if memory is lacking. */
static void
set_reason(Lane *lane, const char *reason, const char *hint, const char *definition)
{
	char	   *new_reason = MemoryContextStrdup(lane->context, reason);
	char	   *new_hint = hint ? MemoryContextStrdup(lane->context, hint) : NULL;
	char	   *new_definition = MemoryContextStrdup(lane->context, definition);

	if (!lane->held || !is_same_reason(lane->reason, reason))
		lane->nholds++;			/* a hold ends when it gets another reason */
	if (lane->held)
		free_reason(lane);
	lane->held = true;
	lane->reason = new_reason;
	lane->hint = new_hint;
	lane->definition = new_definition;
}

static void
free_reason(Lane *lane)
{
	pfree(unconstify(char *, lane->reason));
	pfree(unconstify(char *, lane->definition));
	if (lane->hint)
		pfree(unconstify(char *, lane->hint));
}

static void
write_hold(const Lane *lane)
{
	StoredColumns columns = {0};
	Datum	   *values = columns.values;
	Store		hold;

	values[HOLD_SERVER - 1] = CStringGetTextDatum(lane_server(lane));
	values[HOLD_ROLE - 1] = ObjectIdGetDatum(lane->key.role);
	values[HOLD_SINCE - 1] = TimestampTzGetDatum(lane->since);
	values[HOLD_PROBE_AT - 1] = TimestampTzGetDatum(lane->probe_at);
	values[HOLD_DEFINITION - 1] = CStringGetTextDatum(lane->definition);
	values[HOLD_REASON - 1] = CStringGetTextDatum(lane->reason);
	if (lane->hint)
		values[HOLD_HINT - 1] = CStringGetTextDatum(lane->hint);
	else
		columns.nulls[HOLD_HINT - 1] = true;

	store_open(&hold, RELATION_HOLD);
	delete_hold(&hold, lane);
	store_insert(&hold, &columns, HOLD_NCOLUMNS);
	store_close(&hold);
}

static void
delete_hold(Store *hold, const Lane *lane)
{
	SysScanDesc scan;
	HeapTuple	tuple;

	CommandCounterIncrement();	/* a row of this command could not be deleted */
	scan = scan_hold(hold, lane_server(lane), lane->key.role);
	while (HeapTupleIsValid(tuple = store_next(scan)))
		(void) store_delete(hold, &tuple->t_self, true);
	store_end_scan(scan);
}

static SysScanDesc
scan_hold(Store *hold, const char *server, Oid role)
{
	ScanKeyData keys[2];

	ScanKeyEntryInitialize(&keys[0], 0, HOLD_SERVER, BTEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXTEQ, CStringGetTextDatum(server));
	ScanKeyInit(&keys[1], HOLD_ROLE, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(role));
	return store_scan(hold, RELATION_HOLD_PKEY, SnapshotSelf, 2, keys);
}

/*
 * Called by dt_check(): why the requests of a role to a server are held.  False if they
 * are not.
 */
bool
hold_find_reason(const char *server, Oid role, HoldReason *found)
{
	Store		hold;
	SysScanDesc scan;
	HeapTuple	tuple;

	store_open(&hold, RELATION_HOLD);
	scan = scan_hold(&hold, server, role);
	tuple = store_next(scan);
	if (HeapTupleIsValid(tuple))
	{
		Datum		values[HOLD_NCOLUMNS + STORE_DROPPED_COLUMNS];
		bool		nulls[HOLD_NCOLUMNS + STORE_DROPPED_COLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(hold.rel), values, nulls);
		found->is_incomplete = TextDatumGetCString(values[HOLD_DEFINITION - 1])[0] == '\0';
		found->reason = TextDatumGetCString(values[HOLD_REASON - 1]);
		found->hint = store_read_text(values[HOLD_HINT - 1], nulls[HOLD_HINT - 1]);
	}
	store_end_scan(scan);
	store_close(&hold);
	return HeapTupleIsValid(tuple);
}

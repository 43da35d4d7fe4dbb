/*-------------------------------------------------------------------------
 *
 * drain/schedule.c
 *		Which lane is served next, and when.
 *
 * Lanes with rows to look at stand in line, one line for each server, since a
 * server's limits hold for all its lanes together.  The server whose next_at
 * comes first has the first lane of its line served; the lane then goes to the
 * end of the line.  Lanes that wait for a time, because their rows are not due,
 * or because they are held or paused, are kept apart, ordered by that time.  So
 * what a turn costs does not depend on how many lanes there are.
 *
 * Invariant: between two turns each lane is in one place (LanePlace), except that
 * an empty lane with requests in flight is in none: it is placed again when they
 * are settled.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "drain/schedule.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Lanes and servers that the hash tables are made for; they grow. */
#define INITIAL_SIZE 16

/* Memory that is kept when no lane is left, in bytes. */
#define KEPT_MEMORY (64 * 1024)

/* Time between two looks at whether a held or paused lane may go on, in µs. */
#define CHECK_INTERVAL USECS_PER_SEC

static HTAB *create_htab(MemoryContext context, const char *name, Size keysize, Size entrysize);
static Server *find_or_make_server(Schedule *schedule, const NameData *name);
static void put_lane_in_line(Schedule *schedule, Lane *lane);
static void unplace_lane(Schedule *schedule, Lane *lane);
static int	compare_servers(const pairingheap_node *a, const pairingheap_node *b, void *arg);
static int	compare_lanes(const pairingheap_node *a, const pairingheap_node *b, void *arg);

/*
 * Sets up a schedule without lanes, in a memory context of its own.
 */
void
schedule_init(Schedule *schedule, MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "doubletick schedule", ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);

	memset(schedule, 0, sizeof(Schedule));
	schedule->context = context;
	schedule->servers = create_htab(context, "doubletick servers",
									sizeof(NameData), sizeof(Server));
	schedule->lanes = create_htab(context, "doubletick lanes", sizeof(LaneKey), sizeof(Lane));
	groups_init(&schedule->groups, context);
	schedule->servers_due = pairingheap_allocate(compare_servers, NULL);
	schedule->lanes_timed = pairingheap_allocate(compare_lanes, NULL);
	dlist_init(&schedule->lanes_empty);
	MemoryContextSwitchTo(caller);
}

static HTAB *
create_htab(MemoryContext context, const char *name, Size keysize, Size entrysize)
{
	HASHCTL		control = {0};

	control.keysize = keysize;
	control.entrysize = entrysize;
	control.hcxt = context;
	return hash_create(name, INITIAL_SIZE, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Returns the lane of a server and a role, and makes it if there is none.  A caller
 * that adds a row to it calls schedule_lane() next.
 */
Lane *
schedule_find_lane(Schedule *schedule, const char *server, Oid role)
{
	Lane	   *lane = schedule->last_lane;
	LaneKey		key;
	bool		found;

	if (lane && lane->key.role == role && strcmp(lane_server(lane), server) == 0)
		return lane;

	memset(&key, 0, sizeof(key));
	namestrcpy(&key.server, server);
	key.role = role;
	lane = hash_search(schedule->lanes, &key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) lane + sizeof(LaneKey), 0, sizeof(Lane) - sizeof(LaneKey));
		lane_init(lane, &schedule->groups);
		lane->server = find_or_make_server(schedule, &key.server);
		lane->server->nlanes++;
	}
	schedule->last_lane = lane;
	return lane;
}

static Server *
find_or_make_server(Schedule *schedule, const NameData *name)
{
	bool		found;
	Server	   *server = hash_search(schedule->servers, name, HASH_ENTER, &found);

	if (!found)
	{
		memset((char *) server + sizeof(NameData), 0, sizeof(Server) - sizeof(NameData));
		dlist_init(&server->line);
	}
	return server;
}

/*
 * Places a lane according to what waits in it, unless it is in line already.
 * Called after its rows, its requests in flight or its "not_before" have changed.
 */
void
schedule_lane(Schedule *schedule, Lane *lane, int64 clock)
{
	int64		next_at = lane->not_before;

	if (lane->place == LANE_IN_LINE)
		return;
	unplace_lane(schedule, lane);
	if (lane_count(lane) == 0)
	{
		if (lane->nrequests > 0)
			return;
		lane->place = LANE_EMPTY;
		dlist_push_tail(&schedule->lanes_empty, &lane->line_node);
		return;
	}
	if (lane->nrows == 0)
		next_at = Max(next_at, lane_next_due(lane));
	if (next_at <= clock)
		put_lane_in_line(schedule, lane);
	else
	{
		/* Its hold or pause may end early. */
		if (lane->not_before > clock)
			next_at = Min(next_at, clock + CHECK_INTERVAL);
		lane->place = LANE_TIMED;
		lane->next_at = next_at;
		pairingheap_add(schedule->lanes_timed, &lane->timed_node);
	}
}

static void
put_lane_in_line(Schedule *schedule, Lane *lane)
{
	Server	   *server = lane->server;

	schedule->nservers_in_line += dlist_is_empty(&server->line);
	lane->place = LANE_IN_LINE;
	dlist_push_tail(&server->line, &lane->line_node);
	if (!server->is_scheduled)
		schedule_server(schedule, server, server->next_at);
}

static void
unplace_lane(Schedule *schedule, Lane *lane)
{
	if (lane->place == LANE_TIMED)
		pairingheap_remove(schedule->lanes_timed, &lane->timed_node);
	else if (lane->place == LANE_EMPTY)
		dlist_delete(&lane->line_node);
	lane->place = LANE_UNPLACED;
}

/*
 * Takes the next lane to be served out of its line; NULL when there is none now.
 * When send.c has served the lane, it places it again by schedule_lane(), and the
 * server by schedule_server().
 */
Lane *
schedule_next_lane(Schedule *schedule, int64 clock)
{
	Server	   *server;
	Lane	   *lane;

	while (!pairingheap_is_empty(schedule->lanes_timed))
	{
		lane = pairingheap_container(Lane, timed_node, pairingheap_first(schedule->lanes_timed));
		if (lane->next_at > clock)
			break;
		unplace_lane(schedule, lane);
		put_lane_in_line(schedule, lane);
	}

	if (pairingheap_is_empty(schedule->servers_due))
		return NULL;
	server = pairingheap_container(Server, node, pairingheap_first(schedule->servers_due));
	if (server->next_at > clock)
		return NULL;
	(void) pairingheap_remove_first(schedule->servers_due);
	server->is_scheduled = false;
	lane = dlist_container(Lane, line_node, dlist_pop_head_node(&server->line));
	lane->place = LANE_UNPLACED;
	schedule->nservers_in_line -= dlist_is_empty(&server->line);
	return lane;
}

/*
 * Sets when the first lane of the server's line can be served; PG_INT64_MAX: when
 * one of its requests is settled.
 */
void
schedule_server(Schedule *schedule, Server *server, int64 next_at)
{
	if (server->is_scheduled)
		pairingheap_remove(schedule->servers_due, &server->node);
	server->next_at = next_at;
	server->is_scheduled = next_at != PG_INT64_MAX && !dlist_is_empty(&server->line);
	if (server->is_scheduled)
		pairingheap_add(schedule->servers_due, &server->node);
}

/*
 * Returns a lane that is empty and has no request in flight; NULL if there is none.
 */
Lane *
schedule_next_empty(Schedule *schedule)
{
	if (dlist_is_empty(&schedule->lanes_empty))
		return NULL;
	return dlist_head_element(Lane, line_node, &schedule->lanes_empty);
}

/*
 * Frees a lane that schedule_next_empty() has returned.  It must not be held.
 */
void
schedule_remove_lane(Schedule *schedule, Lane *lane)
{
	Server	   *server = lane->server;

	unplace_lane(schedule, lane);
	lane_free(lane);
	schedule->last_lane = NULL;
	(void) hash_search(schedule->lanes, &lane->key, HASH_REMOVE, NULL);
	if (--server->nlanes == 0)
		(void) hash_search(schedule->servers, &server->name, HASH_REMOVE, NULL);
}

/*
 * Called between two turns: gives memory back if no lane is left.  Until then it is used
 * again for other lanes, since a hash table does not become smaller.
 */
void
schedule_shrink(Schedule *schedule)
{
	MemoryContext old = schedule->context;

	if (hash_get_num_entries(schedule->lanes) > 0 ||
		MemoryContextMemAllocated(old, true) <= KEPT_MEMORY)
		return;
	schedule_init(schedule, MemoryContextGetParent(old));
	MemoryContextDelete(old);
}

/*
 * Is any lane in line?  If so, the drainer is not idle: what is in line can be sent
 * as soon as its server's limits allow it.
 */
bool
schedule_has_line(const Schedule *schedule)
{
	return schedule->nservers_in_line > 0;
}

/*
 * When the next lane can be served, by clock_now(); PG_INT64_MAX when none can until
 * something new comes or a request is settled.
 */
int64
schedule_next_at(Schedule *schedule)
{
	int64		next_at = PG_INT64_MAX;

	if (!pairingheap_is_empty(schedule->servers_due))
		next_at = pairingheap_container(Server, node,
										pairingheap_first(schedule->servers_due))->next_at;
	if (!pairingheap_is_empty(schedule->lanes_timed))
		next_at = Min(next_at,
					  pairingheap_container(Lane, timed_node,
											pairingheap_first(schedule->lanes_timed))->next_at);
	return next_at;
}

/*
 * When the first waiting row is to be looked at, after its lane's hold or pause, by
 * clock_now(); PG_INT64_MAX when nothing waits.
 */
int64
schedule_next_due(Schedule *schedule)
{
	HASH_SEQ_STATUS status;
	Lane	   *lane;
	int64		next_due = PG_INT64_MAX;

	hash_seq_init(&status, schedule->lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
	{
		if (lane->nrows > 0)
			next_due = Min(next_due, lane->not_before);
		else if (lane->nlater > 0)
			next_due = Min(next_due, Max(lane->not_before, lane_next_due(lane)));
	}
	return next_due;
}

/*
 * The number of positions in all lanes, for drain_count_waiting().
 */
int64
schedule_count(Schedule *schedule)
{
	HASH_SEQ_STATUS status;
	Lane	   *lane;
	int64		nrows = 0;

	hash_seq_init(&status, schedule->lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
		nrows += lane_count(lane);
	return nrows;
}

/* A pairing heap's first node is its largest, so an earlier time is larger. */
static int
compare_servers(const pairingheap_node *a, const pairingheap_node *b,
				void *arg pg_attribute_unused())
{
	int64		x = pairingheap_const_container(Server, node, a)->next_at;
	int64		y = pairingheap_const_container(Server, node, b)->next_at;

	return (x < y) - (x > y);
}

static int
compare_lanes(const pairingheap_node *a, const pairingheap_node *b,
			  void *arg pg_attribute_unused())
{
	int64		x = pairingheap_const_container(Lane, timed_node, a)->next_at;
	int64		y = pairingheap_const_container(Lane, timed_node, b)->next_at;

	return (x < y) - (x > y);
}

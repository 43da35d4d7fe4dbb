/*-------------------------------------------------------------------------
 *
 * drain/lane.c
 *		A lane: what one role has waiting for one server, as the drainer knows it.
 *
 * A lane has only the positions of rows.  A row is read when it can be sent: a
 * cancel or a keep that commits before that counts.
 *
 * The transactions that have enqueued into a lane are served in turn, one row each:
 * who enqueues one removal behind a million waits for as many requests as there are
 * transactions, and not for a million.  The rows of one transaction are a group.
 * "turns" is a ring of groups; when the first one has given a row, it goes to the
 * end.  A row costs sixteen bytes, however many transactions there are:
 *
 *		A small group, of at most SMALL_GROUP rows, stands in "turns" itself, its
 *		rows one behind the other.  All but the first are marked: their ids are
 *		negative.
 *
 *		A large group has a ring of its own for its rows, and one entry in "turns",
 *		whose id is 0.
 *
 * Ids of rows are above 0: discover.c finds no others.
 *
 * Rows that were taken from the lane and wait again (since the transaction failed, or
 * another request of their customer was in flight) have had their turn.  They are
 * served alternately with "turns", so that neither stops the other.  Rows that were
 * tried, and wait for a time, go before all others when it has come: else, behind many
 * transactions, they could be given up for their age without another try.  Rows that
 * are delayed join their transaction when they are due.
 *
 * Invariant: each waiting removal that was found has a position in its lane, or
 * in a request of its customer that is not settled yet.  A row may have two
 * positions, and a position may outlive its row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "drain/lane.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/* Rows of a small group.  A large one takes some 150 bytes more than its rows. */
#define SMALL_GROUP 8

/* Delayed rows that join their transactions at once, so that a turn is bounded. */
#define DELAYED_AT_ONCE 1000

/* Large groups that the hash table is made for; it grows. */
#define INITIAL_GROUPS 16

typedef struct GroupKey
{
	Lane	   *lane;
	int64		xact;
} GroupKey;

/* A large group. */
typedef struct Group
{
	GroupKey	key;			/* in Groups.large */
	Ring		rows;			/* never empty between two calls */
} Group;

typedef struct LaterRow
{
	pairingheap_node node;
	int64		when;
	Position	row;
	int64		xact;			/* if delayed */
} LaterRow;

static GroupKey group_key(Lane *lane, int64 xact);
static bool is_group_large(Lane *lane, int64 xact);
static Group *find_or_make_group(Lane *lane, int64 xact);
static void push_into_small_group(Lane *lane, int64 xact, Position row);
static void push_with_time(Lane *lane, pairingheap *heap, int64 xact, Position row, int64 when);
static Position pop_with_time(Lane *lane, pairingheap *heap, int64 *xact);
static int64 first_time(pairingheap *heap);
static bool is_first_due(pairingheap *heap, int64 clock);
static void admit_delayed_rows(Lane *lane, int64 clock);
static Position pop_from_turns(Lane *lane, bool in_turn);
static Position pop_from_group(Lane *lane, Group *group, bool in_turn);
static void move_rest_of_small_group(Lane *lane);
static int	compare_later(const pairingheap_node *a, const pairingheap_node *b, void *arg);

/*
 * Sets up what all lanes share, for schedule.c.  Lanes and their rows live in "context".
 */
void
groups_init(Groups *groups, MemoryContext context)
{
	HASHCTL		control = {0};

	memset(groups, 0, sizeof(Groups));
	groups->context = context;
	control.keysize = sizeof(GroupKey);
	control.entrysize = sizeof(Group);
	control.hcxt = context;
	groups->large = hash_create("doubletick groups", INITIAL_GROUPS, &control,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Sets up an empty lane, for schedule.c.
 */
void
lane_init(Lane *lane, Groups *groups)
{
	MemoryContext caller = MemoryContextSwitchTo(groups->context);

	lane->context = groups->context;
	lane->groups = groups;
	ring_init(&lane->turns, lane->context);
	ring_init(&lane->again, lane->context);
	lane->later = pairingheap_allocate(compare_later, NULL);
	lane->delayed = pairingheap_allocate(compare_later, NULL);
	MemoryContextSwitchTo(caller);
}

/*
 * Frees the memory of an empty lane, for schedule.c.
 */
void
lane_free(Lane *lane)
{
	Assert(lane_count(lane) == 0 && !lane->held);
	ring_free(&lane->turns);
	ring_free(&lane->again);
	pairingheap_free(lane->later);
	pairingheap_free(lane->delayed);
}

/*
 * Adds a row that was just found, as the last one of its transaction.  The rows of a
 * search come ordered by transactions, so that those of one stand together.
 */
void
lane_push(Lane *lane, int64 xact, Position row)
{
	if (is_group_large(lane, xact))
		ring_push(&find_or_make_group(lane, xact)->rows, row);
	else
		push_into_small_group(lane, xact, row);
	lane->nrows++;
}

/*
 * Have more rows of the transaction been found than a small group has?  Of the
 * transactions without a large group only the recent ones are remembered.  One that is
 * forgotten begins anew as a small one: that takes rows of many others between its own.
 */
static bool
is_group_large(Lane *lane, int64 xact)
{
	GroupKey	key = group_key(lane, xact);
	uint64		hash = hash_combine64((uint64) (uintptr_t) lane, (uint64) xact);
	RecentXact *recent = &lane->groups->recent[hash % GROUPS_NRECENT];

	if (hash_search(lane->groups->large, &key, HASH_FIND, NULL))
		return true;
	if (recent->lane != lane || recent->xact != xact)
		recent->nrows = 0;
	recent->lane = lane;
	recent->xact = xact;
	recent->nrows = Min(recent->nrows, SMALL_GROUP) + 1;
	return recent->nrows > SMALL_GROUP;
}

static GroupKey
group_key(Lane *lane, int64 xact)
{
	GroupKey	key;

	memset(&key, 0, sizeof(key));
	key.lane = lane;
	key.xact = xact;
	return key;
}

/* What is at the end of "turns" as a small group of the transaction joins the large one. */
static Group *
find_or_make_group(Lane *lane, int64 xact)
{
	GroupKey	key = group_key(lane, xact);
	bool		found;
	Group	   *group = hash_search(lane->groups->large, &key, HASH_ENTER, &found);

	if (!found)
	{
		ring_init(&group->rows, lane->context);
		if (lane->last_xact == xact)
			ring_move_last(&lane->turns, &group->rows, Min(lane->last_nrows, lane->turns.count));
		ring_push(&lane->turns, position_of(0, (int64) (intptr_t) group));
		lane->last_nrows = 0;
	}
	return group;
}

static void
push_into_small_group(Lane *lane, int64 xact, Position row)
{
	bool		joins = lane->turns.count > 0 && lane->last_xact == xact &&
	lane->last_nrows > 0 && lane->last_nrows < SMALL_GROUP;

	ring_push(&lane->turns, position_of(joins ? -row.id : row.id, row.customer));
	lane->last_xact = xact;
	lane->last_nrows = joins ? lane->last_nrows + 1 : 1;
}

/*
 * Adds a row that was taken from the lane and waits again, before others of these.
 */
void
lane_push_again(Lane *lane, Position row)
{
	ring_push_front(&lane->again, row);
	lane->nrows++;
}

/*
 * Adds a row that was tried, or is locked, and is not to be looked at before "when",
 * by clock_now().
 */
void
lane_push_later(Lane *lane, Position row, int64 when)
{
	push_with_time(lane, lane->later, 0, row, when);
}

/*
 * Adds a row that was not tried, and is not due before "when", by clock_now().
 */
void
lane_push_delayed(Lane *lane, int64 xact, Position row, int64 when)
{
	push_with_time(lane, lane->delayed, xact, row, when);
}

static void
push_with_time(Lane *lane, pairingheap *heap, int64 xact, Position row, int64 when)
{
	LaterRow   *later = MemoryContextAlloc(lane->context, sizeof(LaterRow));

	later->row = row;
	later->xact = xact;
	later->when = when;
	pairingheap_add(heap, &later->node);
	lane->nlater++;
}

static Position
pop_with_time(Lane *lane, pairingheap *heap, int64 *xact)
{
	LaterRow   *later = pairingheap_container(LaterRow, node, pairingheap_remove_first(heap));
	Position	row = later->row;

	*xact = later->xact;
	pfree(later);
	lane->nlater--;
	return row;
}

/*
 * Is there a row to look at by "clock"?
 */
bool
lane_is_due(Lane *lane, int64 clock)
{
	return lane->nrows > 0 || is_first_due(lane->later, clock) ||
		is_first_due(lane->delayed, clock);
}

/*
 * Takes the next row to look at; false when there is none now.  With "in_turn" its
 * transaction then makes room for the next one; without, the oldest transaction is
 * served to its end.
 */
bool
lane_pop(Lane *lane, int64 clock, bool in_turn, Position *row)
{
	int64		xact;

	admit_delayed_rows(lane, clock);
	if (is_first_due(lane->later, clock))
	{
		*row = pop_with_time(lane, lane->later, &xact);
		return true;
	}
	if (lane->nrows == 0)
		return false;
	lane->nrows--;
	lane->took_again = lane->again.count > 0 &&
		(!in_turn || !lane->took_again || lane->turns.count == 0);
	*row = lane->took_again ? ring_pop(&lane->again) : pop_from_turns(lane, in_turn);
	return true;
}

static void
admit_delayed_rows(Lane *lane, int64 clock)
{
	for (int i = 0; i < DELAYED_AT_ONCE && is_first_due(lane->delayed, clock); i++)
	{
		int64		xact;
		Position	row = pop_with_time(lane, lane->delayed, &xact);

		lane_push(lane, xact, row);
	}
}

static Position
pop_from_turns(Lane *lane, bool in_turn)
{
	Position	entry = ring_pop(&lane->turns);
	Position   *next = ring_first(&lane->turns);

	if (entry.id == 0)
		return pop_from_group(lane, (Group *) (intptr_t) entry.customer, in_turn);
	if (next && next->id < 0)
	{
		next->id = -next->id;
		if (in_turn)
			move_rest_of_small_group(lane);
	}
	return entry;
}

static Position
pop_from_group(Lane *lane, Group *group, bool in_turn)
{
	Position	entry = position_of(0, (int64) (intptr_t) group);
	Position	row = ring_pop(&group->rows);

	if (row.id < 0)
		row.id = -row.id;		/* it was in a small group */
	if (group->rows.count == 0)
	{
		ring_free(&group->rows);
		(void) hash_search(lane->groups->large, &group->key, HASH_REMOVE, NULL);
	}
	else if (in_turn)
	{
		ring_push(&lane->turns, entry);
		lane->last_nrows = 0;
	}
	else
		ring_push_front(&lane->turns, entry);
	return row;
}

/* What is left of the first group goes to the end. */
static void
move_rest_of_small_group(Lane *lane)
{
	size_t		nleft = lane->turns.count;

	do
		ring_push(&lane->turns, ring_pop(&lane->turns));
	while (--nleft > 0 && ring_first(&lane->turns)->id < 0);
	lane->last_nrows = 0;
}

/*
 * When the first row that waits for a time is due; PG_INT64_MAX: there is none.
 */
int64
lane_next_due(Lane *lane)
{
	return Min(first_time(lane->later), first_time(lane->delayed));
}

static int64
first_time(pairingheap *heap)
{
	if (pairingheap_is_empty(heap))
		return PG_INT64_MAX;
	return pairingheap_container(LaterRow, node, pairingheap_first(heap))->when;
}

/* "clock" may be PG_INT64_MAX. */
static bool
is_first_due(pairingheap *heap, int64 clock)
{
	return !pairingheap_is_empty(heap) && first_time(heap) <= clock;
}

/*
 * The number of positions in the lane, which include those of settled rows.
 */
int64
lane_count(const Lane *lane)
{
	return lane->nrows + lane->nlater;
}

/*
 * The role's name for messages, as pg_get_userbyid() shows it: a role may be dropped
 * while a request is out.  Needs a transaction.
 */
const char *
lane_role_name(const Lane *lane)
{
	const char *name = GetUserNameFromId(lane->key.role, true);

	return name ? name : psprintf("unknown (OID=%u)", lane->key.role);
}

/* A pairing heap's first node is its largest, so an earlier time is larger. */
static int
compare_later(const pairingheap_node *a, const pairingheap_node *b, void *arg pg_attribute_unused())
{
	int64		x = pairingheap_const_container(LaterRow, node, a)->when;
	int64		y = pairingheap_const_container(LaterRow, node, b)->when;

	return (x < y) - (x > y);
}

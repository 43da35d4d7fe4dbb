/*-------------------------------------------------------------------------
 *
 * drain/lane.c
 *		A lane: what one role has waiting for one server, as the drainer knows it.
 *
 * A lane has only the positions of rows.  A row is read when it can be sent: a
 * cancel or a keep that commits before that counts.
 *
 * Invariant: each waiting removal that was found has a position in its lane, or
 * in a request of its customer that is not settled yet.  A row may have two
 * positions, and a position may outlive its row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "drain/lane.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/* Capacity of a new lane's ring, in positions; a full ring is doubled. */
#define FIRST_CAPACITY 8

typedef struct LaterRow
{
	pairingheap_node node;
	int64		when;
	Position	row;
} LaterRow;

static void enlarge_full_ring(Lane *lane);
static int	compare_later(const pairingheap_node *a, const pairingheap_node *b, void *arg);

/*
 * Sets up an empty lane, for schedule.c.  Its memory comes from "context".
 */
void
lane_init(Lane *lane, MemoryContext context)
{
	MemoryContext caller = MemoryContextSwitchTo(context);

	lane->context = context;
	lane->capacity = FIRST_CAPACITY;
	lane->rows = palloc(sizeof(Position) * lane->capacity);
	lane->later = pairingheap_allocate(compare_later, NULL);
	MemoryContextSwitchTo(caller);
}

/*
 * Frees the memory of an empty lane, for schedule.c.
 */
void
lane_free(Lane *lane)
{
	Assert(lane_count(lane) == 0 && !lane->held);
	pfree(lane->rows);
	pairingheap_free(lane->later);
}

/*
 * Adds a row at the end: one that was just found, or that others go before.
 */
void
lane_push(Lane *lane, Position row)
{
	enlarge_full_ring(lane);
	lane->rows[(lane->first + lane->nrows++) % lane->capacity] = row;
}

/*
 * Adds a row at the beginning: one that was taken from the lane and waits again.
 */
void
lane_push_front(Lane *lane, Position row)
{
	enlarge_full_ring(lane);
	lane->first = (lane->first + lane->capacity - 1) % lane->capacity;
	lane->nrows++;
	lane->rows[lane->first] = row;
}

/* Doubles a full ring.  repalloc() would refuse 2^26 positions, 1 GB. */
static void
enlarge_full_ring(Lane *lane)
{
	size_t		old = lane->capacity;

	if (lane->nrows < old)
		return;
	lane->capacity = 2 * old;
	lane->rows = repalloc_huge(lane->rows, sizeof(Position) * lane->capacity);
	memcpy(lane->rows + old, lane->rows, sizeof(Position) * lane->first);
}

/*
 * Adds a row that is not to be looked at before "when", by clock_now().
 */
void
lane_push_later(Lane *lane, Position row, int64 when)
{
	LaterRow   *later = MemoryContextAlloc(lane->context, sizeof(LaterRow));

	later->row = row;
	later->when = when;
	pairingheap_add(lane->later, &later->node);
	lane->nlater++;
}

/*
 * Takes the next row to look at; false when there is none now.  Rows that had to
 * wait for a time which has come go before the others.
 */
bool
lane_pop(Lane *lane, int64 clock, Position *row)
{
	if (!pairingheap_is_empty(lane->later) && lane_next_due(lane) <= clock)
	{
		LaterRow   *later = pairingheap_container(LaterRow, node,
												  pairingheap_remove_first(lane->later));

		*row = later->row;
		pfree(later);
		lane->nlater--;
		return true;
	}
	if (lane->nrows == 0)
		return false;
	*row = lane->rows[lane->first];
	lane->first = (lane->first + 1) % lane->capacity;
	lane->nrows--;
	return true;
}

/*
 * When the first row that waits for a time is due; PG_INT64_MAX: there is none.
 */
int64
lane_next_due(Lane *lane)
{
	if (pairingheap_is_empty(lane->later))
		return PG_INT64_MAX;
	return pairingheap_container(LaterRow, node, pairingheap_first(lane->later))->when;
}

/*
 * The number of positions in the lane, which include those of settled rows.
 */
int64
lane_count(const Lane *lane)
{
	return (int64) lane->nrows + lane->nlater;
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

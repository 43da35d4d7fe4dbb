/*-------------------------------------------------------------------------
 *
 * drain/lane.c
 *		What waits for one server by one role, as the drainer knows it.
 *
 * A lane has the positions of rows alone.  A row is read when it can be sent, so
 * that a cancel or a keep reaches it until then.
 *
 * Invariant: each waiting removal that was found has a position in its lane, or
 * in a request of its customer that is not settled yet.  A row may have two
 * positions, and a position may outlive its row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "drain/lane.h"
#include "utils/memutils.h"

/* Positions that a new lane has room for; doubled when they are used up. */
#define FIRST_CAPACITY 8

typedef struct LaterRow
{
	pairingheap_node node;
	int64		when;
	Position	row;
} LaterRow;

static void enlarge_ring(Lane *lane);
static int	compare_later(const pairingheap_node *a, const pairingheap_node *b, void *arg);

/*
 * Sets up a lane in which nothing waits.  What waits will live in "context".
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
 * Frees what an empty lane holds.
 */
void
lane_free(Lane *lane)
{
	Assert(lane_count(lane) == 0 && !lane->held);
	pfree(lane->rows);
	pairingheap_free(lane->later);
}

/*
 * Puts a row last.
 */
void
lane_push(Lane *lane, Position row)
{
	enlarge_ring(lane);
	lane->rows[(lane->first + lane->nrows++) % lane->capacity] = row;
}

/*
 * Puts a row first.
 */
void
lane_push_front(Lane *lane, Position row)
{
	enlarge_ring(lane);
	lane->first = (lane->first + lane->capacity - 1) % lane->capacity;
	lane->nrows++;
	lane->rows[lane->first] = row;
}

/* A million positions are more than palloc() allocates without "huge". */
static void
enlarge_ring(Lane *lane)
{
	size_t		old = lane->capacity;

	if (lane->nrows < old)
		return;
	lane->capacity = 2 * old;
	lane->rows = repalloc_huge(lane->rows, sizeof(Position) * lane->capacity);
	memcpy(lane->rows + old, lane->rows, sizeof(Position) * lane->first);
}

/*
 * Adds a row that is not to be looked at before a time.
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
 * Takes the next row to look at; false when there is none now.  Rows for later
 * whose time has come go before the others.
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
 * When the first of the rows for later is due; PG_INT64_MAX when there is
 * none.
 */
int64
lane_next_due(Lane *lane)
{
	if (pairingheap_is_empty(lane->later))
		return PG_INT64_MAX;
	return pairingheap_container(LaterRow, node, pairingheap_first(lane->later))->when;
}

/*
 * Positions in the lane, those of rows that are settled included.
 */
int64
lane_count(const Lane *lane)
{
	return (int64) lane->nrows + lane->nlater;
}

/* A pairing heap's first is its largest; here, the earliest. */
static int
compare_later(const pairingheap_node *a, const pairingheap_node *b, void *arg pg_attribute_unused())
{
	int64		x = pairingheap_const_container(LaterRow, node, a)->when;
	int64		y = pairingheap_const_container(LaterRow, node, b)->when;

	return (x < y) - (x > y);
}

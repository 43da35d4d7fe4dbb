/*-------------------------------------------------------------------------
 *
 * drain/lane.c
 *		What waits for one server by one role, as the drainer knows it.
 *
 * Only where they are: a row is read when it can be sent, so that a cancel or a
 * keep reaches it until then.  A row may be here twice, or be settled already.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "drain/lane.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define FIRST_CAPACITY 256

typedef struct LaterRow
{
	pairingheap_node node;
	TimestampTz when;
	Waiting		row;
} LaterRow;

static void make_room(Lane *lane);
static int	compare_later(const pairingheap_node *a, const pairingheap_node *b, void *arg);

/*
 * A lane in which nothing waits.
 */
Lane *
lane_make(MemoryContext parent, const char *server, Oid role)
{
	Lane	   *lane = MemoryContextAllocZero(parent, sizeof(Lane));
	MemoryContext caller = MemoryContextSwitchTo(parent);

	lane->context = parent;
	lane->server = pstrdup(server);
	lane->role = role;
	lane->capacity = FIRST_CAPACITY;
	lane->rows = palloc(sizeof(Waiting) * lane->capacity);
	lane->later = pairingheap_allocate(compare_later, NULL);
	MemoryContextSwitchTo(caller);
	return lane;
}

/*
 * Puts a row last.
 */
void
lane_push(Lane *lane, Waiting row)
{
	make_room(lane);
	lane->rows[(lane->first + lane->nrows++) % lane->capacity] = row;
}

/*
 * Puts a row first.
 */
void
lane_push_front(Lane *lane, Waiting row)
{
	make_room(lane);
	lane->first = (lane->first + lane->capacity - 1) % lane->capacity;
	lane->nrows++;
	lane->rows[lane->first] = row;
}

/* With a million rows the array is larger than what palloc gives by itself. */
static void
make_room(Lane *lane)
{
	size_t		old = lane->capacity;

	if (lane->nrows < old)
		return;
	lane->capacity = 2 * old;
	lane->rows = repalloc_huge(lane->rows, sizeof(Waiting) * lane->capacity);
	memcpy(lane->rows + old, lane->rows, sizeof(Waiting) * lane->first);
}

/*
 * Puts a row aside until a time.
 */
void
lane_push_later(Lane *lane, Waiting row, TimestampTz when)
{
	LaterRow   *later = MemoryContextAlloc(lane->context, sizeof(LaterRow));

	later->row = row;
	later->when = when;
	pairingheap_add(lane->later, &later->node);
	lane->nlater++;
}

/*
 * The next row to look at; false when there is none now.  Those that were put
 * aside and whose time has come go before the others.
 */
bool
lane_pop(Lane *lane, TimestampTz now, Waiting *row)
{
	if (!pairingheap_is_empty(lane->later) && lane_next_due(lane) <= now)
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
 * When the first row that was put aside is due; DT_NOEND when there is none.
 */
TimestampTz
lane_next_due(Lane *lane)
{
	if (pairingheap_is_empty(lane->later))
		return DT_NOEND;
	return pairingheap_container(LaterRow, node, pairingheap_first(lane->later))->when;
}

/*
 * Rows that wait here, those that are settled already included.
 */
int64
lane_count(const Lane *lane)
{
	return (int64) lane->nrows + lane->nlater;
}

/* The heap's first is its largest: the earliest. */
static int
compare_later(const pairingheap_node *a, const pairingheap_node *b, void *arg pg_attribute_unused())
{
	TimestampTz x = pairingheap_const_container(LaterRow, node, a)->when;
	TimestampTz y = pairingheap_const_container(LaterRow, node, b)->when;

	return (x < y) - (x > y);
}

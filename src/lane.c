/*-------------------------------------------------------------------------
 *
 * lane.c
 *		What waits for one server by one role, as the drainer knows it.
 *
 * Only ids: a row is read when it can be sent, so that a cancel or a keep
 * reaches it until then.  An id may be here twice, or be settled already.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lane.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define FIRST_CAPACITY 256

typedef struct LaterRow
{
	pairingheap_node node;
	TimestampTz when;
	int64		id;
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
	lane->ids = palloc(sizeof(int64) * lane->capacity);
	lane->later = pairingheap_allocate(compare_later, NULL);
	MemoryContextSwitchTo(caller);
	return lane;
}

/*
 * Puts a row last.
 */
void
lane_push(Lane *lane, int64 id)
{
	make_room(lane);
	lane->ids[(lane->first + lane->nids++) % lane->capacity] = id;
}

/*
 * Puts a row first.
 */
void
lane_push_front(Lane *lane, int64 id)
{
	make_room(lane);
	lane->first = (lane->first + lane->capacity - 1) % lane->capacity;
	lane->nids++;
	lane->ids[lane->first] = id;
}

/* With a million rows the array is larger than what palloc gives by itself. */
static void
make_room(Lane *lane)
{
	size_t		old = lane->capacity;

	if (lane->nids < old)
		return;
	lane->capacity = 2 * old;
	lane->ids = repalloc_huge(lane->ids, sizeof(int64) * lane->capacity);
	memcpy(lane->ids + old, lane->ids, sizeof(int64) * lane->first);
}

/*
 * Puts a row aside until a time.
 */
void
lane_push_later(Lane *lane, int64 id, TimestampTz when)
{
	LaterRow   *row = MemoryContextAlloc(lane->context, sizeof(LaterRow));

	row->id = id;
	row->when = when;
	pairingheap_add(lane->later, &row->node);
}

/*
 * The next row to look at, 0 when there is none now.  Those that were put aside
 * and whose time has come go before the others.
 */
int64
lane_pop(Lane *lane, TimestampTz now)
{
	int64		id = 0;

	if (!pairingheap_is_empty(lane->later) && lane_next_due(lane) <= now)
	{
		LaterRow   *row = pairingheap_container(LaterRow, node,
												pairingheap_remove_first(lane->later));

		id = row->id;
		pfree(row);
	}
	else if (lane->nids > 0)
	{
		id = lane->ids[lane->first];
		lane->first = (lane->first + 1) % lane->capacity;
		lane->nids--;
	}
	return id;
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

/* The heap's first is its largest: the earliest. */
static int
compare_later(const pairingheap_node *a, const pairingheap_node *b, void *arg pg_attribute_unused())
{
	TimestampTz x = pairingheap_const_container(LaterRow, node, a)->when;
	TimestampTz y = pairingheap_const_container(LaterRow, node, b)->when;

	return (x < y) - (x > y);
}

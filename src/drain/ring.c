/*-------------------------------------------------------------------------
 *
 * drain/ring.c
 *		Positions of rows in a ring, sixteen bytes each.
 *
 * Used by lane.c.  A full ring is doubled, and none is made smaller.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "drain/ring.h"
#include "utils/memutils.h"

/* Capacity of a new ring, in positions. */
#define FIRST_CAPACITY 8

static void enlarge_full_ring(Ring *ring);

void
ring_init(Ring *ring, MemoryContext context)
{
	memset(ring, 0, sizeof(Ring));
	ring->context = context;
}

void
ring_free(Ring *ring)
{
	if (ring->positions)
		pfree(ring->positions);
	ring_init(ring, ring->context);
}

/*
 * Adds a position at the end.
 */
void
ring_push(Ring *ring, Position position)
{
	enlarge_full_ring(ring);
	ring->positions[(ring->first + ring->count++) % ring->capacity] = position;
}

/*
 * Adds a position at the beginning.
 */
void
ring_push_front(Ring *ring, Position position)
{
	enlarge_full_ring(ring);
	ring->first = (ring->first + ring->capacity - 1) % ring->capacity;
	ring->count++;
	ring->positions[ring->first] = position;
}

/* repalloc() would refuse 2^26 positions, 1 GB. */
static void
enlarge_full_ring(Ring *ring)
{
	size_t		old = ring->capacity;

	if (ring->count < old)
		return;
	if (old == 0)
	{
		ring->positions = MemoryContextAlloc(ring->context, sizeof(Position) * FIRST_CAPACITY);
		ring->capacity = FIRST_CAPACITY;
		return;
	}
	ring->positions = repalloc_huge(ring->positions, sizeof(Position) * 2 * old);
	ring->capacity = 2 * old;
	memcpy(ring->positions + old, ring->positions, sizeof(Position) * ring->first);
}

/*
 * Takes the first position of a ring that is not empty.
 */
Position
ring_pop(Ring *ring)
{
	Position	position = ring->positions[ring->first];

	ring->first = (ring->first + 1) % ring->capacity;
	ring->count--;
	return position;
}

/*
 * The first position, where it stands in the ring; NULL if there is none.
 */
Position *
ring_first(Ring *ring)
{
	return ring->count == 0 ? NULL : &ring->positions[ring->first];
}

/*
 * Moves the last "n" positions of a ring to the end of another one, in their order.
 */
void
ring_move_last(Ring *from, Ring *to, size_t n)
{
	for (size_t i = from->count - n; i < from->count; i++)
		ring_push(to, from->positions[(from->first + i) % from->capacity]);
	from->count -= n;
}

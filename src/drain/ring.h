/*-------------------------------------------------------------------------
 *
 * drain/ring.h
 *		Positions of rows in a ring, sixteen bytes each.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_RING_H
#define DOUBLETICK_DRAIN_RING_H

/* A row to look at: a removal or a keep, which may be settled by now. */
typedef struct Position
{
	int64		id;
	int64		customer;		/* see customer_number() */
} Position;

/* Its memory is allocated in "context" when the first position comes. */
typedef struct Ring
{
	MemoryContext context;
	Position   *positions;
	size_t		first;
	size_t		count;
	size_t		capacity;
} Ring;

static inline Position
position_of(int64 id, int64 customer)
{
	Position	position;

	position.id = id;
	position.customer = customer;
	return position;
}

extern void ring_init(Ring *ring, MemoryContext context);
extern void ring_free(Ring *ring);
extern void ring_push(Ring *ring, Position position);
extern void ring_push_front(Ring *ring, Position position);
extern Position ring_pop(Ring *ring);
extern Position *ring_first(Ring *ring);
extern void ring_move_last(Ring *from, Ring *to, size_t n);

#endif							/* DOUBLETICK_DRAIN_RING_H */

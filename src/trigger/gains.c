/*-------------------------------------------------------------------------
 *
 * trigger/gains.c
 *		What this transaction's rows have gained so far.
 *
 * A name that one row of a customer loses and another gains, in one transaction,
 * has not gone.  If the loss comes first, the removal waits in the queue, and a
 * keep takes it back.  If the gain comes first, there is nothing yet to take
 * back: so it is counted here, and covers the losses that follow.
 *
 * A gain lasts until its own row loses the name again, however many other rows
 * lose it meanwhile: so it is known of each gain which row it is of.  Rows are
 * told apart by a number that the caller has for them (a hash of 32 bits, which
 * need only tell those of one customer and name apart).
 *
 * A removal may be owed for a gain: since the gain took back one that waited, or
 * covered a loss.  It is entered when the last gain of the name has gone.
 *
 * Gains are known by a hash of 64 bits over customer and name.  Two that meet by
 * chance could hide a removal, once in millions of the largest transactions.  A
 * gain takes 16 bytes, 32 at worst, and inside a savepoint another 16: about as
 * much as PostgreSQL's own list of the rows that a trigger is to fire for.  It
 * goes when the transaction ends; what a savepoint has added goes when that is
 * rolled back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/phone.h"
#include "common/hashfn.h"
#include "trigger/gains.h"
#include "utils/memutils.h"

/*
 * A customer's name, and how many rows have gained it; or that and a row, and how
 * often that one has.  The first row needs no entry of its own: nearly always it
 * is the only one.
 */
typedef struct Gain
{
	uint64		key;
	uint32		row;			/* counted here alone; 0: none */
	uint32		count:30,
				owed:1,			/* is a removal to be entered at 0? */
				status:1;
} Gain;

#define SH_PREFIX gain
#define SH_ELEMENT_TYPE Gain
#define SH_KEY_TYPE uint64
#define SH_KEY key
#define SH_HASH_KEY(tb, key) ((uint32) (key))
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_USE_NONDEFAULT_ALLOCATOR
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* What a gain was before a subtransaction changed it. */
typedef struct Undo
{
	uint64		key;
	uint32		row;
	uint32		count:30,
				owed:1;
} Undo;

/* A subtransaction that has changed something: its part of the list of undos. */
typedef struct Level
{
	SubTransactionId id;
	size_t		start;
} Level;

/* All of it, while this transaction has any. */
typedef struct Memory
{
	MemoryContext context;		/* NULL: there is nothing */
	gain_hash  *gains;
	Undo	   *undos;			/* of subtransactions, in order of time */
	size_t		nundos;
	size_t		undos_capacity;
	Level	   *levels;			/* the innermost last */
	size_t		nlevels;
	size_t		levels_capacity;
} Memory;

static Memory memory;

/* Leaves some of a row's names, and returns how many. */
typedef int (*Filter) (uint64 customer, const char **names, int nnames, uint32 row);

static void start(void);
static void add(uint64 customer, const char **names, int nnames, uint32 row);
static Gain *find_or_make(uint64 key);
static void filter(const Requester *requester, Removal *names, uint32 row, Filter leave);
static int	take(uint64 customer, const char **names, int nnames, uint32 row);
static bool take_one(Gain *gain, uint32 row);
static void owe(uint64 customer, const char **names, int nnames);
static void owe_one(Gain *gain);
static int	cover(uint64 customer, const char **names, int nnames, uint32 row);
static Gain *find(uint64 key);
static uint64 customer_key(const Requester *requester, const Removal *names);
static uint64 name_key(uint64 customer, const char *name);
static uint64 row_key(uint64 key, uint32 row);
static void note_undo(const Gain *gain);
static void *grow(void *list, size_t *capacity, size_t size);
static void push_level(SubTransactionId id);
static void end_transaction(XactEvent event, void *arg);
static void end_subtransaction(SubXactEvent event, SubTransactionId id,
							   SubTransactionId parent, void *arg);
static void undo(const Level *level);
static void merge(SubTransactionId parent);

/*
 * A savepoint may end an error for want of memory, and what was gained before it is
 * still there: a table that cannot grow must be as it was.
 */
static inline void *
gain_allocate(gain_hash *gains, Size size)
{
	void	   *data = MemoryContextAllocExtended(gains->ctx, size, MCXT_ALLOC_HUGE |
												  MCXT_ALLOC_ZERO | MCXT_ALLOC_NO_OOM);

	if (data == NULL)
	{
		gain_compute_parameters(gains, gains->size / 2);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed on request of size %zu in memory context \"%s\".",
						   size, gains->ctx->name)));
	}
	return data;
}

static inline void
gain_free(gain_hash *gains pg_attribute_unused(), void *data)
{
	pfree(data);
}

/* Tags and fields have names apart. */
#define FIELDS_OF(customer) (~(customer))

/*
 * Has anything been gained so far?
 */
bool
gains_any(void)
{
	return memory.context != NULL;
}

/*
 * A row has gained these names, each of which it did not have before.
 */
void
gains_record(const Requester *requester, const Removal *gained, uint32 row)
{
	uint64		customer;

	if (payload_is_empty(gained))
		return;
	if (!gains_any())
		start();
	customer = customer_key(requester, gained);
	add(customer, gained->tags, gained->ntags, row);
	add(FIELDS_OF(customer), gained->fields, gained->nfields, row);
}

static void
start(void)
{
	static bool registered = false;
	MemoryContext context;

	if (!registered)
	{
		RegisterXactCallback(end_transaction, NULL);
		RegisterSubXactCallback(end_subtransaction, NULL);
		registered = true;
	}
	memset(&memory, 0, sizeof(memory));
	context = AllocSetContextCreate(TopTransactionContext, "doubletick gains",
									ALLOCSET_DEFAULT_SIZES);
	memory.gains = gain_create(context, 64, NULL);
	memory.context = context;
}

static void
add(uint64 customer, const char **names, int nnames, uint32 row)
{
	for (int i = 0; i < nnames; i++)
	{
		uint64		key = name_key(customer, names[i]);
		Gain	   *gain = find_or_make(key);

		note_undo(gain);
		gain->count++;
		if (gain->row == 0)
			gain->row = row;
		else
		{
			gain = find_or_make(row_key(key, row));
			note_undo(gain);
			gain->count++;
		}
	}
}

static Gain *
find_or_make(uint64 key)
{
	bool		found;
	Gain	   *gain = gain_insert(memory.gains, key, &found);

	if (!found)
	{
		gain->count = 0;
		gain->row = 0;
		gain->owed = false;
	}
	return gain;
}

/*
 * Takes what a row has gained of these names out of the count, and leaves just
 * that: the row is about to be known by another number.  Something must have been
 * gained.
 */
void
gains_withdraw(const Requester *requester, Removal *names, uint32 row)
{
	Assert(gains_any());
	filter(requester, names, row, take);
}

static void
filter(const Requester *requester, Removal *names, uint32 row, Filter leave)
{
	uint64		customer;

	if (payload_is_empty(names))
		return;
	customer = customer_key(requester, names);
	names->ntags = leave(customer, names->tags, names->ntags, row);
	names->nfields = leave(FIELDS_OF(customer), names->fields, names->nfields, row);
}

static int
take(uint64 customer, const char **names, int nnames, uint32 row)
{
	int			ntaken = 0;

	for (int i = 0; i < nnames; i++)
	{
		Gain	   *gain = find(name_key(customer, names[i]));

		if (gain && take_one(gain, row))
			names[ntaken++] = names[i];
	}
	return ntaken;
}

/* A name's gain by a row; false when the row has not gained it. */
static bool
take_one(Gain *gain, uint32 row)
{
	Gain	   *own = NULL;

	if (gain->row != row)
	{
		if (gain->row == 0 || gain->count > 1)
			own = find(row_key(gain->key, row));
		if (own == NULL)
			return false;
		note_undo(own);
		own->count--;
	}
	note_undo(gain);
	gain->count--;
	if (own == NULL)
		gain->row = 0;
	return true;
}

/*
 * Removals of these names would have been entered, but for what was gained.  Names
 * that were not gained may be among them.
 */
void
gains_note_suppressed(const Requester *requester, const Removal *names)
{
	uint64		customer;

	if (!gains_any() || payload_is_empty(names))
		return;
	customer = customer_key(requester, names);
	owe(customer, names->tags, names->ntags);
	owe(FIELDS_OF(customer), names->fields, names->nfields);
}

static void
owe(uint64 customer, const char **names, int nnames)
{
	for (int i = 0; i < nnames; i++)
	{
		Gain	   *gain = find(name_key(customer, names[i]));

		if (gain)
			owe_one(gain);
	}
}

static void
owe_one(Gain *gain)
{
	if (gain->owed)
		return;
	note_undo(gain);
	gain->owed = true;
}

/*
 * Leaves of the names that a row has lost those whose removal is to be entered.
 */
void
gains_withhold_lost(const Requester *requester, Removal *lost, uint32 row)
{
	if (gains_any())
		filter(requester, lost, row, cover);
}

static int
cover(uint64 customer, const char **names, int nnames, uint32 row)
{
	int			nleft = 0;

	for (int i = 0; i < nnames; i++)
	{
		Gain	   *gain = find(name_key(customer, names[i]));

		if (gain == NULL)
			names[nleft++] = names[i];
		else if (!take_one(gain, row))
			owe_one(gain);
		else if (gain->count == 0 && gain->owed)
		{
			gain->owed = false;
			names[nleft++] = names[i];
		}
	}
	return nleft;
}

/* NULL when no row has it now. */
static Gain *
find(uint64 key)
{
	Gain	   *gain = gain_lookup(memory.gains, key);

	return gain && gain->count > 0 ? gain : NULL;
}

static uint64
customer_key(const Requester *requester, const Removal *names)
{
	uint64		key = hash_bytes_extended((const unsigned char *) requester->server,
										  strlen(requester->server), requester->role);

	return phone_hash(names->waba, phone_hash(names->phone, key));
}

static uint64
name_key(uint64 customer, const char *name)
{
	return hash_bytes_extended((const unsigned char *) name, strlen(name), customer);
}

static uint64
row_key(uint64 key, uint32 row)
{
	return hash_combine64(key, row);
}

/* Called before a gain is changed. */
static void
note_undo(const Gain *gain)
{
	SubTransactionId id = GetCurrentSubTransactionId();
	Undo	   *last;

	if (id == TopSubTransactionId)
		return;
	if (memory.nlevels == 0 || memory.levels[memory.nlevels - 1].id != id)
		push_level(id);
	if (memory.nundos == memory.undos_capacity)
		memory.undos = grow(memory.undos, &memory.undos_capacity, sizeof(Undo));
	last = &memory.undos[memory.nundos++];
	last->key = gain->key;
	last->count = gain->count;
	last->row = gain->row;
	last->owed = gain->owed;
}

/* A longer list, NULL at first; when memory runs out, the old one stays. */
static void *
grow(void *list, size_t *capacity, size_t size)
{
	size_t		longer = Max(2 * *capacity, 16);

	list = list == NULL ? MemoryContextAlloc(memory.context, size * longer) :
		repalloc_huge(list, size * longer);
	*capacity = longer;
	return list;
}

static void
push_level(SubTransactionId id)
{
	Level	   *level;

	if (memory.nlevels == memory.levels_capacity)
		memory.levels = grow(memory.levels, &memory.levels_capacity, sizeof(Level));
	level = &memory.levels[memory.nlevels++];
	level->id = id;
	level->start = memory.nundos;
}

/* The memory itself goes with the transaction's. */
static void
end_transaction(XactEvent event, void *arg pg_attribute_unused())
{
	if (event != XACT_EVENT_PRE_COMMIT && event != XACT_EVENT_PRE_PREPARE &&
		event != XACT_EVENT_PARALLEL_PRE_COMMIT)
		memory.context = NULL;
}

static void
end_subtransaction(SubXactEvent event, SubTransactionId id, SubTransactionId parent,
				   void *arg pg_attribute_unused())
{
	if (memory.context == NULL || memory.nlevels == 0 ||
		memory.levels[memory.nlevels - 1].id != id)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		undo(&memory.levels[--memory.nlevels]);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		merge(parent);
}

static void
undo(const Level *level)
{
	while (memory.nundos > level->start)
	{
		const Undo *last = &memory.undos[--memory.nundos];
		Gain	   *gain = gain_lookup(memory.gains, last->key);

		gain->count = last->count;
		gain->row = last->row;
		gain->owed = last->owed;
	}
}

/* What the innermost has changed is now as if its parent had. */
static void
merge(SubTransactionId parent)
{
	Level	   *level = &memory.levels[memory.nlevels - 1];

	if (parent == TopSubTransactionId)
		memory.nlevels = memory.nundos = 0;
	else if (memory.nlevels > 1 && level[-1].id == parent)
		memory.nlevels--;
	else
		level->id = parent;
}

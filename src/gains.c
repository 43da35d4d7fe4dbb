/*-------------------------------------------------------------------------
 *
 * gains.c
 *		What this transaction's rows have gained so far.
 *
 * A name that one row of a customer loses and another gains, in one transaction,
 * has not gone.  If the loss comes first, the removal waits in the queue, and a
 * keep takes it back.  If the gain comes first, there is nothing yet to take
 * back: so it is counted here, and covers a loss that follows.
 *
 * A loss uses up a gain only if its row may be the one that had it, that is, if
 * this transaction has made the row as it was before: one that is in place from
 * before the transaction loses what it had itself, and the row that gained has
 * its name still, however many others lose it.
 *
 * A removal may be owed for a gain: since the gain took back one that waited, or
 * covered a loss without being used up.  It is entered when the gain is used up.
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
#include "common/hashfn.h"
#include "gains.h"
#include "utils/memutils.h"

/* A customer's name, and how many rows have gained it. */
typedef struct Gain
{
	uint64		key;
	int32		count;
	char		status;
	bool		owed;			/* is a removal to be entered at 0? */
} Gain;

#define SH_PREFIX gain
#define SH_ELEMENT_TYPE Gain
#define SH_KEY_TYPE uint64
#define SH_KEY key
#define SH_HASH_KEY(tb, key) ((uint32) (key))
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* What a gain was before a subtransaction changed it. */
typedef struct Undo
{
	uint64		key;
	int32		count;
	bool		owed;
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
	int			nlevels;
	int			levels_capacity;
} Memory;

static Memory memory;

static void start(void);
static void count(uint64 customer, const char **names, int nnames);
static void owe(uint64 customer, const char **names, int nnames);
static int	cover(uint64 customer, const char **names, int nnames, bool owned);
static uint64 customer_key(const Requester *requester, const Removal *names);
static uint64 name_key(uint64 customer, const char *name);
static uint64 hash_number(const char *number, uint64 seed);
static void note_undo(const Gain *gain);
static void push_level(SubTransactionId id);
static void end_transaction(XactEvent event, void *arg);
static void end_subtransaction(SubXactEvent event, SubTransactionId id,
							   SubTransactionId parent, void *arg);
static void undo(const Level *level);
static void merge(SubTransactionId parent);

/* Tags and fields have names apart. */
#define FIELDS_OF(customer) (~(customer))

/*
 * Counts names that rows have gained, repeated ones for each row.  "kept" are
 * those for which a removal was taken back.
 */
void
gains_remember(const Requester *requester, const Removal *gained, const Removal *kept)
{
	uint64		customer;

	if (gained->ntags == 0 && gained->nfields == 0)
		return;
	if (memory.context == NULL)
		start();
	customer = customer_key(requester, gained);
	count(customer, gained->tags, gained->ntags);
	count(FIELDS_OF(customer), gained->fields, gained->nfields);
	owe(customer, kept->tags, kept->ntags);
	owe(FIELDS_OF(customer), kept->fields, kept->nfields);
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
count(uint64 customer, const char **names, int nnames)
{
	for (int i = 0; i < nnames; i++)
	{
		bool		found;
		Gain	   *gain = gain_insert(memory.gains, name_key(customer, names[i]), &found);

		if (!found)
		{
			gain->count = 0;
			gain->owed = false;
		}
		note_undo(gain);
		gain->count++;
	}
}

/* Names that were not gained may be among them. */
static void
owe(uint64 customer, const char **names, int nnames)
{
	for (int i = 0; i < nnames; i++)
	{
		Gain	   *gain = gain_lookup(memory.gains, name_key(customer, names[i]));

		if (gain == NULL || gain->owed)
			continue;
		note_undo(gain);
		gain->owed = true;
	}
}

/*
 * Leaves of the names that rows have lost, repeated ones for each row, those
 * whose removal is to be entered.  "owned": may these rows have gained them?
 */
void
gains_cover(const Requester *requester, Removal *lost, bool owned)
{
	uint64		customer;

	if (memory.context == NULL)
		return;
	customer = customer_key(requester, lost);
	lost->ntags = cover(customer, lost->tags, lost->ntags, owned);
	lost->nfields = cover(FIELDS_OF(customer), lost->fields, lost->nfields, owned);
}

static int
cover(uint64 customer, const char **names, int nnames, bool owned)
{
	int			nleft = 0;

	for (int i = 0; i < nnames; i++)
	{
		Gain	   *gain = gain_lookup(memory.gains, name_key(customer, names[i]));

		if (gain == NULL || gain->count == 0)
		{
			names[nleft++] = names[i];
			continue;
		}
		note_undo(gain);
		if (!owned)
		{
			gain->owed = true;
			continue;
		}
		gain->count--;
		if (gain->count == 0 && gain->owed)
		{
			gain->owed = false;
			names[nleft++] = names[i];
		}
	}
	return nleft;
}

static uint64
customer_key(const Requester *requester, const Removal *names)
{
	uint64		key = hash_bytes_extended((const unsigned char *) requester->server,
										  strlen(requester->server), requester->role);

	key = hash_number(names->phone, key);
	return names->waba ? hash_number(names->waba, key) : key;
}

static uint64
name_key(uint64 customer, const char *name)
{
	return hash_bytes_extended((const unsigned char *) name, strlen(name), customer);
}

static uint64
hash_number(const char *number, uint64 seed)
{
	if (*number == '+')
		number++;
	return hash_bytes_extended((const unsigned char *) number, strlen(number), seed);
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
	{
		memory.undos_capacity = Max(2 * memory.undos_capacity, 64);
		memory.undos = memory.undos == NULL ?
			MemoryContextAlloc(memory.context, sizeof(Undo) * memory.undos_capacity) :
			repalloc_huge(memory.undos, sizeof(Undo) * memory.undos_capacity);
	}
	last = &memory.undos[memory.nundos++];
	last->key = gain->key;
	last->count = gain->count;
	last->owed = gain->owed;
}

static void
push_level(SubTransactionId id)
{
	Level	   *level;

	if (memory.nlevels == memory.levels_capacity)
	{
		memory.levels_capacity = Max(2 * memory.levels_capacity, 8);
		memory.levels = memory.levels == NULL ?
			MemoryContextAlloc(memory.context, sizeof(Level) * memory.levels_capacity) :
			repalloc(memory.levels, sizeof(Level) * memory.levels_capacity);
	}
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

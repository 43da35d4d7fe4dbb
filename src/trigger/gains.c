/*-------------------------------------------------------------------------
 *
 * trigger/gains.c
 *		What this transaction's rows have gained so far.
 *
 * A name that one row of a customer loses and another row gains, in one
 * transaction, must not be removed.  If the loss comes first, its removal waits
 * in the queue, and a keep takes it back.  If the gain comes first, there is
 * nothing to take back yet: so the gain is counted here, and suppresses the
 * removals of later losses.
 *
 * A gain lasts until the row that gained the name loses it again, however many
 * other rows lose it meanwhile.  So each gain belongs to a row.  Callers give rows
 * numbers of 32 bits (hashes), which need only tell rows of the same customer and
 * name apart.
 *
 * A gain that has suppressed a removal, or has taken back one that waited, is
 * marked as suppressed: when the last gain of that name goes away, the removal must
 * be enqueued after all.
 *
 * Gains are found by a hash of 64 bits over customer and name.  Two that collide
 * could hide a removal, once in millions of the largest transactions.
 *
 * A customer has a server and a role.  They may change for a table in mid-transaction,
 * by ALTER TABLE ... OWNER or another trigger: its later rows then count for the first
 * ones, so that the rows before and after can still be compared.
 *
 * A gain takes 42 bytes until the transaction ends, and each change of it inside
 * a savepoint another 24.  When memory runs out inside a savepoint, rolling back
 * to it must leave the gains as they were before.  dynahash promises that an
 * insertion that fails leaves its table intact; simplehash does not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/phone.h"
#include "common/hashfn.h"
#include "trigger/gains.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

typedef struct GainState
{
	uint32		row;			/* a row that has no entry of its own; 0: none */
	uint32		count:31,		/* rows that have gained the name */
				suppressed:1;	/* is to be removed when count is 0 again */
} GainState;

/*
 * A customer's name, and how many rows have gained it.  The first of these rows
 * is in "row", since nearly always it is the only one.  Each further row has an entry
 * of its own, whose key is a hash of name and row, with the number of its gains.
 */
typedef struct Gain
{
	uint64		key;
	GainState	state;
} Gain;

/* A gain's state before a subtransaction changed it. */
typedef struct Undo
{
	Gain	   *gain;			/* entries of dynahash do not move */
	GainState	state;
	SubTransactionId subxact;
} Undo;

/* A table, and a hash of the server and role that its rows count for. */
typedef struct GainsTable
{
	int64		origin;
	uint64		requester;
	SubTransactionId subxact;	/* which added it */
} GainsTable;

static HTAB *gains;				/* NULL: this transaction has none */
static List *tables;			/* GainsTable, the latest last */
static Undo *undos;				/* the latest last */
static size_t nundos;
static size_t undos_capacity;

/* What is done with a name of a row; returns whether the name stays in the list. */
typedef bool (*NameAction) (uint64 key, uint32 row);

static void create_gains(void);
static uint32 hash_gain_key(const void *key, Size size);
static void for_each_name(const Definition *definition, Removal *names, uint32 row,
						  NameAction action);
static uint64 hash_requester(const Requester *requester);
static int	for_each_in_list(uint64 customer, const char **names, int nnames, uint32 row,
							 NameAction action);
static bool record_name(uint64 key, uint32 row);
static Gain *count_gain(uint64 key);
static bool withdraw_name(uint64 key, uint32 row);
static bool withdraw_gain(Gain *gain, uint32 row);
static bool adopt_name(uint64 key, uint32 row);
static bool note_suppressed_name(uint64 key, uint32 row);
static void note_suppressed(Gain *gain);
static bool withhold_name(uint64 key, uint32 row);
static Gain *find_gain(uint64 key);
static void note_undo(Gain *gain);
static void forget_gains_at_xact_end(XactEvent event, void *arg);
static void undo_gains_at_subxact_end(SubXactEvent event, SubTransactionId id,
									  SubTransactionId parent, void *arg);

/*
 * Has anything been gained so far?
 */
bool
gains_any(void)
{
	return gains != NULL;
}

/*
 * A row has gained these names, each of which it did not have before.
 */
void
gains_record(const Definition *definition, Removal *gained, uint32 row)
{
	if (payload_is_empty(gained))
		return;
	if (!gains_any())
		create_gains();
	for_each_name(definition, gained, row, record_name);
}

static void
create_gains(void)
{
	static bool registered = false;
	HASHCTL		control = {0};

	if (!registered)
	{
		RegisterXactCallback(forget_gains_at_xact_end, NULL);
		RegisterSubXactCallback(undo_gains_at_subxact_end, NULL);
		registered = true;
	}
	tables = NIL;
	undos = NULL;
	nundos = undos_capacity = 0;
	control.keysize = sizeof(uint64);
	control.entrysize = sizeof(Gain);
	control.hash = hash_gain_key;
	control.hcxt = TopTransactionContext;
	gains = hash_create("doubletick gains", 64, &control, HASH_ELEM | HASH_FUNCTION | HASH_CONTEXT);
}

/* A key is a hash already: hashing it again costs 40 instructions for each name. */
static uint32
hash_gain_key(const void *key, Size size pg_attribute_unused())
{
	return (uint32) *(const uint64 *) key;
}

/* A tag and a custom field of the same name have different keys. */
static void
for_each_name(const Definition *definition, Removal *names, uint32 row, NameAction action)
{
	uint64		customer;

	if (payload_is_empty(names))
		return;
	customer = hash_requester(&definition->requester);
	customer = phone_hash(definition_waba(definition, names->waba), phone_hash(names->phone, customer));
	names->ntags = for_each_in_list(customer, names->tags, names->ntags, row, action);
	names->nfields = for_each_in_list(~customer, names->fields, names->nfields, row, action);
}

/* Of this requester, or of the one that its table had before in this transaction. */
static uint64
hash_requester(const Requester *requester)
{
	MemoryContext caller;
	GainsTable *table;
	ListCell   *cell;

	foreach(cell, tables)
	{
		table = lfirst(cell);
		if (table->origin == requester->origin)
			return table->requester;
	}
	caller = MemoryContextSwitchTo(TopTransactionContext);
	table = palloc(sizeof(GainsTable));
	table->origin = requester->origin;
	table->requester = hash_bytes_extended((const unsigned char *) requester->server,
										   strlen(requester->server), requester->role);
	table->subxact = GetCurrentSubTransactionId();
	tables = lappend(tables, table);
	MemoryContextSwitchTo(caller);
	return table->requester;
}

/* Returns how many names are left in the list. */
static int
for_each_in_list(uint64 customer, const char **names, int nnames, uint32 row, NameAction action)
{
	int			nleft = 0;

	for (int i = 0; i < nnames; i++)
	{
		if (action(hash_bytes_extended((const unsigned char *) names[i], strlen(names[i]), customer),
				   row))
			names[nleft++] = names[i];
	}
	return nleft;
}

static bool
record_name(uint64 key, uint32 row)
{
	Gain	   *gain = count_gain(key);

	if (gain->state.row == 0)
		gain->state.row = row;
	else
		(void) count_gain(hash_combine64(key, row));
	return true;
}

static Gain *
count_gain(uint64 key)
{
	bool		found;
	Gain	   *gain = hash_search(gains, &key, HASH_ENTER, &found);

	if (!found)
		memset(&gain->state, 0, sizeof(GainState));
	note_undo(gain);
	gain->state.count++;
	return gain;
}

/*
 * A row's number has changed: moves its gains of these names to the new number.
 * Changes the lists.
 */
void
gains_renumber(const Definition *definition, Removal *names, uint32 from, uint32 to)
{
	for_each_name(definition, names, from, withdraw_name);
	gains_record(definition, names, to);
}

/* Leaves only the names that the row has gained. */
static bool
withdraw_name(uint64 key, uint32 row)
{
	Gain	   *gain = find_gain(key);

	return gain && withdraw_gain(gain, row);
}

/* Takes a row's gain out of the count; false when the row has none. */
static bool
withdraw_gain(Gain *gain, uint32 row)
{
	if (gain->state.row == row)
	{
		note_undo(gain);
		gain->state.row = 0;
	}
	else
	{
		Gain	   *own = NULL;

		if (gain->state.row == 0 || gain->state.count > 1)
			own = find_gain(hash_combine64(gain->key, row));
		if (own == NULL)
			return false;
		note_undo(own);
		own->state.count--;
		note_undo(gain);
	}
	gain->state.count--;
	return true;
}

/*
 * A row may have got another number without the trigger: gives it the gains of these
 * names that the first of the rows with a gain has, unless it has gains of its own.
 * Changes the lists.
 */
void
gains_adopt(const Definition *definition, Removal *names, uint32 row)
{
	for_each_name(definition, names, row, adopt_name);
}

static bool
adopt_name(uint64 key, uint32 row)
{
	Gain	   *gain = find_gain(key);

	if (gain && gain->state.row != 0 && gain->state.row != row &&
		find_gain(hash_combine64(key, row)) == NULL)
	{
		note_undo(gain);
		gain->state.row = row;
	}
	return true;
}

/*
 * Removals of these names have been taken back, or were not enqueued.  If rows have
 * gained such a name, its removal is enqueued when the last of these rows loses it.
 */
void
gains_note_suppressed(const Definition *definition, Removal *names)
{
	if (gains_any())
		for_each_name(definition, names, GAINS_ANY_ROW, note_suppressed_name);
}

static bool
note_suppressed_name(uint64 key, uint32 row pg_attribute_unused())
{
	Gain	   *gain = find_gain(key);

	if (gain)
		note_suppressed(gain);
	return true;
}

static void
note_suppressed(Gain *gain)
{
	if (gain->state.suppressed)
		return;
	note_undo(gain);
	gain->state.suppressed = true;
}

/*
 * A row has lost these names: leaves only those whose removal is to be enqueued.
 */
void
gains_withhold_lost(const Definition *definition, Removal *lost, uint32 row)
{
	if (gains_any())
		for_each_name(definition, lost, row, withhold_name);
}

static bool
withhold_name(uint64 key, uint32 row)
{
	Gain	   *gain = find_gain(key);

	if (gain == NULL)
		return true;
	if (!withdraw_gain(gain, row))
	{
		note_suppressed(gain);
		return false;
	}
	if (gain->state.count > 0 || !gain->state.suppressed)
		return false;
	gain->state.suppressed = false;
	return true;
}

/* NULL when no row has gained the name, or each has lost it again. */
static Gain *
find_gain(uint64 key)
{
	Gain	   *gain = hash_search(gains, &key, HASH_FIND, NULL);

	return gain && gain->state.count > 0 ? gain : NULL;
}

/*
 * Called before a gain is changed, so that it is as it was if memory runs out here.
 */
static void
note_undo(Gain *gain)
{
	SubTransactionId subxact = GetCurrentSubTransactionId();
	Undo	   *undo;

	if (subxact == TopSubTransactionId)
		return;
	if (nundos == undos_capacity)
	{
		size_t		capacity = Max(2 * undos_capacity, 16);

		undos = undos ? repalloc_huge(undos, sizeof(Undo) * capacity) :
			MemoryContextAlloc(TopTransactionContext, sizeof(Undo) * capacity);
		undos_capacity = capacity;
	}
	undo = &undos[nundos++];
	undo->gain = gain;
	undo->state = gain->state;
	undo->subxact = subxact;
}

/* The memory itself goes with TopTransactionContext. */
static void
forget_gains_at_xact_end(XactEvent event, void *arg pg_attribute_unused())
{
	if (event != XACT_EVENT_PRE_COMMIT && event != XACT_EVENT_PRE_PREPARE &&
		event != XACT_EVENT_PARALLEL_PRE_COMMIT)
		gains = NULL;
}

/*
 * A subtransaction's id is greater than its parent's, and less than those of its
 * children.  So when it aborts, the changes to undo are those at the end of the list
 * whose ids are not less than its own: they include those of its committed children.
 * The same holds for tables.
 */
static void
undo_gains_at_subxact_end(SubXactEvent event, SubTransactionId id, SubTransactionId parent,
						  void *arg pg_attribute_unused())
{
	if (gains == NULL)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		for (; nundos > 0 && undos[nundos - 1].subxact >= id; nundos--)
			undos[nundos - 1].gain->state = undos[nundos - 1].state;
		while (tables != NIL && ((GainsTable *) llast(tables))->subxact >= id)
			tables = list_delete_last(tables);
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB && parent == TopSubTransactionId)
		nundos = 0;
}

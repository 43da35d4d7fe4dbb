/*-------------------------------------------------------------------------
 *
 * queue/phones.c
 *		For which phones and names removals may wait, as a command sees it.
 *
 * Nearly no phone of a bulk statement has a removal that waits, and to find that out in
 * the index costs 8,000 instructions for each row.  So after about as many index probes
 * as reading the table would cost, it is read once, and the phones with waiting removals
 * are remembered.  And when very many wait for one phone, their names are remembered,
 * since each row of this phone would read them all.
 *
 * This holds for one command.  Triggers fire after the command has changed all of its
 * rows, so what was committed before such a change is in the table when it is read, or
 * was added by this session, which phones_note_removal() is told.  A removal that another
 * session adds later is concurrent with the change: it counts as later than a keep.
 *
 * It holds for the next command of the transaction, too, if no other transaction has added
 * a removal meanwhile.  That is so if no other has a lock on the table, since it would
 * keep that until it ends, and if none has ended since.  This session's own are known.
 * So thousands of statements of one transaction need not each read thousands of removals
 * of one phone.
 *
 * Phones and names may be remembered whose removals are gone.  Then the index is asked.
 * So the table is read with all rows that VACUUM must leave, whether or not they are
 * visible: else a row could be missed that the drainer moves meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "base/names.h"
#include "base/phone.h"
#include "common/hashfn.h"
#include "compat.h"
#include "miscadmin.h"
#include "queue/customer_number.h"
#include "queue/phones.h"
#include "storage/bufmgr.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* So many index probes cost as much as reading one block of the table. */
#define PROBES_PER_BLOCK 16

/*
 * So many phones and names take 32 MB.  When there are more, the index is asked for each
 * row.  Tests have fewer.
 */
#ifdef DOUBLETICK_TESTING
#define MOST_KEYS 1000
#else
#define MOST_KEYS (1024 * 1024)
#endif

/*
 * A phone, by phone_value(), or a hash of a phone and a name.  No hash is taken for a
 * phone: its first bit is set.
 */
typedef struct WaitingKey
{
	uint64		key;
	bool		was_long;		/* of a phone: very many rows were read, once */
	bool		has_names;		/* and again: then its names became keys, too */
	char		status;
} WaitingKey;

#define SH_PREFIX keys
#define SH_ELEMENT_TYPE WaitingKey
#define SH_KEY_TYPE uint64
#define SH_KEY key
#define SH_HASH_KEY(tb, key) murmurhash32((uint32) ((key) ^ ((key) >> 32)))
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* The command for which all of the following holds. */
static LocalTransactionId known_xact = InvalidLocalTransactionId;
static CommandId known_command;

static int64 nprobes;			/* how often the index was asked */
static bool knows_phones;		/* does "known" have all phones? */
static keys_hash * known;		/* NULL: it is empty */
static uint64 known_ended;		/* count_ended_transactions() before it was
								 * filled */
static MemoryContext known_context; /* of "known"; goes with the transaction */
static bool gave_up;			/* may "known" lack keys? */

static bool is_same_command(void);
static bool holds_for_next_command(Store *waiting);
static bool others_may_add(Store *waiting);
static uint64 count_ended_transactions(void);
static void begin_command(void);
static void make_known(void);
static void read_phones(Store *waiting);
static void add_names(uint64 phone, const Removal *names);
static const WaitingKey *find_key(uint64 key);
static WaitingKey *add_key(uint64 key);
static uint64 make_name_key(uint64 phone, const char *name, bool tag);

/*
 * Called by the trigger for a row that has names: may a removal wait for its phone?
 */
bool
phones_may_have_waiting(Store *waiting, const char *phone)
{
	if (!is_same_command() && !holds_for_next_command(waiting))
		begin_command();
	if (!gave_up && !knows_phones && ++nprobes % PROBES_PER_BLOCK == 0 &&
		nprobes / PROBES_PER_BLOCK > RelationGetNumberOfBlocks(waiting->rel))
		read_phones(waiting);
	return gave_up || !knows_phones || find_key(phone_value(phone)) != NULL;
}

/* Has nothing else been done in this transaction since begin_command()? */
static bool
is_same_command(void)
{
	return known_xact == my_local_xid() && known_command == GetCurrentCommandId(false);
}

/*
 * Marks the command's id as used, as begin_command() does, if what is known still holds.
 * A transaction that ends is counted before it gives up its locks, so these come first.
 */
static bool
holds_for_next_command(Store *waiting)
{
	if (known_xact != my_local_xid() || known == NULL || gave_up ||
		others_may_add(waiting) || count_ended_transactions() != known_ended)
		return false;
	known_command = GetCurrentCommandId(true);
	return true;
}

/* Has another transaction the lock with which store_open() opens the table? */
static bool
others_may_add(Store *waiting)
{
	LOCKTAG		table;
	int			nothers;

	SET_LOCKTAG_RELATION(table, MyDatabaseId, RelationGetRelid(waiting->rel));
	pfree(GetLockConflicts(&table, ShareLock, &nothers));
	return nothers > 0;
}

/*
 * How many transactions that have written have ended in the cluster.  Whatever this
 * command could see was committed before the snapshot is taken here.
 */
static uint64
count_ended_transactions(void)
{
	return GetLatestSnapshot()->snapXactCompletionCount;
}

/* Marks the command's id as used: else the next command could have the same. */
static void
begin_command(void)
{
	if (known_xact != my_local_xid())
		known_context = NULL;	/* gone with the transaction before */
	if (known_context)
		MemoryContextReset(known_context);
	known = NULL;
	knows_phones = false;
	gave_up = false;
	nprobes = 0;
	known_xact = my_local_xid();
	known_command = GetCurrentCommandId(true);
}

/* Called before "known" is filled.  An error leaves it as nobody may use it. */
static void
make_known(void)
{
	if (known)
		return;
	gave_up = true;
	known_ended = count_ended_transactions();
	if (known_context == NULL)
		known_context = AllocSetContextCreate(TopTransactionContext, "doubletick phones",
											  ALLOCSET_DEFAULT_SIZES);
	known = keys_create(known_context, 64, NULL);
	gave_up = false;
}

static void
read_phones(Store *waiting)
{
	TupleDesc	desc = RelationGetDescr(waiting->rel);
	SnapshotData snapshot;
	SysScanDesc scan;
	HeapTuple	tuple;

	make_known();
	InitNonVacuumableSnapshot(snapshot, GlobalVisTestFor(waiting->rel));
	scan = systable_beginscan(waiting->rel, InvalidOid, false, &snapshot, 0, NULL);
	while (!gave_up && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		customer = heap_getattr(tuple, WAITING_CUSTOMER, desc, &isnull);

		CHECK_FOR_INTERRUPTS();
		if (!DatumGetBool(heap_getattr(tuple, WAITING_KEEP, desc, &isnull)))
			(void) add_key(phone_of_customer_number(DatumGetInt64(customer)));
	}
	systable_endscan(scan);
	knows_phones = true;
}

/*
 * Called by the trigger before queue_add_keep(), if a removal may wait for the phone: may
 * one of these names be in it?
 */
bool
phones_may_have_names(const Removal *names)
{
	uint64		phone;
	const WaitingKey *key;

	if (gave_up || !is_same_command())
		return true;
	phone = phone_value(names->phone);
	key = find_key(phone);
	if (key == NULL || !key->has_names)
		return true;
	for (int i = 0; i < names->ntags; i++)
	{
		if (find_key(make_name_key(phone, names->tags[i], true)))
			return true;
	}
	for (int i = 0; i < names->nfields; i++)
	{
		if (find_key(make_name_key(phone, names->fields[i], false)))
			return true;
	}
	return false;
}

/*
 * Called by queue_add_keep() when it has read very many rows of a phone: from the second
 * time on, remembers the names of all its removals, whosever they are.  It sees the same
 * removals: of a row that is gone, names that are out of line may be gone, too.
 */
void
phones_learn_names(Store *waiting, const char *phone)
{
	uint64		value = phone_value(phone);
	SnapshotData snapshot;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		is_in_progress;
	WaitingKey *key;

	if (gave_up || !is_same_command())
		return;
	make_known();
	key = add_key(value);
	if (key == NULL || !key->was_long)
	{
		if (key)
			key->was_long = true;
		return;
	}
	scan = store_scan_phone(waiting, phone, &snapshot);
	while (!gave_up && HeapTupleIsValid(tuple = store_next_of_phone(waiting, scan, &is_in_progress)))
	{
		QueueRow	row;
		Removal		names;

		CHECK_FOR_INTERRUPTS();
		store_read_waiting(waiting, tuple, &row);
		if (row.keep)
			continue;
		names.tags = names_of_array(row.tags, &names.ntags);
		names.fields = names_of_array(row.fields, &names.nfields);
		add_names(value, &names);
	}
	store_end_scan(scan);
	key = add_key(value);
	if (key)
		key->has_names = true;
}

/*
 * Called when this session has inserted a removal, in whichever command.
 */
void
phones_note_removal(const Removal *removal)
{
	uint64		phone;
	const WaitingKey *key;

	if (known_xact != my_local_xid() || known == NULL || gave_up)
		return;
	phone = phone_value(removal->phone);
	key = knows_phones ? add_key(phone) : find_key(phone);
	if (key && key->has_names)
		add_names(phone, removal);
}

/*
 * Called when this session has put removals into the table in another way: what is known
 * may lack them.
 */
void
phones_forget(void)
{
	gave_up = true;
}

static void
add_names(uint64 phone, const Removal *names)
{
	for (int i = 0; i < names->ntags; i++)
		(void) add_key(make_name_key(phone, names->tags[i], true));
	for (int i = 0; i < names->nfields; i++)
		(void) add_key(make_name_key(phone, names->fields[i], false));
}

static const WaitingKey *
find_key(uint64 key)
{
	return known ? keys_lookup(known, key) : NULL;
}

/* NULL when there are too many.  An error leaves "known" as nobody may use it. */
static WaitingKey *
add_key(uint64 key)
{
	WaitingKey *added;
	bool		found;

	if (gave_up)
		return NULL;
	gave_up = true;
	added = keys_insert(known, key, &found);
	if (!found)
		added->was_long = added->has_names = false;
	if (known->members > MOST_KEYS)
	{
		MemoryContextReset(known_context);
		known = NULL;
		return NULL;
	}
	gave_up = false;
	return added;
}

/* A tag and a custom field of the same name have different keys. */
static uint64
make_name_key(uint64 phone, const char *name, bool tag)
{
	return hash_bytes_extended((const unsigned char *) name, strlen(name), tag ? phone : ~phone) |
		UINT64CONST(1) << 63;
}

/*-------------------------------------------------------------------------
 *
 * queue/enqueue.c
 *		What users' transactions insert into the queue: removals and keeps.
 *
 * A keep holds names that a customer has again; it takes these names back from
 * the removals that were enqueued before it (see drain/customer.c).
 *
 * Users' transactions update or delete no row here, so they never wait for the
 * drainer and never fail for what it does, at any isolation level.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "account/account.h"
#include "base/extension.h"
#include "base/names.h"
#include "base/phone.h"
#include "compat.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue/customer_number.h"
#include "queue/enqueue.h"
#include "queue/history.h"
#include "queue/ids.h"
#include "queue/phones.h"
#include "queue/wakeup.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/*
 * So many rows of one statement are inserted together.  They share page locks and
 * WAL records, which saves 5 % of a statement's instructions.
 */
#define MAX_BUFFERED 256

/* When a phone has so many rows, it is worth to remember what names they have. */
#define MANY_ROWS 16

struct Queue
{
	Store		waiting;
	int			max_buffered;
	int			nbuffered;
	MemoryContext context;		/* of buffered tuples, and what follows */
	StoredColumns **columns;	/* of each buffered tuple */
	TupleTableSlot **slots;		/* a slot for each; NULL: not needed yet */
};

/* A customer that queue_add_keep() has found for a phone. */
typedef struct PhoneCustomer
{
	const QueueRow *row;		/* the first of its removals */
	bool		is_requesters;	/* of the requester's role and server? */
	bool		is_same;		/* for the names' WABA number? */
	List	   *removals;		/* QueueRow: those that count */
	List	   *own_removals;	/* those of them that this transaction
								 * enqueued */
	List	   *keeps;			/* QueueRow */
} PhoneCustomer;

static void insert_row(Queue *queue, const QueueRow *row);
static void buffer_row(Queue *queue, const QueueRow *row);
static void insert_buffered(Queue *queue);
static void insert_keep(Queue *queue, const Requester *requester, const PhoneCustomer *customer,
						const Removal *kept);
static List *read_customers_of_phone(Queue *queue, const Requester *requester,
									 const Removal *names);
static bool is_own_removal(HeapTuple tuple, const QueueRow *row);
static PhoneCustomer *find_customer(List *customers, const QueueRow *row);
static PhoneCustomer *make_customer(const QueueRow *row, const Requester *requester,
									const Removal *names);
static bool has_same_waba(const QueueRow *removal, const Requester *requester,
						  const Removal *names);
static int	intersect_with_waiting(const char **names, int nnames, const PhoneCustomer *customer,
								   bool tags);
static void leave_out_enqueued(Removal *lost, const PhoneCustomer *customer,
							   const Requester *requester);
static const char **names_left(const PhoneCustomer *customer, const QueueRow *removal, bool tags,
							   int *nnames);
static const char **names_of_row(const QueueRow *row, bool tags, int *nnames);

/*
 * Called by the SQL functions that write the queue: raises an error if they may not.
 */
void
queue_check_writable(const char *command)
{
	extension_check_version();

	/*
	 * On a standby each transaction is read-only, too: say what it comes
	 * from.
	 */
	PreventCommandDuringRecovery(command);
	PreventCommandIfReadOnly(command);
	PreventCommandIfParallelMode(command);
}

/*
 * Opens the queue for about "nrows" removals and keeps; with 1, none is buffered.
 * Those that are buffered get into the table when the queue is closed at the latest.
 * Until then not even queue_add_keep() sees them, so the caller adds a customer's
 * keeps before its removals.
 */
Queue *
queue_open(int64 nrows)
{
	Queue	   *queue = palloc0(sizeof(Queue));

	store_open(&queue->waiting, RELATION_WAITING);
	queue->max_buffered = Min(nrows, MAX_BUFFERED);

	/*
	 * Nobody else's index may need a column whose value is gone when the
	 * buffered rows are inserted.
	 */
	if (!queue->waiting.indexes_are_cached)
		queue->max_buffered = 1;
	if (queue->max_buffered > 1)
	{
		queue->columns = palloc(sizeof(StoredColumns *) * queue->max_buffered);
		queue->slots = palloc0(sizeof(TupleTableSlot *) * queue->max_buffered);
		queue->context = AllocSetContextCreate(CurrentMemoryContext, "doubletick queue",
											   ALLOCSET_DEFAULT_SIZES);
	}
	return queue;
}

/*
 * Inserts what is buffered, and closes the queue.
 */
void
queue_close(Queue *queue)
{
	if (queue->context)
	{
		insert_buffered(queue);
		for (int i = 0; i < queue->max_buffered && queue->slots[i]; i++)
			ExecDropSingleTupleTableSlot(queue->slots[i]);
		MemoryContextDelete(queue->context);
		pfree(queue->columns);
		pfree(queue->slots);
	}
	store_close(&queue->waiting);
	pfree(queue);
}

/*
 * Enqueues a removal that payload_check() has passed, or would pass.  Returns its
 * id.
 */
int64
queue_add_removal(Queue *queue, const Requester *requester, const Removal *removal)
{
	QueueRow	row;

	queue_make_row(&row, requester, removal);
	insert_row(queue, &row);
	phones_note_removal(removal);
	wake_worker_at_commit();
	return row.id;
}

/* Inserts a row now, or later together with others. */
static void
insert_row(Queue *queue, const QueueRow *row)
{
	if (queue->max_buffered > 1)
		buffer_row(queue, row);
	else
		store_insert_waiting(&queue->waiting, row);
}

static void
buffer_row(Queue *queue, const QueueRow *row)
{
	MemoryContext caller = MemoryContextSwitchTo(queue->context);
	StoredColumns *columns = palloc(sizeof(StoredColumns));
	HeapTuple	tuple = store_form_waiting(&queue->waiting, row, columns);
	int			n = queue->nbuffered++;

	queue->columns[n] = columns;
	MemoryContextSwitchTo(GetMemoryChunkContext(queue));
	if (queue->slots[n] == NULL)
		queue->slots[n] = MakeSingleTupleTableSlot(RelationGetDescr(queue->waiting.rel),
												   &TTSOpsHeapTuple);
	MemoryContextSwitchTo(caller);
	ExecStoreHeapTuple(tuple, queue->slots[n], false);
	if (queue->nbuffered == queue->max_buffered)
		insert_buffered(queue);
}

static void
insert_buffered(Queue *queue)
{
	MemoryContext caller = MemoryContextSwitchTo(queue->context);

	CHECK_FOR_INTERRUPTS();
	store_insert_slots(&queue->waiting, queue->slots, queue->columns, queue->nbuffered);
	for (int i = 0; i < queue->nbuffered; i++)
		ExecClearTuple(queue->slots[i]);
	queue->nbuffered = 0;
	MemoryContextSwitchTo(caller);
	MemoryContextReset(queue->context);
}

/*
 * Called by the trigger for a row that has names: may a removal wait for its phone?  If
 * not, a keep would have nothing to take back.
 */
bool
queue_may_have_waiting(Queue *queue, const char *phone)
{
	return phones_may_have_waiting(&queue->waiting, phone);
}

/*
 * Called by the trigger before queue_add_keep(), if a removal may wait for the phone: may
 * one of these names be in it?
 */
bool
queue_may_have_names(const Removal *names)
{
	return phones_may_have_names(names);
}

/*
 * Called by the trigger and dt_keep(): a customer has these names again, so waiting
 * removals of them must not be sent.  Leaves in "names" those that a waiting removal has,
 * and inserts no keep when there are none.
 *
 * Two kinds of removals for the same phone and WABA number count.  Those of the
 * requester's role and server, whoever has enqueued them.  And those of the
 * requester's origin, whatever their role and server: the table had another owner
 * then, or its trigger named another server.  Other removals are nobody's but their
 * role's.  Each customer that has such removals gets a keep of its own.
 *
 * Of another transaction in progress, removals count, since it may commit, and keeps
 * do not, since it may roll back.  No predicate lock is taken, so that no serializable
 * transaction fails for this.
 *
 * "lost" may be NULL, or has names that the requester will enqueue next, none of which
 * is among the others: leaves out those that it has enqueued before in this transaction.
 */
void
queue_add_keep(Queue *queue, const Requester *requester, Removal *names, Removal *lost)
{
	List	   *customers = read_customers_of_phone(queue, requester, names);
	Removal		all = {0};
	ListCell   *cell;

	foreach(cell, customers)
	{
		const PhoneCustomer *customer = lfirst(cell);
		Removal		kept = *names;

		if (lost)
			leave_out_enqueued(lost, customer, requester);
		kept.waba = customer->row->waba;
		kept.tags = names_copy(names->tags, names->ntags);
		kept.ntags = intersect_with_waiting(kept.tags, kept.ntags, customer, true);
		kept.fields = names_copy(names->fields, names->nfields);
		kept.nfields = intersect_with_waiting(kept.fields, kept.nfields, customer, false);
		if (payload_is_empty(&kept))
			continue;
		insert_keep(queue, requester, customer, &kept);
		names_append_copy(&all.tags, &all.ntags, kept.tags, kept.ntags);
		names_append_copy(&all.fields, &all.nfields, kept.fields, kept.nfields);
	}
	names->ntags = names_intersect(names->tags, names->ntags, all.tags, all.ntags);
	names->nfields = names_intersect(names->fields, names->nfields, all.fields, all.nfields);
}

/* A keep for customers of other roles or servers spares what others have enqueued. */
static void
insert_keep(Queue *queue, const Requester *requester, const PhoneCustomer *customer,
			const Removal *kept)
{
	Requester	as = *requester;
	QueueRow	keep;
	int64		greatest = 0;
	ListCell   *cell;

	as.server = customer->row->server;
	as.role = customer->row->role;
	if (customer->is_requesters)
		as.origin = 0;
	queue_make_row(&keep, &as, kept);
	keep.keep = true;

	/*
	 * Somebody may have set the sequence back; PostgreSQL 19 replicates
	 * sequences.  A keep takes back only what has lower ids.
	 */
	foreach(cell, customer->removals)
		greatest = Max(greatest, ((QueueRow *) lfirst(cell))->id);
	if (keep.id <= greatest)
	{
		ids_advance(greatest);
		keep.id = keep.ord = ids_next();
	}
	insert_row(queue, &keep);
}

/*
 * Reads the customers with this phone, and of each the removals that count.  Leaves out
 * keeps that another transaction may roll back.  In the index, a customer's removals
 * come before its keeps.
 */
static List *
read_customers_of_phone(Queue *queue, const Requester *requester, const Removal *names)
{
	Store	   *waiting = &queue->waiting;
	TupleDesc	desc = RelationGetDescr(waiting->rel);
	List	   *customers = NIL;
	SnapshotData snapshot;
	SysScanDesc scan = store_scan_phone(waiting, names->phone, &snapshot);
	HeapTuple	tuple;
	bool		is_in_progress;
	int			nrows = 0;

	while (HeapTupleIsValid(tuple = store_next_of_phone(waiting, scan, &is_in_progress)))
	{
		bool		isnull;
		bool		is_keep = DatumGetBool(heap_getattr(tuple, WAITING_KEEP, desc, &isnull));
		Oid			role = DatumGetObjectId(heap_getattr(tuple, WAITING_ROLE, desc, &isnull));
		int64		origin = DatumGetInt64(heap_getattr(tuple, WAITING_ORIGIN, desc, &isnull));
		QueueRow   *row;
		PhoneCustomer *customer;

		CHECK_FOR_INTERRUPTS();
		nrows++;
		if (is_keep ? customers == NIL || is_in_progress :
			role != requester->role && (isnull || origin != requester->origin))
			continue;
		row = palloc(sizeof(QueueRow));
		store_read_waiting(waiting, tuple, row);
		customer = find_customer(customers, row);
		if (is_keep && customer)
			customer->keeps = lappend(customer->keeps, row);
		if (is_keep)
			continue;
		if (customer == NULL)
		{
			customer = make_customer(row, requester, names);
			customers = lappend(customers, customer);
		}
		if (!customer->is_same ||
			!(customer->is_requesters || (row->origin != 0 && row->origin == requester->origin)))
			continue;
		customer->removals = lappend(customer->removals, row);
		if (is_own_removal(tuple, row))
			customer->own_removals = lappend(customer->own_removals, row);
	}
	store_end_scan(scan);
	if (nrows >= MANY_ROWS)
	{
		/* What is buffered waits, too. */
		if (queue->context)
			insert_buffered(queue);
		phones_learn_names(waiting, names->phone);
	}
	return customers;
}

/*
 * Has this transaction enqueued the removal?  The number in "xact" may be that of a
 * transaction of another server, from which the row was replicated or restored.
 */
static bool
is_own_removal(HeapTuple tuple, const QueueRow *row)
{
	return row->xact == (int64) U64FromFullTransactionId(GetTopFullTransactionIdIfAny()) &&
		!row->replicated &&
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
}

/* Those with the same number were added last. */
static PhoneCustomer *
find_customer(List *customers, const QueueRow *row)
{
	for (int i = list_length(customers) - 1; i >= 0; i--)
	{
		PhoneCustomer *customer = list_nth(customers, i);

		if (customer->row->customer != row->customer)
			break;
		if (store_is_same_customer(customer->row, row))
			return customer;
	}
	return NULL;
}

static PhoneCustomer *
make_customer(const QueueRow *row, const Requester *requester, const Removal *names)
{
	PhoneCustomer *customer = palloc0(sizeof(PhoneCustomer));

	customer->row = row;
	customer->is_requesters = row->role == requester->role &&
		strcmp(row->server, requester->server) == 0;
	customer->is_same = has_same_waba(row, requester, names);
	return customer;
}

/*
 * Are the names and the removal for the same WABA number, given or the server's own?
 * A server that does not exist may have been renamed: then the other's number stands
 * for its own.
 */
static bool
has_same_waba(const QueueRow *removal, const Requester *requester, const Removal *names)
{
	const char *waba = removal->waba ? removal->waba : names->waba;
	const char *server = removal->waba ? requester->server : removal->server;
	const char *other_server = removal->waba ? removal->server : requester->server;
	const char *own;

	if (phone_equal(removal->waba, names->waba))
		return true;
	if (removal->waba && names->waba)
		return false;
	/* One of them is NULL, and means its server's own. */
	if (!account_find_waba(server, &own))
		(void) account_find_waba(other_server, &own);
	return phone_equal(waba, own);
}

/*
 * Leaves only the names that a removal has and that no keep takes back from it.  The
 * names are compared with those of all removals at once: these may be very many.
 */
static int
intersect_with_waiting(const char **names, int nnames, const PhoneCustomer *customer, bool tags)
{
	const char **all = NULL;
	int			nall = 0;
	ListCell   *cell;

	if (nnames == 0)
		return 0;
	foreach(cell, customer->removals)
	{
		int			nwaiting;
		const char **waiting = names_left(customer, lfirst(cell), tags, &nwaiting);

		CHECK_FOR_INTERRUPTS();
		names_append_copy(&all, &nall, waiting, nwaiting);
	}
	return names_intersect(names, nnames, all, nall);
}

/*
 * Thousands of rows of one phone that lose the same name in one transaction enqueue it
 * once: else each would look for names to keep in the removals of all before it.
 *
 * A name must be enqueued again when a keep has taken it back.  The keep of another
 * transaction in progress may come to take back the first removal, and then no second
 * one follows.  But that transaction's row has the name, and this one's row lost it
 * without waiting for that transaction.
 */
static void
leave_out_enqueued(Removal *lost, const PhoneCustomer *customer, const Requester *requester)
{
	ListCell   *cell;

	if (payload_is_empty(lost) || !customer->is_requesters ||
		!phone_equal(lost->phone, customer->row->phone) ||
		!phone_equal(lost->waba, customer->row->waba))
		return;
	foreach(cell, customer->own_removals)
	{
		const QueueRow *removal = lfirst(cell);
		const char **names;
		int			nnames;

		if (removal->origin != requester->origin || removal->enqueued_by != requester->enqueued_by)
			continue;
		names = names_left(customer, removal, true, &nnames);
		lost->ntags = names_subtract(lost->tags, lost->ntags, names, nnames);
		names = names_left(customer, removal, false, &nnames);
		lost->nfields = names_subtract(lost->fields, lost->nfields, names, nnames);
	}
}

/* Those names of a removal that no keep takes back from it. */
static const char **
names_left(const PhoneCustomer *customer, const QueueRow *removal, bool tags, int *nnames)
{
	const char **names = names_of_row(removal, tags, nnames);
	ListCell   *cell;

	foreach(cell, customer->keeps)
	{
		const QueueRow *keep = lfirst(cell);
		const char **kept;
		int			nkept;

		if (!store_takes_back(keep, removal))
			continue;
		kept = names_of_row(keep, tags, &nkept);
		*nnames = names_subtract(names, *nnames, kept, nkept);
	}
	return names;
}

static const char **
names_of_row(const QueueRow *row, bool tags, int *nnames)
{
	return names_of_array(tags ? row->tags : row->fields, nnames);
}

/*
 * Inserts a removal that can never be sent into the history, as failed.  Returns its
 * id.
 */
int64
queue_add_failed(const Requester *requester, const Removal *removal, const char *error)
{
	Store		settled;
	QueueRow	row = {0};

	row.id = ids_next();
	row.enqueued_at = GetCurrentTimestamp();
	row.role = requester->role;
	row.enqueued_by = requester->enqueued_by;
	row.origin = requester->origin;
	row.server = requester->server;
	row.phone = removal->phone ? removal->phone : "";
	row.waba = removal->waba;
	row.tags = names_to_array(removal->tags, removal->ntags);
	row.fields = names_to_array(removal->fields, removal->nfields);
	store_open(&settled, RELATION_SETTLED);
	history_insert(&settled, &row, STATE_FAILED, NULL, error);
	store_close(&settled);
	return row.id;
}

/*
 * Makes a marker row, which has the drainer look at the waiting row "row", perhaps
 * again: an empty keep with a new id, whose "ord" is that row's id.
 */
void
queue_make_marker(QueueRow *marker, const QueueRow *row)
{
	Requester	requester = {.server = row->server,.role = row->role,.enqueued_by = row->enqueued_by};
	Removal		nothing = {.phone = row->phone,.waba = row->waba};

	queue_make_row(marker, &requester, &nothing);
	marker->keep = true;
	marker->ord = row->id;
}

/*
 * Makes a row of a removal, with a new id.
 */
void
queue_make_row(QueueRow *row, const Requester *requester, const Removal *removal)
{
	memset(row, 0, sizeof(QueueRow));

	/*
	 * The drainer relies on this order: a transaction's ids are larger than
	 * all that were given out before it got its xid (see drain/discover.c).
	 */
	row->xact = (int64) U64FromFullTransactionId(GetTopFullTransactionId());
	row->id = ids_next();
	row->ord = row->id;
	row->customer = customer_number(requester->server, requester->role, removal->phone,
									removal->waba);
	row->enqueued_at = GetCurrentTimestamp();
	row->due_at = row->enqueued_at + requester->delay;
	row->role = requester->role;
	row->enqueued_by = requester->enqueued_by;
	row->origin = requester->origin;
	row->server = requester->server;
	row->phone = removal->phone;
	row->waba = removal->waba;
	row->tags = names_to_array(removal->tags, removal->ntags);
	row->fields = names_to_array(removal->fields, removal->nfields);
}

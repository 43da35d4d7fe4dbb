/*-------------------------------------------------------------------------
 *
 * statement.c
 *		The trigger at statement level.
 *
 * What counts is what the statement's old and new rows say of a customer, however
 * many rows that are: lost is what old rows have and no new row has.  How many
 * rows have a name matters for what the transaction has gained (gains.c).
 *
 * An UPDATE's two tables have their rows in the same order, or nearly.  Two rows
 * in the same place that say the same add nothing to what is lost, and are
 * skipped, so that only customers with changed rows take memory: about half a
 * kilobyte each.  If some of those have lost something, a second pass over the new
 * rows sees what the rows that were skipped have still.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "change.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "gains.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "names.h"
#include "statement.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

/* Bytes that customers may take before those of a DELETE are entered. */
#define MOST_MEMORY (64 * 1024 * 1024)

/*
 * What old and new rows say of a customer: repeated names for each row, until
 * compare() has made of "old" what was lost, each name once.
 */
typedef struct Customer
{
	dlist_node	node;
	Removal		old;			/* has the numbers of the first row */
	Removal		new;
	Removal    *gained;			/* new, but not old, for each row; NULL: none */
} Customer;

typedef struct CustomerEntry
{
	const Removal *number;		/* "old" of a Customer, for its phone and waba */
	uint32		hash;
	char		status;
} CustomerEntry;

static uint32 hash_customer(const Removal *number);

#define SH_PREFIX customers
#define SH_ELEMENT_TYPE CustomerEntry
#define SH_KEY_TYPE const Removal *
#define SH_KEY number
#define SH_HASH_KEY(tb, key) hash_customer(key)
#define SH_EQUAL(tb, a, b) change_is_same_customer((a), (b))
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* A statement at work. */
typedef struct Statement
{
	Definition *definition;
	MemoryContext context;		/* of customers */
	MemoryContext row_context;	/* of the row at hand */
	customers_hash *customers;
	dlist_head	order;			/* the same, the first seen first */
	bool		any_lost;
	bool		any_skipped;
} Statement;

/* A transition table being read. */
typedef struct Rows
{
	Tuplestorestate *store;
	int			pointer;
	TupleTableSlot *slot;
} Rows;

static void start(Statement *statement, Definition *definition);
static void forget(Statement *statement);
static void update(Statement *statement, Rows *old, Rows *new);
static void delete(Statement *statement, Rows *old);
static void insert(Statement *statement, Rows *new);
static Rows rows_open(const TriggerData *data, Tuplestorestate *store);
static bool rows_next(Rows *rows);
static void rows_rewind(Rows *rows);
static void rows_close(Rows *rows);
static void add(Statement *statement, Rows *rows, bool is_new);
static Customer *make_customer(const Removal *number);
static void compare(Statement *statement);
static Removal *gained_by(Statement *statement, const Customer *customer);
static void subtract_skipped(Statement *statement, Rows *new);
static void enter(Statement *statement);
static Customer *customer_of(const Removal *old);

/*
 * A trigger for each statement has fired: enters what its customers have lost,
 * and keeps what they have.
 */
void
statement_fired(Definition *definition, const TriggerData *data)
{
	Statement	statement;
	Rows		old = {0};
	Rows		new = {0};

	start(&statement, definition);
	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
	{
		new = rows_open(data, data->tg_newtable);
		insert(&statement, &new);
	}
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
	{
		old = rows_open(data, data->tg_oldtable);
		delete(&statement, &old);
	}
	else
	{
		old = rows_open(data, data->tg_oldtable);
		new = rows_open(data, data->tg_newtable);
		update(&statement, &old, &new);
	}
	rows_close(&old);
	rows_close(&new);
	MemoryContextDelete(statement.context);
}

static void
start(Statement *statement, Definition *definition)
{
	memset(statement, 0, sizeof(Statement));
	statement->definition = definition;
	/* Packed: nothing of it is freed before all of it is. */
	statement->context = GenerationContextCreate(CurrentMemoryContext, "doubletick statement",
												 ALLOCSET_DEFAULT_SIZES);
	forget(statement);
}

/* Of all customers. */
static void
forget(Statement *statement)
{
	MemoryContextReset(statement->context);
	statement->row_context = AllocSetContextCreate(statement->context, "doubletick row",
												   ALLOCSET_DEFAULT_SIZES);
	statement->customers = customers_create(statement->context, 64, NULL);
	dlist_init(&statement->order);
}

static void
update(Statement *statement, Rows *old, Rows *new)
{
	for (;;)
	{
		bool		has_old = rows_next(old);
		bool		has_new = rows_next(new);

		CHECK_FOR_INTERRUPTS();
		if (!has_old && !has_new)
			break;
		if (has_old && has_new && columns_equal(&statement->definition->columns, old->slot, new->slot))
		{
			statement->any_skipped = true;
			continue;
		}
		if (has_old)
			add(statement, old, false);
		if (has_new)
			add(statement, new, true);
	}
	compare(statement);
	if (statement->any_lost && statement->any_skipped)
		subtract_skipped(statement, new);
	enter(statement);
}

/* Entered in portions: a removal of what two portions have is sent once anyway. */
static void
delete(Statement *statement, Rows *old)
{
	while (rows_next(old))
	{
		CHECK_FOR_INTERRUPTS();
		add(statement, old, false);
		if (MemoryContextMemAllocated(statement->context, true) > MOST_MEMORY)
		{
			compare(statement);
			enter(statement);
			forget(statement);
		}
	}
	compare(statement);
	enter(statement);
}

/* Row by row: nothing is lost, and to keep twice does no harm. */
static void
insert(Statement *statement, Rows *new)
{
	Columns    *columns = &statement->definition->columns;
	Queue	   *queue = queue_open(tuplestore_tuple_count(new->store));

	while (rows_next(new))
	{
		MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
		Removal		row;

		CHECK_FOR_INTERRUPTS();
		columns_read_customer(columns, new->slot, &row);
		columns_read_names(columns, new->slot, &row);
		change_row(queue, &statement->definition->requester, NULL, &row, true);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
	queue_close(queue);
}

/* Other triggers read the same table, each from a place of its own. */
static Rows
rows_open(const TriggerData *data, Tuplestorestate *store)
{
	Rows		rows;

	rows.store = store;
	rows.pointer = tuplestore_alloc_read_pointer(store, EXEC_FLAG_REWIND);
	rows.slot = MakeSingleTupleTableSlot(RelationGetDescr(data->tg_relation), &TTSOpsMinimalTuple);
	rows_rewind(&rows);
	return rows;
}

static bool
rows_next(Rows *rows)
{
	tuplestore_select_read_pointer(rows->store, rows->pointer);
	return tuplestore_gettupleslot(rows->store, true, false, rows->slot);
}

static void
rows_rewind(Rows *rows)
{
	tuplestore_select_read_pointer(rows->store, rows->pointer);
	tuplestore_rescan(rows->store);
}

static void
rows_close(Rows *rows)
{
	if (rows->slot)
		ExecDropSingleTupleTableSlot(rows->slot);
}

/* Adds what a row says to what is known of its customer. */
static void
add(Statement *statement, Rows *rows, bool is_new)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
	Columns    *columns = &statement->definition->columns;
	CustomerEntry *entry;
	Customer   *customer;
	Removal		row;
	Removal    *side;
	bool		found;

	columns_read_customer(columns, rows->slot, &row);
	columns_read_names(columns, rows->slot, &row);
	MemoryContextSwitchTo(statement->context);
	if (row.ntags > 0 || row.nfields > 0)
	{
		entry = customers_insert(statement->customers, &row, &found);
		if (!found)
		{
			customer = make_customer(&row);
			dlist_push_tail(&statement->order, &customer->node);
			entry->number = &customer->old;
		}
		customer = customer_of(entry->number);
		side = is_new ? &customer->new : &customer->old;
		names_append_copy(&side->tags, &side->ntags, row.tags, row.ntags);
		names_append_copy(&side->fields, &side->nfields, row.fields, row.nfields);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(statement->row_context);
}

/* With its numbers in one piece: there may be very many. */
static Customer *
make_customer(const Removal *number)
{
	Size		phone_size = strlen(number->phone) + 1;
	Size		waba_size = number->waba ? strlen(number->waba) + 1 : 0;
	Customer   *customer = palloc_extended(sizeof(Customer) + phone_size + waba_size,
										   MCXT_ALLOC_HUGE);
	char	   *phone = (char *) (customer + 1);

	memset(customer, 0, sizeof(Customer));
	customer->old.phone = customer->new.phone = memcpy(phone, number->phone, phone_size);
	if (number->waba)
		customer->old.waba = customer->new.waba = memcpy(phone + phone_size, number->waba, waba_size);
	return customer;
}

/* Leaves in "old" what was lost, as far as is known. */
static void
compare(Statement *statement)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->context);
	dlist_iter	iter;

	dlist_foreach(iter, &statement->order)
	{
		Customer   *customer = dlist_container(Customer, node, iter.cur);
		Removal    *old = &customer->old;
		Removal    *new = &customer->new;

		customer->gained = gained_by(statement, customer);
		old->ntags = names_subtract_each(old->tags, old->ntags, new->tags, new->ntags);
		old->nfields = names_subtract_each(old->fields, old->nfields, new->fields, new->nfields);
		gains_cover(&statement->definition->requester, old, true);

		old->ntags = names_distinct(old->tags, old->ntags);
		old->nfields = names_distinct(old->fields, old->nfields);
		new->ntags = names_distinct(new->tags, new->ntags);
		new->nfields = names_distinct(new->fields, new->nfields);
		change_subtract(old, new);
		statement->any_lost = statement->any_lost || old->ntags > 0 || old->nfields > 0;
	}
	MemoryContextSwitchTo(caller);
}

/* Most have gained nothing, and take no memory for it. */
static Removal *
gained_by(Statement *statement, const Customer *customer)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
	const Removal *old = &customer->old;
	Removal		gained = change_copy(&customer->new);
	Removal    *result = NULL;

	gained.ntags = names_subtract_each(gained.tags, gained.ntags, old->tags, old->ntags);
	gained.nfields = names_subtract_each(gained.fields, gained.nfields, old->fields, old->nfields);
	MemoryContextSwitchTo(caller);
	if (gained.ntags > 0 || gained.nfields > 0)
	{
		result = palloc(sizeof(Removal));
		*result = change_copy(&gained);
	}
	MemoryContextReset(statement->row_context);
	return result;
}

/* Of new rows those that were skipped matter; the others do no harm. */
static void
subtract_skipped(Statement *statement, Rows *new)
{
	Columns    *columns = &statement->definition->columns;

	rows_rewind(new);
	while (rows_next(new))
	{
		MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
		CustomerEntry *entry = NULL;
		Removal		row;

		CHECK_FOR_INTERRUPTS();
		columns_read_customer(columns, new->slot, &row);
		if (row.phone)
			entry = customers_lookup(statement->customers, &row);
		if (entry && (entry->number->ntags > 0 || entry->number->nfields > 0))
		{
			columns_read_names(columns, new->slot, &row);
			change_subtract(&customer_of(entry->number)->old, &row);
		}
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
}

static void
enter(Statement *statement)
{
	const Requester *requester = &statement->definition->requester;
	Queue	   *queue = queue_open(statement->customers->members);
	dlist_iter	iter;

	dlist_foreach(iter, &statement->order)
	{
		Customer   *customer = dlist_container(Customer, node, iter.cur);
		MemoryContext caller = MemoryContextSwitchTo(statement->row_context);

		CHECK_FOR_INTERRUPTS();
		if (customer->new.ntags > 0 || customer->new.nfields > 0)
			change_keep(queue, requester, &customer->new, customer->gained);
		change_remove(queue, requester, &customer->old);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
	queue_close(queue);
}

static Customer *
customer_of(const Removal *old)
{
	return (Customer *) ((char *) unconstify(Removal *, old) - offsetof(Customer, old));
}

/* Without a leading "+", as change_is_same_customer() compares. */
static uint32
hash_customer(const Removal *number)
{
	const char *phone = number->phone + (*number->phone == '+');

	return hash_bytes((const unsigned char *) phone, strlen(phone));
}

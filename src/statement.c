/*-------------------------------------------------------------------------
 *
 * statement.c
 *		The trigger at statement level.
 *
 * What counts is what the statement's old and new rows say of a customer, however
 * many rows that are: lost is what old rows have and no new row has.
 *
 * An UPDATE's two tables have a row's old and new in the same place, unless a
 * trigger of a partition has dropped what moved there; then there are more old
 * ones.  Two in the same place that say the same add nothing to what is lost, and
 * are skipped, so that only customers with changed rows take memory: about half a
 * kilobyte each.  If some of those have lost something, a second pass over the new
 * rows sees what the rows that were skipped have still.
 *
 * What rows have gained (gains.c) goes by their key, for a row in a transition
 * table has no place.  No two rows have the same at any time: when a new row is
 * added that has it, the old one has been.
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

/* What old and new rows say of a customer. */
typedef struct Customer
{
	dlist_node	node;
	Removal		lost;			/* has the numbers of the first row; names of
								 * each row, and then each once */
	Removal		new;
	int			nrows;
} Customer;

typedef struct CustomerEntry
{
	const Removal *number;		/* "lost" of a Customer, for its phone and
								 * waba */
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
static void add_pairs(Statement *statement, Rows *old, Rows *new);
static bool is_same_row(Statement *statement, Rows *old, Rows *new);
static void add(Statement *statement, Rows *old, Rows *new);
static Removal *read_row(Statement *statement, Rows *rows, Removal *row);
static uint32 row_number(Statement *statement, Rows *rows);
static Customer *customer_for(Statement *statement, const Removal *number, Customer *likely);
static Customer *make_customer(const Removal *number);
static void append(Removal *names, const Removal *others);
static void compare(Statement *statement);
static void compare_rows(Statement *statement, Customer *customer);
static void owe_subtracted(Statement *statement, const Customer *customer);
static void subtract_skipped(Statement *statement, Rows *new);
static void enter(Statement *statement);
static Customer *customer_of(const Removal *lost);

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
	if (tuplestore_tuple_count(old->store) == tuplestore_tuple_count(new->store))
		add_pairs(statement, old, new);
	else
	{
		while (rows_next(old))
			add(statement, old, NULL);
		while (rows_next(new))
			add(statement, NULL, new);
	}
	compare(statement);
	if (statement->any_lost && statement->any_skipped)
		subtract_skipped(statement, new);
	enter(statement);
}

static void
add_pairs(Statement *statement, Rows *old, Rows *new)
{
	while (rows_next(old) && rows_next(new))
	{
		if (is_same_row(statement, old, new))
			statement->any_skipped = true;
		else
			add(statement, old, new);
	}
}

/* Where rows have gained something, their keys matter, too. */
static bool
is_same_row(Statement *statement, Rows *old, Rows *new)
{
	return columns_equal(&statement->definition->columns, old->slot, new->slot) &&
		(!gains_any() || row_number(statement, old) == row_number(statement, new));
}

/* Entered in portions: a removal of what two portions have is sent once anyway. */
static void
delete(Statement *statement, Rows *old)
{
	while (rows_next(old))
	{
		add(statement, old, NULL);
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

		columns_read_customer(columns, new->slot, &row);
		columns_read_names(columns, new->slot, &row);
		change_row(queue, &statement->definition->requester, NULL, 0, &row, row_number(statement, new));
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
	CHECK_FOR_INTERRUPTS();
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

/* Adds what a row said and says, NULL where there is none. */
static void
add(Statement *statement, Rows *old, Rows *new)
{
	const Requester *requester = &statement->definition->requester;
	MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
	uint32		old_row = row_number(statement, old);
	uint32		new_row = row_number(statement, new);
	Removal		had;
	Removal		has = {0};
	Removal		lost = {0};
	Removal		gained = {0};
	Customer   *customer = NULL;

	change_compare(requester, read_row(statement, old, &had), old_row,
				   read_row(statement, new, &has), new_row, &lost, &gained);
	gains_add(requester, &gained, new_row);
	gains_cover(requester, &lost, old_row);
	MemoryContextSwitchTo(statement->context);
	if (!payload_is_empty(&lost))
	{
		customer = customer_for(statement, &lost, NULL);
		append(&customer->lost, &lost);
	}
	if (!payload_is_empty(&has))
	{
		customer = customer_for(statement, &has, customer);
		append(&customer->new, &has);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(statement->row_context);
}

static Removal *
read_row(Statement *statement, Rows *rows, Removal *row)
{
	Columns    *columns = &statement->definition->columns;

	if (rows == NULL)
		return NULL;
	columns_read_customer(columns, rows->slot, row);
	columns_read_names(columns, rows->slot, row);
	return row;
}

/* By its key. */
static uint32
row_number(Statement *statement, Rows *rows)
{
	if (rows == NULL)
		return GAINS_ANY_ROW;
	return Max(columns_hash_key(&statement->definition->columns, rows->slot), GAINS_ANY_ROW);
}

/* Whose row it is; "likely" is the customer whose row it was, if it was one's. */
static Customer *
customer_for(Statement *statement, const Removal *number, Customer *likely)
{
	CustomerEntry *entry;
	Customer   *customer;
	bool		found;

	if (likely && change_is_same_customer(&likely->lost, number))
		return likely;
	entry = customers_insert(statement->customers, number, &found);
	if (!found)
	{
		customer = make_customer(number);
		dlist_push_tail(&statement->order, &customer->node);
		entry->number = &customer->lost;
	}
	customer = customer_of(entry->number);
	customer->nrows++;
	return customer;
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
	customer->lost.phone = customer->new.phone = memcpy(phone, number->phone, phone_size);
	if (number->waba)
		customer->lost.waba = customer->new.waba = memcpy(phone + phone_size, number->waba, waba_size);
	return customer;
}

static void
append(Removal *names, const Removal *others)
{
	names_append_copy(&names->tags, &names->ntags, others->tags, others->ntags);
	names_append_copy(&names->fields, &names->nfields, others->fields, others->nfields);
}

/* Leaves of what was lost what no new row has, as far as is known. */
static void
compare(Statement *statement)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->context);
	dlist_iter	iter;

	dlist_foreach(iter, &statement->order)
	{
		Customer   *customer = dlist_container(Customer, node, iter.cur);

		if (customer->nrows > 1)
			compare_rows(statement, customer);
		statement->any_lost = statement->any_lost || !payload_is_empty(&customer->lost);
	}
	MemoryContextSwitchTo(caller);
}

static void
compare_rows(Statement *statement, Customer *customer)
{
	Removal    *lost = &customer->lost;
	Removal    *new = &customer->new;

	lost->ntags = names_distinct(lost->tags, lost->ntags);
	lost->nfields = names_distinct(lost->fields, lost->nfields);
	new->ntags = names_distinct(new->tags, new->ntags);
	new->nfields = names_distinct(new->fields, new->nfields);
	if (gains_any())
		owe_subtracted(statement, customer);
	change_subtract(lost, new);
}

/* Where what is there still was gained, a removal is owed when it goes. */
static void
owe_subtracted(Statement *statement, const Customer *customer)
{
	Removal		there = change_copy(&customer->lost);

	change_intersect(&there, &customer->new);
	gains_owe(&statement->definition->requester, &there);
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

		columns_read_customer(columns, new->slot, &row);
		if (row.phone)
			entry = customers_lookup(statement->customers, &row);
		if (entry && !payload_is_empty(entry->number))
		{
			columns_read_names(columns, new->slot, &row);
			change_subtract(&customer_of(entry->number)->lost, &row);
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
		change_keep(queue, requester, &customer->new);
		change_remove(queue, requester, &customer->lost);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
	queue_close(queue);
}

static Customer *
customer_of(const Removal *lost)
{
	return (Customer *) ((char *) unconstify(Removal *, lost) - offsetof(Customer, lost));
}

/* Without a leading "+", as change_is_same_customer() compares. */
static uint32
hash_customer(const Removal *number)
{
	const char *phone = number->phone + (*number->phone == '+');

	return hash_bytes((const unsigned char *) phone, strlen(phone));
}

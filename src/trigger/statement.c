/*-------------------------------------------------------------------------
 *
 * trigger/statement.c
 *		The trigger at statement level.
 *
 * What counts is what the statement's old and new rows say of a customer, however
 * many rows that are: lost is what old rows have and no new row has.
 *
 * An UPDATE's two tables have a row's old and new in the same place, unless a
 * trigger of a partition has dropped what moved there; then there are more old
 * ones.  Two in the same place that say the same are skipped, and of the others
 * what is lost is collected: only customers that have lost something, or for which
 * something may wait, take memory, about 200 bytes each.  A second pass over the
 * new rows takes out what others have; it is saved where there are none.
 *
 * What rows have gained (gains.c) goes by their key, for a row in a transition
 * table has no place.  An UPDATE may give a row the key that another is about to
 * leave: so whoever changes its key has a number of its own until all are done.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "base/phone.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "trigger/difference.h"
#include "trigger/gains.h"
#include "trigger/statement.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

/* Bytes that customers may take before those of an INSERT or a DELETE are entered. */
#define MOST_MEMORY (64 * 1024 * 1024)

/* Names lost by a customer from which on what is there is put by. */
#define MANY_NAMES 32

/*
 * A row's number while others may have yet to leave the one that it is to have; no
 * row's own, but by chance.
 */
#define BETWEEN(number) Max((number) ^ 0x5bd1e995, GAINS_ANY_ROW)

/* A customer that has lost something, or for which something may wait. */
typedef struct Customer
{
	dlist_node	node;
	Removal		lost;			/* names of each row, and then each once */
	Removal    *there;			/* what has been put by; NULL: nothing */
	Removal    *kept;			/* NULL: nothing */
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
#define SH_EQUAL(tb, a, b) difference_is_same_customer((a), (b))
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
	MemoryContext context;		/* of the queue */
	MemoryContext customers_context;
	MemoryContext row_context;	/* of the row at hand */
	customers_hash *customers;
	dlist_head	order;			/* the same, the first seen first */
	Queue	   *queue;			/* NULL: not needed so far */
	int64		nrows;			/* at most, that are entered */
	bool		look_again;		/* may a new row have what another has lost? */
	bool		any_between;	/* may a row's number be one between two? */
} Statement;

/* A transition table being read. */
typedef struct Rows
{
	Tuplestorestate *store;
	int			pointer;
	TupleTableSlot *slot;
} Rows;

static void start(Statement *statement, Definition *definition, int64 nrows);
static void forget(Statement *statement);
static void finish(Statement *statement);
static void update(Statement *statement, Rows *old, Rows *new);
static void add_pairs(Statement *statement, Rows *old, Rows *new);
static void settle_numbers(Statement *statement, Rows *old, Rows *new);
static bool is_same_row(Statement *statement, Rows *old, Rows *new);
static void enter_in_portions(Statement *statement, Rows *old, Rows *new);
static Rows rows_open(const TriggerData *data, Tuplestorestate *store);
static bool rows_next(Rows *rows);
static void rows_rewind(Rows *rows);
static void rows_close(Rows *rows);
static void add(Statement *statement, Rows *old, Rows *new);
static Queue *queue_of(Statement *statement);
static Removal *read_row(Statement *statement, Rows *rows, Removal *row);
static uint32 row_number(Statement *statement, Rows *rows);
static Customer *customer_for(Statement *statement, const Removal *number, bool *is_first);
static Customer *make_customer(const Removal *number);
static void append_to(Statement *statement, const Customer *customer, Removal **names,
					  const Removal *others);
static void append(Statement *statement, Removal *names, const Removal *others);
static void look_again(Statement *statement, Rows *new);
static void take_out(Statement *statement, Customer *customer, const Removal *names);
static void subtract(Statement *statement, Customer *customer, const Removal *names);
static void enter(Statement *statement);
static void enter_customer(Statement *statement, Customer *customer);
static Customer *customer_of(const Removal *lost);

/*
 * A trigger for each statement has fired: enters what its customers have lost,
 * and keeps what they have.
 */
void
statement_fired(Definition *definition, const TriggerData *data)
{
	Statement	statement;
	Rows		old;
	Rows		new;

	if (data->tg_oldtable)
		old = rows_open(data, data->tg_oldtable);
	if (data->tg_newtable)
		new = rows_open(data, data->tg_newtable);
	start(&statement, definition,
		  tuplestore_tuple_count(data->tg_oldtable ? data->tg_oldtable : data->tg_newtable));
	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		enter_in_portions(&statement, NULL, &new);
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
		enter_in_portions(&statement, &old, NULL);
	else
		update(&statement, &old, &new);
	finish(&statement);
	if (data->tg_oldtable)
		rows_close(&old);
	if (data->tg_newtable)
		rows_close(&new);
}

static void
start(Statement *statement, Definition *definition, int64 nrows)
{
	memset(statement, 0, sizeof(Statement));
	statement->definition = definition;
	statement->nrows = nrows;
	statement->context = AllocSetContextCreate(CurrentMemoryContext, "doubletick statement",
											   ALLOCSET_DEFAULT_SIZES);
	statement->row_context = AllocSetContextCreate(statement->context, "doubletick row",
												   ALLOCSET_DEFAULT_SIZES);
	/* Packed: nothing of it is freed before all of it is. */
	statement->customers_context = GenerationContextCreate(statement->context,
														   "doubletick customers",
														   ALLOCSET_DEFAULT_SIZES);
	forget(statement);
}

/* Of all customers. */
static void
forget(Statement *statement)
{
	MemoryContextReset(statement->customers_context);
	statement->customers = customers_create(statement->customers_context, 64, NULL);
	dlist_init(&statement->order);
}

static void
finish(Statement *statement)
{
	if (statement->queue)
		queue_close(statement->queue);
	MemoryContextDelete(statement->context);
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
	if (statement->look_again && statement->customers->members > 0)
		look_again(statement, new);
	enter(statement);
}

static void
add_pairs(Statement *statement, Rows *old, Rows *new)
{
	while (rows_next(old) && rows_next(new))
	{
		if (is_same_row(statement, old, new))
			statement->look_again = true;
		else
			add(statement, old, new);
	}
	if (statement->any_between && gains_any())
		settle_numbers(statement, old, new);
}

/* All rows have left their old numbers. */
static void
settle_numbers(Statement *statement, Rows *old, Rows *new)
{
	const Requester *requester = &statement->definition->requester;

	rows_rewind(old);
	rows_rewind(new);
	while (rows_next(old) && rows_next(new))
	{
		MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
		uint32		number = row_number(statement, new);
		Removal		names;

		if (number != row_number(statement, old))
		{
			read_row(statement, new, &names);
			gains_withdraw(requester, &names, BETWEEN(number));
			gains_record(requester, &names, number);
		}
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
}

/* Where rows have gained something, their keys matter, too. */
static bool
is_same_row(Statement *statement, Rows *old, Rows *new)
{
	return columns_equal(&statement->definition->columns, old->slot, new->slot) &&
		(!gains_any() || row_number(statement, old) == row_number(statement, new));
}

/*
 * Of an INSERT or a DELETE, which has but one of the tables.  What two portions
 * have is removed once anyway, and to keep twice does no harm.
 */
static void
enter_in_portions(Statement *statement, Rows *old, Rows *new)
{
	while (rows_next(old ? old : new))
	{
		add(statement, old, new);
		if (MemoryContextMemAllocated(statement->customers_context, true) >= MOST_MEMORY)
		{
			enter(statement);
			forget(statement);
		}
	}
	enter(statement);
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
	ExecDropSingleTupleTableSlot(rows->slot);
}

/* Adds what a row said and says, NULL where there is none. */
static void
add(Statement *statement, Rows *old, Rows *new)
{
	const Requester *requester = &statement->definition->requester;
	MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
	Removal		had;
	Removal		has = {0};
	Removal		lost;
	uint32		old_row = row_number(statement, old);
	uint32		new_row = row_number(statement, new);
	bool		is_first = false;

	if (old && new && old_row != new_row)
	{
		new_row = BETWEEN(new_row);
		statement->any_between = true;
	}
	difference_row(requester, read_row(statement, old, &had), old_row,
			   read_row(statement, new, &has), new_row, &lost);
	if (!payload_is_empty(&lost))
	{
		Customer   *customer = customer_for(statement, &lost, &is_first);

		append(statement, &customer->lost, &lost);
	}
	if (!payload_is_empty(&has) && !(is_first && difference_is_same_customer(&lost, &has)))
		statement->look_again = true;
	if (difference_may_keep(queue_of(statement), requester, &has))
	{
		Customer   *customer = customer_for(statement, &has, &is_first);

		append_to(statement, customer, &customer->kept, &has);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(statement->row_context);
}

static Queue *
queue_of(Statement *statement)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->context);

	if (statement->queue == NULL)
		statement->queue = queue_open(statement->nrows);
	MemoryContextSwitchTo(caller);
	return statement->queue;
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

static Customer *
customer_for(Statement *statement, const Removal *number, bool *is_first)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->customers_context);
	bool		found;
	CustomerEntry *entry = customers_insert(statement->customers, number, &found);

	if (!found)
	{
		Customer   *customer = make_customer(number);

		dlist_push_tail(&statement->order, &customer->node);
		entry->number = &customer->lost;
	}
	*is_first = !found;
	MemoryContextSwitchTo(caller);
	return customer_of(entry->number);
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
	customer->lost.phone = memcpy(phone, number->phone, phone_size);
	if (number->waba)
		customer->lost.waba = memcpy(phone + phone_size, number->waba, waba_size);
	return customer;
}

/* To a list that few customers have. */
static void
append_to(Statement *statement, const Customer *customer, Removal **names, const Removal *others)
{
	if (*names == NULL)
	{
		*names = MemoryContextAllocZero(statement->customers_context, sizeof(Removal));
		(*names)->phone = customer->lost.phone;
		(*names)->waba = customer->lost.waba;
	}
	append(statement, *names, others);
}

static void
append(Statement *statement, Removal *names, const Removal *others)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->customers_context);

	names_append_copy(&names->tags, &names->ntags, others->tags, others->ntags);
	names_append_copy(&names->fields, &names->nfields, others->fields, others->nfields);
	MemoryContextSwitchTo(caller);
}

/* Takes out of what was lost what new rows have. */
static void
look_again(Statement *statement, Rows *new)
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
		if (entry)
		{
			columns_read_names(columns, new->slot, &row);
			take_out(statement, customer_of(entry->number), &row);
		}
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
}

/* Much is put by, and taken out at once: any number of rows may have it. */
static void
take_out(Statement *statement, Customer *customer, const Removal *names)
{
	if (customer->lost.ntags + customer->lost.nfields < MANY_NAMES)
		subtract(statement, customer, names);
	else
		append_to(statement, customer, &customer->there, names);
}

/* Where what is there still was gained, a removal is owed when it goes. */
static void
subtract(Statement *statement, Customer *customer, const Removal *names)
{
	if (gains_any())
	{
		Removal		there = difference_copy(names);

		difference_intersect(&there, &customer->lost);
		gains_note_suppressed(&statement->definition->requester, &there);
	}
	difference_subtract(&customer->lost, names);
}

/* Enters what is kept and what was lost. */
static void
enter(Statement *statement)
{
	dlist_iter	iter;

	dlist_foreach(iter, &statement->order)
	{
		MemoryContext caller = MemoryContextSwitchTo(statement->row_context);

		CHECK_FOR_INTERRUPTS();
		enter_customer(statement, dlist_container(Customer, node, iter.cur));
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
}

static void
enter_customer(Statement *statement, Customer *customer)
{
	const Requester *requester = &statement->definition->requester;
	Removal    *lost = &customer->lost;
	Removal    *kept = customer->kept;

	if (kept)
	{
		kept->ntags = names_distinct(kept->tags, kept->ntags);
		kept->nfields = names_distinct(kept->fields, kept->nfields);
		difference_keep(queue_of(statement), requester, kept);
	}
	lost->ntags = names_distinct(lost->tags, lost->ntags);
	lost->nfields = names_distinct(lost->fields, lost->nfields);
	if (customer->there)
		subtract(statement, customer, customer->there);
	difference_remove(queue_of(statement), requester, lost);
}

static Customer *
customer_of(const Removal *lost)
{
	return (Customer *) ((char *) unconstify(Removal *, lost) - offsetof(Customer, lost));
}

static uint32
hash_customer(const Removal *number)
{
	return (uint32) phone_hash(number->phone, 0);
}

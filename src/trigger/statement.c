/*-------------------------------------------------------------------------
 *
 * trigger/statement.c
 *		The trigger at statement level.
 *
 * The statement's old and new rows are compared customer by customer, however
 * many rows a customer has: it has lost the names that old rows have and no new row
 * has.
 *
 * In the two transition tables of an UPDATE, the old and the new version of a row
 * have the same position, unless a trigger of a partition has dropped rows that
 * were moved there; then there are fewer new rows.  The first pass skips pairs that
 * are equal, and collects what customers have lost in the others.  Only customers that
 * have lost something, or for which a removal may wait, take memory, about 200 bytes
 * each.  The second pass, over the new rows, takes out the names that other rows of
 * the customer have; it is left out where it could find nothing.
 *
 * Rows in a transition table have no TID, so for gains.c their numbers are hashes of
 * their keys.  An UPDATE may give a row the key that a later row still has (see
 * TEMPORARY_NUMBER).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "base/phone.h"
#include "executor/executor.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "trigger/difference.h"
#include "trigger/gains.h"
#include "trigger/statement.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

/*
 * An INSERT or DELETE has only one of the tables.  When its customers take so many
 * bytes, they are enqueued, and the next portion begins: removing or keeping a name
 * once for each portion does no harm.
 */
#define MOST_MEMORY (64 * 1024 * 1024)

/*
 * If a customer has lost fewer names, each new row's names are taken out of them at
 * once.  Else that would take too long, since the customer may have any number of new
 * rows: their names are collected and taken out together.
 */
#define MANY_NAMES 32

/*
 * Temporary row number for a row that changes its key, so that it cannot collide
 * with a row that still holds that key.  Another row has this number only by
 * chance.
 */
#define TEMPORARY_NUMBER(number) Max((number) ^ 0x5bd1e995, GAINS_ANY_ROW)

/* A customer that has lost something, or for which a removal may wait. */
typedef struct Customer
{
	Removal		lost;			/* first: CustomerEntry points to it */
	Removal    *remaining;		/* names of new rows, to be taken out; or NULL */
	Removal    *kept;			/* names that the customer has; or NULL */
	dlist_node	node;
} Customer;

typedef struct CustomerEntry
{
	const Removal *number;		/* a Customer's phone and waba */
	uint32		hash;
	char		status;
} CustomerEntry;

#define SH_PREFIX customers
#define SH_ELEMENT_TYPE CustomerEntry
#define SH_KEY_TYPE const Removal *
#define SH_KEY number
#define SH_HASH_KEY(tb, key) ((uint32) phone_hash((key)->phone, 0))
#define SH_EQUAL(tb, a, b) difference_is_same_customer((tb)->private_data, (a), (b))
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* One firing of the trigger. */
typedef struct Statement
{
	Columns    *columns;
	const Definition *definition;
	MemoryContext context;		/* of the queue */
	MemoryContext customers_context;
	MemoryContext row_context;	/* of the row at hand */
	customers_hash *customers;
	dlist_head	order;			/* of the customers, by first appearance */
	Queue	   *queue;			/* NULL: not needed so far */
	int64		nrows;			/* in a transition table; see queue_open() */
	bool		in_portions;	/* may customers be enqueued before the end? */
	bool		needs_second_pass;	/* may a new row have what another row
									 * lost? */
	bool		has_temporary_numbers;
} Statement;

/* A transition table, while it is read. */
typedef struct Rows
{
	Tuplestorestate *store;
	int			pointer;
	TupleTableSlot *slot;
} Rows;

static Rows *rows_open(const TriggerData *data, Tuplestorestate *store);
static bool rows_next(Rows *rows);
static void rows_rewind(Rows *rows);
static void rows_close(Rows *rows);
static void compare_tables(Statement *statement, Rows *old, Rows *new);
static void compare_row(Statement *statement, TupleTableSlot *old, TupleTableSlot *new);
static bool is_row_unchanged(Columns *columns, TupleTableSlot *old, TupleTableSlot *new);
static uint32 number_by_key(const Columns *columns, TupleTableSlot *slot);
static Queue *open_queue(Statement *statement);
static void replace_temporary_numbers(Statement *statement, Rows *old, Rows *new);
static void reset_customers(Statement *statement);
static Customer *get_customer(Statement *statement, const Removal *number, bool *is_first);
static void append_names(Statement *statement, Removal *names, const Removal *others);
static void append_optional_names(Statement *statement, const Customer *customer, Removal **names,
								  const Removal *others);
static void take_out_remaining(Statement *statement, Rows *new);
static void subtract_remaining(Statement *statement, Customer *customer, const Removal *names);
static void enqueue_customers(Statement *statement);
static void enqueue_customer(Statement *statement, Customer *customer);
static void make_names_distinct(Removal *names);

/*
 * Called when a trigger for each statement has fired: enqueues removals of what its
 * customers have lost, and keeps of what they have.
 */
void
statement_fired(Definition *definition, const TriggerData *data)
{
	Statement	statement = {0};
	Rows	   *old = rows_open(data, data->tg_oldtable);
	Rows	   *new = rows_open(data, data->tg_newtable);

	statement.columns = &definition->columns;
	statement.definition = definition;
	statement.in_portions = old == NULL || new == NULL;
	statement.nrows = tuplestore_tuple_count(old ? old->store : new->store);
	statement.context = AllocSetContextCreate(CurrentMemoryContext, "doubletick statement",
											  ALLOCSET_DEFAULT_SIZES);
	statement.row_context = AllocSetContextCreate(statement.context, "doubletick row",
												  ALLOCSET_DEFAULT_SIZES);
	/* Packed: all of it is freed at once. */
	statement.customers_context = GenerationContextCreate(statement.context,
														  "doubletick customers",
														  ALLOCSET_DEFAULT_SIZES);
	reset_customers(&statement);
	compare_tables(&statement, old, new);
	enqueue_customers(&statement);
	if (statement.queue)
		queue_close(statement.queue);
	MemoryContextDelete(statement.context);
	rows_close(old);
	rows_close(new);
}

/* NULL where the event has no such table.  Each trigger has its own read pointer. */
static Rows *
rows_open(const TriggerData *data, Tuplestorestate *store)
{
	Rows	   *rows;

	if (store == NULL)
		return NULL;
	rows = palloc(sizeof(Rows));
	rows->store = store;
	rows->pointer = tuplestore_alloc_read_pointer(store, EXEC_FLAG_REWIND);
	rows->slot = MakeSingleTupleTableSlot(RelationGetDescr(data->tg_relation), &TTSOpsMinimalTuple);
	rows_rewind(rows);
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
	if (rows)
		ExecDropSingleTupleTableSlot(rows->slot);
}

/* Both passes: collects what each customer has lost, and what it has. */
static void
compare_tables(Statement *statement, Rows *old, Rows *new)
{
	if (old && new &&
		tuplestore_tuple_count(old->store) == tuplestore_tuple_count(new->store))
	{
		while (rows_next(old) && rows_next(new))
		{
			if (is_row_unchanged(statement->columns, old->slot, new->slot))
				statement->needs_second_pass = true;
			else
				compare_row(statement, old->slot, new->slot);
		}
		if (statement->has_temporary_numbers && gains_any())
			replace_temporary_numbers(statement, old, new);
	}
	else
	{
		while (old && rows_next(old))
			compare_row(statement, old->slot, NULL);
		while (new && rows_next(new))
			compare_row(statement, NULL, new->slot);
	}
	if (old && new && statement->needs_second_pass && statement->customers->members > 0)
		take_out_remaining(statement, new);
}

/*
 * Collects what one row's customers have lost, and what they have.  "old" and "new"
 * are the versions of the row; NULL where there is none.
 */
static void
compare_row(Statement *statement, TupleTableSlot *old, TupleTableSlot *new)
{
	Columns    *columns = statement->columns;
	MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
	Removal		had;
	Removal		has;
	Removal		lost;
	uint32		old_row = number_by_key(columns, old);
	uint32		new_row = number_by_key(columns, new);
	bool		is_first = false;
	bool		has_more;		/* may "has" lack names? */

	if (old && new && old_row != new_row)
	{
		new_row = TEMPORARY_NUMBER(new_row);
		statement->has_temporary_numbers = true;
	}
	has_more = columns_read_versions(columns, old, new, gains_any(), &had, &has);
	difference_row(statement->definition, &had, old_row, &has, new_row, &lost);
	if (!payload_is_empty(&lost))
		append_names(statement, &get_customer(statement, &lost, &is_first)->lost, &lost);
	if ((has_more || !payload_is_empty(&has)) &&
		!(is_first && difference_is_same_customer(statement->definition, &lost, &has)))
		statement->needs_second_pass = true;
	if (difference_may_keep(open_queue(statement), &has, has_more))
	{
		Customer   *customer = get_customer(statement, &has, &is_first);

		if (has_more)
			columns_read_names(columns, new, &has);
		append_optional_names(statement, customer, &customer->kept, &has);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(statement->row_context);
	if (statement->in_portions &&
		MemoryContextMemAllocated(statement->customers_context, true) >= MOST_MEMORY)
	{
		enqueue_customers(statement);
		reset_customers(statement);
	}
}

/* Once rows have gained something, gains.c must learn of a changed key, too. */
static bool
is_row_unchanged(Columns *columns, TupleTableSlot *old, TupleTableSlot *new)
{
	return columns_equal(columns, old, new) &&
		(!gains_any() || number_by_key(columns, old) == number_by_key(columns, new));
}

/* The row's number for gains.c. */
static uint32
number_by_key(const Columns *columns, TupleTableSlot *slot)
{
	uint32		hash;

	if (slot == NULL)
		return GAINS_ANY_ROW;
	hash = columns_hash_key(columns, slot);
	return Max(hash, GAINS_ANY_ROW);
}

/* Opens the queue when it is first needed. */
static Queue *
open_queue(Statement *statement)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->context);

	if (statement->queue == NULL)
		statement->queue = queue_open(statement->nrows);
	MemoryContextSwitchTo(caller);
	return statement->queue;
}

/* No row has its old key any more: replaces temporary numbers by the new keys'. */
static void
replace_temporary_numbers(Statement *statement, Rows *old, Rows *new)
{
	Columns    *columns = statement->columns;

	rows_rewind(old);
	rows_rewind(new);
	while (rows_next(old) && rows_next(new))
	{
		MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
		uint32		number = number_by_key(columns, new->slot);
		Removal		names;

		if (number != number_by_key(columns, old->slot))
		{
			columns_read_row(columns, new->slot, &names);
			gains_renumber(statement->definition, &names, TEMPORARY_NUMBER(number), number);
		}
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
}

static void
reset_customers(Statement *statement)
{
	MemoryContextReset(statement->customers_context);
	statement->customers = customers_create(statement->customers_context, 64,
											unconstify(Definition *, statement->definition));
	dlist_init(&statement->order);
}

/* The customer with this phone and waba, which is made if this is its first row. */
static Customer *
get_customer(Statement *statement, const Removal *number, bool *is_first)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->customers_context);
	bool		found;
	CustomerEntry *entry = customers_insert(statement->customers, number, &found);

	if (!found)
	{
		Customer   *customer = palloc0(sizeof(Customer));

		customer->lost.phone = pstrdup(number->phone);
		if (number->waba)
			customer->lost.waba = pstrdup(number->waba);
		entry->number = &customer->lost;
		dlist_push_tail(&statement->order, &customer->node);
	}
	*is_first = !found;
	MemoryContextSwitchTo(caller);
	return (Customer *) entry->number;
}

static void
append_names(Statement *statement, Removal *names, const Removal *others)
{
	MemoryContext caller = MemoryContextSwitchTo(statement->customers_context);

	names_append_copy(&names->tags, &names->ntags, others->tags, others->ntags);
	names_append_copy(&names->fields, &names->nfields, others->fields, others->nfields);
	MemoryContextSwitchTo(caller);
}

/* Makes the Removal when it is first needed: few customers have one. */
static void
append_optional_names(Statement *statement, const Customer *customer, Removal **names,
					  const Removal *others)
{
	if (*names == NULL)
	{
		*names = MemoryContextAllocZero(statement->customers_context, sizeof(Removal));
		(*names)->phone = customer->lost.phone;
		(*names)->waba = customer->lost.waba;
	}
	append_names(statement, *names, others);
}

/* The second pass: takes the names that new rows have out of what was lost. */
static void
take_out_remaining(Statement *statement, Rows *new)
{
	rows_rewind(new);
	while (rows_next(new))
	{
		MemoryContext caller = MemoryContextSwitchTo(statement->row_context);
		CustomerEntry *entry = NULL;
		Removal		row;

		columns_read_customer(statement->columns, new->slot, &row);
		if (row.phone)
			entry = customers_lookup(statement->customers, &row);
		if (entry)
		{
			Customer   *customer = (Customer *) entry->number;

			columns_read_names(statement->columns, new->slot, &row);
			if (customer->lost.ntags + customer->lost.nfields < MANY_NAMES)
				subtract_remaining(statement, customer, &row);
			else
				append_optional_names(statement, customer, &customer->remaining, &row);
		}
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
}

/* Tells gains.c of the names whose removals are suppressed by this. */
static void
subtract_remaining(Statement *statement, Customer *customer, const Removal *names)
{
	if (gains_any())
	{
		Removal		suppressed = difference_intersection(names, &customer->lost);

		gains_note_suppressed(statement->definition, &suppressed);
	}
	difference_subtract(&customer->lost, names);
}

static void
enqueue_customers(Statement *statement)
{
	dlist_iter	iter;

	dlist_foreach(iter, &statement->order)
	{
		MemoryContext caller = MemoryContextSwitchTo(statement->row_context);

		CHECK_FOR_INTERRUPTS();
		enqueue_customer(statement, dlist_container(Customer, node, iter.cur));
		MemoryContextSwitchTo(caller);
		MemoryContextReset(statement->row_context);
	}
}

/* Keeps first: none may take back a removal of the same statement. */
static void
enqueue_customer(Statement *statement, Customer *customer)
{
	make_names_distinct(&customer->lost);
	if (customer->remaining)
		subtract_remaining(statement, customer, customer->remaining);
	if (customer->kept)
	{
		make_names_distinct(customer->kept);
		difference_keep(open_queue(statement), statement->definition, customer->kept,
						&customer->lost);
	}
	difference_remove(open_queue(statement), statement->definition, &customer->lost);
}

/* Several rows may have appended the same name. */
static void
make_names_distinct(Removal *names)
{
	names->ntags = names_distinct(names->tags, names->ntags);
	names->nfields = names_distinct(names->fields, names->nfields);
}

/*-------------------------------------------------------------------------
 *
 * trigger/columns.h
 *		The columns of a customers table, whatever it looks like.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_TRIGGER_COLUMNS_H
#define DOUBLETICK_TRIGGER_COLUMNS_H

#include "api/payload.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "utils/relcache.h"

/* A hint, for whoever has written the wrong arguments. */
#define TRIGGER_ARGUMENTS "Its arguments name, in this order, the columns of the phone, the tags, the custom fields and the WABA number, and a server; '' leaves one out."

/* How a value is read. */
typedef enum ColumnKind
{
	COLUMN_TEXT,				/* has text's layout */
	COLUMN_PADDED,				/* the same, padded with blanks: char(n) */
	COLUMN_OUTPUT,				/* by its type's output function */
	COLUMN_ARRAY,				/* an array of one of the above */
	COLUMN_JSONB,
	COLUMN_HSTORE
} ColumnKind;

typedef struct Column
{
	AttrNumber	attno;			/* 0: the trigger names none */
	bool		byval;			/* of its type */
	int16		len;
	ColumnKind	kind;
	bool		values;			/* do names have values? then each key of a
								 * jsonb object is a name */
	FmgrInfo	function;		/* COLUMN_OUTPUT: its output function;
								 * COLUMN_HSTORE: akeys() */
	ColumnKind	elem_kind;		/* of an array's elements */
	int16		elem_len;
	bool		elem_byval;
	char		elem_align;
} Column;

typedef struct Columns
{
	Column		phone;
	Column		tags;
	Column		fields;
	Column		waba;
	AttrNumber	last;			/* the largest attno of these */
	Oid			table;			/* this and the rest at statement level only */
	int			nkey;
	Column	   *key;			/* columns that tell the rows apart */
	AttrNumber	last_key;		/* the largest attno of these */
} Columns;

extern void column_find_number(Column *column, Relation rel, const char *trigger,
							   const char *name, const char *what, MemoryContext context);
extern void column_find_names(Column *column, Relation rel, const char *trigger,
							  const char *name, const char *what, bool values,
							  MemoryContext context);
extern void columns_find_key(Columns *columns, Relation rel, MemoryContext context);
extern bool columns_equal(const Columns *columns, TupleTableSlot *old, TupleTableSlot *new);
extern uint32 columns_hash_key(const Columns *columns, TupleTableSlot *slot);
extern bool columns_read_versions(Columns *columns, TupleTableSlot *old, TupleTableSlot *new,
								  bool all, Removal *had, Removal *has);
extern void columns_read_row(Columns *columns, TupleTableSlot *slot, Removal *row);
extern void columns_read_customer(Columns *columns, TupleTableSlot *slot, Removal *row);
extern void columns_read_names(Columns *columns, TupleTableSlot *slot, Removal *row);

#endif							/* DOUBLETICK_TRIGGER_COLUMNS_H */

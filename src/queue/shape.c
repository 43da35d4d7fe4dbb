/*-------------------------------------------------------------------------
 *
 * queue/shape.c
 *		Checks that a table of ours is what this library was built for.
 *
 * The library reads and writes tuples by column number, and fills indexes without
 * an executor.  An administrator, or another version's script, may have changed
 * a table.  So each table is checked when it is opened: before a row is enqueued, and
 * before a request leaves whose answer could not be recorded.  Each error says which
 * command mends it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/extension.h"
#include "catalog/dependency.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "compat.h"
#include "queue/shape.h"
#include "queue/store.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* Most bytes of a name in a GIN index, whose limit is some 2,700 bytes for an entry. */
#define MAX_INDEXED_NAME 2500

typedef struct ColumnShape
{
	const char *name;
	Oid			type;
	bool		not_null;
} ColumnShape;

static const ColumnShape waiting_columns[] = {
	{"id", INT8OID, true}, {"ord", INT8OID, true}, {"xact", INT8OID, true},
	{"customer", INT8OID, true}, {"enqueued_at", TIMESTAMPTZOID, true},
	{"due_at", TIMESTAMPTZOID, true}, {"role", OIDOID, true},
	{"enqueued_by", OIDOID, true}, {"attempts", INT4OID, true},
	{"http_status", INT4OID, false}, {"keep", BOOLOID, true},
	{"replicated", BOOLOID, true}, {"together", INT4OID, true},
	{"origin", INT8OID, false}, {"server", TEXTOID, true}, {"phone", TEXTOID, true},
	{"waba", TEXTOID, false}, {"tags", TEXTARRAYOID, true}, {"fields", TEXTARRAYOID, true},
	{"last_error", TEXTOID, false},
};

static const ColumnShape settled_columns[] = {
	{"id", INT8OID, true}, {"enqueued_at", TIMESTAMPTZOID, true},
	{"settled_at", TIMESTAMPTZOID, true}, {"role", OIDOID, true},
	{"enqueued_by", OIDOID, true}, {"attempts", INT4OID, true},
	{"http_status", INT4OID, false}, {"state", TEXTOID, true},
	{"server", TEXTOID, true}, {"phone", TEXTOID, true}, {"waba", TEXTOID, false},
	{"tags", TEXTARRAYOID, true}, {"fields", TEXTARRAYOID, true},
	{"answer", JSONBOID, false}, {"error", TEXTOID, false},
	{"sent_tags", TEXTARRAYOID, false}, {"sent_fields", TEXTARRAYOID, false},
	{"origin", INT8OID, false},
};

static const ColumnShape hold_columns[] = {
	{"server", TEXTOID, true}, {"role", OIDOID, true}, {"since", TIMESTAMPTZOID, true},
	{"probe_at", TIMESTAMPTZOID, true}, {"definition", TEXTOID, true},
	{"reason", TEXTOID, true}, {"hint", TEXTOID, false},
};

/* An index of ours; columns by number, 0 where there are no more. */
typedef struct IndexShape
{
	QueueRelation table;
	int16		columns[3];
	bool		is_key;
	const char *command;		/* makes the index; format of name and table */
} IndexShape;

static const IndexShape index_shapes[NRELATIONS] = {
	[RELATION_WAITING_PKEY] = {RELATION_WAITING, {1}, true,
	"ALTER TABLE %2$s ADD CONSTRAINT %1$s PRIMARY KEY (id)"},
	[RELATION_WAITING_CUSTOMER] = {RELATION_WAITING, {4, 11, 1}, false,
	"CREATE INDEX %1$s ON %2$s (customer, keep, id)"},
	[RELATION_SETTLED_ID] = {RELATION_SETTLED, {1}, false,
	"CREATE INDEX %1$s ON %2$s (id)"},
	[RELATION_SETTLED_AT] = {RELATION_SETTLED, {3}, false,
	"CREATE INDEX %1$s ON %2$s (settled_at)"},
	[RELATION_HOLD_PKEY] = {RELATION_HOLD, {1, 2}, true,
	"ALTER TABLE %2$s ADD CONSTRAINT %1$s PRIMARY KEY (server, role)"},
};

static void check_sequence(Relation rel);
static void check_columns(Relation rel, const ColumnShape *columns, int ncolumns);
static void check_own_indexes(Relation rel, QueueRelation table);
static const char *drop_index_command(Relation rel, Oid index);
static bool has_index_shape(Oid oid, Oid table, const IndexShape *shape);
static bool has_usual_order(HeapTuple tuple, int nkeys);
static bool is_btree(Oid index);
static bool index_has_columns(Form_pg_index index, const IndexShape *shape);
static bool has_long_column(Relation rel, Relation index);
static Oid	column_type(Relation rel, int16 column);
static void check_constraints(Relation rel);
static void check_triggers(Relation rel);
static bool is_own_trigger(const Trigger *trigger, const char *name);
static void refuse_trigger(Relation rel, const Trigger *trigger);
pg_noreturn static void refuse_table(Relation rel, char *detail, char *command);
static char *table_name(Oid table);

/*
 * Called by store_open() when it first opens a table, and again when a relation of
 * ours has changed.  The table is locked, and its indexes are not open yet.
 */
void
check_table_shape(Relation rel, QueueRelation table)
{
	const char *name = table_name(RelationGetRelid(rel));

	extension_check_version();
	if (getExtensionOfObject(RelationRelationId, RelationGetRelid(rel)) !=
		get_extension_oid("doubletick", true))
		refuse_table(rel, pstrdup("It is not a member of the extension."),
					 psprintf("ALTER EXTENSION doubletick ADD TABLE %s", name));
	if (rel->rd_rel->relkind != RELKIND_RELATION || rel->rd_rel->relam != HEAP_TABLE_AM_OID)
		refuse_table(rel, pstrdup("Its access method is not heap."),
					 psprintf("ALTER TABLE %s SET ACCESS METHOD heap", name));
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		refuse_table(rel, pstrdup("It is not logged, so that a crash would empty it."),
					 psprintf("ALTER TABLE %s SET LOGGED", name));
	if (table == RELATION_WAITING)
	{
		check_columns(rel, waiting_columns, lengthof(waiting_columns));
		check_sequence(rel);
	}
	else if (table == RELATION_SETTLED)
		check_columns(rel, settled_columns, lengthof(settled_columns));
	else
		check_columns(rel, hold_columns, lengthof(hold_columns));
	check_constraints(rel);
	check_triggers(rel);
	check_own_indexes(rel, table);
}

/*
 * The drainer and keeps rely on the order of ids: each session must get a larger one
 * than all sessions before it, also after a crash.
 */
static void
check_sequence(Relation rel)
{
	Oid			oid = relation_oid(RELATION_WAITING_ID);
	HeapTuple	tuple;
	Form_pg_sequence sequence;
	bool		is_ascending;

	if (getExtensionOfObject(RelationRelationId, oid) != get_extension_oid("doubletick", true))
		refuse_table(rel, psprintf("Sequence \"%s\" is not a member of the extension.",
								   relation_name(RELATION_WAITING_ID)),
					 psprintf("ALTER SEQUENCE %s RENAME TO another_name, and then give its name to the sequence of column \"id\"",
							  table_name(oid)));
	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", oid);
	sequence = (Form_pg_sequence) GETSTRUCT(tuple);
	is_ascending = sequence->seqcache == 1 && sequence->seqincrement > 0 && !sequence->seqcycle;
	ReleaseSysCache(tuple);
	if (!is_ascending)
		refuse_table(rel, psprintf("Sequence \"%s\" has CACHE, CYCLE or a negative INCREMENT, so that ids would come out of order.",
								   relation_name(RELATION_WAITING_ID)),
					 psprintf("ALTER SEQUENCE %s INCREMENT 1 CACHE 1 NO CYCLE", table_name(oid)));
	if (get_rel_persistence(oid) != RELPERSISTENCE_PERMANENT)
		refuse_table(rel, psprintf("Sequence \"%s\" is not logged, so that a crash would set it back.",
								   relation_name(RELATION_WAITING_ID)),
					 psprintf("ALTER SEQUENCE %s SET LOGGED", table_name(oid)));
}

/*
 * A column that was added and dropped again stays in the table for ever.  We fill up
 * to STORE_DROPPED_COLUMNS of these with nulls.
 */
static void
check_columns(Relation rel, const ColumnShape *columns, int ncolumns)
{
	TupleDesc	desc = RelationGetDescr(rel);
	const char *name = table_name(RelationGetRelid(rel));

	for (int i = 0; i < ncolumns; i++)
	{
		Form_pg_attribute column = i < desc->natts ? TupleDescAttr(desc, i) : NULL;

		if (column == NULL || column->attisdropped || column->atttypid != columns[i].type ||
			strcmp(NameStr(column->attname), columns[i].name) != 0)
			refuse_table(rel, psprintf("Column %d is not \"%s\" of type %s, as version %s of the library needs it.",
									   i + 1, columns[i].name, format_type_be(columns[i].type),
									   DOUBLETICK_VERSION),
						 column && !column->attisdropped && column->atttypid == columns[i].type ?
						 psprintf("ALTER TABLE %s RENAME COLUMN %s TO %s", name,
								  quote_identifier(NameStr(column->attname)), columns[i].name) :
						 pstrdup("ALTER EXTENSION doubletick UPDATE, and connect again; or DROP EXTENSION doubletick CASCADE and CREATE EXTENSION doubletick"));
		if (column->attnotnull != columns[i].not_null)
			refuse_table(rel, psprintf("Column \"%s\" %s.", columns[i].name,
									   columns[i].not_null ? "must be NOT NULL" : "may be null in what is recorded"),
						 psprintf("ALTER TABLE %s ALTER COLUMN %s %s NOT NULL", name,
								  columns[i].name, columns[i].not_null ? "SET" : "DROP"));
		if (column->attlen == -1 && column->attstorage == TYPSTORAGE_PLAIN)
			refuse_table(rel, psprintf("Column \"%s\" has storage PLAIN, so that a long value would not fit.",
									   columns[i].name),
						 psprintf("ALTER TABLE %s ALTER COLUMN %s SET STORAGE EXTENDED", name,
								  columns[i].name));
	}
	for (int i = ncolumns; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (!column->attisdropped)
			refuse_table(rel, psprintf("Column \"%s\" is not one that version %s of the library knows.",
									   NameStr(column->attname), DOUBLETICK_VERSION),
						 psprintf("ALTER TABLE %s DROP COLUMN %s, or, if the extension was updated, connect again",
								  name, quote_identifier(NameStr(column->attname))));
	}
	if (desc->natts > ncolumns + STORE_DROPPED_COLUMNS)
		refuse_table(rel, pstrdup("Too many columns were added and dropped."),
					 pstrdup("DROP EXTENSION doubletick CASCADE and CREATE EXTENSION doubletick"));
}

/* We check no constraints or policies: there must be none. */
static void
check_constraints(Relation rel)
{
	const TupleConstr *constr = RelationGetDescr(rel)->constr;
	const char *name = table_name(RelationGetRelid(rel));

	if (constr && constr->num_check > 0)
		refuse_table(rel, pstrdup("It has a CHECK constraint."),
					 psprintf("ALTER TABLE %s DROP CONSTRAINT %s", name,
							  quote_identifier(constr->check[0].ccname)));
	if (rel->rd_rel->relrowsecurity)
		refuse_table(rel, pstrdup("It has row security."),
					 psprintf("ALTER TABLE %s DISABLE ROW LEVEL SECURITY", name));
}

/*
 * We fire no triggers, so there must be none but ours for what arrives by logical
 * replication.  Without that, the subscriber would send what the publisher sends.
 *
 * We look at a copy: the relation's own triggers are freed whenever PostgreSQL builds
 * its entry anew, which an ANALYZE of the table by another session is enough for.
 */
static void
check_triggers(Relation rel)
{
	const char *table = table_name(RelationGetRelid(rel));
	char	   *name = psprintf("%s_replicated", RelationGetRelationName(rel));
	const TriggerDesc *triggers = CopyTriggerDesc(rel->trigdesc);
	const Trigger *own = NULL;

	for (int i = 0; triggers && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (!is_own_trigger(trigger, name))
			refuse_trigger(rel, trigger);
		own = trigger;
	}
	if (own == NULL)
		refuse_table(rel, psprintf("Its trigger \"%s\" is missing.", name),
					 psprintf("CREATE TRIGGER %s BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW"
							  " EXECUTE FUNCTION %s(); ALTER TABLE %s ENABLE REPLICA TRIGGER %s",
							  name, table,
							  quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
														 "dt_replicated_trigger"), table, name));
	if (own->tgenabled != TRIGGER_FIRES_ON_REPLICA && own->tgenabled != TRIGGER_FIRES_ALWAYS)
		refuse_table(rel, psprintf("Its trigger \"%s\" does not fire for what is replicated.", name),
					 psprintf("ALTER TABLE %s ENABLE REPLICA TRIGGER %s", table, name));
}

static bool
is_own_trigger(const Trigger *trigger, const char *name)
{
	char	   *function = get_func_name(trigger->tgfoid);

	return strcmp(trigger->tgname, name) == 0 && function != NULL &&
		strcmp(function, "dt_replicated_trigger") == 0 &&
		getExtensionOfObject(ProcedureRelationId, trigger->tgfoid) ==
		get_extension_oid("doubletick", true) &&
		trigger->tgtype == (TRIGGER_TYPE_ROW | TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_INSERT |
							TRIGGER_TYPE_UPDATE | TRIGGER_TYPE_DELETE) &&
		trigger->tgqual == NULL && trigger->tgnattr == 0;
}

static void
refuse_trigger(Relation rel, const Trigger *trigger)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(trigger->tgconstraint));

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_constraint constraint = (Form_pg_constraint) GETSTRUCT(tuple);

		refuse_table(rel, psprintf("Constraint \"%s\" of table %s needs triggers on it.",
								   NameStr(constraint->conname), table_name(constraint->conrelid)),
					 psprintf("ALTER TABLE %s DROP CONSTRAINT %s", table_name(constraint->conrelid),
							  quote_identifier(NameStr(constraint->conname))));
	}
	refuse_table(rel, pstrdup("It has a trigger."),
				 psprintf("DROP TRIGGER %s ON %s", quote_identifier(trigger->tgname),
						  table_name(RelationGetRelid(rel))));
}

static void
check_own_indexes(Relation rel, QueueRelation table)
{
	for (int i = 0; i < NRELATIONS; i++)
	{
		const IndexShape *shape = &index_shapes[i];
		const char *name = relation_name(i);

		if (shape->command && shape->table == table &&
			!has_index_shape(relation_oid(i), RelationGetRelid(rel), shape))
			refuse_table(rel, psprintf("Index \"%s\" is missing, not valid, or not as the extension made it.", name),
						 psprintf("%s%s", drop_index_command(rel, relation_oid(i)),
								  psprintf(shape->command, name, table_name(RelationGetRelid(rel)))));
	}
}

/* What must precede the command that makes an index anew; "" if there is none. */
static const char *
drop_index_command(Relation rel, Oid index)
{
	Oid			constraint = OidIsValid(index) ? get_index_constraint(index) : InvalidOid;

	if (!OidIsValid(index))
		return "";
	if (OidIsValid(constraint))
		return psprintf("ALTER TABLE %s DROP CONSTRAINT %s; ", table_name(RelationGetRelid(rel)),
						quote_identifier(get_constraint_name(constraint)));
	return psprintf("DROP INDEX %s; ", table_name(index));
}

static bool
has_index_shape(Oid oid, Oid table, const IndexShape *shape)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(oid));
	bool		matches = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

		matches = index->indrelid == table && index->indisvalid && index->indisready &&
			is_btree(oid) &&
			heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
			index_has_columns(index, shape) && (index->indisunique || !shape->is_key) &&
			has_usual_order(tuple, index->indnkeyatts);
		ReleaseSysCache(tuple);
	}
	return matches;
}

/* Scans rely on the order of the columns' types, with the collation "C", the nulls last. */
static bool
has_usual_order(HeapTuple tuple, int nkeys)
{
	bool		isnull;
	int2vector *options = (int2vector *)
	DatumGetPointer(SysCacheGetAttr(INDEXRELID, tuple, Anum_pg_index_indoption, &isnull));
	oidvector  *classes = (oidvector *)
	DatumGetPointer(SysCacheGetAttr(INDEXRELID, tuple, Anum_pg_index_indclass, &isnull));
	oidvector  *collations = (oidvector *)
	DatumGetPointer(SysCacheGetAttr(INDEXRELID, tuple, Anum_pg_index_indcollation, &isnull));

	for (int i = 0; i < nkeys; i++)
	{
		Oid			class = classes->values[i];

		if (options->values[i] != 0 ||
			class != GetDefaultOpClass(get_opclass_input_type(class), BTREE_AM_OID) ||
			(OidIsValid(collations->values[i]) && collations->values[i] != C_COLLATION_OID))
			return false;
	}
	return true;
}

static bool
is_btree(Oid index)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(index));
	bool		is_btree = HeapTupleIsValid(tuple) &&
	((Form_pg_class) GETSTRUCT(tuple))->relam == BTREE_AM_OID;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return is_btree;
}

static bool
index_has_columns(Form_pg_index index, const IndexShape *shape)
{
	int			ncolumns = 0;

	while (ncolumns < (int) lengthof(shape->columns) && shape->columns[ncolumns] != 0)
		ncolumns++;
	return index->indnkeyatts == ncolumns &&
		memcmp(index->indkey.values, shape->columns, sizeof(int16) * ncolumns) == 0;
}

/*
 * Called by store_open() for each index of the table.  Accepts an index that is not
 * ours if it is plain, or a copy of a primary key, as REINDEX CONCURRENTLY makes it, and
 * if every row fits into it.
 */
void
check_index_shape(Relation rel, QueueRelation table, Relation index)
{
	HeapTuple	tuple = index->rd_indextuple;
	const char *index_name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(index)),
														RelationGetRelationName(index));
	Oid			constraint = get_index_constraint(RelationGetRelid(index));
	bool		is_unique = index->rd_index->indisunique;

	for (int i = 0; i < NRELATIONS; i++)
	{
		if (index_shapes[i].is_key && index_shapes[i].table == table)
			is_unique = is_unique && !index_has_columns(index->rd_index, &index_shapes[i]);
	}
	if (heap_attisnull(tuple, Anum_pg_index_indexprs, NULL) &&
		heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
		!index->rd_index->indisexclusion && !is_unique && !has_long_column(rel, index))
		return;
	refuse_table(rel, psprintf("Index \"%s\" is unique, has expressions, a condition or an exclusion constraint, or a column of names or answers, which may be too long for it.",
							   RelationGetRelationName(index)),
				 OidIsValid(constraint) ?
				 psprintf("ALTER TABLE %s DROP CONSTRAINT %s", table_name(RelationGetRelid(rel)),
						  quote_identifier(get_constraint_name(constraint))) :
				 psprintf("DROP INDEX %s", index_name));
}

/*
 * Lists of names and answers may be longer than what one entry of an index can hold.  A
 * hash index has their hashes, and a GIN index those of what is long in a jsonb; one of
 * names has each by itself: see shape_check_names().  All other columns are short:
 * history.c sees to those of text.
 */
static bool
has_long_column(Relation rel, Relation index)
{
	Oid			method = index->rd_rel->relam;

	for (int i = 0; i < index->rd_index->indnatts && method != HASH_AM_OID && method != GIN_AM_OID; i++)
	{
		Oid			type = column_type(rel, index->rd_index->indkey.values[i]);

		if (type == TEXTARRAYOID || type == JSONBOID)
			return true;
	}
	return false;
}

/* InvalidOid for 0, which stands for an expression. */
static Oid
column_type(Relation rel, int16 column)
{
	return column > 0 ? TupleDescAttr(RelationGetDescr(rel), column - 1)->atttypid : InvalidOid;
}

/*
 * Called before a request leaves for these names: raises an error if somebody has made a
 * GIN index of dt_settled that cannot hold one of them.
 */
void
shape_check_names(const Store *settled, const char **names, int nnames)
{
	for (int i = 0; i < settled->indexes->ri_NumIndices && !settled->indexes_are_cached; i++)
	{
		Relation	index = settled->indexes->ri_IndexRelationDescs[i];

		if (index->rd_rel->relam != GIN_AM_OID ||
			column_type(settled->rel, index->rd_index->indkey.values[0]) != TEXTARRAYOID)
			continue;
		for (int j = 0; j < nnames; j++)
		{
			if (strlen(names[j]) > MAX_INDEXED_NAME)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("a name is too long for index \"%s\" of table \"%s\"",
								RelationGetRelationName(index), RelationGetRelationName(settled->rel)),
						 errhint("Execute DROP INDEX %s.", table_name(RelationGetRelid(index)))));
		}
	}
}

static void
refuse_table(Relation rel, char *detail, char *command)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" is not as extension \"doubletick\" needs it",
					RelationGetRelationName(rel)),
			 errdetail("%s", detail),
			 errhint("Execute %s.", command)));
}

static char *
table_name(Oid table)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
									  get_rel_name(table));
}

/*-------------------------------------------------------------------------
 *
 * trigger/columns.c
 *		The columns of a customers table, whatever it looks like.
 *
 * The table is the user's.  Tags may be an array of any string-like type, an array
 * of a domain, a domain over an array, or jsonb.  Custom fields may also be the keys
 * of an hstore.  Where a table has a row for each name, the column is of a string
 * type.  The columns are looked up once per statement; each row is then read from
 * its tuple, without SQL.
 *
 * A wrong definition raises an error here.  Data never does: elements that are not
 * names are skipped.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/tupmacs.h"
#include "base/names.h"
#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "parser/parse_coerce.h"
#include "trigger/columns.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* Of a key value of more bytes only the size is hashed: it may be out of line. */
#define MOST_HASHED 2048

static Oid	find_column(Column *column, Relation rel, const char *trigger, const char *name,
						const char *what);
static Bitmapset *find_key_columns(Relation rel);
static ColumnKind string_kind(Oid type);
static void find_output_function(Column *column, Oid type, MemoryContext context);
static Oid	find_akeys(Oid type);
pg_noreturn static void refuse_type(Relation rel, const char *trigger, const Column *column,
									const char *what, const char *detail);
static bool is_column_equal(const Column *column, TupleTableSlot *old, TupleTableSlot *new);
static uint32 hash_key_value(const Column *column, Datum value);
static void read_names(Columns *columns, TupleTableSlot *slot, Removal *row, bool tags, bool fields);
static bool has_value(const Column *column, const TupleTableSlot *slot);
static char *read_number(Column *column, TupleTableSlot *slot);
static int	read_names_of_column(Column *column, TupleTableSlot *slot, const char ***names);
static int	read_names_of_array(Column *column, ArrayType *array, const char ***names);
static int	read_names_of_jsonb(const Column *column, Jsonb *jsonb, const char ***names);
static bool is_name_in_jsonb(const Column *column, JsonbIteratorToken token, const JsonbValue *value);
static int	read_one_name(Column *column, Datum value, const char ***names);
static char *read_string(Column *column, ColumnKind kind, Datum value);

/*
 * Looks up the column that a trigger names for a phone or a WABA number; "" names
 * none.  Messages name the trigger, and "what" says there what the column is for.  The column's function is
 * set up in "context".
 */
void
column_find_number(Column *column, Relation rel, const char *trigger, const char *name,
				   const char *what, MemoryContext context)
{
	Oid			type = find_column(column, rel, trigger, name, what);

	if (!OidIsValid(type))
		return;
	if (TypeCategory(type) == TYPCATEGORY_STRING)
		column->kind = string_kind(type);
	else if (type == INT8OID || type == INT4OID || type == NUMERICOID)
		column->kind = COLUMN_OUTPUT;
	else
		refuse_type(rel, trigger, column, what, "It may be of a string type, bigint, integer or numeric.");
	if (column->kind == COLUMN_OUTPUT)
		find_output_function(column, type, context);
}

/*
 * Looks up the column that a trigger names for tags or custom fields.  "values" says
 * that names have values, as custom fields do: then they may also be the keys of an
 * hstore, and a key of a jsonb object is a name whatever its value is.
 */
void
column_find_names(Column *column, Relation rel, const char *trigger, const char *name,
				  const char *what, bool values, MemoryContext context)
{
	Oid			type = find_column(column, rel, trigger, name, what);
	Oid			element;
	Oid			akeys;

	if (!OidIsValid(type))
		return;
	element = get_element_type(type);
	if (OidIsValid(element))
		element = getBaseType(element);
	if (OidIsValid(element) && TypeCategory(element) == TYPCATEGORY_STRING)
	{
		column->kind = COLUMN_ARRAY;
		column->elem_kind = string_kind(element);
		get_typlenbyvalalign(element, &column->elem_len, &column->elem_byval, &column->elem_align);
		if (column->elem_kind == COLUMN_OUTPUT)
			find_output_function(column, element, context);
	}
	else if (type == JSONBOID)
	{
		column->kind = COLUMN_JSONB;
		column->values = values;
	}
	else if (values && OidIsValid(akeys = find_akeys(type)))
	{
		column->kind = COLUMN_HSTORE;
		fmgr_info_cxt(akeys, &column->function, context);
		column->elem_kind = COLUMN_TEXT;
		get_typlenbyvalalign(TEXTOID, &column->elem_len, &column->elem_byval, &column->elem_align);
	}
	else if (TypeCategory(type) == TYPCATEGORY_STRING)
	{
		column->kind = string_kind(type);
		if (column->kind == COLUMN_OUTPUT)
			find_output_function(column, type, context);
	}
	else
		refuse_type(rel, trigger, column, what, values ?
					"It may be an array of strings, jsonb, hstore, or of a string type." :
					"It may be an array of strings, jsonb, or of a string type.");
}

/* Returns the column's type below all domains; InvalidOid when "name" is empty. */
static Oid
find_column(Column *column, Relation rel, const char *trigger, const char *name, const char *what)
{
	TupleDesc	desc = RelationGetDescr(rel);

	memset(column, 0, sizeof(Column));
	if (*name == '\0')
		return InvalidOid;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		if (attribute->attisdropped || strcmp(NameStr(attribute->attname), name) != 0)
			continue;
		column->attno = attribute->attnum;
		column->byval = attribute->attbyval;
		column->len = attribute->attlen;

		/* The tuple does not hold its value, which is computed by queries. */
		if (attribute->attgenerated == 'v')
			refuse_type(rel, trigger, column, what, "It must not be a virtual generated column.");
		return getBaseType(attribute->atttypid);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of relation \"%s\" does not exist",
					name, RelationGetRelationName(rel)),
			 errdetail("Trigger \"%s\" names it as the column of the %s.", trigger, what),
			 errhint("If it was renamed, create the trigger anew with the new name. " TRIGGER_ARGUMENTS),
			 errtable(rel)));
}

/*
 * Called at statement level: looks up the columns that tell the table's rows apart.
 * These are the columns of the primary key, or else of all other unique keys, or else
 * all columns.
 */
void
columns_find_key(Columns *columns, Relation rel, MemoryContext context)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Bitmapset  *key = find_key_columns(rel);

	columns->table = RelationGetRelid(rel);
	columns->key = MemoryContextAllocZero(context, sizeof(Column) * desc->natts);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		Column	   *column = &columns->key[columns->nkey];

		if (attribute->attisdropped || attribute->attgenerated == 'v' ||
			(key && !bms_is_member(attribute->attnum - FirstLowInvalidHeapAttributeNumber, key)))
			continue;
		column->attno = attribute->attnum;
		column->byval = attribute->attbyval;
		column->len = attribute->attlen;
		columns->nkey++;
		columns->last_key = attribute->attnum;
	}
	bms_free(key);
}

/* NULL when there is no key.  Inheritance children do not obey their parent's. */
static Bitmapset *
find_key_columns(Relation rel)
{
	Bitmapset  *key;

	if (rel->rd_rel->relhassubclass && rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return NULL;
	key = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	return key ? key : RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_KEY);
}

static ColumnKind
string_kind(Oid type)
{
	if (type == BPCHAROID)
		return COLUMN_PADDED;
	return IsBinaryCoercible(type, TEXTOID) ? COLUMN_TEXT : COLUMN_OUTPUT;
}

static void
find_output_function(Column *column, Oid type, MemoryContext context)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(type, &function, &is_varlena);
	fmgr_info_cxt(function, &column->function, context);
}

/*
 * hstore's akeys(); InvalidOid when the type is not hstore.  A look-up by name
 * would need USAGE on hstore's schema, which the updating role may not have.
 *
 * The owner of hstore, which need be no superuser, may add types and functions to it: so
 * nothing is certain of a function with this name but what it says itself.
 */
static Oid
find_akeys(Oid type)
{
	Oid			extension = get_extension_oid("hstore", true);
	HeapTuple	tuple;
	Oid			schema;
	Oid			akeys;

	if (!OidIsValid(extension) || getExtensionOfObject(TypeRelationId, type) != extension)
		return InvalidOid;
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	schema = ((Form_pg_type) GETSTRUCT(tuple))->typnamespace;
	ReleaseSysCache(tuple);
	akeys = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum("akeys"),
							PointerGetDatum(buildoidvector(&type, 1)), ObjectIdGetDatum(schema));
	if (!OidIsValid(akeys) || get_func_rettype(akeys) != TEXTARRAYOID || get_func_retset(akeys) ||
		get_func_prokind(akeys) != PROKIND_FUNCTION)
		return InvalidOid;
	return akeys;
}

static void
refuse_type(Relation rel, const char *trigger, const Column *column, const char *what,
			const char *detail)
{
	Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(rel), column->attno - 1);

	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("column \"%s\" of type %s cannot be the column of the %s",
					NameStr(attribute->attname),
					format_type_with_typemod(attribute->atttypid, attribute->atttypmod), what),
			 errdetail("Trigger \"%s\" names it. %s", trigger, detail),
			 errhint("Create the trigger anew with another column. " TRIGGER_ARGUMENTS),
			 errtablecol(rel, column->attno)));
}

/*
 * Are the columns that the trigger names the same in both rows?  Their bytes are
 * compared: a value that is stored out of line need not be fetched, since UPDATE
 * leaves it where it is when it does not change it.
 */
bool
columns_equal(const Columns *columns, TupleTableSlot *old, TupleTableSlot *new)
{
	slot_getsomeattrs(old, columns->last);
	slot_getsomeattrs(new, columns->last);
	return is_column_equal(&columns->phone, old, new) && is_column_equal(&columns->tags, old, new) &&
		is_column_equal(&columns->fields, old, new) && is_column_equal(&columns->waba, old, new);
}

static bool
is_column_equal(const Column *column, TupleTableSlot *old, TupleTableSlot *new)
{
	int			i = column->attno - 1;

	if (column->attno == 0)
		return true;
	if (old->tts_isnull[i] || new->tts_isnull[i])
		return old->tts_isnull[i] == new->tts_isnull[i];
	return datumIsEqual(old->tts_values[i], new->tts_values[i], column->byval, column->len);
}

/*
 * A hash of the table and the row's key, by which gains.c knows the row.
 */
uint32
columns_hash_key(const Columns *columns, TupleTableSlot *slot)
{
	uint32		hash = columns->table;

	slot_getsomeattrs(slot, columns->last_key);
	for (int i = 0; i < columns->nkey; i++)
	{
		const Column *column = &columns->key[i];

		if (!slot->tts_isnull[column->attno - 1])
			hash = hash_combine(hash, hash_key_value(column, slot->tts_values[column->attno - 1]));
	}
	return hash;
}

/* toast_raw_datum_size() does not fetch a value that is stored out of line. */
static uint32
hash_key_value(const Column *column, Datum value)
{
	if (column->len == -1)
	{
		Size		size = toast_raw_datum_size(value);

		if (size > MOST_HASHED)
			return size;
	}
	return datum_image_hash(value, column->byval, column->len);
}

/*
 * Called when columns_equal() is false for a row's versions "old" and "new", or when one
 * of these is NULL: reads them into "had" and "has".  NULL has no customer and no names.
 *
 * Unless "all" is set, names of a column that is equal in both versions are left out if
 * phone and WABA number are equal, too: the row neither loses nor gains them.  With two
 * names in the column this saves 1,600 instructions.  Returns whether "has" may lack
 * names: then columns_read_names() reads all of them.
 */
bool
columns_read_versions(Columns *columns, TupleTableSlot *old, TupleTableSlot *new, bool all,
					  Removal *had, Removal *has)
{
	bool		skip_tags;
	bool		skip_fields;

	if (all || old == NULL || new == NULL || !is_column_equal(&columns->phone, old, new) ||
		!is_column_equal(&columns->waba, old, new))
	{
		columns_read_row(columns, old, had);
		columns_read_row(columns, new, has);
		return false;
	}
	columns_read_customer(columns, old, had);
	*has = *had;
	skip_tags = is_column_equal(&columns->tags, old, new);
	skip_fields = is_column_equal(&columns->fields, old, new);
	read_names(columns, old, had, !skip_tags, !skip_fields);
	read_names(columns, new, has, !skip_tags, !skip_fields);
	return has->phone && ((skip_tags && has_value(&columns->tags, new)) ||
						  (skip_fields && has_value(&columns->fields, new)));
}

/*
 * Reads a row's customer and names; none when there is no slot.
 */
void
columns_read_row(Columns *columns, TupleTableSlot *slot, Removal *row)
{
	if (slot == NULL)
	{
		memset(row, 0, sizeof(Removal));
		return;
	}
	columns_read_customer(columns, slot, row);
	columns_read_names(columns, slot, row);
}

/*
 * Reads only the row's customer: "phone" and "waba", NULL where it has none.
 */
void
columns_read_customer(Columns *columns, TupleTableSlot *slot, Removal *row)
{
	memset(row, 0, sizeof(Removal));
	slot_getsomeattrs(slot, columns->last);
	row->phone = read_number(&columns->phone, slot);
	row->waba = read_number(&columns->waba, slot);
}

/*
 * Adds the row's names, each once, to what columns_read_customer() has read.  A row
 * without a phone belongs to no customer, and its names do not count.
 */
void
columns_read_names(Columns *columns, TupleTableSlot *slot, Removal *row)
{
	read_names(columns, slot, row, true, true);
}

static void
read_names(Columns *columns, TupleTableSlot *slot, Removal *row, bool tags, bool fields)
{
	if (row->phone == NULL)
		return;
	if (tags)
		row->ntags = read_names_of_column(&columns->tags, slot, &row->tags);
	if (fields)
		row->nfields = read_names_of_column(&columns->fields, slot, &row->fields);
}

/* Does the trigger name such a column, and is it not null? */
static bool
has_value(const Column *column, const TupleTableSlot *slot)
{
	return column->attno != 0 && !slot->tts_isnull[column->attno - 1];
}

/* NULL for null and for an empty string: neither is a number. */
static char *
read_number(Column *column, TupleTableSlot *slot)
{
	char	   *number;

	if (!has_value(column, slot))
		return NULL;
	number = read_string(column, column->kind, slot->tts_values[column->attno - 1]);
	return *number == '\0' ? NULL : number;
}

static int
read_names_of_column(Column *column, TupleTableSlot *slot, const char ***names)
{
	Datum		value;

	*names = NULL;
	if (!has_value(column, slot))
		return 0;
	value = slot->tts_values[column->attno - 1];
	if (column->kind != COLUMN_ARRAY)
	{
		if (column->kind == COLUMN_JSONB)
			return read_names_of_jsonb(column, DatumGetJsonbP(value), names);
		if (column->kind != COLUMN_HSTORE)
			return read_one_name(column, value, names);
		value = FunctionCall1(&column->function, value);
	}
	return read_names_of_array(column, DatumGetArrayTypeP(value), names);
}

/*
 * All elements count, whatever the number of dimensions.  deconstruct_array() and
 * an allocation for each name would cost 1,600 instructions more in an UPDATE of a
 * row with 5 names, and 7,200 with 52.
 */
static int
read_names_of_array(Column *column, ArrayType *array, const char ***names)
{
	int			nitems = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	uint8	   *bitmap = ARR_NULLBITMAP(array);
	char	   *item = ARR_DATA_PTR(array);
	char	   *copy = NULL;
	int			nnames = 0;

	if (nitems == 0)
		return 0;
	*names = names_alloc(nitems);
	if (column->elem_kind == COLUMN_TEXT)
		copy = palloc(ARR_SIZE(array));
	for (int i = 0; i < nitems; i++)
	{
		char	   *name = copy;

		if (bitmap && (bitmap[i / BITS_PER_BYTE] & (1 << (i % BITS_PER_BYTE))) == 0)
			continue;
		if (copy)
		{
			memcpy(copy, VARDATA_ANY(item), VARSIZE_ANY_EXHDR(item));
			copy += VARSIZE_ANY_EXHDR(item);
			*copy++ = '\0';
		}
		else
			name = read_string(column, column->elem_kind,
							   fetch_att(item, column->elem_byval, column->elem_len));
		if (*name != '\0')
			(*names)[nnames++] = name;
		item = att_addlength_pointer(item, column->elem_len, item);
		item = (char *) att_align_nominal(item, column->elem_align);
	}
	return names_distinct(*names, nnames);
}

/*
 * The strings of an array are names, and so is a string that is all of the value.
 * Of an object, the keys are names.
 */
static int
read_names_of_jsonb(const Column *column, Jsonb *jsonb, const char ***names)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	JsonbValue	key = {0};
	int			nnames = 0;

	if (JB_ROOT_COUNT(jsonb) == 0)
		return 0;
	*names = names_alloc(JB_ROOT_COUNT(jsonb));
	iterator = JsonbIteratorInit(&jsonb->root);
	token = JsonbIteratorNext(&iterator, &value, false);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		const JsonbValue *name = token == WJB_VALUE ? &key : &value;

		if (token == WJB_KEY)
			key = value;
		else if (is_name_in_jsonb(column, token, &value) && name->val.string.len > 0)
			(*names)[nnames++] = pnstrdup(name->val.string.val, name->val.string.len);
	}
	return names_distinct(*names, nnames);
}

/*
 * Is an element of an array a name, or, with the value at hand, the key of an object?
 * {"lead": false} says that the customer does not have the tag.
 */
static bool
is_name_in_jsonb(const Column *column, JsonbIteratorToken token, const JsonbValue *value)
{
	if (token == WJB_ELEM)
		return value->type == jbvString;
	return token == WJB_VALUE &&
		(column->values ||
		 (value->type != jbvNull && (value->type != jbvBool || value->val.boolean)));
}

/* Of a table that has a row for each name. */
static int
read_one_name(Column *column, Datum value, const char ***names)
{
	const char *name = read_string(column, column->kind, value);

	if (*name == '\0')
		return 0;
	*names = names_alloc(1);
	(*names)[0] = name;
	return 1;
}

static char *
read_string(Column *column, ColumnKind kind, Datum value)
{
	char	   *string;

	if (kind == COLUMN_OUTPUT)
		return OutputFunctionCall(&column->function, value);
	string = TextDatumGetCString(value);
	if (kind == COLUMN_PADDED)
	{
		for (char *end = string + strlen(string); end > string && end[-1] == ' '; end--)
			end[-1] = '\0';
	}
	return string;
}

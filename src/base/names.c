/*-------------------------------------------------------------------------
 *
 * base/names.c
 *		Lists of names: of tags, or of custom fields.
 *
 * Names are compared byte by byte: to DoubleTick, "Lead" is not "lead".  A row
 * of a user's table may have 100,000 names, so a long list is searched by a hash
 * table; for a short one, a loop is faster.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"

/* A list of fewer names is searched by a loop. */
#define MANY_NAMES 32

/* Capacity of a list of this length that names_append_copy() has made. */
#define CAPACITY(nnames) ((Size) pg_nextpower2_32(nnames))

typedef struct NameEntry
{
	const char *name;
	uint32		hash;
	char		status;
} NameEntry;

#define SH_PREFIX nameset
#define SH_ELEMENT_TYPE NameEntry
#define SH_KEY_TYPE const char *
#define SH_KEY name
#define SH_HASH_KEY(tb, key) hash_bytes((const unsigned char *) (key), strlen(key))
#define SH_EQUAL(tb, a, b) (strcmp((a), (b)) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static int	select_names(const char **names, int nnames, const char **others, int nothers,
						 bool wanted);

/*
 * Returns the elements of a text[], none of which may be null.
 */
const char **
names_of_array(ArrayType *array, int *nnames)
{
	Datum	   *elements;
	const char **names;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, nnames);
	names = palloc(sizeof(char *) * Max(*nnames, 1));
	for (int i = 0; i < *nnames; i++)
		names[i] = TextDatumGetCString(elements[i]);
	pfree(elements);
	return names;
}

/*
 * Returns the names as a text[].  It is built by hand, since each removal has two:
 * construct_array() would cost 600 instructions more for a removal of one name.
 */
ArrayType *
names_to_array(const char **names, int nnames)
{
	Size		size = ARR_OVERHEAD_NONULLS(1);
	ArrayType  *array;
	char	   *element;

	if (nnames == 0)
		return construct_empty_array(TEXTOID);
	for (int i = 0; i < nnames; i++)
		size += INTALIGN(VARHDRSZ + strlen(names[i]));
	array = palloc0(size);
	SET_VARSIZE(array, size);
	array->ndim = 1;
	array->elemtype = TEXTOID;
	ARR_DIMS(array)[0] = nnames;
	ARR_LBOUND(array)[0] = 1;

	element = ARR_DATA_PTR(array);
	for (int i = 0; i < nnames; i++)
	{
		Size		length = strlen(names[i]);

		SET_VARSIZE(element, VARHDRSZ + length);
		memcpy(VARDATA(element), names[i], length);
		element += INTALIGN(VARHDRSZ + length);
	}
	return array;
}

/*
 * Allocates a list of this many names.
 */
const char **
names_alloc(int nnames)
{
	return MemoryContextAllocHuge(CurrentMemoryContext, sizeof(char *) * nnames);
}

/*
 * Copies a list, but not its strings.  NULL for an empty one.
 */
const char **
names_copy(const char **names, int nnames)
{
	if (nnames == 0)
		return NULL;
	return memcpy(names_alloc(nnames), names, sizeof(char *) * nnames);
}

/*
 * Appends copies of the others to a list that only this function appends to.  The
 * strings and, if needed, a longer list are one allocation, since a statement may
 * do this for very many customers.
 */
void
names_append_copy(const char ***names, int *nnames, const char **others, int nothers)
{
	int			total = *nnames + nothers;
	Size		list_size = 0;
	Size		size = 0;
	char	   *piece;

	if (nothers == 0)
		return;
	if (*nnames == 0 || (Size) total > CAPACITY(*nnames))
		list_size = sizeof(char *) * CAPACITY(total);
	for (int i = 0; i < nothers; i++)
		size += strlen(others[i]) + 1;
	piece = MemoryContextAllocHuge(CurrentMemoryContext, list_size + size);
	if (list_size > 0)
	{
		const char **list = (const char **) piece;

		if (*nnames > 0)
			memcpy(list, *names, sizeof(char *) * *nnames);
		*names = list;
		piece += list_size;
	}
	for (int i = 0; i < nothers; i++)
	{
		Size		length = strlen(others[i]) + 1;

		(*names)[(*nnames)++] = memcpy(piece, others[i], length);
		piece += length;
	}
}

/*
 * Removes repeated names in place; the first of each stays.  Returns how many are
 * left.
 */
int
names_distinct(const char **names, int nnames)
{
	nameset_hash *seen = NULL;
	int			nleft = 0;

	if (nnames >= MANY_NAMES)
		seen = nameset_create(CurrentMemoryContext, nnames, NULL);
	for (int i = 0; i < nnames; i++)
	{
		bool		found;

		if (seen)
			(void) nameset_insert(seen, names[i], &found);
		else
			found = names_have(names, nleft, names[i]);
		if (!found)
			names[nleft++] = names[i];
	}
	if (seen)
		nameset_destroy(seen);
	return nleft;
}

/*
 * Is the name in the list?
 */
bool
names_have(const char **names, int nnames, const char *name)
{
	for (int i = 0; i < nnames; i++)
	{
		if (strcmp(names[i], name) == 0)
			return true;
	}
	return false;
}

/*
 * Removes the others from the names, in place.  Returns how many are left.
 */
int
names_subtract(const char **names, int nnames, const char **others, int nothers)
{
	return select_names(names, nnames, others, nothers, false);
}

/*
 * Removes, in place, the names that are not among the others.  Returns how many
 * are left.
 */
int
names_intersect(const char **names, int nnames, const char **others, int nothers)
{
	return select_names(names, nnames, others, nothers, true);
}

static int
select_names(const char **names, int nnames, const char **others, int nothers, bool wanted)
{
	nameset_hash *set = NULL;
	int			nleft = 0;

	if (nnames >= MANY_NAMES && nothers >= MANY_NAMES)
	{
		set = nameset_create(CurrentMemoryContext, nothers, NULL);
		for (int i = 0; i < nothers; i++)
		{
			bool		found;

			(void) nameset_insert(set, others[i], &found);
		}
	}
	for (int i = 0; i < nnames; i++)
	{
		bool		found = set ? nameset_lookup(set, names[i]) != NULL :
		names_have(others, nothers, names[i]);

		if (found == wanted)
			names[nleft++] = names[i];
	}
	if (set)
		nameset_destroy(set);
	return nleft;
}

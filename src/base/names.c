/*-------------------------------------------------------------------------
 *
 * base/names.c
 *		Lists of names: of tags, or of custom fields.
 *
 * Names are compared byte by byte: they are the customer's, and to DoubleTick
 * "Lead" is not "lead".  Looking through a short list is quick; a long one, for a
 * row of a user's table may have any number of names, is sorted first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "catalog/pg_type.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"

/* Names from which on it pays to sort them. */
#define MANY_NAMES 32

/* A list that is appended to has room for so many: a power of two. */
#define ROOM(nnames) ((Size) pg_nextpower2_32(nnames))

static int	compare_places(const void *a, const void *b);
static int	filter(const char **names, int nnames, const char **others, int nothers, bool wanted);
static const char **sort(const char **names, int nnames);
static int	compare(const void *a, const void *b);

/*
 * The elements of a text[] without nulls.
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
 * The names as a text[].  In one piece, for every row that is enqueued has two.
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
 * Room for so many names.
 */
const char **
names_alloc(int nnames)
{
	return MemoryContextAllocHuge(CurrentMemoryContext, sizeof(char *) * nnames);
}

/*
 * Appends copies of the others to names that are only appended to by this.
 */
void
names_append_copy(const char ***names, int *nnames, const char **others, int nothers)
{
	int			total = *nnames + nothers;
	Size		room = *nnames == 0 || (Size) total > ROOM(*nnames) ? sizeof(char *) * ROOM(total) : 0;
	Size		size = room;
	char	   *piece;

	if (nothers == 0)
		return;
	for (int i = 0; i < nothers; i++)
		size += strlen(others[i]) + 1;

	/* A longer list, if need be, and what it points to, in one. */
	piece = MemoryContextAllocHuge(CurrentMemoryContext, size);
	if (room > 0)
	{
		if (*nnames > 0)
			memcpy(piece, *names, sizeof(char *) * *nnames);
		*names = (const char **) piece;
		piece += room;
	}
	for (int i = *nnames; i < total; i++)
	{
		const char *other = others[i - *nnames];
		Size		length = strlen(other) + 1;

		(*names)[i] = memcpy(piece, other, length);
		piece += length;
	}
	*nnames = total;
}

/*
 * Leaves each name once, in first-seen order, in place.  Returns how many are
 * left.
 */
int
names_distinct(const char **names, int nnames)
{
	const char ***places;
	int			nleft = 0;

	if (nnames < MANY_NAMES)
	{
		for (int i = 0; i < nnames; i++)
		{
			if (!names_have(names, nleft, names[i]))
				names[nleft++] = names[i];
		}
		return nleft;
	}

	places = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(char **) * nnames);
	for (int i = 0; i < nnames; i++)
		places[i] = &names[i];
	qsort(places, nnames, sizeof(char **), compare_places);
	for (int i = nnames - 1; i > 0; i--)
	{
		if (strcmp(*places[i - 1], *places[i]) == 0)
			*places[i] = NULL;
	}
	for (int i = 0; i < nnames; i++)
	{
		if (names[i] != NULL)
			names[nleft++] = names[i];
	}
	pfree(places);
	return nleft;
}

/* By name, and the same name by where it stands. */
static int
compare_places(const void *a, const void *b)
{
	const char **x = *(const char **const *) a;
	const char **y = *(const char **const *) b;
	int			order = strcmp(*x, *y);

	return order != 0 ? order : (x > y) - (x < y);
}

/*
 * Is the name among them?
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
 * Takes the others out of the names, in place.  Returns how many are left.
 */
int
names_subtract(const char **names, int nnames, const char **others, int nothers)
{
	return filter(names, nnames, others, nothers, false);
}

/*
 * Leaves only those names that are among the others, in place.  Returns how
 * many are left.
 */
int
names_intersect(const char **names, int nnames, const char **others, int nothers)
{
	return filter(names, nnames, others, nothers, true);
}

static int
filter(const char **names, int nnames, const char **others, int nothers, bool wanted)
{
	bool		are_many = nnames >= MANY_NAMES && nothers >= MANY_NAMES;
	const char **sorted = are_many ? sort(others, nothers) : NULL;
	int			nleft = 0;

	for (int i = 0; i < nnames; i++)
	{
		bool		found;

		if (sorted)
			found = bsearch(&names[i], sorted, nothers, sizeof(char *), compare) != NULL;
		else
			found = names_have(others, nothers, names[i]);
		if (found == wanted)
			names[nleft++] = names[i];
	}
	if (sorted)
		pfree(sorted);
	return nleft;
}

/* A sorted copy. */
static const char **
sort(const char **names, int nnames)
{
	const char **sorted = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(char *) * nnames);

	memcpy(sorted, names, sizeof(char *) * nnames);
	qsort(sorted, nnames, sizeof(char *), compare);
	return sorted;
}

static int
compare(const void *a, const void *b)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/*-------------------------------------------------------------------------
 *
 * names.c
 *		Lists of names: of tags, or of custom fields.
 *
 * Names are compared byte by byte: they are the customer's, and to DoubleTick
 * "Lead" is not "lead".  Looking through lists is quadratic, but a request has
 * at most PAYLOAD_MAX_NAMES names.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "names.h"
#include "utils/builtins.h"

static int	filter(const char **names, int nnames, const char **others, int nothers, bool wanted);

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
 * The names as a text[].
 */
ArrayType *
names_to_array(const char **names, int nnames)
{
	Datum	   *elements;

	if (nnames == 0)
		return construct_empty_array(TEXTOID);
	elements = palloc(sizeof(Datum) * nnames);
	for (int i = 0; i < nnames; i++)
		elements[i] = CStringGetTextDatum(names[i]);
	return construct_array(elements, nnames, TEXTOID, -1, false, TYPALIGN_INT);
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
	int			nleft = 0;

	for (int i = 0; i < nnames; i++)
	{
		if (names_have(others, nothers, names[i]) == wanted)
			names[nleft++] = names[i];
	}
	return nleft;
}

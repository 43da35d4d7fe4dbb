/*-------------------------------------------------------------------------
 *
 * base/names.h
 *		Lists of names: of tags, or of custom fields.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_BASE_NAMES_H
#define DOUBLETICK_BASE_NAMES_H

#include "utils/array.h"

extern const char **names_of_array(ArrayType *array, int *nnames);
extern ArrayType *names_to_array(const char **names, int nnames);
extern const char **names_alloc(int nnames);
extern const char **names_copy(const char **names, int nnames);
extern void names_append_copy(const char ***names, int *nnames, const char **others, int nothers);
extern int	names_distinct(const char **names, int nnames);
extern bool names_have(const char **names, int nnames, const char *name);
extern int	names_subtract(const char **names, int nnames, const char **others, int nothers);
extern int	names_intersect(const char **names, int nnames, const char **others, int nothers);

#endif							/* DOUBLETICK_BASE_NAMES_H */

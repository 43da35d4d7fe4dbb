/*-------------------------------------------------------------------------
 *
 * api/allocation.c
 *		The functions by which libcurl allocates memory.
 *
 * They note a lack of memory: libcurl has one code for that and for a header line that
 * is too long, and in some places yet another.  libcurl frees by free().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/allocation.h"
#include "base/fault_point.h"

bool		allocation_failed = false;

static void *note_allocation(void *memory);

void *
allocation_malloc(size_t size)
{
	return note_allocation(FAULT_ALLOCATION() ? NULL : malloc(size));
}

void *
allocation_calloc(size_t number, size_t size)
{
	return note_allocation(FAULT_ALLOCATION() ? NULL : calloc(number, size));
}

void *
allocation_realloc(void *memory, size_t size)
{
	return note_allocation(FAULT_ALLOCATION() ? NULL : realloc(memory, size));
}

char *
allocation_strdup(const char *string)
{
	return note_allocation(FAULT_ALLOCATION() ? NULL : strdup(string));
}

static void *
note_allocation(void *memory)
{
	allocation_failed = allocation_failed || memory == NULL;
	return memory;
}

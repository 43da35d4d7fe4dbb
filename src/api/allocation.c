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

/*
 * About what libcurl allocates in a turn with 64 requests, and frees again, in bytes.
 */
#define TURN_MEMORY (2 * 1024 * 1024)

static void *note_allocation(void *memory);

/*
 * Called once in a process, before the others.  The C library would give the memory that
 * a turn frees back to the kernel, and fetch it again in the next turn, which was 6 %
 * of the CPU time of a drain.  glibc keeps twice the size of the largest block that it has
 * seen freed (see mallopt(3), M_MMAP_THRESHOLD); it would not learn any more if its
 * thresholds were set.
 */
void
allocation_keep_memory(void)
{
	void	   *volatile block = malloc(TURN_MEMORY);	/* without "volatile" it
														 * is optimized away */

	free(block);
}

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

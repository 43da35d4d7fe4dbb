/*-------------------------------------------------------------------------
 *
 * api/allocation.c
 *		The functions by which libcurl allocates memory, and what the system gets back.
 *
 * They note a lack of memory: libcurl has one code for that and for a header line that
 * is too long, and in some places yet another.  libcurl frees by free().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "api/allocation.h"
#include "base/fault_point.h"

bool		allocation_failed = false;

/*
 * About what libcurl allocates in a turn with 64 requests, and frees again, in bytes.
 */
#define TURN_MEMORY (2 * 1024 * 1024)

/* How much must have been freed before the system gets it back, in bytes. */
#define WORTH_GIVING_BACK (16 * 1024 * 1024)

/* What long answers have taken and freed since the system got memory back, in bytes. */
static size_t freed = 0;

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

/*
 * Called when a long answer is freed: "size" is in bytes.
 */
void
allocation_note_freed(size_t size)
{
	freed += size;
}

/*
 * Called when what was made of many answers is freed, too.  If they were long, the system
 * gets their memory back: the C library does that by itself only with what lies above
 * the last block in use.
 */
void
allocation_give_back(void)
{
	if (freed < WORTH_GIVING_BACK)
		return;
	freed = 0;
#ifdef __GLIBC__
	malloc_trim(0);
#endif
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

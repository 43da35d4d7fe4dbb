/*-------------------------------------------------------------------------
 *
 * api/allocation.h
 *		The functions by which libcurl allocates memory, and what the system gets back.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_ALLOCATION_H
#define DOUBLETICK_API_ALLOCATION_H

/* Has memory been lacking since somebody last set this to false? */
extern bool allocation_failed;

extern void allocation_keep_memory(void);
extern void allocation_note_freed(size_t size);
extern void allocation_give_back(void);
extern void *allocation_malloc(size_t size);
extern void *allocation_calloc(size_t number, size_t size);
extern void *allocation_realloc(void *memory, size_t size);
extern char *allocation_strdup(const char *string);

#endif							/* DOUBLETICK_API_ALLOCATION_H */

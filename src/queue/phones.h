/*-------------------------------------------------------------------------
 *
 * queue/phones.h
 *		For which phones and names removals may wait, as a command sees it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_PHONES_H
#define DOUBLETICK_QUEUE_PHONES_H

#include "api/payload.h"
#include "queue/store.h"

extern bool phones_may_have_waiting(Store *waiting, const char *phone);
extern bool phones_may_have_names(const Removal *names);
extern void phones_learn_names(Store *waiting, const char *phone);
extern void phones_note_removal(const Removal *removal);
extern void phones_forget(void);

#endif							/* DOUBLETICK_QUEUE_PHONES_H */

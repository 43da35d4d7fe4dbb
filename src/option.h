/*-------------------------------------------------------------------------
 *
 * option.h
 *		Options of servers and user mappings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_OPTION_H
#define DOUBLETICK_OPTION_H

#include "account.h"
#include "nodes/pg_list.h"

/* Longest key that is sent, in bytes: servers take 8 kB for all headers. */
#define OPTION_MAX_KEY 4096

extern const Account option_defaults;

extern void option_read(Account *account, List *options, Oid catalog);
extern void option_check(const Account *account);
extern void option_copy(Account *to, const Account *from);
extern const char *option_key_problem(const char *key, size_t length);

#endif							/* DOUBLETICK_OPTION_H */

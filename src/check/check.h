/*-------------------------------------------------------------------------
 *
 * check/check.h
 *		What the checks of dt_check() share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_CHECK_CHECK_H
#define DOUBLETICK_CHECK_CHECK_H

#include "base/fault.h"
#include "nodes/execnodes.h"
#include "nodes/pg_list.h"

/* What dt_check() has looked at so far, and where it reports. */
typedef struct Check
{
	ReturnSetInfo *result;
	bool		connect;		/* is each server to be connected to? */
	Oid			namespace;		/* the extension's schema */
	const char *schema;			/* its name, quoted as an identifier */
	bool		tables_are_good;
	List	   *accounts;		/* AccountKey: those that were checked */
	List	   *faulty;			/* AccountKey: those that have a fault */
	List	   *named;			/* see agreement_check() */
} Check;

/* check.c */
extern void report_problem(Check *check, const char *object, const char *hint,
						   const char *format,...) pg_attribute_printf(4, 5);
extern Fault *catch_fault(void (*function) (void *), void *subject);
extern uint64 select_rows(const char *format,...) pg_attribute_printf(1, 2);
extern char *selected_text(uint64 row, int column);
extern Oid	selected_oid(uint64 row, int column);
extern bool selected_bool(uint64 row, int column);

/* servers.c */
extern void check_settings(Check *check);
extern void check_servers(Check *check);
extern void check_account(Check *check, const char *server, Oid role);
extern bool is_account_faulty(const Check *check, const char *server, Oid role);

/* triggers.c */
extern void check_triggers(Check *check);
extern void check_partitions(Check *check);
extern void check_first_copies(Check *check);

/* queue.c */
extern void check_tables(Check *check);
extern void check_privileges(Check *check);
extern void check_sequence_is_own(Check *check);
extern void check_owners(Check *check);
extern void check_what_waits(Check *check);
extern void check_worker(Check *check);

#endif							/* DOUBLETICK_CHECK_CHECK_H */

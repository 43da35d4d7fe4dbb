/*-------------------------------------------------------------------------
 *
 * compat.h
 *		All differences between PostgreSQL versions.
 *
 * No other file may use PG_VERSION_NUM.  The code is written for the newest form of
 * an interface, and what older servers lack is made here.
 *
 * test/versions builds and tests for 15, 17, 18 and 19.  Debian has no 16: the tests were
 * run by hand on 16.14, but those of backups, dumps and standbys, whose programs it lacked.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_COMPAT_H
#define DOUBLETICK_COMPAT_H

#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "nodes/nodeFuncs.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/syscache.h"

#if PG_VERSION_NUM < 150000
#error "doubletick needs PostgreSQL 15 or newer"
#endif

/* PostgreSQL 15.4 marks a database whose DROP was interrupted. */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB -2
#endif

/* PostgreSQL 16 replaced the per-catalog privilege checks by one. */
#if PG_VERSION_NUM >= 160000
#define server_usage_aclcheck(serverid, roleid) \
	object_aclcheck(ForeignServerRelationId, (serverid), (roleid), ACL_USAGE)
#else
#define server_usage_aclcheck(serverid, roleid) \
	pg_foreign_server_aclcheck((serverid), (roleid), ACL_USAGE)
#endif

/*
 * PostgreSQL 16 lets compilers check what walks a tree.  Before, its type has empty
 * parentheses, and those mean "no arguments" in C23, which gcc 15 takes by default.
 */
#if PG_VERSION_NUM < 160000
#define expression_tree_walker(node, walker, context) \
	expression_tree_walker((node), (bool (*) ()) (void *) (walker), (context))
#define expression_tree_mutator(node, mutator, context) \
	expression_tree_mutator((node), (Node *(*) ()) (void *) (mutator), (context))
#endif

/* PostgreSQL 17 gave extensions wait events with names of their own. */
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#define new_wait_event(name) WaitEventExtensionNew(name)
#else
#define new_wait_event(name) ((void) (name), (uint32) PG_WAIT_EXTENSION)
#endif

/* PostgreSQL 17 tells the methods of memory contexts what to do without memory. */
#if PG_VERSION_NUM >= 170000
#define CONTEXT_ALLOC_ARGUMENTS MemoryContext context, Size size, int flags
#define CONTEXT_ALLOC_PASSED context, size, flags
#else
#define CONTEXT_ALLOC_ARGUMENTS MemoryContext context, Size size
#define CONTEXT_ALLOC_PASSED context, size
#endif

/* PostgreSQL 17 put the number that a backend gives its transaction next to its own. */
#if PG_VERSION_NUM >= 170000
#define my_local_xid() (MyProc->vxid.lxid)
#else
#define my_local_xid() (MyProc->lxid)
#endif

/*
 * Background workers, too, obey these timeouts; PostgreSQL 17 added the second.
 */
static inline void
lift_timeouts(void)
{
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
#if PG_VERSION_NUM >= 170000
	SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
#endif
}

/* PostgreSQL 18 can show a module's name and version. */
#if PG_VERSION_NUM >= 180000
#define DOUBLETICK_MODULE_MAGIC(number) \
	PG_MODULE_MAGIC_EXT(.name = "doubletick", .version = (number))
#else
#define DOUBLETICK_MODULE_MAGIC(number) PG_MODULE_MAGIC
#endif

/*
 * PostgreSQL 18 replaced pg_attribute_noreturn(), which could stand after a
 * declaration, by a word that stands before it.
 */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* PostgreSQL 18 lets every portal be run more than once. */
#if PG_VERSION_NUM >= 180000
#define EXECUTOR_RUN_ARGUMENTS QueryDesc *statement, ScanDirection direction, uint64 count
#define EXECUTOR_RUN_PASSED statement, direction, count
#else
#define EXECUTOR_RUN_ARGUMENTS \
	QueryDesc *statement, ScanDirection direction, uint64 count, bool execute_once
#define EXECUTOR_RUN_PASSED statement, direction, count, execute_once
#endif

/* PostgreSQL 18 divided the header of EXPLAIN. */
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#else
#include "commands/explain.h"
#endif

/* PostgreSQL 19 gave the numbers of system caches a type of their own. */
#if PG_VERSION_NUM >= 190000
typedef SysCacheIdentifier SyscacheId;
#else
typedef int SyscacheId;
#endif

/* PostgreSQL 19 folded the parse state and the result of jsonb building. */
#if PG_VERSION_NUM >= 190000
typedef JsonbInState JsonbBuild;
#define jsonb_push(build, token, value) pushJsonbValue((build), (token), (value))
#else
typedef struct JsonbBuild
{
	JsonbParseState *parseState;
	JsonbValue *result;
} JsonbBuild;

static inline void
jsonb_push(JsonbBuild *build, JsonbIteratorToken token, JsonbValue *value)
{
	build->result = pushJsonbValue(&build->parseState, token, value);
}
#endif

/* PostgreSQL 19 put what table_tuple_delete() is to do into options. */
#if PG_VERSION_NUM >= 190000
#define delete_tuple_at(rel, tid, cid, wait, failure) \
	table_tuple_delete((rel), (tid), (cid), 0, SnapshotAny, InvalidSnapshot, (wait), (failure))
#else
#define delete_tuple_at(rel, tid, cid, wait, failure) \
	table_tuple_delete((rel), (tid), (cid), SnapshotAny, InvalidSnapshot, (wait), (failure), false)
#endif

/* Pushes a key, a value or an element that is a string in the server encoding. */
static inline void
jsonb_push_string(JsonbBuild *build, JsonbIteratorToken token, const char *string)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, string);
	value.val.string.len = strlen(string);
	jsonb_push(build, token, &value);
}

#endif							/* DOUBLETICK_COMPAT_H */

/*-------------------------------------------------------------------------
 *
 * queue/citus.c
 *		What would be enqueued by half of a statement that fails.
 *
 * Citus runs a SELECT over a distributed table as one statement for each shard, over
 * connections of its own.  Outside a transaction block each of these commits by itself.
 * So when one of them fails, and with it the user's SELECT, the others have enqueued,
 * and what they enqueued is sent.  In a transaction block, Citus opens one on these
 * connections, too.
 *
 * Citus is not needed to see that: it tells such a connection, as we do, by the name
 * with which it begins.  SET application_name changes another variable.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "queue/citus.h"
#include "utils/guc.h"

/* How the names of all connections begin that Citus opens for statements of users. */
#define NAME_OF_CITUS "citus_internal"

static bool is_connection_of_citus(void);

/*
 * Called by the SQL functions that enqueue: raises an error if their statement may be
 * a part of one that fails elsewhere.
 */
void
citus_check_transaction(const char *command)
{
	if (!is_connection_of_citus() || IsTransactionBlock())
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("cannot execute %s on a shard of Citus outside a transaction block", command),
			 errdetail("If the statement fails on another shard, what this one has enqueued is sent all the same."),
			 errhint("Execute BEGIN before the statement, or collect the rows in WITH ... AS MATERIALIZED, and enqueue from that.")));
}

/*
 * The name with which a connection begins is the one that RESET brings back.  The
 * server's struct of a connection has it, too, but its header needs those of Kerberos,
 * which need not be there.  It is asked once: to look a setting up for each row costs
 * 600 of the 31,000 instructions of an enqueue.
 */
static bool
is_connection_of_citus(void)
{
	static bool is_known = false;
	static bool is_of_citus = false;

	if (!is_known)
	{
		const char *name = GetConfigOptionResetString("application_name");

		is_of_citus = name && strncmp(name, NAME_OF_CITUS, strlen(NAME_OF_CITUS)) == 0;
		is_known = true;
	}
	return is_of_citus;
}

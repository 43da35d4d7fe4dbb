/*-------------------------------------------------------------------------
 *
 * check/connection.c
 *		Can a server be connected to?
 *
 * Resolves its name, connects, and agrees on TLS, as a request would.  Then it closes
 * the connection: no byte of HTTP is sent.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account/account.h"
#include "api/answer.h"
#include "api/endpoint.h"
#include "check/connection.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "settings.h"
#include "utils/lsyscache.h"

/* Longest wait between two checks for interrupts, in ms; libcurl's sockets end it. */
#define TURN 100

static bool may_connect(const Account *account);

/*
 * Called by dt_check().  NULL when a connection can be made, and when none may be,
 * since requests are switched off or this is not the server's database.  "role" is
 * any that may use the server: its key is not sent.
 */
Fault *
connection_check(const char *server, Oid role)
{
	Account		account;
	HttpTarget	target;
	HttpTransfer *transfer;
	const HttpReply *reply;
	Answer		answer = {0};

	/* Other faults are reported elsewhere; the server's options are there. */
	(void) account_get(server, role, &account);
	if (!may_connect(&account))
		return NULL;
	account.api_key = "none";
	target = endpoint_of(&account);
	target.connect_only = true;
	transfer = http_start(&target, "", 0, account.timeout);
	while ((reply = http_reply(transfer)) == NULL)
	{
		CHECK_FOR_INTERRUPTS();
		http_turn(TURN, WAIT_ANSWER);
	}
	if (reply->result != HTTP_ANSWERED)
		answer_read(reply, &answer);
	http_release(transfer);
	return answer.fault;
}

static bool
may_connect(const Account *account)
{
	return setting_enabled && OidIsValid(account->serverid) &&
		(account->database == NULL ||
		 strcmp(account->database, get_database_name(MyDatabaseId)) == 0);
}

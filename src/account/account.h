/*-------------------------------------------------------------------------
 *
 * account/account.h
 *		Where to send, as whom and how fast: what CREATE SERVER and CREATE
 *		USER MAPPING say.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_ACCOUNT_ACCOUNT_H
#define DOUBLETICK_ACCOUNT_ACCOUNT_H

#include "account/option.h"
#include "base/fault.h"

extern Fault *account_get(const char *servername, Oid roleid, Account *account);
extern Fault *account_check_server(const char *servername);
extern void account_hint_argument(Fault *fault, const char *servername);
extern int64 account_delay(const char *servername);
extern char *account_key_command(const char *servername, Oid roleid);
extern bool account_find_waba(const char *servername, const char **waba);
extern char *account_definition(const char *servername, Oid roleid);
extern TransactionId account_server_xmin(Oid serverid);

#endif							/* DOUBLETICK_ACCOUNT_ACCOUNT_H */

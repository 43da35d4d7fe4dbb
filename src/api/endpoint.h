/*-------------------------------------------------------------------------
 *
 * api/endpoint.h
 *		Where an account's requests go, and how.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_ENDPOINT_H
#define DOUBLETICK_API_ENDPOINT_H

#include "account/account.h"
#include "api/http.h"

extern HttpTarget endpoint_of(const Account *account);

#endif							/* DOUBLETICK_API_ENDPOINT_H */

/*-------------------------------------------------------------------------
 *
 * api/endpoint.c
 *		Where an account's requests go, and how.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/endpoint.h"

/* The one endpoint that is called (API.md, "Request"). */
#define ENDPOINT "/customer/remove-tags-custom-fields"

/*
 * What http_start() needs of an account, copied into the current memory context.
 */
HttpTarget
endpoint_of(const Account *account)
{
	HttpTarget	target = {
		.url = psprintf("%s" ENDPOINT, account->base_url),
		.authorization = pstrdup(account->api_key),
		.ca_file = account->ca_file ? pstrdup(account->ca_file) : NULL,
		.proxy = account->proxy ? pstrdup(account->proxy) : NULL,
		.connect_timeout = account->connect_timeout
	};

	return target;
}

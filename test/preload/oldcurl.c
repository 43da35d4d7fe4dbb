/*-------------------------------------------------------------------------
 *
 * oldcurl.c
 *		A libcurl that is too old for us, for 018_environment.pl.
 *
 * Preloaded into the server, this has libcurl say that it is of version 7.87.0.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include <curl/curl.h>

curl_version_info_data *
curl_version_info(CURLversion version)
{
	static curl_version_info_data old;
	curl_version_info_data *(*real) (CURLversion);

	*(void **) &real = dlsym(RTLD_NEXT, "curl_version_info");
	old = *real(version);
	old.version = "7.87.0";
	old.version_num = 0x075700;
	return &old;
}

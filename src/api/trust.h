/*-------------------------------------------------------------------------
 *
 * api/trust.h
 *		Directories of trusted certificates.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_API_TRUST_H
#define DOUBLETICK_API_TRUST_H

extern const char *trust_hashed_file(const char *directory);

#endif							/* DOUBLETICK_API_TRUST_H */

/*-------------------------------------------------------------------------
 *
 * trust.c
 *		A directory of trusted certificates that has one more, for 013_tls.pl.
 *
 * Preloaded, this has each file that a TLS library looks for in TRUST_DIRECTORY, by
 * the hash of a name (01234567.0), be the file TRUST_FILE.  Both are variables of
 * the environment.  The directory is as old as the epoch, as an image may have it that
 * is the same whenever it is built.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *
path_of(const char *path)
{
	const char *directory = getenv("TRUST_DIRECTORY");
	const char *file = getenv("TRUST_FILE");
	size_t		length = directory ? strlen(directory) : 0;

	if (length == 0 || file == NULL || strncmp(path, directory, length) != 0 ||
		strlen(path) != length + strlen("/01234567.0") || strcmp(path + strlen(path) - 2, ".0") != 0)
		return path;
	return file;
}

int
stat(const char *path, struct stat *status)
{
	int			(*real) (const char *, struct stat *);
	const char *directory = getenv("TRUST_DIRECTORY");
	int			result;

	*(void **) &real = dlsym(RTLD_NEXT, "stat");
	result = real(path_of(path), status);
	if (result == 0 && directory && strcmp(path, directory) == 0)
		memset(&status->st_mtim, 0, sizeof(status->st_mtim));
	return result;
}

int
lstat(const char *path, struct stat *status)
{
	int			(*real) (const char *, struct stat *);

	*(void **) &real = dlsym(RTLD_NEXT, "lstat");
	return real(path_of(path), status);
}

FILE *
fopen(const char *path, const char *mode)
{
	FILE	   *(*real) (const char *, const char *);

	*(void **) &real = dlsym(RTLD_NEXT, "fopen");
	return real(path_of(path), mode);
}

FILE *
fopen64(const char *path, const char *mode)
{
	FILE	   *(*real) (const char *, const char *);

	*(void **) &real = dlsym(RTLD_NEXT, "fopen64");
	return real(path_of(path), mode);
}

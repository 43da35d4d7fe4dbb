/*-------------------------------------------------------------------------
 *
 * api/trust.c
 *		Directories of trusted certificates.
 *
 * OpenSSL looks an authority up in a directory by the hash of its name, so that it
 * reads one small file where a bundle of all authorities takes some 30 ms to parse.
 * The names are links such as 5ad8a5d6.0, which "openssl rehash" makes; without them
 * it finds nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/trust.h"

/* Hexadecimal digits before the point. */
#define HASH_LENGTH 8

static void find_hashed_file(const char *directory, char *path);
static bool is_hashed_name(const char *name);

/*
 * Called for each request without a ca_file: a file of the directory that has such a
 * name; NULL if there is none, and OpenSSL cannot use the directory.  Reads the
 * directory again when it has changed.  The result lives until the next call.
 */
const char *
trust_hashed_file(const char *directory)
{
	static struct timespec checked = {.tv_nsec = -1};	/* no directory's time */
	static char path[MAXPGPATH] = "";
	struct stat status;

	if (stat(directory, &status) != 0)
		return NULL;
	if (status.st_mtim.tv_sec != checked.tv_sec || status.st_mtim.tv_nsec != checked.tv_nsec)
	{
		find_hashed_file(directory, path);
		checked = status.st_mtim;
	}
	return path[0] == '\0' ? NULL : path;
}

/* Sets "path", of MAXPGPATH bytes; "" if there is none that can be read. */
static void
find_hashed_file(const char *directory, char *path)
{
	DIR		   *dir = opendir(directory);
	struct dirent *entry;
	bool		found = false;

	while (dir && !found && (entry = readdir(dir)) != NULL)
	{
		snprintf(path, MAXPGPATH, "%s/%s", directory, entry->d_name);
		found = is_hashed_name(entry->d_name) && access(path, R_OK) == 0;
	}
	if (dir)
		closedir(dir);
	if (!found)
		path[0] = '\0';
}

static bool
is_hashed_name(const char *name)
{
	for (int i = 0; i < HASH_LENGTH; i++)
	{
		if (!isxdigit((unsigned char) name[i]))
			return false;
	}
	return name[HASH_LENGTH] == '.' && isdigit((unsigned char) name[HASH_LENGTH + 1]);
}

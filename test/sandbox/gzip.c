/*-------------------------------------------------------------------------
 *
 * gzip.c
 *		Compressed bodies: an honest one and a bomb.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <pthread.h>
#include <string.h>
#include <zlib.h>

/* How much is compressed, and how much room made for it, at a time. */
#define BLOCK			(16 * 1024)

/* Decoded size of the bomb, in blocks. */
#define BOMB_BLOCKS		(64 * 1024 * 1024 / BLOCK)

static void make_bomb(void);
static void add_deflated(z_stream *z, Buffer *packed, const void *data,
						 size_t len, int flush);

static Buffer bomb;
static pthread_once_t bomb_once = PTHREAD_ONCE_INIT;

/* Compresses into a gzip stream. */
void
gzip(const Buffer *plain, Buffer *packed)
{
	z_stream	z = {0};

	if (deflateInit2(&z, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
		die("could not start compressing");
	add_deflated(&z, packed, plain->data, plain->len, Z_FINISH);
	deflateEnd(&z);
}

/* The bomb, made when first asked for. */
const Buffer *
gzip_bomb(void)
{
	pthread_once(&bomb_once, make_bomb);
	return &bomb;
}

static void
make_bomb(void)
{
	static const char opening[] = "{\"message\":\"";
	char		block[BLOCK];
	z_stream	z = {0};
	int			i;

	if (deflateInit2(&z, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
		die("could not start compressing");
	memset(block, 'x', sizeof(block));
	add_deflated(&z, &bomb, opening, sizeof(opening) - 1, Z_NO_FLUSH);
	for (i = 0; i < BOMB_BLOCKS; i++)
		add_deflated(&z, &bomb, block, sizeof(block), Z_NO_FLUSH);
	add_deflated(&z, &bomb, "\"}", 2, Z_FINISH);
	deflateEnd(&z);
}

static void
add_deflated(z_stream *z, Buffer *packed, const void *data, size_t len, int flush)
{
	z->next_in = (Bytef *) data;
	z->avail_in = (uInt) len;
	do
	{
		buffer_reserve(packed, BLOCK);
		z->next_out = (Bytef *) packed->data + packed->len;
		z->avail_out = BLOCK;
		deflate(z, flush);
		packed->len += BLOCK - z->avail_out;
	} while (z->avail_out == 0);
}

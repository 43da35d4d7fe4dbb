/*-------------------------------------------------------------------------
 *
 * tls.c
 *		The certificate authority of this run, and a TLS context for each
 *		listener: one that is right and four that are wrong in one way each.
 *
 * Keys are made at start and never leave memory; only the authority's
 * certificate is written out.  P-256 throughout: its handshakes are cheap
 * enough that a benchmark measures the client.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#define GOOD_NAMES		"DNS:localhost,DNS:*.sandbox.invalid,IP:127.0.0.1,IP:::1"

/* A certificate with its key. */
typedef struct Identity
{
	EVP_PKEY   *key;
	X509	   *cert;
} Identity;

static void make_authority(Identity *ca);
static void make_identity(Identity *id, const char *names, int from_day,
						  int to_day, const Identity *ca);
static X509 *new_certificate(EVP_PKEY *key, const char *common_name,
							 int from_day, int to_day);
static void add_extension(X509 *cert, X509 *issuer, int nid, const char *value);
static void sign(X509 *cert, const Identity *issuer);
static SSL_CTX *new_context(Identity *id);
static void write_certificate(X509 *cert, const char *path);
static void tls_failed(const char *what) __attribute__((noreturn));

/* Gives each listener but the plain one its context, and writes the CA file. */
void
tls_setup(Listener *listeners, const char *ca_path)
{
	Identity	ca;
	Identity	id;
	SSL_CTX    *old;

	make_authority(&ca);
	write_certificate(ca.cert, ca_path);

	make_identity(&id, GOOD_NAMES, -1, 3650, &ca);
	listeners[LISTEN_HTTPS].tls = new_context(&id);

	make_identity(&id, GOOD_NAMES, -30, -1, &ca);
	listeners[LISTEN_EXPIRED].tls = new_context(&id);

	make_identity(&id, "DNS:wrong.example", -1, 3650, &ca);
	listeners[LISTEN_WRONGHOST].tls = new_context(&id);

	make_identity(&id, GOOD_NAMES, -1, 3650, NULL);
	listeners[LISTEN_SELFSIGNED].tls = new_context(&id);

	/* OpenSSL 3 speaks TLS 1.1, with its SHA-1 signatures, at level 0 only. */
	make_identity(&id, GOOD_NAMES, -1, 3650, &ca);
	old = new_context(&id);
	if (!SSL_CTX_set_min_proto_version(old, TLS1_VERSION) ||
		!SSL_CTX_set_max_proto_version(old, TLS1_1_VERSION) ||
		!SSL_CTX_set_cipher_list(old, "DEFAULT:@SECLEVEL=0"))
		tls_failed("could not set up TLS 1.1");
	listeners[LISTEN_TLS11].tls = old;

	X509_free(ca.cert);
	EVP_PKEY_free(ca.key);
}

/*
 * The authority.  Its name is unique to this run, so that a CA file left over
 * from another one is plainly the wrong one.
 */
static void
make_authority(Identity *ca)
{
	unsigned char id[4];
	char		name[64];

	if (RAND_bytes(id, sizeof(id)) != 1)
		tls_failed("could not get random bytes");
	snprintf(name, sizeof(name), "DoubleTick sandbox CA %02x%02x%02x%02x",
			 id[0], id[1], id[2], id[3]);

	ca->key = EVP_EC_gen("P-256");
	if (ca->key == NULL)
		tls_failed("could not make a key");
	ca->cert = new_certificate(ca->key, name, -60, 3650);
	X509_set_issuer_name(ca->cert, X509_get_subject_name(ca->cert));
	add_extension(ca->cert, ca->cert, NID_basic_constraints, "critical,CA:TRUE");
	add_extension(ca->cert, ca->cert, NID_key_usage, "critical,keyCertSign,cRLSign");
	add_extension(ca->cert, ca->cert, NID_subject_key_identifier, "hash");
	sign(ca->cert, ca);
}

/* A server's certificate for these names; without a CA it signs itself. */
static void
make_identity(Identity *id, const char *names, int from_day, int to_day,
			  const Identity *ca)
{
	const Identity *issuer = ca ? ca : id;

	id->key = EVP_EC_gen("P-256");
	if (id->key == NULL)
		tls_failed("could not make a key");
	id->cert = new_certificate(id->key, "DoubleTick sandbox", from_day, to_day);
	X509_set_issuer_name(id->cert, X509_get_subject_name(issuer->cert));
	add_extension(id->cert, issuer->cert, NID_basic_constraints, "critical,CA:FALSE");
	add_extension(id->cert, issuer->cert, NID_key_usage, "critical,digitalSignature");
	add_extension(id->cert, issuer->cert, NID_ext_key_usage, "serverAuth");
	add_extension(id->cert, issuer->cert, NID_subject_alt_name, names);
	add_extension(id->cert, issuer->cert, NID_subject_key_identifier, "hash");
	if (ca != NULL)
		add_extension(id->cert, ca->cert, NID_authority_key_identifier, "keyid:always");
	sign(id->cert, issuer);
}

/* An X.509 v3 certificate with a random serial, valid between two days from now. */
static X509 *
new_certificate(EVP_PKEY *key, const char *common_name, int from_day, int to_day)
{
	X509	   *cert = checked(X509_new());
	BIGNUM	   *serial = checked(BN_new());

	if (!X509_set_version(cert, X509_VERSION_3) ||
		!BN_rand(serial, 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) ||
		!BN_to_ASN1_INTEGER(serial, X509_get_serialNumber(cert)) ||
		!X509_time_adj_ex(X509_getm_notBefore(cert), from_day, 0, NULL) ||
		!X509_time_adj_ex(X509_getm_notAfter(cert), to_day, 0, NULL) ||
		!X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_UTF8,
									(const unsigned char *) common_name, -1, -1, 0) ||
		!X509_set_pubkey(cert, key))
		tls_failed("could not make a certificate");
	BN_free(serial);
	return cert;
}

static void
add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX	context;
	X509_EXTENSION *extension;

	X509V3_set_ctx_nodb(&context);
	X509V3_set_ctx(&context, issuer, cert, NULL, NULL, 0);
	extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
	if (extension == NULL || !X509_add_ext(cert, extension, -1))
		tls_failed("could not extend a certificate");
	X509_EXTENSION_free(extension);
}

static void
sign(X509 *cert, const Identity *issuer)
{
	if (!X509_sign(cert, issuer->key, EVP_sha256()))
		tls_failed("could not sign a certificate");
}

/* A server context that owns this identity. */
static SSL_CTX *
new_context(Identity *id)
{
	SSL_CTX    *context = SSL_CTX_new(TLS_server_method());

	if (context == NULL ||
		!SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) ||
		SSL_CTX_use_certificate(context, id->cert) != 1 ||
		SSL_CTX_use_PrivateKey(context, id->key) != 1)
		tls_failed("could not set up TLS");

	/* Tickets resume sessions well enough, without the cache and its lock. */
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	/* One read instead of two for a record. */
	SSL_CTX_set_read_ahead(context, 1);

	X509_free(id->cert);
	EVP_PKEY_free(id->key);
	return context;
}

/* Written aside and renamed: whoever sees the file sees all of it. */
static void
write_certificate(X509 *cert, const char *path)
{
	Buffer		aside = {0};
	FILE	   *file;

	buffer_addf(&aside, "%s.new", path);
	file = fopen(aside.data, "w");
	if (file == NULL)
		die("could not write \"%s\": %s", aside.data, strerror(errno));
	if (!PEM_write_X509(file, cert) || fclose(file) != 0 ||
		rename(aside.data, path) != 0)
		die("could not write \"%s\": %s", path, strerror(errno));
	buffer_free(&aside);
}

static void
tls_failed(const char *what)
{
	char		reason[256];

	ERR_error_string_n(ERR_get_error(), reason, sizeof(reason));
	die("%s: %s", what, reason);
}

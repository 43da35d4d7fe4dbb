/*-------------------------------------------------------------------------
 *
 * api/payload.c
 *		From SQL arguments to the JSON body of a removal.
 *
 * No account is looked up and nothing is sent.  Bad arguments become a Fault and not
 * an error, since dt_try_remove_tags_custom_fields() returns them.
 *
 * The rules are those of API.md: names and E.164 numbers are sent exactly as given,
 * "tags" and "customFields" always, "wabaNumber" only when there is one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api/payload.h"
#include "base/names.h"
#include "base/phone.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/string.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

static Fault *check_number(const char *what, text *number, const char **result);
static Fault *check_array(const char *what, ArrayType *array, int *count);
static Fault *read_distinct_names(const char *what, ArrayType *array,
								  const char ***names, int *nnames, size_t *nbytes);
static void push_names(JsonbBuild *build, const char **names, int nnames);

/*
 * Checks the first four arguments of a function that calls or enqueues; see
 * payload_check().
 */
Fault *
payload_read_arguments(FunctionCallInfo fcinfo, Removal *removal)
{
#define ARGUMENT(n, get) (PG_ARGISNULL(n) ? NULL : get(n))
	return payload_check(ARGUMENT(0, PG_GETARG_TEXT_PP),
						 ARGUMENT(1, PG_GETARG_ARRAYTYPE_P),
						 ARGUMENT(2, PG_GETARG_ARRAYTYPE_P),
						 ARGUMENT(3, PG_GETARG_TEXT_PP), removal);
#undef ARGUMENT
}

/*
 * Checks the arguments and fills "removal", whose strings are allocated in the
 * current memory context.  A NULL array means the same as an empty one; a NULL waba
 * means the server's.
 *
 * Returns NULL if there is a removal, else the first thing that is wrong:
 * invalid_parameter_value, or null_value_not_allowed.
 */
Fault *
payload_check(text *phone, ArrayType *tags, ArrayType *fields, text *waba,
			  Removal *removal)
{
	int			count = 0;
	size_t		nbytes = 0;
	Fault	   *fault;

	memset(removal, 0, sizeof(Removal));

	if (phone == NULL)
		return fault_make(ERRCODE_NULL_VALUE_NOT_ALLOWED, "phone must not be null");
	if ((fault = check_number("phone", phone, &removal->phone)) != NULL)
		return fault;
	if (waba && (fault = check_number("waba", waba, &removal->waba)) != NULL)
		return fault;

	if (tags && (fault = check_array("tags", tags, &count)) != NULL)
		return fault;
	if (fields && (fault = check_array("fields", fields, &count)) != NULL)
		return fault;
	if (count == 0)
		return fault_hint(fault_make(ERRCODE_INVALID_PARAMETER_VALUE,
									 "nothing to remove"),
						  "Name at least one tag or one custom field.");
	if (count > PAYLOAD_MAX_NAMES)
		return fault_hint(fault_make(ERRCODE_INVALID_PARAMETER_VALUE,
									 "too many names: %d", count),
						  "One request removes at most %d tags and custom fields together.",
						  PAYLOAD_MAX_NAMES);

	if (tags && (fault = read_distinct_names("tags", tags, &removal->tags,
											 &removal->ntags, &nbytes)) != NULL)
		return fault;
	if (fields && (fault = read_distinct_names("fields", fields, &removal->fields,
											   &removal->nfields, &nbytes)) != NULL)
		return fault;
	return NULL;
}

/*
 * The request body (API.md, "Request").  "default_waba", or NULL, is used when the
 * removal has no waba.
 */
Jsonb *
payload_jsonb(const Removal *removal, const char *default_waba)
{
	const char *waba = removal->waba ? removal->waba : default_waba;
	JsonbBuild	build = {0};

	jsonb_push(&build, WJB_BEGIN_OBJECT, NULL);
	jsonb_push_string(&build, WJB_KEY, "phone");
	jsonb_push_string(&build, WJB_VALUE, removal->phone);
	jsonb_push_string(&build, WJB_KEY, "tags");
	push_names(&build, removal->tags, removal->ntags);
	jsonb_push_string(&build, WJB_KEY, "customFields");
	push_names(&build, removal->fields, removal->nfields);
	if (waba)
	{
		jsonb_push_string(&build, WJB_KEY, "wabaNumber");
		jsonb_push_string(&build, WJB_VALUE, waba);
	}
	jsonb_push(&build, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(build.result);
}

/*
 * The body as it is sent: "length" bytes of JSON text in UTF-8 (RFC 8259, section
 * 8.1).  payload_check() has checked that all of it can be converted.
 */
char *
payload_utf8(Jsonb *payload, size_t *length)
{
	char	   *json = JsonbToCString(NULL, &payload->root, VARSIZE(payload));

	/* ASCII needs no conversion; some encodings have none. */
	if (!pg_is_ascii(json))
		json = pg_server_to_any(json, strlen(json), PG_UTF8);
	*length = strlen(json);
	return json;
}

/*
 * Does the removal have no names?
 */
bool
payload_is_empty(const Removal *removal)
{
	return removal->ntags == 0 && removal->nfields == 0;
}

static Fault *
check_number(const char *what, text *number, const char **result)
{
	*result = text_to_cstring(number);
	if (phone_is_e164(*result))
		return NULL;
	return fault_hint(fault_make(ERRCODE_INVALID_PARAMETER_VALUE, "%s",
								 phone_problem(what, *result)),
					  PHONE_E164_HINT);
}

/* Checks the shape of an array, and adds the number of its elements to "count". */
static Fault *
check_array(const char *what, ArrayType *array, int *count)
{
	if (ARR_NDIM(array) > 1)
		return fault_make(ERRCODE_INVALID_PARAMETER_VALUE,
						  "%s must be a one-dimensional array", what);
	*count += ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	return NULL;
}

/*
 * Reads the names of one kind, each once, in first-seen order.  Each name is
 * compared with all before it: there are at most PAYLOAD_MAX_NAMES.
 */
static Fault *
read_distinct_names(const char *what, ArrayType *array,
					const char ***names, int *nnames, size_t *nbytes)
{
	Datum	   *elements;
	bool	   *nulls;
	int			nelements;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &nelements);
	*names = palloc(sizeof(char *) * Max(nelements, 1));

	for (int i = 0; i < nelements; i++)
	{
		const char *name;
		int			length;

		if (nulls[i])
			return fault_hint(fault_make(ERRCODE_NULL_VALUE_NOT_ALLOWED,
										 "%s must not contain nulls: element %d is null",
										 what, i + 1),
							  "Leave nulls out: array_remove(%s, NULL)", what);
		length = VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i]));
		if (length == 0)
			return fault_make(ERRCODE_INVALID_PARAMETER_VALUE,
							  "%s must not contain empty names: element %d is empty",
							  what, i + 1);
		name = TextDatumGetCString(elements[i]);
		*nbytes += payload_json_length(name);
		if (*nbytes > PAYLOAD_MAX_BYTES)
			return fault_make(ERRCODE_INVALID_PARAMETER_VALUE,
							  "names are too long: more than %d bytes of JSON together",
							  PAYLOAD_MAX_BYTES);
		if (!payload_has_utf8_form(name, length))
			return fault_make(ERRCODE_INVALID_PARAMETER_VALUE,
							  "%s must be text that UTF-8 can hold: element %d is not",
							  what, i + 1);
		if (!names_have(*names, *nnames, name))
			(*names)[(*nnames)++] = name;
	}
	return NULL;
}

/*
 * The length of a string in JSON, without the quotation marks.
 */
size_t
payload_json_length(const char *string)
{
	size_t		length = 0;

	for (const char *c = string; *c; c++)
	{
		if (strchr("\b\f\n\r\t\"\\", *c))
			length += strlen("\\n");
		else
			length += (unsigned char) *c < ' ' ? strlen("\\u0001") : 1;
	}
	return length;
}

/*
 * Can the string be converted to UTF-8?  In a SQL_ASCII database it may be anything;
 * in others a character may have no counterpart, or the encoding no conversion.  The
 * caller has checked that a request can carry so long a name: so the sizes here are
 * small.
 */
bool
payload_has_utf8_form(const char *string, int length)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion;
	unsigned char *utf8;
	int			converted;

	Assert(length <= PAYLOAD_MAX_BYTES);
	if (encoding == PG_UTF8)
		return true;
	if (encoding == PG_SQL_ASCII)
		return pg_verify_mbstr(PG_UTF8, string, length, true);

	conversion = FindDefaultConversionProc(encoding, PG_UTF8);
	if (!OidIsValid(conversion))
		return pg_is_ascii(string);
	utf8 = palloc((Size) length * MAX_CONVERSION_GROWTH + 1);
	converted = pg_do_encoding_conversion_buf(conversion, encoding, PG_UTF8,
											  (unsigned char *) unconstify(char *, string), length,
											  utf8, length * MAX_CONVERSION_GROWTH + 1, true);
	pfree(utf8);
	return converted == length;
}

static void
push_names(JsonbBuild *build, const char **names, int nnames)
{
	jsonb_push(build, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < nnames; i++)
		jsonb_push_string(build, WJB_ELEM, names[i]);
	jsonb_push(build, WJB_END_ARRAY, NULL);
}

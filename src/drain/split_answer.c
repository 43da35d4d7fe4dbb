/*-------------------------------------------------------------------------
 *
 * drain/split_answer.c
 *		One row's part of the answer to a request that carried several.
 *
 * The shape of an answer is API.md's: under "tags" and "customFields" each, an
 * array "removed" of names and an array "errored" of objects that name the tag
 * or the custom field and say what was wrong.  What has another shape is left
 * out, since it belongs to no row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/fault.h"
#include "drain/split_answer.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* Longest text of answer_errors(), in bytes; the answer itself is kept whole. */
#define MAX_NOTE 1000

/* The two kinds of names, as an answer has them. */
typedef struct Kind
{
	const char *key;			/* in the answer */
	const char *name;			/* in an object under "errored" */
} Kind;

static const Kind tag_kind = {"tags", "tag"};
static const Kind field_kind = {"customFields", "customField"};

static void push_names(JsonbBuild *build, Jsonb *answer, const Kind *kind,
					   const char **names, int nnames);
static void push_own_members(JsonbBuild *build, JsonbContainer *members, const Kind *kind,
							 const char **names, int nnames);
static JsonbContainer *array_in_answer(Jsonb *answer, const char *kind, const char *key);
static bool is_own_name(const JsonbValue *name, const char **names, int nnames);
static JsonbValue *name_of_member(JsonbValue *member, const Kind *kind);
static JsonbValue *string_in_object(JsonbContainer *object, const char *key);
static void append_json_string(StringInfo note, const JsonbValue *string, const char *otherwise);
static void note_errors(StringInfo note, Jsonb *answer, const Kind *kind);

/*
 * Called by settle.c: what the answer says of one row's names, in the same shape.
 */
Jsonb *
split_answer(Jsonb *answer, const DueRow *row)
{
	JsonbBuild	build = {0};

	jsonb_push(&build, WJB_BEGIN_OBJECT, NULL);
	push_names(&build, answer, &tag_kind, row->tags, row->ntags);
	push_names(&build, answer, &field_kind, row->fields, row->nfields);
	jsonb_push(&build, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(build.result);
}

static void
push_names(JsonbBuild *build, Jsonb *answer, const Kind *kind, const char **names, int nnames)
{
	static const char *const keys[] = {"removed", "errored"};

	jsonb_push_string(build, WJB_KEY, kind->key);
	jsonb_push(build, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < (int) lengthof(keys); i++)
	{
		jsonb_push_string(build, WJB_KEY, keys[i]);
		jsonb_push(build, WJB_BEGIN_ARRAY, NULL);
		push_own_members(build, array_in_answer(answer, kind->key, keys[i]), kind, names, nnames);
		jsonb_push(build, WJB_END_ARRAY, NULL);
	}
	jsonb_push(build, WJB_END_OBJECT, NULL);
}

static void
push_own_members(JsonbBuild *build, JsonbContainer *members, const Kind *kind,
				 const char **names, int nnames)
{
	uint32		nmembers = members ? JsonContainerSize(members) : 0;

	for (uint32 i = 0; i < nmembers; i++)
	{
		JsonbValue *member = getIthJsonbValueFromContainer(members, i);
		JsonbValue *name = name_of_member(member, kind);

		if (name && is_own_name(name, names, nnames))
			jsonb_push(build, WJB_ELEM, member);
		if (name && name != member)
			pfree(name);
		pfree(member);
	}
}

/* Does not copy the name: an answer has many, and is searched for each row. */
static bool
is_own_name(const JsonbValue *name, const char **names, int nnames)
{
	size_t		length = name->val.string.len;

	for (int i = 0; i < nnames; i++)
	{
		if (strncmp(names[i], name->val.string.val, length) == 0 && names[i][length] == '\0')
			return true;
	}
	return false;
}

/* The array answer.kind.key; NULL when there is none. */
static JsonbContainer *
array_in_answer(Jsonb *answer, const char *kind, const char *key)
{
	JsonbValue *value = getKeyJsonValueFromContainer(&answer->root, kind, strlen(kind), NULL);

	if (value == NULL || value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		return NULL;
	value = getKeyJsonValueFromContainer(value->val.binary.data, key, strlen(key), NULL);
	if (value == NULL || value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		return NULL;
	return value->val.binary.data;
}

/* The name that a member of "removed" or "errored" is about; NULL if none. */
static JsonbValue *
name_of_member(JsonbValue *member, const Kind *kind)
{
	if (member->type == jbvString)
		return member;
	if (member->type == jbvBinary && JsonContainerIsObject(member->val.binary.data))
		return string_in_object(member->val.binary.data, kind->name);
	return NULL;
}

static JsonbValue *
string_in_object(JsonbContainer *object, const char *key)
{
	JsonbValue *value = getKeyJsonValueFromContainer(object, key, strlen(key), NULL);

	return value && value->type == jbvString ? value : NULL;
}

/*
 * Called by settle.c: the names that an answer has under "errored", with what was
 * wrong with each, as text; NULL when there are none.
 */
char *
answer_errors(Jsonb *answer)
{
	StringInfoData note;

	initStringInfo(&note);
	note_errors(&note, answer, &tag_kind);
	note_errors(&note, answer, &field_kind);
	if (note.len > MAX_NOTE)
		strcpy(note.data + fault_cliplen(note.data, MAX_NOTE - 3), "...");
	return note.len > 0 ? note.data : NULL;
}

static void
note_errors(StringInfo note, Jsonb *answer, const Kind *kind)
{
	JsonbContainer *errored = array_in_answer(answer, kind->key, "errored");
	uint32		nerrored = errored ? JsonContainerSize(errored) : 0;

	for (uint32 i = 0; i < nerrored && note->len <= MAX_NOTE; i++)
	{
		JsonbValue *member = getIthJsonbValueFromContainer(errored, i);
		JsonbValue *name = name_of_member(member, kind);
		JsonbValue *error = member->type == jbvBinary && name ?
		string_in_object(member->val.binary.data, "error") : NULL;

		appendStringInfo(note, "%s%s \"", note->len > 0 ? "; " : "",
						 kind == &tag_kind ? "tag" : "custom field");
		append_json_string(note, name, "?");
		appendStringInfoString(note, error ? "\": " : "\"");
		append_json_string(note, error, "");
	}
}

static void
append_json_string(StringInfo note, const JsonbValue *string, const char *otherwise)
{
	if (string)
		appendBinaryStringInfo(note, string->val.string.val, string->val.string.len);
	else
		appendStringInfoString(note, otherwise);
}

/*-------------------------------------------------------------------------
 *
 * drain/split_answer.c
 *		One row's part of an answer to several.
 *
 * The shape of an answer is API.md's: under "tags" and "customFields" each, an
 * array "removed" of names and an array "errored" of objects that name the tag
 * or the custom field and say what was wrong.  A row whose names an answer does
 * not all mention in this shape gets the whole answer, so that nothing is lost; if that
 * is large, it says which other row has it (settle.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/fault.h"
#include "drain/split_answer.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/jsonb.h"

/*
 * How often a name of ours may be compared with one of an answer.  With as many names as a
 * request may have this takes seconds if the answer has 50 times as many, and it may have
 * more than that.
 */
#define MAX_COMPARISONS 50000000

/* Longest note of what was not removed, in bytes; the answer has it all. */
#define MAX_NOTE 1000

/* Most bytes of an answer, and of a row's names, that are remembered; see is_like_last(). */
#define REMEMBERED_ANSWER 1024
#define REMEMBERED_NAMES 512

/* The two kinds of names, as an answer has them. */
typedef struct Kind
{
	const char *key;			/* in the answer */
	const char *name;			/* of an object under "errored" */
	const char *word;			/* for people */
} Kind;

static const Kind tag_kind = {"tags", "tag", "tag"};
static const Kind field_kind = {"customFields", "customField", "custom field"};

/* What an answer has for each kind. */
static const char *const lists[] = {"removed", "errored"};

/* The names of a row, packed: each ends with a NUL, and the tags with one more. */
typedef struct PackedNames
{
	size_t		length;			/* 0: there is not enough room */
	char		bytes[REMEMBERED_NAMES];
} PackedNames;

/* The last answer without a problem, and the names of the row that it was for. */
static PackedNames last_names;
static union
{
	Jsonb		json;
	char		bytes[REMEMBERED_ANSWER];
}			last_answer;

static bool is_like_last(Jsonb *answer, const PackedNames *names);
static void pack_names(PackedNames *packed, const DueRow *row);
static bool pack(PackedNames *packed, const char **names, int nnames);
static void push_names(JsonbBuild *build, Jsonb *answer, const Kind *kind,
					   const char **names, int nnames);
static void push_own_members(JsonbBuild *build, JsonbContainer *members, const Kind *kind,
							 const char **names, int nnames);
static JsonbContainer *array_in_answer(Jsonb *answer, const char *kind, const char *key);
static bool is_own_name(const JsonbValue *name, const char **names, int nnames);
static JsonbValue *name_of_member(JsonbValue *member, const Kind *kind);
static JsonbValue *string_in_object(JsonbContainer *object, const char *key);
static int	next_unaccounted(Jsonb *answer, const Kind *kind, const char **names, int nnames,
							 int from);
static bool mentions(JsonbContainer *members, const Kind *kind, const char *name);
static void note_errored(StringInfo note, Jsonb *answer, const Kind *kind,
						 const char **names, int nnames);
static void note_unaccounted(StringInfo note, Jsonb *answer, const Kind *kind,
							 const char **names, int nnames);
static void append_json(StringInfo note, JsonbValue *value);
static void append_name(StringInfo note, const char *name, int length);

/*
 * What the answer says of the names of one row, in the answer's own shape.
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
	jsonb_push_string(build, WJB_KEY, kind->key);
	jsonb_push(build, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		jsonb_push_string(build, WJB_KEY, lists[i]);
		jsonb_push(build, WJB_BEGIN_ARRAY, NULL);
		push_own_members(build, array_in_answer(answer, kind->key, lists[i]), kind, names, nnames);
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

/* Without a copy: an answer has many names, and is looked through for each row. */
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

/* The array answer.kind.key, NULL when there is none. */
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

/* The name that a member of "removed" or "errored" is about; NULL: none. */
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
 * Can this many names be looked up in the answer, in a time for which others can wait?
 */
bool
answer_is_searchable(Jsonb *answer, int nnames)
{
	static const Kind *const kinds[] = {&tag_kind, &field_kind};
	int64		nmembers = 0;

	/* Nearly always: a member takes more than one byte. */
	if ((int64) VARSIZE(answer) * nnames <= MAX_COMPARISONS)
		return true;
	for (int i = 0; i < (int) lengthof(kinds); i++)
	{
		for (int j = 0; j < (int) lengthof(lists); j++)
		{
			JsonbContainer *members = array_in_answer(answer, kinds[i]->key, lists[j]);

			nmembers += members ? JsonContainerSize(members) : 0;
		}
	}
	return nmembers * nnames <= MAX_COMPARISONS;
}

/*
 * Does the answer say what became of each name of a row, under "removed" or
 * "errored" and as the name was given?
 */
bool
answer_accounts_for(Jsonb *answer, const DueRow *row)
{
	return next_unaccounted(answer, &tag_kind, row->tags, row->ntags, 0) == row->ntags &&
		next_unaccounted(answer, &field_kind, row->fields, row->nfields, 0) == row->nfields;
}

/* The first of the names, from a place on, that the answer does not mention. */
static int
next_unaccounted(Jsonb *answer, const Kind *kind, const char **names, int nnames, int from)
{
	JsonbContainer *removed = array_in_answer(answer, kind->key, "removed");
	JsonbContainer *errored = array_in_answer(answer, kind->key, "errored");

	while (from < nnames &&
		   (mentions(removed, kind, names[from]) || mentions(errored, kind, names[from])))
		from++;
	return from;
}

static bool
mentions(JsonbContainer *members, const Kind *kind, const char *name)
{
	uint32		nmembers = members ? JsonContainerSize(members) : 0;
	bool		found = false;

	/* An answer of many names that nobody asked for takes a while. */
	CHECK_FOR_INTERRUPTS();
	for (uint32 i = 0; i < nmembers && !found; i++)
	{
		JsonbValue *member = getIthJsonbValueFromContainer(members, i);
		JsonbValue *mentioned = name_of_member(member, kind);

		found = mentioned && is_own_name(mentioned, &name, 1);
		if (mentioned && mentioned != member)
			pfree(mentioned);
		pfree(member);
	}
	return found;
}

/*
 * What went wrong with the names of a row that is done: those under "errored", with
 * what was wrong with each, and those that the answer does not mention.  As text of
 * one line; NULL when nothing did.
 */
char *
answer_problems(Jsonb *answer, const DueRow *row)
{
	PackedNames names;
	StringInfoData note;

	pack_names(&names, row);
	if (is_like_last(answer, &names))
		return NULL;

	initStringInfo(&note);
	note_errored(&note, answer, &tag_kind, row->tags, row->ntags);
	note_errored(&note, answer, &field_kind, row->fields, row->nfields);
	note_unaccounted(&note, answer, &tag_kind, row->tags, row->ntags);
	note_unaccounted(&note, answer, &field_kind, row->fields, row->nfields);
	if (note.len > MAX_NOTE)
		strcpy(note.data + fault_cliplen(note.data, MAX_NOTE - 3), "...");
	fault_make_one_line(note.data);
	if (note.len > 0)
		return note.data;
	if (VARSIZE(answer) <= REMEMBERED_ANSWER)
	{
		memcpy(&last_answer, answer, VARSIZE(answer));
		last_names = names;
	}
	return NULL;
}

/*
 * Were the answer and the names the same when an answer last told of no problem?  To
 * look through an answer takes as long as to delete a row, and many customers who lose
 * the same names have answers that are alike (see object_of() in api/answer.c).
 */
static bool
is_like_last(Jsonb *answer, const PackedNames *names)
{
	return names->length > 0 && names->length == last_names.length &&
		memcmp(names->bytes, last_names.bytes, names->length) == 0 &&
		VARSIZE(answer) == VARSIZE(&last_answer) &&
		memcmp(answer, &last_answer, VARSIZE(answer)) == 0;
}

static void
pack_names(PackedNames *packed, const DueRow *row)
{
	const char *end_of_tags = "";

	packed->length = 0;
	if (!pack(packed, row->tags, row->ntags) || !pack(packed, &end_of_tags, 1) ||
		!pack(packed, row->fields, row->nfields))
		packed->length = 0;
}

/* False when there is not enough room. */
static bool
pack(PackedNames *packed, const char **names, int nnames)
{
	for (int i = 0; i < nnames; i++)
	{
		size_t		size = strlen(names[i]) + 1;

		if (size > REMEMBERED_NAMES - packed->length)
			return false;
		memcpy(packed->bytes + packed->length, names[i], size);
		packed->length += size;
	}
	return true;
}

/*
 * What names no name of ours may be about any, and is shown as it is; so is what has no
 * text under "error".
 */
static void
note_errored(StringInfo note, Jsonb *answer, const Kind *kind, const char **names, int nnames)
{
	JsonbContainer *errored = nnames > 0 ? array_in_answer(answer, kind->key, "errored") : NULL;
	uint32		nerrored = errored ? JsonContainerSize(errored) : 0;

	for (uint32 i = 0; i < nerrored && note->len <= MAX_NOTE; i++)
	{
		JsonbValue *member = getIthJsonbValueFromContainer(errored, i);
		JsonbValue *name = name_of_member(member, kind);
		JsonbValue *error = member->type == jbvBinary && name ?
		string_in_object(member->val.binary.data, "error") : NULL;

		if (name && !is_own_name(name, names, nnames))
			continue;
		appendStringInfo(note, "%s%s ", note->len > 0 ? "; " : "", kind->word);
		if (name)
			append_name(note, name->val.string.val, name->val.string.len);
		if (name == member ||
			(name && error == NULL && JsonContainerSize(member->val.binary.data) == 1))
			continue;			/* it says no more */
		if (name)
			appendStringInfoString(note, ": ");
		if (error)
			appendBinaryStringInfo(note, error->val.string.val, error->val.string.len);
		else
			append_json(note, member);
	}
}

static void
append_json(StringInfo note, JsonbValue *value)
{
	Jsonb	   *json = JsonbValueToJsonb(value);

	JsonbToCString(note, &json->root, VARSIZE(json));
}

static void
note_unaccounted(StringInfo note, Jsonb *answer, const Kind *kind, const char **names, int nnames)
{
	for (int i = next_unaccounted(answer, kind, names, nnames, 0);
		 i < nnames && note->len <= MAX_NOTE;
		 i = next_unaccounted(answer, kind, names, nnames, i + 1))
	{
		appendStringInfo(note, "%sthe answer does not mention %s ",
						 note->len > 0 ? "; " : "", kind->word);
		append_name(note, names[i], strlen(names[i]));
	}
}

static void
append_name(StringInfo note, const char *name, int length)
{
	appendStringInfoChar(note, '"');
	appendBinaryStringInfo(note, name, length);
	appendStringInfoChar(note, '"');
}

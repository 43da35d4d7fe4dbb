/*-------------------------------------------------------------------------
 *
 * change.c
 *		From what customers had and have to what is entered into the queue.
 *
 * What is lost is entered as a removal, unless the transaction has gained it
 * elsewhere (gains.c); what is there is kept: a waiting removal of it is taken
 * back.
 *
 * Nothing that is in the data raises an error.  What cannot be sent goes into
 * the history as failed, with the reason.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "change.h"
#include "gains.h"
#include "miscadmin.h"
#include "names.h"

static void compare(const Requester *requester, Removal *old, uint32 old_row,
					const Removal *new, uint32 new_row, Removal *lost, Removal *gained);
static void add_renumbered(const Requester *requester, const Removal *old, uint32 old_row,
						   const Removal *new, Removal *gained);
static void keep(Queue *queue, const Requester *requester, const Removal *now);
static bool is_number(const char *number);
static bool is_usable(const Removal *names);
static const char *reason(const char *what, const char *number);
static void fail_unsendable(const Requester *requester, Removal *lost);
static bool are_sendable(const char **names, int nnames);
static bool is_sendable(const char *name);
static int	split_unsendable(const char **names, int nnames, const char **unsendable, int *nunsendable);
static void enter_in_parts(Queue *queue, const Requester *requester, const Removal *lost);
static int	fit(const char **names, int nnames, int *room, size_t *nbytes);

/* Numbers are compared without a leading "+". */
#define DIGITS(number) ((number) + (*(number) == '+'))

/*
 * A row was changed: "old" and "new" are what it said and says, NULL where there
 * is none; the numbers tell it from other rows (gains.h).  What it has now is
 * kept.  Leaves in "lost" what is to be removed, as far as this row can tell.
 * "old" is used up.
 */
void
change_row(Queue *queue, const Requester *requester, Removal *old, uint32 old_row,
		   const Removal *new, uint32 new_row, Removal *lost)
{
	Removal		gained = {0};

	memset(lost, 0, sizeof(Removal));
	compare(requester, old, old_row, new, new_row, lost, &gained);
	gains_add(requester, &gained, new_row);
	if (new && new->phone)
		keep(queue, requester, new);
	gains_cover(requester, lost, old_row);
}

/*
 * What a row has lost and gained.  What it had gained before, under another number,
 * is gained anew, and no longer counts under the old one.
 */
static void
compare(const Requester *requester, Removal *old, uint32 old_row,
		const Removal *new, uint32 new_row, Removal *lost, Removal *gained)
{
	bool		had = old && old->phone;
	bool		has = new && new->phone;

	if (had)
		*lost = *old;
	if (has)
		*gained = change_copy(new);
	if (had && has && change_is_same_customer(old, new))
	{
		change_subtract(gained, old);
		if (gains_any() && old_row != new_row)
			add_renumbered(requester, old, old_row, new, gained);
		change_subtract(lost, new);
	}
}

/* Of the names that stay those that the row has gained. */
static void
add_renumbered(const Requester *requester, const Removal *old, uint32 old_row,
			   const Removal *new, Removal *gained)
{
	Removal		stay = change_copy(new);

	change_intersect(&stay, old);
	gains_take(requester, &stay, old_row);
	/* There is room for all names of the new row. */
	memcpy(gained->tags + gained->ntags, stay.tags, sizeof(char *) * stay.ntags);
	memcpy(gained->fields + gained->nfields, stay.fields, sizeof(char *) * stay.nfields);
	gained->ntags += stay.ntags;
	gained->nfields += stay.nfields;
}

/* A customer has these names now: a waiting removal of them is taken back. */
static void
keep(Queue *queue, const Requester *requester, const Removal *now)
{
	Removal		kept;

	if (payload_is_empty(now) || !is_usable(now))
		return;
	PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
	if (!queue_may_have(queue, requester, now))
		return;
	kept = change_copy(now);
	queue_keep(queue, requester, &kept);
	gains_owe(requester, &kept);
}

/*
 * Do both name one customer?
 */
bool
change_is_same_customer(const Removal *row, const Removal *other)
{
	return strcmp(DIGITS(row->phone), DIGITS(other->phone)) == 0 &&
		(row->waba == NULL) == (other->waba == NULL) &&
		(row->waba == NULL || strcmp(DIGITS(row->waba), DIGITS(other->waba)) == 0);
}

/*
 * Takes the others' names out, in place.
 */
void
change_subtract(Removal *names, const Removal *others)
{
	names->ntags = names_subtract(names->tags, names->ntags, others->tags, others->ntags);
	names->nfields = names_subtract(names->fields, names->nfields, others->fields, others->nfields);
}

/*
 * Leaves those that are among the others', in place.
 */
void
change_intersect(Removal *names, const Removal *others)
{
	names->ntags = names_intersect(names->tags, names->ntags, others->tags, others->ntags);
	names->nfields = names_intersect(names->fields, names->nfields, others->fields, others->nfields);
}

/*
 * A copy whose lists can be changed.
 */
Removal
change_copy(const Removal *names)
{
	Removal		copy = *names;

	copy.tags = palloc_extended(sizeof(char *) * (names->ntags + 1), MCXT_ALLOC_HUGE);
	copy.fields = palloc_extended(sizeof(char *) * (names->nfields + 1), MCXT_ALLOC_HUGE);
	memcpy(copy.tags, names->tags, sizeof(char *) * names->ntags);
	memcpy(copy.fields, names->fields, sizeof(char *) * names->nfields);
	return copy;
}

/*
 * A customer has lost these names.
 */
void
change_remove(Queue *queue, const Requester *requester, Removal *lost)
{
	if (payload_is_empty(lost))
		return;
	PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
	if (!is_number(lost->phone))
		(void) queue_fail(requester, lost, reason("phone", lost->phone));
	else if (lost->waba && !is_number(lost->waba))
		(void) queue_fail(requester, lost, reason("waba", lost->waba));
	else
	{
		fail_unsendable(requester, lost);
		enter_in_parts(queue, requester, lost);
	}
}

static bool
is_usable(const Removal *names)
{
	return is_number(names->phone) && (names->waba == NULL || is_number(names->waba));
}

static bool
is_number(const char *number)
{
	return payload_is_e164(number);
}

static const char *
reason(const char *what, const char *number)
{
	return psprintf("%s is not a number in international format: \"%s\"", what,
					pnstrdup(number, fault_cliplen(number, 64)));
}

/* Takes out what no request can carry. */
static void
fail_unsendable(const Requester *requester, Removal *lost)
{
	Removal		unsendable;

	if (are_sendable(lost->tags, lost->ntags) && are_sendable(lost->fields, lost->nfields))
		return;
	unsendable = change_copy(lost);
	lost->ntags = split_unsendable(lost->tags, lost->ntags, unsendable.tags, &unsendable.ntags);
	lost->nfields = split_unsendable(lost->fields, lost->nfields,
									 unsendable.fields, &unsendable.nfields);
	(void) queue_fail(requester, &unsendable,
					  psprintf("names cannot be sent: UTF-8 cannot hold them, or they are longer than %d bytes as JSON",
							   PAYLOAD_MAX_BYTES));
}

static bool
are_sendable(const char **names, int nnames)
{
	for (int i = 0; i < nnames; i++)
	{
		if (!is_sendable(names[i]))
			return false;
	}
	return true;
}

static bool
is_sendable(const char *name)
{
	return payload_has_utf8_form(name, strlen(name)) &&
		payload_json_length(name) <= PAYLOAD_MAX_BYTES;
}

static int
split_unsendable(const char **names, int nnames, const char **unsendable, int *nunsendable)
{
	int			nleft = 0;

	*nunsendable = 0;
	for (int i = 0; i < nnames; i++)
	{
		if (is_sendable(names[i]))
			names[nleft++] = names[i];
		else
			unsendable[(*nunsendable)++] = names[i];
	}
	return nleft;
}

/* As many rows as it takes for each to fit into one request. */
static void
enter_in_parts(Queue *queue, const Requester *requester, const Removal *lost)
{
	Removal		left = *lost;

	while (!payload_is_empty(&left))
	{
		Removal		part = left;
		int			room = PAYLOAD_MAX_NAMES;
		size_t		nbytes = 0;

		part.ntags = fit(left.tags, left.ntags, &room, &nbytes);
		part.nfields = part.ntags < left.ntags ? 0 : fit(left.fields, left.nfields, &room, &nbytes);
		(void) queue_remove(queue, requester, &part);
		left.tags += part.ntags;
		left.ntags -= part.ntags;
		left.fields += part.nfields;
		left.nfields -= part.nfields;
	}
}

/* How many of the names, from the first on, there is room for. */
static int
fit(const char **names, int nnames, int *room, size_t *nbytes)
{
	int			n;

	for (n = 0; n < nnames && *room > 0; n++)
	{
		*nbytes += payload_json_length(names[n]);
		if (*nbytes > PAYLOAD_MAX_BYTES)
			break;
		(*room)--;
	}
	return n;
}

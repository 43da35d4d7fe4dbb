/*-------------------------------------------------------------------------
 *
 * trigger/difference.c
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

#include "base/names.h"
#include "base/phone.h"
#include "miscadmin.h"
#include "trigger/difference.h"
#include "trigger/gains.h"

static void compare(const Requester *requester, Removal *old, uint32 old_row,
					const Removal *new, uint32 new_row, Removal *lost, Removal *gained);
static void add_renumbered(const Requester *requester, const Removal *old, uint32 old_row,
						   const Removal *new, Removal *gained);
static bool is_usable(const Removal *names);
static void fail_unsendable(const Requester *requester, Removal *lost);
static bool are_sendable(const char **names, int nnames);
static bool is_sendable(const char *name);
static int	split_unsendable(const char **names, int nnames, const char **unsendable, int *nunsendable);
static void enter_in_parts(Queue *queue, const Requester *requester, const Removal *lost);
static int	fit(const char **names, int nnames, int *room, size_t *nbytes);

/*
 * A row was changed: "old" and "new" are what it said and says, NULL where there
 * is none; the numbers tell it from other rows (gains.h).  Leaves in "lost" what
 * is to be removed, as far as this row can tell.  "old" is used up.
 */
void
difference_row(const Requester *requester, Removal *old, uint32 old_row,
		   const Removal *new, uint32 new_row, Removal *lost)
{
	Removal		gained = {0};

	memset(lost, 0, sizeof(Removal));
	compare(requester, old, old_row, new, new_row, lost, &gained);
	gains_record(requester, &gained, new_row);
	gains_withhold_lost(requester, lost, old_row);
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
		*gained = difference_copy(new);
	if (had && has && difference_is_same_customer(old, new))
	{
		difference_subtract(gained, old);
		if (gains_any() && old_row != new_row)
			add_renumbered(requester, old, old_row, new, gained);
		difference_subtract(lost, new);
	}
}

/* Of the names that stay those that the row has gained. */
static void
add_renumbered(const Requester *requester, const Removal *old, uint32 old_row,
			   const Removal *new, Removal *gained)
{
	Removal		stay = difference_copy(new);

	difference_intersect(&stay, old);
	gains_withdraw(requester, &stay, old_row);
	/* There is room for all names of the new row. */
	memcpy(gained->tags + gained->ntags, stay.tags, sizeof(char *) * stay.ntags);
	memcpy(gained->fields + gained->nfields, stay.fields, sizeof(char *) * stay.nfields);
	gained->ntags += stay.ntags;
	gained->nfields += stay.nfields;
}

/*
 * Might a removal wait of these names, which a customer has now?
 */
bool
difference_may_keep(Queue *queue, const Requester *requester, const Removal *now)
{
	if (payload_is_empty(now) || !is_usable(now))
		return false;
	PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
	return queue_may_have_waiting(queue, requester, now);
}

/*
 * Takes a waiting removal of these names back.  Uses them up.
 */
void
difference_keep(Queue *queue, const Requester *requester, Removal *now)
{
	queue_add_keep(queue, requester, now);
	gains_note_suppressed(requester, now);
}

/*
 * Do both name one customer?
 */
bool
difference_is_same_customer(const Removal *row, const Removal *other)
{
	return phone_equal(row->phone, other->phone) && phone_equal(row->waba, other->waba);
}

/*
 * Takes the others' names out, in place.
 */
void
difference_subtract(Removal *names, const Removal *others)
{
	names->ntags = names_subtract(names->tags, names->ntags, others->tags, others->ntags);
	names->nfields = names_subtract(names->fields, names->nfields, others->fields, others->nfields);
}

/*
 * Leaves those that are among the others', in place.
 */
void
difference_intersect(Removal *names, const Removal *others)
{
	names->ntags = names_intersect(names->tags, names->ntags, others->tags, others->ntags);
	names->nfields = names_intersect(names->fields, names->nfields, others->fields, others->nfields);
}

/*
 * A copy whose lists can be changed.
 */
Removal
difference_copy(const Removal *names)
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
difference_remove(Queue *queue, const Requester *requester, Removal *lost)
{
	if (payload_is_empty(lost))
		return;
	PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
	if (!phone_is_e164(lost->phone))
		(void) queue_add_failed(requester, lost, phone_problem("phone", lost->phone));
	else if (lost->waba && !phone_is_e164(lost->waba))
		(void) queue_add_failed(requester, lost, phone_problem("waba", lost->waba));
	else
	{
		fail_unsendable(requester, lost);
		enter_in_parts(queue, requester, lost);
	}
}

static bool
is_usable(const Removal *names)
{
	return phone_is_e164(names->phone) && (names->waba == NULL || phone_is_e164(names->waba));
}

/* Takes out what no request can carry. */
static void
fail_unsendable(const Requester *requester, Removal *lost)
{
	Removal		unsendable;

	if (are_sendable(lost->tags, lost->ntags) && are_sendable(lost->fields, lost->nfields))
		return;
	unsendable = difference_copy(lost);
	lost->ntags = split_unsendable(lost->tags, lost->ntags, unsendable.tags, &unsendable.ntags);
	lost->nfields = split_unsendable(lost->fields, lost->nfields,
									 unsendable.fields, &unsendable.nfields);
	(void) queue_add_failed(requester, &unsendable,
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
		(void) queue_add_removal(queue, requester, &part);
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

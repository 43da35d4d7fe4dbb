/*-------------------------------------------------------------------------
 *
 * trigger/difference.c
 *		From what customers had and have to what is entered into the queue.
 *
 * Names that a customer has lost are entered as a removal, unless a row of this
 * transaction has gained them (gains.c).  Names that it has are kept: a removal
 * of them that waits is taken back.
 *
 * Data never raises an error here.  What cannot be sent goes into the history as
 * failed, with the reason.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "base/phone.h"
#include "miscadmin.h"
#include "trigger/difference.h"
#include "trigger/gains.h"

static Removal copy_removal(const Removal *names);
static const char *number_problem(const Removal *names);
static void enter_removals(Queue *queue, const Requester *requester, const Removal *lost);
static int	count_fitting(const char **names, int nnames, int most, size_t *nbytes);
static int	split_unsendable(const char **names, int nnames, const char ***unsendable,
							 int *nunsendable);
static bool is_sendable(const char *name);

/*
 * Both levels call this for a row that was changed: "old" and "new" are the row
 * before and after, NULL where there is none, with its numbers (gains.h).  Leaves
 * in "lost" what is to be removed, as far as this row can tell.
 */
void
difference_row(const Requester *requester, const Removal *old, uint32 old_row,
			   const Removal *new, uint32 new_row, Removal *lost)
{
	bool		had = old && old->phone;
	bool		has = new && new->phone;
	Removal		gained = {0};

	memset(lost, 0, sizeof(Removal));
	if (had)
		*lost = *old;
	if (has)
		gained = copy_removal(new);
	if (had && has && difference_is_same_customer(old, new))
	{
		if (gains_any() && old_row != new_row)
		{
			Removal		stay = difference_intersection(new, old);

			gains_renumber(requester, &stay, old_row, new_row);
		}
		difference_subtract(&gained, old);
		difference_subtract(lost, new);
	}
	gains_record(requester, &gained, new_row);
	gains_withhold_lost(requester, lost, old_row);
}

/*
 * Can a removal of these names wait, which a customer has now?
 */
bool
difference_may_keep(Queue *queue, const Requester *requester, const Removal *now)
{
	if (payload_is_empty(now) || number_problem(now))
		return false;
	PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
	return queue_may_have_waiting(queue, requester, now);
}

/*
 * Takes waiting removals of these names back.  Uses the names up.
 */
void
difference_keep(Queue *queue, const Requester *requester, Removal *now)
{
	queue_add_keep(queue, requester, now);
	gains_note_suppressed(requester, now);
}

/*
 * Do both name the same customer?
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
 * A copy with only those names that are among the others'.
 */
Removal
difference_intersection(const Removal *names, const Removal *others)
{
	Removal		both = copy_removal(names);

	both.ntags = names_intersect(both.tags, both.ntags, others->tags, others->ntags);
	both.nfields = names_intersect(both.fields, both.nfields, others->fields, others->nfields);
	return both;
}

/* With lists of its own. */
static Removal
copy_removal(const Removal *names)
{
	Removal		copy = *names;

	copy.tags = names_copy(names->tags, names->ntags);
	copy.fields = names_copy(names->fields, names->nfields);
	return copy;
}

/*
 * Enters that a customer has lost these names.  Uses them up.
 */
void
difference_remove(Queue *queue, const Requester *requester, Removal *lost)
{
	Removal		unsendable = *lost;
	const char *problem;

	if (payload_is_empty(lost))
		return;
	PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
	problem = number_problem(lost);
	if (problem)
	{
		(void) queue_add_failed(requester, lost, problem);
		return;
	}
	lost->ntags = split_unsendable(lost->tags, lost->ntags, &unsendable.tags, &unsendable.ntags);
	lost->nfields = split_unsendable(lost->fields, lost->nfields,
									 &unsendable.fields, &unsendable.nfields);
	if (!payload_is_empty(&unsendable))
		(void) queue_add_failed(requester, &unsendable,
								psprintf("names cannot be sent: UTF-8 cannot hold them, or they are longer than %d bytes as JSON",
										 PAYLOAD_MAX_BYTES));
	enter_removals(queue, requester, lost);
}

/* What is wrong with the phone or the WABA number; NULL: nothing. */
static const char *
number_problem(const Removal *names)
{
	if (!phone_is_e164(names->phone))
		return phone_problem("phone", names->phone);
	if (names->waba && !phone_is_e164(names->waba))
		return phone_problem("waba", names->waba);
	return NULL;
}

/* As many removals as it takes for each to fit into one request. */
static void
enter_removals(Queue *queue, const Requester *requester, const Removal *lost)
{
	Removal		left = *lost;

	while (!payload_is_empty(&left))
	{
		Removal		part = left;
		size_t		nbytes = 0;

		part.ntags = count_fitting(left.tags, left.ntags, PAYLOAD_MAX_NAMES, &nbytes);
		part.nfields = part.ntags < left.ntags ? 0 :
			count_fitting(left.fields, left.nfields, PAYLOAD_MAX_NAMES - part.ntags, &nbytes);
		(void) queue_add_removal(queue, requester, &part);
		left.tags += part.ntags;
		left.ntags -= part.ntags;
		left.fields += part.nfields;
		left.nfields -= part.nfields;
	}
}

/*
 * How many names fit, beginning with the first: at most so many, and with
 * "nbytes" that are taken already.
 */
static int
count_fitting(const char **names, int nnames, int most, size_t *nbytes)
{
	int			n;

	for (n = 0; n < Min(nnames, most); n++)
	{
		*nbytes += payload_json_length(names[n]);
		if (*nbytes > PAYLOAD_MAX_BYTES)
			break;
	}
	return n;
}

/* Moves names that no request can carry; returns how many are left. */
static int
split_unsendable(const char **names, int nnames, const char ***unsendable, int *nunsendable)
{
	int			nleft = 0;

	*nunsendable = 0;
	for (int i = 0; i < nnames; i++)
	{
		if (is_sendable(names[i]))
			names[nleft++] = names[i];
		else
		{
			if (*nunsendable == 0)
				*unsendable = names_alloc(nnames);
			(*unsendable)[(*nunsendable)++] = names[i];
		}
	}
	return nleft;
}

/* The length first: converting a name of 256 MB would fail for want of memory. */
static bool
is_sendable(const char *name)
{
	return payload_json_length(name) <= PAYLOAD_MAX_BYTES &&
		payload_has_utf8_form(name, strlen(name));
}

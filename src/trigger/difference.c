/*-------------------------------------------------------------------------
 *
 * trigger/difference.c
 *		From what customers had and have to what is enqueued.
 *
 * The names that a customer has lost become a removal, unless a row of this
 * transaction has gained them (gains.c).  A keep of the names that it has is
 * enqueued if a removal of them waits.
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
static void change_to_unusable(const Definition *definition, const Removal *old,
							   const Removal *new, Removal *lost);
static void change_from_unusable(const Definition *definition, const Removal *new,
								 Removal *gained, uint32 new_row, Removal *lost);
static bool has_same_digits(const char *number, const char *other);
static bool get_usable_form(const Removal *now, Removal *usable);
static const char *usable_number(const char *number);
static const char *number_problem(const Removal *names);
static void enqueue_removals(Queue *queue, const Requester *requester, const Removal *lost);
static int	count_fitting_names(const char **names, int nnames, int most, size_t *nbytes);
static int	split_unsendable(const char **names, int nnames, const char ***unsendable,
							 int *nunsendable);
static bool is_sendable(const char *name);

/*
 * Called at both levels for a changed row: "old" and "new" are the row before and
 * after, as columns_read_versions() has read them, and "old_row" and "new_row" its
 * numbers for gains.c.  Records what it gained, and sets "lost" to what is to be
 * removed, as far as this row can tell.
 */
void
difference_row(const Definition *definition, const Removal *old, uint32 old_row,
			   const Removal *new, uint32 new_row, Removal *lost)
{
	bool		had = old->phone != NULL;
	bool		has = new->phone != NULL;
	Removal		gained = copy_removal(new);

	*lost = *old;
	if (had && has && difference_is_same_customer(definition, old, new))
	{
		if (gains_any() && old_row != new_row)
		{
			Removal		stay = difference_intersection(new, old);

			gains_renumber(definition, &stay, old_row, new_row);
		}
		difference_subtract(&gained, old);
		difference_subtract(lost, new);
	}
	else if (had && has && number_problem(new))
		change_to_unusable(definition, old, new, lost);
	else if (had && has && number_problem(old))
		change_from_unusable(definition, new, &gained, new_row, lost);
	gains_record(definition, &gained, new_row);
	gains_withhold_lost(definition, lost, old_row);
}

/*
 * A row's phone or WABA number was changed to one that cannot be used.  The names
 * that the row still has are not removed from the old one, and the history says so.
 */
static void
change_to_unusable(const Definition *definition, const Removal *old, const Removal *new,
				   Removal *lost)
{
	Removal		stay = difference_intersection(new, old);

	if (!payload_is_empty(&stay))
	{
		PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
		(void) queue_add_failed(&definition->requester, &stay,
								psprintf("%s; nothing was removed from \"%s\"",
										 number_problem(new), old->phone));
	}
	difference_subtract(lost, new);
	if (number_problem(old))
		lost->ntags = lost->nfields = 0;
}

/*
 * A row's phone or WABA number was changed from one that could not be used.  If the
 * phone is the same in another form, the names that the row has lost are removed from
 * its customer.  The customer may have had the others all along: they are gained, but
 * when the row loses them again, they must be removed.
 */
static void
change_from_unusable(const Definition *definition, const Removal *new, Removal *gained,
					 uint32 new_row, Removal *lost)
{
	Removal		all = copy_removal(gained);

	difference_subtract(lost, new);
	if (!has_same_digits(lost->phone, new->phone))
		lost->ntags = lost->nfields = 0;
	lost->phone = new->phone;
	lost->waba = new->waba;
	gains_record(definition, gained, new_row);
	gains_note_suppressed(definition, &all);
	gained->ntags = gained->nfields = 0;
}

/* Are these the same number, but for what stands between the digits? */
static bool
has_same_digits(const char *number, const char *other)
{
	for (;; number++, other++)
	{
		number += strcspn(number, "0123456789");
		other += strcspn(other, "0123456789");
		if (*number != *other)
			return false;
		if (*number == '\0')
			return true;
	}
}

/*
 * Called before difference_keep() for a row that has these names, and others if
 * "has_more" is set: does perhaps a removal wait for its phone?  If the numbers cannot
 * be used, it is one of those that their digits are: a row that is printed prettily
 * while it moves to another partition is deleted and inserted.
 */
bool
difference_may_keep(Queue *queue, const Removal *now, bool has_more)
{
	Removal		usable;

	if ((payload_is_empty(now) && !has_more) || !get_usable_form(now, &usable))
		return false;
	PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
	return queue_may_have_waiting(queue, usable.phone);
}

/*
 * Called before difference_remove(), with all names that a customer has now: enqueues
 * keeps of them if removals of them wait.  Leaves in "lost" those that are to be
 * enqueued.  Changes the lists.
 */
void
difference_keep(Queue *queue, const Definition *definition, Removal *now, Removal *lost)
{
	if (payload_is_empty(now) || !get_usable_form(now, now) || !queue_may_have_names(now))
		return;
	queue_add_keep(queue, &definition->requester, now, lost);
	gains_note_suppressed(definition, now);
}

/* Replaces numbers by those that can be sent.  False when there are none. */
static bool
get_usable_form(const Removal *now, Removal *usable)
{
	*usable = *now;
	usable->phone = usable_number(now->phone);
	usable->waba = now->waba ? usable_number(now->waba) : NULL;
	return number_problem(usable) == NULL;
}

/* The number as it is, if it can be used; else its digits alone. */
static const char *
usable_number(const char *number)
{
	char	   *digits;
	int			ndigits = 0;

	if (phone_is_e164(number))
		return number;
	digits = palloc(strlen(number) + 1);
	for (; *number; number++)
	{
		if (isdigit((unsigned char) *number))
			digits[ndigits++] = *number;
	}
	digits[ndigits] = '\0';
	return digits;
}

/*
 * Do both name the same customer, so that requests for them would be the same?
 */
bool
difference_is_same_customer(const Definition *definition, const Removal *row, const Removal *other)
{
	return phone_equal(row->phone, other->phone) &&
		phone_equal(definition_waba(definition, row->waba),
					definition_waba(definition, other->waba));
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

/* A copy with lists of its own, but the same strings. */
static Removal
copy_removal(const Removal *names)
{
	Removal		copy = *names;

	copy.tags = names_copy(names->tags, names->ntags);
	copy.fields = names_copy(names->fields, names->nfields);
	return copy;
}

/*
 * Enqueues removals of the names that a customer has lost.  Changes the lists.
 */
void
difference_remove(Queue *queue, const Definition *definition, Removal *lost)
{
	Removal		unsendable = *lost;
	const char *problem;

	if (payload_is_empty(lost))
		return;
	PreventCommandIfReadOnly("dt_remove_tags_custom_fields_trigger()");
	problem = number_problem(lost);
	if (problem)
	{
		(void) queue_add_failed(&definition->requester, lost, problem);
		return;
	}
	lost->ntags = split_unsendable(lost->tags, lost->ntags, &unsendable.tags, &unsendable.ntags);
	lost->nfields = split_unsendable(lost->fields, lost->nfields,
									 &unsendable.fields, &unsendable.nfields);
	if (!payload_is_empty(&unsendable))
		(void) queue_add_failed(&definition->requester, &unsendable,
								psprintf("names cannot be sent: UTF-8 cannot hold them, or they are longer than %d bytes as JSON",
										 PAYLOAD_MAX_BYTES));
	enqueue_removals(queue, &definition->requester, lost);
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

/* Enqueues as many removals as it takes for each to fit into one request. */
static void
enqueue_removals(Queue *queue, const Requester *requester, const Removal *lost)
{
	Removal		left = *lost;

	while (!payload_is_empty(&left))
	{
		Removal		part = left;
		size_t		nbytes = 0;

		part.ntags = count_fitting_names(left.tags, left.ntags, PAYLOAD_MAX_NAMES, &nbytes);
		part.nfields = part.ntags < left.ntags ? 0 :
			count_fitting_names(left.fields, left.nfields, PAYLOAD_MAX_NAMES - part.ntags, &nbytes);
		(void) queue_add_removal(queue, requester, &part);
		left.tags += part.ntags;
		left.ntags -= part.ntags;
		left.fields += part.nfields;
		left.nfields -= part.nfields;
	}
}

/*
 * How many of the first names fit: at most "most", and so many that their bytes and
 * the "nbytes" of others fit together.  Adds their bytes to "nbytes".
 */
static int
count_fitting_names(const char **names, int nnames, int most, size_t *nbytes)
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

/* Moves names that no request can carry to "unsendable"; returns how many stay. */
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

/* Checks the length first: converting a name of 256 MB would lack memory. */
static bool
is_sendable(const char *name)
{
	return payload_json_length(name) <= PAYLOAD_MAX_BYTES &&
		payload_has_utf8_form(name, strlen(name));
}

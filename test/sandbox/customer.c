/*-------------------------------------------------------------------------
 *
 * customer.c
 *		The customers, and what removing names from one of them does.
 *
 * A customer is a JSON object {"tags": [...], "customFields": [...]}, known by its
 * phone without "+".  All of them are in one object behind one lock.
 *
 *-------------------------------------------------------------------------
 */
#include "sandbox.h"

#include <pthread.h>
#include <string.h>

static json_t *remove_names(json_t *customer, const char *kind,
							const json_t *names, const char *key,
							const char *missing);
static size_t find_name(const json_t *names, const json_t *name);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static json_t *customers;

/* A phone as it is looked up by. */
const char *
bare_phone(const char *phone)
{
	return phone[0] == '+' ? phone + 1 : phone;
}

/* Takes the reference. */
void
customer_put(const char *phone, json_t *customer)
{
	pthread_mutex_lock(&lock);
	if (customers == NULL)
		customers = checked(json_object());
	json_object_set_new(customers, bare_phone(phone), customer);
	pthread_mutex_unlock(&lock);
}

/* A copy, or NULL. */
json_t *
customer_get(const char *phone)
{
	json_t	   *customer;

	pthread_mutex_lock(&lock);
	customer = json_deep_copy(json_object_get(customers, bare_phone(phone)));
	pthread_mutex_unlock(&lock);
	return customer;
}

void
customer_clear(void)
{
	pthread_mutex_lock(&lock);
	json_decref(customers);
	customers = NULL;
	pthread_mutex_unlock(&lock);
}

/* Removes what of these names there is, and returns the body that says so. */
json_t *
customer_remove(const char *phone, const json_t *fields, const json_t *tags)
{
	json_t	   *customer;
	json_t	   *done_fields;
	json_t	   *done_tags;

	pthread_mutex_lock(&lock);
	customer = json_object_get(customers, bare_phone(phone));
	done_fields = remove_names(customer, "customFields", fields, "customField",
							   "Custom field not found");
	done_tags = remove_names(customer, "tags", tags, "tag", "Tag not found");
	pthread_mutex_unlock(&lock);
	return json_pack("{so so}", "customFields", done_fields, "tags", done_tags);
}

static json_t *
remove_names(json_t *customer, const char *kind, const json_t *names,
			 const char *key, const char *missing)
{
	json_t	   *have = json_object_get(customer, kind);
	json_t	   *removed = checked(json_array());
	json_t	   *errored = checked(json_array());
	size_t		i;
	json_t	   *name;

	if (customer == NULL)
		missing = "Customer not found";
	json_array_foreach(names, i, name)
	{
		size_t		at = find_name(have, name);

		if (at < json_array_size(have))
			json_array_remove(have, at);
		else if (!settings.any_name)
		{
			json_array_append_new(errored,
								  json_pack("{sO ss}", key, name, "error", missing));
			continue;
		}
		json_array_append(removed, name);
	}
	return json_pack("{so so}", "removed", removed, "errored", errored);
}

/* Where in the array the name is; its size when it is not. */
static size_t
find_name(const json_t *names, const json_t *name)
{
	size_t		i;
	json_t	   *other;

	json_array_foreach(names, i, other)
	{
		if (json_equal(other, name))
			break;
	}
	return i;
}

/*-------------------------------------------------------------------------
 *
 * queue/customer_number.h
 *		The number that stands for a customer, and the rows that a phone has.
 *
 *		customer_number()			makes a customer's number
 *		phone_of_customer_number()	what it says about the phone
 *		store_is_same_customer()	compares what the number stands for
 *		store_scan_phone()			scans the rows of all customers with a phone
 *		store_next_of_phone()		the next one of these
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_QUEUE_CUSTOMER_NUMBER_H
#define DOUBLETICK_QUEUE_CUSTOMER_NUMBER_H

#include "queue/waiting.h"

extern int64 customer_number(const char *server, Oid role, const char *phone,
							 const char *waba);
extern uint64 phone_of_customer_number(int64 customer);
extern bool store_is_same_customer(const QueueRow *row, const QueueRow *other);
extern SysScanDesc store_scan_phone(Store *waiting, const char *phone, Snapshot snapshot);
extern HeapTuple store_next_of_phone(Store *waiting, SysScanDesc scan, bool *is_in_progress);

#endif							/* DOUBLETICK_QUEUE_CUSTOMER_NUMBER_H */

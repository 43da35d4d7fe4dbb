/*-------------------------------------------------------------------------
 *
 * drain/hold.h
 *		Holds: what keeps a lane from sending, until it is mended.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_DRAIN_HOLD_H
#define DOUBLETICK_DRAIN_HOLD_H

#include "drain/lane.h"

/* Told of each hold that is remembered; returns the lane that it is about. */
typedef Lane *(*HoldCallback) (void *arg, const char *server, Oid role);

extern void hold_load(HoldCallback callback, void *arg);
extern bool hold_check(Lane *lane, const Fault *fault, TimestampTz now);
extern void hold_enter(Lane *lane, const Fault *fault, const char *definition);
extern void hold_probe(Lane *lane);
extern void hold_lift(Lane *lane);
extern void hold_drop(Lane *lane);

#endif							/* DOUBLETICK_DRAIN_HOLD_H */

/*-------------------------------------------------------------------------
 *
 * worker/stored_settings.h
 *		Settings of databases and roles, which a running session is not told of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_WORKER_STORED_SETTINGS_H
#define DOUBLETICK_WORKER_STORED_SETTINGS_H

extern bool stored_settings_changed(void);

#endif							/* DOUBLETICK_WORKER_STORED_SETTINGS_H */

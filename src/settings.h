/*-------------------------------------------------------------------------
 *
 * settings.h
 *		The configuration parameters doubletick.*
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_SETTINGS_H
#define DOUBLETICK_SETTINGS_H

extern char *setting_server;	/* doubletick.server: name of the server to
								 * use */
extern bool setting_enabled;	/* doubletick.enabled: may anything leave? */
extern int	setting_max_in_flight;	/* doubletick.max_in_flight: requests of
									 * the calls of a session at once */
extern int	setting_history_retention;	/* doubletick.history_retention, in s;
										 * -1: for ever */
extern int	setting_worker_idle_timeout;	/* doubletick.worker_idle_timeout,
											 * in ms */

extern void settings_init(void);

#endif							/* DOUBLETICK_SETTINGS_H */

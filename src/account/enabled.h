/*-------------------------------------------------------------------------
 *
 * account/enabled.h
 *		What switches requests on again when doubletick.enabled is off.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DOUBLETICK_ACCOUNT_ENABLED_H
#define DOUBLETICK_ACCOUNT_ENABLED_H

extern char *enabled_command(void);

#endif							/* DOUBLETICK_ACCOUNT_ENABLED_H */

/* doubletick--1.0.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION doubletick" to load this file. \quit

-- Connection: servers and user mappings

CREATE FUNCTION @extschema@.dt_fdw_validator(options text[], catalog oid)
RETURNS void
AS 'MODULE_PATHNAME', 'dt_fdw_validator'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.dt_fdw_validator(text[], oid) IS
'Checks the options of servers and user mappings of the foreign-data wrapper doubletick. Called by CREATE and ALTER; raises 22023, HV00D, or 42501 for options that only a superuser may set.';

CREATE FOREIGN DATA WRAPPER doubletick
NO HANDLER
VALIDATOR @extschema@.dt_fdw_validator;

COMMENT ON FOREIGN DATA WRAPPER doubletick IS
'Where DoubleTick is (CREATE SERVER) and with which API key (CREATE USER MAPPING).';

-- Calls

CREATE FUNCTION @extschema@.dt_payload(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'dt_payload'
LANGUAGE C IMMUTABLE PARALLEL SAFE COST 10;

COMMENT ON FUNCTION @extschema@.dt_payload(text, text[], text[], text) IS
'The request body that dt_remove_tags_custom_fields would send for these arguments; sends nothing. Raises 22023 for a bad argument, 22004 for a null one.';

CREATE FUNCTION @extschema@.dt_remove_tags_custom_fields(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'dt_remove_tags_custom_fields'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;

COMMENT ON FUNCTION @extschema@.dt_remove_tags_custom_fields(text, text[], text[], text) IS
'Removes tags and custom fields from the DoubleTick customer with this phone number (E.164), now, and returns the API''s answer: {"tags": {"removed": [], "errored": []}, "customFields": {...}}. waba is the WABA number (E.164), by default the server''s. Raises 22023 or 22004 for a bad argument or a refusal, 28000 for a bad API key, 53400 when too fast, 58000 for a fault at the API, HV00N without a connection, HV00M without a usable answer, 42704, 42501 or 55000 when it is not set up.';

CREATE FUNCTION @extschema@.dt_try_remove_tags_custom_fields(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'dt_try_remove_tags_custom_fields'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;

COMMENT ON FUNCTION @extschema@.dt_try_remove_tags_custom_fields(text, text[], text[], text) IS
'Like dt_remove_tags_custom_fields, but what goes wrong with one row is returned, as {"statusCode": HTTP status or null, "error": text, "message": text or array}; a success never has the key statusCode. What would hit every row is raised: 28000 for HTTP status 401, 42704, 42501, 55000.';

REVOKE EXECUTE ON FUNCTION
	@extschema@.dt_remove_tags_custom_fields(text, text[], text[], text),
	@extschema@.dt_try_remove_tags_custom_fields(text, text[], text[], text)
FROM PUBLIC;

-- Who may do what.
CREATE EXTENSION doubletick;
CREATE ROLE regress_doubletick_owner;
CREATE ROLE regress_doubletick_caller;
CREATE ROLE regress_doubletick_group;
\set SHOW_CONTEXT never

-- what sends is not for PUBLIC, what only looks is
SET ROLE regress_doubletick_caller;
SELECT dt_payload('919876543210', '{lead}');
SELECT dt_remove_tags_custom_fields('919876543210', '{lead}');
SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}');
-- nor is making a server
CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick;
RESET ROLE;

GRANT EXECUTE ON FUNCTION dt_remove_tags_custom_fields, dt_try_remove_tags_custom_fields
	TO regress_doubletick_caller;
GRANT USAGE ON FOREIGN DATA WRAPPER doubletick TO regress_doubletick_owner;

-- an owner who is no superuser may set what is harmless to the machine
SET ROLE regress_doubletick_owner;
CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick
	OPTIONS (base_url 'http://127.0.0.1:1', timeout '50ms', rate_limit '0', account 'shop');
CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key 'key_test_1');
ALTER SERVER doubletick OPTIONS (ADD ca_file '/nonexistent/ca.pem');
ALTER SERVER doubletick OPTIONS (ADD proxy 'http://127.0.0.1:3128');
ALTER USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (DROP api_key, ADD api_key_file '/nonexistent/api_key');
RESET ROLE;

-- and cannot change a server that carries what a superuser has set
ALTER SERVER doubletick OPTIONS (ADD proxy 'http://127.0.0.1:3128');
SET ROLE regress_doubletick_owner;
ALTER SERVER doubletick OPTIONS (SET timeout '60ms');
ALTER SERVER doubletick OPTIONS (DROP proxy);
ALTER SERVER doubletick OPTIONS (SET timeout '50ms');
RESET ROLE;

-- USAGE on the server, own or by membership, and again when it is taken away
SET ROLE regress_doubletick_caller;
SELECT dt_remove_tags_custom_fields('919876543210', '{lead}');
SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER doubletick TO regress_doubletick_group;
GRANT regress_doubletick_group TO regress_doubletick_caller;
SET ROLE regress_doubletick_caller;
SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}') ->> 'error' AS error;
RESET ROLE;
REVOKE regress_doubletick_group FROM regress_doubletick_caller;
SET ROLE regress_doubletick_caller;
SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}') ->> 'error' AS error;
RESET ROLE;

-- a SECURITY DEFINER function lends its owner's rights
CREATE FUNCTION lent() RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$ SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}') ->> 'error' $$;
SET ROLE regress_doubletick_caller;
SELECT lent() AS error;
-- the key is for its owner's and the superuser's eyes
SELECT umoptions FROM pg_user_mappings WHERE srvname = 'doubletick';
-- and the switch for the superuser's hand
SET doubletick.enabled = off;
RESET ROLE;

-- each object has a comment, but for the row types of tables and views, which are
-- members from PostgreSQL 17 on
SELECT pg_describe_object(classid, objid, objsubid) AS "without a comment"
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'doubletick')
	AND classid <> 'pg_type'::regclass
	AND obj_description(objid, classid::regclass::text) IS NULL;

DROP FUNCTION lent();
\set VERBOSITY terse
DROP EXTENSION doubletick CASCADE;
DROP ROLE regress_doubletick_owner, regress_doubletick_caller, regress_doubletick_group;

-- What keeps a request from leaving, in the order it is looked at; and a
-- server that is not there.  No error is of class 08: connection pools take
-- that for a dead database connection.
CREATE EXTENSION doubletick;
\set SHOW_CONTEXT never

CREATE FUNCTION attempt(text[] DEFAULT '{lead}') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	RETURN dt_remove_tags_custom_fields('919876543210', $1);
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN format(E'%s %s\nDETAIL %s\nHINT %s', SQLSTATE, SQLERRM, detail::jsonb, hint);
END $$;
\pset format unaligned
\pset tuples_only on

-- no server, another wrapper's server, no mapping, no key
SELECT attempt();
CREATE FOREIGN DATA WRAPPER other;
CREATE SERVER "an Other" FOREIGN DATA WRAPPER other;
SET doubletick.server = 'an Other';
SELECT attempt();
RESET doubletick.server;
CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick
	OPTIONS (base_url 'http://127.0.0.1:1', timeout '300ms', rate_limit '0');
CREATE ROLE regress_doubletick SUPERUSER;
SET ROLE regress_doubletick;
SELECT attempt();
CREATE USER MAPPING FOR PUBLIC SERVER doubletick;
SELECT attempt();
CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick;
SELECT attempt();

-- a key file that cannot be there, with all of its long name in the message
SET client_min_messages = error;
DO $$ BEGIN
	EXECUTE format('ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (ADD api_key_file %L)',
		'/' || repeat('x', 3000));
END $$;
RESET client_min_messages;
SELECT replace(attempt(), repeat('x', 3000), 'x...x');
ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (DROP api_key_file);

-- a server that is not there: refused, and tried again until the budget ends
ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (ADD api_key 'key_test_1');
-- (libcurl's own words differ between its versions)
SELECT regexp_replace(attempt(), 'DoubleTick: [^"\n]*', 'DoubleTick: ...', 'g');
SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}') ->> 'error';
SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}') -> 'statusCode';

-- switched off
SET doubletick.enabled = off;
SELECT attempt();
SELECT dt_payload('919876543210', '{lead}');
-- a bad argument is told first
SELECT dt_try_remove_tags_custom_fields('9198', '{lead}') ->> 'error';
RESET doubletick.enabled;

-- a copy under another name stays silent
ALTER SERVER doubletick OPTIONS (ADD database 'production');
SELECT attempt();
-- these hit every row of a bulk statement, so they are raised here too
SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}');
ALTER SERVER doubletick OPTIONS (SET database 'contrib_regression');
SELECT left(attempt(), 5);

-- options that no validator has seen are checked when they are used
ALTER FOREIGN DATA WRAPPER doubletick NO VALIDATOR;
ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key E'key_\r\nX-Evil: 1');
SELECT dt_remove_tags_custom_fields('919876543210', '{lead}');
ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_test_1');
ALTER SERVER doubletick OPTIONS (SET base_url 'http://api.example.com');
SELECT dt_remove_tags_custom_fields('919876543210', '{lead}');
ALTER SERVER doubletick OPTIONS (SET base_url 'http://127.0.0.1:1', ADD user_agent 'x');
SELECT dt_remove_tags_custom_fields('919876543210', '{lead}');

RESET ROLE;
DROP FUNCTION attempt(text[]);
\set VERBOSITY terse
DROP EXTENSION doubletick CASCADE;
DROP FOREIGN DATA WRAPPER other CASCADE;
DROP ROLE regress_doubletick;

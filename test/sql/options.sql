-- Options of servers and user mappings: what is taken, and what is refused.
CREATE EXTENSION doubletick;

-- every option, in every form that PostgreSQL has for a duration
CREATE SERVER good FOREIGN DATA WRAPPER doubletick OPTIONS (
	base_url 'https://api.example.com/v1/', waba_number '+919812345678',
	database 'regression', timeout '2s', connect_timeout '500ms',
	max_connections '4', rate_limit '0.5', retry_for '1d');
ALTER SERVER good OPTIONS (SET timeout '1min', SET connect_timeout '1500',
	SET retry_for '36h', SET rate_limit '0', SET max_connections '1000');
CREATE USER MAPPING FOR PUBLIC SERVER good OPTIONS (api_key 'key_public');
CREATE USER MAPPING FOR CURRENT_USER SERVER good;
-- silently, for the notice names whoever runs this test
SET client_min_messages = warning;
DROP SERVER good CASCADE;
RESET client_min_messages;

-- unknown options, with the known ones in the hint
CREATE SERVER bad FOREIGN DATA WRAPPER doubletick OPTIONS (base_ulr 'https://api.example.com');
CREATE SERVER bad FOREIGN DATA WRAPPER doubletick OPTIONS (api_key 'key_test');
ALTER FOREIGN DATA WRAPPER doubletick OPTIONS (ADD base_url 'https://api.example.com');
CREATE SERVER s FOREIGN DATA WRAPPER doubletick;
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (password 'secret');
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (base_url 'https://api.example.com');
CREATE FOREIGN TABLE ft (a int) SERVER s OPTIONS (base_url 'https://api.example.com');

-- what a base_url may be
CREATE FUNCTION try_option(name text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	EXECUTE format('ALTER SERVER s OPTIONS (ADD %I %L)', name, value);
	EXECUTE format('ALTER SERVER s OPTIONS (DROP %I)', name);
	RETURN 'good';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN SQLSTATE || ': ' || SQLERRM || CASE hint WHEN '' THEN '' ELSE ' [' || hint || ']' END;
END $$;

SELECT left(url, 40) AS url, try_option('base_url', url) FROM (VALUES
	('https://api.example.com'), ('https://api.example.com:8443/'), ('HTTPS://API.EXAMPLE.COM/v1'),
	('http://localhost:8080'), ('http://LocalHost'), ('http://127.0.0.1'), ('http://127.9.8.7:1/x'),
	('http://127.1'), ('http://[::1]:8080'), ('http://[0:0:0:0:0:0:0:1]'), ('https://[2001:db8::1]'),
	('http://api.example.com'), ('http://localhost.example.com'), ('http://10.0.0.1'),
	('http://128.0.0.1'), ('http://[::2]'), ('http://[::ffff:127.0.0.1]'), ('http://0.0.0.0'),
	('https://user@api.example.com'), ('https://user:secret@api.example.com'), ('https://@api.example.com'),
	('https://api.example.com?key=secret'), ('https://api.example.com/?'), ('https://api.example.com/#top'),
	('file:///etc/passwd'), ('ftp://api.example.com'), ('ldap://api.example.com'), ('gopher://localhost'),
	('api.example.com'), ('https:api.example.com'), ('https://'), ('https:///api.example.com'), ('//api.example.com'),
	('https://api.example.com:0x50'), ('https://api.example.com:99999'), ('https://api example.com'),
	(' https://api.example.com'), (E'https://api.example.com/\n'), (E'https://api.example.com\\@evil.example'),
	('https://apí.example.com'), ('https://[::1'), (''), ('https:/host/a://b'), ('https://api.example.com/' || repeat('p', 1000)),
	('https://' || repeat('a', 300))) AS v(url);

-- what a proxy may be
SELECT url, try_option('proxy', url) FROM (VALUES
	('http://proxy.example.com:3128'), ('https://proxy.example.com'), ('socks5h://127.0.0.1:1080'),
	('proxy.example.com:3128'), ('http://user:secret@proxy.example.com'), ('http://proxy.example.com/path'),
	('ftp://proxy.example.com'), ('socks4a://127.0.0.1'), ('socksfoo://127.0.0.1')) AS v(url);
-- plain text may go through a proxy on this machine alone
ALTER SERVER s OPTIONS (ADD base_url 'http://127.0.0.1', ADD proxy 'http://proxy.example.com:3128');
ALTER SERVER s OPTIONS (ADD base_url 'http://127.0.0.1', ADD proxy 'http://localhost:3128');
ALTER SERVER s OPTIONS (SET proxy 'http://proxy.example.com:3128');
ALTER SERVER s OPTIONS (DROP proxy, DROP base_url);

-- numbers, durations and names
SELECT name, value, try_option(name, value) FROM (VALUES
	('timeout', '1ms'), ('timeout', '1h'), ('timeout', '10'), ('timeout', ' 5 s '),
	('timeout', '0'), ('timeout', '0.4ms'), ('timeout', '-1s'), ('timeout', '61min'), ('timeout', 'soon'), ('timeout', ''), ('timeout', '10 parsecs'), ('timeout', 'NaN'),
	('connect_timeout', '3s'), ('connect_timeout', '0'), ('connect_timeout', '2h'),
	('retry_for', '365d'), ('retry_for', '366d'), ('retry_for', '0'), ('retry_for', 'never'),
	('max_connections', '1'), ('max_connections', '0'), ('max_connections', '1001'), ('max_connections', '-3'), ('max_connections', 'many'), ('max_connections', '99999999999'),
	('rate_limit', '0'), ('rate_limit', '0.001'), ('rate_limit', '100000'), ('rate_limit', '0.0001'), ('rate_limit', '-1'), ('rate_limit', '100001'), ('rate_limit', 'NaN'), ('rate_limit', 'infinity'), ('rate_limit', 'fast'),
	('waba_number', '919812345678'), ('waba_number', '+1234567'), ('waba_number', '0919812345678'), ('waba_number', '91 98123'), ('waba_number', ''),
	('database', 'some database'), ('database', ''), ('database', repeat('x', 64)),
	('account', 'shop & co'), ('account', repeat('x', 63)), ('account', repeat('x', 64)), ('account', ''), ('account', ' shop'), ('account', 'shop '), ('account', 'café'), ('account', E'a\tb'),
	('ca_file', 'ca.pem'), ('ca_file', ''), ('proxy', '')) AS v(name, value);

-- keys: never shown
\set SHOW_CONTEXT never
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key '');
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key ' key_blank');
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key 'key_blank ');
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key E'key_\nX-Evil: 1');
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key E'key_\x7f');
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key 'kéy');
DO $$ BEGIN
	EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key %L)', repeat('k', 4097));
END $$;
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key_file 'api_key');
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key 'key_test', api_key_file '/etc/doubletick/api_key');
CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key 'key with a blank inside');
ALTER USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (SET api_key 'bearer key_test');
ALTER USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (SET api_key 'Bearers of a key');
-- the change, not only the creation, is checked
ALTER USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (SET api_key E'key_\t');
ALTER USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (ADD api_key_file '/etc/doubletick/api_key');

-- files that are not there: a dump must restore, so it is but a warning
CREATE SERVER files FOREIGN DATA WRAPPER doubletick OPTIONS (ca_file '/nonexistent/ca.pem');
CREATE USER MAPPING FOR CURRENT_USER SERVER files OPTIONS (api_key_file '/nonexistent/api_key');

-- settings
SHOW doubletick.server;
SHOW doubletick.enabled;
SET doubletick.server = '';
SELECT set_config('doubletick.server', repeat('x', 64), false);
SET doubletick.sever = 'typo';

DROP FUNCTION try_option(text, text);
SET client_min_messages = warning;
DROP EXTENSION doubletick CASCADE;

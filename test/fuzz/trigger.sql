-- What test/fuzz/trigger runs in each database: random tables, rows and changes under the
-- trigger. psql variable: encoding.
--
-- Each statement is tried on a table without a trigger first. What succeeds there must
-- succeed on the table with the trigger, too: data never fails a user's statement.
CREATE EXTENSION doubletick;
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick OPTIONS (base_url 'http://127.0.0.1:9');
CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key 'key_fuzz');

CREATE DOMAIN short_text AS varchar(12);
CREATE DOMAIN text_list AS text[];
CREATE TYPE mood AS ENUM ('sad', 'happy');

CREATE TABLE fuzz_outcome (what text, outcome text, n bigint, wrong text);
CREATE TABLE fuzz_memory (session text, batch int, contexts bigint, resident bigint);

-- Texts that this database's encoding can hold; some of them UTF-8 cannot.
CREATE TABLE fuzz_text (n int GENERATED ALWAYS AS IDENTITY (MINVALUE 0), t text);
INSERT INTO fuzz_text (t) VALUES (''), (' '), ('lead'), ('lead '), ('LEAD'), ('a,b'), ('{}'), ('NULL'), ('null'), ('"'), ('\'), (''''), (E'\t\n'),
	(E'\x01'), (E'\x7f'), ('%s%n'), ('$1'), (repeat('x', 300)), (repeat('long ', 3000)), ('1e99999'), ('\u0000'), ('-'), ('vip'), ('plan');
SELECT CASE :'encoding'
	WHEN 'UTF8' THEN $$SELECT chr(c) FROM unnest('{233,769,8238,65279,65533,65535,128512,1114111}'::int[]) AS c$$
	WHEN 'LATIN1' THEN $$SELECT chr(c) FROM unnest('{128,160,233,255}'::int[]) AS c$$
	WHEN 'SQL_ASCII' THEN $$SELECT convert_from(b, 'SQL_ASCII') FROM unnest('{"\\xff","\\xc328","\\xeda080","\\xc3","\\xf4908080"}'::bytea[]) AS b$$
	WHEN 'EUC_JP' THEN $$SELECT convert_from(b, 'EUC_JP') FROM unnest('{"\\xa4a2","\\x8eb1","\\xfefe","\\x8fb0a1","\\xa9a1"}'::bytea[]) AS b$$
	END AS texts \gset
INSERT INTO fuzz_text (t) :texts;

CREATE FUNCTION pick(VARIADIC choices text[]) RETURNS text LANGUAGE sql VOLATILE
RETURN choices[1 + floor(random() * cardinality(choices))::int];

CREATE FUNCTION fuzz_name() RETURNS text LANGUAGE sql VOLATILE
AS 'SELECT t FROM fuzz_text WHERE n = (SELECT floor(random() * (SELECT count(*) FROM fuzz_text))::int)';

-- SQL for a phone or a WABA number.
CREATE FUNCTION fuzz_number() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN CASE floor(random() * 12)
		WHEN 0 THEN 'NULL'
		WHEN 1 THEN quote_literal(fuzz_name())
		WHEN 2 THEN quote_literal('+' || 919876543210 + floor(random() * 3)::int)
		WHEN 3 THEN quote_literal('+91 98765-4321' || floor(random() * 3)::int)
		WHEN 4 THEN quote_literal(repeat('9', 1 + floor(random() * 20)::int))
		WHEN 5 THEN quote_literal('0' || 919876543210 + floor(random() * 3)::int)
		ELSE quote_literal((919876543210 + floor(random() * 3)::int)::text)
	END;
END $$;

-- SQL for names, as a literal of an array, of jsonb, of hstore or of a string type.
CREATE FUNCTION fuzz_names(type text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	names text[] := ARRAY(SELECT CASE WHEN random() < 0.1 THEN NULL ELSE fuzz_name() END FROM generate_series(1, floor(random() * 4)::int));
	many text := 'ARRAY(SELECT ''n'' || g FROM generate_series(1, ' || floor(random() * 3000)::int || ') AS g)';
BEGIN
	IF random() < 0.08 THEN
		RETURN 'NULL';
	ELSIF type = 'jsonb' THEN
		RETURN CASE floor(random() * 9)
			WHEN 0 THEN quote_literal(pick('null', '1', 'true', '"lead"', '1e300', '[[["lead"]]]', '{"a": {"b": []}}', '[{"lead": 1}]')) || '::jsonb'
			WHEN 1 THEN '(SELECT jsonb_object_agg(coalesce(t, ''''), NULL) FROM unnest(' || quote_literal(names::text) || '::text[]) AS t)'
			WHEN 2 THEN 'to_jsonb(' || many || ')'
			WHEN 3 THEN 'jsonb_build_array(1, NULL, true, ''lead'', ''[]''::jsonb, 1.5)'
			WHEN 4 THEN quote_literal(repeat('[', 200) || repeat(']', 200)) || '::jsonb'
			WHEN 5 THEN 'jsonb_build_object(''lead'', 1, ''plan'', NULL, ''vip'', false, ''a'', ''[]''::jsonb)'
			ELSE 'to_jsonb(' || quote_literal(names::text) || '::text[])'
		END;
	ELSIF type = 'hstore' THEN
		RETURN CASE WHEN random() < 0.1 THEN 'hstore(' || many || ', NULL)'
			ELSE 'hstore(array_remove(' || quote_literal(names::text) || '::text[], NULL), NULL)' END;
	ELSIF type IN ('text', 'varchar', 'char(5)', 'citext', 'short_text') THEN
		RETURN quote_literal(fuzz_name());
	END IF;
	RETURN CASE floor(random() * 12)
		WHEN 0 THEN '''{{lead,vip},{NULL,plan}}'''
		WHEN 1 THEN '''[5:6]={lead,vip}'''
		WHEN 2 THEN '''[-2:-1][3:3]={{lead},{vip}}'''
		WHEN 3 THEN 'array_fill(''lead''::text, ARRAY[2, 2, 2])::' || type
		WHEN 4 THEN many || '::' || type
		WHEN 5 THEN 'array_fill(NULL::text, ARRAY[' || floor(random() * 5)::int || '])::' || type
		ELSE quote_literal(names::text)
	END;
END $$;

-- One statement on "<table>"; tags and fields are the types of these columns.
CREATE FUNCTION fuzz_statement(tags text, fields text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	k text := floor(random() * 8)::text;
	which text := pick('k = ' || k, 'k <> ' || k, 'true', 'k < ' || k);
BEGIN
	RETURN CASE floor(random() * 12)
		WHEN 0 THEN 'DELETE FROM <table> WHERE ' || pick('k = ' || k, 'k = ' || k, 'k < 4')
		WHEN 1 THEN 'UPDATE <table> SET phone = ' || fuzz_number() || ' WHERE ' || which
		WHEN 2 THEN 'UPDATE <table> SET waba = ' || fuzz_number() || ' WHERE ' || which
		WHEN 3 THEN 'UPDATE <table> SET tags = ' || fuzz_names(tags) || ' WHERE ' || which
		WHEN 4 THEN 'UPDATE <table> SET fields = ' || fuzz_names(fields) || ', tags = ' || fuzz_names(tags) || ' WHERE ' || which
		-- No row gets the key that another one gives up: that depends on the order of rows.
		WHEN 5 THEN 'UPDATE <table> SET k = k + 100 WHERE k < 100 AND ' || which
		WHEN 6 THEN 'UPDATE <table> SET phone = ltrim(phone::text, ''+'')'
		WHEN 7 THEN 'UPDATE <table> SET tags = NULL, fields = NULL'
		ELSE format('INSERT INTO <table> (k, phone, waba, tags, fields) VALUES (%s, %s, %s, %s, %s) ON CONFLICT (k) DO UPDATE SET phone = EXCLUDED.phone, tags = EXCLUDED.tags, fields = EXCLUDED.fields',
			k, fuzz_number(), fuzz_number(), fuzz_names(tags), fuzz_names(fields))
	END;
END $$;

CREATE FUNCTION fuzz_try(statement text, target text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE replace(statement, '<table>', target);
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;

-- One table with its twin, and changes to them, in transactions of some statements each.
CREATE PROCEDURE fuzz_table(changes int) LANGUAGE plpgsql AS $$
DECLARE
	phone text := pick('text', 'varchar', 'bigint', 'char(20)', 'short_text', 'name', 'citext', 'numeric', 'jsonb', 'text[]');
	tags text := pick('text[]', 'varchar(9)[]', 'name[]', 'short_text[]', 'text_list', 'char(5)[]', 'citext[]', 'jsonb', 'text', 'char(5)', 'citext', 'short_text', 'int[]', 'mood[]');
	fields text := pick('text[]', 'jsonb', 'jsonb', 'hstore', 'bytea', 'json', 'text_list', 'text', 'varchar');
	trigger_text text := 'EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger(' || pick('''phone'', ''tags'', ''fields'', ''waba''',
		'''phone'', ''tags'', ''fields'', ''waba''', '''phone'', ''tags''', '''phone'', '''', ''fields''', '''phone'', ''tags'', '''', ''waba''', '''missing'', ''tags''', '''phone''') || ')';
	statement text;
	plain text;
	outcome text;
BEGIN
	EXECUTE format('CREATE TABLE twin (k int PRIMARY KEY, phone %s, gone int, waba text, tags %s, fields %s)', phone, tags, fields);
	ALTER TABLE twin DROP gone;
	CREATE TABLE watched (LIKE twin INCLUDING ALL);
	IF random() < 0.5 THEN
		EXECUTE 'CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON watched FOR EACH ROW ' || trigger_text;
	ELSE
		EXECUTE 'CREATE TRIGGER t1 AFTER INSERT ON watched REFERENCING NEW TABLE AS new FOR EACH STATEMENT ' || trigger_text;
		EXECUTE 'CREATE TRIGGER t2 AFTER UPDATE ON watched REFERENCING OLD TABLE AS old NEW TABLE AS new FOR EACH STATEMENT ' || trigger_text;
		EXECUTE 'CREATE TRIGGER t3 AFTER DELETE ON watched REFERENCING OLD TABLE AS old FOR EACH STATEMENT ' || trigger_text;
	END IF;
	FOR i IN 1 .. changes LOOP
		statement := fuzz_statement(tags, fields);
		plain := fuzz_try(statement, 'twin');
		IF plain <> '00000' THEN
			INSERT INTO fuzz_outcome VALUES ('refused without a trigger', left(plain, 5), 1);
			CONTINUE;
		END IF;
		outcome := fuzz_try(statement, 'watched');
		-- These are about the definition.
		INSERT INTO fuzz_outcome VALUES (CASE WHEN outcome = '00000' THEN 'succeeded' ELSE 'definition refused' END, left(outcome, 5), 1,
			CASE WHEN left(outcome, 5) NOT IN ('00000', '39P01', '42703', '42804') THEN format('%s: phone %s, tags %s, fields %s, %s: %s', outcome, phone, tags, fields, trigger_text, left(statement, 500)) END);
		EXIT WHEN outcome <> '00000';
		IF random() < 0.4 THEN
			COMMIT;
		END IF;
	END LOOP;
	IF (outcome IS NULL OR outcome = '00000') AND EXISTS (SELECT to_jsonb(w)::text FROM watched AS w EXCEPT SELECT to_jsonb(t)::text FROM twin AS t) THEN
		INSERT INTO fuzz_outcome VALUES ('compared', 'differs', 1, 'the trigger has changed the table');
	END IF;
	DROP TABLE twin, watched;
END $$;

-- What was entered can be read, and could be sent.
CREATE FUNCTION fuzz_check_queue() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO fuzz_outcome
	SELECT 'in the queue', CASE WHEN w.keep THEN 'keep' ELSE 'removal' END, count(*),
		left(min(format('phone %s, tags %s, fields %s', phone, tags, fields)) FILTER (WHERE phone !~ '^\+?[1-9][0-9]{6,14}$' OR waba !~ '^\+?[1-9][0-9]{6,14}$'
			OR '' = ANY (tags) OR '' = ANY (fields) OR NULL = ANY (tags) OR array_position(tags, NULL) > 0 OR cardinality(tags) + cardinality(fields) NOT BETWEEN 1 AND CASE WHEN w.keep THEN 10000 ELSE 1000 END), 500)
	FROM dt_waiting AS w GROUP BY 2;
	INSERT INTO fuzz_outcome SELECT 'in the history', state, count(*) FROM dt_history GROUP BY 2;
	PERFORM count(to_jsonb(q)::text) FROM dt_queue AS q;
	TRUNCATE dt_waiting, dt_settled;
END $$;

CREATE PROCEDURE fuzz_batch(batch int, changes int, seed text) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM setseed(('x' || left(md5(concat_ws('/', seed, current_database(), batch)), 8))::bit(32)::int / 2147483648.0);
	CALL fuzz_table(changes);
	COMMIT;
	PERFORM fuzz_check_queue();
	-- PostgreSQL's own caches remember each table and its types, and shared memory is no growth.
	INSERT INTO fuzz_memory
	SELECT current_database(), batch, sum(total_bytes) FILTER (WHERE NOT is_cache),
		(split_part(statm, ' ', 2)::bigint - split_part(statm, ' ', 3)::bigint) * 4096 - sum(total_bytes) FILTER (WHERE is_cache)
	FROM pg_read_file('/proc/self/statm') AS statm,
		LATERAL (SELECT total_bytes, name IN ('CacheMemoryContext', 'Type information cache') AS is_cache FROM pg_backend_memory_contexts) AS c
	GROUP BY statm;
END $$;

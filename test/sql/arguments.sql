-- Arguments of a call, and the body that is made of them.
CREATE EXTENSION doubletick;

-- API.md: tags and customFields always, wabaNumber only when there is one
SELECT dt_payload('919876543210', '{team lead}', '{new field}', '919812345678');
SELECT dt_payload('919876543210', '{lead}');
SELECT dt_payload('919876543210', fields => '{plan}');
SELECT dt_payload('919876543210', NULL, '{plan}', NULL);
SELECT dt_payload('919876543210', '{}', '{plan}') = dt_payload('919876543210', NULL, '{plan}') AS same;
SELECT dt_payload('+919876543210', '{lead}', waba => '+919812345678');

-- names go out exactly as given, each once, in first-seen order
SELECT dt_payload('919876543210', ARRAY['Lead', 'lead', ' lead', 'lead ', 'lead', 'Lead', '🙂 "q" \ /', E'a\tb\nc']);
SELECT dt_payload('919876543210', '{b,a,b,c,a}', '{b,z,b}');
SELECT dt_payload('919876543210', '[5:6]={a,b}'::text[]);
-- varchar, domains and other string types reach it by a cast
SELECT dt_payload('919876543210'::varchar, ARRAY['lead']::varchar[]);

-- phones and WABA numbers: E.164; an error's message is one line
CREATE FUNCTION try_payload(text, text[] DEFAULT '{lead}', text[] DEFAULT NULL, text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN dt_payload($1, $2, $3, $4)::text;
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ': ' || SQLERRM;
END $$;
SELECT left(phone, 20) AS phone, try_payload(phone) FROM (VALUES
	('1234567'), ('+1234567'), ('123456789012345'), ('+123456789012345'),
	('123456'), ('1234567890123456'), ('0919876543210'), ('+0919876543210'), ('++919876543210'),
	('919876543210+'), ('91 9876543210'), ('91-98765-43210'), ('(91)9876543210'), ('919876543210 '), (' 919876543210'),
	(E'919876543210\n'), ('٩١٩٨٧٦٥٤٣٢١٠'), ('91987654321x'), ('+'), (''),
	(NULL), (repeat('9', 1000))) AS v(phone);
SELECT waba, try_payload('919876543210', '{lead}', NULL, waba) FROM (VALUES
	('919812345678'), ('+919812345678'), ('0919812345678'), ('9198'), ('')) AS v(waba);

-- names
SELECT try_payload('919876543210', NULL, NULL);
SELECT try_payload('919876543210', '{}', '{}');
SELECT try_payload('919876543210', '{a,NULL}');
SELECT try_payload('919876543210', '{a}', '{b,NULL}');
SELECT try_payload('919876543210', ARRAY['a', '']);
SELECT try_payload('919876543210', '{a}', ARRAY['']);
SELECT try_payload('919876543210', '{{a,b},{c,d}}');
SELECT try_payload('919876543210', '{a}', '{{a},{b}}');
-- at most 1,000 together
SELECT jsonb_array_length(dt_payload('919876543210', array_agg('t' || i)) -> 'tags') FROM generate_series(1, 1000) i;
SELECT try_payload('919876543210', array_agg('t' || i)) FROM generate_series(1, 1001) i;
SELECT try_payload('919876543210', array_agg('t' || i), array_agg('f' || i)) FROM generate_series(1, 501) i;
-- and half a MiB of JSON together, where some characters are escaped
SELECT length(try_payload('919876543210', ARRAY[repeat('x', 512 * 1024)]));
SELECT try_payload('919876543210', ARRAY[repeat('x', 512 * 1024), 'y']);
SELECT try_payload('919876543210', ARRAY[repeat('x', 512 * 1024 - 1)], '{zz}');
SELECT length(try_payload('919876543210', ARRAY[repeat('"', 256 * 1024)]));
SELECT try_payload('919876543210', ARRAY[repeat(E'\t', 256 * 1024) || 'x']);
SELECT try_payload('919876543210', ARRAY[repeat(E'\x01', 90 * 1024)]);

-- the same rules for all, the same words, and DETAIL is what dt_try returns
\set SHOW_CONTEXT never
DO $$
DECLARE
	r record;
	detail text;
	hint text;
BEGIN
	FOR r IN SELECT * FROM (VALUES
		('9198', '{lead}'::text[], NULL::text[], NULL::text), (NULL, '{lead}', NULL, NULL),
		('919876543210', NULL, NULL, NULL), ('919876543210', '{NULL}', NULL, NULL),
		('919876543210', ARRAY[''], NULL, NULL), ('919876543210', '{a}', NULL, '0')) AS v(phone, tags, fields, waba)
	LOOP
		BEGIN
			PERFORM dt_remove_tags_custom_fields(r.phone, r.tags, r.fields, r.waba);
			RAISE 'no error';
		EXCEPTION WHEN invalid_parameter_value OR null_value_not_allowed THEN
			GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
			RAISE NOTICE '% % [%] %', SQLSTATE, SQLERRM, hint,
				detail::jsonb = dt_try_remove_tags_custom_fields(r.phone, r.tags, r.fields, r.waba);
		END;
	END LOOP;
END $$;
SELECT dt_try_remove_tags_custom_fields(NULL, '{lead}');
SELECT dt_try_remove_tags_custom_fields('919876543210', '{a,NULL}');

-- pure: usable where only immutable functions are
CREATE TABLE customers (phone text, tags text[], body jsonb GENERATED ALWAYS AS (dt_payload(phone, tags)) STORED);
INSERT INTO customers VALUES ('919876543210', '{lead}');
SELECT body FROM customers;
DROP TABLE customers;

SELECT proname, provolatile, proparallel, proisstrict, procost
FROM pg_proc WHERE proname LIKE 'dt\_%' ORDER BY proname;

DROP FUNCTION try_payload(text, text[], text[], text);
DROP EXTENSION doubletick;

-- What test/fuzz/answers runs in the database: calls and drains that note what becomes of
-- random answers. psql variables: url, and seed.
--
-- Each request has a phone of its own and a tag that its phone decides. The server
-- repeats both in its answer, as a mark. A mark whose tag fits its phone has not been damaged
-- on the way, and must be the request's own.
CREATE EXTENSION doubletick;

CREATE TABLE fuzz_outcome (way text, outcome text, n bigint, longest float8, wrong text);
CREATE TABLE fuzz_memory (session text, batch int, contexts bigint, resident bigint);

-- A server for each session, so that a pause after a 429 is lifted for it alone; one of the
-- queue's has rows given up soon, on a busy machine before they are tried.
SELECT format('CREATE SERVER %s FOREIGN DATA WRAPPER doubletick OPTIONS (base_url %L, rate_limit ''0'', timeout %L, retry_for %L);
	CREATE USER MAPPING FOR PUBLIC SERVER %1$s OPTIONS (api_key ''key_fuzz'')',
	name, :'url', CASE WHEN name ~ 'call' THEN '30ms' ELSE '50ms' END, CASE WHEN name = 'queue1' THEN '2s' ELSE '1d' END)
FROM unnest('{call1,call2,call3,call4,queue1,queue2,queue3,queue4,queue5,queue6,queue7,queue8}'::text[]) AS name \gexec

CREATE FUNCTION fuzz_phone(n bigint) RETURNS text LANGUAGE sql IMMUTABLE
RETURN '9' || lpad(n::text, 11, '0');

CREATE FUNCTION fuzz_tag(phone text) RETURNS text LANGUAGE sql IMMUTABLE
RETURN left(md5(phone), 8);

-- A mark that is not this phone's; NULL when there is none.
CREATE FUNCTION fuzz_strange_mark(said text, phone text) RETURNS text LANGUAGE sql IMMUTABLE
RETURN (SELECT m[1] FROM regexp_matches(said, 'M(\d{12}):([0-9a-f]{8}):M', 'g') AS m
	WHERE m[1] <> phone AND fuzz_tag(m[1]) = m[2] LIMIT 1);

-- In a subtransaction, since a pause lasts until another one has changed the server.
CREATE FUNCTION fuzz_lift_pause() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('ALTER SERVER %I OPTIONS (SET rate_limit ''0'')', current_setting('doubletick.server'));
EXCEPTION WHEN division_by_zero THEN
END $$;

-- One call, of either kind. "wrong" is NULL when all is as documented.
CREATE FUNCTION fuzz_call(n bigint, OUT outcome text, OUT ms float8, OUT wrong text) LANGUAGE plpgsql AS $$
DECLARE
	phone text := fuzz_phone(n);
	raises bool := n % 2 = 1;
	started timestamptz := clock_timestamp();
	answer jsonb;
	said text;
	state text;
	detail text;
	status jsonb;
BEGIN
	BEGIN
		IF raises THEN
			answer := dt_remove_tags_custom_fields(phone, ARRAY[fuzz_tag(phone)]);
		ELSE
			answer := dt_try_remove_tags_custom_fields(phone, ARRAY[fuzz_tag(phone)]);
		END IF;
		said := answer::text;
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, said = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	END;
	ms := extract(epoch FROM clock_timestamp() - started) * 1000;

	IF state IS NOT NULL THEN
		outcome := 'raised ' || state;
		IF state NOT IN ('28000') AND NOT (raises AND state IN ('22023', '53400', '58000', 'HV00N', 'HV00M')) THEN
			wrong := 'raised: ' || said;
		ELSIF said ~ '[\n\r]' AND detail IS NULL THEN
			wrong := 'two lines: ' || said;
		ELSIF NOT detail::jsonb ?& '{statusCode,error,message}' THEN
			wrong := 'DETAIL: ' || detail;
		END IF;
		answer := detail::jsonb;
		said := said || detail;
	ELSIF raises OR NOT answer ? 'statusCode' THEN
		outcome := 'success';
	ELSIF jsonb_typeof(answer -> 'statusCode') = 'null' THEN
		outcome := 'returned ' || (answer ->> 'error');
		IF answer ->> 'error' NOT IN ('fdw_unable_to_create_reply', 'fdw_unable_to_establish_connection') THEN
			wrong := 'returned: ' || said;
		END IF;
	ELSE
		outcome := 'returned ' || left(answer ->> 'statusCode', 1) || 'xx';
	END IF;

	IF jsonb_typeof(answer) <> 'object' THEN
		wrong := 'no object: ' || said;
	ELSIF outcome <> 'success' AND NOT answer ?& '{statusCode,error,message}' THEN
		wrong := 'keys are missing: ' || said;
	ELSIF outcome <> 'success' AND answer ->> 'statusCode' !~ '^[1-9]\d\d$' THEN
		wrong := 'statusCode: ' || said;
	END IF;
	IF answer ->> 'statusCode' = '429' OR state = '53400' THEN
		PERFORM fuzz_lift_pause();
	END IF;
	IF fuzz_strange_mark(said, phone) IS NOT NULL THEN
		wrong := 'the answer to ' || fuzz_strange_mark(said, phone) || ': ' || said;
	ELSIF ms > current_setting('fuzz.longest')::float8 THEN
		wrong := format('took %s ms', round(ms));
	END IF;
	wrong := 'phone ' || phone || ': ' || left(wrong, 1000);
END $$;

CREATE PROCEDURE fuzz_note_memory(session text, batch int) LANGUAGE sql AS $$
	INSERT INTO fuzz_memory
	SELECT session, batch, (SELECT sum(total_bytes) FROM pg_backend_memory_contexts),
		split_part(pg_read_file('/proc/self/statm'), ' ', 2)::bigint * 4096;
$$;

CREATE PROCEDURE fuzz_calls(session text, batch int, first bigint, count int) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO fuzz_outcome
	SELECT 'call', c.outcome, count(*), max(c.ms), min(c.wrong)
	FROM generate_series(first, first + count - 1) AS n, LATERAL fuzz_call(n) AS c
	GROUP BY c.outcome;
	COMMIT;
	CALL fuzz_note_memory(session, batch);
END $$;

-- The rows of one batch, over the queue's servers.
CREATE PROCEDURE fuzz_enqueue(first bigint, count int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 8 LOOP
		PERFORM set_config('doubletick.server', 'queue' || i, false);
		PERFORM dt_enqueue_remove_tags_custom_fields(fuzz_phone(n), ARRAY[fuzz_tag(fuzz_phone(n))])
		FROM generate_series(first + i - 1, first + count - 1, 8) AS n;
	END LOOP;
END $$;

-- Lifts holds and pauses.
CREATE PROCEDURE fuzz_lift_all() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 8 LOOP
		EXECUTE format('ALTER SERVER queue%s OPTIONS (SET rate_limit ''0'')', i);
	END LOOP;
END $$;

-- Notes what has become of a batch, and empties the queue and the history.
CREATE PROCEDURE fuzz_note_rows(session text, batch int) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO fuzz_outcome
	SELECT 'queue', state || coalesce(' ' || http_status / 100 || 'xx', ''), count(*), NULL,
		min('phone ' || phone || ': the answer to ' || fuzz_strange_mark(said, phone) || ': ' || left(said, 1000))
	FROM (SELECT state, http_status, phone, concat(answer, error) AS said FROM dt_history) AS h
	GROUP BY 2;
	INSERT INTO fuzz_outcome
	SELECT 'queue', CASE WHEN attempts > 0 THEN 'to be repeated' ELSE 'not sent' END, count(*), NULL,
		min('phone ' || phone || ': the answer to ' || fuzz_strange_mark(last_error, phone) || ': ' || left(last_error, 1000))
	FROM dt_queue GROUP BY 2;
	TRUNCATE dt_waiting, dt_settled, dt_hold;
	COMMIT;
	CALL fuzz_note_memory(session, batch);
END $$;

/* doubletick--1.0.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION doubletick" to load this file. \quit

-- what is not qualified is PostgreSQL's own, whatever else there is
SET LOCAL search_path = pg_catalog, pg_temp;

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

-- The queue: what waits, what is settled, and what is held

CREATE TABLE @extschema@.dt_waiting (
	id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT dt_waiting_pkey PRIMARY KEY,
	ord bigint NOT NULL,
	xact bigint NOT NULL,
	customer bigint NOT NULL,
	enqueued_at timestamptz NOT NULL,
	due_at timestamptz NOT NULL,
	role oid NOT NULL,
	enqueued_by oid NOT NULL,
	attempts integer NOT NULL,
	http_status integer,
	keep boolean NOT NULL,
	alone boolean NOT NULL,
	server text COLLATE "C" NOT NULL,
	phone text COLLATE "C" NOT NULL,
	waba text COLLATE "C",
	tags text[] COLLATE "C" NOT NULL,
	fields text[] COLLATE "C" NOT NULL,
	last_error text
) USING heap;

CREATE INDEX dt_waiting_customer ON @extschema@.dt_waiting (customer, keep, id);

COMMENT ON TABLE @extschema@.dt_waiting IS
'Removals that wait to be sent, and keeps: names that came back. Written by the extension alone; read the view dt_queue.';
COMMENT ON COLUMN @extschema@.dt_waiting.ord IS
'A keep takes back the removals whose ord is below its id: the id, or a later number after dt_retry. Of the empty keep that dt_retry enters, the id of the removal that it has put back.';
COMMENT ON COLUMN @extschema@.dt_waiting.xact IS
'The transaction that made the row, as a 64-bit number: how the drainer finds rows that commit late.';
COMMENT ON COLUMN @extschema@.dt_waiting.customer IS
'The digits of phone, and in the lower 14 bits a hash of server, role, phone and waba, a leading "+" left aside: what is sent together.';
COMMENT ON COLUMN @extschema@.dt_waiting.alone IS
'True when the row was refused together with others and goes by itself.';

COMMENT ON SEQUENCE @extschema@.dt_waiting_id_seq IS
'The ids of dt_queue and dt_history, and the order of removals and keeps.';
COMMENT ON INDEX @extschema@.dt_waiting_customer IS
'How what waits for a customer is found.';

CREATE TABLE @extschema@.dt_settled (
	id bigint CONSTRAINT dt_settled_pkey PRIMARY KEY,
	enqueued_at timestamptz NOT NULL,
	settled_at timestamptz NOT NULL,
	role oid NOT NULL,
	enqueued_by oid NOT NULL,
	attempts integer NOT NULL,
	http_status integer,
	state text COLLATE "C" NOT NULL,
	server text COLLATE "C" NOT NULL,
	phone text COLLATE "C" NOT NULL,
	waba text COLLATE "C",
	tags text[] COLLATE "C" NOT NULL,
	fields text[] COLLATE "C" NOT NULL,
	answer jsonb,
	error text
) USING heap;

CREATE INDEX dt_settled_settled_at ON @extschema@.dt_settled (settled_at);

COMMENT ON TABLE @extschema@.dt_settled IS
'Removals that are settled, for as long as doubletick.history_retention says. Written by the extension alone; read the view dt_history.';

COMMENT ON INDEX @extschema@.dt_settled_settled_at IS
'How old rows are found, to be deleted, and those of the last hour, to be counted.';

CREATE TABLE @extschema@.dt_hold (
	server text COLLATE "C",
	role oid,
	since timestamptz NOT NULL,
	probe_at timestamptz NOT NULL,
	definition text NOT NULL,
	reason text NOT NULL,
	CONSTRAINT dt_hold_pkey PRIMARY KEY (server, role)
) USING heap;

COMMENT ON TABLE @extschema@.dt_hold IS
'Servers and roles whose requests are held, since DoubleTick refused the key, the address or the connection. Written by the extension alone; read the view dt_status.';

CREATE FUNCTION @extschema@.dt_held(server text, role oid)
RETURNS text
AS 'MODULE_PATHNAME', 'dt_held'
LANGUAGE C STRICT STABLE PARALLEL RESTRICTED COST 100;

COMMENT ON FUNCTION @extschema@.dt_held(text, oid) IS
'What keeps requests of this role to this server from leaving: something in this database''s definitions, or a pause after HTTP status 429; NULL when nothing does. For the view dt_status: tells only who has the role, or is a member of pg_monitor.';

CREATE FUNCTION @extschema@.dt_worker(
	OUT pid integer,
	OUT since timestamptz,
	OUT state text,
	OUT in_flight integer,
	OUT sent_per_minute bigint,
	OUT failed_per_minute bigint,
	OUT last_error text)
RETURNS record
AS 'MODULE_PATHNAME', 'dt_worker'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10;

COMMENT ON FUNCTION @extschema@.dt_worker() IS
'The background worker of this database, for the view dt_status: its process, since when it runs, what it does, requests in flight, requests sent and rows failed within the last minute, and the last error that ended one. All but the latter are null when it does not run.';

CREATE FUNCTION @extschema@.dt_same_number(number text, other text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dt_same_number'
LANGUAGE C IMMUTABLE PARALLEL SAFE COST 1;

COMMENT ON FUNCTION @extschema@.dt_same_number(text, text) IS
'Compares two phone or WABA numbers without a leading "+", for the view dt_queue. NULL is no number and equals only NULL.';

CREATE VIEW @extschema@.dt_queue WITH (security_barrier) AS
SELECT w.id, w.server, pg_get_userbyid(w.role) AS role, w.phone,
	tags.names AS tags, fields.names AS fields, w.waba,
	w.attempts, w.enqueued_at, w.due_at, w.last_error,
	w.http_status, pg_get_userbyid(w.enqueued_by) AS enqueued_by
FROM @extschema@.dt_waiting AS w
CROSS JOIN LATERAL (
	SELECT coalesce(array_agg(k.tags), '{}') AS tags, coalesce(array_agg(k.fields), '{}') AS fields
	FROM (
		SELECT tag.name AS tags, NULL AS fields
		FROM @extschema@.dt_waiting AS k, unnest(k.tags) AS tag(name)
		WHERE k.keep AND k.customer = w.customer AND k.id > w.ord
			AND k.server = w.server AND k.role = w.role
			AND @extschema@.dt_same_number(k.waba, w.waba)
		UNION ALL
		SELECT NULL, field.name
		FROM @extschema@.dt_waiting AS k, unnest(k.fields) AS field(name)
		WHERE k.keep AND k.customer = w.customer AND k.id > w.ord
			AND k.server = w.server AND k.role = w.role
			AND @extschema@.dt_same_number(k.waba, w.waba)
	) AS k
) AS kept
CROSS JOIN LATERAL (
	SELECT coalesce(array_agg(tag.name ORDER BY tag.n), '{}') AS names
	FROM unnest(w.tags) WITH ORDINALITY AS tag(name, n)
	WHERE array_position(kept.tags, tag.name) IS NULL
) AS tags
CROSS JOIN LATERAL (
	SELECT coalesce(array_agg(field.name ORDER BY field.n), '{}') AS names
	FROM unnest(w.fields) WITH ORDINALITY AS field(name, n)
	WHERE array_position(kept.fields, field.name) IS NULL
) AS fields
WHERE NOT w.keep AND pg_has_role(w.role, 'USAGE')
	AND (tags.names <> '{}' OR fields.names <> '{}');

COMMENT ON VIEW @extschema@.dt_queue IS
'Removals that wait, as they would be sent now: without the names that came back. Shows the rows of roles that the reader has.';
COMMENT ON COLUMN @extschema@.dt_queue.id IS
'What dt_enqueue_remove_tags_custom_fields returned.';
COMMENT ON COLUMN @extschema@.dt_queue.server IS
'The foreign server that it goes to.';
COMMENT ON COLUMN @extschema@.dt_queue.role IS
'Whose request it is: sent with this role''s privileges and user mapping.';
COMMENT ON COLUMN @extschema@.dt_queue.phone IS
'The customer''s number, as given.';
COMMENT ON COLUMN @extschema@.dt_queue.tags IS
'Tags to remove, without those that came back.';
COMMENT ON COLUMN @extschema@.dt_queue.fields IS
'Custom fields to remove, without those that came back.';
COMMENT ON COLUMN @extschema@.dt_queue.waba IS
'The WABA number, as given; null means the server''s waba_number.';
COMMENT ON COLUMN @extschema@.dt_queue.attempts IS
'Requests made so far.';
COMMENT ON COLUMN @extschema@.dt_queue.enqueued_at IS
'When it was enqueued, or put back by dt_retry.';
COMMENT ON COLUMN @extschema@.dt_queue.due_at IS
'It is not sent before this time.';
COMMENT ON COLUMN @extschema@.dt_queue.last_error IS
'What was wrong with the last request.';
COMMENT ON COLUMN @extschema@.dt_queue.http_status IS
'HTTP status of the last request; null when there was none.';
COMMENT ON COLUMN @extschema@.dt_queue.enqueued_by IS
'The role that enqueued it, outside of SECURITY DEFINER functions.';

CREATE VIEW @extschema@.dt_history WITH (security_barrier) AS
SELECT s.id, s.server, pg_get_userbyid(s.role) AS role, s.phone, s.tags, s.fields, s.waba,
	s.state, s.attempts, s.http_status, s.answer, s.error, s.enqueued_at, s.settled_at,
	pg_get_userbyid(s.enqueued_by) AS enqueued_by
FROM @extschema@.dt_settled AS s
WHERE pg_has_role(s.role, 'USAGE');

COMMENT ON VIEW @extschema@.dt_history IS
'Removals that are settled: done, failed or cancelled, with the requests made, the last HTTP status and this row''s part of the answer. Shows the rows of roles that the reader has.';
COMMENT ON COLUMN @extschema@.dt_history.id IS
'The id that it had in dt_queue.';
COMMENT ON COLUMN @extschema@.dt_history.server IS
'The foreign server that it was for.';
COMMENT ON COLUMN @extschema@.dt_history.role IS
'Whose request it was.';
COMMENT ON COLUMN @extschema@.dt_history.phone IS
'The customer''s number, as given.';
COMMENT ON COLUMN @extschema@.dt_history.tags IS
'Tags to remove, as given.';
COMMENT ON COLUMN @extschema@.dt_history.fields IS
'Custom fields to remove, as given.';
COMMENT ON COLUMN @extschema@.dt_history.waba IS
'The WABA number, as given.';
COMMENT ON COLUMN @extschema@.dt_history.state IS
'done, failed or cancelled.';
COMMENT ON COLUMN @extschema@.dt_history.attempts IS
'Requests made, the last included.';
COMMENT ON COLUMN @extschema@.dt_history.http_status IS
'HTTP status of the last request; null when there was none.';
COMMENT ON COLUMN @extschema@.dt_history.answer IS
'The API''s answer about these names when done; {"statusCode", "error", "message"} when the last request failed; else null.';
COMMENT ON COLUMN @extschema@.dt_history.error IS
'What was wrong; when done, the names that the API could not remove.';
COMMENT ON COLUMN @extschema@.dt_history.enqueued_at IS
'When it was enqueued, or put back by dt_retry.';
COMMENT ON COLUMN @extschema@.dt_history.settled_at IS
'When it was done, failed or cancelled.';
COMMENT ON COLUMN @extschema@.dt_history.enqueued_by IS
'The role that enqueued it, outside of SECURITY DEFINER functions.';

CREATE VIEW @extschema@.dt_status WITH (security_barrier) AS
WITH waiting AS (
	SELECT w.server, count(*) AS waiting, count(*) FILTER (WHERE w.due_at <= now()) AS due,
		min(w.enqueued_at) AS oldest,
		(array_agg(w.last_error ORDER BY w.due_at DESC) FILTER (WHERE w.last_error IS NOT NULL))[1] AS last_error
	FROM @extschema@.dt_waiting AS w
	WHERE NOT w.keep AND (pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(w.role, 'USAGE'))
	GROUP BY w.server
), settled AS (
	SELECT s.server, count(*) FILTER (WHERE s.state = 'done') AS done,
		count(*) FILTER (WHERE s.state = 'done' AND s.error IS NOT NULL) AS errored,
		count(*) FILTER (WHERE s.state = 'failed') AS failed,
		count(*) FILTER (WHERE s.settled_at > now() - interval '1 minute') / 60.0 AS rate,
		(array_agg(s.error ORDER BY s.settled_at DESC) FILTER (WHERE s.state = 'failed'))[1] AS last_error
	FROM @extschema@.dt_settled AS s
	WHERE s.settled_at > now() - interval '1 hour'
		AND (pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(s.role, 'USAGE'))
	GROUP BY s.server
), lane AS (
	SELECT DISTINCT w.server, w.role FROM @extschema@.dt_waiting AS w WHERE NOT w.keep
), held AS (
	SELECT lane.server, string_agg(DISTINCT coalesce(@extschema@.dt_held(lane.server, lane.role), h.reason), '; ') AS held
	FROM lane LEFT JOIN @extschema@.dt_hold AS h ON h.server = lane.server AND h.role = lane.role
	WHERE pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(lane.role, 'USAGE')
	GROUP BY lane.server
), flying AS (
	SELECT l.classid, count(*) AS in_flight
	FROM pg_locks AS l
	WHERE l.locktype = 'advisory' AND l.objsubid = 21809 AND l.granted
		AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
	GROUP BY l.classid
)
SELECT server, coalesce(waiting.waiting, 0) AS waiting, coalesce(waiting.due, 0) AS due,
	coalesce(flying.in_flight, 0) AS in_flight,
	coalesce(settled.done, 0) AS done, coalesce(settled.errored, 0) AS errored,
	coalesce(settled.failed, 0) AS failed,
	now() - waiting.oldest AS oldest_age,
	round(coalesce(settled.rate, 0), 1) AS rate,
	regexp_replace(coalesce(waiting.last_error, settled.last_error), '(HTTP status \d+).*|: ".*', '\1') AS last_error,
	held.held,
	worker.pid AS worker_pid, worker.since AS worker_since, worker.state AS worker_state,
	worker.sent_per_minute, worker.failed_per_minute, worker.last_error AS worker_error
FROM waiting FULL JOIN settled USING (server) LEFT JOIN held USING (server)
LEFT JOIN flying ON flying.classid = ((hashtext(server)::bigint + 4294967296) % 4294967296)::oid
CROSS JOIN @extschema@.dt_worker() AS worker;

COMMENT ON VIEW @extschema@.dt_status IS
'One row per server: removals that wait, that are due, requests in flight; done, done with names that the API could not remove, and failed in the last hour; age of the oldest that waits; settled per second over the last minute; the last error, without the API''s own words and what else it quotes; why requests are held, if they are; and the background worker. Holds no phones or names; whole for members of pg_monitor, else of the roles that the reader has.';
COMMENT ON COLUMN @extschema@.dt_status.server IS
'The foreign server.';
COMMENT ON COLUMN @extschema@.dt_status.waiting IS
'Removals that wait, those in flight included.';
COMMENT ON COLUMN @extschema@.dt_status.due IS
'Of those that wait, those whose time has come.';
COMMENT ON COLUMN @extschema@.dt_status.in_flight IS
'Requests that are out, or whose answer is not yet settled.';
COMMENT ON COLUMN @extschema@.dt_status.done IS
'Removals done in the last hour.';
COMMENT ON COLUMN @extschema@.dt_status.errored IS
'Of those done, those with names that the API could not remove.';
COMMENT ON COLUMN @extschema@.dt_status.failed IS
'Removals failed in the last hour.';
COMMENT ON COLUMN @extschema@.dt_status.oldest_age IS
'How long the oldest that waits has waited.';
COMMENT ON COLUMN @extschema@.dt_status.rate IS
'Removals settled per second, over the last minute.';
COMMENT ON COLUMN @extschema@.dt_status.last_error IS
'The last error, without the API''s own words and what else it quotes.';
COMMENT ON COLUMN @extschema@.dt_status.held IS
'What keeps requests from leaving; null when nothing does.';
COMMENT ON COLUMN @extschema@.dt_status.worker_pid IS
'Process id of this database''s background worker; null, as the next four, when it does not run.';
COMMENT ON COLUMN @extschema@.dt_status.worker_since IS
'Since when the worker runs.';
COMMENT ON COLUMN @extschema@.dt_status.worker_state IS
'What the worker does.';
COMMENT ON COLUMN @extschema@.dt_status.sent_per_minute IS
'Requests that the worker sent in the last minute, to all servers.';
COMMENT ON COLUMN @extschema@.dt_status.failed_per_minute IS
'Removals that failed with the worker in the last minute, of all servers.';
COMMENT ON COLUMN @extschema@.dt_status.worker_error IS
'The error that last ended a worker of this database.';

GRANT SELECT ON @extschema@.dt_queue, @extschema@.dt_history, @extschema@.dt_status TO PUBLIC;

CREATE FUNCTION @extschema@.dt_enqueue_remove_tags_custom_fields(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dt_enqueue_remove_tags_custom_fields'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_enqueue_remove_tags_custom_fields(text, text[], text[], text) IS
'Stores the removal of tags and custom fields, to be sent by the current role after this transaction has committed, and returns its id in dt_queue and dt_history. Arguments as for dt_remove_tags_custom_fields. Raises 22023 or 22004 for a bad argument, 25006 in a read-only session.';

CREATE FUNCTION @extschema@.dt_cancel(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dt_cancel'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_cancel(bigint) IS
'Takes a waiting removal out of the queue. True only if its request has not left and, once this transaction commits, never will; a request that was out when its session was cut off has left no trace, and counts as not having left. One that waits to be tried again is taken out too, but has left before: false. Also false for what is in flight, settled, unknown, or another role''s. Raises 25006 in a read-only session.';

CREATE FUNCTION @extschema@.dt_retry(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dt_retry'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_retry(bigint) IS
'Puts a failed removal back into the queue under its id, with a new enqueued_at and no attempts. False when there is no failed removal of that id among those of the caller''s roles. Raises 22023 when its phone or names cannot be sent, 25006 in a read-only session.';

CREATE PROCEDURE @extschema@.dt_process_queue()
AS 'MODULE_PATHNAME', 'dt_process_queue'
LANGUAGE C;

COMMENT ON PROCEDURE @extschema@.dt_process_queue() IS
'Sends what is due in this database''s queue, many requests at a time, until nothing is due; reports its progress by NOTICE. Returns at once when another session does so already. Raises 25001 in a transaction block, 25006 in a read-only session.';

CREATE FUNCTION @extschema@.dt_remove_tags_custom_fields_trigger()
RETURNS trigger
AS 'MODULE_PATHNAME', 'dt_remove_tags_custom_fields_trigger'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_remove_tags_custom_fields_trigger() IS
'Stores the removal of the tags and custom fields that a table''s rows have lost, to be sent by the table''s owner after commit. For a trigger AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW, or FOR EACH STATEMENT with transition tables. Arguments: the columns of phone, tags, custom fields and waba, and a server; '''' names none. A wrong definition raises 39P01, 42703 or 42804 when the trigger first fires.';

REVOKE EXECUTE ON FUNCTION
	@extschema@.dt_remove_tags_custom_fields(text, text[], text[], text),
	@extschema@.dt_try_remove_tags_custom_fields(text, text[], text[], text),
	@extschema@.dt_enqueue_remove_tags_custom_fields(text, text[], text[], text),
	@extschema@.dt_cancel(bigint),
	@extschema@.dt_retry(bigint),
	@extschema@.dt_remove_tags_custom_fields_trigger()
FROM PUBLIC;

REVOKE EXECUTE ON PROCEDURE @extschema@.dt_process_queue() FROM PUBLIC;

/* doubletick--1.0.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION doubletick" to load this file. \quit

-- names without a schema mean PostgreSQL's own objects
SET LOCAL search_path = pg_catalog, pg_temp;

-- Connection: servers and user mappings

CREATE FUNCTION @extschema@.dt_fdw_validator(options text[], catalog oid)
RETURNS void
AS 'MODULE_PATHNAME', 'dt_fdw_validator'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.dt_fdw_validator(text[], oid) IS
'Checks the options of DoubleTick servers and their user mappings.';

CREATE FOREIGN DATA WRAPPER doubletick
NO HANDLER
VALIDATOR @extschema@.dt_fdw_validator;

COMMENT ON FOREIGN DATA WRAPPER doubletick IS
'Connects to DoubleTick: a server says where it is, a user mapping holds an API key.';

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
'Returns the request body for these arguments; sends nothing.';

CREATE FUNCTION @extschema@.dt_call_support(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'dt_call_support'
LANGUAGE C STRICT IMMUTABLE PARALLEL SAFE;

COMMENT ON FUNCTION @extschema@.dt_call_support(internal) IS
'For the planner: a statement that calls DoubleTick may have many requests in flight.';

CREATE FUNCTION @extschema@.dt_remove_tags_custom_fields(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL,
	server text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'dt_remove_tags_custom_fields'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000
SUPPORT @extschema@.dt_call_support;

COMMENT ON FUNCTION @extschema@.dt_remove_tags_custom_fields(text, text[], text[], text, text) IS
'Removes tags and custom fields from a DoubleTick customer, and returns the answer.';

CREATE FUNCTION @extschema@.dt_try_remove_tags_custom_fields(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL,
	server text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'dt_try_remove_tags_custom_fields'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000
SUPPORT @extschema@.dt_call_support;

COMMENT ON FUNCTION @extschema@.dt_try_remove_tags_custom_fields(text, text[], text[], text, text) IS
'As dt_remove_tags_custom_fields; returns what goes wrong with one row, and does not raise it.';

-- The queue: removals that wait, removals that are settled, and holds

CREATE TABLE @extschema@.dt_waiting (
	-- named, so that a sequence which somebody has made before fails this and is not used
	id bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME @extschema@.dt_waiting_id_seq)
		CONSTRAINT dt_waiting_pkey PRIMARY KEY,
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
	replicated boolean NOT NULL DEFAULT false,
	together integer NOT NULL,
	origin bigint,
	server text COLLATE "C" NOT NULL,
	phone text COLLATE "C" NOT NULL,
	waba text COLLATE "C",
	tags text[] COLLATE "C" NOT NULL,
	fields text[] COLLATE "C" NOT NULL,
	last_error text
) USING heap;

CREATE INDEX dt_waiting_customer ON @extschema@.dt_waiting (customer, keep, id);

COMMENT ON TABLE @extschema@.dt_waiting IS
'Removals that wait to be sent, and keeps: names that came back and must not be removed. Only the extension writes it; read the view dt_queue, which explains the columns that have no comment here.';
COMMENT ON COLUMN @extschema@.dt_waiting.keep IS
'Whether the row is a keep, and not a removal.';
COMMENT ON COLUMN @extschema@.dt_waiting.ord IS
'Order of removals and keeps: a keep takes its names out of removals whose ord is below the keep''s id. It is the row''s id; dt_retry sets a later one. Exception: dt_retry and dt_cancel also enter an empty keep, whose ord is the id of a removal that the drainer is to look at again; and dt_send_replicated one whose ord is 0.';
COMMENT ON COLUMN @extschema@.dt_waiting.xact IS
'64-bit id of the transaction that inserted the row. With it the drainer finds rows that were committed late.';
COMMENT ON COLUMN @extschema@.dt_waiting.customer IS
'Number of the customer, whose removals are sent together: the digits of phone, and in the lower 14 bits a hash of server, role, phone and waba, without a leading "+". Two customers may have the same number.';
COMMENT ON COLUMN @extschema@.dt_waiting.replicated IS
'Whether the row arrived by logical replication. Such a row is not sent from here, and takes nothing back.';
COMMENT ON COLUMN @extschema@.dt_waiting.together IS
'Most removals that a request with this one may carry, since a larger request was refused; 0 when there is no such limit.';
COMMENT ON COLUMN @extschema@.dt_waiting.origin IS
'Number of the table whose trigger enqueued the removal and can take it back; null when a role enqueued it by hand. A hash of the OIDs of table and database and of the cluster''s system identifier, so rows that are restored elsewhere, or come through pg_upgrade, have no table there. A keep that has an origin takes its names only out of removals of that origin.';

COMMENT ON SEQUENCE @extschema@.dt_waiting_id_seq IS
'Gives dt_queue and dt_history their ids, which are also the order of removals and keeps.';
COMMENT ON INDEX @extschema@.dt_waiting_customer IS
'Finds the rows of a customer.';

CREATE TABLE @extschema@.dt_settled (
	id bigint NOT NULL,
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
	error text,
	sent_tags text[] COLLATE "C",
	sent_fields text[] COLLATE "C",
	origin bigint
) USING heap;

CREATE INDEX dt_settled_id ON @extschema@.dt_settled (id);
CREATE INDEX dt_settled_settled_at ON @extschema@.dt_settled (settled_at);

COMMENT ON TABLE @extschema@.dt_settled IS
'Removals that are settled, kept for doubletick.history_retention. Only the extension writes it; read the view dt_history, which explains the columns that have no comment here.';
COMMENT ON COLUMN @extschema@.dt_settled.sent_tags IS
'Tags that its request carried, if not all of them; see dt_history.';
COMMENT ON COLUMN @extschema@.dt_settled.sent_fields IS
'Custom fields that its request carried, if not all of them; see dt_history.';
COMMENT ON COLUMN @extschema@.dt_settled.origin IS
'As in dt_waiting; dt_retry puts it back there.';

COMMENT ON INDEX @extschema@.dt_settled_id IS
'Finds a removal for dt_retry. Not unique, since ids may come again after TRUNCATE ... RESTART IDENTITY or a restore.';
COMMENT ON INDEX @extschema@.dt_settled_settled_at IS
'Finds old rows, which are deleted, and rows of the last hour, which dt_status counts.';

CREATE TABLE @extschema@.dt_hold (
	server text COLLATE "C",
	role oid,
	since timestamptz NOT NULL,
	probe_at timestamptz NOT NULL,
	definition text NOT NULL,
	reason text NOT NULL,
	hint text,
	CONSTRAINT dt_hold_pkey PRIMARY KEY (server, role)
) USING heap;

COMMENT ON TABLE @extschema@.dt_hold IS
'Servers and roles whose requests are held, and why. Only the extension writes it; read the view dt_status.';
COMMENT ON COLUMN @extschema@.dt_hold.server IS
'The foreign server that the requests are for.';
COMMENT ON COLUMN @extschema@.dt_hold.role IS
'The role whose requests are held.';
COMMENT ON COLUMN @extschema@.dt_hold.since IS
'Since when they are held, whatever the reason was then.';
COMMENT ON COLUMN @extschema@.dt_hold.probe_at IS
'When the next request may try whether the cause is mended.';
COMMENT ON COLUMN @extschema@.dt_hold.definition IS
'The definition of server and user mapping under which the request failed: requests go on when there is another one. Empty when something is missing in it.';
COMMENT ON COLUMN @extschema@.dt_hold.reason IS
'Why they are held; dt_status shows it.';
COMMENT ON COLUMN @extschema@.dt_hold.hint IS
'What mends it; dt_check shows it. Null when that is not known.';

-- What arrives by logical replication, in all three tables

CREATE FUNCTION @extschema@.dt_replicated_trigger()
RETURNS trigger
AS 'MODULE_PATHNAME', 'dt_replicated_trigger'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 10;

COMMENT ON FUNCTION @extschema@.dt_replicated_trigger() IS
'Marks rows of the queue that arrive by logical replication.';

CREATE TRIGGER dt_waiting_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.dt_waiting
FOR EACH ROW EXECUTE FUNCTION @extschema@.dt_replicated_trigger();
CREATE TRIGGER dt_settled_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.dt_settled
FOR EACH ROW EXECUTE FUNCTION @extschema@.dt_replicated_trigger();
CREATE TRIGGER dt_hold_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.dt_hold
FOR EACH ROW EXECUTE FUNCTION @extschema@.dt_replicated_trigger();

ALTER TABLE @extschema@.dt_waiting ENABLE REPLICA TRIGGER dt_waiting_replicated;
ALTER TABLE @extschema@.dt_settled ENABLE REPLICA TRIGGER dt_settled_replicated;
ALTER TABLE @extschema@.dt_hold ENABLE REPLICA TRIGGER dt_hold_replicated;

COMMENT ON TRIGGER dt_waiting_replicated ON @extschema@.dt_waiting IS
'Marks what arrives by logical replication, which is not sent from here, and protects the other rows from replicated changes.';
COMMENT ON TRIGGER dt_settled_replicated ON @extschema@.dt_settled IS
'Leaves out what arrives by logical replication: the history is that of this database.';
COMMENT ON TRIGGER dt_hold_replicated ON @extschema@.dt_hold IS
'Leaves out what arrives by logical replication: holds are those of this database.';

CREATE FUNCTION @extschema@.dt_held(server text, role oid)
RETURNS text
AS 'MODULE_PATHNAME', 'dt_held'
LANGUAGE C STRICT STABLE PARALLEL RESTRICTED COST 100;

COMMENT ON FUNCTION @extschema@.dt_held(text, oid) IS
'For dt_status: why requests of a role to a server cannot leave.';

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
'For dt_status: what the background worker of this database does.';

CREATE FUNCTION @extschema@.dt_counters(
	server oid,
	OUT of_all_sessions boolean,
	OUT since timestamptz,
	OUT requests bigint,
	OUT calls bigint,
	OUT done bigint,
	OUT errored bigint,
	OUT failed bigint,
	OUT cancelled bigint,
	OUT no_answer bigint,
	OUT status_2xx bigint,
	OUT status_4xx bigint,
	OUT status_429 bigint,
	OUT status_5xx bigint,
	OUT other_status bigint,
	OUT rate double precision)
RETURNS record
AS 'MODULE_PATHNAME', 'dt_counters'
LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED COST 10;

COMMENT ON FUNCTION @extschema@.dt_counters(oid) IS
'For dt_status: what was sent to a server, and what came of it.';

CREATE FUNCTION @extschema@.dt_every_page(internal)
RETURNS tsm_handler
AS 'MODULE_PATHNAME', 'dt_every_page'
LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION @extschema@.dt_every_page(internal) IS
'For dt_status: TABLESAMPLE dt_every_page (step) reads every step-th page of a table.';

CREATE FUNCTION @extschema@.dt_same_number(number text, other text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dt_same_number'
LANGUAGE C IMMUTABLE PARALLEL SAFE COST 1;

COMMENT ON FUNCTION @extschema@.dt_same_number(text, text) IS
'For dt_queue: whether two numbers are the same, a leading "+" aside.';

CREATE VIEW @extschema@.dt_removals AS
SELECT w.tableoid AS source, w.id, w.customer, w.replicated, w.server, w.role, w.phone, w.waba,
	w.attempts, w.enqueued_at, w.due_at, w.last_error, w.http_status, w.enqueued_by,
	names.tags AS tags_left, names.fields AS fields_left
FROM @extschema@.dt_waiting AS w
CROSS JOIN LATERAL (
	-- Most customers have no keeps, so that nothing has to be computed.  The upper bound of ids
	-- is for the planner: it expects few rows in a range, but many above a lower bound, as long
	-- as the table was not analyzed.  A plan that seems to be costly is compiled (JIT), which
	-- takes seconds.
	SELECT EXISTS (
		SELECT FROM @extschema@.dt_waiting AS k
		WHERE k.keep AND k.customer = w.customer AND k.id > w.ord AND k.id <= 9223372036854775807
	) AS exist
	OFFSET 0
) AS keeps
CROSS JOIN LATERAL (
	-- NOT IN is hashed: a keep may have very many names
	SELECT CASE WHEN keeps.exist THEN ARRAY(
			SELECT tag.name FROM unnest(w.tags) WITH ORDINALITY AS tag(name, n)
			WHERE tag.name NOT IN (
				SELECT unnest(k.tags) FROM @extschema@.dt_waiting AS k
				WHERE k.keep AND k.customer = w.customer AND k.id > w.ord AND k.id <= 9223372036854775807
					AND (w.replicated OR NOT k.replicated)
					AND k.server = w.server AND k.role = w.role
					AND @extschema@.dt_same_number(k.waba, w.waba)
					AND (k.origin IS NULL OR k.origin = w.origin)
			)
			ORDER BY tag.n
		) ELSE w.tags END AS tags,
		CASE WHEN keeps.exist THEN ARRAY(
			SELECT field.name FROM unnest(w.fields) WITH ORDINALITY AS field(name, n)
			WHERE field.name NOT IN (
				SELECT unnest(k.fields) FROM @extschema@.dt_waiting AS k
				WHERE k.keep AND k.customer = w.customer AND k.id > w.ord AND k.id <= 9223372036854775807
					AND (w.replicated OR NOT k.replicated)
					AND k.server = w.server AND k.role = w.role
					AND @extschema@.dt_same_number(k.waba, w.waba)
					AND (k.origin IS NULL OR k.origin = w.origin)
			)
			ORDER BY field.n
		) ELSE w.fields END AS fields
	OFFSET 0
) AS names
WHERE NOT w.keep;

COMMENT ON VIEW @extschema@.dt_removals IS
'Waiting removals of all roles, with the names that are left of them: without those that came back. For the views dt_queue and dt_status. The columns without a comment are those of dt_waiting.';
COMMENT ON COLUMN @extschema@.dt_removals.source IS
'The table that has the row: dt_waiting.';
COMMENT ON COLUMN @extschema@.dt_removals.tags_left IS
'Tags that would be removed now.';
COMMENT ON COLUMN @extschema@.dt_removals.fields_left IS
'Custom fields that would be removed now.';

CREATE VIEW @extschema@.dt_queue WITH (security_barrier) AS
-- not FROM dt_removals itself: then PostgreSQL would take dt_queue for updatable
WITH r AS NOT MATERIALIZED (TABLE @extschema@.dt_removals)
SELECT r.id, r.server, pg_get_userbyid(r.role) AS role, r.phone,
	r.tags_left AS tags, r.fields_left AS fields, r.waba,
	r.attempts, r.enqueued_at, r.due_at, r.last_error,
	r.http_status, pg_get_userbyid(r.enqueued_by) AS enqueued_by
FROM r
-- the role of a replicated row may be another one here
WHERE CASE WHEN r.replicated THEN has_table_privilege(r.source, 'SELECT') ELSE pg_has_role(r.role, 'USAGE') END
	AND (r.tags_left <> '{}' OR r.fields_left <> '{}')
-- the reader's ORDER BY id cannot choose the index, since the view is a security barrier
ORDER BY r.id;

COMMENT ON VIEW @extschema@.dt_queue IS
'Removals that wait, as they would be sent now: without names that came back. Shows the rows of roles whose privileges the reader has; those that arrived by logical replication to who may read dt_waiting.';
COMMENT ON COLUMN @extschema@.dt_queue.id IS
'What dt_enqueue_remove_tags_custom_fields returned.';
COMMENT ON COLUMN @extschema@.dt_queue.server IS
'The foreign server that the request goes to.';
COMMENT ON COLUMN @extschema@.dt_queue.role IS
'The role whose request it is: it is sent with the privileges and the user mapping of this role.';
COMMENT ON COLUMN @extschema@.dt_queue.phone IS
'The customer''s number, as given.';
COMMENT ON COLUMN @extschema@.dt_queue.tags IS
'Tags that would be removed now, without those that came back.';
COMMENT ON COLUMN @extschema@.dt_queue.fields IS
'Custom fields that would be removed now, without those that came back.';
COMMENT ON COLUMN @extschema@.dt_queue.waba IS
'The WABA number, as given; null if none was: then the request has the server''s waba_number.';
COMMENT ON COLUMN @extschema@.dt_queue.attempts IS
'Number of requests made so far.';
COMMENT ON COLUMN @extschema@.dt_queue.enqueued_at IS
'When the removal was enqueued, or put back by dt_retry.';
COMMENT ON COLUMN @extschema@.dt_queue.due_at IS
'The removal is not sent before this time.';
COMMENT ON COLUMN @extschema@.dt_queue.last_error IS
'What went wrong with the last request; null if there was none.';
COMMENT ON COLUMN @extschema@.dt_queue.http_status IS
'HTTP status of the last request; null if it had none.';
COMMENT ON COLUMN @extschema@.dt_queue.enqueued_by IS
'The role that enqueued it; in a SECURITY DEFINER function, the role that called the function.';

CREATE VIEW @extschema@.dt_history WITH (security_barrier) AS
SELECT s.id, s.server, pg_get_userbyid(s.role) AS role, s.phone, s.tags, s.fields, s.waba,
	s.state, s.attempts, s.http_status, s.answer, s.error, s.enqueued_at, s.settled_at,
	pg_get_userbyid(s.enqueued_by) AS enqueued_by,
	CASE WHEN s.answer IS NOT NULL THEN coalesce(s.sent_tags, s.tags) END AS sent_tags,
	CASE WHEN s.answer IS NOT NULL THEN coalesce(s.sent_fields, s.fields) END AS sent_fields
FROM @extschema@.dt_settled AS s
WHERE pg_has_role(s.role, 'USAGE');

COMMENT ON VIEW @extschema@.dt_history IS
'Removals that are settled: done, failed or cancelled, each with its part of the API''s answer, or with what went wrong. Shows the rows of roles whose privileges the reader has.';
COMMENT ON COLUMN @extschema@.dt_history.id IS
'The id that the removal had in dt_queue.';
COMMENT ON COLUMN @extschema@.dt_history.server IS
'The foreign server that the request was for.';
COMMENT ON COLUMN @extschema@.dt_history.role IS
'The role whose request it was.';
COMMENT ON COLUMN @extschema@.dt_history.phone IS
'The customer''s number, as given, but at most its first 200 bytes.';
COMMENT ON COLUMN @extschema@.dt_history.tags IS
'Tags to remove, as given, each once.';
COMMENT ON COLUMN @extschema@.dt_history.fields IS
'Custom fields to remove, as given, each once.';
COMMENT ON COLUMN @extschema@.dt_history.waba IS
'The WABA number, as given, but at most its first 200 bytes; null if none was.';
COMMENT ON COLUMN @extschema@.dt_history.state IS
'done, failed, or cancelled: by dt_cancel, or because all its names came back.';
COMMENT ON COLUMN @extschema@.dt_history.attempts IS
'Number of requests made.';
COMMENT ON COLUMN @extschema@.dt_history.http_status IS
'HTTP status of the last request; null if it had none.';
COMMENT ON COLUMN @extschema@.dt_history.answer IS
'If done, the API''s answer about these names; if failed by a request, {"statusCode", "error", "message"}; else null.';
COMMENT ON COLUMN @extschema@.dt_history.error IS
'What went wrong, at most 2,000 bytes; if done, the names that the API could not remove; null if nothing went wrong.';
COMMENT ON COLUMN @extschema@.dt_history.enqueued_at IS
'When the removal was enqueued, or put back by dt_retry.';
COMMENT ON COLUMN @extschema@.dt_history.sent_tags IS
'The tags among them that were sent: without those that came back before. Null if it was settled without a request.';
COMMENT ON COLUMN @extschema@.dt_history.sent_fields IS
'The custom fields among them that were sent. Null if it was settled without a request.';
COMMENT ON COLUMN @extschema@.dt_history.settled_at IS
'When the removal was done, failed or cancelled.';
COMMENT ON COLUMN @extschema@.dt_history.enqueued_by IS
'The role that enqueued it; in a SECURITY DEFINER function, the role that called the function.';

CREATE VIEW @extschema@.dt_status WITH (security_barrier) AS
WITH definition AS (
	SELECT s.oid, s.srvname::text COLLATE "C" AS server,
		(SELECT o.option_value FROM pg_options_to_table(s.srvoptions) AS o WHERE o.option_name = 'account') AS account
	FROM pg_foreign_server AS s JOIN pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw
	WHERE w.fdwname = 'doubletick'
), oldest AS MATERIALIZED (
	-- a queue may have millions of rows: the oldest and the newest are counted, the others estimated
	SELECT w.id, w.customer, w.keep, w.keep AND (w.tags <> '{}' OR w.fields <> '{}') AS takes_back,
		w.server, w.role, w.replicated, w.due_at, w.enqueued_at, w.last_error
	FROM @extschema@.dt_waiting AS w
	ORDER BY w.id LIMIT 10001
), size AS MATERIALIZED (
	-- every step-th page is read, at most 500 pages
	SELECT count(*) > 10000 AS is_long, min(oldest.id) AS first, max(oldest.id) AS last,
		1 + (pg_relation_size('@extschema@.dt_waiting') / current_setting('block_size')::integer / 500)::integer AS step
	FROM oldest
), newest AS MATERIALIZED (
	SELECT w.id, w.customer, w.keep, w.keep AND (w.tags <> '{}' OR w.fields <> '{}') AS takes_back,
		w.server, w.role, w.replicated, w.due_at, w.enqueued_at, w.last_error
	FROM @extschema@.dt_waiting AS w
	WHERE (SELECT size.is_long FROM size) AND w.id > (SELECT size.last FROM size)
	ORDER BY w.id DESC LIMIT 1000
), row_seen AS (
	TABLE oldest UNION ALL TABLE newest
), part AS (
	-- each row counts for as many as "rows" says
	SELECT seen.server, seen.role, seen.replicated, 1 AS rows, seen.due_at, seen.enqueued_at
	FROM row_seen AS seen
	WHERE NOT seen.keep
	UNION ALL
	SELECT w.server, w.role, w.replicated, (SELECT size.step FROM size), w.due_at, w.enqueued_at
	FROM @extschema@.dt_waiting AS w TABLESAMPLE @extschema@.dt_every_page ((SELECT size.step FROM size))
	WHERE (SELECT size.is_long FROM size) AND NOT w.keep
		AND w.id > (SELECT size.last FROM size) AND w.id < (SELECT min(newest.id) FROM newest)
	UNION ALL
	-- who is held must not be missed, however little of theirs waits
	SELECT h.server, h.role, false, 0, NULL, NULL FROM @extschema@.dt_hold AS h
	WHERE (SELECT size.is_long FROM size)
), lane AS MATERIALIZED (
	-- ask for privileges once for each group
	SELECT part.server, part.role, part.replicated, sum(part.rows) AS waiting,
		coalesce(sum(part.rows) FILTER (WHERE part.due_at <= now()), 0) AS due,
		min(part.enqueued_at) AS oldest
	FROM part
	GROUP BY part.server, part.role, part.replicated
), visible AS (
	SELECT lane.* FROM lane
	WHERE pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(lane.role, 'USAGE') AND NOT lane.replicated
), waiting AS (
	SELECT visible.server, sum(visible.waiting)::bigint AS waiting, sum(visible.due)::bigint AS due,
		min(visible.oldest) AS oldest,
		coalesce(sum(visible.waiting) FILTER (WHERE visible.replicated), 0)::bigint AS replicated
	FROM visible GROUP BY visible.server
), unsent AS (
	SELECT DISTINCT ON (seen.server) seen.server, seen.last_error
	FROM row_seen AS seen JOIN visible USING (server, role, replicated)
	WHERE NOT seen.keep AND seen.last_error IS NOT NULL
	ORDER BY seen.server, seen.due_at DESC
), taken_back AS (
	SELECT r.server, count(*) AS waiting, count(*) FILTER (WHERE r.due_at <= now()) AS due
	FROM (SELECT DISTINCT oldest.customer FROM oldest WHERE oldest.takes_back) AS kept
	JOIN @extschema@.dt_removals AS r USING (customer)
	WHERE NOT (SELECT size.is_long FROM size) AND r.tags_left = '{}' AND r.fields_left = '{}'
		-- they all are: for the planner, as in dt_removals
		AND r.id BETWEEN (SELECT size.first FROM size) AND (SELECT size.last FROM size)
		AND (pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(r.role, 'USAGE') AND NOT r.replicated)
	GROUP BY r.server
), settled AS (
	SELECT s.server, count(*) FILTER (WHERE s.state = 'done') AS done,
		count(*) FILTER (WHERE s.state = 'done' AND s.error IS NOT NULL) AS errored,
		count(*) FILTER (WHERE s.state = 'failed') AS failed,
		(array_agg(CASE s.state WHEN 'done' THEN 'some names could not be removed' ELSE s.error END
			ORDER BY s.state DESC, s.settled_at DESC) FILTER (WHERE s.state <> 'cancelled' AND s.error IS NOT NULL))[1] AS last_error
	FROM @extschema@.dt_settled AS s
	WHERE s.settled_at > now() - interval '1 hour'
		AND (pg_has_role('pg_monitor', 'USAGE') OR pg_has_role(s.role, 'USAGE'))
	GROUP BY s.server
), reason AS (
	SELECT lane.server, lane.role, format('role %I: %s', pg_get_userbyid(lane.role), why.held) AS text
	FROM visible AS lane LEFT JOIN @extschema@.dt_hold AS h ON h.server = lane.server AND h.role = lane.role
	CROSS JOIN LATERAL (SELECT coalesce(@extschema@.dt_held(lane.server, lane.role), h.reason)) AS why(held)
	WHERE NOT lane.replicated AND why.held IS NOT NULL
	UNION ALL
	SELECT w.server, NULL, format('%s %s by logical replication, and wait for dt_send_replicated()',
		w.replicated, CASE w.replicated WHEN 1 THEN 'removal arrived' ELSE 'removals arrived' END)
	FROM waiting AS w WHERE w.replicated > 0
), held AS (
	SELECT reason.server, string_agg(reason.text, '; ' ORDER BY reason.role) AS held
	FROM reason GROUP BY reason.server
), requests AS (
	-- a customer whose request is in flight has such a lock: src/queue/locks.c
	SELECT l.classid, count(*) AS in_flight
	FROM pg_locks AS l
	WHERE l.locktype = 'advisory' AND l.objsubid = 21809 AND l.granted
		AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
	GROUP BY l.classid
)
SELECT server, coalesce(waiting.waiting - coalesce(taken_back.waiting, 0), 0) AS waiting,
	coalesce(waiting.due - coalesce(taken_back.due, 0), 0) AS due,
	coalesce(requests.in_flight, 0) AS in_flight,
	coalesce(settled.done, 0) AS done, coalesce(settled.errored, 0) AS errored,
	coalesce(settled.failed, 0) AS failed,
	now() - CASE WHEN waiting.waiting > coalesce(taken_back.waiting, 0) THEN waiting.oldest END AS oldest_age,
	round(coalesce(counters.rate, 0)::numeric, 1) AS rate,
	regexp_replace(coalesce(unsent.last_error, settled.last_error), '(HTTP status \d+).*|: ".*', '\1') AS last_error,
	held.held,
	worker.pid AS worker_pid, worker.since AS worker_since, worker.state AS worker_state,
	worker.sent_per_minute, worker.failed_per_minute, worker.last_error AS worker_error,
	make_interval(secs => round((waiting.due - coalesce(taken_back.due, 0)) / nullif(counters.rate, 0))) AS time_left,
	coalesce(counters.requests, 0) AS requests_total, coalesce(counters.calls, 0) AS calls_total,
	coalesce(counters.no_answer, 0) AS no_answer_total, coalesce(counters.status_2xx, 0) AS status_2xx_total,
	coalesce(counters.status_4xx, 0) AS status_4xx_total, coalesce(counters.status_429, 0) AS status_429_total,
	coalesce(counters.status_5xx, 0) AS status_5xx_total, coalesce(counters.other_status, 0) AS other_status_total,
	coalesce(counters.done, 0) AS done_total, coalesce(counters.errored, 0) AS errored_total,
	coalesce(counters.failed, 0) AS failed_total, coalesce(counters.cancelled, 0) AS cancelled_total,
	counters.since AS counted_since,
	CASE WHEN counters.of_all_sessions THEN 'all sessions' ELSE 'this session' END AS counted_in,
	definition.account,
	size.is_long AS estimated
FROM definition FULL JOIN waiting USING (server) FULL JOIN settled USING (server)
LEFT JOIN unsent USING (server) LEFT JOIN taken_back USING (server) LEFT JOIN held USING (server)
LEFT JOIN requests ON requests.classid = ((hashtext(server)::bigint + 4294967296) % 4294967296)::oid
CROSS JOIN LATERAL @extschema@.dt_counters(coalesce(definition.oid, 0)) AS counters
CROSS JOIN @extschema@.dt_worker() AS worker CROSS JOIN size;

COMMENT ON VIEW @extschema@.dt_status IS
'The state of the queue, one row per server: what waits, what was done or failed in the last hour, why requests are held, what the background worker does, and counters that only grow. Has no phones and no names. Counts all removals for members of pg_monitor, else those of roles whose privileges the reader has; the counters are those of all roles.';
COMMENT ON COLUMN @extschema@.dt_status.server IS
'The foreign server.';
COMMENT ON COLUMN @extschema@.dt_status.waiting IS
'Removals that wait, also those in flight, but not those whose names have all come back.';
COMMENT ON COLUMN @extschema@.dt_status.due IS
'How many of those that wait have reached their due_at, held or not.';
COMMENT ON COLUMN @extschema@.dt_status.in_flight IS
'Requests that are out, or whose answer is not yet settled.';
COMMENT ON COLUMN @extschema@.dt_status.done IS
'Removals done in the last hour.';
COMMENT ON COLUMN @extschema@.dt_status.errored IS
'How many of those done had names that the API could not remove.';
COMMENT ON COLUMN @extschema@.dt_status.failed IS
'Removals failed in the last hour.';
COMMENT ON COLUMN @extschema@.dt_status.oldest_age IS
'How long the oldest removal has waited; null if none waits. While others wait, it may be one whose names have all come back.';
COMMENT ON COLUMN @extschema@.dt_status.rate IS
'Requests sent per second, over the last 10 seconds or since the first of them; calls are counted, too.';
COMMENT ON COLUMN @extschema@.dt_status.last_error IS
'The last error of what waits, or else of what failed in the last hour, or else that names could not be removed; without what it quotes from the API or elsewhere.';
COMMENT ON COLUMN @extschema@.dt_status.held IS
'The roles whose requests are held or paused, and why; how many removals arrived by logical replication; null if there is neither.';
COMMENT ON COLUMN @extschema@.dt_status.worker_pid IS
'Process id of this database''s background worker; this and the next four columns are null if none runs.';
COMMENT ON COLUMN @extschema@.dt_status.worker_since IS
'When the worker started.';
COMMENT ON COLUMN @extschema@.dt_status.worker_state IS
'What the worker does: starting, sending, idle, or waiting for another session that drains.';
COMMENT ON COLUMN @extschema@.dt_status.sent_per_minute IS
'Requests that the worker sent in the last minute, to all servers.';
COMMENT ON COLUMN @extschema@.dt_status.failed_per_minute IS
'Removals that failed in the worker''s hands in the last minute, for all servers.';
COMMENT ON COLUMN @extschema@.dt_status.worker_error IS
'The error that last ended a worker of this database, with %s for whatever its message names; the server''s log has all of it.';

COMMENT ON COLUMN @extschema@.dt_status.time_left IS
'How long it takes to send what is due at the present rate; null while nothing is sent.';
COMMENT ON COLUMN @extschema@.dt_status.requests_total IS
'Requests sent, calls and repetitions included. This and the other counters begin at 0 when PostgreSQL starts.';
COMMENT ON COLUMN @extschema@.dt_status.calls_total IS
'How many of the requests a session sent and waited for: those of dt_remove_tags_custom_fields and dt_try_remove_tags_custom_fields.';
COMMENT ON COLUMN @extschema@.dt_status.no_answer_total IS
'Requests to which no answer came, or only a part of one.';
COMMENT ON COLUMN @extschema@.dt_status.status_2xx_total IS
'Requests that were answered with an HTTP status from 200 to 299.';
COMMENT ON COLUMN @extschema@.dt_status.status_4xx_total IS
'Requests that were answered with an HTTP status from 400 to 499.';
COMMENT ON COLUMN @extschema@.dt_status.status_429_total IS
'How many of these were answered with 429: they came too fast for DoubleTick.';
COMMENT ON COLUMN @extschema@.dt_status.status_5xx_total IS
'Requests that were answered with an HTTP status from 500 to 599.';
COMMENT ON COLUMN @extschema@.dt_status.other_status_total IS
'Requests that were answered with another HTTP status.';
COMMENT ON COLUMN @extschema@.dt_status.done_total IS
'Removals of the queue that were done.';
COMMENT ON COLUMN @extschema@.dt_status.errored_total IS
'How many of those done had names that the API could not remove.';
COMMENT ON COLUMN @extschema@.dt_status.failed_total IS
'Removals of the queue that failed. Those that failed when they were enqueued, for bad data, are not counted.';
COMMENT ON COLUMN @extschema@.dt_status.cancelled_total IS
'Removals of the queue that were not sent, since all their names came back. Those taken out by dt_cancel are not counted.';
COMMENT ON COLUMN @extschema@.dt_status.counted_since IS
'When the counters began; null if nothing was counted yet.';
COMMENT ON COLUMN @extschema@.dt_status.counted_in IS
'Whose requests the counters and the rate have: all sessions, or, when the library is not preloaded, this session.';
COMMENT ON COLUMN @extschema@.dt_status.account IS
'The account that the server names, whose pace and pauses it shares with all servers of the cluster that name it; null if it names none.';

COMMENT ON COLUMN @extschema@.dt_status.estimated IS
'Whether waiting, due and time_left are estimates, since more than 10,000 rows wait, of all roles and servers: from the oldest and the newest rows and a sample of the others. Then waiting and due include removals whose names have all come back.';

GRANT SELECT ON @extschema@.dt_queue, @extschema@.dt_history, @extschema@.dt_status TO PUBLIC;

CREATE FUNCTION @extschema@.dt_enqueue_remove_tags_custom_fields(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL,
	server text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dt_enqueue_remove_tags_custom_fields'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_enqueue_remove_tags_custom_fields(text, text[], text[], text, text) IS
'Stores a removal, which is sent after commit, and returns its id.';

CREATE FUNCTION @extschema@.dt_try_enqueue_remove_tags_custom_fields(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL,
	server text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dt_try_enqueue_remove_tags_custom_fields'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_try_enqueue_remove_tags_custom_fields(text, text[], text[], text, text) IS
'As dt_enqueue_remove_tags_custom_fields; a bad argument fails the removal, not the statement.';

CREATE FUNCTION @extschema@.dt_keep(
	phone text,
	tags text[] DEFAULT NULL,
	fields text[] DEFAULT NULL,
	waba text DEFAULT NULL,
	server text DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dt_keep'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_keep(text, text[], text[], text, text) IS
'Takes names that a customer has again out of the waiting removals.';

CREATE FUNCTION @extschema@.dt_cancel(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dt_cancel'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_cancel(bigint) IS
'Takes a waiting removal out of the queue; true if it was never sent and never will be.';

CREATE FUNCTION @extschema@.dt_retry(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dt_retry'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_retry(bigint) IS
'Puts a failed removal back into the queue; false if it cannot.';

CREATE FUNCTION @extschema@.dt_send_replicated()
RETURNS bigint
AS 'MODULE_PATHNAME', 'dt_send_replicated'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;

COMMENT ON FUNCTION @extschema@.dt_send_replicated() IS
'Has removals that arrived by logical replication sent from here.';

CREATE PROCEDURE @extschema@.dt_process_queue()
AS 'MODULE_PATHNAME', 'dt_process_queue'
LANGUAGE C;

COMMENT ON PROCEDURE @extschema@.dt_process_queue() IS
'Sends what is due in the queue of this database.';

CREATE FUNCTION @extschema@.dt_remove_tags_custom_fields_trigger()
RETURNS trigger
AS 'MODULE_PATHNAME', 'dt_remove_tags_custom_fields_trigger'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;

COMMENT ON FUNCTION @extschema@.dt_remove_tags_custom_fields_trigger() IS
'Enqueues the removal of what a table''s rows have lost.';

CREATE FUNCTION @extschema@.dt_check(
	connect boolean DEFAULT false,
	OUT object text,
	OUT problem text,
	OUT hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'dt_check'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000 ROWS 10
SECURITY DEFINER SET search_path = pg_catalog, pg_temp;

COMMENT ON FUNCTION @extschema@.dt_check(boolean) IS
'Returns what is wrong in this database, and what mends it; no row when all is well.';

REVOKE EXECUTE ON FUNCTION
	@extschema@.dt_remove_tags_custom_fields(text, text[], text[], text, text),
	@extschema@.dt_try_remove_tags_custom_fields(text, text[], text[], text, text),
	@extschema@.dt_enqueue_remove_tags_custom_fields(text, text[], text[], text, text),
	@extschema@.dt_try_enqueue_remove_tags_custom_fields(text, text[], text[], text, text),
	@extschema@.dt_keep(text, text[], text[], text, text),
	@extschema@.dt_check(boolean),
	@extschema@.dt_cancel(bigint),
	@extschema@.dt_retry(bigint),
	@extschema@.dt_send_replicated(),
	@extschema@.dt_replicated_trigger(),
	@extschema@.dt_remove_tags_custom_fields_trigger()
FROM PUBLIC;

REVOKE EXECUTE ON PROCEDURE @extschema@.dt_process_queue() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION @extschema@.dt_check(boolean) TO pg_monitor;

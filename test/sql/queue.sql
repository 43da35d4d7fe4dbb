-- The queue, as far as nothing is sent: what comes in, what is shown, what is
-- taken back, and what is said when nothing can leave.
CREATE EXTENSION doubletick;
CREATE ROLE regress_doubletick_caller;
CREATE ROLE regress_doubletick_other;
\set SHOW_CONTEXT never

-- what the views have
SELECT attrelid::regclass AS view, attname AS column, format_type(atttypid, atttypmod) AS type
FROM pg_attribute
WHERE attrelid IN ('dt_queue'::regclass, 'dt_history'::regclass, 'dt_status'::regclass)
ORDER BY attrelid::regclass::text, attnum;
SELECT attrelid::regclass AS view, attname AS "without a comment"
FROM pg_attribute
WHERE attrelid IN ('dt_queue'::regclass, 'dt_history'::regclass, 'dt_status'::regclass)
	AND col_description(attrelid, attnum) IS NULL;

-- arguments, as those of a call
SELECT dt_enqueue_remove_tags_custom_fields('98765 43210', '{lead}');
SELECT dt_enqueue_remove_tags_custom_fields(NULL, '{lead}');
SELECT dt_enqueue_remove_tags_custom_fields('919876543210');
SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}', waba => '0123456789');
SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead, NULL}');
SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{{lead}, {vip}}');
SELECT dt_enqueue_remove_tags_custom_fields('919876543210', array_fill('lead'::text, '{1001}'));
SELECT count(*) FROM dt_queue;

-- not for PUBLIC
SET ROLE regress_doubletick_caller;
SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}');
SELECT dt_cancel(1);
SELECT dt_retry(1);
CALL dt_process_queue();
-- nor is any other way in
INSERT INTO dt_waiting DEFAULT VALUES;
SELECT phone FROM dt_settled;
\set VERBOSITY terse
UPDATE dt_queue SET phone = '919876543211';
DELETE FROM dt_history;
\set VERBOSITY default
-- but to look
SELECT count(*) FROM dt_queue;
SELECT count(*) FROM dt_history;
SELECT count(*) FROM dt_status;
RESET ROLE;

-- what was enqueued is shown to who has the role, as it was given
GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields, dt_cancel, dt_retry
	TO regress_doubletick_caller, regress_doubletick_other;
SET ROLE regress_doubletick_caller;
-- for a server that there is
SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}');
RESET ROLE;
CREATE FOREIGN DATA WRAPPER regress_other;
CREATE SERVER regress_other FOREIGN DATA WRAPPER regress_other;
CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick;
SET ROLE regress_doubletick_caller;
SET doubletick.server = 'regress_other';
SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}');
RESET doubletick.server;
SELECT dt_enqueue_remove_tags_custom_fields('+919876543210', '{lead, "team lead", lead}', waba => '919812345678');
SELECT dt_enqueue_remove_tags_custom_fields('919876543211', fields => '{plan}');
-- it may be gone later
RESET ROLE;
DROP SERVER doubletick;
DROP FOREIGN DATA WRAPPER regress_other CASCADE;
SET ROLE regress_doubletick_caller;
SELECT id, server, role, phone, tags, fields, waba, attempts, last_error, http_status,
	enqueued_by, enqueued_at = due_at AS due_at_once
FROM dt_queue ORDER BY id;
SELECT server, waiting, due, in_flight, done, errored, failed, oldest_age >= '0' AS oldest_age, rate,
	last_error, held, worker_pid, worker_since, worker_state, sent_per_minute, failed_per_minute, worker_error
FROM dt_status;
RESET ROLE;
SET ROLE regress_doubletick_other;
SELECT count(*) FROM dt_queue;
SELECT count(*) FROM dt_status;

-- a cancel: not of others' removals, not twice, and of what waits alone
SELECT dt_cancel(1);
SET ROLE regress_doubletick_caller;
BEGIN;
SELECT dt_cancel(1);
ROLLBACK;
SELECT dt_cancel(1);
SELECT dt_cancel(1), dt_cancel(3), dt_cancel(-1), dt_cancel(NULL);
SELECT id, state, attempts, http_status, answer, error FROM dt_history;

-- a retry: of what has failed alone
SELECT dt_retry(1), dt_retry(2), dt_retry(3), dt_retry(-1), dt_retry(NULL);
RESET ROLE;

-- read-only
SET default_transaction_read_only = on;
SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}');
SELECT dt_cancel(2);
SELECT dt_retry(1);
CALL dt_process_queue();
RESET default_transaction_read_only;

-- a CALL goes by itself, and says what keeps it from sending; once
BEGIN;
CALL dt_process_queue();
ROLLBACK;
DO $$ BEGIN CALL dt_process_queue(); END $$;
CREATE FUNCTION process() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL dt_process_queue(); END $$;
SELECT process();
DROP FUNCTION process();
CALL dt_process_queue();
SELECT server, waiting, due, held FROM dt_status;
CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick OPTIONS (base_url 'http://127.0.0.1:1', database 'elsewhere');
CALL dt_process_queue();
GRANT USAGE ON FOREIGN SERVER doubletick TO regress_doubletick_caller;
CALL dt_process_queue();
CREATE USER MAPPING FOR regress_doubletick_caller SERVER doubletick;
CALL dt_process_queue();
ALTER SERVER doubletick OPTIONS (DROP database);
CALL dt_process_queue();
ALTER USER MAPPING FOR regress_doubletick_caller SERVER doubletick OPTIONS (ADD api_key 'key_test_1');
SET doubletick.enabled = off;
CALL dt_process_queue();
SELECT server, waiting, due, held FROM dt_status;
RESET doubletick.enabled;
SELECT dt_cancel(2);
CALL dt_process_queue();
SELECT count(*) FROM dt_status WHERE held IS NOT NULL;

-- an error that quotes a phone or an answer does so in the history alone
INSERT INTO dt_settled
SELECT -1, now(), now(), 'regress_doubletick_caller'::regrole, 'regress_doubletick_caller'::regrole,
	0, NULL, 'failed', 'doubletick', '98765', NULL, '{lead}', '{}', NULL, error
FROM (VALUES ('phone is not a number in international format: "98765"')) AS e(error);
SELECT error FROM dt_history WHERE state = 'failed';
SELECT last_error FROM dt_status;
UPDATE dt_settled SET error = E'request was refused with HTTP status 422: no customer\n919876543210';
SELECT last_error FROM dt_status;

-- settings
SHOW doubletick.history_retention;
SHOW doubletick.worker_idle_timeout;
SET doubletick.history_retention = '12h';
SET doubletick.worker_idle_timeout = '1s';
\set VERBOSITY sqlstate
SET doubletick.history_retention = -2;
ALTER SYSTEM SET doubletick.worker_idle_timeout = '5ms';
\set VERBOSITY default
SET ROLE regress_doubletick_caller;
SET doubletick.history_retention = -1;
RESET ROLE;
-- at the end of a CALL the history loses what is older
SET doubletick.history_retention = 0;
CALL dt_process_queue();
SELECT count(*) FROM dt_history;
RESET doubletick.history_retention;

\set VERBOSITY terse
DROP EXTENSION doubletick CASCADE;
DROP ROLE regress_doubletick_caller, regress_doubletick_other;

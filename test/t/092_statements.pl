
# Statements with many calls in flight do what they do with one after the other: the
# same rows, errors and requests. For each shape EXPLAIN says whether it is covered.

use strict;
use warnings;

use File::Basename qw(dirname);
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Statements;

my $calls = open_statements();
my $sandbox = $calls->sandbox;

# [name, call scans in the plan, statement, set-up, what to look at afterwards]
my @covered = (
	[ 'a scan', 1, 'SELECT id, TRY(phone, tag) FROM c' ],
	[ 'a call that raises', 1, 'SELECT id, RAISE(phone, tag) FROM c WHERE id NOT IN (9, 17)' ],
	[ 'a call that fails', 1, 'SELECT id, RAISE(phone, tag) FROM c' ],
	[ 'two calls of a row', 1, 'SELECT id, TRY(phone, tag), TRY(phone, id) FROM c' ],
	[ 'equal calls of a row', 1, 'SELECT id, TRY(phone, tag), TRY(phone, tag) FROM c' ],
	[ 'an expression of the answer', 1, q{SELECT TRY(phone, tag) -> 'tags' -> 'errored', id || tag FROM c} ],
	[ 'nextval beside a call', 1, q{SELECT nextval('s'), TRY(phone, tag), currval('s') FROM c} ],
	[ 'a volatile function beside a call', 1, q{SELECT says(tag), TRY(phone, tag) ->> 'message' FROM c} ],
	[ 'a volatile function around a call', 1, q{SELECT says((TRY(phone, tag) -> 'tags')::text) FROM c} ],
	[ 'clock_timestamp beside a call', 1, 'SELECT TRY(phone, tag), clock_timestamp() > now() FROM c' ],
	[ 'a CASE beside a call', 1, q{SELECT TRY(phone, tag), CASE WHEN grp = 1 THEN TRY(phone, 'x' || tag) END FROM c} ],
	[ 'a row and an array of calls', 1, 'SELECT ROW(id, TRY(phone, tag)), ARRAY[TRY(phone, id)] FROM c' ],
	[ 'NOT and IS NULL of a call', 1, q{SELECT NOT (TRY(phone, tag) ? 'tags'), TRY(phone, id) IS NULL FROM c} ],
	[ 'subscripts of calls', 1, q{SELECT (TRY(phone, tag))['tags'], (TRY(phone, id))['tags']['removed'][0], (ARRAY[TRY(phone, grp)])[1:grp] FROM c} ],
	[ 'a volatile subscript beside a call', 1, q{SELECT TRY(phone, tag), (ARRAY[id, grp])[1 + nextval('s') % 2] FROM c} ],
	[ 'tests of what calls say', 1, q{SELECT TRY(phone, tag) ->> 'error' IN ('a', tag, NULL), (TRY(phone, id) ? 'tags') IS NOT TRUE, greatest(TRY(phone, grp), answer) FROM c} ],
	[ 'a whole row and system columns', 1, 'SELECT c, ctid, tableoid::regclass, TRY(phone, tag) FROM c' ],
	[ 'arguments with names', 1, q{SELECT dt_try_remove_tags_custom_fields(tags => ARRAY['x' || tag], phone => phone) FROM c} ],
	[ 'ORDER BY another column', 1, 'SELECT TRY(phone, tag) FROM c ORDER BY grp, id' ],
	[ 'ORDER BY the answer', 1, 'SELECT TRY(phone, tag) AS x FROM c ORDER BY x, id' ],
	[ 'LIMIT', 1, 'SELECT id, TRY(phone, tag) FROM c LIMIT 5' ],
	[ 'LIMIT and OFFSET', 1, 'SELECT id, TRY(phone, tag) FROM c LIMIT 5 OFFSET 3' ],
	[ 'OFFSET alone', 1, 'SELECT id, TRY(phone, tag) FROM c OFFSET 20' ],
	[ 'LIMIT 0', 1, 'SELECT id, TRY(phone, tag) FROM c LIMIT 0' ],
	[ 'LIMIT NULL', 1, 'SELECT id, TRY(phone, tag) FROM c LIMIT NULL' ],
	[ 'ORDER BY and LIMIT', 1, 'SELECT id, TRY(phone, tag) FROM c ORDER BY grp, id LIMIT 5' ],
	[ 'ORDER BY, LIMIT and OFFSET', 1, 'SELECT id, TRY(phone, tag) FROM c ORDER BY grp, id LIMIT 5 OFFSET 3' ],
	[ 'ORDER BY the answer and LIMIT, over a sort', 1,
		'SELECT id, TRY(phone, tag) AS x FROM (SELECT * FROM c ORDER BY grp, id OFFSET 0) AS s ORDER BY x, id LIMIT 5' ],
	[ 'a LIMIT over a filter over a bounded sort', 1,
		q{SELECT * FROM (SELECT id, TRY(phone, tag) AS x FROM c ORDER BY grp, id LIMIT 20) AS s WHERE x ? 'tags' LIMIT 15} ],
	[ 'a LIMIT over a filter over a sort', 1,
		'SELECT * FROM (SELECT id, TRY(phone, tag) AS x FROM c ORDER BY grp, id OFFSET 0) AS s WHERE id % 3 = 0 LIMIT 5' ],
	[ 'a LIMIT over a filter', 1,
		q{SELECT * FROM (SELECT id, TRY(phone, tag) AS x FROM c OFFSET 0) AS s WHERE id % 3 = 0 AND x ? 'tags' LIMIT 4} ],
	[ 'a subquery', 1, 'SELECT x, id FROM (SELECT id, TRY(phone, tag) AS x FROM c OFFSET 0) AS s WHERE id > 4' ],
	[ 'an index scan', 1, 'SELECT id, TRY(phone, tag) FROM c WHERE id BETWEEN 3 AND 20', 'SET LOCAL enable_seqscan = off' ],
	[ 'an index-only scan', 1, q{SELECT TRY(id::text || '00000', id) FROM c WHERE id > 2}, 'SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off' ],
	[ 'a bitmap scan', 1, 'SELECT id, TRY(phone, tag) FROM c WHERE id > 3', 'SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off' ],
	[ 'a scan of TIDs', 1, q{SELECT id, TRY(phone, tag) FROM c WHERE ctid IN ('(0,1)', '(0,3)')} ],
	[ 'a scan of a range of TIDs', 1, q{SELECT id, TRY(phone, tag) FROM c WHERE ctid > '(0,3)'} ],
	[ 'a sample', 1, 'SELECT id, TRY(phone, tag) FROM c TABLESAMPLE SYSTEM (100)' ],
	[ 'a function', 1, q{SELECT TRY((919876543000 + n)::text, n) FROM generate_series(1, 12) AS n} ],
	[ 'VALUES', 1, q{SELECT TRY(v, v) FROM (VALUES ('919876543001'), ('bad'), ('919876543002'), (NULL)) AS t(v)} ],
	[ 'XMLTABLE or JSON', 1, q{SELECT TRY(ph, ph) FROM jsonb_array_elements_text('["919876543001", "919876543002"]') AS t(ph)} ],
	[ 'a set in the list', 1, q{SELECT TRY(ph, ph) FROM (SELECT unnest('{919876543001,919876543002,919876543003}'::text[]) AS ph) AS t} ],
	[ 'a CTE', 1, 'WITH x AS MATERIALIZED (SELECT * FROM c) SELECT id, TRY(phone, tag) FROM x' ],
	[ 'a nested loop', 1, 'SELECT a.id, TRY(a.phone, b.tag) FROM c AS a JOIN c AS b ON a.id > b.id AND b.id < 3', 'SET LOCAL enable_hashjoin = off' ],
	[ 'a hash join', 1, 'SELECT a.id, TRY(a.phone, b.tag) FROM c AS a JOIN c AS b USING (id)', 'SET LOCAL enable_mergejoin = off; SET LOCAL enable_nestloop = off' ],
	[ 'a merge join', 1, 'SELECT a.id, TRY(a.phone, b.tag) FROM c AS a JOIN c AS b USING (id)', 'SET LOCAL enable_hashjoin = off; SET LOCAL enable_nestloop = off' ],
	[ 'an outer join', 1, 'SELECT a.id, TRY(b.phone, a.tag) FROM c AS a LEFT JOIN c AS b ON a.id = b.id + 1' ],
	[ 'GROUP BY', 1, q{SELECT grp, TRY(min(phone), string_agg(tag, '+' ORDER BY id)) FROM c GROUP BY grp ORDER BY grp} ],
	[ 'GROUP BY without aggregates', 1, 'SELECT TRY(phone, tag) FROM c GROUP BY phone, tag', 'SET LOCAL enable_hashagg = off' ],
	[ 'an aggregate beside a call', 1, 'SELECT TRY(phone, tag), max(id) FROM c GROUP BY phone, tag HAVING max(id) > 3 ORDER BY 2' ],
	[ 'a window function', 1, 'SELECT TRY(phone, tag), row_number() OVER (ORDER BY id) FROM c' ],
	[ 'UNION ALL', 2, 'SELECT id, TRY(phone, tag) FROM c WHERE id < 9 UNION ALL SELECT id, TRY(phone, id) FROM c WHERE id > 9' ],
	[ 'a UNION ALL of which one arm calls', 1, 'SELECT id, NULL::jsonb FROM c UNION ALL SELECT id, TRY(phone, tag) FROM c' ],
	[ 'partitions', 3, 'SELECT id, TRY(phone, tag) FROM p' ],
	[ 'a stable subquery beside a call, in a join', 1, 'SELECT TRY(c.phone, c.tag), m FROM c, (SELECT max(id) AS m FROM c) AS t' ],
	[ 'CREATE TABLE AS', 1, 'CREATE TABLE made AS SELECT id, TRY(phone, tag) AS x FROM c', '', 'SELECT * FROM made ORDER BY id' ],
	[ 'a materialized view', 1, 'CREATE MATERIALIZED VIEW made AS SELECT id, TRY(phone, tag) AS x FROM c', '', 'SELECT * FROM made ORDER BY id' ],
	[ 'INSERT ... SELECT', 1, 'INSERT INTO d SELECT id, phone, tag, grp, TRY(phone, tag) FROM c', '', 'SELECT * FROM d ORDER BY id' ],
	[ 'a volatile function that sees what the statement has done', 1, 'INSERT INTO d SELECT id, phone, tag, seen(), TRY(phone, tag) FROM c', '', 'SELECT id, grp FROM d ORDER BY id' ],
	[ 'INSERT ... ON CONFLICT', 1, 'INSERT INTO c SELECT id + 12, phone, tag, grp, TRY(phone, tag) FROM c ON CONFLICT (id) DO NOTHING', '', 'SELECT * FROM c ORDER BY id' ],
	[ 'INSERT ... RETURNING', 1, 'INSERT INTO d SELECT * FROM c RETURNING id, TRY(phone, tag)', '', 'SELECT count(*) FROM d' ],
	[ 'UPDATE SET', 1, 'UPDATE c SET answer = TRY(phone, tag)', '', 'SELECT id, answer FROM c ORDER BY id' ],
	[ 'UPDATE SET of part of the answer', 1, q{UPDATE c SET tag = TRY(phone, tag) ->> 'message', grp = grp + 1}, '', 'SELECT * FROM c ORDER BY id' ],
	[ 'UPDATE FROM', 1, 'UPDATE c SET answer = TRY(c.phone, p.tag) FROM p WHERE p.id = c.id AND p.grp > 1', '', 'SELECT id, answer FROM c ORDER BY id' ],
	[ 'UPDATE of partitions', 3, 'UPDATE p SET answer = TRY(phone, tag)', '', 'SELECT id, answer FROM p ORDER BY id' ],
	[ 'UPDATE that moves rows', 3, 'UPDATE p SET answer = TRY(phone, tag), grp = (grp + 1) % 4', '', 'SELECT id, grp, answer FROM p ORDER BY id' ],
	[ 'UPDATE RETURNING', 1, q{UPDATE c SET grp = grp + 1 RETURNING id, grp, TRY(phone, tag)} ],
	[ 'UPDATE with calls in both', 2, q{UPDATE c SET answer = TRY(phone, tag) RETURNING id, answer, TRY(phone, 'r' || tag)} ],
	[ 'UPDATE RETURNING of partitions', 1, 'UPDATE p SET grp = (grp + 1) % 4 RETURNING id, p.grp, TRY(phone, tag), tableoid::regclass' ],
	[ 'UPDATE RETURNING that fails', 1, 'UPDATE c SET grp = grp + 1 RETURNING id, RAISE(phone, tag)', '', 'SELECT sum(grp) FROM c' ],
	[ 'DELETE RETURNING', 1, 'DELETE FROM c WHERE grp < 2 RETURNING id, TRY(phone, tag)', '', 'SELECT count(*) FROM c' ],
	[ 'DELETE USING RETURNING', 1, 'DELETE FROM c USING p WHERE p.id = c.id AND p.grp = 1 RETURNING c.id, TRY(c.phone, p.tag)' ],
	[ 'a CTE that changes', 1, 'WITH u AS (UPDATE c SET grp = 7 RETURNING *) SELECT id, grp, TRY(phone, tag) FROM u' ],
	[ 'a trigger that skips and changes rows', 1, 'UPDATE c SET grp = 5 RETURNING id, tag, TRY(phone, tag)',
		q{CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF new.id % 5 = 0 THEN RETURN NULL; END IF; new.tag := new.tag || ''!''; RETURN new; END';
		  CREATE TRIGGER t BEFORE UPDATE ON c FOR EACH ROW EXECUTE FUNCTION t()} ],
	[ 'a trigger that calls, too', 1, 'UPDATE c SET answer = TRY(phone, tag)',
		q{CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log SELECT id, TRY(phone, ''n'' || id) ->> ''error'' FROM c WHERE id BETWEEN new.id AND new.id + 2; RETURN new; END';
		  CREATE TRIGGER t BEFORE UPDATE ON c FOR EACH ROW EXECUTE FUNCTION t()}, 'SELECT * FROM log ORDER BY id' ],
	[ 'an INSTEAD OF trigger', 1, 'UPDATE v SET answer = TRY(phone, tag)',
		q{CREATE VIEW v AS SELECT * FROM c;
		  CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log VALUES (new.id, new.answer::text); RETURN new; END';
		  CREATE TRIGGER t INSTEAD OF UPDATE ON v FOR EACH ROW EXECUTE FUNCTION t()}, 'SELECT * FROM log ORDER BY id' ],
	[ 'a view', 1, 'SELECT * FROM v WHERE id < 7', 'CREATE VIEW v AS SELECT id, TRY(phone, tag) AS x FROM c' ],
	[ 'a security barrier', 1, q{SELECT * FROM v WHERE x ? 'tags'}, 'CREATE VIEW v WITH (security_barrier) AS SELECT id, TRY(phone, tag) AS x FROM c' ],
	[ 'a rule', 1, 'DELETE FROM c WHERE id < 5', q{CREATE RULE r AS ON DELETE TO c DO INSTEAD INSERT INTO log SELECT old.id, TRY(old.phone, old.tag) ->> 'error'}, 'SELECT * FROM log' ],
	[ 'a generic plan', 1, 'EXECUTE q(20)', 'SET LOCAL plan_cache_mode = force_generic_plan; PREPARE q(int) AS SELECT id, TRY(phone, $1 || tag) FROM c WHERE id < $1' ],
	[ 'a prepared LIMIT', 1, 'EXECUTE q(4)', 'SET LOCAL plan_cache_mode = force_custom_plan; PREPARE q(int) AS SELECT id, TRY(phone, tag) FROM c LIMIT $1' ],
	[ 'partitions that are pruned when it runs', 1, 'EXECUTE q(2)', 'SET LOCAL plan_cache_mode = force_generic_plan; PREPARE q(int) AS SELECT id, TRY(phone, tag) FROM p WHERE grp > $1' ],
	[ 'a STRICT function', 1, q{SELECT id, dt_try_remove_tags_custom_fields(phone, ARRAY['x' || tag], '{}', NULLIF('919812345678', CASE WHEN grp = 1 THEN '919812345678' END), 'plain') FROM c},
		'ALTER FUNCTION dt_try_remove_tags_custom_fields STRICT' ],
	[ 'a foreign table', 1, 'SELECT id, TRY(phone, tag) FROM f', 'FOREIGN' ],
	[ 'an UPDATE of a foreign table', 1, 'UPDATE f SET answer = TRY(phone, tag)', 'FOREIGN', 'SELECT id, answer FROM f ORDER BY id' ],
	[ 'a DELETE that the other server does', 1, 'DELETE FROM f WHERE id > 15 RETURNING id, TRY(phone, tag)', 'FOREIGN' ],
	[ 'just-in-time compilation', 1, 'SELECT id, TRY(phone, tag) FROM c', 'SET LOCAL jit = on; SET LOCAL jit_above_cost = 0' ],
	[ 'inheritance', 1, 'SELECT id, TRY(phone, tag), tableoid::regclass FROM c', 'INHERITANCE' ],
	[ 'UPDATE of a table that others inherit', 1, 'UPDATE c SET answer = TRY(phone, tag)', 'INHERITANCE', 'SELECT id, answer FROM c ORDER BY id' ],
	[ 'UPDATE RETURNING of a table that others inherit', 1, 'UPDATE c SET grp = 3 RETURNING id, TRY(phone, tag)', 'INHERITANCE' ],
	[ 'a transition table', 1, 'UPDATE c SET answer = TRY(phone, tag)',
		q{CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log SELECT id, answer ->> ''error'' FROM n; INSERT INTO log SELECT id, TRY(phone, ''n'' || tag) ->> ''error'' FROM n; RETURN NULL; END';
		  CREATE TRIGGER t AFTER UPDATE ON c REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION t()}, 'SELECT * FROM log ORDER BY id, what' ]);

# PostgreSQL 17 has MERGE ... RETURNING; 18 has the old and the new row in RETURNING.
my $version = int($calls->sql('SHOW server_version_num') / 10000);
my $merge = 'MERGE INTO c USING p ON c.id = p.id WHEN MATCHED AND p.grp = 1 THEN UPDATE SET tag = c.tag || c.grp'
  . ' WHEN MATCHED AND p.grp = 2 THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (p.id, p.phone, p.tag, 7)';
push @covered, (
	[ 'MERGE RETURNING', 1, "$merge RETURNING merge_action(), c.id, p.grp, TRY(c.phone, c.tag)", 'DELETE FROM c WHERE id > 20', 'SELECT id, tag, grp FROM c ORDER BY id' ],
	[ 'MERGE RETURNING that fails', 1, "$merge RETURNING c.id, RAISE(c.phone, c.tag)", '', 'SELECT count(*) FROM c' ],
	[ 'what MERGE did as an argument', 1, "$merge RETURNING c.id, TRY(c.phone, merge_action())" ],
	[ 'MERGE RETURNING of partitions', 1, 'MERGE INTO p USING c ON p.id = c.id WHEN MATCHED THEN UPDATE SET grp = (p.grp + 1) % 4 RETURNING merge_action(), p.id, p.grp, TRY(p.phone, p.tag)',
		'', 'SELECT id, grp FROM p ORDER BY id' ],
	[ 'a CTE that merges', 1, "WITH m AS ($merge RETURNING merge_action() AS what, c.*) SELECT what, id, TRY(phone, tag) FROM m" ])
  if $version >= 17;
push @covered, (
	[ 'RETURNING the old and the new row', 1, 'UPDATE c SET tag = tag || 1, grp = 2 RETURNING old.tag, new, TRY(old.phone, new.tag), old.grp + new.grp' ],
	[ 'RETURNING rows that are not there', 1, 'DELETE FROM c WHERE grp = 1 RETURNING new, new.id, TRY(old.phone, coalesce(new.tag, old.tag)) ' ],
	[ 'RETURNING an old row that there may be', 1, "INSERT INTO c SELECT id + 12, phone, tag, 9 FROM c ON CONFLICT (id) DO UPDATE SET grp = 8 RETURNING old.grp, new.grp, TRY(new.phone, new.tag)" ],
	[ 'MERGE RETURNING the old row', 1, "$merge RETURNING merge_action(), old.grp, new.grp, TRY(coalesce(new.phone, old.phone), coalesce(new.tag, old.tag))" ],
	[ 'UPDATE RETURNING old of partitions', 1, 'UPDATE p SET grp = (grp + 1) % 4 RETURNING old.grp, new.grp, TRY(phone, tag)' ])
  if $version >= 18;

# What is volatile is computed above a call scan, each column that it uses being one of its own.
my $many_columns = join ', ', ('concat(clock_timestamp() > now()' . ', id' x 99 . ')') x 17;

my @alone = (
	[ 'one row', 'SELECT TRY(919876543001::text, 1)' ],
	[ 'WHERE', q{SELECT id FROM c WHERE TRY(phone, tag) ? 'tags'} ],
	[ 'HAVING', q{SELECT grp FROM c GROUP BY grp HAVING TRY(min(phone), grp) ? 'tags' ORDER BY grp} ],
	[ 'JOIN ON', q{SELECT a.id FROM c AS a JOIN c AS b ON a.id = b.id AND TRY(a.phone, b.tag) ? 'tags'} ],
	[ 'CASE alone', 'SELECT id, CASE WHEN grp = 1 THEN TRY(phone, tag) END FROM c' ],
	[ 'COALESCE alone', 'SELECT id, coalesce(answer, TRY(phone, tag)) FROM c' ],
	[ 'AND and OR', q{SELECT id, grp = 1 AND TRY(phone, tag) ? 'tags' FROM c} ],
	[ 'a call in a subscript', q{SELECT answer[TRY(phone, tag) ->> 'none'] FROM c} ],
	[ 'a call that is put into an element', q{UPDATE c SET answer['x'] = TRY(phone, tag)}, '', 'SELECT id, answer FROM c ORDER BY id' ],
	[ 'a call of a call', q{SELECT dt_try_remove_tags_custom_fields(phone, ARRAY['x' || (TRY(phone, tag) ->> 'none')]) FROM c} ],
	[ 'a volatile argument', q{SELECT TRY(phone, nextval('s')) FROM c} ],
	[ 'a subquery in the list', 'SELECT TRY(c.phone, c.tag), (SELECT p.id FROM p WHERE p.id = c.id) FROM c' ],
	[ 'a subquery as an argument', 'SELECT dt_try_remove_tags_custom_fields((SELECT p.phone FROM p WHERE p.id = c.id), ARRAY[tag]) FROM c' ],
	[ 'under an aggregate', 'SELECT count(TRY(phone, tag)) FROM c' ],
	[ 'DISTINCT', 'SELECT DISTINCT TRY(phone, tag) FROM c', 'SET LOCAL enable_sort = off' ],
	[ 'the first rows of a window', 'SELECT * FROM (SELECT TRY(phone, tag), grp::bigint, row_number() OVER (ORDER BY id) AS n FROM c) AS s WHERE n <= 5' ],
	[ 'the first rows of one of two windows', 'SELECT * FROM (SELECT TRY(phone, tag), sum(id) OVER (ORDER BY grp, id), row_number() OVER (ORDER BY id) AS n FROM c) AS s WHERE n <= 5' ],
	[ 'a setting that each row makes', q{SELECT id, TRY(phone, tag), set_config('doubletick.server', CASE WHEN id < 5 THEN 'plain' ELSE 'none' END, true) FROM c} ],
	[ 'a setting that the answer makes', q{SELECT id, set_config('doubletick.server', CASE WHEN TRY(phone, tag) ? 'tags' THEN 'plain' ELSE 'none' END, true) FROM c} ],
	[ 'FOR UPDATE', 'SELECT id, TRY(phone, tag) FROM c FOR UPDATE' ],
	[ 'WITH TIES', 'SELECT id, TRY(phone, tag) FROM c ORDER BY grp FETCH FIRST 3 ROWS WITH TIES' ],
	[ 'a LIMIT that is computed', q{SELECT id, TRY(phone, tag) FROM c LIMIT (SELECT 4)} ],
	[ 'a generic LIMIT', 'EXECUTE q(4)', 'SET LOCAL plan_cache_mode = force_generic_plan; PREPARE q(int) AS SELECT id, TRY(phone, tag) FROM c LIMIT $1' ],
	[ 'a LIMIT over partitions', 'SELECT id, TRY(phone, tag) FROM p LIMIT 5' ],
	[ 'WITH that is materialized', 'WITH x AS MATERIALIZED (SELECT id, TRY(phone, tag) AS y FROM c) SELECT * FROM x' ],
	[ 'ON CONFLICT SET', q{INSERT INTO c VALUES (1, '919876543001', 'x', 1) ON CONFLICT (id) DO UPDATE SET answer = TRY(c.phone, c.tag)}, '', 'SELECT answer FROM c WHERE id = 1' ],
	[ 'an action of MERGE', 'MERGE INTO c USING p ON c.id = p.id WHEN MATCHED THEN UPDATE SET answer = TRY(c.phone, p.tag)', '', 'SELECT id, answer FROM c ORDER BY id' ],
	[ 'VALUES with calls', q{VALUES (TRY('919876543001', 'a')), (TRY('919876543002', 'b'))} ],
	[ 'a function of its own', 'SELECT id, g(phone, tag) FROM c', q{CREATE FUNCTION g(text, text) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN TRY($1, $2); END'} ],
	[ 'SECURITY DEFINER', 'SELECT id, TRY(phone, tag) FROM c', 'ALTER FUNCTION dt_try_remove_tags_custom_fields SECURITY DEFINER' ],
	[ 'a function with settings', 'SELECT id, TRY(phone, tag) FROM c', 'ALTER FUNCTION dt_try_remove_tags_custom_fields SET work_mem = 1000' ],
	[ 'foreign tables that are read at once', 'SELECT id, TRY(phone, tag) FROM f WHERE id < 12 UNION ALL SELECT id, TRY(phone, tag) FROM f WHERE id > 12 ORDER BY 1', 'ASYNC' ],
	[ 'more columns beside a call than a tuple has', "SELECT TRY(phone, tag), $many_columns FROM c" ],
	[ 'track_functions', 'SELECT id, TRY(phone, tag) FROM c', q{SET LOCAL track_functions = 'all'} ],
	[ 'a statement without calls', 'SELECT id FROM c' ]);
push @alone, [ 'what MERGE did beside a call in one expression', "$merge RETURNING c.id, merge_action() || (TRY(c.phone, c.tag) ->> 'error')" ] if $version >= 17;

# EXPLAIN has no place for the others: their rows are compared alone.
my @others = (
	[ 'a cursor', 'DECLARE x CURSOR FOR SELECT id, TRY(phone, tag) FROM c', '', 'FETCH 3 FROM x; FETCH 1 FROM x; FETCH 7 FROM x; CLOSE x' ],
	[ 'a cursor that goes back', 'DECLARE x SCROLL CURSOR FOR SELECT id, TRY(phone, tag) FROM c', '',
		'FETCH 4 FROM x; FETCH BACKWARD 2 FROM x; FETCH 6 FROM x; MOVE BACKWARD ALL FROM x; FETCH 2 FROM x; FETCH LAST FROM x' ],
	[ 'a cursor that goes back as far as an OFFSET lets it', 'DECLARE x SCROLL CURSOR FOR SELECT id, TRY(phone, tag) FROM c LIMIT 12 OFFSET 4', '',
		'FETCH 3 FROM x; FETCH BACKWARD ALL FROM x; FETCH 3 FROM x' ],
	[ 'a cursor that outlives', 'DECLARE x CURSOR WITH HOLD FOR SELECT id, TRY(phone, tag) FROM c', '', 'FETCH 3 FROM x; FETCH ALL FROM x' ],
	[ 'WHERE CURRENT OF', 'DECLARE x SCROLL CURSOR FOR SELECT id, TRY(phone, tag) FROM c', '',
		q{FETCH 6 FROM x; UPDATE c SET grp = 7 WHERE CURRENT OF x; FETCH BACKWARD 3 FROM x; DELETE FROM c WHERE CURRENT OF x; FETCH ALL FROM x; DELETE FROM c WHERE CURRENT OF x; SELECT id, grp FROM c ORDER BY id} ],
	[ 'WHERE CURRENT OF a FOR loop', q{DO $$DECLARE x CURSOR FOR SELECT id, TRY(phone, tag) AS y FROM c; BEGIN FOR r IN x LOOP UPDATE c SET answer = r.y WHERE CURRENT OF x; END LOOP; END$$}, '', 'SELECT id, answer FROM c ORDER BY id' ],
	[ 'WHERE CURRENT OF partitions', 'DECLARE x CURSOR FOR SELECT id, TRY(phone, tag) FROM p', '',
		'FETCH 14 FROM x; UPDATE p SET tag = 7 WHERE CURRENT OF x; FETCH 5 FROM x; DELETE FROM p WHERE CURRENT OF x; SELECT id, tag FROM p ORDER BY id' ],
	[ 'WHERE CURRENT OF an index-only scan', q{DECLARE x CURSOR FOR SELECT TRY(id::text || '00000', id) FROM c WHERE id > 2}, 'SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off',
		'FETCH 4 FROM x; UPDATE c SET grp = 7 WHERE CURRENT OF x; SELECT id, grp FROM c ORDER BY id' ],
	[ 'WHERE CURRENT OF a subquery with a LIMIT', 'DECLARE x CURSOR FOR SELECT id, TRY(phone, tag) FROM (SELECT * FROM c LIMIT 9) AS s', '',
		'FETCH 4 FROM x; UPDATE c SET grp = 7 WHERE CURRENT OF x; SELECT id, grp FROM c ORDER BY id' ],
	[ 'WHERE CURRENT OF a join', 'DECLARE x CURSOR FOR SELECT c.id, TRY(c.phone, p.tag) FROM c JOIN p USING (id)', '', 'FETCH 4 FROM x; UPDATE c SET grp = 7 WHERE CURRENT OF x' ],
	[ 'a cursor over a LIMIT', 'DECLARE x CURSOR FOR SELECT id, TRY(phone, tag) FROM c LIMIT 10 OFFSET 2', '', 'FETCH 4 FROM x; FETCH ALL FROM x' ],
	[ 'a cursor of which all rows are read', 'DECLARE x CURSOR FOR SELECT id, TRY(phone, tag) FROM c', 'SET LOCAL cursor_tuple_fraction = 1', 'FETCH 5 FROM x; FETCH ALL FROM x' ],
	[ 'COPY TO', 'COPY (SELECT id, TRY(phone, tag) FROM c) TO STDOUT' ],
	[ 'a FOR loop', q{DO $$DECLARE r record; BEGIN FOR r IN SELECT id, TRY(phone, tag) AS x FROM c LOOP INSERT INTO log VALUES (r.id, r.x ->> 'error'); EXIT WHEN r.id = 14; END LOOP; END$$}, '', 'SELECT * FROM log' ],
	[ 'PERFORM', q{DO $$BEGIN PERFORM TRY(phone, tag) FROM c; END$$} ],
	[ 'RETURNING INTO', q{DO $$DECLARE x jsonb; BEGIN UPDATE c SET grp = 1 WHERE id = 3 RETURNING TRY(phone, tag) INTO x; RAISE NOTICE '%', x; END$$} ],
	[ 'SELECT INTO of many', q{DO $$DECLARE x jsonb; BEGIN SELECT TRY(phone, tag) INTO x FROM c ORDER BY id; RAISE NOTICE '%', x; END$$} ],
	[ 'RETURN QUERY', 'SELECT * FROM g()', q{CREATE FUNCTION g() RETURNS SETOF jsonb LANGUAGE plpgsql AS 'BEGIN RETURN QUERY SELECT TRY(phone, tag) FROM c; END'} ],
	[ 'a SQL function', 'SELECT g(n) FROM generate_series(1, 20) AS n', q{CREATE FUNCTION g(n int) RETURNS SETOF jsonb LANGUAGE sql VOLATILE AS 'SELECT TRY(phone, n || tag) FROM c WHERE id < 4'} ],
	[ 'an EXCEPTION block', q{DO $$BEGIN PERFORM RAISE(phone, tag) FROM c; EXCEPTION WHEN others THEN RAISE NOTICE 'caught: %', SQLERRM; PERFORM TRY(phone, 'again' || tag) FROM c; END$$}, '', '', { fails => 1 } ],
	[ 'no EXECUTE', 'SELECT id, TRY(phone, tag) FROM c', 'CREATE ROLE nobody; GRANT SELECT ON c TO nobody; SET LOCAL ROLE nobody' ],
	[ 'no mapping', 'SELECT id, TRY(phone, tag) FROM c', 'CREATE ROLE nobody; GRANT SELECT ON c TO nobody; GRANT EXECUTE ON FUNCTION dt_try_remove_tags_custom_fields TO nobody; SET LOCAL ROLE nobody' ],
	[ 'row security', 'SELECT id, TRY(phone, tag) FROM c',
		'CREATE ROLE nobody; GRANT SELECT ON c TO nobody; GRANT EXECUTE ON FUNCTION dt_try_remove_tags_custom_fields TO nobody; GRANT USAGE ON FOREIGN SERVER plain TO nobody; '
		  . "CREATE USER MAPPING FOR nobody SERVER plain OPTIONS (api_key '" . $sandbox->key . "'); ALTER TABLE c ENABLE ROW LEVEL SECURITY; CREATE POLICY y ON c USING (grp = 2); SET LOCAL ROLE nobody" ],
	[ 'a division by zero ahead', 'SELECT id, TRY(phone, tag) FROM c WHERE 1 / (20 - id) IS NOT NULL', '', '', { is_early => 1 } ]);

my $port = $calls->node->port;
my $host = $calls->node->host;
my $foreign = 'CREATE EXTENSION postgres_fdw; CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw '
  . "OPTIONS (host '$host', port '$port', dbname 'postgres'); CREATE USER MAPPING FOR CURRENT_USER SERVER self; "
  . "CREATE FOREIGN TABLE f (id int, phone text, tag text, grp int, answer jsonb) SERVER self OPTIONS (table_name 'c')";
my $inheritance = "CREATE TABLE more (what text) INHERITS (c); INSERT INTO more SELECT id + 100, phone, 'm' || tag, grp, answer, 'more' FROM c WHERE id < 10";
my @cases = (
	(map { { name => $_->[0], scans => $_->[1], statement => $_->[2], setup => $_->[3], after => $_->[4] } } @covered),
	(map { { name => $_->[0], scans => 0, statement => $_->[1], setup => $_->[2], after => $_->[3] } } @alone),
	(map { { name => $_->[0], explain => '', statement => $_->[1], setup => $_->[2], after => $_->[3], %{ $_->[4] // {} } } } @others));
foreach my $case (@cases)
{
	$case->{setup} = $foreign if ($case->{setup} // '') eq 'FOREIGN';
	$case->{setup} = $inheritance if ($case->{setup} // '') eq 'INHERITANCE';
	$case->{setup} = "$foreign; ALTER SERVER self OPTIONS (ADD async_capable 'true')" if ($case->{setup} // '') eq 'ASYNC';
}

my $one = run_cases($calls, 1, @cases);
foreach my $window (8, $Statements::without_caches ? () : 3)
{
	my $many = run_cases($calls, $window, @cases);

	same_ok($cases[$_], $one->[$_], $many->[$_], $window) foreach 0 .. $#cases;
}

done_testing;


# The trigger: names that the rows of a table of customers have lost at commit wait in
# the queue, and names that they have do not.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Calls;
use Queue;
use PostgreSQL::Test::Utils;
use Test::More;

open_queue();
my $session = $node->background_psql('postgres');

$calls->sql('CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE ROLE owner; CREATE ROLE app;'
	  . 'GRANT EXECUTE ON FUNCTION dt_remove_tags_custom_fields_trigger TO owner;'
	  . 'GRANT CREATE ON SCHEMA public TO owner');

my $by_row = 'AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW';
my $columns = "phone text, tags text[], fields jsonb, waba text";
my ($a, $b, $c) = map { '91987654321' . $_ } 0 .. 2;

# Row and statement triggers: changes of one row.

foreach my $level (qw(row statement))
{
	customers($level);
	is(queued(), '', "$level: nothing waits at first");
	run("INSERT INTO customers VALUES (1, '$a', '{lead,vip}', '{\"plan\": 1, \"city\": null}', NULL)");
	is(queued(), '', "$level: INSERT enqueues nothing");
	run('UPDATE customers SET id = id + 1', 'UPDATE customers SET tags = tags');
	is(queued(), '', "$level: nor does an UPDATE that changes no names");
	run("UPDATE customers SET phone = '+' || phone");
	run("UPDATE customers SET phone = ltrim(phone, '+')");
	is(queued(), '', "$level: nor does one of a leading +");
	run("UPDATE customers SET tags = '{new,vip}'");
	is(queued(), "$a {lead} {} -", "$level: UPDATE enqueues the names that the new row does not have");
	run("UPDATE customers SET tags = '{lead}', fields = '{\"city\": 1}'");
	is(queued(), "$a {new,vip} {plan} -", "$level: a name that comes back is taken back");
	run("UPDATE customers SET tags = NULL, fields = NULL");
	is(queued(), "$a {lead,new,vip} {city,plan} -", "$level: NULL holds no names");
	run("UPDATE customers SET tags = '{}', fields = '{}'", "UPDATE customers SET fields = '[]'",
		"UPDATE customers SET fields = '3'");
	is(queued(), "$a {lead,new,vip} {city,plan} -", "$level: nor does an empty array, an empty object, or a number");

	customers($level);
	run("INSERT INTO customers VALUES (1, '$a', '{lead,lead,vip,NULL,\"\"}', '[\"plan\", 3, null, \"\", [\"x\"]]', '$c')");
	run("DELETE FROM customers");
	is(queued(), "$a {lead,vip} {plan} $c", "$level: DELETE enqueues all names, but no nulls and empty names");
	run("INSERT INTO customers VALUES (1, '$a', '{lead}', NULL, '$c')");
	is(queued(), "$a {vip} {plan} $c", "$level: INSERT takes names back");
	run("INSERT INTO customers VALUES (2, '$a', '{vip}', '[\"plan\"]', NULL)");
	is(queued(), "$a {vip} {plan} $c", "$level: but not for another waba");

	customers($level);
	run("INSERT INTO customers VALUES (1, '$a', '{lead}', NULL, NULL)");
	run("UPDATE customers SET phone = '$b', tags = '{lead,vip}'");
	is(queued(), "$a {lead} {} -", "$level: a new phone: the old one loses the names");
	run("UPDATE customers SET waba = '$c'");
	is(queued(), "$a {lead} {} -; $b {lead,vip} {} -", "$level: a new waba: the old one loses the names");
	run("UPDATE customers SET waba = '+$c'");
	is(queued(), "$a {lead} {} -; $b {lead,vip} {} -", "$level: a leading + makes no other waba");
	run("UPDATE customers SET phone = NULL");
	run("UPDATE customers SET phone = '', tags = '{x}'");
	is(queued(), "$a {lead} {} -; $b {lead,vip} {} -; $b {lead,vip} {} $c", "$level: without a phone a row is of no customer");
	is(failed(), '', "$level: and that is no failure");
}

# Names of a column that an UPDATE does not change are neither lost nor gained, but the row has them.

foreach my $level (qw(row statement))
{
	my @two = ("(1, '$a', '{x,y}', '[\"f\",\"g\"]', NULL)", "(2, '$a', '{x}', '[\"f\"]', NULL)");

	customers($level, @two);
	run('DELETE FROM customers WHERE id = 2');
	is(queued(), "$a {x} {f} -", "$level: an unchanged column: its names wait");
	run("UPDATE customers SET tags = '{x}'");
	is(queued(), "$a {y} {} -", "$level: an unchanged column: a changed tag takes back fields, too");
	customers($level, @two);
	run('DELETE FROM customers WHERE id = 2', "UPDATE customers SET fields = '[]'");
	is(queued(), "$a {} {f,g} -", "$level: an unchanged column: a changed field takes back tags, too");
	run('TRUNCATE dt_waiting', "UPDATE customers SET tags = '{}'");
	is(queued(), "$a {x,y} {} -", "$level: an unchanged column without names");

	customers($level, "(1, '$a', '{}', '[\"f\"]', NULL)", "(2, '$a', '{x}', '[\"f\"]', NULL)");
	run("UPDATE customers SET tags = '{}', fields = CASE id WHEN 1 THEN '[]' ELSE fields END");
	is(queued(), "$a {x} {} -", "$level: an unchanged column of another row of the phone");

	customers($level, "(1, NULL, '{x}', '[\"f\"]', NULL)");
	run("UPDATE customers SET tags = '{y}'");
	is(queued(), '', "$level: an unchanged column of a row without a phone");

	# A gain goes with its row to another place and key.
	customers($level, $two[0]);
	run('BEGIN', 'UPDATE customers SET fields = NULL', q{UPDATE customers SET fields = '["f"]'},
		"UPDATE customers SET id = 3, tags = '{x}'", 'UPDATE customers SET fields = NULL', 'COMMIT');
	is(queued(), "$a {y} {f,g} -", "$level: an unchanged column whose name came back, and is lost again");
}

# Rows of one phone that lose the same name in one transaction enqueue it once.

foreach my $level (qw(row statement))
{
	my @three = map { "($_, '$a', '{x,y}', '[\"f\"]', NULL)" } 1 .. 3;
	my $lose = "UPDATE customers SET tags = '{y}', enqueued = true WHERE id = ";
	my $removals = "SELECT string_agg(tags::text || fields::text, ' ' ORDER BY id) FROM dt_waiting WHERE NOT keep";
	my $reset = sub {
		customers($level, @three);
		run('ALTER TABLE customers ADD enqueued bool');
	};

	$reset->();
	run("UPDATE customers SET tags = '{y}'");
	is(one($removals), '{x}{}', "$level: one phone: three rows in one statement");
	$reset->();
	run('BEGIN', $lose . 1, $lose . 2, "UPDATE customers SET tags = '{y}', fields = NULL WHERE id = 3", 'COMMIT');
	is(one($removals), '{x}{} {}{f}', "$level: one phone: in three statements, of which the last loses more");
	$reset->();
	run($lose . 1, $lose . 2);
	is(one($removals), '{x}{} {x}{}', "$level: one phone: each transaction for itself");
	$reset->();
	run('BEGIN', "SELECT dt_enqueue_remove_tags_custom_fields('$a', '{x}')", $lose . 1, $lose . 2, 'COMMIT');
	is(one($removals), '{x}{} {x}{}', "$level: one phone: what is enqueued by hand does not count");
	$reset->();
	run('GRANT ALL ON customers TO app', 'BEGIN', $lose . 1, 'SET ROLE app', $lose . 2, $lose . 3, 'RESET ROLE', 'COMMIT');
	is(one('SELECT string_agg(enqueued_by, \' \' ORDER BY id) FROM dt_queue'), one('SELECT current_user') . ' app',
		"$level: one phone: each role that enqueues for itself");
	$reset->();
	run("UPDATE customers SET waba = '$c' WHERE id = 2", 'TRUNCATE dt_waiting');
	run('BEGIN', map({ $lose . $_ } 1 .. 3), 'COMMIT');
	is(queued(), "$a {x} {} -; $a {x} {} $c", "$level: one phone: each customer for itself");
	is(one($removals), '{x}{} {x}{}', "$level: one phone: once");

	# What came back in between is lost again.
	$reset->();
	run('BEGIN', $lose . 1, "INSERT INTO customers VALUES (4, '$a', '{x,y}', NULL, NULL)", $lose . 4, $lose . 2, 'COMMIT');
	is(queued(), "$a {x} {} -", "$level: one phone: a name that came back in the same transaction");
	$reset->();
	run('BEGIN', $lose . 1);
	is($calls->sql("SELECT dt_keep('$a', '{x}')"), 't', "$level: one phone: another session has the name");
	run($lose . 2, 'COMMIT');
	is(queued(), "$a {x} {} -", "$level: one phone: it is lost again after that");
	$reset->();
	run('BEGIN', 'SAVEPOINT s', $lose . 1, 'ROLLBACK TO s', $lose . 2, 'COMMIT');
	is(queued(), "$a {x} {} -", "$level: one phone: the first loss is rolled back");
	$reset->();
	run('BEGIN', $lose . 1, 'SELECT dt_cancel(id) FROM dt_queue', $lose . 2, 'COMMIT');
	is(queued(), "$a {x} {} -", "$level: one phone: the first removal is cancelled");

	# The number of a transaction may be that of another server's, too.
	$reset->();
	run('BEGIN');
	my $xact = one('SELECT pg_current_xact_id()');
	$calls->sql("${lose}1; UPDATE dt_waiting SET xact = '$xact'");
	run(map({ $lose . $_ } 2 .. 3), 'COMMIT');
	is(one($removals), '{x}{} {x}{}', "$level: one phone: another transaction of the same number");
	$reset->();
	run('BEGIN', $lose . 1, 'UPDATE dt_waiting SET replicated = true', $lose . 2, 'COMMIT');
	is(one($removals), '{x}{} {x}{}', "$level: one phone: a removal that another server sends");
}

# After some rows of a command it is known for which phones removals wait.

foreach my $level (qw(row statement))
{
	my @many = map { "($_, '1415000' || lpad('$_', 4, '0'), '{x,y}', NULL, NULL)" } 1 .. 3000;
	my $lose = "UPDATE customers SET tags = '{y}' WHERE id";

	customers($level, @many, "(5001, '$a', '{x,y}', NULL, NULL)", "(5002, '$a', '{y}', NULL, NULL)",
		"(5003, '$b', '{y}', NULL, NULL)");
	run("UPDATE customers SET tags = CASE id WHEN 5002 THEN '{x,y}' ELSE '{y}' END::text[] WHERE id BETWEEN 2901 AND 3000 OR id > 5000");
	is(one("SELECT count(*) FROM dt_queue WHERE phone = '$a'"), '0', "$level: many rows: what one row has lost the next one gains");
	is(one('SELECT count(*) FROM dt_queue'), '100', "$level: many rows: the others wait");

	run('TRUNCATE dt_waiting', 'BEGIN', "$lose BETWEEN 101 AND 200");
	$calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$b', '{x}')");
	run("UPDATE customers SET tags = '{x,y}' WHERE id = 5003", 'COMMIT');
	is(one("SELECT count(*) FROM dt_queue WHERE phone = '$b'"), '0',
		"$level: many rows: what another session enqueues after a statement is taken back in the next one");

	# A command that fails knows nothing for the next one.
	run('DELETE FROM customers WHERE id IN (5001, 5002)', 'TRUNCATE dt_waiting', 'ALTER TABLE customers ADD CONSTRAINT one UNIQUE (phone) DEFERRABLE');
	my $fails = $node->background_psql('postgres', on_error_stop => 0);
	$fails->query($_) foreach 'BEGIN', 'SAVEPOINT s',
		"UPDATE customers SET tags = '{z}', phone = CASE id WHEN 300 THEN '14150000299' ELSE phone END WHERE id BETWEEN 201 AND 300",
		'ROLLBACK TO s';
	$calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$b', '{x}')");
	$fails->query($_) foreach "UPDATE customers SET tags = '{x,y,z}' WHERE id = 5003", 'COMMIT';
	like($fails->{stderr}, qr/duplicate key/, "$level: many rows: a command fails");
	is(queued(), '', "$level: many rows: what is enqueued after it is taken back by the next one");
	$fails->quit;
	run('ALTER TABLE customers DROP CONSTRAINT one');

	# Very many rows of one phone, each of which loses another name.
	run('TRUNCATE dt_waiting', "UPDATE customers SET phone = '$c', tags = ARRAY['y', 'y' || id] WHERE id <= 100", 'TRUNCATE dt_waiting',
		"UPDATE customers SET tags = CASE id WHEN 99 THEN '{y,y50}' WHEN 100 THEN '{y,y90}' ELSE '{y}' END::text[] WHERE id <= 100");
	is(one("SELECT string_agg(name, ' ' ORDER BY substr(name, 2)::int) FROM dt_queue, unnest(tags) AS name"),
		join(' ', map { "y$_" } grep { $_ != 50 && $_ != 90 } 1 .. 100), "$level: very many rows: of one phone");

	run("$lose BETWEEN 201 AND 2900", "UPDATE customers SET tags = '{x,y}' WHERE id BETWEEN 201 AND 2900");
	is(one("SELECT count(*) FROM dt_queue WHERE phone BETWEEN '14150000201' AND '14150002900'"), '0',
		"$level: very many rows: all that came back is taken back");
}

# INSERT ... ON CONFLICT fires the triggers of UPDATE, and then, as the same command,
# those of INSERT.

foreach my $level (qw(row statement))
{
	my @many = map { "($_, '1415000' || lpad('$_', 4, '0'), '{x,y}', NULL, NULL)" } 1 .. 100;
	my $upsert = 'ON CONFLICT (id) DO UPDATE SET tags = excluded.tags';

	customers($level, @many, "(1000, '$a', '{x}', NULL, NULL)");
	run("INSERT INTO customers SELECT id, phone, CASE id WHEN 1000 THEN '{}' ELSE '{y}' END::text[] FROM customers"
		  . " UNION ALL SELECT 2000, '$a', '{x}' ORDER BY id DESC $upsert");
	is(one("SELECT count(*), count(*) FILTER (WHERE phone = '$a') FROM dt_queue"), '100|0',
		"$level: many rows: what one row has lost is inserted with another one");

	customers($level, "(1, '$a', '{x}', NULL, NULL)", "(2, '$a', '{y,z}', NULL, '$b')", "(3, '$a', '{y,z}', NULL, '$c')");
	run("SELECT dt_enqueue_remove_tags_custom_fields('$a', ARRAY['z' || n], NULL, '$b') FROM generate_series(1, 20) AS n",
		"INSERT INTO customers VALUES (1, '$a', '{}', NULL, NULL), (2, '$a', '{y}', NULL, '$b'), (3, '$a', '{y}', NULL, '$c'),"
		  . " (4, '$a', '{x}', NULL, NULL) $upsert");
	is(one("SELECT count(*) FROM dt_queue WHERE 'x' = ANY (tags)"), '0', "$level: very many rows of one phone: likewise");
}

# The drainer moves a removal while a trigger reads those of its phone: the trigger has read
# the index, and waits for an index of TOAST to read another removal before it.
{
	customers('row');
	my $id = one("SELECT dt_enqueue_remove_tags_custom_fields('$a', '{x}')");
	run("SELECT dt_enqueue_remove_tags_custom_fields('$a', ARRAY(SELECT md5(n::text || w) || md5(w || n::text) FROM generate_series(1, 200) AS n), NULL, '9198765432' || w)"
		  . ' FROM generate_series(10, 30) AS w',
		"SELECT dt_enqueue_remove_tags_custom_fields('1415000' || n, '{y}') FROM generate_series(1001, 1200) AS n");
	is(one("SELECT min(customer) = (SELECT customer FROM dt_waiting WHERE id = $id) FROM dt_waiting WHERE phone = '$a'"), 'f',
		'moved: another removal comes first');
	my $toast = one("SELECT indexrelid::regclass FROM pg_index JOIN pg_class AS c ON c.oid = 'dt_waiting'::regclass WHERE indrelid = c.reltoastrelid");
	my $locker = $node->background_psql('postgres');
	my $gains = $node->background_psql('postgres');
	$locker->query_safe($_) foreach 'BEGIN', "REINDEX INDEX $toast";
	$gains->query_until(qr/on its way/, "\\echo on its way\nINSERT INTO customers VALUES (1, '$a', '{x}', NULL, NULL);\n");
	eventually(sub { one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO customers%'") eq '1' },
		'moved: the trigger reads removals of its phone');
	is(one("UPDATE dt_waiting SET attempts = 1 WHERE id = $id RETURNING ctid::text LIKE '(0,%'"), 'f', 'moved: the removal is moved to another page');
	$locker->query_safe('COMMIT');
	$gains->quit;
	is(one("SELECT count(*) FROM dt_queue WHERE 'x' = ANY (tags)"), '0', 'moved: the name is taken back');
	$locker->quit;
}

# What counts is the sum of all rows and statements of one transaction.

foreach my $level (qw(row statement))
{
	my @two = ("(1, '$a', '{x,one}', NULL, NULL), (2, '$b', '{x,two}', NULL, NULL)");
	my $swap = "UPDATE customers SET phone = CASE id WHEN 1 THEN '$b' ELSE '$a' END";

	customers($level, @two);
	run($swap);
	is(queued(), "$a {one} {} -; $b {two} {} -", "$level: two rows swap their phones in one statement");
	customers($level, "(2, '$b', '{x,two}', NULL, NULL), (1, '$a', '{x,one}', NULL, NULL)");
	run($swap);
	is(queued(), "$a {one} {} -; $b {two} {} -", "$level: the same, with the rows in the other order");

	customers($level, @two);
	run('BEGIN', "UPDATE customers SET phone = '$b' WHERE id = 1",
		"UPDATE customers SET phone = '$a' WHERE id = 2", 'COMMIT');
	is(queued(), "$a {one} {} -; $b {two} {} -", "$level: the same in two statements");

	customers($level, @two);
	run('BEGIN', 'DELETE FROM customers WHERE id = 1',
		"INSERT INTO customers VALUES (3, '$a', '{x,three}', NULL, NULL)", 'COMMIT');
	is(queued(), "$a {one} {} -", "$level: DELETE, then INSERT");
	customers($level, @two);
	run('BEGIN', "INSERT INTO customers VALUES (3, '$a', '{x,three}', NULL, NULL)",
		'DELETE FROM customers WHERE id = 1', 'COMMIT');
	is(queued(), "$a {one} {} -", "$level: INSERT, then DELETE");

	customers($level, @two);
	run('BEGIN', "UPDATE customers SET phone = '$c' WHERE id = 1",
		"UPDATE customers SET phone = '$a' WHERE id = 1", 'COMMIT');
	is(queued(), '', "$level: a phone changes and changes back: nobody has lost anything");
	run('BEGIN', "INSERT INTO customers VALUES (3, '$c', '{x}', NULL, NULL)",
		'DELETE FROM customers WHERE id = 3', 'COMMIT');
	is(queued(), '', "$level: INSERT, then DELETE, of one row");
	run('BEGIN', 'DELETE FROM customers WHERE id = 1',
		"INSERT INTO customers VALUES (1, '$a', '{x}', NULL, NULL)",
		'DELETE FROM customers WHERE id = 1', 'COMMIT');
	is(queued(), "$a {one,x} {} -", "$level: DELETE, then INSERT, then DELETE");

	# A waiting removal that a gain has taken back is needed again when the gain is lost.
	customers($level, @two);
	run('DELETE FROM customers WHERE id = 1');
	run('BEGIN', "INSERT INTO customers VALUES (1, '$a', '{x,y}', NULL, NULL)",
		'DELETE FROM customers WHERE id = 1', 'COMMIT');
	is(queued(), "$a {one,x} {} -", "$level: an earlier removal waits again");

	# Savepoints.
	customers($level, @two);
	run('BEGIN', 'SAVEPOINT s', "UPDATE customers SET phone = '$b' WHERE id = 1",
		'ROLLBACK TO s', "UPDATE customers SET tags = '{}' WHERE id = 2", 'COMMIT');
	is(queued(), "$b {two,x} {} -", "$level: what a savepoint gained counts no more when it is rolled back");
	customers($level, @two);
	run('BEGIN', 'SAVEPOINT s', 'SAVEPOINT t', "UPDATE customers SET phone = '$b' WHERE id = 1",
		'RELEASE t', 'SAVEPOINT u', "UPDATE customers SET tags = '{}' WHERE id = 2", 'ROLLBACK TO u',
		'RELEASE s', "UPDATE customers SET tags = '{two}' WHERE id = 2", 'COMMIT');
	is(queued(), "$a {one,x} {} -", "$level: what a released savepoint gained counts, although a later one that lost it was rolled back");
	customers($level, @two);
	run('BEGIN', 'SAVEPOINT s', "UPDATE customers SET tags = '{}'", 'ROLLBACK TO s', 'COMMIT');
	is(queued(), '', "$level: what is rolled back enqueues nothing");
	run('BEGIN', "UPDATE customers SET phone = '$b' WHERE id = 1", 'ROLLBACK',
		"UPDATE customers SET tags = '{}' WHERE id = 2");
	is(queued(), "$b {two,x} {} -", "$level: what a transaction gained and rolled back is nothing to the next one");

	customers($level, @two);
	run("INSERT INTO customers VALUES (1, '$a', '{one}', NULL, NULL) ON CONFLICT (id) DO UPDATE SET tags = EXCLUDED.tags");
	is(queued(), "$a {x} {} -", "$level: ON CONFLICT DO UPDATE");
	customers($level, @two);
	run("MERGE INTO customers USING (VALUES (1, '$a', '{one}'::text[]), (2, '$b', '{}'), (3, '$b', '{x,three}')) AS s (id, phone, tags)"
		  . ' ON customers.id = s.id WHEN MATCHED AND s.id = 2 THEN DELETE WHEN MATCHED THEN UPDATE SET tags = s.tags'
		  . ' WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.phone, s.tags)');
	is(queued(), "$a {x} {} -; $b {two} {} -", "$level: MERGE");

	# Two rows of one customer.
	customers($level, "(1, '$a', '{x}', NULL, NULL), (2, '+$a', '{x,y}', NULL, NULL)");
	run("UPDATE customers SET tags = '{}' WHERE id = 1");
	is(queued(), "$a {x} {} -", "$level: rows that the statement does not change are not looked at");
	customers($level, "(1, '$a', '{x}', NULL, NULL), (2, '+$a', '{x,y}', NULL, NULL)");
	run("UPDATE customers SET tags = array_remove(tags, CASE id WHEN 1 THEN 'x' ELSE 'y' END)");
	is(queued(), "$a {y} {} -", "$level: rows that it changes are");

	# A gain belongs to the row that has it.
	my $three = "(3, '$a', '{x}', NULL, NULL), (2, '$a', '{x}', NULL, NULL), (1, '$b', '{x}', NULL, NULL)";
	customers($level, $three);
	run('BEGIN', "UPDATE customers SET phone = '$a' WHERE id = 1", 'DELETE FROM customers WHERE id = 2',
		'DELETE FROM customers WHERE id = 3', 'COMMIT');
	is(queued(), "$b {x} {} -", "$level: a name that a row has gained stays, however many other rows lose it");
	customers($level, $three);
	run('BEGIN', q{UPDATE customers SET fields = '{"f": 1}' WHERE id > 1}, "UPDATE customers SET phone = '$a' WHERE id = 1",
		'DELETE FROM customers WHERE id = 2', 'DELETE FROM customers WHERE id = 3', 'COMMIT');
	is(queued(), "$b {x} {} -", "$level: also if they were changed before");
	customers($level, $three);
	run('BEGIN', "UPDATE customers SET phone = '$a' WHERE id = 1", 'DELETE FROM customers WHERE id > 1',
		'DELETE FROM customers', 'COMMIT');
	is(queued(), "$a {x} {} -; $b {x} {} -", "$level: until that row loses it, too");

	customers($level, "(1, '$b', '{x}', NULL, NULL), (2, '$a', '{x}', NULL, NULL)");
	run("UPDATE customers SET tags = '{}' WHERE id = 2", 'BEGIN', "UPDATE customers SET tags = '{x}' WHERE id = 2",
		"UPDATE customers SET phone = '$a' WHERE id = 1", "UPDATE customers SET tags = '{}' WHERE id = 2", 'COMMIT');
	is(queued(), "$b {x} {} -", "$level: a gained name stays while another row loses it, although a removal waited");
	run('BEGIN', "UPDATE customers SET tags = '{x}' WHERE id = 2", "UPDATE customers SET tags = '{}'", 'COMMIT');
	is(queued(), "$a {x} {} -; $b {x} {} -", "$level: the name is removed when the last row loses it");

	# The same for a row that gets another place, or another key.
	customers($level, "(1, '$b', '{x}', NULL, NULL)");
	run('BEGIN', "INSERT INTO customers VALUES (2, '$b', '{x,y}', NULL, NULL)", 'UPDATE customers SET waba = NULL',
		'UPDATE customers SET id = 3 WHERE id = 2', "UPDATE customers SET id = 4, tags = '{x,z}' WHERE id = 3",
		'DELETE FROM customers WHERE id = 4', 'COMMIT');
	is(queued(), '', "$level: a row that is inserted, changed and deleted loses nothing");
	customers($level, $three);
	run('BEGIN', "UPDATE customers SET phone = '$a' WHERE id = 1", 'UPDATE customers SET id = id + 1',
		'DELETE FROM customers WHERE id > 2');
	is(queued(), "$b {x} {} -", "$level: rows that take each other's keys keep what they gained");
	run('SAVEPOINT s', 'UPDATE customers SET id = id + 1', 'ROLLBACK TO s', 'DELETE FROM customers', 'COMMIT');
	is(queued(), "$a {x} {} -; $b {x} {} -", "$level: and lose it when they are deleted");
	customers($level, "(1, NULL, '{x}', NULL, NULL)");
	run('BEGIN', "INSERT INTO customers VALUES (2, '$a', '{y}', NULL, NULL)", 'UPDATE customers SET id = id + 2', 'COMMIT');
	is(queued(), '', "$level: a row without a phone gains nothing");

	# Without a key, rows are told apart by their values.
	no_customers();
	run("CREATE TABLE customers (id int, $columns)", "INSERT INTO customers VALUES (1, '$a', '{x}', NULL, NULL)",
		triggers($level, 'customers', "'phone', 'tags', 'fields', 'waba'"), 'BEGIN',
		"INSERT INTO customers VALUES (2, '$b', '{x}', NULL, NULL), (3, '$b', '{x}', NULL, NULL)",
		"UPDATE customers SET id = id + 1, tags = '{y}' WHERE id < 3", "DELETE FROM customers WHERE tags = '{x}'", 'COMMIT');
	is(queued(), "$a {x} {} -", "$level: a table without a key");
	run('BEGIN', "UPDATE customers SET phone = '$a'", 'COMMIT', 'DELETE FROM customers');
	is(queued(), "$a {x,y} {} -; $b {y} {} -", "$level: a table without a key, with two equal rows");
	run('TRUNCATE dt_waiting, customers', "INSERT INTO customers VALUES $three", 'BEGIN',
		"UPDATE customers SET phone = '$a' WHERE id = 1", 'DELETE FROM customers WHERE id = 2',
		'UPDATE customers SET id = id + 1', 'DELETE FROM customers WHERE id = 4', 'COMMIT');
	is(queued(), "$b {x} {} -", "$level: a table without a key, with different rows");
	no_customers();
	run("CREATE TABLE customers (phone text UNIQUE, tags text[])", triggers($level, 'customers', "'phone', 'tags'"),
		'BEGIN', "INSERT INTO customers VALUES ('$a', '{x}'), ('+$a', '{x}'), (NULL, '{x}')",
		"DELETE FROM customers WHERE phone = '$a'", "UPDATE customers SET phone = '$a' WHERE phone IS NULL", 'DELETE FROM customers', 'COMMIT');
	is(queued(), '', "$level: a unique column will do as a key");
	no_customers();
	run('CREATE TABLE customers (phone text, tags text[], notes text)', triggers($level, 'customers', "'phone', 'tags'"),
		'ALTER TABLE customers ALTER notes SET STORAGE EXTERNAL', 'BEGIN', "INSERT INTO customers VALUES ('$a', '{x}', repeat('n', 9000))",
		"UPDATE customers SET tags = '{y}'", 'DELETE FROM customers', 'COMMIT');
	is(queued(), '', "$level: without a key, large values of one size count as equal");

	# Rows that have equal keys for a moment, until all are updated.
	foreach my $key ('', 'PRIMARY KEY DEFERRABLE')
	{
		no_customers();
		run("CREATE TABLE customers (id int $key, $columns)",
			"INSERT INTO customers VALUES (1, '$b', '{x}', NULL, NULL), (2, '$a', '{x}', NULL, NULL), (9, '$a', '{x}', NULL, NULL)",
			triggers($level, 'customers', "'phone', 'tags', 'fields', 'waba'"),
			'BEGIN', "UPDATE customers SET phone = '$a' WHERE id = 1", 'UPDATE customers SET id = id WHERE id = 2',
			'UPDATE customers SET id = id + 1', 'DELETE FROM customers WHERE id = 3', 'DELETE FROM customers WHERE id = 10', 'COMMIT');
		is(queued(), "$b {x} {} -", "$level: rows that are equal for a moment, $key");
	}

	# Rows of two tables with the same key are different rows.
	customers($level);
	run("CREATE TABLE leads (id int PRIMARY KEY, $columns)", "INSERT INTO leads VALUES (1, '$a', '{x,y}'), (2, '$a', '{x,y}')",
		triggers($level, 'leads', "'phone', 'tags', 'fields', 'waba'"), 'BEGIN',
		"INSERT INTO customers VALUES (1, '$a', '{x}')", 'DELETE FROM leads WHERE id = 1', 'DELETE FROM leads', 'COMMIT');
	is(queued(), "$a {y} {} -", "$level: rows of two tables");
	run('DROP TABLE leads');
}

# The rows of a table that is rewritten get other places, which may be those of other rows that have gained something.
customers(undef, "(8), (9)");
run("INSERT INTO customers VALUES (1, '$b', '{x}'), (2, '$a', '{x}'), (3, '$a', '{x}')", 'DELETE FROM customers WHERE id > 3', 'VACUUM customers', triggers('row', 'customers', "'phone', 'tags'"),
	'BEGIN', 'INSERT INTO customers VALUES (8)', "UPDATE customers SET phone = '$a' WHERE id = 1", 'DELETE FROM customers WHERE id = 8',
	'ALTER TABLE customers ALTER id TYPE bigint', 'DELETE FROM customers WHERE id = 2', 'DELETE FROM customers WHERE id = 3', 'COMMIT');
is(queued(), "$b {x} {} -", 'rows of a table that is rewritten');

# Rows that COPY has frozen are found, too.
customers('row', "(1, '$a', '{x}', NULL, NULL)");
run('DELETE FROM customers', 'BEGIN', 'TRUNCATE customers',
	"COPY customers (id, phone, tags) FROM PROGRAM 'printf \"1\t$a\t{x}\n\"' (FREEZE)",
	'UPDATE customers SET id = 2', 'DELETE FROM customers', 'COMMIT');
is(queued(), "$a {x} {} -", 'COPY (FREEZE)');

# A trigger without UPDATE does not see how a row moves between INSERT and DELETE.
foreach my $key ('PRIMARY KEY', '')
{
	foreach my $update ('UPDATE customers SET id = id + 5', "UPDATE customers SET waba = waba", '')
	{
		no_customers();
		run("CREATE TABLE customers (id int $key, $columns)", "INSERT INTO customers VALUES (1, '$a', '{x,y}')",
			"CREATE TRIGGER t AFTER INSERT OR DELETE ON customers FOR EACH ROW EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags')",
			'BEGIN', 'DELETE FROM customers', "INSERT INTO customers VALUES (1, '$a', '{x,y}')", $update || 'SELECT 1', 'SAVEPOINT s',
			'DELETE FROM customers', 'ROLLBACK TO s', "INSERT INTO customers VALUES (3, '$a', '{y}')", 'DELETE FROM customers WHERE id <> 3', 'COMMIT');
		is(queued(), "$a {x} {} -", "INSERT OR DELETE: $key, $update");
	}
}

customers('statement', "(1, '$a', '{x}', NULL, NULL), (2, '$a', '{x}', NULL, NULL)");
run("UPDATE customers SET tags = CASE id WHEN 1 THEN '{}' ELSE tags END");
is(queued(), '', 'statement: a row that the statement leaves as it was keeps its names');

# Deferred to the commit, when later versions of the rows exist already.
customers(undef, "(1, '$a', '{x}', NULL, NULL), (2, '$b', '{x}', NULL, NULL)");
run('CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON customers DEFERRABLE INITIALLY DEFERRED'
	  . " FOR EACH ROW EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags')");
run('BEGIN', "UPDATE customers SET phone = '$c' WHERE id = 1", "UPDATE customers SET phone = '$b' WHERE id = 1",
	"UPDATE customers SET phone = '$a', tags = '{x,y}' WHERE id = 2", "UPDATE customers SET tags = '{x}' WHERE id = 2");
is(queued(), '', 'a deferred trigger has stored nothing before the commit');
run('COMMIT');
is(queued(), '', 'nor after it, for two rows that have swapped their phones in two steps');
run('BEGIN', "DELETE FROM customers WHERE id = 2", 'SET CONSTRAINTS ALL IMMEDIATE');
is(queued(), "$a {x} {} -", 'SET CONSTRAINTS makes it fire');
run('ROLLBACK');

# Many names, and names and numbers that cannot be sent.

foreach my $level (qw(row statement))
{
	customers($level);
	run("INSERT INTO customers SELECT 1, '$a', array_agg('tag ' || i), (SELECT jsonb_object_agg('f' || i, i) FROM generate_series(1, 10) i)"
		  . ' FROM generate_series(1, 2500) AS i');
	run("UPDATE customers SET tags = tags[1:10]", 'DELETE FROM customers');
	is(one('SELECT string_agg(cardinality(tags) || \'+\' || cardinality(fields), \' \' ORDER BY id) FROM dt_queue'),
		'1000+0 1000+0 490+0 10+10', "$level: more than 1,000 names are split");
	run("INSERT INTO customers SELECT 1, '$a', ARRAY[repeat('x', 300000), repeat('y', 300000), repeat('z', 600000)]",
		'TRUNCATE dt_waiting', 'DELETE FROM customers');
	is(one('SELECT string_agg(length(tags[1]) || \'+\' || cardinality(tags), \' \' ORDER BY id) FROM dt_queue'),
		'300000+1 300000+1', "$level: so is more than 512 KiB of names");
	like(one('SELECT state || error || length(tags[1]) FROM dt_history'),
		qr/^failednames cannot be sent: .*600000$/, "$level: a single name of more fails");

	my $names = 'ARRAY(SELECT \'tag \' || i FROM generate_series(1, 200000) AS i)';
	customers($level, "(1, '$a', $names)");
	run("UPDATE customers SET tags = '{}'", q{SET statement_timeout = '20s'}, "UPDATE customers SET tags = $names", 'RESET statement_timeout');
	is(one('SELECT sum(cardinality(tags)) FROM dt_waiting WHERE keep'), '200000', "$level: very many names come back");

	customers($level, "(1, '98765 43210', '{x}', '{\"f\": 1}', NULL), (2, '$a', '{x}', NULL, 'waba')");
	run("UPDATE customers SET tags = '{y}'");
	is(failed(),
		'98765 43210 {x} {} - phone is not a number in international format: "98765 43210"; '
		  . "$a {x} {} waba waba is not a number in international format: \"waba\"",
		"$level: an unusable phone or waba fails");
	is(queued(), '', "$level: and nothing else does");
}

# Who is the same customer is decided by what would be sent.

foreach my $level (qw(row statement))
{
	# A number that cannot be used.
	customers($level, "(1, '+$a', '{x,y}', NULL, NULL)");
	my $pretty = '+91 98765 432-10';
	run("UPDATE customers SET phone = '$pretty'");
	is(queued(), '', "$level: a phone that is printed prettily removes nothing");
	is(failed(), "$pretty {x,y} {} - phone is not a number in international format: \"$pretty\"; nothing was removed from \"+$a\"",
		"$level: the history says so");
	run('TRUNCATE dt_settled', "UPDATE customers SET phone = '+$a', tags = '{x}'");
	is(queued(), "$a {y} {} -", "$level: when it is cleaned up, what is lost goes from its customer");
	is(failed(), '', "$level: and nothing fails");
	run('TRUNCATE dt_waiting', "UPDATE customers SET phone = 'unknown', tags = '{}'");
	is(queued(), "$a {x} {} -", "$level: names that are lost with the number are removed");
	run('TRUNCATE dt_waiting', "UPDATE customers SET phone = 'none', tags = '{z}'", 'TRUNCATE dt_settled', "UPDATE customers SET phone = '$b', tags = '{}'");
	is(queued(), '', "$level: an unusable number is cleaned up");
	is(failed(), '', "$level: without a failure");
	customers($level, "(1, '$a', '{x}', NULL, '$c')");
	run("UPDATE customers SET waba = 'main'");
	is(queued(), '', "$level: an unusable WABA number removes nothing");
	like(failed(), qr/^$a \{x\} \{\} main waba is not .*; nothing was removed from "$a"$/, "$level: and the history says so");
	customers($level, "(1, '$a', '{x}', NULL, NULL)");
	run('BEGIN', "UPDATE customers SET phone = 'unknown'", "UPDATE customers SET phone = '$a'", 'DELETE FROM customers', 'COMMIT');
	is(queued(), "$a {x} {} -", "$level: a number that was unusable for a while");

	# The server's own WABA number stands in for NULL.
	run("ALTER SERVER doubletick OPTIONS (ADD waba_number '+$c')");
	customers($level, "(1, '$a', '{x,y}', NULL, NULL)");
	run("UPDATE customers SET waba = '$c'");
	is(queued(), '', "$level: the server's own WABA number is filled in");
	run("UPDATE customers SET tags = '{x}'", "UPDATE customers SET waba = ''");
	is(queued(), "$a {y} {} $c", "$level: and taken out");
	run("UPDATE customers SET tags = '{x,y}'");
	is(queued(), '', "$level: a row without it takes back what waits under it");
	run("UPDATE customers SET tags = '{x}'", "UPDATE customers SET waba = '$c', tags = '{x,y}'");
	is(queued(), '', "$level: and the other way round");
	run("UPDATE customers SET waba = '$b'");
	is(queued(), "$a {x,y} {} $c", "$level: another number is another customer's");
	customers($level, "(1, '$a', '{x}', NULL, NULL), (2, '$b', '{x}', NULL, '$c')");
	run('BEGIN', "UPDATE customers SET phone = '$a' WHERE id = 2", 'DELETE FROM customers WHERE id = 1', 'COMMIT');
	is(queued(), "$b {x} {} $c", "$level: what one row loses under NULL, another has gained under the number");
	customers($level, "(1, '$a', '{x,y}', NULL, NULL), (2, '$a', '{x}', NULL, '$c')");
	run("UPDATE customers SET tags = CASE id WHEN 1 THEN '{}'::text[] ELSE tags END");
	is(queued(), $level eq 'row' ? "$a {x,y} {} -" : "$a {y} {} -", "$level: rows of one customer with and without it");
	run('ALTER SERVER doubletick OPTIONS (DROP waba_number)');
}

# Many customers in one statement, in no order, some with more names than fit into a page.

customers('statement');
run("INSERT INTO customers SELECT i, (919000000000 + i * 7919 % 1999)::text,"
	  . " CASE WHEN i % 100 = 0 THEN ARRAY(SELECT md5(i || ' ' || n) FROM generate_series(1, 400) AS n) ELSE ARRAY['tag ' || i] END"
	  . ' FROM generate_series(1, 1998) AS i');
run('CREATE TEMP TABLE had AS SELECT phone, tags FROM customers', "UPDATE customers SET tags = '{}'");
my $same = 'SELECT count(*) FROM had JOIN dt_waiting AS w ON w.%s AND w.phone = had.phone AND w.tags = had.tags AND NOT w.keep';
is(one('SELECT count(*) FROM dt_waiting'), 1998, 'many customers lose names: one row for each');
run('SET enable_seqscan = off', 'SET enable_hashjoin = off', 'SET enable_mergejoin = off');
SKIP:
{
	skip 'the library is built without TESTING=1', 2 unless is_testing_build($node);
	my $customer = "customer = dt_test_customer('doubletick', %s, had.phone, NULL)";

	is(one(sprintf $same, sprintf $customer, 'w.role'), 1998, 'with their names');
	is(one(sprintf $same, sprintf $customer, "(SELECT relowner FROM pg_class WHERE oid = 'customers'::regclass)"), 1998,
		'found by the index of customers');
}
is(one('SELECT count(*) FROM generate_series((SELECT min(id) FROM dt_waiting), (SELECT max(id) FROM dt_waiting)) AS i'
		  . ' JOIN dt_waiting AS w ON w.id = i'), 1998, 'found by the index of ids, without a gap');
run('RESET enable_seqscan', 'RESET enable_hashjoin', 'RESET enable_mergejoin', "UPDATE customers SET tags = '{other}'",
	'UPDATE customers SET tags = had.tags FROM had WHERE had.phone = customers.phone', 'DROP TABLE had');
is(one("SELECT count(*) || ' ' || count(*) FILTER (WHERE tags = '{other}') FROM dt_queue"), '1998 1998',
	'all of that is taken back while another name is lost');
run('CREATE EXTENSION amcheck');
is(one("SELECT bt_index_parent_check('$_', true)"), '', "$_ has all rows") foreach qw(dt_waiting_pkey dt_waiting_customer);
run('DROP EXTENSION amcheck', "UPDATE customers SET tags = tags || '{other}'");
is(queued(), '', 'that one is taken back, too');

# More than is kept in memory: the customer of the first and the last row, who is the same, is stored in two portions.

customers('statement');
my $large = q{SELECT i, (919000000000 + i % 79)::text, ARRAY['x', repeat('y', 1000000)] FROM generate_series(1, 80) AS i};
run("INSERT INTO customers $large", 'DELETE FROM customers');
is(one('SELECT count(*) || \' \' || count(DISTINCT phone) FROM dt_waiting'), '80 79', 'a large DELETE is stored in portions');
is(one('SELECT count(*) FROM dt_history'), '80', 'so are the names that cannot be sent');
run("INSERT INTO customers $large");
is(queued(), '', 'a large INSERT takes all of it back');
is(one('SELECT count(*) || \' \' || count(DISTINCT phone) FROM dt_waiting WHERE keep'), '80 79', 'its keeps are stored in portions, too');
customers('statement', "(1, '$a', '{x}', NULL, NULL), (2, '$a', '{x,y}', NULL, NULL)");
run("UPDATE customers SET tags = '{}'", "UPDATE customers SET tags = '{x,y}'");
is(one('SELECT count(*) FROM dt_waiting WHERE keep'), '1', 'several rows of one customer make one keep');

# Columns of all types.

my %types = (
	'varchar(20)[]' => "'{lead,vip}'", 'char(8)[]' => "'{lead,vip}'", 'name[]' => "'{lead,vip}'",
	'citext[]' => "'{lead,vip}'", 'words' => "'{lead,vip}'", 'word[]' => "'{lead,vip}'",
	'text[][]' => "'{{lead,vip},{vip,lead}}'", jsonb => "'[\"lead\", \"vip\", 1, {\"a\": 1}]'",
	'documents' => "'[\"lead\", \"vip\"]'");
run('CREATE DOMAIN word AS varchar CHECK (VALUE <> \'no\')', 'CREATE DOMAIN words AS text[]', 'CREATE DOMAIN documents AS jsonb');
foreach my $type (sort keys %types)
{
	customers_of("id int, phone text, tags $type", "'phone', 'tags'", "(1, '$a', $types{$type})");
	run('DELETE FROM customers');
	is(queued(), "$a {lead,vip} {} -", "tags of type $type");
}
foreach my $fields ([ 'hstore' => "'lead=>1, vip=>NULL'" ], [ 'text[]' => "'{lead,vip}'" ],
	[ jsonb => "'{\"lead\": {\"vip\": 1}, \"vip\": [\"x\"]}'" ])
{
	customers_of("id int, phone text, f $fields->[0]", "'phone', '', 'f'", "(1, '$a', $fields->[1])");
	run('DELETE FROM customers');
	is(queued(), "$a {} {lead,vip} -", "custom fields of type $fields->[0]");
}
foreach my $type (qw(varchar citext char(12) bigint numeric tel))
{
	run("DROP TABLE IF EXISTS customers", "DROP DOMAIN IF EXISTS tel", "CREATE DOMAIN tel AS bigint");
	customers_of("id int, phone $type, tags text[], waba $type", "'phone', 'tags', '', 'waba'", "(1, '$a', '{x}', '$b')");
	run('DELETE FROM customers');
	is(queued(), "$a {x} {} $b", "numbers of type $type");
}

# hstore in a schema that the updating role cannot use.
run('CREATE SCHEMA hidden', 'ALTER EXTENSION hstore SET SCHEMA hidden');
customers_of('id int, phone text, f hidden.hstore', "'phone', '', 'f'", "(1, '$a', 'lead=>1')");
run('GRANT SELECT, DELETE ON customers TO app', 'SET ROLE app', 'DELETE FROM customers', 'RESET ROLE');
is(queued(), "$a {} {lead} -", "hstore in a schema that the updating role has no USAGE on");
run('ALTER EXTENSION hstore SET SCHEMA public', 'DROP SCHEMA hidden');

# Values in a TOAST table.
customers_of('id int, phone text, tags text[]', "'phone', 'tags'");
run('ALTER TABLE customers ALTER tags SET STORAGE EXTERNAL',
	"INSERT INTO customers SELECT 1, '$a', array_agg('tag ' || i) FROM generate_series(1, 900) AS i",
	'UPDATE customers SET id = 2');
is(queued(), '', 'a large value that is not changed loses nothing');
run("UPDATE customers SET tags = tags[2:]");
is(queued(), "$a {\"tag 1\"} {} -", 'one that is changed loses what is gone');
foreach my $level (qw(row statement))
{
	customers($level);
	run('ALTER TABLE customers ALTER tags SET STORAGE EXTERNAL',
		"INSERT INTO customers SELECT 1, '$a', array_agg('tag ' || i), '[\"f\"]' FROM generate_series(1, 900) AS i",
		"INSERT INTO customers VALUES (2, '$a', '{tag 7}')", 'DELETE FROM customers WHERE id = 2');
	is(queued(), "$a {\"tag 7\"} {} -", "$level: a name of a large value waits");
	run('UPDATE customers SET fields = NULL');
	is(queued(), "$a {} {f} -", "$level: a large value that is not changed takes it back");
}

# Columns that are added, dropped, generated, with quoted names, or changed by a BEFORE trigger.
customers_of('id int, gone int, "Phone ""No""" text, "Tags" text[], up text[] GENERATED ALWAYS AS (ARRAY[upper("Tags"[1])]) STORED',
	q{'Phone "No"', 'Tags', 'up'}, qq{(1, 0, '$a', '{x,y}')});
run('ALTER TABLE customers DROP gone', "ALTER TABLE customers ADD later int DEFAULT 3",
	q{UPDATE customers SET "Tags" = '{y}'});
is(queued(), "$a {x} {X} -", 'dropped, added, generated and quoted columns');
run(q{CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW."Tags" := NULL; RETURN NEW; END'},
	'CREATE TRIGGER b BEFORE UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION clear()', 'UPDATE customers SET id = 5');
is(queued(), "$a {x,y} {X,Y} -", 'a BEFORE trigger changes what the statement does not name');

# Two tables of one owner count together, also when another owner of the first one was
# rolled back.
customers('row');
run('CREATE TABLE more (LIKE customers)',
	"CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON more FOR EACH ROW EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags')",
	"INSERT INTO customers (id, phone, tags) VALUES (1, '$b', '{x}')", "INSERT INTO more (id, phone, tags) VALUES (1, '$a', '{x}')",
	'BEGIN', 'SAVEPOINT s', 'ALTER TABLE customers OWNER TO owner', "UPDATE customers SET phone = '$c'", 'ROLLBACK TO s',
	"UPDATE customers SET phone = '$a'", 'DELETE FROM more', 'COMMIT');
is(queued(), "$b {x} {} -", 'a name that a row of another table has gained is not lost, after a rolled back change of its owner');
run('DROP TABLE more');

# Partitions with another order of columns, and of other owners.
no_customers();
run('CREATE TABLE customers (region text, phone text, tags text[], fields jsonb) PARTITION BY LIST (region)',
	q{CREATE TABLE east PARTITION OF customers FOR VALUES IN ('east') PARTITION BY LIST (phone)},
	'CREATE TABLE other (tags text[], gone int, fields jsonb, phone text, region text)',
	'ALTER TABLE other DROP gone', 'ALTER TABLE east ATTACH PARTITION other DEFAULT',
	'CREATE TABLE west (fields jsonb, region text, tags text[], phone text)',
	q{ALTER TABLE customers ATTACH PARTITION west FOR VALUES IN ('west')},
	'ALTER TABLE west OWNER TO owner', 'ALTER TABLE other OWNER TO app',
	sprintf("CREATE TRIGGER t $by_row EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields')", 'customers'),
	qq{INSERT INTO customers VALUES ('east', '$a', '{x,y}', '{"f": 1}'), ('west', '$b', '{x}', NULL)},
	q{UPDATE customers SET region = CASE region WHEN 'east' THEN 'west' ELSE 'east' END});
is(queued(), '', 'rows that move between partitions of several owners lose nothing');
run(q{UPDATE customers SET region = 'east', tags = '{y}' WHERE region = 'west'});
is(queued(), "$a {x} {} -", 'except for names that they lose meanwhile');
run("DELETE FROM other WHERE phone = '$b'");
is(queued(), "$a {x} {} -; $b {x} {} -", 'the trigger fires for a change of the partition itself, too');
is(one('SELECT string_agg(DISTINCT role::text, \' \') FROM dt_queue'), one('SELECT current_user'),
	"the requests belong to the owner of the table that the trigger was created on");
run('DROP TRIGGER t ON customers', 'TRUNCATE dt_waiting',
	"INSERT INTO customers VALUES ('west', '$c', '{x,y}')",
	statement_triggers('customers', "'phone', 'tags', 'fields'"),
	q{UPDATE customers SET region = 'east' WHERE region = 'west'});
is(queued(), '', 'the same with a statement trigger');
run(q{UPDATE customers SET region = 'west', tags = '{y}'});
is(queued(), "$c {x} {} -", 'except for names that they lose meanwhile');

# A number that is printed prettily while its row moves: the row is deleted and inserted.
foreach my $case ([ 'phone', '+91 98765 432-10', 'NULL' ], [ 'WABA number', $a, "'+91 98765.432 12'" ], [ 'both', '(91) 98765-43210', "'91-9876543212'" ])
{
	my ($name, $phone, $waba) = @$case;
	my $was = $waba eq 'NULL' ? 'NULL' : "'$c'";

	no_customers();
	run('CREATE TABLE customers (region text, phone text, tags text[], waba text) PARTITION BY LIST (region)',
		q{CREATE TABLE east PARTITION OF customers FOR VALUES IN ('east')}, q{CREATE TABLE west PARTITION OF customers FOR VALUES IN ('west')},
		sprintf("CREATE TRIGGER t $by_row EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', '', 'waba')", 'customers'),
		"INSERT INTO customers VALUES ('east', '+$a', '{x,y}', $was)",
		"UPDATE customers SET region = 'west', phone = '$phone', waba = $waba");
	is(queued(), '', "$name, moved and printed prettily: nothing is removed");
	run('TRUNCATE customers', "INSERT INTO customers VALUES ('east', '+$a', '{x,y}', $was)",
		"UPDATE customers SET region = 'west', phone = '$phone', waba = $waba, tags = '{x}'");
	is(queued(), "$a {y} {} " . ($waba eq 'NULL' ? '-' : $c), "$name, moved and printed prettily: but for what is lost meanwhile");
	run('TRUNCATE dt_waiting', 'TRUNCATE customers', "INSERT INTO customers VALUES ('east', '+$a', '{x}', $was)",
		"UPDATE customers SET region = 'west', phone = '$b'");
	is(queued(), "$a {x} {} " . ($waba eq 'NULL' ? '-' : $c), "$name, moved and changed to another number: all is removed");
}

# A statement trigger, where a partition drops a row that moves into it: the old and the new rows are not pairs then.
no_customers();
run('CREATE TABLE customers (region text, phone text, tags text[], PRIMARY KEY (region, phone)) PARTITION BY LIST (region)',
	q{CREATE TABLE east PARTITION OF customers FOR VALUES IN ('east')}, q{CREATE TABLE west PARTITION OF customers FOR VALUES IN ('west')},
	qq{CREATE FUNCTION drop_some() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.phone = ''$b'' THEN RETURN NULL; END IF; RETURN NEW; END'},
	'CREATE TRIGGER b BEFORE INSERT ON west FOR EACH ROW EXECUTE FUNCTION drop_some()',
	"INSERT INTO customers SELECT 'east', p, '{x}' FROM unnest('{$b,$a,$c}'::text[]) AS p",
	statement_triggers('customers', "'phone', 'tags'"),
	'BEGIN', "UPDATE customers SET tags = '{x,y}'", "UPDATE customers SET region = 'west'", "UPDATE customers SET tags = '{x}'", 'COMMIT');
is(queued(), "$b {x} {} -", 'only the row that the partition drops has lost its names');
run("UPDATE customers SET tags = '{}' WHERE phone = '$c'");
is(queued(), "$b {x} {} -; $c {x} {} -", 'the other rows go on');
run('TRUNCATE dt_waiting', 'TRUNCATE customers', "INSERT INTO customers SELECT 'east', p, '{x}' FROM unnest('{$b,$a,$c}'::text[]) AS p",
	'BEGIN', "UPDATE customers SET region = 'west'", 'DELETE FROM customers', 'COMMIT');
is(queued(), "$a {x} {} -; $b {x} {} -; $c {x} {} -", 'rows that move and are deleted lose their names');

# Foreign tables, whose rows cannot be told apart by their places.
$calls->sql('CREATE EXTENSION postgres_fdw; CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw'
	  . " OPTIONS (host '@{[ $node->host ]}', port '@{[ $node->port ]}', dbname 'postgres');"
	  . 'CREATE USER MAPPING FOR PUBLIC SERVER self');
no_customers();
run("CREATE TABLE far (id int, $columns)", "CREATE FOREIGN TABLE customers (id int, $columns) SERVER self OPTIONS (table_name 'far')",
	"INSERT INTO customers VALUES (1, '$a', '{x}', NULL, NULL), (2, '$b', '{x}', NULL, NULL)",
	triggers('row', 'customers', "'phone', 'tags', 'fields', 'waba'"),
	'BEGIN', "UPDATE customers SET phone = '$b' WHERE id = 1", 'UPDATE customers SET id = id + 2',
	"UPDATE customers SET phone = '$a' WHERE id = 4", "UPDATE customers SET tags = '{}' WHERE id = 3", 'COMMIT');
is(queued(), "$b {x} {} -", "a foreign table's rows");
run('DROP FOREIGN TABLE customers', 'DROP TABLE far');

# Inheritance, and temporary tables.
customers_of('id int, phone text, tags text[]', "'phone', 'tags'");
run('CREATE TABLE child (more int) INHERITS (customers)', "INSERT INTO child VALUES (1, '$a', '{x}', 2)", 'DELETE FROM customers');
is(queued(), '', "a child's rows do not fire the parent's row trigger");
run('DROP TRIGGER t ON customers', statement_triggers('customers', "'phone', 'tags'"),
	"INSERT INTO child VALUES (1, '$a', '{x}', 2)", 'DELETE FROM customers');
is(queued(), "$a {x} {} -", 'but its statement trigger sees them');
run('TRUNCATE dt_waiting', 'ALTER TABLE customers ADD PRIMARY KEY (id)', "INSERT INTO customers VALUES (1, '$b', '{x}'), (2, '$a', '{x}')",
	"INSERT INTO child VALUES (1, '$a', '{x,y}')", 'BEGIN', "UPDATE customers SET phone = '$a' WHERE phone = '$b'",
	'DELETE FROM customers WHERE tags = \'{x,y}\'', 'DELETE FROM customers WHERE id = 2', 'COMMIT');
is(queued(), "$a {y} {} -; $b {x} {} -", "rows of both with the same key are different rows");
run('DROP TABLE child', 'TRUNCATE dt_waiting', 'CREATE TEMP TABLE mine (phone text, tags text[])',
	sprintf("CREATE TRIGGER t $by_row EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags')", 'mine'),
	"INSERT INTO mine VALUES ('$a', '{x}')", 'DELETE FROM mine');
is(queued(), "$a {x} {} -", 'a temporary table');

# COPY, and session_replication_role.
customers('row');
run("INSERT INTO customers VALUES (1, '$a', '{x,y}')", 'DELETE FROM customers');
run("COPY customers (id, phone, tags) FROM PROGRAM 'printf \"1\\t$a\\t{x}\\n\"'");
is(queued(), "$a {y} {} -", 'COPY takes names back');
run('SET session_replication_role = replica', 'DELETE FROM customers', 'RESET session_replication_role');
is(queued(), "$a {y} {} -", 'with session_replication_role = replica the trigger does not fire');
run('ALTER TABLE customers ENABLE ALWAYS TRIGGER t', "INSERT INTO customers VALUES (1, '$a', '{z}')",
	'SET session_replication_role = replica', 'DELETE FROM customers', 'RESET session_replication_role');
is(queued(), "$a {y,z} {} -", 'unless the trigger is ENABLE ALWAYS');

# Which role the request belongs to.
customers('row', "(1, '$a', '{x,y}', NULL, NULL)");
run('ALTER TABLE customers OWNER TO owner', 'GRANT SELECT, UPDATE, TRIGGER ON customers TO app', 'SET ROLE app',
	"SET doubletick.server = 'elsewhere'", "UPDATE customers SET tags = '{y}'", 'RESET ROLE', 'RESET doubletick.server');
is(one('SELECT server || \' \' || role || \' \' || enqueued_by FROM dt_queue'), 'doubletick owner app',
	"the request belongs to the table's owner; the role that updates is recorded, and needs no right");
run('SET search_path = pg_catalog, public', 'SET ROLE app', 'SET row_security = off');
is(outcome(sprintf("CREATE TRIGGER mine $by_row EXECUTE FUNCTION public.dt_remove_tags_custom_fields_trigger('phone', 'tags')", 'customers')),
	'42501', 'TRIGGER on the table is not enough for a trigger');
is(outcome("UPDATE customers SET tags = NULL"), '', 'settings make no difference');
run('RESET ROLE', 'RESET search_path', 'RESET row_security');
is(one('SELECT string_agg(server || \' \' || role, \', \') FROM dt_queue'), 'doubletick owner, doubletick owner',
	'nor to whom the request belongs');
run("UPDATE customers SET tags = '{x}'", 'TRUNCATE dt_waiting',
	q{CREATE FUNCTION clear_all() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'UPDATE customers SET tags = NULL'},
	'SET ROLE app', 'SELECT clear_all()', 'RESET ROLE');
is(one('SELECT role || \' \' || enqueued_by FROM dt_queue'), 'owner app', 'the caller of a SECURITY DEFINER function is recorded');
run('DROP TRIGGER t ON customers', 'TRUNCATE dt_waiting', "UPDATE customers SET tags = '{x}'", 'ALTER TABLE customers OWNER TO app',
	sprintf("CREATE TRIGGER t $by_row EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', '', '', 'Other One')", 'customers'),
	'DELETE FROM customers');
is(one('SELECT server || \' \' || role || \' \' || enqueued_by FROM dt_queue'), 'Other One app ' . one('SELECT current_user'),
	'the fifth argument is the server; a new owner of the table counts at once');

# From the trigger to the API.
customers('row', "(1, '$a', '{x,y}', '{\"f\": 1}', '$c')");
$sb->customer($a, [ 'x', 'y' ], ['f']);
run("UPDATE customers SET tags = '{y}', fields = NULL", 'CALL dt_process_queue()');
is_deeply($sb->customer_now($a)->{tags}, ['y'], 'the tag is removed from the customer');
is(one("SELECT phone || ' ' || state || ' ' || answer::text FROM dt_history"),
	"$a done {\"tags\": {\"errored\": [], \"removed\": [\"x\"]}, \"customFields\": {\"errored\": [], \"removed\": [\"f\"]}}",
	'the history has the answer');

# A name is lost and comes back before, during and after a drain.
customers('row', "(1, '$a', '{x,y}', NULL, NULL)");
$sb->clear_journal;
run("UPDATE customers SET tags = '{y}'", "UPDATE customers SET tags = '{x,y}'", 'CALL dt_process_queue()');
is_received($a, '', 'before a drain: nothing is sent');
is(one('SELECT count(*) FROM dt_waiting'), '0', 'and nothing is left in the queue');

$sb->hold($a, { times => 1 });
run("UPDATE customers SET tags = '{y}'");
my $drain = start_drain();
$sb->await_held(1);
run("UPDATE customers SET tags = '{x,y}'", "UPDATE customers SET tags = '{x}'");
$sb->release;
await_drain($drain);
run('CALL dt_process_queue()');
is_received($a, 'x y', 'during a drain: a name that comes back is not sent again');
is(one('SELECT count(*) FROM dt_waiting'), '0', 'and does not wait');

run("UPDATE customers SET tags = '{}'", 'CALL dt_process_queue()', "UPDATE customers SET tags = '{x}'");
is(one('SELECT count(*) FROM dt_waiting'), '0', 'after a drain: a name that comes back stores nothing');
run("UPDATE customers SET tags = '{}'", 'CALL dt_process_queue()');
is_received($a, 'x y x x', 'and is removed again when it is lost again');

$session->quit;

# Names that cannot be written in UTF-8.
$calls->sql("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'");
$calls->sql("CREATE EXTENSION doubletick; CREATE TABLE customers (phone text, tags text[]);"
	  . sprintf("CREATE TRIGGER t $by_row EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');", 'customers')
	  . "INSERT INTO customers VALUES ('$a', ARRAY['x', E'\\xff']); DELETE FROM customers", database => 'bytes');
is($calls->sql('SELECT tags FROM dt_queue', database => 'bytes'), '{x}', 'such a name does not wait to be sent');
like($calls->sql('SELECT state, encode(tags[1]::bytea, \'hex\'), error FROM dt_history', database => 'bytes'),
	qr/^failed\|ff\|names cannot be sent: UTF-8 cannot hold them/, 'but stands in the history as failed');
$calls->sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'");
$calls->sql("CREATE EXTENSION doubletick; CREATE TABLE customers (phone text, tags text[]);"
	  . sprintf("CREATE TRIGGER t $by_row EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');", 'customers')
	  . "INSERT INTO customers VALUES ('$a', ARRAY['x', repeat('y', 270000000)]); DELETE FROM customers", database => 'latin');
is($calls->sql("SELECT tags, (SELECT state || length(tags[1]) FROM dt_history) FROM dt_queue", database => 'latin'), '{x}|failed270000000',
	'a name of 256 MB does not fail the statement');

done_testing();

# Runs statements in the session; each must succeed.
sub run
{
	$session->query_safe($_) foreach @_;
	return;
}

# The SQLSTATE of a statement, "" when it succeeds.
sub outcome
{
	my ($statement) = @_;

	return one('SELECT public.state_of(' . quote($statement) . ')');
}

sub one { return $session->query_safe($_[0]); }

# What waits, customer by customer, as "PHONE TAGS FIELDS WABA; ...".
sub queued
{
	return one(q{SELECT string_agg(concat_ws(' ', phone, ARRAY(SELECT DISTINCT unnest(tags) ORDER BY 1),
			ARRAY(SELECT DISTINCT unnest(fields) ORDER BY 1), coalesce(waba, '-')), '; ' ORDER BY phone, waba NULLS FIRST)
		FROM (SELECT ltrim(phone, '+') AS phone, ltrim(waba, '+') AS waba,
				string_to_array(string_agg(array_to_string(tags, '|'), '|') FILTER (WHERE tags <> '{}'), '|') AS tags,
				string_to_array(string_agg(array_to_string(fields, '|'), '|') FILTER (WHERE fields <> '{}'), '|') AS fields
			FROM dt_queue GROUP BY 1, 2) AS q});
}

sub failed
{
	return one("SELECT string_agg(phone || ' ' || tags::text || ' ' || fields::text || ' ' || coalesce(waba, '-') || ' ' || error, '; ' ORDER BY id)"
		  . " FROM dt_history WHERE state = 'failed'");
}

# An empty queue and no customers.
sub no_customers
{
	run('SET client_min_messages = warning', 'DROP TABLE IF EXISTS customers CASCADE', 'TRUNCATE dt_waiting, dt_settled',
		q{CREATE OR REPLACE FUNCTION public.state_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
			BEGIN EXECUTE statement; RETURN ''; EXCEPTION WHEN others THEN RETURN SQLSTATE; END $$});
	return;
}

# The usual table of customers, with these rows; "row", "statement" or undef.
sub customers
{
	my ($level, @rows) = @_;

	no_customers();
	run("CREATE TABLE customers (id int PRIMARY KEY, $columns)");
	run('INSERT INTO customers VALUES ' . join ', ', @rows) if @rows;
	run(triggers($level, 'customers', "'phone', 'tags', 'fields', 'waba'")) if $level;
	return;
}

# A table of other columns, with a trigger for each row.
sub customers_of
{
	my ($definition, $arguments, @rows) = @_;

	no_customers();
	run("CREATE TABLE customers ($definition)", triggers('row', 'customers', $arguments),
		map { "INSERT INTO customers VALUES $_" } @rows);
	return;
}

sub triggers
{
	my ($level, $table, $arguments) = @_;

	return statement_triggers($table, $arguments) if $level eq 'statement';
	return sprintf "CREATE TRIGGER t $by_row EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger($arguments)", $table;
}

sub statement_triggers
{
	my ($table, $arguments) = @_;
	my %tables = (INSERT => 'NEW TABLE AS new', UPDATE => 'OLD TABLE AS old NEW TABLE AS new', DELETE => 'OLD TABLE AS old');

	return map { "CREATE TRIGGER \L$_\E AFTER $_ ON $table REFERENCING $tables{$_} FOR EACH STATEMENT"
		  . " EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger($arguments)" } sort keys %tables;
}


# What a table's trigger has enqueued, the same table's trigger can take back, whoever
# owns the table and whichever server the trigger names by then. Nobody else's removals.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Calls;
use Queue;
use PostgreSQL::Test::Utils;
use Test::More;

open_queue(options => { rate_limit => '0' });
make_roles();
$calls->server('second', timeout => '1min', rate_limit => '0');
$calls->sql(<<'SQL');
GRANT USAGE ON FOREIGN SERVER second TO app, other;
CREATE USER MAPPING FOR app SERVER second OPTIONS (api_key 'key_app');
CREATE USER MAPPING FOR other SERVER second OPTIONS (api_key 'key_sandbox');
GRANT CREATE ON SCHEMA public TO app, other;
SQL
my $session = $node->background_psql('postgres');
my ($phone, $waba, $other_waba) = (new_phone(), '919812345678', '919812345679');

foreach my $level (qw(row statement))
{
	# The owner.
	customers($level, "(1, '$phone', '{x,y}', '{\"f\": 1}')");
	run("UPDATE customers SET tags = '{}', fields = NULL");
	is(queued(), 'other x,y f', "$level: names that are lost wait");
	run('ALTER TABLE customers OWNER TO app', "UPDATE customers SET tags = '{x}', fields = '{\"f\": 1}'");
	is(queued(), 'other y', "$level: under a new owner they come back");
	run("UPDATE customers SET tags = '{x,y}'");
	is(queued(), '', "$level: one after the other");
	run("UPDATE customers SET tags = '{y}'");
	is(queued(), 'app x', "$level: what is lost again is the new owner's");
	run('REASSIGN OWNED BY app TO other', 'ALTER SERVER second OWNER TO CURRENT_USER', "UPDATE customers SET id = 2, tags = '{x,y}'");
	is(queued(), '', "$level: REASSIGN OWNED");
	run("UPDATE customers SET tags = '{y}'", 'ALTER TABLE customers OWNER TO app', "UPDATE customers SET tags = '{x,y}'");
	is(sent(), '', "$level: nothing is sent");
	is(one('SELECT count(*) FROM dt_waiting'), '0', "$level: no keep stays");
	is(one('SELECT DISTINCT state FROM dt_history'), 'cancelled', "$level: all of it is cancelled");

	# The server.
	customers($level, "(1, '$phone', '{x,y}')");
	run("UPDATE customers SET tags = '{y}'", triggers($level, 'customers', 'second'), "UPDATE customers SET tags = '{x,y}'");
	is(queued(), '', "$level: a trigger that is created anew with another server");
	run("UPDATE customers SET tags = '{y}'", 'ALTER TABLE customers OWNER TO app', triggers($level, 'customers', 'doubletick'),
		"UPDATE customers SET tags = '{x}'");
	is(queued(), 'app y', "$level: another owner and another server");
	is(sent(), 'y', "$level: what has not come back is sent");

	# A server that is renamed, dropped, or created later.
	foreach my $change ('ALTER SERVER third RENAME TO fourth', 'DROP SERVER third')
	{
		run("CREATE SERVER third FOREIGN DATA WRAPPER doubletick OPTIONS (waba_number '$waba')");
		customers($level, "(1, '$phone', '{x,y}')");
		run(triggers($level, 'customers', 'third'), "UPDATE customers SET tags = '{}'", $change);
		run("CREATE SERVER fourth FOREIGN DATA WRAPPER doubletick OPTIONS (waba_number '$waba')") if $change =~ /DROP/;
		run("UPDATE customers SET tags = '{y}'");
		is(queued(), 'other x', "$level: $change: the trigger names the old name");
		run(triggers($level, 'customers', 'fourth'), "UPDATE customers SET waba = '$waba'", "UPDATE customers SET tags = '{x,y}'");
		is(queued(), '', "$level: $change: and the new one, with the WABA number that was the server's own");
		run('TRUNCATE dt_waiting', "UPDATE customers SET tags = '{}'", 'DROP SERVER fourth', "UPDATE customers SET waba = NULL, tags = '{x}'");
		is(queued(), "other x,y $waba", "$level: $change: it is nobody's own when there is no server");
	}

	# The WABA number, given or the server's own.
	run("ALTER SERVER doubletick OPTIONS (ADD waba_number '$waba')", "ALTER SERVER second OPTIONS (ADD waba_number '$other_waba')");
	foreach my $first ('NULL', "'$waba'")
	{
		my $then = $first eq 'NULL' ? "'$waba'" : 'NULL';

		customers($level, "(1, '$phone', '{x}', NULL, $first)");
		run("UPDATE customers SET tags = '{}'", 'ALTER TABLE customers OWNER TO app', "UPDATE customers SET waba = '$other_waba'",
			"UPDATE customers SET tags = '{x}'");
		like(queued(), qr/^other x/, "$level: WABA number $first: a row with another one is another customer's");
		run("UPDATE customers SET waba = $then");
		like(queued(), qr/^app x $other_waba$/, "$level: WABA number $first: taken back under $then");
		customers($level, "(1, '$phone', '{x}', NULL, $first)");
		run("UPDATE customers SET tags = '{}'", 'ALTER TABLE customers OWNER TO app', triggers($level, 'customers', 'second'),
			"UPDATE customers SET waba = '$waba', tags = '{x}'");
		is(queued(), '', "$level: WABA number $first: taken back through another server");
	}
	customers($level, "(1, '$phone', '{x}')");
	run("UPDATE customers SET tags = '{}'", triggers($level, 'customers', 'second'), "UPDATE customers SET tags = '{x}'");
	is(queued(), '', "$level: a row without a WABA number takes back what had none");
	run(triggers($level, 'customers', 'doubletick'), "UPDATE customers SET waba = '$waba'", "UPDATE customers SET tags = '{}'",
		triggers($level, 'customers', 'doubletick', "'phone', 'tags', 'fields', ''"), "UPDATE customers SET tags = '{x}'");
	is(queued(), '', "$level: so does a trigger without a column for it");
	run("ALTER SERVER $_ OPTIONS (DROP waba_number)") foreach qw(doubletick second);

	# What others have enqueued.
	customers($level, "(1, '$phone', '{x,y}')");
	run('SET ROLE other', "SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{x,z}')", 'RESET ROLE', "UPDATE customers SET tags = '{}'",
		'ALTER TABLE customers OWNER TO app', "UPDATE customers SET tags = '{x,y,z}'");
	is(queued(), 'other x,z', "$level: what the former owner has enqueued by hand stays");
	run("CREATE TABLE leads (LIKE customers)", 'ALTER TABLE leads OWNER TO app', triggers($level, 'leads', 'doubletick'));
	customers($level, "(1, '$phone', '{x,y}')");
	run("UPDATE customers SET tags = '{}'", "INSERT INTO leads VALUES (1, '$phone', '{x,y}')");
	is(queued(), 'other x,y', "$level: another owner's table takes nothing back");
	run('ALTER TABLE customers OWNER TO app', "UPDATE customers SET tags = '{x}'", "UPDATE customers SET tags = '{}'",
		"INSERT INTO leads VALUES (2, '$phone', '{x}')");
	is(queued(), 'other y', "$level: a table of the same owner does");
	run('ALTER TABLE leads OWNER TO other', "INSERT INTO leads VALUES (3, '$phone', '{y}')");
	is(queued(), '', "$level: and so does a table of the removal's own role");
	run('DROP TABLE leads');
	customers($level, "(1, '$phone', '{x,y}')");
	run("UPDATE customers SET tags = '{}'", 'ALTER TABLE customers RENAME TO former', 'ALTER TABLE former OWNER TO app',
		"UPDATE former SET tags = '{x}'", 'CREATE TABLE customers (LIKE former)', 'ALTER TABLE customers OWNER TO app',
		triggers($level, 'customers', 'doubletick'), "INSERT INTO customers VALUES (1, '$phone', '{y}')");
	is(queued(), 'other y', "$level: a table that is renamed is the same, a new one of its name is not");
	run('DROP TABLE former');

	# A removal that has failed, and is retried.
	customers($level, "(1, '$phone', '{x,y}')");
	$sb->rule($phone, { status => 422, times => 1 });
	run("UPDATE customers SET tags = '{}'", 'CALL dt_process_queue()', "SELECT dt_retry(id) FROM dt_history WHERE state = 'failed'",
		'ALTER TABLE customers OWNER TO app', "UPDATE customers SET tags = '{x}'");
	is(queued(), 'other y', "$level: what dt_retry has put back is the table's still");
	$sb->clear_journal;
	is(sent(), 'y', "$level: and is sent without the name that came back");

	# In one transaction, in either order.
	foreach my $order ("UPDATE customers SET phone = '$phone' WHERE id = 1; %s; DELETE FROM customers WHERE id = 2",
		"DELETE FROM customers WHERE id = 2; %s; UPDATE customers SET phone = '$phone' WHERE id = 1")
	{
		foreach my $change ('ALTER TABLE customers OWNER TO app', join ';', triggers($level, 'customers', 'second'))
		{
			customers($level, "(1, '14155550000', '{x}')", "(2, '$phone', '{x,y}')");
			run('BEGIN', split(/;\s*/, sprintf $order, $change), 'COMMIT');
			is(one("SELECT string_agg(array_to_string(tags, ','), ' ') FROM dt_queue WHERE phone = '$phone'"), 'y',
				"$level: $order: what one row loses, another has gained: $change");
		}
	}
	customers($level, "(1, '14155550000', '{x}')");
	run('CREATE TABLE leads (LIKE customers)', 'ALTER TABLE leads OWNER TO other', "INSERT INTO leads VALUES (1, '$phone', '{x,y}')",
		triggers($level, 'leads', 'doubletick'), 'BEGIN', 'SAVEPOINT s', 'ALTER TABLE customers OWNER TO app',
		"INSERT INTO customers VALUES (3, '$phone', '{z}')", 'ROLLBACK TO s', "UPDATE customers SET phone = '$phone'", 'DELETE FROM leads', 'COMMIT');
	is(queued(), 'other x; other y', "$level: an owner that is rolled back counts no more");
	run('DROP TABLE leads');
	customers($level, "(1, '$phone', '{x,y}')");
	run("UPDATE customers SET tags = '{}'", 'ALTER TABLE customers OWNER TO app', 'BEGIN', "UPDATE customers SET tags = '{x}'",
		"UPDATE customers SET tags = '{}'", 'COMMIT');
	is(queued(), 'app x; other y', "$level: a name that comes back and goes again is removed");
}

# dt_keep() has no table: it takes back what waits for its role and server alone.
no_customers();
run("ALTER SERVER doubletick OPTIONS (ADD waba_number '$waba')",
	map { ("SET doubletick.server = $_", "SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{x,y}')") } qw(second doubletick));
run('GRANT EXECUTE ON FUNCTION dt_keep TO other', 'SET ROLE other');
is(one("SELECT dt_keep('$phone', '{x}')"), 'f', 'dt_keep() leaves alone what another role has enqueued');
run('RESET ROLE');
is(one("SELECT dt_keep('$phone', '{x}', waba => '$waba')"), 't', 'dt_keep() under the WABA number that is the server\'s own');
is(one("SELECT string_agg(server || tags::text, ' ' ORDER BY id) FROM dt_queue"), 'second{x,y} doubletick{y}', 'and leaves alone what waits for another server');
run('RESET doubletick.server', 'ALTER SERVER doubletick OPTIONS (DROP waba_number)');

# Another transaction's removals and keeps.
customers('row', "(1, '$phone', '{x,y}')");
my $writer = $node->background_psql('postgres');
$writer->query_safe($_) foreach 'BEGIN', "UPDATE customers SET tags = '{}'";
run("INSERT INTO customers VALUES (2, '$phone', '{x}')");
$writer->query_safe('COMMIT');
$writer->quit;
is(queued(), 'other y', 'a removal that is not committed is taken back');

# Partitions: the whole tree is one table.
no_customers();
run('CREATE TABLE customers (id int, phone text, tags text[], fields jsonb, waba text) PARTITION BY LIST (id)',
	'CREATE TABLE middle PARTITION OF customers FOR VALUES IN (1, 2) PARTITION BY LIST (id)', 'CREATE TABLE leaf PARTITION OF middle DEFAULT',
	'ALTER TABLE customers OWNER TO other', triggers('row', 'customers', 'doubletick'), "INSERT INTO customers VALUES (1, '$phone', '{x,y,z}')",
	"UPDATE customers SET tags = '{}'", 'ALTER TABLE customers OWNER TO app', "UPDATE customers SET tags = '{x}'");
is(queued(), 'other y,z', 'partitions: the owner of the partitioned table changes');
run("UPDATE leaf SET tags = '{x,y}'");
is(queued(), 'other z', 'partitions: a change of the partition itself');
run('DROP TRIGGER t ON customers', 'ALTER TABLE middle OWNER TO app', triggers('row', 'middle', 'second'), "UPDATE customers SET tags = '{x,y,z}'");
is(queued(), '', 'partitions: a trigger on a partitioned table within');
run('DROP TRIGGER t ON middle', triggers('statement', 'customers', 'doubletick'), "UPDATE customers SET tags = '{x}'",
	'ALTER TABLE leaf OWNER TO other', triggers('statement', 'leaf', 'second'), "UPDATE leaf SET tags = '{x,y}'");
is(queued(), 'app z', 'partitions: for each statement, a trigger on the table and one on the partition');
run('ALTER TABLE middle DETACH PARTITION leaf', "UPDATE leaf SET tags = '{x,y,z}'");
is(queued(), 'app z', 'partitions: one that is detached is a table of its own');
run('DROP TABLE leaf');

# Rows in another database, in which the table happens to have the same OID.
customers('row', "(1, '$phone', '{x}')");
run("UPDATE customers SET tags = '{}'");
my $oid = one(q{SELECT 'customers'::regclass::oid});
$session->quit;
$calls->sql('CREATE DATABASE copy TEMPLATE postgres', database => 'template1');
is($calls->sql("ALTER TABLE customers OWNER TO app; UPDATE customers SET tags = '{x}';
	SELECT 'customers'::regclass::oid || ' ' || count(*) FROM dt_queue", database => 'copy'), "$oid 1",
	'copied rows have no table in another database');
is($calls->sql("ALTER TABLE customers OWNER TO app; UPDATE customers SET tags = '{x}'; SELECT count(*) FROM dt_queue"), '0',
	'but do have it in their own');

done_testing();

# Runs statements in the session; each must succeed.
sub run
{
	$session->query_safe($_) foreach @_;
	return;
}

sub one { return $session->query_safe($_[0]); }

# What waits, as "ROLE TAGS FIELDS WABA; ...", empty parts left out.
sub queued
{
	return one(q{SELECT string_agg(concat_ws(' ', role, nullif(array_to_string(tags, ','), ''), nullif(array_to_string(fields, ','), ''), waba), '; ' ORDER BY role, id)
		FROM dt_queue});
}

# Drains, and returns what is sent for the phone.
sub sent
{
	$sb->clear_journal;
	run('CALL dt_process_queue()');
	return join ' ', received($phone);
}

sub no_customers
{
	run('SET client_min_messages = warning', 'DROP TABLE IF EXISTS customers', 'TRUNCATE dt_waiting, dt_settled');
	return;
}

# The table of customers with these rows and triggers; it belongs to "other".
sub customers
{
	my ($level, @rows) = @_;

	no_customers();
	run('CREATE TABLE customers (id int PRIMARY KEY, phone text, tags text[], fields jsonb, waba text)', 'ALTER TABLE customers OWNER TO other',
		'INSERT INTO customers VALUES ' . join(', ', @rows), triggers($level, 'customers', 'doubletick'));
	return;
}

# Statements that create a table's triggers, or create them anew.
sub triggers
{
	my ($level, $table, $server, $columns) = @_;
	my $function = 'EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger(' . ($columns || "'phone', 'tags', 'fields', 'waba'") . ", '$server')";
	my %tables = (INSERT => 'NEW TABLE AS new', UPDATE => 'OLD TABLE AS old NEW TABLE AS new', DELETE => 'OLD TABLE AS old');

	return ("DROP TRIGGER IF EXISTS t ON $table", "CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON $table FOR EACH ROW $function")
	  if $level eq 'row';
	return map { ("DROP TRIGGER IF EXISTS \L$_\E ON $table", "CREATE TRIGGER \L$_\E AFTER $_ ON $table REFERENCING $tables{$_} FOR EACH STATEMENT $function") }
	  sort keys %tables;
}


# A wrong definition of a trigger raises an error when it first fires, for whichever
# event; and cases in which a trigger does not fire at all.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Calls;
use PostgreSQL::Test::Utils;
use Test::More;

my $calls = Calls->new(conf => <<'CONF');
wal_level = logical
max_wal_senders = 4
max_replication_slots = 4
max_prepared_transactions = 2
CONF
my $function = 'EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger';
my $good = "('phone', 'tags', 'fields', 'waba')";
my $every_row = 'AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW';

$calls->sql('CREATE EXTENSION hstore');
$calls->sql(<<'SQL');
CREATE TYPE mood AS ENUM ('lead');
CREATE TABLE customers (id int, phone text, tags text[], fields jsonb, waba text,
	bytes bytea, moods mood[], mood mood, numbers int[], plain json, pairs hstore, at timestamptz, "double" float8);
CREATE VIEW seen AS SELECT * FROM customers;
SQL

# Events, levels and timing.

my @insert = ("INSERT INTO customers (phone) VALUES ('919876543210')");
my @update = (@insert, "UPDATE customers SET id = 1");

refused("BEFORE UPDATE ON customers FOR EACH ROW $function$good", '39P01', qr/must fire after/, @update);
refused("BEFORE INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW $function$good", '39P01', qr/must fire after/, @insert);
refused("BEFORE INSERT ON customers FOR EACH STATEMENT $function$good", '39P01', qr/must fire after/, @insert);
refused("INSTEAD OF UPDATE ON seen FOR EACH ROW $function$good", '39P01', qr/must fire after/, @insert, 'UPDATE seen SET id = 1');
refused("AFTER TRUNCATE ON customers FOR EACH STATEMENT $function$good", '39P01', qr/must fire after/, 'TRUNCATE customers');
refused("AFTER INSERT OR TRUNCATE ON customers FOR EACH STATEMENT $function$good", '39P01', qr/must fire after/, @insert);
refused("AFTER DELETE ON customers FOR EACH ROW $function$good", '39P01', qr/on DELETE, but not on INSERT/,
	@insert, 'DELETE FROM customers');
refused("AFTER UPDATE OR DELETE ON customers FOR EACH ROW $function$good", '39P01', qr/on DELETE, but not on INSERT/, @update);
refused("AFTER INSERT ON customers FOR EACH STATEMENT $function$good", '39P01', qr/has no NEW TABLE/, @insert);
refused("AFTER UPDATE ON customers REFERENCING OLD TABLE AS old FOR EACH STATEMENT $function$good", '39P01',
	qr/has no NEW TABLE/, @update);
refused("AFTER UPDATE ON customers REFERENCING NEW TABLE AS new FOR EACH STATEMENT $function$good", '39P01',
	qr/has no OLD TABLE/, @update);
refused("AFTER DELETE ON customers FOR EACH STATEMENT $function$good", '39P01', qr/has no OLD TABLE/, 'DELETE FROM customers');
refused("AFTER INSERT OR UPDATE ON customers FOR EACH STATEMENT $function$good", '39P01', qr/has no NEW TABLE/, @insert);

# These would not see what a row gains when another column moves it.
refused("AFTER UPDATE OF tags ON customers FOR EACH ROW $function$good", '39P01', qr/is limited to some columns/, @insert, "UPDATE customers SET tags = '{}'");
refused("AFTER INSERT OR UPDATE OF tags OR DELETE ON customers FOR EACH ROW $function$good", '39P01', qr/is limited to some columns/, @insert);
refused("AFTER UPDATE ON customers FOR EACH ROW WHEN (OLD.tags IS DISTINCT FROM NEW.tags) $function$good", '39P01', qr/has a WHEN condition/,
	@insert, "UPDATE customers SET tags = '{}'");
refused("AFTER INSERT ON customers FOR EACH ROW WHEN (NEW.phone IS NOT NULL) $function$good", '39P01', qr/has a WHEN condition/, @insert);

# Arguments.

refused("$every_row $function()", '39P01', qr/names no column of the phone/, @insert);
refused("$every_row $function('', 'tags')", '39P01', qr/names no column of the phone/, @insert);
refused("$every_row $function('phone')", '39P01', qr/names no column of tags or custom fields/, @insert);
refused("$every_row $function('phone', '', '', 'waba')", '39P01', qr/names no column of tags or custom fields/, @insert);
refused("$every_row $function('phone', 'tags', 'fields', 'waba', 'doubletick', '')", '39P01', qr/too many arguments/, @insert);
refused("$every_row $function('phone', 'tags', '', '', repeat)", '39P01', qr/names a server whose name is too long/, @insert);

# Columns.

refused("$every_row $function('fone', 'tags')", '42703', qr/column "fone" of relation "customers" does not exist/, @insert);
refused("$every_row $function('phone', 'Tags')", '42703', qr/column "Tags" of relation/, @insert);
refused("$every_row $function('phone', 'tags', 'x')", '42703', qr/column "x" of relation/, @insert);
refused("$every_row $function('phone', 'tags', '', 'x')", '42703', qr/column "x" of relation/, @insert);
refused("$every_row $function('ctid', 'tags')", '42703', qr/column "ctid" of relation/, @insert);
foreach my $column (qw(tags bytes fields at pairs double))
{
	refused("$every_row $function('$column', 'tags')", '42804', qr/column "$column" of type .* cannot be the column of the phone/, @insert);
	refused("$every_row $function('phone', 'tags', '', '$column')", '42804', qr/cannot be the column of the WABA number/, @insert);
}
foreach my $column (qw(bytes moods mood numbers plain pairs at id))
{
	refused("$every_row $function('phone', '$column')", '42804', qr/column "$column" of type .* cannot be the column of the tags/, @insert);
}
foreach my $column (qw(bytes moods mood numbers plain at id))
{
	refused("$every_row $function('phone', 'tags', '$column')", '42804', qr/cannot be the column of the custom fields/, @insert);
}

# The owner of hstore, who need be no superuser, may add a type to it.
$calls->sql("CREATE TYPE pair AS (key text); CREATE FUNCTION akeys(pair) RETURNS bigint LANGUAGE sql AS 'SELECT 4660::bigint';
	ALTER EXTENSION hstore ADD TYPE pair; ALTER TABLE customers ADD COLUMN pair pair");
refused("$every_row $function('phone', 'tags', 'pair')", '42804', qr/column "pair" of type pair cannot be/, "INSERT INTO customers (phone, pair) VALUES ('919876543210', ROW('lead'))");
$calls->sql('ALTER EXTENSION hstore DROP TYPE pair; ALTER TABLE customers DROP COLUMN pair; DROP FUNCTION akeys(pair); DROP TYPE pair');

# A column that is renamed or dropped is an error; a new one of that name is found.

$calls->sql("CREATE TRIGGER t $every_row $function$good; INSERT INTO customers (phone, tags) VALUES ('919876543210', '{x}')");
$calls->sql('ALTER TABLE customers RENAME tags TO labels');
is(raised('UPDATE customers SET id = 2')->{sqlstate}, '42703', 'a renamed column');
$calls->sql("ALTER TABLE customers ADD tags text[] DEFAULT '{later}'");
$calls->sql('DELETE FROM customers');
is($calls->sql('SELECT tags FROM dt_queue'), '{later}', 'a new column of its name, with a default that is stored in no row');
$calls->sql('ALTER TABLE customers DROP tags');
is(raised("INSERT INTO customers (phone) VALUES ('919876543210')")->{sqlstate}, '42703', 'a dropped column');
$calls->sql('DROP TRIGGER t ON customers; ALTER TABLE customers RENAME labels TO tags; TRUNCATE dt_waiting');

# Called as a function; the privileges; and a read-only transaction.

is(raised('SELECT dt_remove_tags_custom_fields_trigger()')->{sqlstate}, '39P01', 'called as a function');
is($calls->sql(q{SELECT has_function_privilege('public', 'dt_remove_tags_custom_fields_trigger()', 'EXECUTE')}),
	'f', 'EXECUTE is not granted to PUBLIC');
my ($status, $stdout, $stderr) = $calls->node->psql('postgres', "\\set VERBOSITY sqlstate\n"
	  . "CREATE TEMP TABLE mine (phone text, tags text[]);"
	  . "CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON mine FOR EACH ROW $function('phone', 'tags');"
	  . "INSERT INTO mine VALUES ('919876543210', '{x}'); BEGIN READ ONLY; DELETE FROM mine", on_error_stop => 0);
like($stderr, qr/25006/, "a temporary table's rows in a read-only transaction");

# The server need not exist when the trigger fires.

$calls->sql("CREATE TRIGGER t $every_row $function('phone', '', 'pairs', '', 'my server');"
	  . " INSERT INTO customers (phone, pairs) VALUES ('919876543210', 'a=>1'); DELETE FROM customers;");
is($calls->sql('SELECT server, fields FROM dt_queue'), 'my server|{a}', 'a server that does not exist yet');
$calls->sql('DROP TRIGGER t ON customers; TRUNCATE dt_waiting');

# The extension is dropped by the same transaction.

$calls->sql("CREATE TRIGGER t $every_row $function$good");
$calls->sql("INSERT INTO customers (phone, tags) VALUES ('919876543210', '{x}')");
$calls->sql("BEGIN; UPDATE customers SET tags = '{y}'; DROP EXTENSION doubletick CASCADE; ROLLBACK");
is($calls->sql('SELECT count(*) FROM dt_queue'), '0', 'the trigger has left no table open, so that DROP EXTENSION succeeds');

# What a prepared transaction has gained is nothing to the session's next one.

$calls->sql("INSERT INTO customers (id, phone, tags) VALUES (2, '919876543211', '{x}')");
$calls->sql("BEGIN; INSERT INTO customers (id, phone, tags) VALUES (3, '919876543211', '{x}'); PREPARE TRANSACTION 'p';"
	  . "DELETE FROM customers WHERE id = 2; ROLLBACK PREPARED 'p'");
is($calls->sql('SELECT phone, tags FROM dt_queue'), '919876543211|{x}', 'what a prepared transaction gained does not count in the next one');
$calls->sql("DELETE FROM customers; TRUNCATE dt_waiting; INSERT INTO customers (id, phone, tags) VALUES (2, '919876543211', '{x}')");
$calls->sql("BEGIN; DELETE FROM customers; PREPARE TRANSACTION 'p'");
is($calls->sql('SELECT count(*) FROM dt_queue'), '0', 'a removal of a prepared transaction does not wait yet');
$calls->sql("COMMIT PREPARED 'p'");
is($calls->sql('SELECT phone, tags FROM dt_queue'), '919876543211|{x}', 'it waits when the transaction is committed');

# Logical replication from another database.

$calls->sql("CREATE DATABASE publisher");
$calls->sql("CREATE TABLE customers (id int PRIMARY KEY, phone text, tags text[]); CREATE PUBLICATION p FOR TABLE customers;"
	  . "SELECT pg_create_logical_replication_slot('s', 'pgoutput')", database => 'publisher');
$calls->sql("DROP TABLE customers CASCADE; TRUNCATE dt_waiting; CREATE TABLE customers (id int PRIMARY KEY, phone text, tags text[]);"
	  . "CREATE TRIGGER t $every_row $function('phone', 'tags')");
$calls->sql("CREATE SUBSCRIPTION s CONNECTION " . quote($calls->node->connstr('publisher')) . " PUBLICATION p WITH (create_slot = false)");
publish("INSERT INTO customers VALUES (1, '919876543210', '{x,y,z}'), (2, '919876543211', '{x}')", 'count(*) = 2');
publish("UPDATE customers SET tags = '{y,z}' WHERE id = 1", "bool_or(tags = '{y,z}')");
is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'the trigger does not fire for replicated changes');
$calls->sql('ALTER TABLE customers ENABLE ALWAYS TRIGGER t');
publish("UPDATE customers SET tags = '{z}' WHERE id = 1", "bool_or(tags = '{z}')");
publish('DELETE FROM customers WHERE id = 2', 'count(*) = 1');
is($calls->sql('SELECT phone, tags, role, enqueued_by FROM dt_queue ORDER BY id'),
	join("\n", map { "$_|" . join '|', ($calls->sql('SELECT current_user')) x 2 } '919876543210|{y}', '919876543211|{x}'),
	'unless the trigger is ENABLE ALWAYS');
$calls->sql('DROP SUBSCRIPTION s');

done_testing();

# Tests that the last of the statements, which makes the trigger fire, is an error.
sub refused
{
	my ($definition, $sqlstate, $message, @statements) = @_;
	my $last = pop @statements;

	$definition =~ s/, repeat\)/, '${\('x' x 64)}')/;
	$calls->sql(join ';', @statements, "CREATE TRIGGER t $definition");
	my $raised = raised($last);
	my ($table) = $definition =~ / ON (\w+)/;
	$calls->sql("DROP TRIGGER t ON $table; DELETE FROM customers");
	is($raised->{sqlstate}, $sqlstate, "$sqlstate: $definition");
	like($raised->{message}, $message, 'message');
	return;
}

sub raised
{
	my ($statement) = @_;

	# outcome() takes a query.
	$calls->sql('CREATE OR REPLACE FUNCTION run(statement text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE statement; RETURN 1; END $$');
	my ($outcome) = $calls->session('SELECT run(' . quote($statement) . ')');
	return $outcome;
}

# Changes the publisher's table, and waits until the subscriber's meets the condition.
sub publish
{
	my ($statement, $condition) = @_;

	$calls->sql($statement, database => 'publisher');
	return eventually(sub { $calls->sql("SELECT $condition FROM customers") eq 't' }, "applied: $statement");
}

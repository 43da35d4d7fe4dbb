
# pg_dump and pg_restore while removals wait: the definitions are restored, the queue
# stays where it is, and loading a table's rows enqueues nothing.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue();
make_roles();

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
my ($phone, $keeper, $restored) = map { new_phone() } 1 .. 3;
my %at = (database => 'restored');

$calls->sql(<<"SQL");
CREATE TABLE customers (phone text PRIMARY KEY, tags text[]);
CREATE TRIGGER customers AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW
	EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
INSERT INTO customers VALUES ('$phone', '{lead,vip}'), ('$keeper', '{lead}');
UPDATE customers SET tags = '{vip}' WHERE phone = '$phone';
SQL
my $id = enqueue($keeper, ['vip'], undef, role => 'app');
my $rows = $calls->sql('SELECT * FROM dt_waiting ORDER BY id');

command_ok([ 'pg_dump', '-Fc', '-d', $node->connstr('postgres'), '-f', $dump ], 'pg_dump succeeds while rows wait');
$calls->sql('CREATE DATABASE restored');
command_ok([ 'pg_restore', '-j', '2', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'pg_restore succeeds');
is($calls->sql('SELECT * FROM dt_waiting ORDER BY id'), $rows, 'what waits is as it was');
is($calls->sql('SELECT count(*) FROM dt_waiting', %at), '0', 'nothing waits in the restored database');
foreach my $query (
	"SELECT srvname, srvoptions FROM pg_foreign_server ORDER BY 1",
	'SELECT srvname, usename, umoptions FROM pg_user_mappings ORDER BY 1, 2',
	'SELECT extversion FROM pg_extension WHERE extname = \'doubletick\'',
	'SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger ORDER BY 1',
	q{SELECT proname, proacl FROM pg_proc WHERE proname LIKE 'dt\_%' AND proname NOT LIKE 'dt\_test%' ORDER BY 1},
	'SELECT * FROM customers ORDER BY phone')
{
	is($calls->sql($query, %at), $calls->sql($query), "the same: $query");
}

# Rows are loaded into a table that has the trigger already.
$calls->sql('TRUNCATE customers', %at);
enqueue($restored, ['lead'], undef, %at);
command_ok([ 'pg_restore', '--data-only', '--exit-on-error', '-t', 'customers', '-d', $node->connstr('restored'), $dump ], 'pg_restore --data-only succeeds');
is($calls->sql('SELECT phone FROM dt_queue', %at), $restored, 'loading rows enqueues nothing');
$calls->sql("UPDATE customers SET tags = '{}' WHERE phone = '$keeper'", %at);
drain(%at);
is_received($restored, 'lead', 'the restored database sends its own removals');
is_received($keeper, 'lead', 'the restored trigger fires');
drain();
is_received($phone, 'lead', 'the first database sends what has waited');
is_received($keeper, 'lead vip', 'and so it does for a role');
is(states($id), 'done', 'whose removal is done');

done_testing;

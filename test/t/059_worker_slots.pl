
# Few places for workers: one that only waits, for a hold to be mended, for another
# session or for a prepared transaction, makes room for a database that has work.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Worker;

# One place is left: the launcher has one, and that of logical replication.
my $calls = Worker->new(idle => '1h', options => { timeout => '5min' },
	conf => "max_worker_processes = 3\nmax_prepared_transactions = 2\nautovacuum = off\n");
my $node = $calls->node;
my $sb = $calls->sandbox;
my $log = -s $node->logfile;

foreach my $database ('first', 'second')
{
	$calls->sql("CREATE DATABASE $database");
	$calls->set_up($database, timeout => '5min');
}
eventually(sub { !$calls->workers }, 'no worker runs');

# A worker that is idle, for an hour.
$calls->sql(enqueue('idle'), database => 'first');
eventually(sub { $calls->has_sent('idle') }, 'one database has the only worker');
$calls->sql(enqueue('beside_idle'), database => 'second');
eventually(sub { $calls->has_sent('beside_idle') }, 'when it is idle, another database has its turn');

# A hold, whose next probe is a minute away.
$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER doubletick', database => 'first');
$calls->sql(enqueue('held'), database => 'first');
eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold', database => 'first') eq '1' }, 'a removal is held');
$calls->sql(enqueue('beside_held'), database => 'second');
eventually(sub { $calls->has_sent('beside_held') }, 'another database has its turn');
is($calls->has_sent('held'), 0, 'while the removal waits');

# So is it after a start of the server, when each database is looked at.
$node->restart;
$calls->sql(enqueue('after_restart'), database => 'second');
eventually(sub { $calls->has_sent('after_restart') }, 'after a restart, too');
$calls->sql("CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (api_key " . quote($sb->key) . ')', database => 'first');
$calls->sql(enqueue('mended', 2), database => 'first');
eventually(sub { $calls->has_sent('held') && $calls->has_sent('mended') }, 'what was held goes when it is mended');

# A prepared transaction, which a worker waits for.
$calls->sql('BEGIN; ' . enqueue('prepared') . "; PREPARE TRANSACTION 'prepared'", database => 'first');
eventually(sub { $calls->workers('first') }, 'a worker waits for a prepared transaction');
$calls->sql(enqueue('beside_prepared'), database => 'second');
eventually(sub { $calls->has_sent('beside_prepared') }, 'another database has its turn');
$calls->sql("COMMIT PREPARED 'prepared'", database => 'first');
eventually(sub { $calls->has_sent('prepared') }, 'COMMIT PREPARED is noticed all the same');

# While the only worker is busy, dt_check() says so where something waits, and only there.
$sb->hold(Worker::phone(9));
$calls->sql(enqueue('busy', 9), database => 'first');
$sb->await_held(1, Worker::phone(9));
$calls->sql(enqueue('lacking', 8), database => 'second');
my $lacks = "SELECT count(*) FROM dt_check() WHERE problem = 'no slot is left for a worker'";
eventually(sub { $calls->sql($lacks, database => 'second') eq '1' }, 'dt_check() says that no slot is left where a removal waits for one');
is($calls->sql($lacks), '0', 'and nothing where none waits');
$sb->release(Worker::phone(9));
eventually(sub { $calls->has_sent('lacking') }, 'then the other database has its turn');

cmp_ok(scalar(() = slurp_file($node->logfile, $log) =~ /no background worker is free/g), '<', 10, 'the log is not filled');
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP|has failed/, 'no process has crashed');
done_testing;

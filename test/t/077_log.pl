
# What the launcher and the workers write to the server's log: which database it is
# about, by name.  And what a session waits for, as pg_stat_activity shows it.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Worker;

my $calls = Worker->new(options => { timeout => '1min' });
my $node = $calls->node;
my $sb = $calls->sandbox;
my $superuser = $calls->sql('SELECT current_user');

like(slurp_file($node->logfile), qr/LOG:  doubletick launcher has started\n[^\n]*DETAIL:  It may start up to \d+ workers/, 'the log says that the launcher runs');

# The longest name that a database can have.
my $name = 'd' x 63;
$calls->sql("CREATE DATABASE $name");
$calls->set_up($name);

$calls->sql("ALTER DATABASE $name SET doubletick.enabled = off");
my $log = -s $node->logfile;
$calls->sql(Worker::enqueue('switched_off'), database => $name);
my $hold = qr/WARNING:  requests of role "\Q$superuser\E" to server "doubletick" are held: requests are switched off[^\n]*\n[^\n]*DETAIL: [^\n]*\n[^\n]*HINT:  Switch them on again: ALTER DATABASE $name RESET doubletick\.enabled;\n[^\n]*CONTEXT:  doubletick worker of database "$name"$/m;
eventually(sub { slurp_file($node->logfile, $log) =~ $hold }, 'a hold in the log: which database, and what switches it on');
$calls->sql("ALTER DATABASE $name RESET doubletick.enabled");
eventually(sub { $calls->has_sent('switched_off') }, 'it goes on');
like(slurp_file($node->logfile, $log), qr/LOG:  doubletick worker makes way: settings of the database or of roles have changed\n[^\n]*CONTEXT:  doubletick worker of database "$name"$/m,
	'a worker that makes way: of which database');

# An error that ends a worker.
$log = -s $node->logfile;
$calls->sql('CREATE INDEX failing ON dt_settled (lower(phone)); ' . Worker::enqueue('failing', 2), database => $name);
eventually(sub { slurp_file($node->logfile, $log) =~ /LOG:  doubletick worker of database "$name" has failed$/m }, 'the launcher says whose worker has failed');
$log = slurp_file($node->logfile, $log);
like($log, qr/ERROR:  table "dt_settled" is not as[^\n]*\n(?:[^\n]*\n){1,3}?[^\n]*CONTEXT:  doubletick worker of database "$name"$/m, 'the error says whose worker has met it');
$calls->sql('DROP INDEX failing', database => $name);
eventually(sub { $calls->has_sent('failing') }, 'the next one sends');

# What sessions wait for.
my $version = $calls->sql("SELECT current_setting('server_version_num')::int / 10000");
my %tried;
sub waits_ok
{
	my ($what, $event, $condition) = @_;
	$tried{$event} = 1;
	my $expected = $version >= 17 ? $event : 'Extension';

	eventually(sub { $calls->sql("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Extension' AND wait_event = '$expected' AND $condition") eq 't' },
		"$what: $expected");
	return;
}

sub call_waits
{
	my ($what, $event, $server, $number) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');
	my $phone = Worker::phone($number);

	$session->query_until(qr/on its way/, "SET doubletick.server = '$server';\n\\echo on its way\nSELECT count(dt_try_remove_tags_custom_fields('$phone', '{lead}')) FROM generate_series(1, 3);\n");
	waits_ok($what, $event, "pid = $pid");
	$calls->sql("SELECT pg_cancel_backend($pid)");
	$session->quit;
	return;
}
$calls->server('slow', rate_limit => '0.01', timeout => '1min');
$calls->server('paused', timeout => '2min');
$sb->hold(Worker::phone(10));
call_waits('a call, for its answer', 'DoubletickAnswer', 'doubletick', 10);
call_waits('a call, for the pace', 'DoubletickPace', 'slow', 11);
$sb->rule(Worker::phone(12), { status => 429, retry_after => '60' });
call_waits('a call, until it tries again', 'DoubletickRetry', 'paused', 12);
call_waits('a call, for a pause', 'DoubletickPause', 'paused', 13);
$sb->hold(Worker::phone(14));
$calls->sql(Worker::enqueue('drained', 14));
waits_ok('the drainer, for answers', 'DoubletickDrain', "backend_type = 'doubletick worker' AND datname = 'postgres'");
$sb->reset;
waits_ok('the worker, for something to do', 'DoubletickWorker', "backend_type = 'doubletick worker' AND datname = 'postgres'");
waits_ok('the launcher', 'DoubletickLauncher', "backend_type = 'doubletick launcher'");

my @names = slurp_file(dirname(__FILE__) . '/../../src/base/wait_event.c') =~ /^\t\[WAIT_\w+\] = "(\w+)",$/mg;
is_deeply([ sort keys %tried ], [ sort @names ], 'each wait event was tried');

unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;


# One bad thing stops only itself: an error that comes up while the drainer works
# for one server and role holds these, and the others go on.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

my $queue = Queue->new(sandbox => [ '--key', 'key_sandbox', '--key', 'key_second' ]);
my $sb = $queue->sandbox;
my ($bad, $good) = ('14155550101', '14155550102');

$queue->server('second', base_url => $sb->http);
$queue->sql('ALTER SERVER doubletick OPTIONS (SET rate_limit \'0\')');

# An option that only another version of the library knows, or a bad value, which
# NO VALIDATOR lets pass.
foreach my $case (
	[ 'an unknown option', "ADD newer_option 'x'", 'DROP newer_option', 'invalid option "newer_option"' ],
	[ 'a bad value', "ADD max_connections 'many'", 'DROP max_connections', 'invalid value for option "max_connections"' ],
	[ 'a bad URL', "SET base_url 'http://example.com'", 'SET base_url \'' . $sb->http . "'", 'option "base_url" must start with https' ])
{
	my ($name, $break, $mend, $reason) = @$case;

	$queue->fresh;
	$queue->sql("ALTER FOREIGN DATA WRAPPER doubletick NO VALIDATOR; ALTER SERVER doubletick OPTIONS ($break)");
	my @ids = map { $queue->enqueue($_, ['lead']) } $bad, "${bad}1";
	my $other = $queue->enqueue($good, ['lead'], undef, server => 'second');

	like($queue->process, qr/^WARNING:  requests of role "postgres" to server "doubletick" are held: .*\Q$reason\E/m, "$name: the hold says why");
	is($queue->states($other), 'done', "$name: the other server goes on");
	is($queue->states(@ids), 'waiting waiting', "$name: its own removals wait");
	like($queue->status('doubletick')->{held}, qr/\Q$reason\E/, "$name: dt_status says why");

	$queue->sql("ALTER SERVER doubletick OPTIONS ($mend); ALTER FOREIGN DATA WRAPPER doubletick VALIDATOR dt_fdw_validator");
	$queue->process;
	is($queue->states(@ids), 'done done', "$name: they go when it is mended");
}

# An error while an answer is settled, such as a disk that is full: the requests
# that are in flight are not sent a second time.
SKIP:
{
	skip 'built without TESTING=1', 6 unless $queue->sql("SELECT count(*) FROM pg_settings WHERE name = 'doubletick.fault_point'");
	$queue->fresh;
	my @phones = map { sprintf '1415555%04d', $_ } 1 .. 40;
	my @ids = map { $queue->enqueue($_, ['lead']) } @phones;
	my $session = $queue->node->background_psql('postgres', on_error_stop => 0);
	$session->query_until(qr/on its way/,
		"SET doubletick.fault_point = 'error:settling';\n\\echo on its way\nCALL dt_process_queue();\n");

	eventually(sub { ($queue->status('doubletick')->{held} // '') =~ /fault point "settling"/ }, 'an error in settling holds the server and role');
	my $sent = () = $queue->requests(@phones);
	eventually(sub { $queue->sql("SELECT count(*) FROM dt_hold WHERE probe_at > now()") eq '1' }, 'and is remembered');
	ok($sent <= 16, "no more than max_connections requests have left: $sent");
	is($queue->states(@ids), join(' ', ('waiting') x @ids), 'no removal is lost');
	is(scalar(() = $queue->requests(@phones)), $sent, 'and none is sent again');
	$queue->node->psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL dt_process_queue%'");
	$queue->await($session);

	$queue->sql('ALTER SERVER doubletick OPTIONS (ADD retry_for \'2d\')');
	$queue->process;
	is($queue->states(@ids), join(' ', ('done') x @ids), 'all go when there is room again');
}

done_testing();


# Whatever ends a drain, and whenever: what was committed is received, what was
# rolled back is not, and only what was in flight may be received twice. The
# sandbox's journal tells. And how a drain stands beside other sessions.

use strict;
use warnings;

use File::Basename qw(dirname);
use List::Util qw(max sum0);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;

my $max_connections = 4;
my $nrows = 40;

# That which is broken off must be so at once; the machine may be busy, but a
# drain that waits for its requests would take a minute.
my $at_once = 5;

my $calls = Calls->new(
	options => { timeout => '1min', max_connections => $max_connections },
	conf => <<'CONF');
restart_after_crash = on
# Only commits write WAL out.
wal_writer_delay = 10s
autovacuum = off
CONF
my $sb = $calls->sandbox;
my $node = $calls->node;

# Enqueues a row each for so many customers, of which every fourth is rolled
# back; returns the phones that are to be received, and those that are not.
sub enqueue
{
	my ($from, $n) = @_;
	my (@committed, @rolled);
	my $sql = '';

	foreach my $i ($from .. $from + $n - 1)
	{
		my $phone = sprintf '91987%07d', $i;
		my $rolled = $i % 4 == 3;

		push @{ $rolled ? \@rolled : \@committed }, $phone;
		$sql .= 'BEGIN; ' . removal($phone, ['lead']) =~ s/dt_remove/dt_enqueue_remove/r
		  . ($rolled ? '; ROLLBACK; ' : '; COMMIT; ');
	}
	$calls->sql($sql);
	return (\@committed, \@rolled);
}

# How often each phone was received.
sub received
{
	my %received;

	$received{ $_->{body}{phone} }++ foreach @{ $sb->journal };
	return \%received;
}

# Drains in a session of its own: what it says, and psql's status.
sub drain
{
	my (@settings) = @_;
	my $stderr;
	my $status = $node->psql('postgres', join('', map { "SET $_;\n" } @settings) . "CALL dt_process_queue();\n",
		stderr => \$stderr);

	return ($stderr, $status);
}

# A session that drains, and its process id.
sub draining
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');

	$session->query('\set VERBOSITY verbose');
	$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
	return ($session, $pid);
}

# Killed at a place that was passed so often before, perhaps with some requests
# that are slow, and then drained to the end.
my $next_phone = 0;

sub killed
{
	my ($place, $skip, %with) = @_;
	my $name = "$place, $skip" . ($with{rule} ? ', slow' : '');
	my ($committed, $rolled) = enqueue($next_phone, $nrows);

	$next_phone += $nrows;
	$sb->clear_rules;
	$sb->rule('*', $with{rule}) if $with{rule};
	$sb->clear_journal;
	my ($said, $status) = drain("doubletick.fault_point = '$place'", "doubletick.fault_point_skip = $skip");
	is($status, 2, "$name: the session is gone");
	like($said, qr/server closed the connection|terminating connection/, "$name: killed") or return;
	eventually(sub { $node->psql('postgres', 'SELECT 1') == 0 }, "$name: the cluster is up again");

	# What has arrived and is not settled has arrived in vain.
	eventually(sub { $sb->stats->{in_flight} == 0 }, "$name: its connections are closed");
	my $before = received();
	my $settled = $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done'
		AND phone IN (" . join(',', map { quote($_) } @$committed) . ')');
	my $unsettled = keys(%$before) - $settled;
	cmp_ok($unsettled, '>=', 0, "$name: what is settled was received");
	cmp_ok($unsettled, '<=', $max_connections, "$name: at most what was in flight is not settled");

	$sb->clear_rules;
	($said, $status) = drain();
	is($status, 0, "$name: drained then") or diag($said);
	my $after = received();
	is(scalar(grep { !$after->{$_} } @$committed), 0, "$name: nothing is lost");
	is(scalar(grep { $after->{$_} } @$rolled), 0, "$name: what was rolled back is not sent");
	cmp_ok(max(0, values %$after), '<=', 2, "$name: none goes a third time");
	is(sum0(values %$after) - @$committed, $unsettled, "$name: only what was not settled goes twice");
	is($calls->sql("SELECT count(*), count(DISTINCT phone), count(*) FILTER (WHERE state <> 'done' OR attempts <> 1)
		FROM dt_history WHERE phone IN (" . join(',', map { quote($_) } @$committed) . ')'),
		@$committed . '|' . @$committed . '|0', "$name: each is settled once");
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', "$name: nothing waits");
	is($calls->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', "$name: no lock is left");
	return ($unsettled, scalar keys %$before);
}

sub killed_everywhere
{
	my %unsettled;
	my %received;

	foreach my $place ('after reading', 'after sending', 'before settling', 'after settling')
	{
		foreach my $skip (0, 3)
		{
			my ($unsettled, $received) = killed($place, $skip);
			$unsettled{$place} = max($unsettled{$place} // 0, $unsettled // 0);
			$received{"$place, $skip"} = $received;
		}
	}
	killed('before settling', 2, rule => { delay_ms => 100 });
	killed('after settling', 1, rule => { delay_ms => 50 });

	# The places are what they are called.
	is($received{'after reading, 0'}, 0, 'after reading: nothing has left');
	is($received{'before settling, 0'}, 0, 'before settling for the first time: nothing has left');
	cmp_ok($received{'before settling, 3'}, '>', 0, 'before settling, later: something has');
	cmp_ok($unsettled{'before settling'}, '>', 0, 'before settling: something is not settled');
	cmp_ok($received{'after settling, 0'} // 0, '>', 0, 'after settling: something has left');
	return;
}

# The machine may crash rather than the process: what is settled is on disk.
sub flushed
{
	enqueue($next_phone, 1);
	$next_phone += 4;
	is($calls->sql(<<'SQL'), 't|0', 'settling does not trust synchronous_commit');
SET synchronous_commit = off;
SELECT pg_current_wal_insert_lsn() AS before \gset
CALL dt_process_queue();
SELECT pg_current_wal_flush_lsn() > :'before', count(*) FROM dt_waiting;
SQL
	return;
}

sub not_in_a_transaction
{
	my %within = (
		'a transaction block' => [ '25001', "BEGIN;\nCALL dt_process_queue();" ],
		'a statement of several' => [ '25001', 'SELECT 1\; CALL dt_process_queue();' ],
		'a function' => [ '25001', 'SELECT drain_by_function();' ],
		'DO in a transaction block' => [ '25001', "BEGIN;\nDO 'BEGIN CALL dt_process_queue(); END';" ],
		'a block that catches errors' => [ '(?:25001|2D000)',
			"DO 'BEGIN CALL dt_process_queue(); EXCEPTION WHEN division_by_zero THEN NULL; END';" ],
		'a procedure with settings' => [ '25001', 'CALL drain_with_settings();' ],);
	my $phone = sprintf '91987%07d', $next_phone;

	enqueue($next_phone, 1);
	$next_phone += 4;
	$calls->sql(<<'SQL');
CREATE FUNCTION drain_by_function() RETURNS void LANGUAGE plpgsql AS 'BEGIN CALL dt_process_queue(); END';
CREATE PROCEDURE drain_with_settings() LANGUAGE plpgsql SET search_path = public AS 'BEGIN CALL dt_process_queue(); END';
SQL
	$sb->clear_journal;
	foreach my $what (sort keys %within)
	{
		my ($sqlstate, $sql) = @{ $within{$what} };
		my $stderr;

		$node->psql('postgres', "\\set VERBOSITY verbose\n$sql", stderr => \$stderr);
		like($stderr, qr/ERROR:  $sqlstate: /, "in $what");
		is($calls->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', "in $what: no lock is left");
	}
	is(received()->{$phone}, undef, 'none of these sends anything');
	$calls->sql("DO 'DECLARE i record; BEGIN FOR i IN SELECT generate_series(1, 2) LOOP CALL dt_process_queue(); END LOOP; END'");
	is(received()->{$phone}, 1, 'DO by itself does');
	return;
}

# Requests that hang, and a drain that waits for them.
sub hanging
{
	my ($committed) = enqueue($next_phone, 4);

	$next_phone += 4;
	$sb->clear_rules;
	$sb->clear_journal;
	$sb->clear_stats;
	$sb->rule('*', { fault => 'hang' });
	my ($session, $pid) = draining();
	eventually(sub { $sb->stats->{in_flight} == @$committed }, 'requests are out');
	return ($session, $pid, $committed);
}

sub still_waiting
{
	my ($committed, $name) = @_;

	is($calls->sql('SELECT count(*), max(attempts), count(*) FILTER (WHERE due_at <= now()) FROM dt_queue'),
		@$committed . '|0|' . @$committed, "$name: the rows wait, unattempted and due");
	is($calls->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', "$name: no lock is left");
	eventually(sub { $sb->stats->{in_flight} == 0 }, "$name: its connections are closed");
	return;
}

sub interrupted
{
	my ($session, $pid, $committed) = hanging();

	# Meanwhile it is in nobody's way.
	is($calls->sql("SELECT backend_xid IS NULL, backend_xmin IS NULL, state FROM pg_stat_activity WHERE pid = $pid"),
		't|t|active', 'no xid and no xmin while requests are out');
	is($calls->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND locktype = 'relation'"), '0', 'and no lock of a table');
	my $begin = time;
	$calls->sql('CREATE DATABASE other');
	$calls->sql('DROP DATABASE other');
	cmp_ok(time - $begin, '<', 10 * $at_once, 'DROP DATABASE goes through');
	is($calls->sql('SELECT waiting, in_flight FROM dt_status'), @$committed . '|' . @$committed, 'dt_status tells what is in flight');
	$calls->sql('VACUUM dt_waiting');

	# A second one says so, and does nothing.
	my ($said, $status) = drain();
	is($status, 0, 'a second CALL succeeds');
	like($said, qr/NOTICE:  another session drains the queue of this database/, 'and says why it does nothing');
	unlike($said, qr/queue: /, 'and nothing else');
	is(scalar @{ $sb->journal }, scalar @$committed, 'and sends nothing');

	# In another database there is another queue.
	$calls->sql('CREATE DATABASE second');
	$calls->set_up('second');
	$calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('14155550100', '{lead}')", database => 'second');
	$sb->rule('14155550100', { status => 201 });
	$calls->sql('CALL dt_process_queue()', database => 'second');
	is(received()->{14155550100}, 1, 'another database has its own drain');

	# cancel
	$begin = time;
	$calls->sql("SELECT pg_cancel_backend($pid)");
	like(($session->query("SELECT 'it answers'"))[0], qr/it answers/, 'cancelled');
	cmp_ok(time - $begin, '<', $at_once, 'cancelled: at once');
	like($session->{stderr}, qr/ERROR:  57014: canceling statement due to user request/, 'cancelled: by the core');
	still_waiting($committed, 'cancelled');

	# The same session goes on to do it.
	$sb->clear_rules;
	$session->query('CALL dt_process_queue()');
	is_deeply(received(), { (map { $_ => 2 } @$committed), 14155550100 => 1 }, 'cancelled: the next CALL sends them again');
	$session->quit;

	# statement_timeout
	($committed) = enqueue($next_phone, 4);
	$next_phone += 4;
	$sb->rule('*', { fault => 'hang' });
	($said) = drain("statement_timeout = '500ms'");
	like($said, qr/canceling statement due to statement timeout/, 'timed out');
	still_waiting($committed, 'timed out');
	$sb->clear_rules;
	drain();

	# terminate
	($session, $pid, $committed) = hanging();
	$begin = time;
	$calls->sql("SELECT pg_terminate_backend($pid)");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid") eq '0' }, 'terminated');
	cmp_ok(time - $begin, '<', $at_once, 'terminated: at once');
	eval { $session->quit };
	still_waiting($committed, 'terminated');
	$sb->clear_rules;
	drain();
	is_deeply(received(), { map { $_ => 2 } @$committed }, 'terminated: the next CALL sends them again');
	return;
}

# What it works on may go while it waits.
sub dropped
{
	my ($session, $pid);

	$sb->clear_rules;
	$sb->rule('14155550101', { fault => 'hang' });
	$sb->clear_stats;
	$calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('14155550101', '{lead}')", database => 'second');
	$session = $node->background_psql('second', on_error_stop => 0);
	$session->query('\set VERBOSITY verbose');
	$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
	eventually(sub { $sb->stats->{in_flight} == 1 }, 'a request of another database is out');
	$calls->sql('DROP EXTENSION doubletick CASCADE', database => 'second');
	like(($session->query("SELECT 'it answers'"))[0], qr/it answers/, 'DROP EXTENSION ends the drain');
	like($session->{stderr}, qr/ERROR:  42P01: /, 'with an error');
	$session->quit;
	is($calls->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', 'and no lock is left');
	$calls->sql('DROP DATABASE second');
	$sb->clear_rules;
	return;
}

# One slow answer holds up no others, and there are never more out than allowed.
sub slots
{
	my ($committed) = enqueue($next_phone, $nrows);
	my $slow = $committed->[0];

	$next_phone += $nrows;
	$sb->clear_rules;
	$sb->clear_journal;
	$sb->clear_stats;
	$sb->rule($slow, { fault => 'hang' });
	my ($session, $pid) = draining();
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_waiting') eq '1' }, 'all others are settled while one hangs');
	is($calls->sql('SELECT waiting, in_flight FROM dt_status'), '1|1', 'which still is out');
	$calls->sql("SELECT pg_cancel_backend($pid)");
	$session->query('SELECT 1');
	$session->quit;

	enqueue($next_phone, $nrows);
	$next_phone += $nrows;
	$sb->clear_rules;
	$sb->rule('*', { delay_ms => 20 });
	drain();
	is($sb->stats->{max_in_flight}, $max_connections, 'as many are out as allowed, and no more');
	$sb->clear_rules;
	return;
}

# What it says to a person.
sub told
{
	my ($said) = drain();
	like($said, qr/^.*NOTICE:  queue: 0 done, 0 failed, 0 left, 0\.0 per second$/m, 'nothing to do');
	unlike($said, qr/HINT|DETAIL/, 'and nothing to see');

	my ($committed) = enqueue($next_phone, 24);
	$next_phone += 24;
	$sb->clear_rules;
	$sb->customer($_, ['lead']) foreach @$committed[ 0 .. 9 ];
	$sb->rule($committed->[0], { status => 400 });
	$sb->rule($committed->[1], { status => 503, retry_after => '3000' });
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '3')");
	my $begin = time;
	($said) = drain();
	my $took = time - $begin;
	cmp_ok($took, '>', 5, 'a run of some seconds');
	like($said, qr/NOTICE:  queue: (?:[1-9]\d*) done, 1 failed, (?:[1-9]\d*) left, \d+\.\d per second, \d+ s to go/, 'tells of its progress');
	my @told = $said =~ /NOTICE:  queue/g;
	cmp_ok(scalar @told, '<=', 2 + $took / 4, 'at a bearable pace');
	like($said, qr/NOTICE:  queue: 16 done, 1 failed, 1 left, \d+\.\d per second$/m, 'and at the end of all');
	like($said, qr/DETAIL:  For 8 of those done, DoubleTick could not remove some names/, 'of names that were not removed');
	like($said, qr/HINT:  What is left is not due, or is held: see dt_status/, 'and of what is left');
	is($calls->sql('SELECT waiting, due, done >= 16, failed FROM dt_status'), '1|0|t|1', 'as dt_status does');
	return;
}

SKIP:
{
	skip 'the library is built without TESTING=1', 1 unless is_testing_build($node);
	killed_everywhere();
}
flushed();
not_in_a_transaction();
interrupted();
dropped();
slots();
told();
done_testing;


# Whatever ends a drain, and whenever: removals that were committed are sent, those
# that were rolled back are not, and only requests that were in flight may be sent
# twice, as the sandbox's journal shows. Also, how a drain gets on with other sessions.

use strict;
use warnings;

use File::Basename qw(dirname);
use List::Util qw(max sum0);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;
use Queue;

my $max_connections = 4;
my $nrows = 40;

# A drain that is interrupted must end at once: within so many seconds, since the
# machine may be busy. One that waits for its requests would take a minute.
my $at_once = 5;

open_queue(
	options => { max_connections => $max_connections },
	conf => <<'CONF');
restart_after_crash = on
# Only commits write WAL out.
wal_writer_delay = 10s
autovacuum = off
CONF

# Enqueues a row for each of so many new customers, and rolls every fourth one back.
# Returns the phones of those that are committed, and of those that are rolled back.
sub enqueue_some
{
	my ($n) = @_;
	my (@committed, @rolled);
	my $sql = '';

	foreach my $i (0 .. $n - 1)
	{
		my $phone = new_phone();
		my $rolled = $i % 4 == 3;

		push @{ $rolled ? \@rolled : \@committed }, $phone;
		$sql .= 'BEGIN; ' . enqueueing($phone, ['lead']) . ($rolled ? '; ROLLBACK; ' : '; COMMIT; ');
	}
	$calls->sql($sql);
	return (\@committed, \@rolled);
}

# How often a request to each phone was received.
sub times_received
{
	my %received;

	$received{ $_->{body}{phone} }++ foreach @{ $sb->journal };
	return \%received;
}

# A drain is killed at a fault point that it has passed so often before, perhaps with
# answers that are slow; then another one drains the rest.
sub killed
{
	my ($place, $skip, %with) = @_;
	my $name = "$place, $skip" . ($with{rule} ? ', slow' : '');
	my ($committed, $rolled) = enqueue_some($nrows);

	$sb->clear_rules;
	$sb->rule('*', $with{rule}) if $with{rule};
	$sb->clear_journal;
	my $log = -s $node->logfile;
	my $said = drain(before => "SET doubletick.fault_point = '$place'; SET doubletick.fault_point_skip = $skip", fails => 1);
	like($said, qr/server closed the connection|terminating connection/, "$name: killed") or return;

	# For a moment it takes connections although it is about to restart.
	eventually(sub { slurp_file($node->logfile, $log) =~ /ready to accept connections/ && $node->psql('postgres', 'SELECT 1') == 0 },
		"$name: the cluster is up again");

	# Requests that were received, but not settled, will be sent again.
	eventually(sub { $sb->stats->{in_flight} == 0 }, "$name: its connections are closed");
	my $before = times_received();
	my $settled = $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done'
		AND phone IN (" . join(',', map { quote($_) } @$committed) . ')');
	my $unsettled = keys(%$before) - $settled;
	cmp_ok($unsettled, '>=', 0, "$name: all that is settled was received");
	cmp_ok($unsettled, '<=', $max_connections, "$name: no more than can be in flight is not settled");

	$sb->clear_rules;
	drain();
	my $after = times_received();
	is(scalar(grep { !$after->{$_} } @$committed), 0, "$name: nothing is lost");
	is(scalar(grep { $after->{$_} } @$rolled), 0, "$name: rows that were rolled back are not sent");
	cmp_ok(max(0, values %$after), '<=', 2, "$name: nothing is sent a third time");
	is(sum0(values %$after) - @$committed, $unsettled, "$name: only what was not settled is sent twice");
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

	# The fault points are where their names say.
	is($received{'after reading, 0'}, 0, 'after reading: nothing has left');
	is($received{'before settling, 0'}, 0, 'before settling for the first time: nothing has left');
	cmp_ok($received{'before settling, 3'}, '>', 0, 'before settling, later: something has');
	cmp_ok($unsettled{'before settling'}, '>', 0, 'before settling: something is not settled');
	cmp_ok($received{'after settling, 0'} // 0, '>', 0, 'after settling: something has left');
	return;
}

# The whole machine may crash: what is settled is on disk.
sub flushed
{
	enqueue(new_phone(), ['lead']);
	is($calls->sql(<<'SQL'), 't|0', 'settling is flushed, although synchronous_commit is off');
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
	my $phone = new_phone();

	enqueue($phone, ['lead']);
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
	is(times_received()->{$phone}, undef, 'none of these sends anything');
	$calls->sql("DO 'DECLARE i record; BEGIN FOR i IN SELECT generate_series(1, 2) LOOP CALL dt_process_queue(); END LOOP; END'");
	is(times_received()->{$phone}, 1, 'DO outside of a transaction block does');
	return;
}

# A drain whose answers are held.
sub held_drain
{
	my ($committed) = enqueue_some(4);

	$sb->clear_rules;
	$sb->clear_journal;
	$sb->clear_stats;
	$sb->hold('*');
	my $drain = start_drain(before => '\set VERBOSITY verbose');
	$sb->await_held(scalar @$committed);
	return ($drain, $committed);
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
	my ($drain, $committed) = held_drain();
	my ($session, $pid) = @$drain{qw(session pid)};

	# Meanwhile it is in nobody's way.
	is($calls->sql("SELECT backend_xid IS NULL, backend_xmin IS NULL, state FROM pg_stat_activity WHERE pid = $pid"),
		't|t|active', 'no xid and no xmin while requests are out');
	is($calls->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND locktype = 'relation'"), '0', 'and no lock of a table');
	my $begin = time;
	$calls->sql('CREATE DATABASE other');
	$calls->sql('DROP DATABASE other');
	cmp_ok(time - $begin, '<', 10 * $at_once, 'DROP DATABASE does not wait for it');
	is($calls->sql('SELECT waiting, in_flight FROM dt_status'), @$committed . '|' . @$committed, 'dt_status counts what is in flight');
	$calls->sql('VACUUM dt_waiting');

	# A second CALL says so, and does nothing.
	my $said = drain();
	like($said, qr/NOTICE:  another session drains the queue of this database \(PID \d+, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d/, 'a second CALL says why it does nothing');
	$calls->sql('CREATE ROLE looker; GRANT EXECUTE ON PROCEDURE dt_process_queue TO looker');
	(undef, undef, my $seen) = $node->psql('postgres', 'SET ROLE looker; CALL dt_process_queue()');
	like($seen, qr/NOTICE:  another session drains the queue of this database \(PID \d+\)$/m, 'and not since when to whom that is not shown');
	$calls->sql('DROP OWNED BY looker; DROP ROLE looker');
	unlike($said, qr/queue: /, 'and nothing else');
	is(scalar @{ $sb->journal }, scalar @$committed, 'and sends nothing');

	# Another database has a queue of its own.
	$calls->sql('CREATE DATABASE second');
	$calls->set_up('second');
	enqueue('14155550100', ['lead'], undef, database => 'second');
	$sb->rule('14155550100', { status => 201 });
	drain(database => 'second');
	is(times_received()->{14155550100}, 1, 'another database has its own drain');

	# It is cancelled.
	$begin = time;
	$calls->sql("SELECT pg_cancel_backend($pid)");
	like(($session->query("SELECT 'it answers'"))[0], qr/it answers/, 'cancelled');
	cmp_ok(time - $begin, '<', $at_once, 'cancelled: at once');
	like($session->{stderr}, qr/ERROR:  57014: canceling statement due to user request/, 'cancelled: with the error of the core');
	still_waiting($committed, 'cancelled');

	# The same session can drain again.
	$sb->clear_rules;
	$session->query('CALL dt_process_queue()');
	is_deeply(times_received(), { (map { $_ => 2 } @$committed), 14155550100 => 1 }, 'cancelled: the next CALL sends the rows again');
	$session->quit;

	# It is ended by statement_timeout.
	($committed) = enqueue_some(4);
	$sb->hold('*');
	$said = drain(before => "SET statement_timeout = '500ms'", fails => 1);
	like($said, qr/canceling statement due to statement timeout/, 'timed out');
	still_waiting($committed, 'timed out');
	$sb->clear_rules;
	drain();

	# Its session is terminated.
	($drain, $committed) = held_drain();
	($session, $pid) = @$drain{qw(session pid)};
	$begin = time;
	$calls->sql("SELECT pg_terminate_backend($pid)");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid") eq '0' }, 'terminated');
	cmp_ok(time - $begin, '<', $at_once, 'terminated: at once');
	eval { $session->quit };
	still_waiting($committed, 'terminated');
	$sb->clear_rules;
	drain();
	is_deeply(times_received(), { map { $_ => 2 } @$committed }, 'terminated: the next CALL sends the rows again');
	return;
}

# The extension is dropped while a drain waits for an answer.
sub dropped
{
	$sb->clear_rules;
	$sb->hold('14155550101');
	$sb->clear_stats;
	enqueue('14155550101', ['lead'], undef, database => 'second');
	my $drain = start_drain(database => 'second', before => '\set VERBOSITY verbose');
	$sb->await_held(1);
	$calls->sql('DROP EXTENSION doubletick CASCADE', database => 'second');
	like(await_drain($drain), qr/ERROR:  42P01: /, 'DROP EXTENSION ends the drain with an error');
	is($calls->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', 'and no lock is left');
	$calls->sql('DROP DATABASE second');
	$sb->clear_rules;
	return;
}

# DROP EXTENSION locks the sequence before dt_waiting: a drain that needs both waits for
# neither while it holds the other.
sub sequence_locked_first
{
	$sb->clear_rules;
	my $phone = new_phone();
	my $session = $node->background_psql('postgres');
	$sb->hold($phone);
	my $id = enqueue($phone, ['lead']);
	my $drain = start_drain();
	$sb->await_held(1);
	# So that the session finds a deadlock before the drain does, which would go on.
	$session->query_safe("SET deadlock_timeout = '10ms'; BEGIN; ALTER SEQUENCE dt_waiting_id_seq RENAME TO renamed");
	$sb->release;
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_locks WHERE pid = $drain->{pid} AND relation = 'dt_waiting_id_seq'::regclass AND NOT granted") eq '1' },
		'sequence: a drain waits for it');
	is($session->query_safe('LOCK TABLE dt_waiting; SELECT 1'), '1', 'sequence: dt_waiting can be locked meanwhile');
	$session->query_safe('ROLLBACK');
	$session->quit;
	unlike(await_drain($drain), qr/ERROR/, 'sequence: then the drain goes on');
	is(states($id), 'done', 'sequence: and settles');
	$sb->clear_rules;
	return;
}

# One slow answer does not hold up the others, and no more requests are out at a time
# than max_connections.
sub slots
{
	my ($committed) = enqueue_some($nrows);
	my $slow = $committed->[0];

	$sb->clear_rules;
	$sb->clear_journal;
	$sb->clear_stats;
	$sb->hold($slow);
	my $drain = start_drain();
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_waiting') eq '1' }, 'all others are settled while one answer is held');
	is($calls->sql('SELECT waiting, in_flight FROM dt_status'), '1|1', 'which is still out');
	break_off($drain);

	enqueue_some($nrows);
	$sb->clear_rules;
	$sb->hold('*');
	$drain = start_drain();
	$sb->await_held($max_connections);
	$sb->clear_rules;
	await_drain($drain);
	is($sb->stats->{max_in_flight}, $max_connections, 'as many are out as allowed, and never more');
	return;
}

# The messages of a CALL.
sub told
{
	my $said = drain();
	like($said, qr/^.*NOTICE:  queue: 0 done, 0 failed, 0 left, 0\.0 per second$/m, 'nothing to do');
	unlike($said, qr/HINT|DETAIL/, 'and no HINT or DETAIL');

	my ($committed) = enqueue_some(24);
	$sb->clear_rules;
	$sb->customer($_, ['lead']) foreach @$committed[ 0 .. 9 ];
	$sb->rule($committed->[0], { status => 400 });
	$sb->rule($committed->[1], { status => 503, retry_after => '3000' });
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '3')");
	my $begin = time;
	$said = drain();
	my $took = time - $begin;
	cmp_ok($took, '>', 5, 'a run of some seconds');
	like($said, qr/NOTICE:  queue: (?:[1-9]\d*) done, 1 failed, (?:[1-9]\d*) left, \d+\.\d per second, \d+ s to go/, 'tells of its progress');
	my @told = $said =~ /NOTICE:  queue/g;
	cmp_ok(scalar @told, '<=', 2 + $took / 4, 'a few times, and not more');
	like($said, qr/NOTICE:  queue: 16 done, 1 failed, 1 left, \d+\.\d per second$/m, 'and of the result');
	like($said, qr/DETAIL:  For 8 of those done, DoubleTick could not remove some names/, 'of the names that were not removed');
	like($said, qr/HINT:  What is left is not due, or is held: see dt_status/, 'and of what is left');
	is($calls->sql('SELECT waiting, due, done >= 16, failed FROM dt_status'), '1|0|t|1', 'as dt_status shows it');
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
sequence_locked_first();
slots();
told();
done_testing;

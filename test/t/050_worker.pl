
# The worker: rows leave by themselves once they are committed, in whichever
# database; it comes and goes with the work, and shows what it does.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new(options => { timeout => '5min' }, conf => "max_prepared_transactions = 5\nmax_worker_processes = 12\n");
my $node = $calls->node;
my $sb = $calls->sandbox;

sub woken_at_commit
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	# Nothing leaves before the commit; what leaves after it was not waited for.
	$session->query_safe('BEGIN; ' . enqueue('committed') . ';');
	$calls->sql(enqueue('before', 2));
	eventually(sub { $calls->has_sent('before') }, 'a committed row is sent without a CALL');
	is($calls->has_sent('committed'), 0, 'one that is not yet committed is not');
	my $begin = time;
	$session->query_safe('COMMIT');
	eventually(sub { $calls->has_sent('committed') }, 'the commit sends it');
	cmp_ok(time - $begin, '<', 5, 'at once');

	$session->query_safe('BEGIN; ' . enqueue('rolled_back') . '; ROLLBACK;');
	$session->query_safe('BEGIN; ' . enqueue('kept', 3) . '; SAVEPOINT s; ' . enqueue('undone', 4)
		  . '; ROLLBACK TO s; COMMIT;');
	$session->query(enqueue('failed', 5) . ', 1/0');
	eventually(sub { $calls->has_sent('kept') }, 'what was committed after a rollback is sent');
	is(join(' ', $calls->sent), 'before committed kept', 'what was rolled back is not, nor what was undone or failed');
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done'") eq '3' }, 'all is settled');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'and nothing waits');
	$session->{stderr} = '';
	$session->quit;
	return;
}

# From an idle worker: as fast as a session can see it.  The median of several,
# for the machine may be busy.
sub promptly
{
	my @latency;

	for my $i (1 .. 11)
	{
		$sb->clear_journal;
		my $committed = $calls->sql(enqueue("prompt$i") . '; SELECT extract(epoch FROM clock_timestamp())');
		eventually(sub { $calls->has_sent("prompt$i") }, "row $i is sent");
		push @latency, $sb->journal->[0]{at} - (split /\n/, $committed)[-1];
	}
	@latency = sort { $a <=> $b } @latency;
	cmp_ok($latency[5], '<', 0.1, 'within milliseconds');
	return;
}

sub shown
{
	my ($pid) = $calls->workers('postgres');

	ok($pid, 'the worker is in pg_stat_activity');
	is($calls->sql("SELECT datname FROM pg_stat_activity WHERE pid = $pid"), 'postgres', 'with its database');
	eventually(sub { $calls->sql("SELECT state || ' ' || query FROM pg_stat_activity WHERE pid = $pid") eq 'idle idle' },
		'it says that it is idle');
	ok($calls->launcher, 'so is the launcher');

	$sb->rule('919876500009', { fault => 'hang' });
	$calls->sql(enqueue('hanging', 9));
	eventually(sub { $calls->sql("SELECT state || ' ' || query FROM pg_stat_activity WHERE pid = $pid") eq 'active sending' },
		'and when it sends');
	eventually(sub { $calls->sql('SELECT worker_state || in_flight FROM dt_status') eq 'sending1' }, 'dt_status says it, too');
	is($calls->sql('SELECT worker_pid FROM dt_status'), $pid, 'its pid');
	is($calls->sql("SELECT worker_since BETWEEN pg_postmaster_start_time() AND now() FROM dt_status"), 't', 'since when');
	is($calls->sql("SELECT worker_error FROM dt_status"), '', 'no error');

	# While one hangs, others go.
	$sb->rule('919876500010', { status => 422 });
	eventually(sub { $calls->sql('SELECT sent_per_minute FROM dt_status') >= 14 }, 'what was sent in the last minute');
	my ($sent, $failed) = split /\|/, $calls->sql('SELECT sent_per_minute, failed_per_minute FROM dt_status');
	is($failed, '0', 'none failed');
	$calls->sql(enqueue('refused', 10));
	eventually(sub { $calls->sql('SELECT failed_per_minute FROM dt_status') eq '1' }, 'a failed one is counted');
	is($calls->sql('SELECT sent_per_minute FROM dt_status'), $sent + 1, 'as one that was sent');
	is($calls->sql('SELECT waiting FROM dt_status'), '1', 'the other one hangs on');
	return;
}

# An abort gives way to the next: the hanging row goes with another process.
sub terminated
{
	my ($pid) = $calls->workers('postgres');
	my $launcher = $calls->launcher;

	$sb->clear_rules;
	$calls->sql("SELECT pg_terminate_backend($pid)");
	eventually(sub { $calls->has_sent('hanging') == 2 }, 'a worker that was terminated is replaced, and sends again');
	isnt(($calls->workers('postgres'))[0], $pid, 'by another process');
	eventually(sub { $calls->waiting eq '0' }, 'which settles what was out');
	is($calls->sql("SELECT attempts FROM dt_history WHERE tags = '{hanging}'"), '1', 'with the attempt that was answered');

	($pid) = $calls->workers('postgres');
	$calls->sql("SELECT pg_terminate_backend($launcher)");
	eventually(sub { ($calls->launcher || $launcher) ne $launcher }, 'so is a launcher');
	is(($calls->workers('postgres'))[0], $pid, 'while the worker stays');
	$calls->sql(enqueue('without_launcher'));
	eventually(sub { $calls->has_sent('without_launcher') }, 'and works');

	# The new launcher knows of the worker that the old one started.
	$calls->sql("SELECT pg_terminate_backend($pid)");
	eventually(sub { (($calls->workers('postgres'))[0] // $pid) != $pid }, 'the new launcher replaces the worker of the old one');
	$calls->sql(enqueue('adopted'));
	eventually(sub { $calls->has_sent('adopted') }, 'which works');
	is(scalar($calls->workers('postgres')), 1, 'and is the only one');
	return;
}

sub comes_and_goes
{
	$calls->configure('doubletick.worker_idle_timeout' => '300ms');
	eventually(sub { !$calls->workers() }, 'an idle worker leaves');
	is($calls->sql('SELECT count(*) FROM dt_worker() WHERE pid IS NULL'), '1', 'and is not shown any more');
	$calls->sql(enqueue('again'));
	eventually(sub { $calls->has_sent('again') }, 'the next commit brings it back');

	# By itself, for a row whose time has come.
	$sb->rule('919876500020', { status => 503, retry_after => '2', times => 1 });
	$calls->sql(enqueue('backoff', 20));
	eventually(sub { $calls->has_sent('backoff') }, 'a row is sent and refused for now');
	eventually(sub { !$calls->workers() }, 'the worker leaves in the meantime');
	is($calls->has_sent('backoff'), 1, 'before the row is due');
	eventually(sub { $calls->has_sent('backoff') == 2 }, 'and comes back when it is due');
	my @at = map { $_->{at} } grep { $_->{body}{tags}[0] eq 'backoff' } @{ $sb->journal };
	cmp_ok($at[1] - $at[0], '>=', 2, 'not before');
	eventually(sub { $calls->sql("SELECT state FROM dt_history WHERE tags = '{backoff}'") eq 'done' }, 'which settles it');
	eventually(sub { !$calls->workers() }, 'and leaves again');
	return;
}

sub prepared
{
	eventually(sub { !$calls->workers() }, 'no worker is there');
	$calls->sql("CREATE DATABASE preparing");
	$calls->set_up('preparing');

	# In a database that never had work before, and with nobody awake.
	$calls->sql("BEGIN; " . enqueue('prepared') . "; PREPARE TRANSACTION 'one'", database => 'preparing');
	$calls->sql("BEGIN; " . enqueue('unprepared') . "; PREPARE TRANSACTION 'two'", database => 'preparing');
	$calls->sql("COMMIT PREPARED 'one'; ROLLBACK PREPARED 'two'", database => 'preparing');
	eventually(sub { $calls->has_sent('prepared') }, 'a prepared transaction that is committed is noticed');
	$calls->sql("BEGIN; " . enqueue('prepared_again') . "; PREPARE TRANSACTION 'three'", database => 'preparing');
	eventually(sub { $calls->workers('preparing') }, 'a worker looks');
	is($calls->has_sent('prepared_again'), 0, 'what is not committed stays');
	$calls->sql("COMMIT PREPARED 'three'", database => 'preparing');
	eventually(sub { $calls->has_sent('prepared_again') }, 'a later commit is noticed as well');
	is($calls->has_sent('unprepared'), 0, 'a prepared transaction that is rolled back sends nothing');
	return;
}

# Several databases at once, and all of them found after a restart, in which two
# that are busy must not keep the others waiting.
sub several_databases
{
	my @databases = map { "db$_" } 1 .. 5;

	for my $database (@databases)
	{
		$calls->sql("CREATE DATABASE $database");
		$calls->set_up($database);
	}
	$calls->sql(enqueue("in_$_"), database => $_) foreach @databases;
	for my $database (@databases)
	{
		eventually(sub { $calls->has_sent("in_$database") }, "$database is served");
	}
	eventually(sub { !$calls->workers() }, 'and left alone again');

	# Nobody is awake when these come in: doubletick.enabled is off there.
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	$sb->rule('919876500030', { fault => 'hang' });
	for my $database (@databases)
	{
		$calls->sql("ALTER DATABASE $database SET doubletick.enabled = off");
		$calls->sql(enqueue("hanging_$database", 30), database => $database) if $database =~ /[12]/;
		$calls->sql(enqueue("found_$database"), database => $database);
	}
	$node->stop('fast');
	$sb->clear_journal;
	$node->start;
	$calls->sql("ALTER DATABASE $_ RESET doubletick.enabled") foreach @databases;
	for my $database (@databases)
	{
		eventually(sub { $calls->has_sent("found_$database") }, "the row of $database is found after a restart");
	}
	$sb->clear_rules;
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_worker() WHERE pid IS NOT NULL') eq '0' },
		'a database without work is not held on to');
	return;
}

# A session may drain as well: one at a time, and then the other.
sub with_a_call
{
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	$sb->rule('919876500040', { delay_ms => 1500 });
	$calls->sql(enqueue('slow', 40));
	eventually(sub { $calls->has_sent('slow') }, 'the worker drains');
	my ($out, $err);
	$node->psql('postgres', 'CALL dt_process_queue()', stdout => \$out, stderr => \$err);
	like($err, qr/NOTICE:  another session drains the queue/, 'a CALL then says so');
	is($calls->has_sent('slow'), 1, 'and sends nothing');
	eventually(sub { $calls->waiting eq '0' }, 'the worker ends its work');

	# The other way round: the worker cannot leave before it has seen the row.
	$sb->rule('919876500041', { fault => 'hang' });
	my ($pid) = $calls->workers('postgres');
	$calls->configure('doubletick.worker_idle_timeout' => '300ms');
	eventually(sub { !$calls->workers('postgres') }, 'the worker has left');
	$calls->sql("ALTER DATABASE postgres SET doubletick.enabled = off");
	$calls->sql(enqueue('called', 41));
	eventually(sub { !$calls->workers('postgres') }, 'the row does not concern it');
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query('SET doubletick.enabled = on');
	$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
	eventually(sub { $calls->has_sent('called') }, 'a CALL drains');
	$calls->sql("ALTER DATABASE postgres RESET doubletick.enabled");
	$calls->sql(enqueue('while_called', 42));
	eventually(sub { $calls->sql('SELECT state FROM dt_worker()') eq 'waiting for another session that drains'
		  or $calls->has_sent('while_called') }, 'a worker then waits, if it is there');
	eventually(sub { $calls->has_sent('while_called') }, 'the CALL takes what comes in');
	$calls->sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%'");
	eventually(sub { $calls->has_sent('called') == 2 }, 'after the CALL the worker goes on');
	$sb->clear_rules;
	$session->query('SELECT 1');
	$session->{stderr} = '';
	$session->quit;
	return;
}

woken_at_commit();
promptly();
shown();
terminated();
comes_and_goes();
prepared();
several_databases();
with_a_call();
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;

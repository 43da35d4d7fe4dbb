
# The worker sends what is committed, in every database.  It comes and goes with
# the work, and it shows what it does.

use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;
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

	$session->query_safe('BEGIN; ' . enqueue('committed') . ';');
	$calls->sql(enqueue('before', 2));
	eventually(sub { $calls->has_sent('before') }, 'a committed row is sent without a CALL');
	is($calls->has_sent('committed'), 0, 'one that is not committed is not sent');
	my $begin = time;
	$session->query_safe('COMMIT');
	eventually(sub { $calls->has_sent('committed') }, 'after the commit it is sent');
	# A launcher that nobody wakes looks after a minute.
	cmp_ok(time - $begin, '<', 30, 'without waiting for the next look');

	$session->query_safe('BEGIN; ' . enqueue('rolled_back') . '; ROLLBACK;');
	$session->query_safe('BEGIN; ' . enqueue('kept', 3) . '; SAVEPOINT s; ' . enqueue('undone', 4)
		  . '; ROLLBACK TO s; COMMIT;');
	$session->query(enqueue('failed', 5) . ', 1/0');
	eventually(sub { $calls->has_sent('kept') }, 'a row is sent although a savepoint was rolled back');
	is(join(' ', $calls->sent), 'before committed kept', 'rows that were rolled back, with their transaction, a savepoint or a failed statement, are not');
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done'") eq '3' }, 'all that was sent is settled');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'and nothing waits');
	$session->{stderr} = '';
	$session->quit;
	return;
}

# How long after the commit an idle worker sends.
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
	diag(join ' ', map { sprintf '%.1f', $_ * 1000 } @latency);
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
	ok($calls->launcher, 'the launcher is in pg_stat_activity, too');

	$sb->rule('919876500009', { fault => 'hang' });
	$calls->sql(enqueue('hanging', 9));
	eventually(sub { $calls->sql("SELECT state || ' ' || query FROM pg_stat_activity WHERE pid = $pid") eq 'active sending' },
		'and that it sends');
	eventually(sub { $calls->sql('SELECT worker_state || in_flight FROM dt_status') eq 'sending1' }, 'dt_status says that it sends, and one request is in flight');
	is($calls->sql('SELECT worker_pid FROM dt_status'), $pid, 'dt_status has its pid');
	is($calls->sql("SELECT worker_since BETWEEN pg_postmaster_start_time() AND now() FROM dt_status"), 't', 'since when it runs');
	is($calls->sql("SELECT worker_error FROM dt_status"), '', 'and no error');

	# While one request hangs, others are sent.
	$sb->rule('919876500010', { status => 422 });
	eventually(sub { $calls->sql('SELECT sent_per_minute FROM dt_status') > 0 }, 'dt_status counts what was sent in the last minute');
	is($calls->sql('SELECT failed_per_minute FROM dt_status'), '0', 'and that none failed');
	$calls->sql(enqueue('refused', 10));
	eventually(sub { $calls->sql('SELECT failed_per_minute FROM dt_status') eq '1' }, 'it counts one that failed');
	is($calls->sql('SELECT waiting FROM dt_status'), '1', 'the request that hangs still waits');
	return;
}

# A worker that is terminated is replaced, and so is the launcher.
sub terminated
{
	my ($pid) = $calls->workers('postgres');
	my $launcher = $calls->launcher;

	$sb->clear_rules;
	$calls->sql("SELECT pg_terminate_backend($pid)");
	eventually(sub { $calls->has_sent('hanging') == 2 }, 'after the worker is terminated, its request is sent again');
	isnt(($calls->workers('postgres'))[0], $pid, 'by another process');
	eventually(sub { $calls->waiting eq '0' }, 'which settles what waits');
	is($calls->sql("SELECT attempts FROM dt_history WHERE tags = '{hanging}'"), '1', 'only the attempt that was answered is counted');

	($pid) = $calls->workers('postgres');
	$calls->sql("SELECT pg_terminate_backend($launcher)");
	eventually(sub { ($calls->launcher || $launcher) ne $launcher }, 'a launcher that is terminated is replaced');
	is(($calls->workers('postgres'))[0], $pid, 'while the worker stays');
	$calls->sql(enqueue('without_launcher'));
	eventually(sub { $calls->has_sent('without_launcher') }, 'and sends');

	# The new launcher knows of the worker that the old one started. The lock keeps the
	# next one from its first turn.
	my $locker = $node->background_psql('postgres');
	$locker->query_safe('BEGIN; LOCK TABLE dt_waiting IN SHARE MODE');
	$calls->sql("SELECT pg_terminate_backend($pid)");
	eventually(sub { (($calls->workers('postgres'))[0] // $pid) != $pid }, 'the new launcher replaces the worker that the old one started');
	eventually(sub { $calls->sql("SELECT worker_pid <> $pid AND worker_state = 'starting' FROM dt_status") eq 't' }, 'which says that it is starting');
	$locker->query_safe('COMMIT');
	$locker->quit;
	eventually(sub { $calls->sql("SELECT worker_state FROM dt_status") eq 'idle' }, 'and then that it is idle');
	$calls->sql(enqueue('adopted'));
	eventually(sub { $calls->has_sent('adopted') }, 'which sends');
	is(scalar($calls->workers('postgres')), 1, 'and is the only one');
	return;
}

sub comes_and_goes
{
	$calls->configure('doubletick.worker_idle_timeout' => '300ms');
	eventually(sub { !$calls->workers() }, 'an idle worker leaves');
	is($calls->sql('SELECT count(*) FROM dt_worker() WHERE pid IS NULL'), '1', 'and dt_worker() does not show it any more');
	$calls->sql(enqueue('again'));
	eventually(sub { $calls->has_sent('again') }, 'the next commit brings it back');

	# The worker leaves while a row is not due, and must come back in time.  Where it
	# leaves too late, the machine is slow, and the next row waits for longer.
	my ($tag, $delay, $times_sent);
	foreach (6, 30, 150)
	{
		($tag, $delay) = ("backoff_$_", $_);
		$sb->rule('919876500020', { status => 503, retry_after => "$delay", times => 1 });
		$calls->sql(enqueue($tag, 20));
		eventually(sub { $calls->has_sent($tag) }, 'a row is sent, and is to be sent again later');
		eventually(sub { !$calls->workers() }, 'the worker leaves in the meantime');
		$times_sent = $calls->has_sent($tag);
		last if $times_sent == 1;
	}
	is($times_sent, 1, 'before the row is due');
	eventually(sub { $calls->has_sent($tag) == 2 }, 'and comes back when it is due');
	my @at = map { $_->{at} } grep { $_->{body}{tags}[0] eq $tag } @{ $sb->journal };
	cmp_ok($at[1] - $at[0], '>=', $delay, 'and not before that');
	eventually(sub { $calls->sql("SELECT state FROM dt_history WHERE tags = '{$tag}'") eq 'done' }, 'which settles it');
	eventually(sub { !$calls->workers() }, 'and leaves again');
	return;
}

sub prepared
{
	eventually(sub { !$calls->workers() }, 'no worker is there');
	$calls->sql("CREATE DATABASE preparing");
	$calls->set_up('preparing');

	# In a database that never had work before, and while no worker runs.
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

# The worker serves several databases at once.  After a restart it finds those with
# work, and two whose requests hang do not keep the others waiting.
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
	# No worker sends what comes next before the restart: doubletick.enabled is off there, and
	# one that has begun before that has left.
	$calls->sql("ALTER DATABASE $_ SET doubletick.enabled = off") foreach @databases;
	eventually(sub { !$calls->workers() }, 'and the workers leave');
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	$sb->rule('919876500030', { fault => 'hang' });
	for my $database (@databases)
	{
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
		'no worker stays in a database without work');
	return;
}

# A CALL and the worker do not drain at the same time.
sub with_a_call
{
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	$sb->rule('919876500040', { hold => JSON::PP::true });
	$calls->sql(enqueue('slow', 40));
	$sb->await_held(1);
	my ($out, $err);
	$node->psql('postgres', 'CALL dt_process_queue()', stdout => \$out, stderr => \$err);
	like($err, qr/NOTICE:  another session drains the queue/, 'a CALL says that the worker drains');
	is($calls->has_sent('slow'), 1, 'and sends nothing');
	$sb->clear_rules;
	eventually(sub { $calls->waiting eq '0' }, 'the worker ends its work');

	# The other way round.  A worker can start only after the CALL has begun: until
	# then the database takes no connections.
	$sb->rule('919876500041', { fault => 'hang' });
	$calls->configure('doubletick.worker_idle_timeout' => '300ms');
	eventually(sub { !$calls->workers('postgres') }, 'the worker has left');
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$calls->sql('ALTER DATABASE postgres ALLOW_CONNECTIONS false', database => 'template1');
	$session->query_safe(enqueue('called', 41));
	$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
	eventually(sub { $calls->has_sent('called') }, 'a CALL drains');
	$calls->sql('ALTER DATABASE postgres ALLOW_CONNECTIONS true', database => 'template1');
	$calls->sql(enqueue('while_called', 42));
	eventually(sub { $calls->sql('SELECT state FROM dt_worker()') eq 'waiting for another session that drains' },
		'a worker that comes waits for the CALL');
	eventually(sub { $calls->has_sent('while_called') }, 'the CALL sends what comes in');
	$calls->sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%'");
	eventually(sub { $calls->has_sent('called') == 2 }, 'after the CALL is cancelled, the worker sends again what was in flight');
	$sb->clear_rules;
	$session->query('SELECT 1');
	$session->{stderr} = '';
	$session->quit;
	return;
}

# Keeps of a customer whose last removal is cancelled go, although the worker stays.
sub needless_keeps
{
	my $kept = Worker::phone(51);

	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	$calls->server('later', delay => '3s');
	my $id = $calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$kept', '{a,b}', server => 'later')");
	$calls->sql("SELECT dt_keep('$kept', '{a}', server => 'later')");

	# Rows are found in the order of their ids.
	$calls->sql(enqueue('after_keep', 52));
	eventually(sub { $calls->has_sent('after_keep') }, 'the worker has found a keep');
	my ($worker) = $calls->workers('postgres');
	is($calls->sql("SELECT dt_cancel($id)"), 't', 'its removal is cancelled');
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_waiting WHERE phone = '$kept'") eq '0' }, 'the keep goes, too');
	is(($calls->workers('postgres'))[0], $worker, 'with the same worker');
	return;
}

# What is rolled back wakes nobody, nor does the session's next transaction.
sub rolled_back
{
	$calls->configure('doubletick.worker_idle_timeout' => '300ms');
	foreach my $database ('undone', 'beside')
	{
		$calls->sql("CREATE DATABASE $database");
		$calls->set_up($database);
	}
	$calls->sql(enqueue('explored'), database => $_) foreach 'undone', 'beside';
	eventually(sub { $calls->has_sent('explored') == 2 && !$calls->workers }, 'all workers have left');
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	$calls->sql('BEGIN; ' . enqueue('undone') . '; ROLLBACK; SELECT 1', database => 'undone');

	# The launcher serves the databases in the order in which they came.
	$calls->sql(enqueue('beside_undone'), database => 'beside');
	eventually(sub { $calls->has_sent('beside_undone') }, 'a worker comes for what is committed');
	is(join(' ', $calls->workers('undone')), '', 'and none for what is rolled back');
	$calls->sql("DROP DATABASE $_") foreach 'undone', 'beside';
	$sb->clear_journal;
	return;
}

rolled_back();
woken_at_commit();
promptly();
shown();
terminated();
comes_and_goes();
prepared();
several_databases();
with_a_call();
needless_keeps();
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;

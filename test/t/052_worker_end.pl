
# How the worker ends and what is left in the queue then: at a fast stop, an
# immediate stop and the postmaster's death.  Where it does not run: on a standby
# and during a binary upgrade.  And what it costs to wake it many times.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new(options => { timeout => '5min' },
	conf => "wal_level = replica\nmax_wal_senders = 3\nhot_standby = on\n");
my $node = $calls->node;
my $sb = $calls->sandbox;

# Sends three requests that hang.  Returns the worker's pid.
sub hang
{
	my ($tag) = @_;

	$sb->reset;
	$sb->rule(Worker::phone($_), { fault => 'hang' }) foreach 1 .. 3;
	$calls->sql(enqueue($tag, $_)) foreach 1 .. 3;
	eventually(sub { $calls->has_sent($tag) == 3 }, "$tag: requests hang");
	return ($calls->workers)[0];
}

sub all_waits
{
	my ($tag, $what) = @_;

	is($calls->sql("SELECT count(*), sum(attempts) FROM dt_waiting WHERE tags = '{$tag}'"), '3|0',
		"$what: all rows wait, and no attempt is counted");
	return;
}

sub goes_on
{
	my ($tag, $what) = @_;

	eventually(sub { $calls->waiting eq '0' }, "$what: then they are sent");
	is($calls->sql("SELECT count(*), max(attempts) FROM dt_history WHERE tags = '{$tag}' AND state = 'done'"), '3|1',
		"$what: as the first attempt");
	return;
}

sub fast_stop
{
	hang('stopped');
	my $begin = time;
	$node->stop('fast');
	cmp_ok(time - $begin, '<', $soon, 'fast stop: it does not wait for the requests');
	$calls->configure_offline('doubletick.enabled = off');
	$node->start;
	all_waits('stopped', 'fast stop');
	$sb->clear_rules;
	$calls->configure('doubletick.enabled' => 'on');
	goes_on('stopped', 'fast stop');
	return;
}

sub immediate_stop
{
	hang('immediate');
	$node->stop('immediate');
	$sb->clear_rules;
	$node->start;
	goes_on('immediate', 'immediate stop');
	is($calls->has_sent('immediate'), 6, 'immediate stop: the requests in flight are sent twice');
	return;
}

sub postmaster_dies
{
	my $worker = hang('orphaned');
	my $launcher = $calls->launcher;
	my $lock_file = $node->data_dir . '/postmaster.pid';
	my ($postmaster) = split /\n/, slurp_file($lock_file);
	my $begin = time;

	$node->kill9;
	eventually(sub { is_gone($worker) }, "the postmaster's death ends the worker while requests hang");
	eventually(sub { is_gone($launcher) }, 'and the launcher');
	cmp_ok(time - $begin, '<', $soon, 'they do not wait for the requests');
	$sb->clear_rules;

	# Where nobody asks for the status of orphans, a dead postmaster stays a zombie,
	# and PostgreSQL takes it for one that runs.
	eventually(sub { is_gone($postmaster) }, 'the postmaster is gone');
	unlink $lock_file;
	eventually(sub { $node->start(fail_ok => 1) }, 'the server starts again');
	goes_on('orphaned', "the postmaster's death");
	return;
}

sub standby
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$node->backup('backup');
	$standby->init_from_backup($node, 'backup', has_streaming => 1);
	$standby->start;
	$calls->configure('doubletick.enabled' => 'off');
	$calls->sql(enqueue('replicated', 1));
	$node->wait_for_catchup($standby);
	$sb->reset;
	is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'doubletick%'"), '0',
		'nothing runs on a standby');
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM dt_queue'), '1', 'although a row waits there');
	is($standby->safe_psql('postgres', 'SELECT worker_pid FROM dt_status'), '', 'dt_status can be read on a standby');
	$node->stop;
	is($calls->has_sent('replicated'), 0, 'nothing is sent before the promotion');
	$standby->promote;
	eventually(sub { $calls->has_sent('replicated') }, 'after the promotion the row is sent');
	is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'doubletick%'"), '2',
		'by a worker');
	$standby->stop;
	$node->start;
	$sb->reset;
	$calls->configure('doubletick.enabled' => 'on');
	eventually(sub { $calls->waiting eq '0' }, 'the old primary sends its row, too');
	return;
}

sub binary_upgrade
{
	$sb->reset;
	$calls->configure('doubletick.enabled' => 'off');
	$calls->sql(enqueue('upgraded', 1));
	$node->stop;
	$calls->configure_offline('doubletick.enabled = on');
	command_ok([ 'pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, '-o', '-b', 'start' ], 'the server starts as pg_upgrade starts it');
	my $count = $node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'doubletick%'");
	is($count, '0', 'neither launcher nor worker runs then');
	command_ok([ 'pg_ctl', '-w', '-D', $node->data_dir, 'stop' ], 'the server stops');
	is($calls->has_sent('upgraded'), 0, 'nothing was sent');
	$node->start;
	eventually(sub { $calls->has_sent('upgraded') }, 'after the next start the row is sent');
	return;
}

# A session registers its callback once, and not in each of 20,000 transactions.
sub many_transactions
{
	my $session = $node->background_psql('postgres');
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my $many = "DO \$\$ BEGIN FOR i IN 1 .. %d LOOP PERFORM dt_enqueue_remove_tags_custom_fields("
	  . "'9198764' || lpad((i %% 1000)::text, 5, '0'), ARRAY['many' || i]); COMMIT; END LOOP; END \$\$";
	my $memory = sub {
		return $session->query_safe("SELECT sum(total_bytes) FROM pg_backend_memory_contexts WHERE name IN ('TopMemoryContext', 'CacheMemoryContext')")
		  . ' ' . memory_kb($pid, 'RssAnon');
	};

	eventually(sub { $calls->waiting eq '0' }, 'nothing waits');
	my ($worker) = ($calls->workers)[0];
	$session->query_safe(sprintf $many, 2000);
	eventually(sub { $calls->waiting eq '0' }, '2,000 transactions are sent');
	$worker = ($calls->workers)[0];
	my $worker_before = memory_kb($worker, 'RssAnon');
	my @before = split / /, $memory->();
	$session->query_safe(sprintf $many, 20000);
	my @after = split / /, $memory->();
	cmp_ok($after[0] - $before[0], '<', 65536, "the session's memory contexts do not grow over 20,000 transactions");
	cmp_ok($after[1] - $before[1], '<', 1024, 'nor does its process');
	eventually(sub { $calls->waiting eq '0' }, 'all are sent');
	cmp_ok(memory_kb($worker, 'RssAnon') - $worker_before, '<', 8192, "the worker's memory grows by less than 8 MB");
	is(($calls->workers)[0], $worker, 'the worker is the same process');
	$session->quit;
	return;
}

fast_stop();
immediate_stop();
postmaster_dies();
many_transactions();
standby();
binary_upgrade();
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;

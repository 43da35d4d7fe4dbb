
# Prepared transactions: what they have enqueued leaves soon after COMMIT
# PREPARED, whoever was there before, and a worker stays until they have ended.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Worker;

# An hour, so that nothing is found only because a worker comes to look.
my $calls = Worker->new(idle => '1h', conf => "max_prepared_transactions = 5\nautovacuum = off\n");
my $node = $calls->node;

sub prepare
{
	my ($tag, $database) = @_;

	$calls->sql('BEGIN; ' . enqueue($tag) . "; PREPARE TRANSACTION '$tag'", database => $database);
	return;
}

# Commits it, and waits until it is sent; returns how long that took.
sub commit
{
	my ($tag, $database) = @_;
	my $begin = time;

	$calls->sql("COMMIT PREPARED '$tag'", database => $database);
	eventually(sub { $calls->has_sent($tag) }, "$tag: sent after COMMIT PREPARED");
	return time - $begin;
}

sub worker_leaves
{
	my ($database, $what) = @_;

	$calls->configure('doubletick.worker_idle_timeout' => '200ms');
	eventually(sub { !$calls->workers($database) }, "$what: the worker leaves");
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	return;
}

sub without_a_worker
{
	eventually(sub { !$calls->workers }, 'no worker runs');
	$calls->sql('CREATE DATABASE prepared');
	$calls->set_up('prepared');

	# Committed before a worker can have come.
	$calls->sql('BEGIN; ' . enqueue('at_once') . "; PREPARE TRANSACTION 'at_once'; COMMIT PREPARED 'at_once'",
		database => 'prepared');
	eventually(sub { $calls->has_sent('at_once') }, 'at_once: sent after COMMIT PREPARED');
	worker_leaves('prepared', 'at_once');

	my @took;
	for my $i (1 .. 5)
	{
		prepare("alone$i", 'prepared');
		push @took, commit("alone$i", 'prepared');
		worker_leaves('prepared', "alone$i");
	}
	@took = sort { $a <=> $b } @took;
	cmp_ok($took[2], '<', 1, 'within a second, as the median of five');
	return;
}

# It stays for much longer than it would without the prepared transaction.
sub worker_stays
{
	$calls->configure('doubletick.worker_idle_timeout' => '200ms');
	prepare('first', 'prepared');
	prepare('second', 'prepared');
	eventually(sub { $calls->workers('prepared') }, 'a worker comes at PREPARE');
	my ($pid) = $calls->workers('prepared');
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid
			AND backend_start < clock_timestamp() - interval '3 s'") eq '1' }, 'and stays');
	is($calls->has_sent('first'), 0, 'nothing leaves before COMMIT PREPARED');
	commit('second', 'prepared');
	is($calls->has_sent('first'), 0, 'nor what another prepared transaction has');
	is(($calls->workers('prepared'))[0], $pid, 'the same worker has sent it');

	# Ended by an administrator: another one takes over.
	$calls->sql("SELECT pg_terminate_backend($pid)");
	eventually(sub { (($calls->workers('prepared'))[0] // $pid) != $pid }, 'another worker takes over');
	commit('first', 'prepared');
	eventually(sub { !$calls->workers('prepared') }, 'without prepared transactions the worker leaves');

	prepare('undone', 'prepared');
	eventually(sub { $calls->workers('prepared') }, 'a worker comes for the next one');
	$calls->sql("ROLLBACK PREPARED 'undone'", database => 'prepared');
	eventually(sub { !$calls->workers('prepared') }, 'and leaves after ROLLBACK PREPARED');
	is($calls->has_sent('undone'), 0, 'what is rolled back is not sent');
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	return;
}

sub after_a_restart
{
	for my $how ('fast', 'immediate')
	{
		prepare("over_$how", 'prepared');
		$node->stop($how);
		$node->start;
		eventually(sub { $calls->workers('prepared') }, "$how stop: a worker looks, and stays");
		commit("over_$how", 'prepared');
		worker_leaves('prepared', "$how stop");
	}
	return;
}

# Where the extension is not, or nothing was enqueued, no worker comes.
sub of_no_concern
{
	my $log = -s $node->logfile;

	$calls->sql('CREATE DATABASE foreign_one');
	$calls->sql("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'elsewhere'", database => 'foreign_one');
	$calls->sql("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'not_enqueued'", database => 'prepared');
	$calls->sql(enqueue('other'));
	eventually(sub { $calls->has_sent('other') }, 'the launcher has had its turn');
	is($calls->workers('prepared'), 0, 'no worker comes for a prepared transaction that has enqueued nothing');
	$node->restart;
	eventually(sub { $calls->workers('prepared') }, 'after a restart a worker cannot tell, and stays');
	$calls->sql(enqueue('other_again'));
	eventually(sub { $calls->has_sent('other_again') }, 'other databases are served');
	eventually(sub { !$calls->workers('foreign_one') }, 'none stays where the extension is not');
	$calls->sql("ROLLBACK PREPARED 'elsewhere'", database => 'foreign_one');
	$calls->sql("ROLLBACK PREPARED 'not_enqueued'", database => 'prepared');
	unlike(slurp_file($node->logfile, $log), qr/worker of database "[^"]+" has failed/, 'no worker has failed');
	return;
}

without_a_worker();
worker_stays();
after_a_restart();
of_no_concern();
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;

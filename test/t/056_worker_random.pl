
# While sessions enqueue in several databases, things are done at random that
# administrators do to a cluster.  Afterwards everything is sent without help, and
# no worker is left.
#
# Environment: RANDOM_SECONDS (at least so long, and 10 deeds), RANDOM_SEED.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib dirname(__FILE__);
use Worker;

my $seconds = $ENV{RANDOM_SECONDS} || 10;
my $seed = $ENV{RANDOM_SEED} || time ^ $$;

srand $seed;
diag("seed $seed");

# Workers come and go, and there is not always one for each database.
my $calls = Worker->new(idle => '200ms',
	conf => "autovacuum = off\nmax_prepared_transactions = 10\nmax_worker_processes = 5\nlog_statement = none\n");
my $node = $calls->node;
my $sb = $calls->sandbox;
my @databases = ('postgres', map { "random$_" } 1 .. 4);
my $enqueued = 0;

my @deeds = (
	sub { signal('terminate', 'doubletick worker') },
	sub { signal('terminate', 'doubletick launcher') },
	sub { signal('terminate', 'doubletick%') },
	sub { signal('cancel', 'doubletick%') },
	sub { $node->reload },
	sub { if (rand() < 0.2) { $node->stop(rand() < 0.5 ? 'fast' : 'immediate'); $node->start; } },
	sub { $calls->sql('ALTER DATABASE ' . any() . ' SET work_mem = ' . int(1000 + rand 1000)) },
	sub { my $name = any_but_ours(); $calls->sql($_) foreach "ALTER DATABASE $name RENAME TO renamed", "ALTER DATABASE renamed RENAME TO $name" },
	sub { $calls->sql($_) foreach 'CREATE DATABASE copy TEMPLATE ' . any_but_ours(), 'DROP DATABASE copy' },
	sub { my $name = any_but_ours(); $calls->sql("ALTER DATABASE $name ALLOW_CONNECTIONS $_") foreach 'false', 'true' },
	sub { $calls->sql('CALL dt_process_queue()', database => any()) },
	sub { $calls->sql('BEGIN; LOCK TABLE dt_waiting, dt_settled; SELECT pg_sleep(0.1); COMMIT', database => any()) },
	sub { $calls->sql('BEGIN; DROP EXTENSION doubletick CASCADE; SELECT pg_sleep(0.1); ROLLBACK', database => any()) },
	\&prepare,
);

sub any { return $databases[ rand @databases ]; }

sub any_but_ours { return $databases[ 1 + rand $#databases ]; }

sub signal
{
	my ($how, $who) = @_;

	$calls->sql("SELECT pg_${how}_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE '$who' AND random() < 0.7");
	return;
}

sub add
{
	my ($database, $wrap) = @_;
	my $enqueue = enqueue('random' . ++$enqueued, $enqueued);

	$calls->sql($wrap ? $wrap =~ s/ENQUEUE/$enqueue/r : $enqueue, database => $database);
	return;
}

sub prepare
{
	my $database = any();

	add($database, "BEGIN; ENQUEUE; PREPARE TRANSACTION 'random'");
	$calls->sql("COMMIT PREPARED 'random'", database => $database);
	return;
}

$sb->rule('*', { delay_ms => 3 });
foreach my $database (@databases[ 1 .. $#databases ])
{
	$calls->sql("CREATE DATABASE $database");
	$calls->set_up($database);
}

my $ndeeds = 0;
for (my $end = time + $seconds; time < $end || $ndeeds < 10; $ndeeds++)
{
	add(any()) foreach 0 .. rand 3;
	$deeds[ rand @deeds ]->();
}
note("$ndeeds deeds, $enqueued removals");

# After many errors a worker is started again within a minute.
eventually(sub { $calls->waiting($_) eq '0' }, "all of $_ is sent") foreach @databases;
my $done = 0;
$done += $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done'", database => $_) foreach @databases;
is($done, $enqueued, 'and settled as done');
eventually(sub { !$calls->workers }, 'no worker is left');
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;

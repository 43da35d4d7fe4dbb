
# Worker and launcher are killed by SIGKILL at random moments while sessions commit
# and roll back.  Then what the sandbox has received is compared with what was
# committed: no removal is lost, none that was rolled back is sent, and for each
# kill at most the requests in flight are sent twice.
#
# Environment: KILL_LOOPS, and KILL_SEED.  Run by test/torture/kill for many.

use strict;
use warnings;

use File::Basename qw(dirname);
use HTTP::Tiny;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib dirname(__FILE__);
use Worker;

my $loops = $ENV{KILL_LOOPS} || 3;
my $seed = $ENV{KILL_SEED} || time ^ $$;
my $sessions = 3;
my $transactions = 60;		# of a session, in a loop, if it gets that far
my $in_flight = 16;			# at most
my $check_after = 10;		# loops

srand $seed;
diag("seed $seed");

my $calls = Worker->new(options => { max_connections => $in_flight }, conf => "log_statement = none\n");
my $node = $calls->node;
my $sb = $calls->sandbox;
my %total = (kills => 0, committed => 0, requests => 0, lost => 0, phantoms => 0, twice => 0, too_often => 0);

# So that requests are in flight when the process is killed.
$sb->rule('*', { delay_ms => 4 });
$calls->sql(<<'SQL');
CREATE TABLE committed (tag text, phone text);
CREATE PROCEDURE work(session text, n int, seed float8) LANGUAGE plpgsql AS $$
DECLARE
	phone text;
	tag text;
BEGIN
	PERFORM setseed(seed);
	FOR i IN 1 .. n LOOP
		-- half of them are for few customers, whose rows go together
		phone := '919876' || CASE WHEN random() < 0.5 THEN lpad((random() * 9)::int::text, 6, '0')
			ELSE lpad((100 + random() * 899899)::int::text, 6, '0') END;
		tag := session || '_' || i;
		INSERT INTO committed VALUES (tag, phone);
		PERFORM dt_enqueue_remove_tags_custom_fields(phone, ARRAY[tag]);
		BEGIN
			PERFORM dt_enqueue_remove_tags_custom_fields(phone, ARRAY[tag || '_undone']);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
		IF random() < 0.3 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
		IF random() < 0.1 THEN
			PERFORM pg_sleep(random() * 0.02);
		END IF;
	END LOOP;
END $$;
SQL

# One loop: sessions work, a process is killed, and the server comes back.
sub one_loop
{
	my ($number) = @_;
	my @psql = ('psql', '-XAtq', '-d', $node->connstr('postgres'));
	my @running = map {
		my $call = "CALL work('l${number}s$_', $transactions, " . (rand(2) - 1) . ')';
		IPC::Run::start([ @psql, '-c', $call ], '<', \undef, '>', \my $out, '2>', \my $err)
	} 1 .. $sessions;
	my $victim = rand() < 0.75 ? 'worker' : 'launcher';

	sleep rand(0.25);
	my ($pid) = ours($victim);
	($pid) = ours('launcher') unless $pid;
	if ($pid)
	{
		$total{kills} += kill 'KILL', $pid;
		eventually_quietly(sub { is_gone($pid) });
	}
	$_->finish foreach @running;
	eventually_quietly(sub { IPC::Run::run([ @psql, '-c', 'SELECT 1' ], '<', \undef, '>', \my $out, '2>', \my $err) });
	return;
}

# The process id of the worker or the launcher, if it runs.
sub ours
{
	my ($what) = @_;
	my $pids = '';

	IPC::Run::run([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
			"SELECT pid FROM pg_stat_activity WHERE backend_type = 'doubletick $what'" ],
		'<', \undef, '>', \$pids, '2>', \my $err);
	return split /\n/, $pids;
}

sub eventually_quietly
{
	my ($condition) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	until ($condition->())
	{
		die 'waited in vain' if time > $deadline;
		sleep 0.005;
	}
	return;
}

# Waits until all is settled, and compares what was sent with what was committed.
sub compare
{
	my ($kills) = @_;

	eval { eventually_quietly(sub { $calls->waiting eq '0' }); 1 } or diag('rows are left in the queue');
	my %committed = map { $_ => 1 } split /\n/, $calls->sql('SELECT tag FROM committed');
	my $journal = HTTP::Tiny->new(no_proxy => ['127.0.0.1'], timeout => 60)->get($sb->http . '/sandbox/journal')->{content};
	my %sent;
	my $twice = 0;
	while ($journal =~ /"tags": ?\[([^\]]*)\]/g)
	{
		my @tags = $1 =~ /"([^"]*)"/g;
		$total{requests}++;
		$twice++ if grep { $sent{$_} } @tags;
		$sent{$_}++ foreach @tags;
	}
	my @lost = grep { !$sent{$_} } keys %committed;
	my @phantoms = grep { !$committed{$_} } keys %sent;

	diag("lost: @lost") if @lost;
	diag("sent after rollback: @phantoms") if @phantoms;
	diag("$twice requests sent twice by $kills kills") if $twice > $in_flight * $kills;
	$total{committed} += keys %committed;
	$total{lost} += @lost;
	$total{phantoms} += @phantoms;
	$total{twice} += $twice;
	$total{too_often}++ if $twice > $in_flight * $kills;
	$total{unsettled} += $calls->sql("SELECT count(*) FROM committed AS c WHERE NOT EXISTS
		(SELECT FROM dt_settled AS s WHERE s.state = 'done' AND s.tags = ARRAY[c.tag])");
	$sb->clear_journal;
	$calls->sql('TRUNCATE committed, dt_settled');
	return;
}

my $begin = time;
my $kills = 0;
for my $loop (1 .. $loops)
{
	one_loop($loop);
	next if $loop % $check_after && $loop != $loops;
	compare($total{kills} - $kills);
	$kills = $total{kills};
}
my $seconds = time - $begin;

cmp_ok($total{kills}, '>=', $loops / 2, "$loops loops, $total{kills} kills");
cmp_ok($total{committed}, '>', $loops, "$total{committed} rows committed");
is($total{lost}, 0, 'no removal is lost');
is($total{phantoms}, 0, 'none is sent that was rolled back');
is($total{too_often}, 0, 'for each kill at most the requests in flight are sent twice');
is($total{unsettled}, 0, 'each is settled as done');
diag(sprintf 'kill: seed %s, %d loops, %d kills, %d committed, %d requests, %d lost, %d sent after rollback, '
	  . '%d sent twice (at most %d allowed), %.2f s a loop',
	$seed, $loops, @total{qw(kills committed requests lost phantoms twice)}, $in_flight * $total{kills}, $seconds / $loops);
done_testing;

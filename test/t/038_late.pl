
# Rows that are committed late: the drain that is under way has already seen larger
# ids, and sends them all the same.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(conf => "max_connections = 50\nmax_prepared_transactions = 400\nautovacuum = off");

# The drain that all of this is about does not end, for one customer's answer is held.
my $held = new_phone();
$sb->hold($held);
$calls->sql("ALTER SERVER doubletick OPTIONS (SET timeout '5min', ADD max_connections '100')");
enqueue($held, ['lead']);
my $drain = start_drain();
$sb->await_held(1);

my @sessions = map { $node->background_psql('postgres') } 1 .. 2;

# The transaction with the lower xid commits first, and its row has the higher id. So
# the other one's xid is above all that have ended, and no snapshot names it.
sub younger_is_late
{
	my ($name, @around) = @_;
	my ($late, $early) = (new_phone(), new_phone());

	$sessions[0]->query_safe('BEGIN; SELECT pg_current_xact_id()');
	$sessions[1]->query_safe('BEGIN');
	$sessions[1]->query_safe($_) foreach @around;
	my $low = $sessions[1]->query_safe(enqueueing($late, ['late']));
	my $high = $sessions[0]->query_safe(enqueueing($early, ['early']));
	cmp_ok($low, '<', $high, "$name: the row that commits late has the lower id");
	$sessions[0]->query_safe('COMMIT');
	eventually(sub { received($early) }, "$name: the row with the higher id is sent");
	is_received($late, '', "$name: the other one is not, before it commits");
	$sessions[1]->query_safe('COMMIT');
	eventually(sub { received($late) }, "$name: the row that commits late is sent");
	eventually(sub { states($low) eq 'done' }, "$name: and settled");
	is_received($late, 'late', "$name: once");
	return;
}

# The transaction with the lower xid commits last, after others have come and gone.
sub older_is_late
{
	my ($name, $end) = @_;
	my $late = new_phone();

	$sessions[0]->query_safe('BEGIN');
	my $low = $sessions[0]->query_safe(enqueueing($late, ['late']));
	everything_is_seen('a row that is enqueued now is sent') for 1 .. 3;
	$sessions[0]->query_safe($end);
	if ($end eq 'ROLLBACK')
	{
		everything_is_seen('a row that is enqueued now is sent');
		is_received($late, '', "$name: it is never sent");
		return;
	}
	$calls->sql("COMMIT PREPARED 'late'") if $end =~ /PREPARE/;
	eventually(sub { received($late) }, "$name: the row that commits late is sent");
	eventually(sub { states($low) eq 'done' }, "$name: and settled");
	return;
}

# Many transactions at once, which end in another order than they began. They are
# prepared, so that they need no session each.
sub many_are_late
{
	my ($count) = @_;
	my %phones;

	foreach my $n (1 .. $count)
	{
		$phones{$n} = new_phone();
		my $call = enqueueing($phones{$n}, ['late']);
		$call = "SAVEPOINT s; SELECT pg_current_xact_id(); $call; RELEASE s; SAVEPOINT t; $call; ROLLBACK TO t" if $n % 3 == 0;
		$phones{$n} = [ $phones{$n}, "BEGIN; $call; PREPARE TRANSACTION 'many $n'" ];
	}
	$calls->sql(join ";\n", map { $phones{$_}[1] } 1 .. $count);
	everything_is_seen('a row that is enqueued now is sent');
	my @order = map { $_ * 11 % ($count + 1) } 1 .. $count;
	$calls->sql(join ";\n", map { "COMMIT PREPARED 'many $_'" } @order[ 0 .. $count / 2 ]);
	everything_is_seen('a row that is enqueued now is sent');
	$calls->sql(join ";\n", map { "COMMIT PREPARED 'many $_'" } @order[ $count / 2 + 1 .. $#order ]);
	my $all = join ',', map { "'$phones{$_}[0]'" } 1 .. $count;
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done' AND phone IN ($all)") eq $count }, "many: all $count are sent");
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE phone IN ($all)"), '0', 'many: none waits');
	return;
}

# A transaction with more subtransactions than a snapshot can name.
sub savepoints_overflow
{
	my $late = new_phone();

	$calls->sql('CREATE TABLE scratch (n int)');
	$sessions[0]->query_safe('BEGIN');
	my $low = $sessions[0]->query_safe("SAVEPOINT first; INSERT INTO scratch VALUES (0); " . enqueueing($late, ['late']));
	$sessions[0]->query_safe(<<'SQL');
DO $$
BEGIN
	FOR i IN 1 .. 200 LOOP
		BEGIN
			INSERT INTO scratch VALUES (i);
		EXCEPTION WHEN others THEN
			NULL;
		END;
	END LOOP;
END $$;
SQL
	everything_is_seen('a row that is enqueued now is sent');
	is_received($late, '', 'overflow: the row is not sent before the commit');
	$sessions[0]->query_safe('COMMIT');
	eventually(sub { received($late) }, 'overflow: the row that commits late is sent');
	eventually(sub { states($low) eq 'done' }, 'overflow: and settled');
	return;
}

# While a transaction that enqueues nothing writes for long.
sub beside_a_writer
{
	my $writer = $node->background_psql('postgres');

	$writer->query_safe('BEGIN; SELECT pg_current_xact_id(); INSERT INTO scratch VALUES (1)');
	younger_is_late('beside a writer');
	older_is_late('beside a writer', 'COMMIT');
	many_are_late(40);
	$writer->query_safe('COMMIT');
	everything_is_seen('a row that is enqueued now is sent');
	$writer->quit;
	return;
}

# Retries and cancels that are committed late.
sub others_are_late
{
	my ($retried, $cancelled) = (new_phone(), new_phone());

	$sb->rule($_, { status => 422, times => 1 }) foreach $retried, $cancelled;
	my @ids = map { enqueue($_, ['a']) } $retried, $cancelled;
	eventually(sub { states($_) eq 'failed' }, 'others: two rows are refused') foreach @ids;
	$sessions[0]->query_safe("BEGIN; SELECT dt_retry($ids[0])");
	$sessions[1]->query_safe("BEGIN; SELECT dt_retry($ids[1])");
	everything_is_seen('a row that is enqueued now is sent');
	$sessions[1]->query_safe("SELECT dt_cancel($ids[1]); COMMIT");
	$sessions[0]->query_safe('COMMIT');
	eventually(sub { states($ids[0]) eq 'done' }, 'others: a retry that is committed late is done');
	is_received($retried, 'a a', 'others: and was sent');
	is(states($ids[1]), 'cancelled', 'others: one that is cancelled by the same transaction is cancelled');
	is_received($cancelled, 'a', 'others: and was not sent');
	return;
}

# A row for a server that the drain does not know yet does not wait for another
# server, all of whose slots are taken.
sub beside_a_full_server
{
	my ($slow, $phone) = (new_phone(), new_phone());

	$calls->server('narrow', timeout => '5min', max_connections => '1');
	$calls->server('second');
	$sb->hold($slow);
	$calls->sql("SET doubletick.server = narrow; $_") foreach enqueueing($slow, ['lead']), enqueueing(new_phone(), ['lead']);
	my $other = start_drain();
	$sb->await_held(1, $slow);
	enqueue($phone, ['lead'], undef, server => 'second');
	eventually(sub { received($phone) }, 'full: the row for another server is sent');
	break_off($other);
	$calls->sql('SELECT count(dt_cancel(id)) FROM dt_queue');
	return;
}

younger_is_late('younger');
younger_is_late('in a savepoint', 'SAVEPOINT s', 'SELECT pg_current_xact_id()', 'SAVEPOINT t');
younger_is_late('savepoints that are undone', 'SAVEPOINT s', 'CREATE TEMP TABLE undone (n int)', 'ROLLBACK TO s', 'SAVEPOINT t');
older_is_late('older', 'COMMIT');
older_is_late('rolled back', 'ROLLBACK');
older_is_late('prepared', "PREPARE TRANSACTION 'late'");
many_are_late(300);
savepoints_overflow();
beside_a_writer();
others_are_late();
$_->quit foreach @sessions;
break_off($drain);
$sb->clear_rules;
drain();
is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'nothing is left');
beside_a_full_server();
done_testing;

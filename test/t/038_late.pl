
# Rows that commit late: their ids are lower than what the drain that is under way
# has seen already, and it sends them all the same.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Door;

open_door(conf => "max_connections = 50\nmax_prepared_transactions = 400\nautovacuum = off");

# The drain that all of this is about never ends, for one customer's request hangs.
my $hanging = new_phone();
$sb->rule($hanging, { fault => 'hang' });
$calls->sql("ALTER SERVER doubletick OPTIONS (SET timeout '5min', ADD max_connections '100')");
$calls->sql(enqueue($hanging, ['lead']));
my @draining = draining();
eventually(sub { received($hanging) }, 'a drain is under way');

my @sessions = map { $node->background_psql('postgres') } 1 .. 2;

# A place that the look has passed: what is enqueued here and now has been sent.
sub look_has_passed
{
	my $phone = new_phone();

	$calls->sql(enqueue($phone, ['now']));
	eventually(sub { received($phone) }, 'the look has passed');
	return;
}

# The one with the lower xid commits first, and its id is the higher: so the other
# one's xid is above all that have ended, and no snapshot names it.
sub younger_is_late
{
	my ($name, @around) = @_;
	my ($late, $early) = (new_phone(), new_phone());

	$sessions[0]->query_safe('BEGIN; SELECT pg_current_xact_id()');
	$sessions[1]->query_safe('BEGIN');
	$sessions[1]->query_safe($_) foreach @around;
	my $low = $sessions[1]->query_safe(enqueue($late, ['late']));
	my $high = $sessions[0]->query_safe(enqueue($early, ['early']));
	cmp_ok($low, '<', $high, "$name: the ids are as they must be");
	$sessions[0]->query_safe('COMMIT');
	eventually(sub { received($early) }, "$name: the look has passed");
	is_received($late, '', "$name: what has not committed is not sent");
	$sessions[1]->query_safe('COMMIT');
	eventually(sub { received($late) }, "$name: what commits late is sent");
	eventually(sub { state_of($low) eq 'done' }, "$name: and settled");
	is_received($late, 'late', "$name: once");
	return;
}

# The same the other way round, and when others come and go between.
sub older_is_late
{
	my ($name, $end) = @_;
	my $late = new_phone();

	$sessions[0]->query_safe('BEGIN');
	my $low = $sessions[0]->query_safe(enqueue($late, ['late']));
	look_has_passed() for 1 .. 3;
	$sessions[0]->query_safe($end);
	if ($end eq 'ROLLBACK')
	{
		look_has_passed();
		is_received($late, '', "$name: it never leaves");
		return;
	}
	$calls->sql("COMMIT PREPARED 'late'") if $end =~ /PREPARE/;
	eventually(sub { received($late) }, "$name: what commits late is sent");
	eventually(sub { state_of($low) eq 'done' }, "$name: and settled");
	return;
}

# Many at once: prepared, so that no session is needed for each; and they end in
# another order than they began.
sub many_are_late
{
	my ($count) = @_;
	my %phones;

	foreach my $n (1 .. $count)
	{
		$phones{$n} = new_phone();
		my $call = enqueue($phones{$n}, ['late']);
		$call = "SAVEPOINT s; SELECT pg_current_xact_id(); $call; RELEASE s; SAVEPOINT t; $call; ROLLBACK TO t" if $n % 3 == 0;
		$phones{$n} = [ $phones{$n}, "BEGIN; $call; PREPARE TRANSACTION 'many $n'" ];
	}
	$calls->sql(join ";\n", map { $phones{$_}[1] } 1 .. $count);
	look_has_passed();
	my @order = map { $_ * 11 % ($count + 1) } 1 .. $count;
	$calls->sql(join ";\n", map { "COMMIT PREPARED 'many $_'" } @order[ 0 .. $count / 2 ]);
	look_has_passed();
	$calls->sql(join ";\n", map { "COMMIT PREPARED 'many $_'" } @order[ $count / 2 + 1 .. $#order ]);
	my $all = join ',', map { "'$phones{$_}[0]'" } 1 .. $count;
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done' AND phone IN ($all)") eq $count }, "many: all $count are sent");
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE phone IN ($all)"), '0', 'many: none waits');
	return;
}

# More of them than a snapshot can name the subtransactions of.
sub savepoints_overflow
{
	my $late = new_phone();

	$calls->sql('CREATE TABLE scratch (n int)');
	$sessions[0]->query_safe('BEGIN');
	my $low = $sessions[0]->query_safe("SAVEPOINT first; INSERT INTO scratch VALUES (0); " . enqueue($late, ['late']));
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
	look_has_passed();
	is_received($late, '', 'overflow: not before the commit');
	$sessions[0]->query_safe('COMMIT');
	eventually(sub { received($late) }, 'overflow: what commits late is sent');
	eventually(sub { state_of($low) eq 'done' }, 'overflow: and settled');
	return;
}

# While one who has nothing to do with it writes for long.
sub beside_a_writer
{
	my $writer = $node->background_psql('postgres');

	$writer->query_safe('BEGIN; SELECT pg_current_xact_id(); INSERT INTO scratch VALUES (1)');
	younger_is_late('beside a writer');
	older_is_late('beside a writer', 'COMMIT');
	many_are_late(40);
	$writer->query_safe('COMMIT');
	look_has_passed();
	$writer->quit;
	return;
}

# Keeps and retries come late, too.
sub others_are_late
{
	my ($retried, $cancelled) = (new_phone(), new_phone());

	$sb->rule($_, { status => 422, times => 1 }) foreach $retried, $cancelled;
	my @ids = map { $calls->sql(enqueue($_, ['a'])) } $retried, $cancelled;
	eventually(sub { state_of($_) eq 'failed' }, 'others: refused') foreach @ids;
	$sessions[0]->query_safe("BEGIN; SELECT dt_retry($ids[0])");
	$sessions[1]->query_safe("BEGIN; SELECT dt_retry($ids[1])");
	look_has_passed();
	$sessions[1]->query_safe("SELECT dt_cancel($ids[1]); COMMIT");
	$sessions[0]->query_safe('COMMIT');
	eventually(sub { state_of($ids[0]) eq 'done' }, 'others: a retry that commits late');
	is_received($retried, 'a a', 'others: is sent');
	is(state_of($ids[1]), 'cancelled', 'others: one that is cancelled by the same transaction');
	is_received($cancelled, 'a', 'others: is not');
	return;
}

# What comes for a server that the drain does not know of yet does not wait for
# another one, all of whose slots are taken by a request that hangs.
sub beside_a_full_server
{
	my ($slow, $phone) = (new_phone(), new_phone());

	$calls->server('narrow', timeout => '5min', max_connections => '1');
	$calls->server('second');
	$sb->rule($slow, { fault => 'hang' });
	$calls->sql("SET doubletick.server = narrow; $_") foreach enqueue($slow, ['lead']), enqueue(new_phone(), ['lead']);
	my @other = draining();
	eventually(sub { received($slow) }, 'full: a request hangs');
	$calls->sql('SET doubletick.server = second; ' . enqueue($phone, ['lead']));
	eventually(sub { received($phone) }, 'full: another server does not wait for it');
	break_off(@other);
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
break_off(@draining);
$sb->clear_rules;
drain();
is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'nothing is left');
beside_a_full_server();
done_testing;

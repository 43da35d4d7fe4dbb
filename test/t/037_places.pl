
# Every row that waits keeps its place: whatever becomes of the other rows of its
# customer, it goes, and by the drain that is under way.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Door;

open_door();
$calls->server('second', timeout => '1min');
my $holder = $node->background_psql('postgres');

# A drain that does not end, for one customer's request hangs.
sub busy_drain
{
	my $phone = new_phone();

	$sb->rule($phone, { fault => 'hang' });
	$calls->sql(enqueue($phone, ['lead']));
	my @draining = draining();
	eventually(sub { received($phone) }, 'a drain is under way');
	return @draining;
}

# Removals of a name each for one customer; returns their ids.
sub enqueue_each
{
	my ($phone, @names) = @_;

	return split /\n/, $calls->sql(join ';', map { enqueue($phone, [$_]) } @names);
}

sub states
{
	return join ' ', map { state_of($_) } @_;
}

# They reach this state, and while the drain goes on.
sub becomes
{
	my ($state, $name, @ids) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return eventually(sub { states(@ids) eq join ' ', ($state) x @ids }, $name) || diag(states(@ids));
}

# Keeps the rows of a customer from leaving until "COMMIT", also those that come
# behind a request that is out.
sub withhold
{
	my ($id) = @_;

	return is($holder->query_safe("BEGIN; SELECT dt_cancel($id)"), 'f', 'what is out cannot be cancelled, but must not leave again');
}

sub cancel_when_landed
{
	my ($id) = @_;

	eventually(sub { $holder->query_safe("SELECT dt_cancel($id)"); $holder->query_safe("SELECT count(*) FROM dt_history WHERE id = $id") eq '1' },
		'it is cancelled when its request is over');
	$holder->query_safe('COMMIT');
	return;
}

# After an outage, when the row by which the customer is known is taken out.
sub behind_a_backoff
{
	my @draining = busy_drain();

	foreach my $which (0 .. 2)
	{
		my $phone = new_phone();
		$sb->rule($phone, { status => 503, retry_after => '2', times => 1 });
		my @ids = split /\n/, $calls->sql('BEGIN;' . join(';', map { enqueue($phone, [$_]) } qw(a b c)) . ';COMMIT');
		eventually(sub { $calls->sql("SELECT count(*) FROM dt_queue WHERE attempts = 1 AND id IN ($ids[0], $ids[1], $ids[2])") eq '3' },
			"backoff, without row $which: all wait");
		is($calls->sql("SELECT dt_cancel($ids[$which])"), 'f', 'one is taken out');
		my @others = grep { $_ != $ids[$which] } @ids;
		becomes('done', 'the others go when they are due', @others);
		is((received($phone))[-1], join(',', grep { $_ ne (qw(a b c))[$which] } qw(a b c)), 'as one request');
	}

	# More than one request can carry.
	my $phone = new_phone();
	$sb->rule($phone, { status => 503, retry_after => '1', times => 1 });
	my @ids = split /\n/, $calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$phone',
		(SELECT array_agg(n || '_' || i) FROM generate_series(1, 400) AS i)) FROM generate_series(1, 5) AS n");
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_queue WHERE attempts = 1 AND id IN ($ids[0], $ids[1])") eq '2' },
		'1,000 names: the first two wait');
	$calls->sql("SELECT dt_cancel($_)") foreach $ids[0], $ids[2];
	becomes('done', '1,000 names: the others go', @ids[ 1, 3, 4 ]);
	is(join(' ', map { scalar split /,/ } received($phone)), '800 800 400', '1,000 names: no request has more');
	break_off(@draining);
	$sb->clear_rules;
	drain();
	return;
}

# Refused together, they go one by one, also when the bad one is taken out first.
sub behind_a_refusal
{
	my @draining = busy_drain();
	my $phone = new_phone();

	$sb->rule($phone, { status => 422, delay_ms => 1000, times => 1 });
	my @ids = split /\n/, $calls->sql('BEGIN;' . join(';', map { enqueue($phone, [$_]) } qw(bad b c)) . ';COMMIT');
	eventually(sub { received($phone) }, 'refused: a request is out');
	withhold($ids[0]);
	cancel_when_landed($ids[0]);
	becomes('done', 'refused: the others go', @ids[ 1, 2 ]);
	is_received($phone, 'bad,b,c b c', 'refused: one by one');
	is($calls->sql("SELECT attempts FROM dt_history WHERE id = $ids[0]"), '1', 'refused: the bad one has left once');
	break_off(@draining);
	$sb->clear_rules;
	drain();
	return;
}

# A bad key: what waited goes when that is mended.  What has left is known.
sub behind_a_hold
{
	my @draining = busy_drain();
	my $phone = new_phone();

	$sb->rule($phone, { status => 401, times => 1 });
	my @ids = split /\n/, $calls->sql('SET doubletick.server = second; BEGIN;' . join(';', map { enqueue($phone, [$_]) } qw(a b c)) . ';COMMIT');
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_hold WHERE server = 'second'") eq '1' }, 'held: for a bad key');
	push @ids, $calls->sql('SET doubletick.server = second; ' . enqueue($phone, ['d']));
	is($calls->sql("SELECT string_agg(attempts || ' ' || coalesce(http_status, 0), ', ' ORDER BY id) FROM dt_queue WHERE server = 'second'"),
		'0 401, 0 401, 0 401, 0 0', 'held: no attempt is counted, but the status is known');
	is($calls->sql("SELECT dt_cancel($ids[0])"), 'f', 'held: what has left is not called unsent');
	is(state_of($ids[0]), 'cancelled', 'held: but is taken out');
	$calls->sql("ALTER SERVER second OPTIONS (SET timeout '50s')");
	becomes('done', 'held: the others go when it is mended', @ids[ 1 .. 3 ]);

	# Nothing has left where definitions are missing.
	$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER second');
	my $id = $calls->sql('SET doubletick.server = second; ' . enqueue($phone, ['e']));
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_hold WHERE server = 'second'") eq '1' }, 'held: for want of a mapping');
	is($calls->sql("SELECT dt_cancel($id)"), 't', 'held: what has not left is cancelled');
	$calls->sql("CREATE USER MAPPING FOR CURRENT_USER SERVER second OPTIONS (api_key '" . $sb->key . "')");
	break_off(@draining);
	$sb->clear_rules;
	drain();
	return;
}

# Rows that come while a request is out, and one of them is taken back.
sub behind_a_flight
{
	my @draining = busy_drain();

	foreach my $which (1 .. 4)
	{
		my $phone = new_phone();
		$sb->rule($phone, { delay_ms => 700, times => 1 });
		my @ids = enqueue_each($phone, 'a');
		eventually(sub { received($phone) }, "flight, without row $which: a request is out");
		push @ids, enqueue_each($phone, qw(b c d e));

		# One more look has found them when what is enqueued later leaves.
		my $later = new_phone();
		$calls->sql(enqueue($later, ['x']));
		eventually(sub { received($later) }, 'those that came are known');
		withhold($ids[$which]);
		cancel_when_landed($ids[$which]);
		becomes('done', 'the others go', grep { $_ != $ids[$which] } @ids);
		is_received($phone, join(' ', 'a', join ',', grep { $_ ne (qw(a b c d e))[$which] } qw(b c d e)), 'as one request');
	}
	break_off(@draining);
	$sb->clear_rules;
	drain();
	return;
}

# What fails, and is retried, while others of the customer back off.
sub retried_behind_a_backoff
{
	my @draining = busy_drain();
	my $phone = new_phone();

	$sb->rule($phone, { status => 422, times => 2 });
	my @failed = enqueue_each($phone, 'a');
	becomes('failed', 'retried: one is refused', @failed);
	push @failed, enqueue_each($phone, 'b');
	becomes('failed', 'retried: another is', @failed);
	$sb->rule($phone, { status => 503, retry_after => '2', times => 1 });
	my @ids = enqueue_each($phone, 'c');
	eventually(sub { $calls->sql("SELECT attempts FROM dt_queue WHERE id = $ids[0]") eq '1' }, 'retried: a third waits');
	is($calls->sql("SELECT dt_retry($_)"), 't', 'retried behind it') foreach @failed;

	# The news of it has been seen when what is enqueued later leaves.
	my $later = new_phone();
	$calls->sql(enqueue($later, ['x']));
	eventually(sub { received($later) }, 'that is known');
	is_received($phone, 'a b c', 'retried: the customer waits as one');
	$calls->sql("SELECT dt_cancel($ids[0])");
	becomes('done', 'retried: they go, although what they waited for is gone', @failed);
	is_received($phone, 'a b c a,b', 'retried: together');
	is($calls->sql('SELECT count(*) FROM dt_waiting WHERE keep'), '0', 'retried: no trace is left in the queue');

	# Also behind more rows than are read at once.
	break_off(@draining);
	$sb->clear_rules;
	drain();
	$phone = new_phone();
	my ($first) = split /\n/, $calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['t' || n]) FROM generate_series(1, 1000) AS n");
	my ($last) = enqueue_each($phone, 'last');
	$calls->sql("UPDATE dt_waiting SET attempts = 1, due_at = now() + interval '5 seconds' WHERE id < $last;
		WITH gone AS (DELETE FROM dt_waiting WHERE id = $last RETURNING *)
		INSERT INTO dt_settled SELECT id, enqueued_at, now(), role, enqueued_by, 1, 400, 'failed', server, phone, waba, tags, fields, NULL, 'it was so' FROM gone");
	@draining = busy_drain();
	is($calls->sql("SELECT dt_retry($last)"), 't', 'many: one is retried behind them');
	$calls->sql(enqueue($later, ['y']));
	eventually(sub { received($later) == 2 }, 'many: that is known');
	$calls->sql("SELECT count(dt_cancel(id)) FROM dt_queue WHERE id BETWEEN $first AND $last - 1");
	becomes('done', 'many: it goes when they are gone', $last);
	break_off(@draining);
	$sb->clear_rules;
	drain();
	return;
}

# Definitions that go, and come, while a request is out.
sub lane_that_changes
{
	my $phone = new_phone();
	my $mapping = 'USER MAPPING FOR CURRENT_USER SERVER doubletick';
	my @ids;

	# The drain ends with its last request, if it knows of nothing more.
	$sb->rule($phone, { delay_ms => 4000, times => 1 });
	@ids = enqueue_each($phone, 'a');
	my ($session, $pid) = draining();
	eventually(sub { received($phone) }, 'mapping: a request is out');
	$calls->sql("DROP $mapping");
	push @ids, enqueue_each($phone, 'b');
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, 'mapping: it is missed');
	$calls->sql("CREATE $mapping OPTIONS (api_key '" . $sb->key . "')");
	push @ids, enqueue_each($phone, 'c');
	$session->query('SELECT 1');
	is(states(@ids), 'done done done', 'mapping: what came meanwhile has gone by the same drain');
	is_received($phone, 'a b,c', 'mapping: as one request');
	is($calls->sql('SELECT count(*) FROM dt_hold'), '0', 'mapping: nothing is held any more');

	# The role is dropped: what is out is settled, the others fail.
	foreach my $answer ({}, { status => 401 }, { status => 503 })
	{
		$phone = new_phone();
		$calls->sql("CREATE ROLE leaver LOGIN; GRANT USAGE ON FOREIGN SERVER doubletick TO leaver;
			GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO leaver;
			CREATE USER MAPPING FOR leaver SERVER doubletick OPTIONS (api_key 'key_app')");
		$sb->rule($phone, { delay_ms => 1500, times => 1, %$answer });
		@ids = as('leaver', enqueue($phone, ['a']));
		$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
		eventually(sub { received($phone) }, 'role: a request is out');
		push @ids, as('leaver', enqueue($phone, ['b']));
		$calls->sql('DROP OWNED BY leaver; DROP ROLE leaver');
		$session->query('SELECT 1');
		my $messages = $session->{stderr};
		$session->{stderr} = '';
		is(states(@ids), (%$answer ? 'failed' : 'done') . ' failed', 'role: nothing waits for one who is gone');
		is($calls->sql("SELECT error FROM dt_history WHERE id = $ids[1]"), 'role does not exist any more', 'role: and it is said why');
		unlike($messages, qr/\(null\)/, 'role: its name is not asked for');
		is($calls->sql('SELECT count(*) FROM dt_hold'), '0', 'role: nothing is held for it');
	}
	$session->quit;
	return;
}

# Who has thousands of rows may think about a cancel for long.
sub cancel_of_others
{
	my $session = $node->background_psql('postgres');

	make_roles();
	as('other', "SELECT count(dt_enqueue_remove_tags_custom_fields((919860000000 + n)::text, '{lead}')) FROM generate_series(1, 3000) AS n");
	$session->query_safe('SET SESSION AUTHORIZATION other');
	is($session->query_safe('BEGIN; SELECT count(*) FILTER (WHERE dt_cancel(id)) FROM dt_queue'), '3000', 'others: one role cancels');
	my @phones = map { new_phone() } 1 .. 300;
	$calls->sql(join ';', map { enqueue($_, ['lead']) } @phones);
	$sb->clear_journal;
	drain();
	is(scalar @{ $sb->journal }, 300, 'others: the rows of another go');
	is($calls->sql("SELECT count(*) FROM dt_waiting WHERE role = current_user::regrole"), '0', 'others: all of them');
	$session->query_safe('ROLLBACK');
	drain();
	is(scalar @{ $sb->journal }, 3300, 'others: and those whose cancel was undone');
	$session->quit;
	return;
}

# Keeps are for the removals that were there before, and go with them.
sub keeps_go
{
	my $phone = new_phone();
	my $nkeeps = 'SELECT count(*) FROM dt_waiting WHERE keep';

	$calls->sql("CREATE TABLE customers (phone text, tags text[], fields text[], waba text);
		CREATE TRIGGER removals AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields', 'waba', 'doubletick');
		INSERT INTO customers VALUES ('$phone', '{a,b,c,d}');
		UPDATE customers SET tags = '{b,c,d}';
		UPDATE customers SET tags = '{a,b,c,d}'");
	is($calls->sql($nkeeps), '1', 'keeps: one is entered');
	$calls->sql("UPDATE customers SET tags = '{a,c,d}'");
	$sb->rule($phone, { status => 503, retry_after => '3000' });
	drain();
	is_received($phone, 'b', 'keeps: what came back is not sent');
	is($calls->sql("SELECT string_agg(state || tags::text, ' ') FROM dt_history WHERE phone = '$phone'"), 'cancelled{a}', 'keeps: its removal is gone');
	is($calls->sql($nkeeps), '0', 'keeps: and so is the keep, though a later removal waits');

	# One that has something to keep stays; and the later ones count for it.
	$calls->sql("UPDATE customers SET tags = '{a,b,c,d}'; UPDATE customers SET tags = '{a,b,d}'");
	is($calls->sql($nkeeps), '1', 'keeps: another');
	drain();
	is($calls->sql("$nkeeps AND EXISTS (SELECT FROM dt_queue WHERE phone = '$phone' AND tags = '{c}')"), '0', 'keeps: that goes with what it took back');
	is($calls->sql("SELECT tags FROM dt_queue WHERE phone = '$phone'"), '{c}', 'keeps: the last removal waits');
	is($calls->sql("SELECT count(*) FROM dt_history WHERE phone = '$phone' AND state = 'cancelled'"), '2', 'keeps: two have been taken back');
	$sb->clear_rules;
	$calls->sql("UPDATE dt_waiting SET due_at = now()");
	drain();
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'keeps: nothing waits');
	return;
}

behind_a_backoff();
behind_a_refusal();
behind_a_hold();
behind_a_flight();
retried_behind_a_backoff();
$holder->quit;
lane_that_changes();
cancel_of_others();
keeps_go();
done_testing;

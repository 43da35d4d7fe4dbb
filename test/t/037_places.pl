
# Every row that waits is sent by the drain that is under way, whatever becomes of
# the other rows of its customer: cancelled, refused, held, retried, or given up.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1);
$calls->server('second', timeout => '1min');

# The session of the cancels that are not committed.
my $canceller = $node->background_psql('postgres');

# A drain that does not end, for the answer to one customer's request is held.
sub busy_drain
{
	my $phone = new_phone();

	$sb->hold($phone);
	enqueue($phone, ['lead']);
	my $drain = start_drain();
	$sb->await_held(1, $phone);
	return $drain;
}

sub end_busy_drain
{
	my ($drain) = @_;

	break_off($drain);
	$sb->clear_rules;
	drain();
	return;
}

# Removals of one name each for a customer, by one transaction; returns their ids.
sub enqueue_each
{
	my ($phone, @names) = @_;

	return split /\n/, $calls->sql('BEGIN;' . join(';', map { enqueueing($phone, [$_]) } @names) . ';COMMIT');
}

# The rows reach a state, while the drain goes on.
sub becomes
{
	my ($state, $name, @ids) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return eventually(sub { states(@ids) eq join ' ', ($state) x @ids }, $name) || diag(states(@ids));
}

# Keeps customers from being sent to, by a cancel of a row of each that is out: it
# fails, but its transaction goes on.  So a slow test cancels rows in time, too.
sub block_customers
{
	my (@ids) = @_;

	$canceller->query_safe('BEGIN');
	is($canceller->query_safe("SELECT dt_cancel($_)"), 'f', 'the customer is blocked by a cancel, which comes too late') foreach @ids;
	return;
}

sub unblock_customers
{
	$canceller->query_safe('COMMIT');
	return;
}

# Cancels a row that was out when its customer was blocked, as soon as its answer is settled.
sub cancel_and_unblock
{
	my ($id) = @_;

	eventually(sub { $canceller->query_safe("SELECT dt_cancel($id)"); $canceller->query_safe("SELECT count(*) FROM dt_history WHERE id = $id") eq '1' },
		'the row is cancelled when its answer is settled');
	unblock_customers();
	return;
}

# Rows wait for their retry, and any of them is cancelled.
sub behind_a_backoff
{
	my $drain = busy_drain();
	my @phones = map { new_phone() } 0 .. 3;

	$sb->hold($_, { status => 503, retry_after => '3', times => 1 }) foreach @phones;
	my @ids = map { [ enqueue_each($_, qw(a b c)) ] } @phones[ 0 .. 2 ];

	# Of the fourth more than one request can carry.
	push @ids, [ split /\n/, $calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$phones[3]',
		(SELECT array_agg(n || '_' || i) FROM generate_series(1, 400) AS i)) FROM generate_series(1, 5) AS n") ];
	my $sent = join ',', (map { @$_ } @ids[ 0 .. 2 ]), @{ $ids[3] }[ 0, 1 ];
	$sb->await_held(1, $_) foreach @phones;
	block_customers(map { $_->[0] } @ids);
	$sb->release($_) foreach @phones;
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_queue WHERE attempts = 1 AND id IN ($sent)") eq '11' }, 'backoff: rows wait for their retry');
	is($canceller->query_safe("SELECT dt_cancel($ids[$_][$_])"), 'f', "backoff: row $_ is taken out") foreach 0 .. 2;
	$canceller->query_safe("SELECT dt_cancel($_)") foreach @{ $ids[3] }[ 0, 2 ];
	unblock_customers();
	foreach my $which (0 .. 2)
	{
		becomes('done', "backoff, without row $which: the others are sent", map { $ids[$which][$_] } grep { $_ != $which } 0 .. 2);
		is((received($phones[$which]))[-1], join(',', grep { $_ ne (qw(a b c))[$which] } qw(a b c)), "backoff, without row $which: in one request");
	}
	becomes('done', 'backoff, 1,000 names: the others are sent', @{ $ids[3] }[ 1, 3, 4 ]);
	is(join(' ', map { scalar split /,/ } received($phones[3])), '800 800 400', 'backoff, 1,000 names: no request has more');
	end_busy_drain($drain);
	return;
}

# Rows are refused together, and so go one by one; also when the bad one is cancelled
# before that.
sub behind_a_refusal
{
	my $drain = busy_drain();
	my $phone = new_phone();

	$sb->hold($phone, { status => 422, times => 1 });
	my @ids = enqueue_each($phone, qw(bad b c));
	$sb->await_held(1, $phone);
	block_customers($ids[0]);
	$sb->release($phone);
	cancel_and_unblock($ids[0]);
	becomes('done', 'refused: the others are sent', @ids[ 1, 2 ]);
	is_received($phone, 'bad,b,c b c', 'refused: one by one');
	is($calls->sql("SELECT attempts FROM dt_history WHERE id = $ids[0]"), '1', 'refused: the bad one was sent once');
	end_busy_drain($drain);
	return;
}

# The key is refused, or the mapping is missing: the rows are sent when that is mended,
# and a cancel knows which of them have left before.
sub behind_a_hold
{
	my $drain = busy_drain();
	my $phone = new_phone();

	$sb->rule($phone, { status => 401, times => 1 });
	my @ids = split /\n/, $calls->sql('SET doubletick.server = second; BEGIN;' . join(';', map { enqueueing($phone, [$_]) } qw(a b c)) . ';COMMIT');
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_hold WHERE server = 'second'") eq '1' }, 'held: for a bad key');
	push @ids, enqueue($phone, ['d'], undef, server => 'second');
	is($calls->sql("SELECT string_agg(attempts || ' ' || coalesce(http_status, 0), ', ' ORDER BY id) FROM dt_queue WHERE server = 'second'"),
		'0 401, 0 401, 0 401, 0 0', 'held: no attempt is counted, but the status is stored');
	is($calls->sql("SELECT dt_cancel($ids[0])"), 'f', 'held: dt_cancel is false for what has left');
	is(states($ids[0]), 'cancelled', 'held: but takes it out');
	$calls->sql("ALTER SERVER second OPTIONS (SET timeout '50s')");
	becomes('done', 'held: the others are sent when it is mended', @ids[ 1 .. 3 ]);

	$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER second');
	my $id = enqueue($phone, ['e'], undef, server => 'second');
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_hold WHERE server = 'second'") eq '1' }, 'held: for want of a mapping');
	is($calls->sql("SELECT dt_cancel($id)"), 't', 'held: dt_cancel is true for what has not left');
	$calls->sql("CREATE USER MAPPING FOR CURRENT_USER SERVER second OPTIONS (api_key '" . $sb->key . "')");
	end_busy_drain($drain);
	return;
}

# Rows are enqueued while a request of their customer is out, and one of them is
# cancelled.
sub behind_a_request
{
	my $drain = busy_drain();

	foreach my $which (1 .. 4)
	{
		my $phone = new_phone();
		$sb->hold($phone, { times => 1 });
		my @ids = enqueue_each($phone, 'a');
		$sb->await_held(1, $phone);
		push @ids, enqueue_each($phone, qw(b c d e));
		everything_is_seen("behind a request, without row $which: the drain has seen the others");
		block_customers($ids[$which]);
		$sb->release($phone);
		cancel_and_unblock($ids[$which]);
		becomes('done', 'the others are sent', grep { $_ != $ids[$which] } @ids);
		is_received($phone, join(' ', 'a', join ',', grep { $_ ne (qw(a b c d e))[$which] } qw(b c d e)), 'in one request');
	}
	end_busy_drain($drain);
	return;
}

# Rows have failed, and are retried while another one of their customer waits for its
# own retry.
sub retried_behind_a_backoff
{
	my $drain = busy_drain();
	my $phone = new_phone();

	$sb->rule($phone, { status => 422, times => 2 });
	my @failed = enqueue_each($phone, 'a');
	becomes('failed', 'retried: one is refused', @failed);
	push @failed, enqueue_each($phone, 'b');
	becomes('failed', 'retried: another one is', @failed);

	$sb->hold($phone, { status => 503, retry_after => '3', times => 1 });
	my @ids = enqueue_each($phone, 'c');
	$sb->await_held(1, $phone);
	block_customers(@ids);
	$sb->release($phone);
	eventually(sub { $calls->sql("SELECT attempts FROM dt_queue WHERE id = $ids[0]") eq '1' }, 'retried: a third one waits');
	is($calls->sql("SELECT dt_retry($_)"), 't', 'retried behind it') foreach @failed;
	everything_is_seen('retried: the drain has seen that');
	is_received($phone, 'a b c', 'retried: all rows of the customer wait');
	cancel_and_unblock($ids[0]);
	becomes('done', 'retried: the others are sent, although the row that they waited for is gone', @failed);
	is_received($phone, 'a b c a,b', 'retried: in one request');
	is($calls->sql('SELECT count(*) FROM dt_waiting WHERE keep'), '0', 'retried: dt_retry leaves no keep in the queue');
	end_busy_drain($drain);

	# The same behind more rows than are read at once, which are committed when the last one has failed.
	my $session = $node->background_psql('postgres');
	$phone = new_phone();
	$session->query_safe("BEGIN; SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['t' || n])) FROM generate_series(1, 1000) AS n");
	my ($last) = enqueue_each($phone, 'last');
	$sb->rule($phone, { status => 422, times => 1 });
	drain();
	is(states($last), 'failed', 'retried, many: the last one is refused');
	$session->query_safe('COMMIT');
	$session->quit;
	$sb->rule($phone, { status => 503, retry_after => '3000', times => 1 });
	drain();
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE phone = '$phone' AND attempts = 1 AND due_at > now() + '40 min'"), '1000',
		'retried, many: the others wait');

	# Eight seconds are left for the cancels.
	time_passes('2992 seconds');
	$drain = busy_drain();
	is($calls->sql("SELECT dt_retry($last)"), 't', 'retried, many: behind the others');
	everything_is_seen('retried, many: the drain has seen that');
	$calls->sql("SELECT count(dt_cancel(id)) FROM dt_queue WHERE phone = '$phone' AND id <> $last");
	becomes('done', 'retried, many: it is sent when they are gone', $last);
	end_busy_drain($drain);
	return;
}

# Definitions are dropped and created while a request is out.
sub lane_that_changes
{
	my $phone = new_phone();
	my $mapping = 'USER MAPPING FOR CURRENT_USER SERVER doubletick';
	my @ids;

	# This drain would end with its last request, if it knew of no other row.
	$sb->hold($phone, { times => 1 });
	@ids = enqueue_each($phone, 'a');
	my $drain = start_drain();
	$sb->await_held(1, $phone);
	$calls->sql("DROP $mapping");
	push @ids, enqueue_each($phone, 'b');
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, 'mapping: requests are held without it');
	$calls->sql("CREATE $mapping OPTIONS (api_key '" . $sb->key . "')");
	push @ids, enqueue_each($phone, 'c');
	# A drain looks at a held lane once a second, and would end with the request that is out.
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '0' }, 'mapping: the hold ends when it is there again');
	$sb->release($phone);
	await_drain($drain);
	is(states(@ids), 'done done done', 'mapping: the same drain sends what was enqueued meanwhile');
	is_received($phone, 'a b,c', 'mapping: in one request');

	# The role is dropped: the request that is out is settled, the other rows fail.
	foreach my $answer ({}, { status => 401 }, { status => 503 })
	{
		$phone = new_phone();
		$calls->sql("CREATE ROLE leaver LOGIN; GRANT USAGE ON FOREIGN SERVER doubletick TO leaver;
			GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO leaver;
			CREATE USER MAPPING FOR leaver SERVER doubletick OPTIONS (api_key 'key_app')");
		$sb->hold($phone, { times => 1, %$answer });
		@ids = as('leaver', enqueueing($phone, ['a']));
		$drain = start_drain();
		$sb->await_held(1, $phone);
		push @ids, as('leaver', enqueueing($phone, ['b']));
		$calls->sql('BEGIN; DROP OWNED BY leaver; DROP ROLE leaver; COMMIT');
		$sb->release($phone);
		my $messages = await_drain($drain);
		# What is answered with 503 may wait until it is due, and the drain ends before that.
		my $states = (%$answer ? 'failed' : 'done') . ' failed';
		eventually(sub { $calls->sql('CALL dt_process_queue()'); states(@ids) eq $states }, 'role: no row waits for a role that is dropped') || diag(states(@ids));
		is($calls->sql("SELECT error FROM dt_history WHERE id = $ids[1]"), 'role does not exist any more', 'role: the error says why');
		unlike($messages, qr/\(null\)/, 'role: no message misses its name');
		is($calls->sql('SELECT count(*) FROM dt_hold'), '0', 'role: nothing is held for it');
	}
	return;
}

# A transaction of one role has cancelled thousands of rows, and goes on for long; the
# rows of others do not wait for it.
sub cancel_of_others
{
	my $session = $node->background_psql('postgres');

	make_roles();
	as('other', "SELECT count(dt_enqueue_remove_tags_custom_fields((919860000000 + n)::text, '{lead}')) FROM generate_series(1, 3000) AS n");
	$session->query_safe('SET SESSION AUTHORIZATION other');
	is($session->query_safe('BEGIN; SELECT count(*) FILTER (WHERE dt_cancel(id)) FROM dt_queue'), '3000', 'others: one role cancels its rows');
	my @phones = map { new_phone() } 1 .. 300;
	$calls->sql(join ';', map { enqueueing($_, ['lead']) } @phones);
	$sb->clear_journal;
	drain();
	is(scalar @{ $sb->journal }, 300, 'others: the rows of another role are sent');
	is($calls->sql("SELECT count(*) FROM dt_waiting WHERE role = current_user::regrole"), '0', 'others: all of them');
	$session->query_safe('ROLLBACK');
	drain();
	is(scalar @{ $sb->journal }, 3300, 'others: so are the first when their cancel is rolled back');
	$session->quit;
	return;
}

# Keeps are for the removals that were enqueued before, and are deleted with them.
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
	is($calls->sql($nkeeps), '1', 'keeps: one is stored');
	$calls->sql("UPDATE customers SET tags = '{a,c,d}'");
	$sb->rule($phone, { status => 503, retry_after => '3000' });
	drain();
	is_received($phone, 'b', 'keeps: a name that came back is not sent');
	is($calls->sql("SELECT string_agg(state || tags::text, ' ') FROM dt_history WHERE phone = '$phone'"), 'cancelled{a}', 'keeps: its removal is cancelled');
	is($calls->sql($nkeeps), '0', 'keeps: the keep is deleted, though a later removal waits');

	$calls->sql("UPDATE customers SET tags = '{a,b,c,d}'; UPDATE customers SET tags = '{a,b,d}'");
	is($calls->sql($nkeeps), '1', 'keeps: another one is stored');
	drain();
	is($calls->sql("$nkeeps AND EXISTS (SELECT FROM dt_queue WHERE phone = '$phone' AND tags = '{c}')"), '0', 'keeps: it is deleted with the removal that it took back');
	is($calls->sql("SELECT tags FROM dt_queue WHERE phone = '$phone'"), '{c}', 'keeps: the last removal waits');
	is($calls->sql("SELECT count(*) FROM dt_history WHERE phone = '$phone' AND state = 'cancelled'"), '2', 'keeps: two were taken back');
	$sb->clear_rules;
	time_passes('1 hour');
	drain();
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'keeps: nothing waits');
	return;
}

behind_a_backoff();
behind_a_refusal();
behind_a_hold();
behind_a_request();
retried_behind_a_backoff();
$canceller->quit;
lane_that_changes();
cancel_of_others();
keeps_go();
done_testing;

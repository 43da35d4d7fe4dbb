
# What takes a waiting removal back, and what sends it again: dt_cancel, dt_retry,
# and keeps, which are names that a customer has again.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Door;

open_door(conf => 'max_prepared_transactions = 10');

sub cancelled
{
	my %phones = map { $_ => new_phone() } qw(waiting other hanging again same statement);

	# Waits: true, and once.
	my $id = $calls->sql(enqueue($phones{waiting}, ['lead']));
	is($calls->sql("SELECT dt_cancel($id)"), 't', 'what waits is cancelled');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'but once');
	is($calls->sql("SELECT state, attempts, http_status IS NULL FROM dt_history WHERE id = $id"), 'cancelled|0|t', 'the history says so');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'what was cancelled cannot be retried');
	is($calls->sql("SELECT dt_cancel(NULL) IS NULL"), 't', 'NULL is strict');
	is($calls->sql("SELECT dt_cancel(9223372036854775807), dt_cancel(-1)"), 'f|f', 'ids that are not there');

	# Whose: that of the row's role.
	$id = as('app', enqueue($phones{other}, ['lead']));
	is(as($_, "SELECT dt_cancel($id)"), 'f', "$_ may not cancel") foreach qw(other stranger);
	drain();
	is_received($phones{other}, 'lead', 'and it goes');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'what is done is not cancelled');
	$id = as('app', enqueue($phones{other}, ['vip']));
	is(as('member', "SELECT dt_cancel($id)"), 't', 'a member may');

	# In flight: false, and so it is.
	$sb->rule($phones{hanging}, { fault => 'hang' });
	$id = $calls->sql(enqueue($phones{hanging}, ['lead']));
	my @draining = draining();
	eventually(sub { received($phones{hanging}) }, 'a request is out');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'what is in flight is not cancelled');
	is($calls->sql("SELECT in_flight FROM dt_status"), '1', 'dt_status knows of it');
	my $next = $calls->sql(enqueue($phones{hanging}, ['next']));
	is($calls->sql("SELECT dt_cancel($next)"), 'f', 'nor, for now, what waits behind it');
	break_off(@draining);
	is($calls->sql("SELECT dt_cancel($next)"), 't', 'which is, when nothing is in flight any more');
	$sb->clear_rules;
	drain();
	is(state_of($id), 'done', 'the one that was in flight goes again');
	is_received($phones{hanging}, 'lead lead', 'alone');

	# Attempted before: out, but false.
	$sb->rule($phones{again}, { status => 503, retry_after => '3000' });
	$id = $calls->sql(enqueue($phones{again}, ['lead']));
	drain();
	is(state_of($id), 'waiting', 'one that waits to be tried again');
	is($calls->sql("SELECT attempts, http_status, last_error IS NOT NULL, due_at > now() + interval '40 min'
		FROM dt_queue WHERE id = $id"), '1|503|t|t', 'as dt_queue says');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'has left before');
	is($calls->sql("SELECT state, attempts FROM dt_history WHERE id = $id"), 'cancelled|1', 'but is taken out');
	$sb->clear_rules;
	drain();
	is_received($phones{again}, 'lead', 'and does not go again');

	# In the transaction, and in the statement, of the enqueueing.
	is($calls->sql('BEGIN; ' . enqueue($phones{same}, ['lead']) . " AS id \\gset\nSELECT dt_cancel(:id);\nCOMMIT"), 't',
		'cancelled by the same transaction');
	is($calls->sql('SELECT dt_cancel(' . enqueue($phones{statement}, ['lead']) =~ s/SELECT //r . ')'), 't', 'cancelled by the same statement');
	drain();
	is_received($phones{$_}, '', "cancelled and never sent: $_") foreach qw(waiting same statement);
	return;
}

# A cancel that is not committed yet keeps its row from leaving.
sub cancel_undecided
{
	my %phones = map { $_ => new_phone() } qw(committed rolled savepoint prepared error);
	my %ids = map { $_ => $calls->sql(enqueue($phones{$_}, ['lead'])) } sort keys %phones;
	my @sessions = map { $node->background_psql('postgres') } 1 .. 2;

	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($ids{committed})"), 't', 'cancelled, not committed');
	is($sessions[1]->query_safe("BEGIN; SELECT dt_cancel($ids{rolled})"), 't', 'another');
	is($calls->sql("BEGIN; SAVEPOINT s; SELECT dt_cancel($ids{savepoint}); ROLLBACK TO s; COMMIT"), 't', 'one in a savepoint that is undone');
	is($calls->sql("BEGIN; SELECT dt_cancel($ids{prepared}); PREPARE TRANSACTION 'cancel'"), 't', 'one is prepared');
	drain();
	is_received($phones{$_}, '', "does not leave: $_") foreach qw(committed rolled prepared);
	is_received($phones{savepoint}, 'lead', 'one that was undone leaves');

	$sessions[0]->query_safe('COMMIT');
	$sessions[1]->query_safe('ROLLBACK');
	$calls->sql("COMMIT PREPARED 'cancel'");
	drain();
	is_received($phones{$_}, '', "never leaves: $_") foreach qw(committed prepared);
	is_received($phones{rolled}, 'lead', 'leaves when the cancel is rolled back');
	is(state_of($ids{$_}), 'cancelled', "cancelled: $_") foreach qw(committed prepared);
	is(state_of($ids{rolled}), 'done', 'and is done');

	# The same while one drain goes on.
	my ($hanging, $wanted) = (new_phone(), new_phone());
	$sb->rule($hanging, { fault => 'hang' });
	$calls->sql(enqueue($hanging, ['lead']));
	my $id = $calls->sql(enqueue($wanted, ['lead']));
	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($id)"), 't', 'cancelled, not committed');
	my @draining = draining();
	eventually(sub { received($hanging) }, 'a drain is under way');
	is_received($wanted, '', 'what is being cancelled does not leave');
	$sessions[0]->query_safe('ROLLBACK');
	eventually(sub { received($wanted) }, 'and does when the cancel is rolled back');
	break_off(@draining);

	# Two who cancel: one has it.
	$id = $calls->sql(enqueue(new_phone(), ['lead']));
	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($id)"), 't', 'one cancels');
	$sessions[1]->query_until(qr/on its way/, "\\echo on its way\nSELECT 'it is ' || dt_cancel($id);\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") }, 'another waits');
	$sessions[0]->query_safe('COMMIT');
	like($sessions[1]->query('SELECT 1'), qr/it is false/, 'and is told that it has not');
	$_->quit foreach @sessions;
	$sb->clear_rules;
	drain();
	return;
}

# Locks are few, however many rows one transaction takes back.
sub cancel_in_bulk
{
	my $before = $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'cancelled'");

	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields((919870000000 + i)::text, '{lead}'))
		FROM generate_series(1, 20000) i");
	$sb->clear_journal;
	is($calls->sql('SELECT count(*) FILTER (WHERE dt_cancel(id)) FROM dt_queue'), '20000', '20,000 rows are cancelled at once');
	is($calls->sql("SELECT count(*) - $before FROM dt_history WHERE state = 'cancelled'"), '20000', 'all of them');
	drain();
	is(scalar @{ $sb->journal }, 0, 'none of them leaves');
	return;
}

sub retried
{
	my ($phone, $other) = (new_phone(), new_phone());

	$sb->rule($_, { status => 422 }) foreach $phone, $other;
	my $id = as('app', enqueue("+$phone", [ 'lead', 'vip' ], ['plan'], '919812345678'));
	my $two = $calls->sql(enqueue($other, ['lead']));
	drain();
	is(state_of($id), 'failed', 'refused');
	is(as('other', "SELECT dt_retry($id)"), 'f', 'another role may not retry');
	is(as('stranger', "SELECT dt_retry($id)"), 'f', 'nor one that only may SET ROLE');
	is($calls->sql("BEGIN; SELECT dt_retry($id); ROLLBACK"), 't', 'a retry');
	is(state_of($id), 'failed', 'can be rolled back');

	my $was = $calls->sql("SELECT enqueued_at FROM dt_history WHERE id = $id");
	is(as('member', "SELECT dt_retry($id), dt_retry($id)"), 't|f', 'a member may, once');
	is($calls->sql("SELECT role, phone, tags, fields, waba, attempts, enqueued_at > '$was', last_error IS NULL, http_status IS NULL
		FROM dt_queue WHERE id = $id"), "app|+$phone|{lead,vip}|{plan}|919812345678|0|t|t|t", 'it waits as if it were new');
	is($calls->sql("SELECT count(*) FROM dt_history WHERE id = $id"), '0', 'and is no longer in the history');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'what waits cannot be retried');
	$sb->clear_rules;
	drain();
	is($calls->sql("SELECT state, attempts FROM dt_history WHERE id = $id"), 'done|1', 'it is done');
	is_received("+$phone", 'lead,vip,=plan lead,vip,=plan', 'by the second request');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'what is done cannot be retried');
	is($calls->sql("SELECT dt_retry(9223372036854775807), dt_retry(-1), dt_retry(NULL)"), 'f|f|', 'nor what is not there');

	# Two who retry: one has it. And it can be cancelled and fail again.
	my @sessions = map { $node->background_psql('postgres') } 1 .. 2;
	is($sessions[0]->query_safe("BEGIN; SELECT dt_retry($two)"), 't', 'one retries');
	$sessions[1]->query_until(qr/on its way/, "\\echo on its way\nSELECT 'it is ' || dt_retry($two);\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") }, 'another waits');
	$sessions[0]->query_safe('COMMIT');
	like($sessions[1]->query('SELECT 1'), qr/it is false/, 'and is told that it has not');
	$_->quit foreach @sessions;
	is($calls->sql("SELECT count(*) FROM dt_waiting WHERE id = $two"), '1', 'it waits once');
	is($calls->sql("SELECT dt_cancel($two)"), 't', 'and can be cancelled');
	is(state_of($two), 'cancelled', 'and is');
	return;
}

sub nkeeps { return $calls->sql('SELECT count(*) FROM dt_waiting WHERE keep'); }

sub kept
{
	my %phones = map { $_ => new_phone() } qw(some all earlier waba role retried hanging open);

	# Later keeps take back; the "+" does not matter.
	my %ids = (some => $calls->sql(enqueue($phones{some}, [ 'a', 'b', 'c' ], [ 'a', 'b' ])));
	$calls->sql(keep("+$phones{some}", 'b,z', 'a'));
	is($calls->sql("SELECT tags, fields FROM dt_queue WHERE id = $ids{some}"), '{a,c}|{b}', 'dt_queue shows what is left');
	$ids{all} = $calls->sql(enqueue($phones{all}, ['a'], ['b']));
	$calls->sql($_) foreach keep($phones{all}, 'a'), keep($phones{all}, '', 'b');
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE id = $ids{all}"), '0', 'what is wholly taken back is not shown');
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE attempts IS NULL OR id NOT IN (SELECT id FROM dt_waiting WHERE NOT keep)"), '0', 'nor are keeps');

	# Earlier ones do not.
	$ids{before} = $calls->sql(enqueue($phones{earlier}, ['x']));
	$calls->sql(keep($phones{earlier}, 'a'));
	$ids{earlier} = $calls->sql(enqueue($phones{earlier}, [ 'a', 'b' ]));
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $ids{earlier}"), '{a,b}', 'an earlier keep takes nothing back');

	# Nor those of another customer.
	$ids{waba} = $calls->sql(enqueue($phones{waba}, ['a'], undef, '919812345678'));
	$calls->sql($_) foreach keep($phones{waba}, 'a'), keep($phones{waba}, 'a', '', '919812345679');
	$ids{role} = as('app', enqueue($phones{role}, ['a']));
	$calls->sql(keep($phones{role}, 'a'));
	is($calls->sql("SELECT string_agg(tags::text, ' ') FROM dt_queue WHERE id IN ($ids{waba}, $ids{role})"), '{a} {a}', 'nor does one of another waba or role');

	drain();
	is_received($phones{some}, 'a,c,=b', 'sent without what was taken back');
	is_received($phones{all}, '', 'wholly taken back: not sent');
	is_received($phones{earlier}, 'x,a,b', 'the earlier keep took nothing back');
	is_received($phones{$_}, 'a', "another $_") foreach qw(waba role);
	is($calls->sql("SELECT state, attempts, http_status IS NULL, tags FROM dt_history WHERE id = $ids{all}"), 'cancelled|0|t|{a}', 'wholly taken back: cancelled');
	is(state_of($ids{some}), 'done', 'partly: done');
	is(nkeeps(), '0', 'keeps with nothing left to keep are gone');

	# One that comes while the removal is out changes nothing, and goes.
	$sb->rule($phones{hanging}, { delay_ms => 1000 });
	$ids{hanging} = $calls->sql(enqueue($phones{hanging}, ['a']));
	my ($session, $pid) = draining();
	eventually(sub { received($phones{hanging}) }, 'a request is out');
	$calls->sql(keep($phones{hanging}, 'a'));
	is(state_of($ids{hanging}), 'none', 'dt_queue shows it as taken back');
	$session->query('SELECT 1');
	is(state_of($ids{hanging}), 'done', 'but it was out, and is done');
	is(nkeeps(), '0', 'and the keep goes with it');
	$session->quit;

	# Out, and to be tried again: then it does.
	$sb->rule($phones{hanging}, { status => 503, delay_ms => 300, times => 1 });
	$ids{hanging} = $calls->sql(enqueue($phones{hanging}, [ 'a', 'b' ]));
	($session, $pid) = draining();
	eventually(sub { received($phones{hanging}) == 2 }, 'a request is out');
	$calls->sql(keep($phones{hanging}, 'a'));
	$session->query('SELECT 1');
	$session->quit;
	eventually(sub { drain(); state_of($ids{hanging}) eq 'done' }, 'it is tried again');
	is_received($phones{hanging}, 'a a,b b', 'without what came back meanwhile');
	is(nkeeps(), '0', 'and the keep goes with it');

	# Removal and keep of a transaction that is still open.
	$session = $node->background_psql('postgres');
	$ids{open} = $calls->sql(enqueue($phones{open}, [ 'a', 'b' ]));
	$session->query_safe('BEGIN; ' . keep($phones{open}, 'b'));
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $ids{open}"), '{a,b}', 'a keep counts when it is committed');
	$session->query_safe('ROLLBACK');
	drain();
	is_received($phones{open}, 'a,b', 'and not at all when it is rolled back');
	$calls->sql(enqueue($phones{open}, ['c']));
	$session->query_safe('BEGIN; ' . enqueue($phones{open}, ['d']));
	$calls->sql(keep($phones{open}, 'c,d'));
	drain();
	is(nkeeps(), '1', 'a keep stays while a removal before it may yet commit');
	$session->query_safe('COMMIT');
	drain();
	is_received($phones{open}, 'a,b', 'and takes that back too');
	is(nkeeps(), '0', 'and goes then');
	$session->quit;

	# dt_retry is newer than what came back before it.
	$sb->rule($phones{retried}, { status => 422, times => 1 });
	$ids{retried} = $calls->sql(enqueue($phones{retried}, ['a']));
	drain();
	$session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; ' . enqueue($phones{retried}, ['z']));
	$calls->sql(keep($phones{retried}, 'a'));
	is($calls->sql("SELECT dt_retry($ids{retried})"), 't', 'a retry, after its name came back');
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $ids{retried}"), '{a}', 'is shown');
	drain();
	is_received($phones{retried}, 'a a', 'and goes');
	$session->query_safe('ROLLBACK');
	$session->quit;
	drain();
	is(nkeeps(), '0', 'no keep is left');
	return;
}

# Two customers with one number: of one phone, and of WABA numbers whose hashes meet.
sub one_number
{
	my $phone = new_phone();
	my $waba = '919812345678';
	my $hash = "hashtextextended(%s, hashtextextended('$phone', hashtextextended('doubletick', current_user::regrole::oid::bigint))) & 16383";
	my $other = $calls->sql(sprintf("SELECT n FROM generate_series(919800000000, 919800300000) AS n WHERE $hash = $hash LIMIT 1", 'n::text', "'$waba'"));
	my $sent = sub { return join ' ', map { "$_->{body}{wabaNumber}:" . join ',', @{ $_->{body}{tags} } }
		  grep { $_->{body}{phone} eq $phone } @{ $sb->journal } };

	$sb->rule($phone, { delay_ms => 200, times => 1 });
	$calls->sql(enqueue($phone, ['a'], undef, $waba));
	$calls->sql(enqueue($phone, ['b'], undef, $other));
	is($calls->sql("SELECT count(*), count(DISTINCT customer) FROM dt_waiting"), '2|1', 'two customers have one number');
	$calls->sql(keep($phone, 'b', '', $waba));
	$calls->sql(keep($phone, 'a', '', $other));
	is($calls->sql("SELECT string_agg(tags::text, ' ' ORDER BY id) FROM dt_queue"), '{a} {b}', 'they keep nothing for each other');
	drain();
	is($sent->(), "$waba:a $other:b", 'each is sent its own');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'and nothing is left');

	$sb->clear_journal;
	$sb->rule($phone, { status => 503, retry_after => '3000', times => 1 });
	$calls->sql(enqueue($phone, ['c'], undef, $waba));
	drain();
	$calls->sql(enqueue($phone, ['d'], undef, $waba));
	$calls->sql(enqueue($phone, ['e'], undef, $other));
	drain();
	is($sent->(), "$waba:c $other:e", 'while one backs off, the other does not');

	# More rows of the one than are read at a time.
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['f'], waba => '$waba')) FROM generate_series(1, 1500)");
	$calls->sql(enqueue($phone, ['g'], undef, $other));
	drain();
	is($sent->(), "$waba:c $other:e $other:g", 'nor does it where the one has very many');
	$calls->sql('TRUNCATE dt_waiting');
	return;
}

make_roles();
cancelled();
cancel_undecided();
cancel_in_bulk();
retried();
kept();
one_number();
done_testing;


# What takes a waiting removal back, and what sends it again: dt_cancel, dt_retry,
# and keeps, which say that a customer has names again.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1, conf => 'max_prepared_transactions = 10');

sub cancelled
{
	my %phones = map { $_ => new_phone() } qw(waiting other hanging again same statement);

	# A removal that waits: true, and once.
	my $id = enqueue($phones{waiting}, ['lead']);
	is($calls->sql("SELECT dt_cancel($id)"), 't', 'a waiting removal is cancelled');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'but not twice');
	is($calls->sql("SELECT state, attempts, http_status IS NULL FROM dt_history WHERE id = $id"), 'cancelled|0|t', 'the history says so');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'a cancelled removal cannot be retried');
	is($calls->sql("SELECT dt_cancel(NULL) IS NULL"), 't', 'NULL is strict');
	is($calls->sql("SELECT dt_cancel(9223372036854775807), dt_cancel(-1)"), 'f|f', 'ids that do not exist');

	# Only who has the row's role may cancel.
	$id = as('app', enqueueing($phones{other}, ['lead']));
	is(as($_, "SELECT dt_cancel($id)"), 'f', "$_ may not cancel") foreach qw(other stranger);
	drain();
	is_received($phones{other}, 'lead', 'so that it is sent');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'what is done cannot be cancelled');
	$id = as('app', enqueueing($phones{other}, ['vip']));
	is(as('member', "SELECT dt_cancel($id)"), 't', 'a member of the role may');

	# A request that is out: false.
	$sb->hold($phones{hanging});
	$id = enqueue($phones{hanging}, ['lead']);
	my $drain = start_drain();
	$sb->await_held(1);
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'a removal in flight cannot be cancelled');
	is($calls->sql("SELECT in_flight FROM dt_status"), '1', 'dt_status counts it as in flight');
	my $next = enqueue($phones{hanging}, ['next']);
	is($calls->sql("SELECT dt_cancel($next)"), 'f', 'nor, for now, can another one of the customer');
	break_off($drain);
	is($calls->sql("SELECT dt_cancel($next)"), 't', 'that one can, when nothing is in flight any more');
	$sb->clear_rules;
	drain();
	is(states($id), 'done', 'the one that was in flight is sent again');
	is_received($phones{hanging}, 'lead lead', 'without the cancelled one');

	# A removal that was sent before: it is taken out, but the result is false.
	$sb->rule($phones{again}, { status => 503, retry_after => '3000' });
	$id = enqueue($phones{again}, ['lead']);
	drain();
	is(states($id), 'waiting', 'a removal waits to be sent again');
	is($calls->sql("SELECT attempts, http_status, last_error IS NOT NULL, due_at > now() + interval '40 min'
		FROM dt_queue WHERE id = $id"), '1|503|t|t', 'dt_queue shows the last request');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'dt_cancel is false, since it has left before');
	is($calls->sql("SELECT state, attempts FROM dt_history WHERE id = $id"), 'cancelled|1', 'but takes it out');
	$sb->clear_rules;
	drain();
	is_received($phones{again}, 'lead', 'it is not sent again');

	# Enqueued and cancelled by one transaction, and by one statement.
	is($calls->sql('BEGIN; ' . enqueueing($phones{same}, ['lead']) . " AS id \\gset\nSELECT dt_cancel(:id);\nCOMMIT"), 't',
		'cancelled by the same transaction');
	is($calls->sql('SELECT dt_cancel(' . enqueueing($phones{statement}, ['lead']) =~ s/SELECT //r . ')'), 't', 'cancelled by the same statement');
	drain();
	is_received($phones{$_}, '', "cancelled and never sent: $_") foreach qw(waiting same statement);
	return;
}

# A row is not sent while a transaction that cancels it may still commit.
sub cancel_undecided
{
	my %phones = map { $_ => new_phone() } qw(committed rolled savepoint prepared error);
	my %ids = map { $_ => enqueue($phones{$_}, ['lead']) } sort keys %phones;
	my @sessions = map { $node->background_psql('postgres') } 1 .. 2;

	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($ids{committed})"), 't', 'one is cancelled, not committed');
	is($sessions[1]->query_safe("BEGIN; SELECT dt_cancel($ids{rolled})"), 't', 'so is another');
	is($calls->sql("BEGIN; SAVEPOINT s; SELECT dt_cancel($ids{savepoint}); ROLLBACK TO s; COMMIT"), 't', 'one is cancelled in a savepoint that is rolled back');
	is($calls->sql("BEGIN; SELECT dt_cancel($ids{prepared}); PREPARE TRANSACTION 'cancel'"), 't', 'one by a prepared transaction');
	drain();
	is_received($phones{$_}, '', "is not sent: $_") foreach qw(committed rolled prepared);
	is_received($phones{savepoint}, 'lead', 'the one of the savepoint is sent');

	$sessions[0]->query_safe('COMMIT');
	$sessions[1]->query_safe('ROLLBACK');
	$calls->sql("COMMIT PREPARED 'cancel'");
	drain();
	is_received($phones{$_}, '', "is never sent: $_") foreach qw(committed prepared);
	is_received($phones{rolled}, 'lead', 'is sent when the cancel is rolled back');
	is(states($ids{$_}), 'cancelled', "cancelled: $_") foreach qw(committed prepared);
	is(states($ids{rolled}), 'done', 'done: rolled');

	# The same while a drain is under way.
	my ($hanging, $wanted) = (new_phone(), new_phone());
	$sb->hold($hanging);
	enqueue($hanging, ['lead']);
	my $id = enqueue($wanted, ['lead']);
	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($id)"), 't', 'cancelled, not committed');
	my $drain = start_drain();
	$sb->await_held(1, $hanging);
	my $later = new_phone();
	enqueue($later, ['lead']);
	eventually(sub { received($later) }, 'a row that is enqueued later is sent');
	is_received($wanted, '', 'the one that is being cancelled is not');
	$sessions[0]->query_safe('ROLLBACK');
	eventually(sub { received($wanted) }, 'it is when the cancel is rolled back');
	break_off($drain);

	# Of two that cancel the same row, only one is told true.
	$id = enqueue(new_phone(), ['lead']);
	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($id)"), 't', 'one session cancels');
	$sessions[1]->query_until(qr/on its way/, "\\echo on its way\nSELECT 'it is ' || dt_cancel($id);\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") }, 'another session waits');
	$sessions[0]->query_safe('COMMIT');
	like($sessions[1]->query('SELECT 1'), qr/it is false/, 'and gets false');
	$_->quit foreach @sessions;
	$sb->clear_rules;
	drain();
	return;
}

# A transaction that cancels very many rows does not need as many locks.
sub cancel_in_bulk
{
	my $before = $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'cancelled'");

	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields((919870000000 + i)::text, '{lead}'))
		FROM generate_series(1, 20000) i");
	$sb->clear_journal;
	is($calls->sql('SELECT count(*) FILTER (WHERE dt_cancel(id)) FROM dt_queue'), '20000', '20,000 rows are cancelled at once');
	is($calls->sql("SELECT count(*) - $before FROM dt_history WHERE state = 'cancelled'"), '20000', 'all of them');
	drain();
	is(scalar @{ $sb->journal }, 0, 'none of them is sent');
	return;
}

sub retried
{
	my ($phone, $other) = (new_phone(), new_phone());

	$sb->rule($_, { status => 422 }) foreach $phone, $other;
	my $id = as('app', enqueueing("+$phone", [ 'lead', 'vip' ], ['plan'], waba => '919812345678'));
	my $two = enqueue($other, ['lead']);
	drain();
	is(states($id), 'failed', 'a removal is refused');
	is(as('other', "SELECT dt_retry($id)"), 'f', 'another role may not retry');
	is(as('stranger', "SELECT dt_retry($id)"), 'f', 'nor a role that may only SET ROLE');
	is($calls->sql("BEGIN; SELECT dt_retry($id); ROLLBACK"), 't', 'dt_retry in a transaction');
	is(states($id), 'failed', 'can be rolled back');

	my $was = $calls->sql("SELECT enqueued_at FROM dt_history WHERE id = $id");
	is(as('member', "SELECT dt_retry($id), dt_retry($id)"), 't|f', 'a member of the role may, once');
	is($calls->sql("SELECT role, phone, tags, fields, waba, attempts, enqueued_at > '$was', last_error IS NULL, http_status IS NULL
		FROM dt_queue WHERE id = $id"), "app|+$phone|{lead,vip}|{plan}|919812345678|0|t|t|t", 'the removal waits as a new one does');
	is($calls->sql("SELECT count(*) FROM dt_history WHERE id = $id"), '0', 'it is no longer in the history');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'a waiting removal cannot be retried');
	$sb->clear_rules;
	drain();
	is($calls->sql("SELECT state, attempts FROM dt_history WHERE id = $id"), 'done|1', 'the removal is done');
	is_received("+$phone", 'lead,vip,=plan lead,vip,=plan', 'by the second request');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'what is done cannot be retried');
	is($calls->sql("SELECT dt_retry(9223372036854775807), dt_retry(-1), dt_retry(NULL)"), 'f|f|', 'nor can what does not exist');

	# Of two that retry the same row, only one is told true.
	my @sessions = map { $node->background_psql('postgres') } 1 .. 2;
	is($sessions[0]->query_safe("BEGIN; SELECT dt_retry($two)"), 't', 'one session retries');
	$sessions[1]->query_until(qr/on its way/, "\\echo on its way\nSELECT 'it is ' || dt_retry($two);\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") }, 'another session waits');
	$sessions[0]->query_safe('COMMIT');
	like($sessions[1]->query('SELECT 1'), qr/it is false/, 'and gets false');
	$_->quit foreach @sessions;
	is($calls->sql("SELECT count(*) FROM dt_waiting WHERE id = $two"), '1', 'it waits once');
	is($calls->sql("SELECT dt_cancel($two)"), 't', 'it can be cancelled');
	is(states($two), 'cancelled', 'and is');
	return;
}

# A removal that can never be sent does not undo the retry of the others.
sub retried_in_bulk
{
	my ($bad, $roleless, $refused) = ('0988', new_phone(), new_phone());

	$calls->sql('CREATE ROLE gone LOGIN; GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO gone');
	$sb->rule($refused, { status => 422, times => 1 });
	my @ids = ($calls->sql("SELECT dt_try_enqueue_remove_tags_custom_fields('$bad', '{lead}')"),
		as('gone', enqueueing($roleless, ['lead'])), enqueue($refused, ['lead']));
	$calls->sql('DROP OWNED BY gone; DROP ROLE gone');
	drain();
	is(states(@ids), 'failed failed failed', 'retry in bulk: three have failed');

	my ($result, $said) = ('', '');
	my $in = join ',', @ids;
	$node->psql('postgres', "SELECT string_agg(dt_retry(id)::text, ' ' ORDER BY id) FROM (SELECT id FROM dt_history WHERE id IN ($in) ORDER BY id) AS failed",
		stdout => \$result, stderr => \$said, on_error_stop => 0);
	is($result, 'false false true', 'retry in bulk: the one that can be sent is put back');
	like($said, qr/NOTICE:  removal $ids[0] is not put back: phone is not a number in international format: "$bad"$/m, 'retry in bulk: a bad phone is named');
	like($said, qr/NOTICE:  removal $ids[1] is not put back: role does not exist any more\n.*HINT:  Enqueue it again as another role\.$/m,
		'retry in bulk: a dropped role is named');
	unlike($said, qr/removal $ids[2]/, 'retry in bulk: the good one is not');
	drain();
	is(states(@ids), 'failed failed done', 'retry in bulk: it is sent; the bad ones stay in the history');
	return;
}

sub nkeeps { return $calls->sql('SELECT count(*) FROM dt_waiting WHERE keep'); }

sub kept
{
	my %phones = map { $_ => new_phone() } qw(some all earlier waba role retried held open);

	# A keep takes back what was enqueued before it; a "+" makes no difference.
	my %ids = (some => enqueue($phones{some}, [ 'a', 'b', 'c' ], [ 'a', 'b' ]));
	$calls->sql(keep("+$phones{some}", [ 'b', 'z' ], ['a']));
	is($calls->sql("SELECT tags, fields FROM dt_queue WHERE id = $ids{some}"), '{a,c}|{b}', 'dt_queue shows the names that are left');
	$ids{all} = enqueue($phones{all}, ['a'], ['b']);
	$calls->sql($_) foreach keep($phones{all}, ['a']), keep($phones{all}, undef, ['b']);
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE id = $ids{all}"), '0', 'dt_queue does not show a removal that is wholly taken back');
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE attempts IS NULL OR id NOT IN (SELECT id FROM dt_waiting WHERE NOT keep)"), '0', 'nor does it show keeps');

	# But not what is enqueued after it.
	$ids{before} = enqueue($phones{earlier}, [ 'a', 'x' ]);
	$calls->sql(keep($phones{earlier}, ['a']));
	$ids{earlier} = enqueue($phones{earlier}, [ 'a', 'b' ]);
	is($calls->sql("SELECT string_agg(tags::text, ' ' ORDER BY id) FROM dt_queue WHERE id IN ($ids{before}, $ids{earlier})"), '{x} {a,b}',
		'a keep takes nothing back from a later removal');

	# Nor what is of another customer.
	$ids{waba} = enqueue($phones{waba}, ['a'], undef, waba => '919812345678');
	enqueue($phones{waba}, ['a']);
	enqueue($phones{waba}, ['a'], undef, waba => '919812345679');
	$calls->sql($_) foreach keep($phones{waba}, ['a']), keep($phones{waba}, ['a'], undef, waba => '919812345679');
	$ids{role} = as('app', enqueueing($phones{role}, ['a']));
	enqueue($phones{role}, ['a']);
	$calls->sql(keep($phones{role}, ['a']));
	is($calls->sql("SELECT string_agg(id || tags::text, ' ' ORDER BY id) FROM dt_queue WHERE phone IN ('$phones{waba}', '$phones{role}')"),
		"$ids{waba}\{a} $ids{role}\{a}", 'nor from a removal of another waba or role');

	drain();
	is_received($phones{some}, 'a,c,=b', 'sent without the names that were taken back');
	is_received($phones{all}, '', 'not sent, since it is wholly taken back');
	is_received($phones{earlier}, 'x,a,b', 'sent with the names that were enqueued after the keep');
	is_received($phones{$_}, 'a', "sent for another $_") foreach qw(waba role);
	is($calls->sql("SELECT state, attempts, http_status IS NULL, tags FROM dt_history WHERE id = $ids{all}"), 'cancelled|0|t|{a}',
		'a removal that is wholly taken back is settled as cancelled');
	is(states($ids{some}), 'done', 'one that is partly taken back is done');
	is(nkeeps(), '0', 'keeps with nothing left to keep are deleted');

	# A keep that comes while the removal is out changes nothing, and is deleted with it.
	$sb->hold($phones{held});
	$ids{held} = enqueue($phones{held}, ['a']);
	my $drain = start_drain();
	$sb->await_held(1);
	$calls->sql(keep($phones{held}, ['a']));
	is(states($ids{held}), 'none', 'a keep comes while the request is out: dt_queue no longer shows the removal');
	$sb->release;
	await_drain($drain);
	is(states($ids{held}), 'done', 'but it is done');
	is(nkeeps(), '0', 'and the keep is deleted with it');

	# If that request fails, the next one goes without the name.
	$sb->hold($phones{held}, { status => 503, times => 1 });
	$ids{held} = enqueue($phones{held}, [ 'a', 'b' ]);
	$drain = start_drain();
	$sb->await_held(1);
	$calls->sql(keep($phones{held}, ['a']));
	$sb->release;
	await_drain($drain);
	settle();
	is_received($phones{held}, 'a a,b b', 'a keep comes while a request is out that fails: the next one goes without the name');
	is(states($ids{held}), 'done', 'and is done');
	is(nkeeps(), '0', 'and the keep is deleted with it');

	# A keep, and then a removal, of a transaction that is still open.
	my $session = $node->background_psql('postgres');
	$ids{open} = enqueue($phones{open}, [ 'a', 'b' ]);
	$session->query_safe('BEGIN; ' . keep($phones{open}, ['b']));
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $ids{open}"), '{a,b}', 'a keep that is not committed takes nothing back');
	$session->query_safe('ROLLBACK');
	drain();
	is_received($phones{open}, 'a,b', 'nor does one that is rolled back');
	enqueue($phones{open}, ['c']);
	$session->query_safe('BEGIN; ' . enqueueing($phones{open}, ['d']));
	$calls->sql(keep($phones{open}, [ 'c', 'd' ]));
	drain();
	is(nkeeps(), '1', 'a keep stays while an earlier removal may still commit');
	$session->query_safe('COMMIT');
	drain();
	is_received($phones{open}, 'a,b', 'takes that back, too');
	is(nkeeps(), '0', 'and is deleted then');
	$session->quit;

	# dt_retry counts as later than the keeps that were there before.
	$sb->rule($phones{retried}, { status => 422, times => 1 });
	$ids{retried} = enqueue($phones{retried}, ['a']);
	drain();
	$session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; ' . enqueueing($phones{retried}, [ 'a', 'z' ]));
	$calls->sql(keep($phones{retried}, ['a']));
	is(nkeeps(), '1', 'a keep for a removal that is not committed');
	is($calls->sql("SELECT dt_retry($ids{retried})"), 't', 'a failed removal of the same name is retried after it');
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $ids{retried}"), '{a}', 'dt_queue shows the name');
	drain();
	is_received($phones{retried}, 'a a', 'and it is sent');
	$session->query_safe('ROLLBACK');
	$session->quit;
	drain();
	is(nkeeps(), '0', 'no keep is left');
	return;
}

# Two customers with one number in dt_waiting.customer: of the same phone, and of WABA
# numbers whose hashes are the same.
sub one_number
{
	my $phone = new_phone();
	my $waba = '919812345678';
	my $number = "dt_test_customer('doubletick', current_user::regrole, '$phone', %s)";
	my $other = $calls->sql('SELECT n FROM generate_series(919800000000, 919800300000) AS n WHERE '
		  . sprintf($number, 'n::text') . ' = ' . sprintf($number, "'$waba'") . ' LIMIT 1');
	my $sent = sub { return join ' ', map { "$_->{body}{wabaNumber}:" . join ',', @{ $_->{body}{tags} } } requests($phone) };

	enqueue($phone, [ 'a', 'b' ], undef, waba => $_) foreach $waba, $other;
	is($calls->sql("SELECT count(*), count(DISTINCT customer) FROM dt_waiting"), '2|1', 'two customers have one number');
	$calls->sql(keep($phone, ['b'], undef, waba => $waba));
	$calls->sql(keep($phone, ['a'], undef, waba => $other));
	is($calls->sql("SELECT string_agg(tags::text, ' ' ORDER BY id) FROM dt_queue"), '{a} {b}', 'a keep is for its own customer alone');
	$sb->hold($phone, { times => 1 });
	my $drain = start_drain();
	$sb->await_held(1);
	$sb->release;
	await_drain($drain);
	is(join(' ', sort split / /, $sent->()), join(' ', sort "$waba:a", "$other:b"), 'each is sent its own');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'and nothing is left');

	$sb->clear_journal;
	$sb->rule($phone, { status => 503, retry_after => '3000', times => 1 });
	enqueue($phone, ['c'], undef, waba => $waba);
	drain();
	enqueue($phone, ['d'], undef, waba => $waba);
	enqueue($phone, ['e'], undef, waba => $other);
	drain();
	is($sent->(), "$waba:c $other:e", 'while one waits for its retry, the other one is sent');

	# More rows of the one than are read at a time.
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['f'], waba => '$waba')) FROM generate_series(1, 1500)");
	enqueue($phone, ['g'], undef, waba => $other);
	drain();
	is($sent->(), "$waba:c $other:e $other:g", 'also behind very many rows of the first');
	fresh();
	return;
}

# While a removal waits for its next try, the customer's others wait with it; when it
# is cancelled, a drainer that is under way sends them.
sub cancelled_while_others_wait
{
	my ($phone, $busy) = (new_phone(), new_phone());

	fresh();
	$sb->rule($phone, { status => 503, retry_after => '3000', times => 1 });
	my $first = enqueue($phone, ['a']);
	drain();
	my @others = map { enqueue($phone, [$_]) } qw(b c);
	my $another = enqueue($phone, ['d'], undef, waba => '919812345678');
	$sb->hold($busy);
	enqueue($busy, ['x']);
	my $drain = start_drain();
	$sb->await_held(1);
	everything_is_seen('others wait: they were looked at');
	is(states($first, @others), 'waiting waiting waiting', 'others wait: all of them');
	is($calls->sql("BEGIN; SELECT dt_cancel($first); ROLLBACK"), 'f', 'others wait: one that was tried is taken out');
	everything_is_seen('others wait: and rolled back');
	is(states($first, @others), 'waiting waiting waiting', 'others wait: they still do');
	$calls->sql("SELECT dt_cancel($first)");
	eventually(sub { states(@others) eq 'done done' }, 'others wait: the drainer sends them when it is cancelled');
	is(states($first, $another), 'cancelled done', 'others wait: and not the cancelled one');
	is(join(' ', received($phone)), 'a d b,c', 'others wait: by one request');

	# With nobody else waiting there is nothing to mark.
	my $alone = new_phone();
	$sb->rule($alone, { status => 503, retry_after => '3000', times => 1 });
	$first = enqueue($alone, ['a']);
	eventually(sub { (waiting($first) || {})->{attempts} }, 'nobody else waits: it is tried');
	$calls->sql("SELECT dt_cancel($first)");
	is(states($first), 'cancelled', 'nobody else waits: it is cancelled');
	is(nkeeps(), '0', 'and no row is left of it');
	$sb->clear_rules;
	await_drain($drain);
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'others wait: nothing is left');
	return;
}

make_roles();
cancelled();
cancelled_while_others_wait();
cancel_undecided();
cancel_in_bulk();
retried();
retried_in_bulk();
kept();
one_number();
done_testing;

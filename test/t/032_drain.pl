
# dt_process_queue(): removals that are due are sent, those of one customer in one
# request, and never two requests of a customer at a time; each row is settled with
# its part of the answer. Retries are tested in 033_again.pl, holds in 034_holds.pl.

use strict;
use warnings;

use File::Basename qw(dirname);
use List::Util qw(uniq);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1);
my $phone = '919876543210';
my $other = '919876543211';

$calls->server('second', base_url => $sb->http);
$calls->server('few', max_connections => '4');
$calls->server('two', max_connections => '2');
$calls->sql("CREATE ROLE other; GRANT USAGE ON FOREIGN SERVER doubletick TO other;
	GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO other;
	CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_app')");

sub one_row
{
	fresh();
	$sb->customer($phone, [ 'lead', 'stays' ], ['plan']);
	my $id = enqueue($phone, ['lead'], ['plan']);
	is(scalar @{ $sb->journal }, 0, 'enqueueing sends nothing');
	is(states($id), 'waiting', 'the removal waits');
	is(status('doubletick')->{due}, 1, 'and is due');

	like(drain(), qr/^NOTICE:  queue: 1 done, 0 failed, 0 left/m, 'one row: the report');
	is_deeply([ map { $_->{body} } @{ $sb->journal } ],
		[ { phone => $phone, tags => ['lead'], customFields => ['plan'] } ], 'one row: what was sent');
	is_deeply($sb->customer_now($phone)->{tags}, ['stays'], 'one row: the tag is removed');
	my $row = settled($id);
	is("$row->{state} $row->{attempts} $row->{http_status}", 'done 1 201', 'one row: the history');
	is_deeply($row->{answer}, answer([ ['lead'], [] ], [ ['plan'], [] ]), 'one row: the answer');
	is($row->{error}, undef, 'one row: no error');
	is(waiting($id), undef, 'one row: it no longer waits');
	is(status('doubletick')->{done}, 1, 'one row: it is counted');

	like(drain(), qr/queue: 0 done, 0 failed, 0 left/, 'another CALL has nothing to do');
	is(scalar @{ $sb->journal }, 1, 'and sends nothing');
	return;
}

# An answer in the API's shape: the names removed and the names errored, of tags and
# of custom fields.
sub answer
{
	my ($tags, $fields) = @_;

	return {
		tags => { removed => $tags->[0], errored => [ map { { tag => $_, error => 'Tag not found' } } @{ $tags->[1] } ] },
		customFields => {
			removed => $fields->[0],
			errored => [ map { { customField => $_, error => 'Custom field not found' } } @{ $fields->[1] } ] },
	};
}

sub many_customers
{
	fresh();
	$sb->hold('*');
	enqueue_many('14155550000', 300, server => 'few');
	my $drain = start_drain();
	$sb->await_held(4);
	$sb->clear_rules;
	like(await_drain($drain), qr/queue: 300 done, 0 failed, 0 left/, '300 customers: all done');
	is(scalar @{ $sb->journal }, 300, '300 customers: as many requests');
	is(scalar(uniq(map { $_->{body}{phone} } @{ $sb->journal })), 300, '300 customers: one to each');
	is($sb->stats->{max_in_flight}, 4, '300 customers: never more in flight than max_connections');
	cmp_ok($sb->stats->{connections}, '<=', 4, '300 customers: over no more connections than that');
	is($calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done' AND attempts = 1"), '300', '300 customers: in the history');
	return;
}

# Rows of one customer go in one request, and each is settled with its own names.
sub coalescing
{
	fresh();
	$sb->customer($phone, [ 'a', 'b', 'd' ], [ 'x', 'y', 'a' ]);
	my @ids = (
		enqueue($phone, [ 'b', 'a' ], ['x'], waba => '14155550199'),
		enqueue("+$phone", [ 'b', 'c' ], undef, waba => '+14155550199'),
		enqueue($phone, undef, [ 'y', 'z', 'a' ], waba => '+14155550199'),
		enqueue($phone, ['d'], ['x'], waba => '14155550199'));
	like(drain(), qr/queue: 4 done, 0 failed, 0 left/, 'coalesced: done');
	is_deeply([ map { $_->{body} } @{ $sb->journal } ],
		[ { phone => $phone, tags => [ 'b', 'a', 'c', 'd' ], customFields => [ 'x', 'y', 'z', 'a' ], wabaNumber => '14155550199' } ],
		'coalesced: one request, each name once and in the order of its first');
	my @rows = map { settled($_) } @ids;
	is_deeply($rows[0]{answer}, answer([ [ 'b', 'a' ], [] ], [ ['x'], [] ]), 'coalesced: the first has its part');
	is_deeply($rows[1]{answer}, answer([ ['b'], ['c'] ], [ [], [] ]), 'coalesced: the second has its part');
	is_deeply($rows[2]{answer}, answer([ [], [] ], [ [ 'y', 'a' ], ['z'] ]), 'coalesced: the third has its part');
	is_deeply($rows[3]{answer}, answer([ ['d'], [] ], [ ['x'], [] ]), 'coalesced: the fourth has its part');
	is($rows[$_]{error}, undef, 'coalesced: no error') foreach 0, 3;
	like($rows[1]{error}, qr/^tag "c": Tag not found$/, 'coalesced: a tag that was not removed');
	like($rows[2]{error}, qr/^custom field "z": Custom field not found$/, 'coalesced: a field that was not removed');
	is(status('doubletick')->{errored}, 2, 'coalesced: rows with such names are counted');
	is(join(' ', map { "$_->{phone} $_->{waba} $_->{attempts}" } @rows[ 0, 1 ]),
		"$phone 14155550199 1 +$phone +14155550199 1", 'coalesced: each with its number as it was given');
	return;
}

# The same phone, but another waba, server or role.
sub other_customers
{
	fresh();
	enqueue($phone, ['1']);
	enqueue($phone, ['2'], undef, waba => '14155550199');
	enqueue($phone, ['3'], undef, waba => '14155550198');
	enqueue($phone, ['4'], undef, server => 'second');
	enqueue($phone, ['5'], undef, role => 'other');
	enqueue($phone, ['6']);
	like(drain(), qr/queue: 6 done/, 'other customers: done');
	is(join(', ', sort map { join ' ', join('+', @{ $_->{body}{tags} }), @$_{qw(listener authorization)}, $_->{body}{wabaNumber} // '-' } @{ $sb->journal }),
		'1+6 https key_sandbox -, 2 https key_sandbox 14155550199, 3 https key_sandbox 14155550198, '
		  . '4 http key_sandbox -, 5 https key_app -', 'other customers: a request for each');
	is($calls->sql("SELECT role FROM dt_history WHERE tags = '{5}'"), 'other', 'other customers: whose request it was');
	return;
}

# Names that one request cannot hold go in several, one after the other.
sub split_requests
{
	my $names = sub { "(SELECT array_agg('$_[0]' || n) FROM generate_series(1, $_[1]) AS n)" };
	my $enqueue = "SELECT dt_enqueue_remove_tags_custom_fields('$phone', %s)";
	my $sizes = sub { join ' ', map { @{ $_->{body}{tags} } + @{ $_->{body}{customFields} } } @{ $sb->journal } };

	fresh();
	$calls->sql(join ";\n", map { sprintf $enqueue, $_ }
		$names->('a', 600), $names->('b', 401), $names->('c', 300), 'NULL, ' . $names->('d', 299), $names->('e', 1));
	$sb->hold($phone);
	my $drain = start_drain();
	$sb->await_held(1, $phone);

	# When another customer's removal is settled, the drain has had time for this one's second request.
	my $id = enqueue($other, ['lead']);
	eventually(sub { states($id) eq 'done' }, 'split by names: another customer does not wait');
	is($sb->held, 1, 'split by names: but the second request waits for the first answer');
	$sb->clear_rules;
	like(await_drain($drain), qr/queue: 6 done/, 'split by names: done');
	is(join(' ', map { @{ $_->{body}{tags} } + @{ $_->{body}{customFields} } } requests($phone)), '600 1000 1',
		'split by names: 1,000 names at most');
	is(scalar(uniq(map { (@{ $_->{body}{tags} }, @{ $_->{body}{customFields} }) } requests($phone))), 1601,
		'split by names: each name is sent');

	# 512 KiB of JSON; a backslash and its like take two bytes there.
	fresh();
	$calls->sql(join ";\n", map { sprintf $enqueue, "ARRAY[repeat('$_', 128 * 1024), '$_' || repeat(E'\\\\', 64 * 1024) || '$_']" } 'a' .. 'c');
	like(drain(), qr/queue: 3 done/, 'split by bytes: done');
	is($sizes->(), '2 2 2', 'split by bytes: no more than 512 KiB');
	fresh();
	$calls->sql(join ";\n", map { sprintf $enqueue, "ARRAY[repeat('$_', 128 * 1024)]" } 'a' .. 'e');
	like(drain(), qr/queue: 5 done/, 'split by bytes: done');
	is($sizes->(), '4 1', 'split by bytes: as many names as fit');
	return;
}

# A row that is enqueued while its customer's request is out is sent when the answer
# is settled.
sub one_at_a_time
{
	fresh();
	$sb->hold($phone, { times => 1 });
	enqueue($phone, ['1']);
	my $drain = start_drain();
	$sb->await_held(1, $phone);
	is(status('doubletick')->{in_flight}, 1, 'one at a time: dt_status counts the request that is out');
	enqueue("+$phone", ['2']);
	enqueue($phone, ['3']);
	my $id = enqueue($other, ['4']);
	eventually(sub { states($id) eq 'done' }, 'one at a time: another customer does not wait');
	is_received($phone, '1', 'one at a time: the same customer does');
	$sb->release($phone);
	like(await_drain($drain), qr/queue: 4 done, 0 failed, 0 left/, 'one at a time: all are done by the one CALL');
	is_received($phone, '1 2,3', 'one at a time: what was enqueued meanwhile goes together');
	return;
}

sub slots_refill
{
	fresh();
	$sb->hold($phone);
	my $slow = enqueue($phone, ['slow'], undef, server => 'two');
	my $drain = start_drain();
	$sb->await_held(1, $phone);
	enqueue_many('14155550000', 100, server => 'two');
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done'") eq '100' },
		'a slow answer: the others are sent and settled before it comes');
	is(states($slow), 'waiting', 'a slow answer: it has not come');
	$sb->release($phone);
	like(await_drain($drain), qr/queue: 101 done/, 'a slow answer: all are done');
	is($sb->stats->{max_in_flight}, 2, 'a slow answer: never more than two are in flight');
	return;
}

# One bad name does not fail the rows that were sent together with it.
sub refused_together
{
	foreach my $status (302, 400, 403, 404, 409, 422, 451)
	{
		fresh();
		$sb->rule($phone, { status => $status, times => 2 });
		my @ids = map { enqueue($phone, [ 'all', $_ ]) } 1 .. 4;
		like(drain(), qr/queue: 3 done, 1 failed, 0 left/, "$status together: settled by one CALL");
		is(join(', ', map { join '+', @{ $_->{body}{tags} } } @{ $sb->journal }),
			'all+1+2+3+4, all+1, all+2, all+3, all+4', "$status together: then each row by itself");
		is(states(@ids), 'failed done done done', "$status together: only the bad one fails");
		is(join(' ', map { settled($_)->{attempts} } @ids), '2 2 2 2', "$status together: each row counts both requests");
		is(settled($ids[0])->{http_status}, $status, "$status together: the history has the status of the bad one");
		is(settled($ids[1])->{http_status}, 201, "$status together: and of the others");
	}

	# A request that is too large is repeated by halves.
	fresh();
	$sb->rule($phone, { status => 413, larger_than => 100_000 });
	my @large = map { enqueue($phone, [ $_ x 30_000 ]) } 1 .. 9;
	like(drain(), qr/queue: 9 done, 0 failed, 0 left/, '413 together: all are done');
	my @sizes = map { scalar @{ $_->{body}{tags} } } @{ $sb->journal };
	is("@sizes", '9 4 2 2 4 2 2 1', '413 together: by halves');
	fresh();
	$sb->rule($phone, { status => 413, larger_than => 100_000 });
	my @huge = map { enqueue($phone, [ "$_" x 30_000, "y$_" x ($_ == 2 ? 45_000 : 5) ]) } 1, 2, 4;
	drain();
	is(states(@huge), 'done failed done', '413 together: only the one that is too large by itself fails');

	# So is one whose answer is too long.
	fresh();
	$sb->rule($phone, { fault => 'endless', times => 3 });
	my @endless = map { enqueue($phone, [$_]) } 1 .. 4;
	drain();
	@sizes = map { scalar @{ $_->{body}{tags} } } @{ $sb->journal };
	is("@sizes", '4 2 1 1 2', 'an endless answer together: by halves');
	is(states(@endless), 'failed done done done', 'an endless answer together: only the one that has it by itself fails');

	# What makes the API fail is found when a few attempts have met with nothing else.
	foreach my $case ([ 500, status => 500 ], [ 408, status => 408 ], [ 'no answer', fault => 'reset' ], [ 'no HTTP', fault => 'not_http' ])
	{
		my ($name, @rule) = @$case;

		fresh();
		$sb->rule($phone, { @rule, times => 4, apply => JSON::PP::false });
		my @many = map { enqueue($phone, [$_]) } 1 .. 4;
		for (1 .. 4)
		{
			drain();
			time_passes('20 min');
		}
		drain();
		@sizes = map { scalar @{ $_->{body}{tags} } } @{ $sb->journal };
		is("@sizes", '4 4 4 2 1 1 2', "$name together: by halves after the third attempt");
		is(states(@many), 'done done done done', "$name together: all are done");
	}

	# All of them are refused.
	fresh();
	$sb->rule($phone, { status => 422, times => 4 });
	my @ids = map { enqueue($phone, [$_]) } 1 .. 3;
	like(drain(), qr/queue: 0 done, 3 failed, 0 left/, '422 to each');
	is(scalar @{ $sb->journal }, 4, '422 to each: one request for all, and one for each');
	return;
}

# Refusals that are final are settled with what the API said.
sub refused
{
	my %says = (
		400 => [ 'Bad Request', 'error_message' ],
		403 => [ 'Forbidden', 'Forbidden resource' ],
		404 => [ 'Not Found', 'Customer not found' ],
		409 => [ 'Conflict', 'Conflicting update of the customer' ],
		422 => [ 'Unprocessable Entity', 'invalid file type for audio: text/html; charset=utf-8' ]);
	my %ids;

	fresh();
	foreach my $status (sort keys %says)
	{
		$sb->rule("14155550$status", { status => 0 + $status });
		$ids{$status} = enqueue("14155550$status", ['lead']);
	}
	$sb->rule('14155550302', { fault => 'redirect' });
	$ids{302} = enqueue('14155550302', ['lead']);
	$sb->rule('14155550499', { fault => 'echo_key' });
	$ids{echo} = enqueue('14155550499', ['lead']);
	my $well = enqueue($phone, ['lead']);
	like(drain(), qr/queue: 1 done, 7 failed, 0 left/, 'refusals: the rows fail at once');
	is(scalar @{ $sb->journal }, 8, 'refusals: after one request each');
	is(states($well), 'done', 'refusals: another customer is done');
	foreach my $status (sort keys %says)
	{
		my ($error, $message) = @{ $says{$status} };
		my $row = settled($ids{$status});

		is("$row->{state} $row->{attempts} $row->{http_status}", "failed 1 $status", "status $status: state, attempts and status");
		is_deeply($row->{answer}, { statusCode => 0 + $status, error => $error, message => $message }, "status $status: the answer");
		like($row->{error}, qr/HTTP status $status: \Q$message\E$/, "status $status: the error");
	}
	is(settled($ids{302})->{http_status}, 302, 'a redirect is a refusal, too');
	is(settled($ids{echo})->{http_status}, 400, 'so is an answer that repeats the key');
	is($calls->sql("SELECT count(*) FROM dt_settled AS s WHERE s::text LIKE '%sandbox%'"), '0', 'the key is not stored');
	my $status = status('doubletick');
	is($status->{failed}, 7, 'refusals: counted');
	like($status->{last_error}, qr/with HTTP status \d+/, 'refusals: the last one is shown');
	return;
}

# The request succeeded, but its answer cannot be stored as jsonb: the row is settled
# all the same, and nothing is sent again.
sub unusable_answers
{
	my @answers = (
		[ 'no JSON', { body => "caf\x{e9} \x{1f}<br>" }, qr/"caf\\xc3\\xa9 \\x1f<br>"/ ],
		[ 'NUL', { body => '{"tags": "\u0000"}' }, qr/"\{"tags": "\\u0000"\}"/ ],
		[ 'depth', { body => '{"a": ' . '[' x 100_000 . ']' x 100_000 . '}' }, qr/"\{"a": \[\[\[.*\.\.\."/ ],
		[ 'not UTF-8', { body_base64 => '//57fQ==' }, qr/"\\xff\\xfe\{\}"/ ],
		[ 'an array', { body => [] }, qr/"\[\]"/ ],
		[ 'nothing', { body => '' }, qr/""/ ]);
	my @ids;

	fresh();
	foreach my $n (0 .. $#answers)
	{
		$sb->rule("1415555010$n", { status => 201, %{ $answers[$n][1] } });
		push @ids, enqueue("1415555010$n", ['lead']);
	}
	like(drain(), qr/queue: 0 done, 6 failed, 0 left/, 'unusable answers: settled');
	foreach my $n (0 .. $#answers)
	{
		my ($name, undef, $excerpt) = @{ $answers[$n] };
		my $row = settled($ids[$n]);

		is("$row->{state} $row->{attempts} $row->{http_status}", 'failed 1 201', "answer with $name: state, attempts and status");
		like($row->{error}, $excerpt, "answer with $name: the error has an excerpt");
		is($row->{answer}{statusCode}, 201, "answer with $name: an object stands in its place");
	}
	drain();
	is(scalar @{ $sb->journal }, 6, 'unusable answers: nothing is sent again');

	# The same for rows that went together.
	fresh();
	$sb->rule($phone, { status => 201, body => 'no JSON' });
	@ids = map { enqueue($phone, [$_]) } 1, 2;
	like(drain(), qr/queue: 0 done, 2 failed/, 'unusable answer to several: settled');
	is(scalar @{ $sb->journal }, 1, 'unusable answer to several: sent once');

	# A JSON object of another shape is a success, and kept whole where it does not
	# mention a name.
	fresh();
	my $odd;
	$sb->rule($phone, { status => 200, body => $odd = { tags => ['1'], customFields => { removed => { a => 1 }, errored => [ 5, { x => 1 }, { customField => 'f' } ] } } });
	@ids = (enqueue($phone, ['1']), enqueue($phone, undef, ['f']));
	like(drain(), qr/queue: 2 done/, 'other shapes: done');
	is_deeply(settled($ids[0])->{answer}, $odd, 'other shapes: the first, which is not mentioned, has the whole answer');
	is(settled($ids[0])->{error}, 'the answer does not mention tag "1"', 'other shapes: and the error says so');
	is_deeply(settled($ids[1])->{answer}{customFields}, { removed => [], errored => [ { customField => 'f' } ] },
		'other shapes: the second has its own name');
	is(settled($ids[1])->{error}, 'custom field "f"', 'other shapes: and the error says so');
	return;
}

# Names are compared in the database's encoding, and sent in UTF-8.
sub other_encoding
{
	$calls->sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
	$calls->set_up('latin');
	$sb->reset;
	$sb->customer($phone, [ "M\x{fc}ller", 'lead' ], [ "Stra\x{df}e", "\x{e4}" ]);
	my @ids = (
		enqueue($phone, ["M\x{fc}ller"], ["\x{e4}"], database => 'latin'),
		enqueue($phone, [ 'lead', "fr\x{fc}h" ], ["Stra\x{df}e"], database => 'latin'));
	like(drain(database => 'latin'), qr/queue: 2 done/, 'LATIN1: done');
	is_deeply($sb->journal->[0]{body}{tags}, [ "M\x{fc}ller", 'lead', "fr\x{fc}h" ], 'LATIN1: sent in UTF-8');
	my @rows = map { settled($_, database => 'latin') } @ids;
	is_deeply($rows[0]{answer}, answer([ ["M\x{fc}ller"], [] ], [ ["\x{e4}"], [] ]), 'LATIN1: the first has its part');
	is_deeply($rows[1]{answer}, answer([ ['lead'], ["fr\x{fc}h"] ], [ ["Stra\x{df}e"], [] ]), 'LATIN1: the second has its part');
	is($rows[1]{error}, "tag \"fr\x{fc}h\": Tag not found", 'LATIN1: the error');
	return;
}

# While a request is out, the drain is in nobody's way, and can be cancelled.
sub while_out
{
	fresh();
	$sb->rule($phone, { fault => 'hang' });
	my $id = enqueue($phone, ['lead']);
	my $drain = start_drain();
	eventually(sub { $sb->stats->{in_flight} == 1 }, 'while out: a request is out');
	# It looks for more that is due before it waits.
	eventually(sub {
		$calls->sql("SELECT count(*) || ' ' || count(backend_xmin) || ' ' || count(backend_xid)
			FROM pg_stat_activity WHERE query LIKE 'CALL dt_process_queue%'") eq '1 0 0' }, 'while out: the drain has no snapshot and no xid');
	like(drain(), qr/another session drains/, 'while out: a second CALL says so');
	break_off($drain);
	is(waiting($id)->{attempts}, 0, 'while out: a request that is broken off is no attempt');
	$sb->clear_rules;
	like(drain(), qr/queue: 1 done/, 'while out: the next CALL sends it');
	like(drain(before => 'BEGIN', fails => 1), qr/ERROR:  dt_process_queue\(\) cannot run inside a transaction block/,
		'not in a transaction block');
	enqueue($phone, ['lead']);
	like(drain(before => 'DO $$ BEGIN CALL dt_process_queue(); END $$'),
		qr/queue: 1 done.*queue: 0 done/s, 'but in a DO block outside of one');
	return;
}

# The history is pruned at the end of a CALL.
sub retention
{
	fresh();
	my @ids = map { enqueue("1415555010$_", ['lead']) } 1 .. 3;
	drain();
	time_passes('8 days', $ids[0]);
	time_passes('6 days', $ids[1]);
	drain(before => "LOAD 'doubletick'; SET doubletick.history_retention = -1");
	is(states(@ids), 'done done done', 'history: -1 keeps all');
	drain();
	is(states(@ids), 'none done done', 'history: a week is kept by default');
	drain(before => "LOAD 'doubletick'; SET doubletick.history_retention = '5d'");
	is(states(@ids), 'none none done', 'history: or as long as the setting says');

	# The history has the rows of all roles, so that only a superuser may set this.
	$calls->sql("GRANT EXECUTE ON PROCEDURE dt_process_queue TO other");
	like(drain(before => "LOAD 'doubletick'; SET ROLE other; SET doubletick.history_retention = 0", fails => 1),
		qr/ERROR:  permission denied to set parameter "doubletick.history_retention"/, 'history: other roles may not set it');
	is(states(@ids), 'none none done', 'history: that has no effect');
	drain(before => 'SET SESSION AUTHORIZATION other; SET doubletick.history_retention = 0', fails => 1);
	is(states(@ids), 'none none done', 'history: nor has it before the library is loaded');

	enqueue_many('14155550000', 2500);
	$calls->sql('SELECT count(dt_cancel(id)) FROM dt_queue');
	time_passes('8 days');
	drain();
	is($calls->sql('SELECT count(*) FROM dt_settled'), '0', 'history: 2,500 rows are pruned at once');

	# Names that lie in the TOAST table.
	$calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$phone',
		(SELECT array_agg(md5(n::text) || md5((-n)::text)) FROM generate_series(1, 1000) AS n))");
	drain();
	time_passes('8 days');
	like(drain(), qr/queue: 0 done/, 'history: large rows');
	is($calls->sql('SELECT count(*) FROM dt_settled'), '0', 'history: are pruned, too');
	return;
}

# The rows of a request that was refused are sent one by one, in turn with other customers.
sub split_in_turn
{
	fresh();
	my @others = map { new_phone() } 1 .. 3;
	my $split = new_phone();

	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD max_connections '1')");
	$sb->rule($split, { status => 422, times => 1 });
	$calls->sql('BEGIN; ' . join('; ', map { enqueueing($split, [$_]) } qw(a b c d)) . '; COMMIT');
	enqueue($_, ['lead']) foreach @others;
	like(drain(), qr/queue: 7 done/, 'one by one, in turn: all are done');
	my $order = join '', map { $_->{body}{phone} eq $split ? 's' : 'o' } requests();
	like($order, qr/^s.*o.*s$/, 'one by one, in turn: another customer goes between them');
	note($order);
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP max_connections)');
	return;
}

one_row();
many_customers();
coalescing();
other_customers();
split_requests();
split_in_turn();
one_at_a_time();
slots_refill();
refused_together();
refused();
unusable_answers();
other_encoding();
while_out();
retention();
done_testing;

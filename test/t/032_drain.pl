
# The loop behind dt_process_queue(): what is due goes out, a customer's rows
# together and its requests one after the other, and each row is settled with its
# part of the answer. What has to wait is for 033_again.pl and 034_holds.pl.

use strict;
use warnings;

use File::Basename qw(dirname);
use List::Util qw(max uniq);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

my $queue = Queue->new(sandbox => [ '--key', 'key_sandbox', '--key', 'key_second' ]);
my $sb = $queue->sandbox;
my $phone = '919876543210';
my $other = '919876543211';

$queue->server('second', base_url => $sb->http);
$queue->server('few', max_connections => '4');
$queue->server('two', max_connections => '2');
$queue->sql("CREATE ROLE other; GRANT USAGE ON FOREIGN SERVER doubletick TO other;
	GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO other;
	CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_second')");

sub one_row
{
	$queue->fresh;
	$sb->customer($phone, [ 'lead', 'stays' ], ['plan']);
	my $id = $queue->enqueue($phone, ['lead'], ['plan']);
	is(scalar @{ $sb->journal }, 0, 'nothing is sent before its time');
	is($queue->states($id), 'waiting', 'it waits');
	is($queue->status('doubletick')->{due}, 1, 'and is due');

	like($queue->process, qr/^NOTICE:  queue: 1 done, 0 failed, 0 left/m, 'one row: the report');
	is_deeply([ map { $_->{body} } @{ $sb->journal } ],
		[ { phone => $phone, tags => ['lead'], customFields => ['plan'] } ], 'one row: what was sent');
	is_deeply($sb->customer_now($phone)->{tags}, ['stays'], 'one row: what it did');
	my $row = $queue->settled($id);
	is("$row->{state} $row->{attempts} $row->{http_status}", 'done 1 201', 'one row: the history');
	is_deeply($row->{answer}, answer([ ['lead'], [] ], [ ['plan'], [] ]), 'one row: the answer');
	is($row->{error}, undef, 'one row: no error');
	is($queue->waiting($id), undef, 'and it waits no longer');
	is($queue->status('doubletick')->{done}, 1, 'and is counted');

	like($queue->process, qr/queue: 0 done, 0 failed, 0 left/, 'another CALL has nothing to do');
	is(scalar @{ $sb->journal }, 1, 'and sends nothing');
	return;
}

# An answer in the API's shape: names removed and names errored, of tags and of
# fields.
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
	$queue->fresh;
	$sb->rule('*', { delay_ms => 20 });
	$queue->enqueue_many('14155550000', 300, server => 'few');
	like($queue->process, qr/queue: 300 done, 0 failed, 0 left/, '300 customers: all done');
	is(scalar @{ $sb->journal }, 300, '300 customers: as many requests');
	is(scalar(uniq(map { $_->{body}{phone} } @{ $sb->journal })), 300, '300 customers: one each');
	is($sb->stats->{max_in_flight}, 4, '300 customers: as many in flight as there may be');
	cmp_ok($sb->stats->{connections}, '<=', 4, '300 customers: over as many connections');
	is($queue->sql("SELECT count(*) FROM dt_history WHERE state = 'done' AND attempts = 1"), '300', '300 customers: in the history');
	return;
}

# Rows of one customer are one request, and each gets what is its own.
sub coalescing
{
	$queue->fresh;
	$sb->customer($phone, [ 'a', 'b', 'd' ], [ 'x', 'y', 'a' ]);
	my @ids = (
		$queue->enqueue($phone, [ 'b', 'a' ], ['x'], waba => '14155550199'),
		$queue->enqueue("+$phone", [ 'b', 'c' ], undef, waba => '+14155550199'),
		$queue->enqueue($phone, undef, [ 'y', 'z', 'a' ], waba => '+14155550199'),
		$queue->enqueue($phone, ['d'], ['x'], waba => '14155550199'));
	like($queue->process, qr/queue: 4 done, 0 failed, 0 left/, 'coalesced: done');
	is_deeply([ map { $_->{body} } @{ $sb->journal } ],
		[ { phone => $phone, tags => [ 'b', 'a', 'c', 'd' ], customFields => [ 'x', 'y', 'z', 'a' ], wabaNumber => '14155550199' } ],
		'coalesced: one request, each name once and in the order of its first');
	my @rows = map { $queue->settled($_) } @ids;
	is_deeply($rows[0]{answer}, answer([ [ 'b', 'a' ], [] ], [ ['x'], [] ]), 'coalesced: the first has its part');
	is_deeply($rows[1]{answer}, answer([ ['b'], ['c'] ], [ [], [] ]), 'coalesced: the second');
	is_deeply($rows[2]{answer}, answer([ [], [] ], [ [ 'y', 'a' ], ['z'] ]), 'coalesced: the third');
	is_deeply($rows[3]{answer}, answer([ ['d'], [] ], [ ['x'], [] ]), 'coalesced: the fourth');
	is($rows[$_]{error}, undef, 'coalesced: no error') foreach 0, 3;
	like($rows[1]{error}, qr/^tag "c": Tag not found$/, 'coalesced: a tag that was not removed');
	like($rows[2]{error}, qr/^custom field "z": Custom field not found$/, 'coalesced: a field that was not removed');
	is($queue->status('doubletick')->{errored}, 2, 'coalesced: they are counted');
	is(join(' ', map { "$_->{phone} $_->{waba} $_->{attempts}" } @rows[ 0, 1 ]),
		"$phone 14155550199 1 +$phone +14155550199 1", 'coalesced: each as it was given');
	return;
}

# The same phone, but another waba, server or role.
sub other_customers
{
	$queue->fresh;
	$queue->enqueue($phone, ['1']);
	$queue->enqueue($phone, ['2'], undef, waba => '14155550199');
	$queue->enqueue($phone, ['3'], undef, waba => '14155550198');
	$queue->enqueue($phone, ['4'], undef, server => 'second');
	$queue->enqueue($phone, ['5'], undef, role => 'other');
	$queue->enqueue($phone, ['6']);
	like($queue->process, qr/queue: 6 done/, 'other customers: done');
	is(join(', ', sort map { join ' ', join('+', @{ $_->{body}{tags} }), @$_{qw(listener authorization)}, $_->{body}{wabaNumber} // '-' } @{ $sb->journal }),
		'1+6 https key_sandbox -, 2 https key_sandbox 14155550199, 3 https key_sandbox 14155550198, '
		  . '4 http key_sandbox -, 5 https key_second -', 'other customers: a request for each');
	is($queue->sql("SELECT role FROM dt_history WHERE tags = '{5}'"), 'other', 'other customers: whose request it was');
	return;
}

# What one request cannot hold goes in several, one after the other.
sub split_requests
{
	my $names = sub { "(SELECT array_agg('$_[0]' || n) FROM generate_series(1, $_[1]) AS n)" };
	my $enqueue = "SELECT dt_enqueue_remove_tags_custom_fields('$phone', %s)";
	my $sizes = sub { join ' ', map { @{ $_->{body}{tags} } + @{ $_->{body}{customFields} } } @{ $sb->journal } };

	$queue->fresh;
	$sb->rule('*', { delay_ms => 50 });
	$queue->sql(join ";\n", map { sprintf $enqueue, $_ }
		$names->('a', 600), $names->('b', 401), $names->('c', 300), 'NULL, ' . $names->('d', 299), $names->('e', 1));
	like($queue->process, qr/queue: 5 done/, 'split by names: done');
	is($sizes->(), '600 1000 1', 'split by names: as many as there may be');
	is($sb->stats->{max_in_flight}, 1, 'split by names: never two at a time');
	is(scalar(uniq(map { (@{ $_->{body}{tags} }, @{ $_->{body}{customFields} }) } @{ $sb->journal })), 1601,
		'split by names: all of them');

	# 512 KiB of JSON; a backslash and its like take two bytes there.
	$queue->fresh;
	$queue->sql(join ";\n", map { sprintf $enqueue, "ARRAY[repeat('$_', 128 * 1024), '$_' || repeat(E'\\\\', 64 * 1024) || '$_']" } 'a' .. 'c');
	like($queue->process, qr/queue: 3 done/, 'split by bytes: done');
	is($sizes->(), '2 2 2', 'split by bytes: each by itself');
	$queue->fresh;
	$queue->sql(join ";\n", map { sprintf $enqueue, "ARRAY[repeat('$_', 128 * 1024)]" } 'a' .. 'e');
	like($queue->process, qr/queue: 5 done/, 'split by bytes: done again');
	is($sizes->(), '4 1', 'split by bytes: as many as there may be');
	return;
}

# A row that comes while its customer's request is out goes when that is settled.
sub single_flight
{
	$queue->fresh;
	$sb->rule($phone, { delay_ms => 1500, times => 1 });
	$queue->enqueue($phone, ['1']);
	my $session = $queue->process_in_background;
	eventually(sub { $sb->stats->{in_flight} == 1 }, 'single flight: the first request is out');
	is($queue->status('doubletick')->{in_flight}, 1, 'single flight: and is counted');
	$queue->enqueue("+$phone", ['2']);
	$queue->enqueue($phone, ['3']);
	$queue->enqueue($other, ['4']);
	like($queue->await($session), qr/queue: 4 done, 0 failed, 0 left/, 'single flight: all in the one CALL');
	my @requests = $queue->requests($phone);
	is(join(', ', map { join '+', @{ $_->{body}{tags} } } @requests), '1, 2+3', 'single flight: what came meanwhile goes together');
	cmp_ok($requests[1]{at} - $requests[0]{at}, '>=', 1.49, 'single flight: not before the answer');
	my ($between) = $queue->requests($other);
	cmp_ok($between->{at} - $requests[0]{at}, '<', 1.49, 'single flight: another customer is not kept waiting');
	return;
}

sub slots_refill
{
	$queue->fresh;
	$sb->rule($phone, { delay_ms => 3000 });
	$queue->enqueue($phone, ['slow'], undef, server => 'two');
	$queue->enqueue_many('14155550000', 100, server => 'two');
	like($queue->process, qr/queue: 101 done/, 'a slow answer: all done');
	my ($slow) = $queue->requests($phone);
	my @others = grep { $_->{body}{phone} ne $phone } @{ $sb->journal };
	is(scalar @others, 100, 'a slow answer: the others are sent');
	cmp_ok(max(map { $_->{at} } @others) - $slow->{at}, '<', 3, 'a slow answer: before it comes');
	is($queue->sql("SELECT count(*) FROM dt_history WHERE settled_at >= (SELECT settled_at FROM dt_history WHERE tags = '{slow}')"),
		'1', 'a slow answer: and settled before it comes');
	is($sb->stats->{max_in_flight}, 2, 'a slow answer: with one slot less');
	return;
}

# One bad name must not fail what was sent with it.
sub refused_together
{
	foreach my $status (400, 422)
	{
		$queue->fresh;
		$sb->rule($phone, { status => $status, times => 2 });
		my @ids = map { $queue->enqueue($phone, [ 'all', $_ ]) } 1 .. 4;
		like($queue->process, qr/queue: 3 done, 1 failed, 0 left/, "$status together: in one CALL");
		is(join(', ', map { join '+', @{ $_->{body}{tags} } } @{ $sb->journal }),
			'all+1+2+3+4, all+1, all+2, all+3, all+4', "$status together: then each by itself");
		is($queue->states(@ids), 'failed done done done', "$status together: the bad one fails alone");
		is(join(' ', map { $queue->settled($_)->{attempts} } @ids), '2 2 2 2', "$status together: both requests are counted");
		is($queue->settled($ids[0])->{http_status}, $status, "$status together: and why it failed is said");
		is($queue->settled($ids[1])->{http_status}, 201, "$status together: not of the others");
	}

	# All of them are refused; and who comes later goes not with them.
	$queue->fresh;
	$sb->rule($phone, { status => 422, times => 4 });
	my @ids = map { $queue->enqueue($phone, [$_]) } 1 .. 3;
	like($queue->process, qr/queue: 0 done, 3 failed, 0 left/, '422 to each');
	is(scalar @{ $sb->journal }, 4, '422 to each: no more requests than that');
	return;
}

# Refusals that are final: with what the API said.
sub refused
{
	my %says = (
		400 => [ 'Bad Request', 'error_message' ],
		403 => [ 'Forbidden', 'Forbidden resource' ],
		404 => [ 'Not Found', 'Customer not found' ],
		409 => [ 'Conflict', 'Conflicting update of the customer' ],
		422 => [ 'Unprocessable Entity', 'invalid file type for audio: text/html; charset=utf-8' ]);
	my %ids;

	$queue->fresh;
	foreach my $status (sort keys %says)
	{
		$sb->rule("14155550$status", { status => 0 + $status });
		$ids{$status} = $queue->enqueue("14155550$status", ['lead']);
	}
	$sb->rule('14155550302', { fault => 'redirect' });
	$ids{302} = $queue->enqueue('14155550302', ['lead']);
	$sb->rule('14155550499', { fault => 'echo_key' });
	$ids{echo} = $queue->enqueue('14155550499', ['lead']);
	my $well = $queue->enqueue($phone, ['lead']);
	like($queue->process, qr/queue: 1 done, 7 failed, 0 left/, 'refusals: failed at once');
	is(scalar @{ $sb->journal }, 8, 'refusals: after one request each');
	is($queue->states($well), 'done', 'refusals: not so the other customer');
	foreach my $status (sort keys %says)
	{
		my ($error, $message) = @{ $says{$status} };
		my $row = $queue->settled($ids{$status});

		is("$row->{state} $row->{attempts} $row->{http_status}", "failed 1 $status", "status $status: the history");
		is_deeply($row->{answer}, { statusCode => 0 + $status, error => $error, message => $message }, "status $status: the answer");
		like($row->{error}, qr/HTTP status $status: \Q$message\E$/, "status $status: the error");
	}
	is($queue->settled($ids{302})->{http_status}, 302, 'a redirect fails, too');
	is($queue->settled($ids{echo})->{http_status}, 400, 'an answer that repeats the key');
	is($queue->sql("SELECT count(*) FROM dt_settled AS s WHERE s::text LIKE '%sandbox%'"), '0', 'is not kept with it');
	my $status = $queue->status('doubletick');
	is($status->{failed}, 7, 'refusals: counted');
	like($status->{last_error}, qr/with HTTP status \d+/, 'refusals: the last one is shown');
	return;
}

# Success, but with nothing that can be kept as jsonb: an answer all the same, and
# so the row is settled, and nothing is sent again.
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

	$queue->fresh;
	foreach my $n (0 .. $#answers)
	{
		$sb->rule("1415555010$n", { status => 201, %{ $answers[$n][1] } });
		push @ids, $queue->enqueue("1415555010$n", ['lead']);
	}
	like($queue->process, qr/queue: 0 done, 6 failed, 0 left/, 'unusable answers: settled');
	foreach my $n (0 .. $#answers)
	{
		my ($name, undef, $excerpt) = @{ $answers[$n] };
		my $row = $queue->settled($ids[$n]);

		is("$row->{state} $row->{attempts} $row->{http_status}", 'failed 1 201', "answer with $name: the history");
		like($row->{error}, $excerpt, "answer with $name: an excerpt");
		is($row->{answer}{statusCode}, 201, "answer with $name: an object in its place");
	}
	$queue->process;
	is(scalar @{ $sb->journal }, 6, 'unusable answers: nothing is sent again');

	# The same to rows that went together.
	$queue->fresh;
	$sb->rule($phone, { status => 201, body => 'no JSON' });
	@ids = map { $queue->enqueue($phone, [$_]) } 1, 2;
	like($queue->process, qr/queue: 0 done, 2 failed/, 'unusable answer to several: settled');
	is(scalar @{ $sb->journal }, 1, 'unusable answer to several: sent once');

	# JSON objects of other shapes are successes that say nothing of any name.
	$queue->fresh;
	$sb->rule($phone, { status => 200, body => { tags => ['1'], customFields => { removed => { a => 1 }, errored => [ 5, { x => 1 }, { customField => 'f' } ] } } });
	@ids = ($queue->enqueue($phone, ['1']), $queue->enqueue($phone, undef, ['f']));
	like($queue->process, qr/queue: 2 done/, 'other shapes: done');
	is_deeply($queue->settled($ids[0])->{answer}, answer([ [], [] ], [ [], [] ]), 'other shapes: nothing for the one');
	is_deeply($queue->settled($ids[1])->{answer}{customFields}, { removed => [], errored => [ { customField => 'f' } ] },
		'other shapes: what is its own for the other');
	is($queue->settled($ids[1])->{error}, 'custom field "f"', 'other shapes: noted');
	return;
}

# Names are compared in the database's encoding, and sent in UTF-8.
sub other_encoding
{
	$queue->sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
	$queue->set_up('latin');
	$sb->reset;
	$sb->customer($phone, [ "M\x{fc}ller", 'lead' ], [ "Stra\x{df}e", "\x{e4}" ]);
	my @ids = (
		$queue->enqueue($phone, ["M\x{fc}ller"], ["\x{e4}"], database => 'latin'),
		$queue->enqueue($phone, [ 'lead', "fr\x{fc}h" ], ["Stra\x{df}e"], database => 'latin'));
	like($queue->process(database => 'latin'), qr/queue: 2 done/, 'LATIN1: done');
	is_deeply($sb->journal->[0]{body}{tags}, [ "M\x{fc}ller", 'lead', "fr\x{fc}h" ], 'LATIN1: sent in UTF-8');
	my @rows = map { $queue->settled($_, database => 'latin') } @ids;
	is_deeply($rows[0]{answer}, answer([ ["M\x{fc}ller"], [] ], [ ["\x{e4}"], [] ]), 'LATIN1: the first has its part');
	is_deeply($rows[1]{answer}, answer([ ['lead'], ["fr\x{fc}h"] ], [ ["Stra\x{df}e"], [] ]), 'LATIN1: the second');
	is($rows[1]{error}, "tag \"fr\x{fc}h\": Tag not found", 'LATIN1: the note');
	return;
}

# While a request is out: nobody is held up, and a cancel takes effect.
sub while_out
{
	$queue->fresh;
	$sb->rule($phone, { fault => 'hang' });
	my $id = $queue->enqueue($phone, ['lead']);
	my $session = $queue->process_in_background;
	eventually(sub { $sb->stats->{in_flight} == 1 }, 'while out: it is');
	is($queue->sql("SELECT count(*) || ' ' || count(backend_xmin) || ' ' || count(backend_xid)
		FROM pg_stat_activity WHERE query LIKE 'CALL dt_process_queue%'"), '1 0 0', 'while out: no snapshot and no xid');
	like($queue->process, qr/another session drains/, 'while out: a second CALL says so');
	$queue->sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL dt_process_queue%'");
	like($queue->await($session), qr/canceling statement due to user request/, 'while out: cancelled');
	is($queue->waiting($id)->{attempts}, 0, 'while out: it waits again');
	$sb->clear_rules;
	like($queue->process, qr/queue: 1 done/, 'while out: and the next CALL sends it');
	like($queue->process(before => 'BEGIN'), qr/ERROR:  dt_process_queue\(\) cannot run inside a transaction block/,
		'not in a transaction block');
	$queue->enqueue($phone, ['lead']);
	like($queue->process(before => 'DO $$ BEGIN CALL dt_process_queue(); END $$'),
		qr/queue: 1 done.*queue: 0 done/s, 'but in a block of PL/pgSQL outside of one');
	return;
}

# The history is pruned at the end of a CALL.
sub retention
{
	my $age = "UPDATE dt_settled SET settled_at = now() - interval '%s' WHERE id = %s";

	$queue->fresh;
	my @ids = map { $queue->enqueue("1415555010$_", ['lead']) } 1 .. 3;
	$queue->process;
	$queue->sql(sprintf($age, '8 days', $ids[0]) . ';' . sprintf($age, '6 days', $ids[1]));
	$queue->process(before => "LOAD 'doubletick'; SET doubletick.history_retention = -1");
	is($queue->states(@ids), 'done done done', 'history: -1 keeps all');
	$queue->process;
	is($queue->states(@ids), 'nowhere done done', 'history: a week is kept');
	$queue->process(before => "LOAD 'doubletick'; SET doubletick.history_retention = '5d'");
	is($queue->states(@ids), 'nowhere nowhere done', 'history: or as long as is said');

	# It is of everybody's rows, and so not anybody's to say.
	$queue->sql("GRANT EXECUTE ON PROCEDURE dt_process_queue TO other");
	like($queue->process(before => "LOAD 'doubletick'; SET ROLE other; SET doubletick.history_retention = 0"),
		qr/ERROR:  permission denied to set parameter "doubletick.history_retention"/, 'history: not for others to set');
	is($queue->states(@ids), 'nowhere nowhere done', 'history: and it had no effect');
	$queue->process(before => 'SET SESSION AUTHORIZATION other; SET doubletick.history_retention = 0');
	is($queue->states(@ids), 'nowhere nowhere done', 'history: nor before the library is loaded');

	$queue->sql("UPDATE dt_settled SET settled_at = now() - interval '8 days';
		INSERT INTO dt_settled SELECT 1000000 + n, enqueued_at, settled_at, role, enqueued_by, attempts, http_status, state, server,
			phone, waba, tags, fields, answer, error FROM dt_settled, generate_series(1, 2500) AS n");
	$queue->process;
	is($queue->sql('SELECT count(*) FROM dt_settled'), '0', 'history: many at once');

	# Names that lie in the TOAST table.
	$queue->sql("SELECT dt_enqueue_remove_tags_custom_fields('$phone',
		(SELECT array_agg(md5(n::text) || md5((-n)::text)) FROM generate_series(1, 1000) AS n))");
	$queue->process;
	$queue->sql("UPDATE dt_settled SET settled_at = now() - interval '8 days'");
	like($queue->process, qr/queue: 0 done/, 'history: large ones');
	is($queue->sql('SELECT count(*) FROM dt_settled'), '0', 'history: are pruned');
	return;
}

one_row();
many_customers();
coalescing();
other_customers();
split_requests();
single_flight();
slots_refill();
refused_together();
refused();
unusable_answers();
other_encoding();
while_out();
retention();
done_testing;

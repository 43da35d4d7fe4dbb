
# What is sent again, and when: backoff, Retry-After, the pause of a server, the age
# at which a row is given up, and the rate limit.

use strict;
use warnings;

use File::Basename qw(dirname);
use List::Util qw(max min);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1);
my $phone = '919876543210';

# The server "second" has a plain connection, by which the journal tells the two apart.
$calls->server('second', base_url => $sb->http);
$calls->server('brief', timeout => '1s');
$calls->server('closed', base_url => 'https://127.0.0.1:' . closed_port());
$calls->server('narrow', max_connections => '1');

# Seconds since 1970 of a row's column.
sub epoch
{
	my ($column, $id) = @_;

	return $calls->sql("SELECT extract(epoch FROM $column) FROM dt_waiting WHERE id = $id");
}

# After a fault that may pass, a row waits, and is done another time.
sub goes_again
{
	my @faults = (
		(map { [ "status $_", { status => $_ }, qr/HTTP status $_/, $_ ] } 408, 425, 500, 501, 503),
		[ 'reset', { fault => 'reset' }, qr/broke off/ ],
		[ 'a spoilt body', { fault => 'truncate' }, qr/broke off/ ],
		[ 'not HTTP', { fault => 'not_http' }, qr/not usable HTTP/ ],
		[ 'hang', { fault => 'hang' }, qr/did not answer in time/, undef, 'brief' ],
		[ 'a closed port', {}, qr/could not connect/, undef, 'closed' ]);
	my @phones = map { 14155550100 + $_ } 0 .. $#faults;
	my @ids;

	fresh();
	$sb->customer($phones[0], ['lead']);
	foreach my $n (0 .. $#faults)
	{
		$sb->rule($phones[$n], $faults[$n][1]);
		push @ids, enqueue($phones[$n], ['lead'], undef, server => $faults[$n][4]);
	}
	my $begin = $calls->sql('SELECT extract(epoch FROM clock_timestamp())');
	like(drain(), qr/queue: 0 done, 0 failed, 10 left/, 'faults: the rows wait, and the CALL returns');
	foreach my $n (0 .. $#faults)
	{
		my ($name, undef, $says, $status, $server) = @{ $faults[$n] };
		my $row = waiting($ids[$n]);
		my @requests = requests($phones[$n]);

		like($row->{last_error}, $says, "$name: the error");
		is($row->{http_status}, $status, "$name: the status");

		# It may have been due again before the CALL returned. And libcurl itself sends
		# again what a kept connection broke off without a byte.
		cmp_ok($row->{attempts}, '>=', 1, "$name: attempts");
		cmp_ok($row->{attempts}, $name eq 'reset' ? '<=' : '==', scalar @requests, "$name: one for each request")
		  unless $name eq 'a closed port';
		cmp_ok(epoch('due_at', $ids[$n]), '>', @requests ? $requests[-1]{at} : $begin, "$name: it is due later");
	}
	like(status('brief')->{last_error}, qr/did not answer in time/, 'faults: dt_status shows the last one');

	# Nobody will listen on the closed port.
	$calls->sql("ALTER SERVER closed OPTIONS (SET base_url '" . $sb->https . "')");
	$sb->clear_rules;
	settle();
	is(states(@ids), join(' ', ('done') x @ids), 'faults: all are done in the end');
	is(settled($ids[0])->{attempts}, scalar(my @all = requests($phones[0])), 'faults: every request is counted');
	is(settled($ids[0])->{error}, undef, 'faults: no error is left');
	is(settled($ids[0])->{http_status}, 201, 'faults: the status is that of the last request');
	$calls->sql("ALTER SERVER closed OPTIONS (SET base_url 'https://127.0.0.1:" . closed_port() . "')");
	return;
}

# Rows of one customer wait together, also one that is enqueued later.
sub customer_waits
{
	fresh();
	$sb->rule($phone, { status => 503, retry_after => '600', times => 1 });
	my @ids = map { enqueue($phone, [$_]) } 1, 2;
	drain();
	push @ids, enqueue("+$phone", [3]);
	drain();
	is(scalar @{ $sb->journal }, 1, 'a customer backs off: no row overtakes the others');
	is(join(' ', map { waiting($_)->{attempts} } @ids), '1 1 0', 'a customer backs off: attempts');
	settle();
	is(join(', ', map { join '+', @{ $_->{body}{tags} } } @{ $sb->journal }), '1+2, 1+2+3', 'a customer backs off: then all go together');
	return;
}

# The API says how long to wait; after a 503 only that one request waits.
sub retry_after
{
	fresh();
	$sb->rule('14155550101', { status => 503, retry_after => '600', times => 1 });
	$sb->rule('14155550102', { status => 503, retry_after => { date_in => 600 }, times => 1 });
	$sb->rule('14155550103', { status => 503, retry_after => '86400', times => 1 });
	my @ids = map { enqueue("1415555010$_", ['lead'], undef, server => 'narrow') } 1 .. 4;
	like(drain(), qr/queue: 1 done, 0 failed, 3 left/, 'Retry-After: the server\'s other requests go on');
	my %delay = map { $_ => epoch('due_at', $ids[ $_ - 1 ]) - (requests("1415555010$_"))[0]{at} } 1 .. 3;
	within($delay{1}, 600, 'Retry-After: seconds');
	within($delay{2}, 600, 'Retry-After: a date');
	within($delay{3}, 3600, 'Retry-After: an hour at most');
	drain();
	is(scalar @{ $sb->journal }, 4, 'Retry-After: nothing is sent before');
	settle();
	is(states(@ids), 'done done done done', 'Retry-After: all are done in the end');
	return;
}

# At least so many seconds, less one since a date has whole seconds; and with the
# jitter of a first retry not many more.
sub within
{
	my ($got, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	cmp_ok($got, '>=', $expected - 1.01, "$name: not before");
	cmp_ok($got, '<=', $expected + 30, "$name: nor long after");
	return;
}

# A 429 pauses all requests to that server.
sub pause
{
	fresh();
	$sb->rule('14155550101', { status => 429, retry_after => '600', times => 1 });
	my @paused = map { enqueue("1415555010$_", ['lead'], undef, server => 'narrow') } 1 .. 4;
	my @others = map { enqueue("1415555010$_", ['lead'], undef, server => 'second') } 5 .. 8;
	my $messages = drain(before => 'CALL dt_process_queue()');
	like($messages, qr/queue: 4 done, 0 failed, 4 left.*queue: 0 done, 0 failed, 4 left/s, '429: this CALL and the next one return');
	is(states(@paused), 'waiting waiting waiting waiting', '429: the whole server is paused');
	is(join(' ', map { waiting($_)->{attempts} } @paused), '1 0 0 0', '429: only the request that was sent is an attempt');
	is(states(@others), 'done done done done', '429: another server is not paused');
	is(scalar(my @requests = grep { $_->{listener} eq 'https' } @{ $sb->journal }), 1, '429: no request followed');
	within(epoch('due_at', $paused[0]) - $requests[0]{at}, 600, '429: Retry-After');
	settle();
	return;
}

# A pause holds for direct calls of the session, too; and a direct call starts one.
sub calls_are_paused
{
	fresh();
	$sb->rule($phone, { status => 429, retry_after => '600', times => 1 });
	enqueue($phone, ['lead']);
	my ($refused) = $calls->session('CALL dt_process_queue()', removal('14155550101', ['lead']));
	is($refused->{sqlstate}, '53400', 'paused: a call is refused');
	like($refused->{message}, qr/^server "doubletick" is paused for another \d+ s/, 'paused: the message says for how long');
	is($refused->{detail}{statusCode}, 429, 'paused: the DETAIL has the status that paused it');
	is(scalar @{ $sb->journal }, 1, 'paused: nothing is sent');

	fresh();
	$sb->rule($phone, { status => 429, retry_after => '600', times => 1 });
	my ($first, $second, $other, $well) = $calls->session(attempt($phone, ['lead']), attempt('14155550101', ['lead']),
		"SELECT set_config('doubletick.server', 'second', false)", removal('14155550101', ['lead']));
	is($first->{value}{statusCode}, 429, 'a call gets a 429');
	is($second->{value}{error}, 'Too Many Requests', 'so the next one is refused');
	ok(exists $well->{value}{tags}, 'but not one to another server');
	is(scalar @{ $sb->journal }, 2, 'each of the others is sent once');

	# A call waits for the end of a pause that is shorter than its timeout.
	fresh();
	$calls->server('patient', timeout => '4s');
	$sb->rule($phone, { status => 429, retry_after => '6', times => 1 });
	($other, $first, undef, $second) = $calls->session("SELECT set_config('doubletick.server', 'patient', false)", attempt($phone, ['lead']),
		'SELECT pg_sleep(3)::text', removal('14155550101', ['lead']));
	is($first->{value}{statusCode}, 429, 'a short pause begins');
	ok(exists $second->{value}{tags}, 'a short pause ends');
	my @journal = @{ $sb->journal };
	cmp_ok($journal[1]{at} - $journal[0]{at}, '>=', 5.99, 'the second call has waited for that');
	return;
}

# Rows that are older than retry_for are given up.
sub given_up
{
	fresh();
	$sb->rule('14155550102', { status => 500 });
	my @ids = (undef, enqueue('14155550102', ['lead']));
	foreach my $attempt (1 .. 5)
	{
		drain();
		time_passes('1 hour');
	}
	my $sent = @{ $sb->journal };
	@ids[ 0, 2, 3 ] = map { enqueue("1415555010$_", ['lead']) } 1, 3, 4;
	time_passes('73 hours', @ids[ 0 .. 2 ]);
	my $messages = drain();
	my $superuser = $calls->sql('SELECT current_user');
	is(join(' ', $messages =~ /^WARNING:  (.*)/mg), qq{gave up 3 removals of role "$superuser" for server "doubletick", for their age}, 'given up: one warning for all');
	like($messages, qr/queue: 1 done, 3 failed, 0 left/, 'given up: they fail');
	is(states(@ids), 'failed failed failed done', 'given up: those, and not the young one');
	is(scalar @{ $sb->journal }, $sent + 1, 'given up: none of them is sent');
	like(settled($ids[0])->{error}, qr/given up for its age, after 0 attempts$/, 'given up: the error says why');
	my $attempts = settled($ids[1])->{attempts};
	cmp_ok($attempts, '>=', 5, 'given up: attempts');
	like(settled($ids[1])->{error}, qr/given up for its age, after $attempts attempts: .* HTTP status 500/, 'given up: the error says what was wrong before');
	unlike(drain(), qr/WARNING/, 'given up: one warning, and not another one');

	# The option counts as it is now, also for rows that wait; dt_retry begins anew.
	fresh();
	my $id = enqueue($phone, ['lead'], undef, server => 'second');
	time_passes('2 hours', $id);
	$calls->sql("ALTER SERVER second OPTIONS (ADD retry_for '1h')");
	like(drain(), qr/gave up 1 removal of role "[^"]+" for server "[^"]+", for its age/, 'given up: by the option as it is now');
	is($calls->sql("SELECT dt_retry($id)"), 't', 'given up: can be retried');
	like(drain(), qr/queue: 1 done, 0 failed, 0 left/, 'given up: and is done then');

	# A row is never due later than it is given up.
	fresh();
	$sb->rule($phone, { status => 503, retry_after => '3600' });
	$id = enqueue($phone, ['lead']);
	time_passes('71 hours 30 minutes', $id);
	drain();
	is($calls->sql("SELECT attempts || ' ' || (due_at - enqueued_at) FROM dt_waiting WHERE id = $id"), '1 3 days',
		'given up: no row waits beyond its age');

	# It is given up by a CALL that is still under way then. Five seconds are left to send it.
	fresh();
	$sb->rule('14155550101', { status => 503, retry_after => '3600' });
	$sb->hold('14155550102');
	@ids = map { enqueue("1415555010$_", ['lead']) } 1, 2;
	time_passes('71 hours 59 minutes 55 seconds', $ids[0]);
	my $drain = start_drain();
	$sb->await_held(1);
	eventually(sub { states($ids[0]) eq 'failed' }, 'given up: as soon as it is that old');
	is(scalar(my @requests = requests('14155550101')), 1, 'given up: after one request');
	is(states($ids[1]), 'waiting', 'given up: while another request is out');
	$sb->release;
	like(await_drain($drain), qr/gave up 1 removal of role "[^"]+" for server "[^"]+", for its age.*queue: 1 done, 1 failed, 0 left/s, 'given up: and counted');

	# A row that is too old when the answer comes is given up, too. Five seconds are left to send it.
	fresh();
	$sb->hold($phone, { status => 503 });
	$id = enqueue($phone, ['lead'], undef, server => 'second');
	time_passes('59 minutes 55 seconds', $id);
	$drain = start_drain();
	$sb->await_held(1);
	eventually(sub { $calls->sql("SELECT now() - enqueued_at > '1 hour' FROM dt_waiting WHERE id = $id") eq 't' }, 'given up: its time is over while it is out');
	$sb->release;
	like(await_drain($drain), qr/gave up 1 removal of role "[^"]+" for server "[^"]+", for its age.*queue: 0 done, 1 failed, 0 left/s, 'given up: with the last answer');
	like(settled($id)->{error}, qr/HTTP status 503/, 'given up: which is its error');
	$calls->sql('ALTER SERVER second OPTIONS (DROP retry_for)');

	# Of two rows of a customer only the old one is given up; the young one goes on waiting.
	fresh();
	$sb->rule($phone, { status => 503, retry_after => '600', times => 1 });
	@ids = map { enqueue($phone, [$_]) } 1, 2;
	drain();
	time_passes('73 hours', $ids[0]);
	like(drain(), qr/gave up 1 removal of role "[^"]+" for server "[^"]+", for its age.*queue: 0 done, 1 failed, 1 left/s, 'given up: counted once');
	is(states(@ids), 'failed waiting', 'given up: the old one alone');
	is(waiting($ids[1])->{attempts}, 1, 'given up: the other one goes on waiting');
	return;
}

# Two servers, each with its own rate limit, in one CALL.
sub pace
{
	my %rate = (https => 20, http => 100);
	my %count = (https => 60, http => 300);

	fresh();
	$calls->server('paced_https', rate_limit => $rate{https});
	$calls->server('paced_http', base_url => $sb->http, rate_limit => $rate{http});
	enqueue_many('14155550000', $count{$_}, server => "paced_$_") foreach sort keys %count;
	like(drain(), qr/queue: 360 done/, 'rate limits: done');
	foreach my $listener (sort keys %rate)
	{
		my @requests = grep { $_->{listener} eq $listener } @{ $sb->journal };
		my @times = map { $_->{at} } @requests;

		is(scalar @times, $count{$listener}, "rate $rate{$listener}: all sent");
		cmp_ok(most_in_a_second(@requests), '<=', $rate{$listener} + 1, "rate $rate{$listener}: never more in a second");

		# A busy machine may be too slow for the higher rate.
		cmp_ok((@times - 1) / (max(@times) - min(@times)), '>=', 0.8 * $rate{$listener}, "rate $rate{$listener}: nor much less")
		  if $listener eq 'https';
	}

	# A removal whose names came back takes no turn: the next one needs not wait for it.
	$calls->server('paced_slowly', rate_limit => '0.01');
	$calls->sql(enqueueing($phone, ['lead'], undef, server => 'paced_slowly'));
	like(drain(before => join(";\n", "SELECT dt_keep('$phone', '{lead}', server => 'paced_slowly')", 'CALL dt_process_queue()',
				enqueueing('14155550001', ['lead'], undef, server => 'paced_slowly'), q{SET statement_timeout = '20s'})),
		qr/queue: 1 done/, 'a turn of the pace that is not used is given back');
	return;
}

# A row that a drain finds before it is due is sent by the same drain when it is.
sub due_while_draining
{
	my $other = '919876543299';

	fresh();
	$sb->rule($phone, { status => 503, retry_after => '600', times => 1 });
	my $id = enqueue($phone, ['lead']);
	drain();
	$sb->hold($other);
	enqueue($other, ['lead']);
	time_passes('599 seconds', $id);
	my $drain = start_drain();
	$sb->await_held(1, $other);
	eventually(sub { requests($phone) == 2 }, 'due while draining: it is sent when it is due');
	$sb->release($other);
	unlike(await_drain($drain), qr/ERROR/, 'due while draining: the CALL comes to its end');
	is(states($id), 'done', 'due while draining: it is done');
	return;
}

# A pause that ALTER SERVER has ended is none, although nobody has looked at it since: a
# shorter one, of a request that is still out, takes its place.
sub pause_after_change
{
	my ($long, $short) = ('14155550201', '14155550202');

	fresh();
	$sb->hold($long, { status => 429, retry_after => '3600', times => 1 });
	$sb->hold($short, { status => 429, retry_after => '100', times => 1 });
	my ($id) = map { enqueue($_, ['lead'], undef, server => 'second') } $long, $short;
	my $drain = start_drain();
	$sb->await_held(2);
	$sb->release($long);
	eventually(sub { waiting($id)->{attempts} == 1 }, 'a pause, and a change: the server is paused');
	$calls->sql("ALTER SERVER second OPTIONS (ADD timeout '50s')");
	$sb->release($short);
	$drain->{session}->query('SELECT 1');
	like($drain->{session}->query("SET doubletick.server = second; SELECT dt_try_remove_tags_custom_fields('$phone', '{lead}')"),
		qr/is paused for another \d\d\d? s/, 'a pause, and a change: a shorter pause takes its place');
	await_drain($drain);
	$calls->sql('ALTER SERVER second OPTIONS (DROP timeout)');
	return;
}

goes_again();
customer_waits();
due_while_draining();
retry_after();
pause();
calls_are_paused();
pause_after_change();
given_up();
pace();
done_testing;

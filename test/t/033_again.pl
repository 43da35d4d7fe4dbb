
# What goes out again, and when: backoff, Retry-After, the pause of a server, the
# age at which a row is given up, and the pace.

use strict;
use warnings;

use File::Basename qw(dirname);
use IO::Socket::INET;
use List::Util qw(max min);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;
use Queue;

my $queue = Queue->new;
my $sb = $queue->sandbox;
my $phone = '919876543210';

# A second over a plain connection, so that the journal tells them apart.
$queue->server('second', base_url => $sb->http);
$queue->server('brief', timeout => '300ms');
$queue->server('closed', base_url => 'https://127.0.0.1:' . closed_port());
$queue->server('narrow', max_connections => '1');

# A port that nobody listens on.
sub closed_port
{
	my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die "could not listen: $!";

	return $socket->sockport;
}

# Seconds since 1970 of a row's column.
sub epoch
{
	my ($column, $id) = @_;

	return $queue->sql("SELECT extract(epoch FROM $column) FROM dt_waiting WHERE id = $id");
}

# Faults that pass: a row waits, and is done another time.
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

	$queue->fresh;
	$sb->customer($phones[0], ['lead']);
	foreach my $n (0 .. $#faults)
	{
		$sb->rule($phones[$n], $faults[$n][1]);
		push @ids, $queue->enqueue($phones[$n], ['lead'], undef, server => $faults[$n][4]);
	}
	my $begin = $queue->sql('SELECT extract(epoch FROM clock_timestamp())');
	like($queue->process, qr/queue: 0 done, 0 failed, 10 left/, 'faults: CALL returns');
	foreach my $n (0 .. $#faults)
	{
		my ($name, undef, $says, $status, $server) = @{ $faults[$n] };
		my $row = $queue->waiting($ids[$n]);
		my @requests = $queue->requests($phones[$n]);

		like($row->{last_error}, $says, "$name: the error");
		is($row->{http_status}, $status, "$name: the status");

		# It may have been due again while others were under way.  And libcurl
		# sends again by itself what a kept connection broke off without a byte.
		cmp_ok($row->{attempts}, '>=', 1, "$name: attempts");
		cmp_ok($row->{attempts}, $name eq 'reset' ? '<=' : '==', scalar @requests, "$name: as many as requests")
		  unless $name eq 'a closed port';
		cmp_ok(epoch('due_at', $ids[$n]), '>', @requests ? $requests[-1]{at} : $begin, "$name: is due later");
	}
	like($queue->status('brief')->{last_error}, qr/did not answer in time/, 'faults: dt_status shows the last');

	# A closed port stays closed.
	$queue->sql("ALTER SERVER closed OPTIONS (SET base_url '" . $sb->https . "')");
	$sb->clear_rules;
	$queue->settle;
	is($queue->states(@ids), join(' ', ('done') x @ids), 'faults: all is done in the end');
	is($queue->settled($ids[0])->{attempts}, scalar(my @all = $queue->requests($phones[0])), 'faults: every request is counted');
	is($queue->settled($ids[0])->{error}, undef, 'faults: no error is left');
	is($queue->settled($ids[0])->{http_status}, 201, 'faults: the status is the last');
	$queue->sql("ALTER SERVER closed OPTIONS (SET base_url 'https://127.0.0.1:" . closed_port() . "')");
	return;
}

# Rows of one customer wait together, also one that comes later.
sub customer_waits
{
	$queue->fresh;
	$sb->rule($phone, { status => 503, retry_after => '600', times => 1 });
	my @ids = map { $queue->enqueue($phone, [$_]) } 1, 2;
	$queue->process;
	push @ids, $queue->enqueue("+$phone", [3]);
	$queue->process;
	is(scalar @{ $sb->journal }, 1, 'a customer backs off: nothing overtakes');
	is(join(' ', map { $queue->waiting($_)->{attempts} } @ids), '1 1 0', 'a customer backs off: attempts');
	$queue->settle;
	is(join(', ', map { join '+', @{ $_->{body}{tags} } } @{ $sb->journal }), '1+2, 1+2+3', 'a customer backs off: and goes together');
	return;
}

# The server says when; a 503 says so for one request alone.
sub retry_after
{
	$queue->fresh;
	$sb->rule('14155550101', { status => 503, retry_after => '600', times => 1 });
	$sb->rule('14155550102', { status => 503, retry_after => { date_in => 600 }, times => 1 });
	$sb->rule('14155550103', { status => 503, retry_after => '86400', times => 1 });
	my @ids = map { $queue->enqueue("1415555010$_", ['lead'], undef, server => 'narrow') } 1 .. 4;
	like($queue->process, qr/queue: 1 done, 0 failed, 3 left/, 'Retry-After: the others of the server go on');
	my %delay = map { $_ => epoch('due_at', $ids[ $_ - 1 ]) - ($queue->requests("1415555010$_"))[0]{at} } 1 .. 3;
	within($delay{1}, 600, 'Retry-After: seconds');
	within($delay{2}, 600, 'Retry-After: a date');
	within($delay{3}, 3600, 'Retry-After: an hour at most');
	$queue->process;
	is(scalar @{ $sb->journal }, 4, 'Retry-After: not before');
	$queue->settle;
	is($queue->states(@ids), 'done done done done', 'Retry-After: all is done in the end');
	return;
}

# At least as many seconds, and with the jitter of a first retry not many more;
# a date has whole seconds.
sub within
{
	my ($got, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	cmp_ok($got, '>=', $expected - 1.01, "$name: not before");
	cmp_ok($got, '<=', $expected + 30, "$name: and not long after");
	return;
}

# A 429 is about all that goes to that server.
sub pause
{
	$queue->fresh;
	$sb->rule('14155550101', { status => 429, retry_after => '600', times => 1 });
	my @paused = map { $queue->enqueue("1415555010$_", ['lead'], undef, server => 'narrow') } 1 .. 4;
	my @others = map { $queue->enqueue("1415555010$_", ['lead'], undef, server => 'second') } 5 .. 8;
	my $messages = $queue->process(before => 'CALL dt_process_queue()');
	like($messages, qr/queue: 4 done, 0 failed, 4 left.*queue: 0 done, 0 failed, 4 left/s, '429: both CALLs of a session return');
	is($queue->states(@paused), 'waiting waiting waiting waiting', '429: the whole server is paused');
	is(join(' ', map { $queue->waiting($_)->{attempts} } @paused), '1 0 0 0', '429: only what was sent is counted');
	is($queue->states(@others), 'done done done done', '429: another server is not');
	is(scalar(my @requests = grep { $_->{listener} eq 'https' } @{ $sb->journal }), 1, '429: one request was the last');
	within(epoch('due_at', $paused[0]) - $requests[0]{at}, 600, '429: Retry-After');
	$queue->settle;
	return;
}

# Calls of the same session honour the pause, and calls start one.
sub calls_are_paused
{
	$queue->fresh;
	$sb->rule($phone, { status => 429, retry_after => '600', times => 1 });
	$queue->enqueue($phone, ['lead']);
	my ($refused) = $queue->session('CALL dt_process_queue()', removal('14155550101', ['lead']));
	is($refused->{sqlstate}, '53400', 'paused: a call is refused');
	like($refused->{message}, qr/^server "doubletick" is paused for another \d+ s/, 'paused: and says for how long');
	is($refused->{detail}{statusCode}, 429, 'paused: with the status that paused it');
	is(scalar @{ $sb->journal }, 1, 'paused: and without a request');

	$queue->fresh;
	$sb->rule($phone, { status => 429, retry_after => '600', times => 1 });
	my ($first, $second, $other, $well) = $queue->session(attempt($phone, ['lead']), attempt('14155550101', ['lead']),
		"SELECT set_config('doubletick.server', 'second', false)", removal('14155550101', ['lead']));
	is($first->{value}{statusCode}, 429, 'a call is told to wait');
	is($second->{value}{error}, 'Too Many Requests', 'so the next one is refused');
	ok(exists $well->{value}{tags}, 'but not to another server');
	is(scalar @{ $sb->journal }, 2, 'each sent once');

	# A pause that is shorter than the timeout is waited for.
	$queue->fresh;
	$queue->server('patient', timeout => '500ms');
	$sb->rule($phone, { status => 429, retry_after => '2', times => 1 });
	($other, $first, $second) = $queue->session("SELECT set_config('doubletick.server', 'patient', false)", attempt($phone, ['lead']),
		"ALTER SERVER patient OPTIONS (SET timeout '20s')", removal('14155550101', ['lead']));
	is($first->{value}{statusCode}, 429, 'a short pause: begins');
	ok(exists $second->{value}{tags}, 'a short pause: ends');
	my @journal = @{ $sb->journal };
	cmp_ok($journal[1]{at} - $journal[0]{at}, '>=', 1.99, 'a short pause: and is waited for');
	return;
}

# Rows that are older than retry_for.
sub given_up
{
	my $aged = "UPDATE dt_waiting SET enqueued_at = enqueued_at - interval '%s', due_at = due_at - interval '%s' WHERE id IN (%s)";
	my @ids = map { $queue->enqueue("1415555010$_", ['lead']) } 1 .. 4;

	$queue->fresh;
	@ids = map { $queue->enqueue("1415555010$_", ['lead']) } 1 .. 4;
	$queue->sql(sprintf $aged, '73 hours', '73 hours', join ',', @ids[ 0 .. 2 ]);
	$queue->sql("UPDATE dt_waiting SET attempts = 5, last_error = 'it was so', http_status = 500 WHERE id = $ids[1]");
	my $messages = $queue->process;
	is(join(' ', $messages =~ /^WARNING:  (.*)/mg), 'gave up 3 removals for their age', 'given up: one warning for all');
	like($messages, qr/queue: 1 done, 3 failed, 0 left/, 'given up: failed');
	is($queue->states(@ids), 'failed failed failed done', 'given up: those, and not the young one');
	is(scalar @{ $sb->journal }, 1, 'given up: nothing of them is sent');
	like($queue->settled($ids[0])->{error}, qr/given up for its age, after 0 attempts$/, 'given up: and why');
	like($queue->settled($ids[1])->{error}, qr/given up for its age, after 5 attempts: it was so$/, 'given up: with what was last');
	is($queue->settled($ids[1])->{attempts}, 5, 'given up: attempts');
	unlike($queue->process, qr/WARNING/, 'given up: warned of once');

	# The option counts, also for rows that wait; and dt_retry begins anew.
	$queue->fresh;
	my $id = $queue->enqueue($phone, ['lead'], undef, server => 'second');
	$queue->sql(sprintf $aged, '2 hours', '2 hours', $id);
	$queue->sql("ALTER SERVER second OPTIONS (ADD retry_for '1h')");
	like($queue->process, qr/gave up 1 removal for its age/, 'given up: by the option as it is now');
	is($queue->sql("SELECT dt_retry($id)"), 't', 'given up: retried');
	like($queue->process, qr/queue: 1 done, 0 failed, 0 left/, 'given up: and done');
	$queue->sql('ALTER SERVER second OPTIONS (DROP retry_for)');

	# It is never due later than it is given up.
	$queue->fresh;
	$sb->rule($phone, { status => 503, retry_after => '3600' });
	$id = $queue->enqueue($phone, ['lead']);
	$queue->sql(sprintf $aged, '71 hours 30 minutes', '0', $id);
	$queue->process;
	is($queue->sql("SELECT attempts || ' ' || (due_at - enqueued_at) FROM dt_waiting WHERE id = $id"), '1 3 days',
		'given up: it waits no longer than that');

	# And then it is given up, by the CALL that is still there.
	$queue->fresh;
	$sb->rule('14155550101', { status => 503, retry_after => '3600' });
	$sb->rule('14155550102', { delay_ms => 4000 });
	@ids = map { $queue->enqueue("1415555010$_", ['lead']) } 1, 2;
	$queue->sql(sprintf $aged, '71 hours 59 minutes 58 seconds', '0', $ids[0]);
	like($queue->process, qr/gave up 1 removal for its age.*queue: 1 done, 1 failed, 0 left/s, 'given up: as soon as it is that old');
	is($queue->states(@ids), 'failed done', 'given up: that one');

	# One that is too old when its answer comes is given up, too.
	$queue->fresh;
	$queue->sql("ALTER SERVER second OPTIONS (ADD retry_for '1s')");
	$sb->rule($phone, { status => 503, delay_ms => 1500 });
	$id = $queue->enqueue($phone, ['lead'], undef, server => 'second');
	like($queue->process, qr/gave up 1 removal for its age.*queue: 0 done, 1 failed, 0 left/s, 'given up: with the last answer');
	like($queue->settled($id)->{error}, qr/HTTP status 503/, 'given up: which is its error');
	$queue->sql('ALTER SERVER second OPTIONS (DROP retry_for)');

	# Of one customer the old row is given up, once, while the young one waits.
	$queue->fresh;
	$sb->rule($phone, { status => 503, retry_after => '600', times => 1 });
	@ids = map { $queue->enqueue($phone, [$_]) } 1, 2;
	$queue->process;
	$queue->sql(sprintf $aged, '73 hours', '73 hours', $ids[0]);
	like($queue->process, qr/gave up 1 removal for its age.*queue: 0 done, 1 failed, 1 left/s, 'given up: counted once');
	is($queue->states(@ids), 'failed waiting', 'given up: the old one alone');
	is($queue->waiting($ids[1])->{attempts}, 1, 'given up: and the other goes on waiting');
	return;
}

# The most requests in any second.
sub most_in_a_second
{
	my @times = @_;

	return max(map { my $begin = $_; scalar grep { $_ >= $begin && $_ < $begin + 1 } @times } @times);
}

# Two servers, each at its own pace, in one CALL.
sub pace
{
	my %rate = (https => 20, http => 100);
	my %count = (https => 60, http => 300);

	$queue->fresh;
	$queue->server('paced_https', rate_limit => $rate{https});
	$queue->server('paced_http', base_url => $sb->http, rate_limit => $rate{http});
	$queue->enqueue_many('14155550000', $count{$_}, server => "paced_$_") foreach sort keys %count;
	like($queue->process, qr/queue: 360 done/, 'at a pace: done');
	foreach my $listener (sort keys %rate)
	{
		my @times = map { $_->{at} } grep { $_->{listener} eq $listener } @{ $sb->journal };

		is(scalar @times, $count{$listener}, "rate $rate{$listener}: all sent");
		cmp_ok(most_in_a_second(@times), '<=', $rate{$listener} + 1, "rate $rate{$listener}: no second has more");
		cmp_ok((@times - 1) / (max(@times) - min(@times)), '>=', 0.8 * $rate{$listener}, "rate $rate{$listener}: and not much less");
	}
	return;
}

goes_again();
customer_waits();
retry_after();
pause();
calls_are_paused();
given_up();
pace();
done_testing;


# Checks the sandbox itself: what it answers, how it misbehaves, and that it
# leaves nothing behind. Needs no PostgreSQL, only the curl program.

use strict;
use warnings;
use utf8;

use File::Basename qw(dirname);
use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Time::HiRes qw(sleep time);

use lib dirname(__FILE__);
use Sandbox;

my $path = '/customer/remove-tags-custom-fields';
my $phone = '919876543210';
my $patience = 30;
my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $sb = Sandbox->start('--key', 'key_sandbox', '--key', 'key_other');

# The bytes of an API request over the plain listener.
sub request
{
	my ($body, %with) = @_;
	my $content = ref $body ? $json->encode($body) : $body;
	my %headers = (
		'Authorization' => $sb->key,
		'Content-Type' => 'application/json',
		'Host' => 'localhost',
		'Content-Length' => length $content,
		'Connection' => 'close',
		%{ $with{headers} || {} });
	my $method = $with{method} || 'POST';
	my $target = $with{path} || $path;

	return join "\r\n", "$method $target HTTP/1.1",
	  (map { "$_: $headers{$_}" } grep { defined $headers{$_} } sort keys %headers),
	  '', $content;
}

# The body of the usual request, with changes.
sub removal { return { phone => $phone, tags => ['lead'], customFields => ['plan'], @_ }; }

# Sends bytes to the plain listener.
sub connected
{
	my ($bytes) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $sb->port('http'))
	  or die "could not connect: $@";

	syswrite $socket, $bytes if defined $bytes;
	return $socket;
}

# Reads until the end, a match, or a number of bytes. Returns the bytes, and how
# it ended: "eof", "reset", "match" or "timeout".
sub read_until
{
	my ($socket, $pattern, $max) = @_;
	my $select = IO::Select->new($socket);
	my $deadline = time + $patience;
	my $bytes = '';

	while (time < $deadline)
	{
		return ($bytes, 'match')
		  if (defined $pattern && $bytes =~ $pattern) || ($max && length $bytes >= $max);
		next unless $select->can_read(1);
		my $n = sysread $socket, $bytes, 65536, length $bytes;
		return ($bytes, 'reset') unless defined $n;
		return ($bytes, 'eof') if $n == 0;
	}
	return ($bytes, 'timeout');
}

# The whole exchange: status, decoded body, head, how it ended, body as sent.
sub ask
{
	my ($bytes) = @_;
	my ($answer, $end) = read_until(connected($bytes));
	my ($head, $body) = split /\r\n\r\n/, $answer, 2;
	my ($status) = ($head || '') =~ m{^HTTP/1\.1 (\d{3}) };

	return ($status, scalar eval { $json->decode($body) }, $head, $end, $body);
}

sub api { return ask(request(@_)); }

# curl's exit code and output for the usual request to a listener, or a URL.
sub curl
{
	my ($listener, @more) = @_;
	my @command = ('curl', '-q', '-sS', '--max-time', $patience, '--cacert', $sb->ca_file,
		'-H', 'Authorization: ' . $sb->key, '-H', 'Content-Type: application/json',
		'--data', $json->encode(removal()), @more, $listener =~ m{://} ? $listener : $sb->url($listener) . $path);

	delete local @ENV{qw(http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY)};
	open my $saved, '>&', \*STDERR or die;
	open STDERR, '>', '/dev/null' or die;
	open my $pipe, '-|', @command or die "could not run curl: $!";
	local $/;
	my $output = <$pipe>;
	close $pipe;
	my $code = $? >> 8;
	open STDERR, '>&', $saved or die;
	return ($code, $output);
}

# Waits for a condition; the test never sleeps blindly.
sub eventually
{
	my ($condition, $name) = @_;
	my $deadline = time + $patience;

	until ($condition->())
	{
		return fail($name) if time > $deadline;
		sleep 0.01;
	}
	return pass($name);
}

# The API's list of names that it could not remove.
sub errored
{
	my ($kind, $error, @names) = @_;

	return [ map { { $kind => $_, error => $error } } @names ];
}

subtest 'an answer of the API' => sub {
	$sb->customer("+$phone", [ 'lead', "😀 é", 'x' ], ['plan']);
	my ($status, $body, $head) = api(removal(tags => [ "😀 é", 'none', 'lead' ],
			customFields => [ 'plan', 'plan' ]));
	is($status, 201, 'status');
	like($head, qr{^Content-Type: application/json; charset=utf-8\r$}m, 'type');
	is_deeply($body, {
			tags => { removed => [ "😀 é", 'lead' ], errored => errored('tag', 'Tag not found', 'none') },
			customFields => { removed => ['plan'],
				errored => errored('customField', 'Custom field not found', 'plan') } },
		'what was there is removed, in the order asked for');
	is_deeply($sb->customer_now($phone), { phone => $phone, tags => ['x'], customFields => [] },
		'and gone from the customer');

	(undef, $body) = api(removal(phone => '14155550100'));
	is_deeply($body, {
			tags => { removed => [], errored => errored('tag', 'Customer not found', 'lead') },
			customFields => { removed => [],
				errored => errored('customField', 'Customer not found', 'plan') } },
		'an unknown customer');
	is($sb->customer_now('14155550100'), undef, 'does not come to be');
};

subtest 'who may call' => sub {
	my $refused = { message => 'Invalid public api key', error => 'Unauthorized', statusCode => 401 };

	foreach my $key (undef, '', 'key_wrong', 'Bearer key_sandbox', 'key_sandbo')
	{
		my ($status, $body) = api(removal(), headers => { Authorization => $key });
		is($status, 401, 'key ' . (defined $key ? "\"$key\"" : 'missing'));
		is_deeply($body, $refused, 'body');
	}
	is((api(removal(), headers => { Authorization => 'key_other' }))[0], 201, 'another key');
};

subtest 'what a request must look like' => sub {
	my @cases;
	foreach my $bad ('', '+', '0123456789', '123456', '1234567890123456', '91 98765',
		"1234567\n", '++1234567')
	{
		push @cases, [ removal(phone => $bad), 'phone must be a valid phone number' ];
	}
	push @cases,
	  [ { tags => [], customFields => [] }, 'phone must be a string', 'phone must be a valid phone number' ],
	  [ removal(phone => 1234567), 'phone must be a string', 'phone must be a valid phone number' ],
	  [ removal(wabaNumber => undef), 'wabaNumber must be a string',
		'wabaNumber must be a valid phone number' ],
	  [ removal(wabaNumber => 'x'), 'wabaNumber must be a valid phone number' ],
	  [ removal(tags => 'lead'), 'each value in tags must be a string', 'tags must be an array' ],
	  [ removal(tags => [ 'a', 1 ]), 'each value in tags must be a string' ],
	  [ { phone => $phone, tags => [] }, 'each value in customFields must be a string',
		'customFields must be an array' ],
	  [ removal(x => 1), 'property x should not exist' ];
	foreach my $case (@cases)
	{
		my ($sent, @messages) = @$case;
		my ($status, $body) = api($sent);
		is($status, 400, $json->encode($sent));
		is_deeply($body, { message => \@messages, error => 'Bad Request', statusCode => 400 }, 'body');
	}
	is((api(removal(phone => "+$phone", wabaNumber => '+919812345678')))[0], 201, 'with a "+"');

	like((api('{"phone": oops}'))[1]{message}, qr/^Unexpected token in JSON at position \d+$/, 'not JSON');
	is((api('[1]'))[0], 400, 'no object');
	is((api(''))[0], 400, 'no body');
	is((api(removal(), headers => { 'Content-Type' => 'text/plain' }))[0], 400, 'another type');
	is((api(removal(), headers => { 'Content-Type' => 'application/json; charset=utf-8' }))[0],
		201, 'type with a parameter');

	is_deeply((api(removal(), path => '/x'))[1],
		{ message => 'Cannot POST /x', error => 'Not Found', statusCode => 404 }, 'another path');
	is((api('', method => 'GET'))[1]{message}, "Cannot GET $path", 'another method');
};

subtest 'reading requests' => sub {
	my $text = $json->encode(removal());
	my $chunks = join '', map { sprintf "%x;ext=1\r\n%s\r\n", length, $_ } unpack '(a9)*', $text;
	my %chunked = ('Content-Length' => undef, 'Transfer-Encoding' => 'chunked');

	is((api("${chunks}0\r\nTrailer: x\r\n\r\n", headers => \%chunked))[0], 201, 'in chunks');
	is((api("oops\r\n", headers => \%chunked))[0], 400, 'in bad chunks');
	is((api($text, headers => { 'Transfer-Encoding' => 'chunked' }))[0], 400, 'two lengths');
	is((api($text, headers => { 'Content-Length' => 'x' }))[0], 400, 'a bad length');
	is((api('', headers => { 'Content-Length' => 16 * 1024 * 1024 + 1 }))[0], 413, 'too long a body');
	is((api($text, headers => { 'X-Long' => 'x' x 70000 }))[0], 431, 'too long a head');
	is((ask("nonsense\r\n\r\n"))[0], 400, 'no request line');

	my $long = 'y' x (1024 * 1024);
	is((api(removal(tags => [$long])))[1]{tags}{errored}[0]{tag}, $long, 'a body of 1 MiB');

	my $socket = connected(request(removal(), headers => { Connection => undef })
		  . request({}, headers => { Connection => undef }) . request(removal()));
	my ($answers) = read_until($socket);
	is(join(' ', $answers =~ m{HTTP/1.1 (\d+)}g), '201 400 201', 'pipelined');

	$socket = connected();
	syswrite $socket, $_ foreach split //, request(removal());
	like((read_until($socket))[0], qr/^HTTP\/1.1 201 /, 'byte by byte');

	my $bytes = request(removal(), headers => { Expect => '100-continue' });
	my ($head, $body) = split /\r\n\r\n/, $bytes, 2;
	$socket = connected("$head\r\n\r\n");
	is((read_until($socket, qr/\r\n\r\n/))[0], "HTTP/1.1 100 Continue\r\n\r\n", 'Expect is answered');
	syswrite $socket, $body;
	like((read_until($socket))[0], qr/^HTTP\/1.1 201 /, 'and the body then read');

	is((ask(request(removal()) =~ s{ HTTP/1\.1}{ HTTP/1.0}r))[0], 201, 'HTTP/1.0');
	is((api(removal(), path => "http://127.0.0.1$path?x=y"))[0], 201, 'absolute target with a query');
};

subtest 'journal and statistics' => sub {
	$sb->reset;
	is_deeply($sb->journal, [], 'empty');
	my $before = time;
	my ($code) = curl('https', '-A', 'ünit/1', '-H', 'X-Two: a', '-H', 'x-two: b');
	api("b\xE9");
	my ($first, $second) = @{ $sb->journal };
	is($code, 0, 'curl');
	is_deeply($first->{body}, removal(), 'body');
	is_deeply([ @$first{qw(listener path authorization user_agent content_type status fault method)} ],
		[ 'https', $path, 'key_sandbox', 'ünit/1', 'application/json', 201, undef, 'POST' ], 'the rest');
	is($first->{headers}{'x-two'}, 'a, b', 'a header that came twice');
	cmp_ok($first->{at}, '>=', $before - 1, 'time');
	cmp_ok($first->{at}, '<=', time + 1, 'time');
	is_deeply([ @$second{qw(body raw status listener)} ], [ undef, "b\x{FFFD}", 400, 'http' ], 'no JSON');
	is($second->{n}, $first->{n} + 1, 'numbered');
	isnt($second->{connection}, $first->{connection}, 'connections are told apart');
	is_deeply($sb->journal($first->{n}), [$second], 'since');
	is_deeply($sb->journal($second->{n}), [], 'since the last');
	is_deeply($sb->stats,
		{ requests => 2, connections => 2, connects => 0, in_flight => 0, max_in_flight => 1 }, 'statistics');

	$sb->rule('*', { fault => 'hang' });
	my @waiting = map { connected(request(removal(phone => "1234567$_"))) } 1 .. 64;
	eventually(sub { $sb->stats->{in_flight} == 64 }, '64 in flight');
	is($sb->journal->[-1]{fault}, 'hang', 'journaled before it is answered');
	is($sb->journal->[-1]{status}, undef, 'with no status');
	@waiting = ();
	eventually(sub { $sb->stats->{in_flight} == 0 }, 'and none, when all have left');
	is($sb->stats->{max_in_flight}, 64, 'most in flight');
	$sb->reset;
	is_deeply($sb->stats,
		{ requests => 0, connections => 0, connects => 0, in_flight => 0, max_in_flight => 0 }, 'reset');
};

subtest 'rules' => sub {
	my %canned = (
		400 => { message => 'error_message', error => 'Bad Request', statusCode => 400 },
		401 => { message => 'Invalid public api key', error => 'Unauthorized', statusCode => 401 },
		422 => { message => 'invalid file type for audio: text/html; charset=utf-8',
			error => 'Unprocessable Entity', statusCode => 422 },
		429 => { message => 'ThrottlerException: Too Many Requests', statusCode => 429 },
		500 => { message => 'Internal server error', statusCode => 500 });

	$sb->customer($phone, ['lead'], ['plan']);
	foreach my $status (400, 401, 403, 404, 409, 422, 429, 500, 418)
	{
		$sb->rule("+$phone", { status => $status });
		my ($got, $body) = api(removal());
		is($got, $status, "status $status");
		is($body->{statusCode}, $status, 'in the body');
		is_deeply($body, $canned{$status}, 'body') if $canned{$status};
	}
	foreach my $status (502, 503, 504)
	{
		$sb->rule($phone, { status => $status });
		my ($got, undef, $head, undef, $body) = api(removal());
		is($got, $status, "status $status");
		like("$head\n$body", qr{text/html.*<h1>$status }s, 'a small page');
	}
	is_deeply($sb->customer_now($phone), { phone => $phone, tags => ['lead'], customFields => ['plan'] },
		'the customer is as before');

	$sb->rule($phone, { status => 200, times => 1 });
	my ($status, $body) = api(removal());
	is($status, 200, 'another success');
	is_deeply($body->{tags}{removed}, ['lead'], 'is the normal answer');
	$sb->rule('*', { status => 500 });
	is((api(removal()))[0], 201, 'used up: the normal answer, whatever the rule for any phone');
	is((api(removal(phone => '1234567')))[0], 500, 'the rule for any phone');
	$sb->clear_rules($phone);
	is((api(removal()))[0], 500, 'which this phone falls to when it has none');
	$sb->clear_rules;
	is((api(removal()))[0], 201, 'none left');

	$sb->rule($phone, { status => 503, body => "say \"é\"\n", content_type => 'text/plain',
			headers => { 'X-A' => 'b' }, retry_after => '7' });
	my ($got, undef, $head, undef, $raw) = api(removal());
	is($raw, "say \"\xC3\xA9\"\n", 'a text as body');
	like($head, qr{^Content-Type: text/plain\r\n(.*\r\n)?X-A: b\r\nRetry-After: 7\r$}ms, 'headers');
	$sb->rule($phone, { body => [ 1, { a => undef } ], retry_after => { date_in => -60 } });
	(undef, $body, $head) = api(removal());
	is_deeply($body, [ 1, { a => undef } ], 'a JSON value as body');
	like($head, qr{^Retry-After: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r$}m, 'a date');
	my $bytes = "\x00\xFF\x80x";
	$sb->rule($phone, { body_base64 => encode_base64($bytes, '') });
	is((api(removal()))[4], $bytes, 'bytes as body');

	my $begin = time;
	$sb->rule($phone, { delay_ms => 300 });
	is((api(removal()))[0], 201, 'with a delay');
	cmp_ok(time - $begin, '>=', 0.29, 'it took that long');

	foreach my $bad ({ fault => 'nonesuch' }, { status => '500' }, { times => -1 }, { what => 1 },
		{ headers => [] }, { retry_after => 7 }, { body_base64 => 'x' }, [], { apply => 1 }, { hold => 1 })
	{
		is(eval { $sb->rule($phone, $bad); 'accepted' }, undef, 'refused: ' . $json->encode($bad));
		like($@, qr/: 400 \{"message":"/, 'with a message');
	}
	$sb->reset;
};

subtest 'answers that are held' => sub {
	my ($one, $two) = ('1234567', '1234568');
	my $waits = sub { !IO::Select->new($_[0])->can_read(0) };
	my $status_of = sub { ((read_until($_[0]))[0] =~ m{^HTTP/1\.1 (\d+)})[0] };
	my $sent_to = sub { connected(request(removal(phone => $_[0]))) };

	is($sb->held, 0, 'at first none');
	is($sb->release, 0, 'and so none is released');

	$sb->customer($one, ['lead'], []);
	$sb->hold("+$one");
	$sb->hold($two, { status => 503, times => 1 });
	$sb->release($one);
	my ($first, $second, $other) = map { $sent_to->($_) } $one, "+$one", $two;
	$sb->await_held(3);
	is_deeply([ map { $sb->held($_) } $one, "+$two", '7654321' ], [ 2, 1, 0 ],
		'a release before they came lets none go');
	is_deeply([ sort map { $_->{body}{phone} } @{ $sb->journal } ], [ "+$one", $one, $two ],
		'they are in the journal');
	is_deeply([ map { $_->{status} } @{ $sb->journal } ], [ undef, undef, undef ], 'without a status');
	is($sb->stats->{in_flight}, 3, 'and in flight');
	is_deeply($sb->customer_now($one)->{tags}, [], 'the removal is done');
	ok($waits->($_), 'nothing of the answer has come') foreach $first, $second, $other;
	is((api(removal(phone => $two)))[0], 201, 'a rule that is used up holds no more');

	is($sb->release($two), 1, 'one is released');
	is($status_of->($other), 503, 'and answered as the rule says');
	is($sb->held, 2, 'two are still held');
	ok($waits->($_), 'without an answer') foreach $first, $second;

	is($sb->release("+$one"), 2, 'all of a phone are released');
	is($sb->held, 0, 'at once');
	is($status_of->($_), 201, 'and answered') foreach $first, $second;
	my $later = $sent_to->($one);
	$sb->await_held(1, $one);
	ok($waits->($later), 'the next one is held again');
	$sb->rule($one, { status => 500 });
	is((api(removal(phone => $one)))[0], 500, 'a new rule is for those that come later');
	is($sb->held($one), 1, 'and releases none');
	$sb->clear_rules($one);
	is($status_of->($later), 201, 'without a rule for the phone none is held');

	$sb->hold('*');
	my @held = map { $sent_to->("999$_") } 1000 .. 1063;
	$sb->await_held(64);
	is($sb->release, 64, 'all are released');
	is(scalar(grep { $status_of->($_) == 201 } @held), 64, 'and answered');
	@held = map { $sent_to->("999$_") } 1000 .. 1001;
	$sb->await_held(2);
	$sb->clear_rules;
	is($status_of->($_), 201, 'without rules none is held') foreach @held;

	$sb->hold('*', { fault => 'reset', delay_ms => 1 });
	my $broken = $sent_to->($one);
	$sb->await_held(1);
	$sb->release;
	is((read_until($broken))[1], 'reset', 'a fault happens when it is released');

	$sb->hold('*');
	my $tls = open my $pipe, '-|', 'curl', '-q', '-sS', '--max-time', $patience, '--cacert', $sb->ca_file,
	  '-H', 'Authorization: ' . $sb->key, '-H', 'Content-Type: application/json',
	  '--data', $json->encode(removal()), $sb->url('https') . $path;
	ok($tls, 'over TLS, too');
	$sb->await_held(1);
	$sb->release;
	like(join('', <$pipe>), qr/^\{"customFields"/, 'it is answered when it is released');
	close $pipe;

	$sb->clear_stats;
	$other = $sent_to->($two);
	$sb->await_held(1, $two);
	close $other;
	eventually(sub { $sb->stats->{in_flight} == 0 }, 'nobody waits for a client that went away');
	is($sb->held . $sb->release, '00', 'nor is its answer held');

	my $ending = Sandbox->start;
	$ending->hold('*');
	$other = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $ending->port('http')) or die;
	syswrite $other, request(removal());
	$ending->await_held(1);
	is($ending->stop, 0, 'the sandbox does not wait for a test that released nothing');
	like((read_until($other))[1], qr/^(eof|reset)$/, 'and its clients see it end');
	$sb->reset;
};

subtest 'faults that break off' => sub {
	my %ends = (
		reset => [ qr/^$/, 'reset' ],
		empty => [ qr/^$/, 'eof' ],
		not_http => [ qr/^SSH-2\.0-OpenSSH_9\.2\r\n$/, 'eof' ],
		reset_body => [ qr/\r\n\r\n\{"customFields":.+[^}]$/s, 'reset' ],
		truncate => [ qr/\r\n\r\n\{.*\}$/s, 'eof' ],
		truncate_chunked => [ qr/\r\n\r\n[0-9a-f]+\r\n\{.*\}\r\n$/s, 'eof' ],
		bad_chunks => [ qr/\r\n\r\nnonsense\r\n/s, 'eof' ]);
	my %curl = (reset => [ 35, 52, 56 ], empty => [52], not_http => [1], reset_body => [ 18, 56 ],
		truncate => [18], truncate_chunked => [18], bad_chunks => [56]);

	foreach my $fault (sort keys %ends)
	{
		$sb->rule($phone, { fault => $fault });
		my ($bytes, $end) = read_until(connected(request(removal())));
		like($bytes, $ends{$fault}[0], "$fault: what is sent");
		is($end, $ends{$fault}[1], "$fault: how it ends");
		my ($code) = curl('https');
		ok((grep { $_ == $code } @{ $curl{$fault} }), "$fault: curl says $code over TLS");
	}
	is($sb->journal->[-1]{fault}, 'truncate_chunked', 'named in the journal');
	$sb->reset;

	$sb->customer($phone, ['lead'], []);
	$sb->rule($phone, { fault => 'reset', times => 1 });
	api(removal());
	is_deeply($sb->customer_now($phone)->{tags}, ['lead'], 'a request that was lost does nothing');
	$sb->rule($phone, { fault => 'reset', times => 1, apply => JSON::PP::true });
	api(removal());
	is_deeply($sb->customer_now($phone)->{tags}, [], 'a lost answer leaves the removal done');
	$sb->reset;
};

subtest 'faults without end' => sub {
	my %begin = (
		endless => qr/chunked.*\r\n\r\n[0-9a-f]+\r\n\{"message":"/s,
		header_flood => qr/\r\nX-Flood-0: .*\r\nX-Flood-1: /s,
		long_header => qr/\r\nX-Long: x{1000}/s,
		endless_interim => qr/^(HTTP\/1.1 103 Early Hints\r\nLink: [^\r]*\r\n\r\n)+/s);

	foreach my $fault (sort keys %begin)
	{
		$sb->rule($phone, { fault => $fault });
		my $socket = connected(request(removal()));
		my $enough = $fault eq 'endless_interim' ? 300 : 4 * 1024 * 1024;
		my ($bytes, $end) = read_until($socket, undef, $enough);
		is($end, 'match', "$fault goes on");
		like(substr($bytes, 0, 4096), $begin{$fault}, "$fault: what is sent");
		unlike($bytes, qr/\r\n\r\n.*\r\n\r\n/s, "$fault: the head never ends") if $fault =~ /header/;
	}
	$sb->rule($phone, { fault => 'hang' });
	is((curl('https', '--max-time', '0.3'))[0], 28, 'hang');
	$sb->reset;
};

subtest 'answers of a special form' => sub {
	my $removed = qr/"removed":\["plan"\]/;

	foreach my $fault (qw(gzip chunked interim close slow close_idle))
	{
		$sb->customer($phone, ['lead'], ['plan']);
		$sb->rule($phone, { fault => $fault, interval_ms => 1 });
		my ($code, $output) = curl('https', '--compressed');
		is($code, 0, "$fault is understood");
		like($output, $removed, "$fault: the normal answer");
	}
	$sb->rule($phone, { fault => 'bad_gzip' });
	is((curl('https', '--compressed'))[0], 61, 'bad_gzip is not');

	$sb->rule($phone, { fault => 'gzip_bomb' });
	my (undef, undef, $head, undef, $wire) = api(removal());
	cmp_ok(length $wire, '<', 128 * 1024, 'gzip_bomb is small on the wire');
	my ($code, $output) = curl('https', '--compressed');
	cmp_ok(length $output, '>', 64 * 1024 * 1024, 'and grows');

	$sb->rule($phone, { fault => 'redirect' });
	my $location = $sb->https . $path;
	(my $status, undef, $head) = api(removal());
	is($status, 302, 'redirect');
	like($head, qr{^Location: \Q$location\E\r$}m, 'to the same path');
	$sb->rule($phone, { fault => 'redirect', location => '/x', status => 307 });
	($status, undef, $head) = api(removal());
	like("$status $head", qr{^307 .*^Location: /x\r$}ms, 'or where the rule says');

	$sb->rule($phone, { fault => 'echo_key' });
	my ($got, $body) = api(removal());
	is($got, 400, 'echo_key');
	like($body->{message}, qr/key_sandbox/, 'repeats the key');

	$sb->customer($phone, ['lead'], []);
	$sb->rule($phone, { fault => 'no_content' });
	($got, undef, $head, undef, $body) = api(removal());
	is($got . $body, '204', 'no_content');
	is_deeply($sb->customer_now($phone)->{tags}, [], 'is done nonetheless');

	$sb->rule($phone, { fault => 'chunked' });
	like((api(removal()))[4], qr/\r\n0;last=yes\r\nX-Sandbox-Trailer: done\r\n\r\n$/, 'the trailer');
	$sb->rule($phone, { fault => 'interim' });
	is(join(' ', (read_until(connected(request(removal()))))[0] =~ m{HTTP/1.1 (\d+)}g),
		'100 102 103 201', 'the interim answers');

	my $kept = request(removal(), headers => { Connection => undef });
	$sb->rule($phone, { fault => 'close' });
	my ($bytes, $end) = read_until(connected($kept));
	is($end, 'eof', 'close');
	unlike($bytes, qr/^Connection:/m, 'is not announced');

	$sb->rule($phone, { fault => 'close_idle', times => 1 });
	my $socket = connected($kept);
	my ($answer) = read_until($socket, qr/\]\}\}$/);
	like($answer, qr/^HTTP\/1.1 201 /, 'close_idle answers');
	ok(!IO::Select->new($socket)->can_read(0.1), 'and stays');
	syswrite $socket, $kept;
	is((read_until($socket))[0], '', 'until the next request');
	$sb->reset;
};

subtest 'listeners' => sub {
	my %code = (https => 0, http => 0, expired => 60, wronghost => 60, tls11 => 35, selfsigned => 60);

	foreach my $name (sort keys %code)
	{
		is((curl($name))[0], $code{$name}, $name);
		my ($code, $output) = curl($name, '-k', '--tlsv1.0', '--ciphers', 'DEFAULT:@SECLEVEL=0');
		like($output, qr/"tags"/, "$name does answer");
	}
	is((curl('https', "--tlsv1.$_", '--tls-max', "1.$_"))[0], 0, "https speaks TLS 1.$_") foreach 2, 3;
	is((curl('https', '--tlsv1.1', '--tls-max', '1.1', '--ciphers', 'DEFAULT:@SECLEVEL=0'))[0],
		35, 'https does not speak TLS 1.1');

	my $by_address = 'https://127.0.0.1:' . $sb->port('https') . '/x';
	is((curl($by_address))[0], 0, 'https by address');
};

subtest 'as a proxy' => sub {
	my @proxy = ('--proxy', $sb->http);

	$sb->reset;
	my ($code, $output) = curl('https', @proxy);
	like($output, qr/"tags"/, 'a tunnel');
	is($sb->journal->[-1]{listener}, 'https', 'leads to where it should');
	is($sb->stats->{connects}, 1, 'and is counted');
	like((curl('http', @proxy, '--proxytunnel'))[1], qr/"tags"/, 'a tunnel to the plain listener');
	like((curl('http', @proxy))[1], qr/"tags"/, 'without a tunnel');
	is((ask("CONNECT example.com:443 HTTP/1.1\r\n\r\n"))[0], 403, 'to another machine');
	is((ask("CONNECT localhost:1 HTTP/1.1\r\n\r\n"))[0], 502, 'to nobody');
	$sb->rule($phone, { fault => 'endless' });
	is((curl('https', @proxy, '-o', '/dev/null', '--max-time', 1))[0],
		28, 'a tunnel under load');
	eventually(sub { $sb->stats->{in_flight} == 0 }, 'ends at both ends');
	$sb->reset;
};

subtest 'control panel' => sub {
	my $of_api = sub { ask(request($_[2] || '', method => $_[0], path => "/sandbox/$_[1]")) };

	is(($of_api->('GET', 'nonesuch'))[0], 404, 'nothing there');
	is(($of_api->('GET', 'customers/1'))[0], 404, 'no such customer');
	is(($of_api->('PUT', 'customers/1234567', '{'))[0], 400, 'no JSON');
	is(($of_api->('PUT', 'customers/1234567', '{"tags":[1],"customFields":[]}'))[0], 400, 'no names');
	is(($of_api->('PUT', 'customers/x', '{"tags":[],"customFields":[]}'))[0], 400, 'no phone');
	is(($of_api->('PUT', 'customers/%2B1234567', '{"tags":["\u0000"],"customFields":[]}'))[0], 204, 'set');
	is_deeply($sb->customer_now('1234567')->{tags}, ["\0"], 'even with such a name');
	$sb->clear_customers;
	is($sb->customer_now('1234567'), undef, 'cleared');
	like((curl($sb->https . '/sandbox/stats', '-X', 'GET'))[1], qr/Cannot GET/,
		'not over https');
};

subtest 'the program' => sub {
	my $program = $ENV{DT_SANDBOX} || dirname(__FILE__) . '/../sandbox/sandbox';

	like(`$program --help`, qr/^Usage: sandbox /m, '--help');
	is($? >> 8, 0, 'exit code');
	like(`$program --nonesuch 2>&1 >/dev/null`, qr/^Usage: sandbox /m, 'an unknown option');
	is($? >> 8, 2, 'exit code');
	like(`$program oops 2>&1`, qr/unexpected argument/, 'an argument');
	is($? >> 8, 2, 'exit code');

	my $dir = File::Temp->newdir(TMPDIR => 1);
	my $said = `$program --until-eof --dir $dir/it\\'s --key "a'b" </dev/null`;
	like($said,
		qr{^CREATE SERVER sandbox .*\(base_url 'https://localhost:\d+', ca_file '.*it''s/ca\.pem'\);$}m,
		'what to paste');
	like($said, qr/^CREATE USER MAPPING .* \(api_key 'a''b'\);$/m, 'with the key');
	like($said, qr/^ready\n\z/m, 'ready');
	ok(!-e "$dir/it's", 'a directory it made is gone with it');
	like($said, qr/^DROP SERVER IF EXISTS sandbox CASCADE;\nCREATE SERVER sandbox /m, 'the server of an earlier sandbox is replaced');
	like($said, qr/^CREATE USER MAPPING FOR CURRENT_USER SERVER sandbox .*\nSET doubletick\.server = 'sandbox';/m, 'and is the one that the session uses');
	$said = `$program --until-eof --server doubletick </dev/null`;
	like($said, qr/^CREATE EXTENSION IF NOT EXISTS doubletick;\nCREATE SERVER doubletick .*\nCREATE USER MAPPING FOR CURRENT_USER SERVER doubletick .*;\n\nready$/m,
		'another server: no such server is dropped, and none has to be chosen');
	$said = `$program --until-eof --server mine </dev/null`;
	like($said, qr/^CREATE SERVER mine .*\n.*\nSET doubletick\.server = 'mine';/m, 'one that has to be chosen');
	like(`$program --server "$_" 2>&1 </dev/null`, qr/^sandbox: invalid server name "\Q$_\E"$/m, "not '$_'") foreach '', 'a;b', 'Mine';

	my $other = Sandbox->start('--any-key', '--any-name', '--no-journal');
	my @command = ($other->https . $path, '-H', 'Authorization: whatever', '--cacert', $other->ca_file);
	like((curl(@command))[1], qr/^\{"customFields"/, 'any key');
	unlike((curl(@command))[1], qr/not found/, 'any name');
	is_deeply($other->journal, [], 'no journal');
	is($other->stop, 0, 'told to stop, it exits with 0');
	is($sb->stop, 0, 'and so does the one that has seen it all');
};

done_testing;


# What the API may answer, and what SQL then gets: each row of the error table
# that comes from an HTTP status, raised by one call and returned by the other.
# And what the API gets: the request, as the sandbox's journal has it.

use strict;
use warnings;
use utf8;

use File::Basename qw(dirname);
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new;
my $sb = $calls->sandbox;
my $path = '/customer/remove-tags-custom-fields';
my $phone = '919876543210';

# Tests one answer of the sandbox. Unless told, a refusal is one that is not
# retried: what may be gets a Retry-After that no budget allows.
sub answer_ok
{
	my ($name, $rule, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$sb->rule($phone, $rule);
	$sb->clear_journal;
	my $raised = $calls->fault_ok($name, $phone, $expected);
	is(join(' ', map { "$_->{listener} $_->{path}" } @{ $sb->journal }),
		join(' ', ("https $path") x 3), "$name: each call sent one request, and nowhere else");
	return $raised;
}

# The shape that the API gives to errors.
sub api_body
{
	my ($status, $message, $error) = @_;

	return { statusCode => $status, message => $message, defined $error ? (error => $error) : () };
}

sub refusals
{
	my @reused = (
		[ 400, '22023', 'Bad Request', 'error_message' ],
		[ 404, '22023', 'Not Found', 'Customer not found' ],
		[ 409, '22023', 'Conflict', 'Conflicting update of the customer' ],
		[ 422, '22023', 'Unprocessable Entity', 'invalid file type for audio: text/html; charset=utf-8' ],
		[ 403, '28000', 'Forbidden', 'Forbidden resource', qr/API key/ ]);

	foreach my $row (@reused)
	{
		my ($status, $sqlstate, $error, $says, $hint) = @$row;
		answer_ok("status $status", { status => $status },
			{ sqlstate => $sqlstate, message => qr/HTTP status $status: \Q$says\E$/, status => $status,
				error => $error, says => $says, hint => $hint });
	}
	answer_ok('status 404 for the path', { status => 404, body => api_body(404, 'Cannot POST /x', 'Not Found') },
		{ sqlstate => '22023', message => qr/HTTP status 404: Cannot POST \/x$/, status => 404, error => 'Not Found',
			says => 'Cannot POST /x', hint => qr/base_url/ });
	foreach my $status (402, 405, 410, 413, 418, 451, 499)
	{
		answer_ok("status $status", { status => $status, body => api_body($status, 'No', 'Oh') },
			{ sqlstate => '22023', message => qr/HTTP status $status: No$/, status => $status,
				error => 'Oh', says => 'No' });
	}
	my %phrases = (402 => 'Payment Required', 405 => 'Method Not Allowed', 410 => 'Gone', 413 => 'Content Too Large',
		415 => 'Unsupported Media Type', 423 => 'Locked', 431 => 'Request Header Fields Too Large', 451 => 'Unavailable For Legal Reasons');
	foreach my $status (sort keys %phrases)
	{
		answer_ok("status $status without a body", { status => $status + 0, body => '' },
			{ sqlstate => '22023', message => qr/HTTP status $status \($phrases{$status}\)$/, status => $status + 0,
				error => $phrases{$status}, says => "request was refused with HTTP status $status ($phrases{$status})" });
	}
	answer_ok('status 418, which no RFC gives a phrase', { status => 418, body => '' },
		{ sqlstate => '22023', message => qr/HTTP status 418$/, status => 418, error => 'invalid_parameter_value',
			says => 'request was refused with HTTP status 418' });
	foreach my $status (408, 425)
	{
		answer_ok("status $status", { status => $status, body => api_body($status, 'not now') },
			{ sqlstate => '58000', message => qr/HTTP status $status: not now$/, status => $status,
				says => 'not now' });
	}
	return;
}

sub refusals_with_many_messages
{
	my @messages = ('tags must be an array', 'each value in tags must be a string');

	answer_ok('array of messages', { status => 400, body => api_body(400, \@messages, 'Bad Request') },
		{ sqlstate => '22023', message => qr/: tags must be an array; each value in tags must be a string$/,
			status => 400, error => 'Bad Request', says => \@messages });
	answer_ok('array of one', { status => 400, body => api_body(400, ['alone']) },
		{ sqlstate => '22023', message => qr/: alone$/, status => 400, error => 'Bad Request', says => ['alone'] });
	answer_ok('empty array', { status => 400, body => api_body(400, []) },
		{ sqlstate => '22023', message => qr/HTTP status 400 \(Bad Request\)$/, status => 400, says => [] });
	answer_ok('array of anything', { status => 400, body => api_body(400, [ 'a', 1, { b => 2 } ]) },
		{ sqlstate => '22023', message => qr/: a; 1; \{"b": 2\}$/, status => 400, says => [ 'a', 1, { b => 2 } ] });
	return;
}

sub unauthorized
{
	my %expected = (sqlstate => '28000', message => qr/HTTP status 401: Invalid public api key$/,
		status => 401, error => 'Unauthorized', says => 'Invalid public api key', hint => qr/API key/,
		raised => 1);

	answer_ok('status 401', { status => 401 }, {%expected});
	answer_ok('status 401 without "error"', { status => 401, body => api_body(401, 'Invalid public api key') },
		{%expected});
	answer_ok('status 401 without a body', { status => 401, body => '' },
		{ %expected, message => qr/HTTP status 401 \(Unauthorized\)$/, error => undef, says => undef });
	return;
}

sub their_trouble
{
	my $later = '86400';

	# The second call is told so without a request: the server is paused, and no other.
	$calls->server('throttled');
	$sb->rule($phone, { status => 429, retry_after => $later });
	$sb->clear_journal;
	$calls->fault_ok('status 429', $phone, { server => 'throttled', sqlstate => '53400', vague => 1,
			message => qr/HTTP status 429: ThrottlerException: Too Many Requests$/,
			status => 429, error => 'Too Many Requests', says => 'ThrottlerException: Too Many Requests',
			hint => qr/rate_limit/ });
	is(scalar @{ $sb->journal }, 2, 'status 429: one request, and one to the other server');
	my ($paused) = $calls->session('SET doubletick.server = throttled', removal($phone, ['lead']), removal($phone, ['lead']));
	is($paused->{sqlstate}, '53400', 'each session learns of it anew') or diag($paused->{message});
	($_, $paused) = $calls->session('SET doubletick.server = throttled', removal($phone, ['lead']), removal($phone, ['lead']));
	like($paused->{message}, qr/^server "throttled" is paused for another \d+ s, since DoubleTick answered with HTTP status 429$/, 'what a paused call says');
	answer_ok('status 500', { status => 500 },
		{ sqlstate => '58000', message => qr/HTTP status 500: Internal server error$/, status => 500,
			error => 'Internal Server Error', says => 'Internal server error', hint => qr/./ });
	answer_ok('status 502 with a page', { status => 502, retry_after => $later },
		{ sqlstate => '58000', message => qr{HTTP status 502 \(Bad Gateway\)$}, status => 502,
			says => 'request failed with HTTP status 502 (Bad Gateway): "<html> <head><title>502 Bad Gateway</title></head> <body> <center><h1>502 Bad Gateway</h1></center> <hr><center>nginx</center> </body> </html>"',
			hint => qr/./ });
	answer_ok('status 503 without a body', { status => 503, body => '', retry_after => $later },
		{ sqlstate => '58000', message => qr/HTTP status 503 \(Service Unavailable\)$/, status => 503, hint => qr/./ });
	answer_ok('status 504', { status => 504, retry_after => $later },
		{ sqlstate => '58000', message => qr/HTTP status 504 \(Gateway Timeout\)$/, status => 504, hint => qr/./ });
	my %phrases = (501 => 'Not Implemented', 507 => 'Insufficient Storage', 505 => 'HTTP Version Not Supported');
	foreach my $status (sort keys %phrases)
	{
		answer_ok("status $status without a body", { status => $status + 0, body => '', retry_after => $later },
			{ sqlstate => '58000', message => qr/HTTP status $status \($phrases{$status}\)$/, status => $status + 0,
				error => $phrases{$status}, hint => qr/./ });
	}
	foreach my $status (501, 507, 599)
	{
		answer_ok("status $status", { status => $status, body => api_body($status, 'broken') },
			{ sqlstate => '58000', message => qr/HTTP status $status: broken$/, status => $status,
				says => 'broken', hint => qr/./ });
	}
	return;
}

# A redirect would take the key elsewhere: its goal must never be asked.
sub redirects
{
	foreach my $status (301, 302, 303, 307, 308)
	{
		foreach my $location ($sb->https . $path, $sb->http . '/elsewhere', '/elsewhere', '//elsewhere.invalid/')
		{
			answer_ok("status $status to $location",
				{ fault => 'redirect', status => $status, location => $location },
				{ sqlstate => 'HV00M', message => qr/redirected with HTTP status $status/, status => $status,
					hint => qr/never followed/ });
		}
	}
	answer_ok('status 300', { status => 300, body => 'choose' },
		{ sqlstate => 'HV00M', message => qr/HTTP status 300: choose$/, status => 300, hint => qr/never followed/ });
	answer_ok('status 304', { status => 304 },
		{ sqlstate => 'HV00M', message => qr/HTTP status 304$/, status => 304, hint => qr/never followed/ });
	answer_ok('status 999', { status => 999, body => 'LinkedIn' },
		{ sqlstate => 'HV00M', message => qr/HTTP status 999: LinkedIn$/, status => 999 });
	return;
}

# A 2xx whose body is no JSON object, or one that jsonb cannot hold.
sub unusable_successes
{
	my %bodies = (
		'empty' => [ '', qr/: ""$/ ],
		'text' => [ "all\n well", qr/: "all well"$/ ],
		'cut off' => [ '{"tags": {"removed": ["le', qr/"removed": \["le"$/ ],
		'two documents' => [ '{} {}', qr/: "\{\} \{\}"$/ ],
		'array' => [ [ { tags => 1 } ], qr/: "\[\{"tags":1\}\]"$/ ],
		'scalar' => [ '42', qr/: "42"$/ ],
		'string' => [ '"done"', qr/: ""done""$/ ],
		'null' => [ 'null', qr/: "null"$/ ],
		'\u0000' => [ '{"tags": "\u0000"}', qr/\\u0000/ ],
		'\u0000 in a key' => [ '{"a\u0000b": 1}', qr/\\u0000/ ],
		'a lone surrogate' => [ '{"tags": "\ud83d"}', qr/\\ud83d/ ],
		'a number too large' => [ '{"n": 1e999999}', qr/1e999999/ ],
		'a number that is long when written out' => [ '{"a": "e99999", "n": [1e-0131071]}', qr/1e-0131071/ ],
		'too deep' => [ '{"a":' x 100_000 . '1' . '}' x 100_000, qr/(?:\{"a":){10}.*\.\.\."$/ ],
		'too deep an array' => [ '{"a":' . '[' x 100_000 . ']' x 100_000 . '}', qr/\[\[\[.*\.\.\."$/ ]);

	foreach my $name (sort keys %bodies)
	{
		my ($body, $excerpt) = @{ $bodies{$name} };
		answer_ok("201, $name", { status => 201, body => $body },
			{ sqlstate => 'HV00M', message => $excerpt, status => 201,
				error => 'fdw_unable_to_create_reply', hint => qr/to repeat it does no harm/ });
	}
	answer_ok('status 204', { status => 204 },
		{ sqlstate => 'HV00M', message => qr/HTTP status 204/, status => 204, hint => qr/no harm/ });
	return;
}

# Bytes that are no text. The message is ASCII, with escapes.
sub unusable_bytes
{
	my %bytes = (
		'invalid UTF-8' => [ "{\"tags\": \"\xE9t\xE9\"}", qr/\\xe9t\\xe9/ ],
		'overlong UTF-8' => [ "{\"tags\": \"\xC0\x80\"}", qr/\\xc0\\x80/ ],
		'a surrogate in UTF-8' => [ "{\"tags\": \"\xED\xA0\x80\"}", qr/\\xed\\xa0\\x80/ ],
		'a NUL byte' => [ "{\"tags\": {}}\0", qr/\{"tags": \{\}\}\\x00/ ],
		'a NUL byte inside' => [ "{\"tags\": \"a\0b\"}", qr/a\\x00b/ ],
		'a byte order mark' => [ "\xEF\xBB\xBF{}", qr/\\xef\\xbb\\xbf\{\}/ ],
		'UTF-16' => [ "{\0}\0", qr/\{\\x00\}\\x00/ ],
		'control characters' => [ "\e[31mred\x7F", qr/\\x1b\[31mred\\x7f/ ]);

	foreach my $name (sort keys %bytes)
	{
		my ($body, $excerpt) = @{ $bytes{$name} };
		foreach my $status (201, 400)
		{
			my $raised = answer_ok("$status, $name",
				{ status => $status, body_base64 => encode_base64($body, '') },
				{ sqlstate => $status == 201 ? 'HV00M' : '22023', message => $excerpt, status => $status,
					hint => $status == 201 ? qr/no harm/ : undef });
			unlike($raised->{message}, qr/[^ -~]/, "$status, $name: the excerpt is ASCII");
		}
	}
	return;
}

# Refusals whose body is the API's shape in part, or not at all.
sub odd_refusals
{
	my %case = (sqlstate => '22023', status => 400, error => 'Bad Request');

	answer_ok('only a message', { status => 400, body => { message => 'bad' } },
		{ %case, message => qr/: bad$/, says => 'bad' });
	answer_ok('further keys', { status => 400, body => { %{ api_body(400, 'bad', 'E') }, code => [ 7, { x => undef } ] } },
		{ %case, error => 'E', message => qr/: bad$/, says => 'bad' });
	my ($further) = $calls->session(attempt($phone, ['lead']));
	is_deeply($further->{value}{code}, [ 7, { x => undef } ], 'further keys: are kept');

	my $raised = answer_ok('an empty object', { status => 400, body => {} },
		{ %case, message => qr/HTTP status 400 \(Bad Request\)$/ });
	is($raised->{detail}{message}, $raised->{message}, 'an empty object: our message fills in');
	$raised = answer_ok('a message of null', { status => 400, body => { message => undef, error => undef } },
		{ %case, message => qr/HTTP status 400 \(Bad Request\)$/ });
	is($raised->{detail}{message}, $raised->{message}, 'a message of null: our message fills in');
	answer_ok('a message that is an object', { status => 400, body => { message => { a => 'b' } } },
		{ %case, message => qr/: \{"a": "b"\}$/, says => { a => 'b' } });
	answer_ok('a wrong statusCode', { status => 400, body => { statusCode => 201, message => 'bad' } },
		{ %case, message => qr/HTTP status 400: bad$/, says => 'bad' });
	answer_ok('no object', { status => 400, body => '["bad"]' },
		{ sqlstate => '22023', status => 400, message => qr/: \["bad"\]$/ });
	answer_ok('\u0000', { status => 400, body => '{"message": "a\u0000b"}' },
		{ sqlstate => '22023', status => 400, message => qr/\\u0000/ });

	answer_ok('a message of many lines', { status => 400, body => { message => "one\r\ntwo\tthree\e[1m\x7F!" } },
		{ %case, message => qr/: one  two three \[1m !$/, says => "one\r\ntwo\tthree\e[1m\x7F!" });
	return;
}

# Too long for a primary message; the DETAIL has all of it.
sub long_message
{
	my $long = 'é' x 5000;
	$sb->rule($phone, { status => 400, body => { message => $long } });
	my ($raised) = $calls->session(removal($phone, ['lead']));

	like($raised->{message}, qr/: é+\.\.\.$/, 'a long message is clipped');
	cmp_ok(length $raised->{message}, '<', 1000, 'a long message: to be read');
	is($raised->{detail}{message}, $long, 'a long message: DETAIL has it whole');
	return;
}

# Every 2xx with an object is a success, given back as the API gave it.
sub successes
{
	$sb->customer($phone, [ 'lead', 'vip' ], ['plan']);
	$sb->clear_rules;
	my ($first, $second) = $calls->session(
		removal($phone, [ 'lead', 'none' ], ['plan']), attempt($phone, [ 'vip', 'lead' ], ['x']));
	is_deeply($first->{value}, {
			tags => { removed => ['lead'], errored => [ { tag => 'none', error => 'Tag not found' } ] },
			customFields => { removed => ['plan'], errored => [] } },
		'a partial success, as the API gave it');
	is_deeply($second->{value}, {
			tags => { removed => ['vip'], errored => [ { tag => 'lead', error => 'Tag not found' } ] },
			customFields => { removed => [],
				errored => [ { customField => 'x', error => 'Custom field not found' } ] } },
		'a partial success of dt_try');
	is_deeply($sb->customer_now($phone), { phone => $phone, tags => [], customFields => [] },
		'and the removal was done');

	my $odd = { statusCode => 201, message => 'done', n => 1.5, deep => [ [ [] ], { '' => JSON::PP::true } ] };
	my %without = %$odd;
	delete $without{statusCode};
	foreach my $status (200, 201, 202, 299)
	{
		$sb->rule($phone, { status => $status, body => $odd });
		my ($given, $tried) = $calls->session(removal($phone, ['lead']), attempt($phone, ['lead']));
		is_deeply($given->{value}, $odd, "status $status: the body as it is");
		is_deeply($tried->{value}, \%without, "status $status: dt_try takes statusCode out");
	}
	$sb->rule($phone, { status => 201, body => {} });
	my @empty = $calls->session(removal($phone, ['lead']), attempt($phone, ['lead']));
	is_deeply([ map { $_->{value} } @empty ], [ {}, {} ], 'an empty object');
	$sb->rule($phone, { body => { ok => 1 }, content_type => 'text/html; charset=iso-8859-1' });
	my ($typed) = $calls->session(removal($phone, ['lead']));
	is_deeply($typed->{value}, { ok => 1 }, 'whatever type it claims to be');
	$sb->clear_rules;
	return;
}

# Large, but within what is read.
sub large_answer
{
	my $long = 'é' x 400_000;

	$sb->rule($phone, { body => { tags => $long } });
	my ($large) = $calls->session(removal($phone, ['lead']));
	ok($large->{value}{tags} eq $long, 'an answer of 800 kB');
	answer_ok('an answer of more than 1 MiB', { body => { tags => 'x' x (1024 * 1024) } },
		{ sqlstate => 'HV00M', message => qr/too long/, status => undef, hint => qr/|./ });
	$sb->clear_rules;
	return;
}

# The last answer is remembered, if it is short: one session gets some that are alike, and
# some that are nearly so.
sub answers_alike
{
	my $long = 'x' x 600;
	my @bodies = (map({ qq({"a": $_}) } qw("x" "y" "x" "x" 1 2 2 "\\u00e9" "\\u00e8" "\\u00e8" {} [] [])),
		'{"a": "x"', '{"a": "x"}', '["a", "x"]', '["a", "x"]', '{"a": "x"}', '{"a": "x"', '',
		map({ qq({"a": "$long$_"}) } 1, 1, 2),
		'{}', '{ }', '{}', map({ my $n = $_; '{' . join(',', map { qq("$_":$n) } 10 .. 80) . '}' } 1, 1, 2), '{"a": "x"}');
	my @phones = map { $phone + $_ } 0 .. $#bodies;

	$sb->rule($phones[$_], { body => $bodies[$_] }) foreach 0 .. $#bodies;
	my @got = $calls->session(map { removal($_, ['lead']) } @phones);
	foreach my $i (0 .. $#bodies)
	{
		my $expected = $bodies[$i] =~ /^\{.*\}\z/ ? { value => decode_json($bodies[$i]) } : 'HV00M';
		my $result = $got[$i]{sqlstate} // $got[$i];
		is_deeply($result, $expected, "answer $i in a row is its own");
	}
	$sb->clear_rules;
	return;
}

# The one request that a statement has caused.
sub request_of
{
	my (@statements) = @_;

	$sb->clear_journal;
	$calls->session(@statements);
	my $journal = $sb->journal;
	is(scalar @$journal, 1, 'one request') or return {};
	return $journal->[0];
}

sub request
{
	my $got = request_of(removal($phone, ['lead'], ['plan']));
	is($got->{method}, 'POST', 'method');
	is($got->{path}, $path, 'path');
	is($got->{authorization}, $sb->key, 'the bare key');
	is($got->{content_type}, 'application/json', 'type of the body');
	ok(!exists $got->{headers}{expect}, 'no Expect');
	like($got->{user_agent}, qr{^doubletick/\d+\.\d+}, 'who asks');
	is($got->{headers}{accept}, 'application/json', 'type of the answer');
	ok(!exists $got->{headers}{$_}, "no $_") foreach qw(cookie referer x-forwarded-for);
	is($got->{headers}{host}, 'localhost:' . $sb->port('https'), 'host');

	is_deeply($got->{body}, { phone => $phone, tags => ['lead'], customFields => ['plan'] }, 'body');
	is_deeply(request_of(removal($phone, undef, ['plan']))->{body},
		{ phone => $phone, tags => [], customFields => ['plan'] }, 'tags are there when there are none');
	is_deeply(request_of(attempt($phone, ['lead'], []))->{body},
		{ phone => $phone, tags => ['lead'], customFields => [] }, 'customFields are, too');
	is_deeply(request_of(attempt("+$phone", ['lead']))->{body}{phone}, "+$phone", 'a "+" stays');
	return;
}

sub waba
{
	$calls->server('with_waba', waba_number => '+919812345678');
	my $with_waba = 'SET doubletick.server = with_waba';

	ok(!exists request_of(removal($phone, ['lead']))->{body}{wabaNumber}, 'no waba, no key');
	is(request_of(removal($phone, ['lead'], undef, '+14155550100'))->{body}{wabaNumber},
		'+14155550100', 'the waba of the call');
	is(request_of($with_waba, removal($phone, ['lead']))->{body}{wabaNumber},
		'+919812345678', 'the waba of the server');
	is(request_of($with_waba, attempt($phone, ['lead'], undef, '14155550100'))->{body}{wabaNumber},
		'14155550100', 'the waba of the call wins');
	return;
}

# They are the customer's names, not ours.
sub names
{
	my @names = (' lead', 'lead ', 'le  ad', 'Lead', 'lead', 'LEAD', 'a"b', "it's", 'c:\\new\\', '\u0041',
		'%s%n', '{a,b}', "tab\tnew\nline\r", "\x01\x7F", 'é', "e\x{301}", '日本', '😀👍🏽', "\x{2028}", "\x{FEFF}x",
		'NULL', 'null', ' ', "\x{A0}", 'x' x 10_000);
	my $got = request_of(removal($phone, \@names, [ reverse @names ]));

	is_deeply($got->{body}{tags}[$_], $names[$_], "tag $_ exactly as given") foreach 0 .. $#names;
	is(scalar @{ $got->{body}{tags} }, scalar @names, 'and no other');
	is_deeply($got->{body}{customFields}, [ reverse @names ], 'custom fields exactly as given');
	$got = request_of(attempt($phone, [qw(b a b c a b)], [ 'a', 'A', 'a', 'a ' ]));
	is_deeply($got->{body}{tags}, [qw(b a c)], 'duplicates once, in first-seen order');
	is_deeply($got->{body}{customFields}, [ 'a', 'A', 'a ' ], 'for each kind by itself');

	my @many = map { "name $_" } 1 .. 1000;
	is_deeply(request_of(removal($phone, [ @many[ 0 .. 599 ] ], [ @many[ 600 .. 999 ] ]))->{body},
		{ phone => $phone, tags => [ @many[ 0 .. 599 ] ], customFields => [ @many[ 600 .. 999 ] ] }, '1000 names');

	# As many bytes as a request may have: more than libcurl sends at once, and it asks nothing before.
	my @long = map { sprintf('%04d', $_) . 'x' x 500 } 1 .. 1000;
	$got = request_of(removal($phone, \@long));
	is_deeply($got->{body}{tags}, \@long, '1000 long names');
	ok(!exists $got->{headers}{expect}, '1000 long names: no Expect');

	$sb->customer($phone, \@names, [@names]);
	my ($removed) = $calls->session(removal($phone, \@names, \@names));
	is_deeply($removed->{value}{tags}, { removed => \@names, errored => [] }, 'and come back so');
	is_deeply($sb->customer_now($phone)->{customFields}, [], 'and are gone');
	return;
}

# Nothing leaves for arguments that are no good.
sub bad_arguments
{
	my %bad = (
		'a bad phone' => [ '22023', '0123456', ['lead'] ],
		'no phone' => [ '22004', undef, ['lead'] ],
		'nothing to remove' => [ '22023', $phone, [], [] ],
		'a null name' => [ '22004', $phone, [undef] ],
		'an empty name' => [ '22023', $phone, ['lead'], [''] ],
		'a bad waba' => [ '22023', $phone, ['lead'], undef, 'x' ]);

	$sb->clear_journal;
	foreach my $name (sort keys %bad)
	{
		my ($sqlstate, @arguments) = @{ $bad{$name} };
		my ($raised, $returned) = $calls->session(removal(@arguments), attempt(@arguments));
		is($raised->{sqlstate}, $sqlstate, "$name: SQLSTATE");
		shape_ok($raised, $name);
		is_deeply($returned->{value}, $raised->{detail}, "$name: dt_try returns the DETAIL");
		is($returned->{value}{statusCode}, undef, "$name: no HTTP status");
		is($returned->{value}{error},
			$sqlstate eq '22004' ? 'null_value_not_allowed' : 'invalid_parameter_value', "$name: error");
	}
	is_deeply($sb->journal, [], 'no request for any of them');
	return;
}

# One bad row does not undo a bulk statement.
sub bulk
{
	$sb->reset;
	$calls->sql(q{
		CREATE TABLE customers (n int PRIMARY KEY, phone text, tags text[], answer jsonb);
		INSERT INTO customers VALUES
			(1, '14155550101', '{lead}'), (2, '14155550102', '{lead}'), (3, '1-415', '{lead}'),
			(4, '14155550104', '{lead}'), (5, NULL, '{lead}'), (6, '14155550106', '{lead}')});
	$sb->rule('14155550102', { status => 422 });
	$sb->rule('14155550104', { status => 500 });
	$sb->customer("1415555010$_", ['lead'], []) foreach 1, 2, 4, 6;

	my $said = $calls->sql(q{SELECT n, t ? 'statusCode', t->>'statusCode', t->>'error', t->'tags'->'removed'->>0
		FROM (SELECT n, dt_try_remove_tags_custom_fields(phone, tags) AS t FROM customers ORDER BY n) AS _});
	is($said, join("\n", '1|f|||lead', '2|t|422|Unprocessable Entity|', '3|t||invalid_parameter_value|',
			'4|t|500|Internal Server Error|', '5|t||null_value_not_allowed|', '6|f|||lead'),
		'SELECT over a table with bad rows');
	# Requests that are in flight at once arrive in any order.
	is_deeply([ sort map { $_->{body}{phone} } @{ $sb->journal } ],
		[ map { "1415555010$_" } 1, 2, 4, 6 ], 'one request for each row that can be sent');

	$sb->clear_journal;
	$calls->sql('UPDATE customers SET answer = dt_try_remove_tags_custom_fields(phone, tags)');
	is($calls->sql(q{SELECT string_agg(coalesce(answer->>'error', 'done'), ',' ORDER BY n) FROM customers}),
		'done,Unprocessable Entity,invalid_parameter_value,Internal Server Error,null_value_not_allowed,done',
		'UPDATE of a table with bad rows');
	is(scalar @{ $sb->journal }, 4, 'one request for each row');

	# Here errors do abort, in the middle of a statement and outside of any subtransaction.
	my ($code, undef, $error) = $calls->node->psql('postgres',
		"\\set VERBOSITY sqlstate\nUPDATE customers SET answer = '{}' FROM dt_remove_tags_custom_fields('14155550102', '{lead}')");
	is($error =~ s/^.*ERROR: +//sr, '22023', 'a refusal raised in an UPDATE');
	isnt($code, 0, 'fails it');
	is($calls->sql(q{SELECT count(*) FROM customers WHERE answer = '{}'}), '0', 'and nothing of it stays');

	$sb->rule('14155550102', { status => 401 });
	($code, undef, $error) = $calls->node->psql('postgres',
		'\set VERBOSITY sqlstate
		SELECT dt_try_remove_tags_custom_fields(phone, tags) FROM customers ORDER BY n');
	is($error =~ s/^.*ERROR: +//sr, '28000', 'a 401 ends a bulk statement');
	$sb->reset;
	return;
}

refusals();
refusals_with_many_messages();
unauthorized();
their_trouble();
redirects();
unusable_successes();
unusable_bytes();
odd_refusals();
long_message();
successes();
large_answer();
answers_alike();
request();
waba();
names();
bad_arguments();
bulk();
done_testing;

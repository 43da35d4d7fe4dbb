
# Sending and receiving, with a server that does what it should not: it ends the
# connection in the middle of a request, answers before it has read it, or writes
# bytes that are HTTP almost, or not at all.

use strict;
use warnings;

use File::Basename qw(dirname);
use IO::Compress::Gzip;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib dirname(__FILE__);
use Calls;
use Queue;
use Wire;

# Seconds; a test that passes takes far fewer.
my $too_long = 60;

open_queue(options => { rate_limit => '0' });
my $phone = '919876543210';
my $good = '{"tags": {"removed": ["lead"], "errored": []}, "customFields": {"removed": [], "errored": []}}';

# A call's largest body: more than a socket takes at once.
my $large = "(SELECT array_agg(repeat(n::text, 30000)) FROM generate_series(1, 9) AS n)";

$calls->server('wire', timeout => '1s');

# A whole answer with this body, and other lines of the head.
sub answer
{
	my ($status, $body, @lines) = @_;

	return join("\r\n", "HTTP/1.1 $status", 'Content-Type: application/json', 'Content-Length: ' . length $body, @lines, '', $body);
}

sub gzipped
{
	my ($body) = @_;
	my $packed;

	IO::Compress::Gzip::gzip(\$body => \$packed) or die 'gzip failed';
	return $packed;
}

sub chunked
{
	my ($body) = @_;

	return sprintf("%x\r\n%s\r\n0\r\n\r\n", length $body, $body);
}

# Has the server "wire" lead to a new Wire.
sub wired
{
	my ($function) = @_;
	my $wire = Wire->new($function);

	$calls->sql("ALTER SERVER wire OPTIONS (SET base_url '" . $wire->url . "')");
	return $wire;
}

# What a call gets, in a session of its own, and in what time.
sub outcome_of
{
	my ($name, $tags) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time;
	my ($got) = $calls->session('SET doubletick.server = wire', "SELECT dt_remove_tags_custom_fields('$phone', " . ($tags || "'{lead}'") . ')');

	cmp_ok(time - $begin, '<', $too_long, "$name: in time");
	shape_ok($got, $name) unless exists $got->{value};
	return $got;
}

# Tests a fault of the connection or of the answer, and how often it was met.
sub fault_is
{
	my ($name, $function, $sqlstate, $message, %with) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $wire = wired($function);
	my $got = outcome_of($name, $with{tags});

	is($got->{sqlstate} // 'good', $sqlstate, "$name: SQLSTATE") || diag(explain($got));
	like($got->{message} // '', $message, "$name: message");
	cmp_ok($wire->connections, $with{once} ? '==' : '>=', $with{once} ? 1 : 2, $with{once} ? "$name: is not tried again" : "$name: is tried again");
	return;
}

# The connection ends before the request is there.
sub while_sending
{
	my $broke_off = qr/^connection to DoubleTick broke off|did not answer in time/;

	fault_is('the connection ends at once', sub { return; }, 'HV00M', $broke_off);
	fault_is('the connection is reset at once', sub { reset_peer($_[0]) }, 'HV00M', $broke_off);
	fault_is('the connection ends after the head', sub { head_of($_[0]) }, 'HV00M', $broke_off, tags => $large);
	fault_is('the connection is reset after the head', sub { head_of($_[0]); reset_peer($_[0]); }, 'HV00M', $broke_off, tags => $large);
	fault_is('the connection is reset after part of the body', sub { head_of($_[0]); sysread $_[0], my $part, 1000; reset_peer($_[0]); },
		'HV00M', $broke_off, tags => $large);
	fault_is('the connection ends after the request', sub { request_of($_[0]) }, 'HV00M', $broke_off, tags => $large);
	fault_is('nothing is read', sub { sleep 20 }, 'HV00M', qr/did not answer in time/, tags => $large, once => 1);
	return;
}

# An answer that comes before the request has been read.
sub before_the_request
{
	my $refusal = answer('413 Payload Too Large', '{"message": "too large"}', 'Connection: close');

	fault_is('413 before the body is read, and the end', sub { head_of($_[0]); send_all($_[0], $refusal); shutdown $_[0], 1; wait_for_end($_[0]); },
		'22023', qr/HTTP status 413: too large/, tags => $large, once => 1);
	fault_is('401 before the body is read, and the end', sub { head_of($_[0]); send_all($_[0], $refusal =~ s/413 Payload Too Large/401 Unauthorized/r); shutdown $_[0], 1; wait_for_end($_[0]); },
		'28000', qr/HTTP status 401: too large/, tags => $large, once => 1);

	# The reset may overtake the answer: then it is the connection that broke off.
	my $wire = wired(sub { head_of($_[0]); send_all($_[0], $refusal); reset_peer($_[0]); });
	my $got = outcome_of('413 before the body is read, and a reset', $large);
	like($got->{sqlstate} // 'good', qr/^(?:22023|HV00M)$/, '413 before the body is read, and a reset: SQLSTATE');

	# A success that comes early is one, and the connection is used again when all is sent.
	$wire = wired(sub {
		my ($peer) = @_;
		for (1 .. 2)
		{
			my $head = head_of($peer) or return;
			my ($left) = $head =~ /Content-Length: (\d+)/i;
			send_all($peer, answer('201 Created', $good));
			while ($left > 0)
			{
				$left -= sysread($peer, my $part, $left) || return;
			}
		}
		wait_for_end($peer);
	});
	my @got = $calls->session('SET doubletick.server = wire', ("SELECT dt_remove_tags_custom_fields('$phone', $large)") x 2);
	is_deeply([ map { $_->{value}{tags}{removed}[0] // $_->{message} } @got ], [ 'lead', 'lead' ], '201 before the body is read: both calls succeed');

	# An answer before a byte was asked for: it is over HTTP's head, but must end.
	$wire = wired(sub { send_all($_[0], answer('201 Created', $good)); request_of($_[0]); wait_for_end($_[0]); });
	$got = outcome_of('an answer before the request');
	like($got->{sqlstate} // 'good', qr/^(?:good|HV00M)$/, 'an answer before the request: SQLSTATE');
	return;
}

# The connection ends in the middle of the head: that is no answer, whatever its status.
sub cut_off_heads
{
	foreach my $status ('201 Created', '400 Bad Request', '401 Unauthorized', '500 Internal Server Error')
	{
		foreach my $rest ('', "Content-Length: 0\r\n", "X-Odd: a\r\nX-Even")
		{
			fault_is("a head that is cut off, $status, " . length $rest, sub { request_of($_[0]); send_all($_[0], "HTTP/1.1 $status\r\n$rest"); },
				'HV00M', qr/^connection to DoubleTick broke off/);
		}
	}
	return;
}

# Interim answers that nobody asked for, and those that cannot be obeyed.
sub interim
{
	my $continue = "HTTP/1.1 100 Continue\r\n\r\n";
	my $wire = wired(sub { request_of($_[0]); send_all($_[0], $continue x 3 . answer('201 Created', $good)); wait_for_end($_[0]); });
	is(outcome_of('100 three times')->{value}{tags}{removed}[0], 'lead', '100 three times: then the answer');
	$wire = wired(sub { head_of($_[0]); send_all($_[0], $continue); sleep 0.05; send_all($_[0], answer('201 Created', $good)); wait_for_end($_[0]); });
	is(outcome_of('100 before the body', $large)->{value}{tags}{removed}[0], 'lead', '100 before the body: then the answer');
	fault_is('417', sub { request_of($_[0]); send_all($_[0], answer('417 Expectation Failed', '')); wait_for_end($_[0]); },
		'22023', qr/HTTP status 417 \(Expectation Failed\)$/, once => 1);
	fault_is('101', sub { request_of($_[0]); send_all($_[0], "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"); wait_for_end($_[0]); },
		'HV00M', qr/./, once => 1);
	fault_is('100 and the end', sub { request_of($_[0]); send_all($_[0], $continue); }, 'HV00M', qr/broke off|in time/);
	return;
}

# Heads and bodies that are wrong: SQLSTATE, message, and whether it is tried again.
sub odd_bytes
{
	my $body = length $good;
	my $head = "HTTP/1.1 201 Created\r\n";
	my %not_http = (
		'no version' => "201 Created\r\n\r\n$good",
		'HTTP/0.9' => $good,
		'a preface of HTTP/2' => "\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x64\0\4\0\0\xff\xff\0\5\0\0\x40\0",
		'a page of an old proxy' => "<html><body>Bad gateway</body></html>",
		'a length that is no number' => "${head}Content-Length: many\r\n\r\n$good",
		'a negative length' => "${head}Content-Length: -5\r\n\r\n$good",
		'a status of two digits' => "HTTP/1.1 20\r\nContent-Length: 2\r\n\r\n{}",
		'a status of letters' => "HTTP/1.1 ABC OK\r\nContent-Length: 2\r\n\r\n{}",
		'version 9' => "HTTP/9.9 201 Created\r\nContent-Length: 2\r\n\r\n{}",
		'NUL in the head' => "${head}X-Odd: a\0b\r\nContent-Length: 2\r\n\r\n{}",
		'a chunk whose size is negative' => "${head}Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
		'a chunk whose size overflows' => "${head}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
		'a chunk without an end' => "${head}Transfer-Encoding: chunked\r\n\r\n2\r\n{}garbage",
		'gzip in gzip in gzip in gzip in gzip in gzip' => answer('201 Created', '{}', 'Content-Encoding: ' . join ', ', ('gzip') x 6),
		'many numbers of many digits' => answer('201 Created', '{"a": [' . join(',', ('1e999') x 1000) . ']}'),
		'gzip in gzip' => answer('201 Created', gzipped(gzipped($good)), 'Content-Encoding: gzip, gzip'),
		'gzip in gzip, in two lines' => answer('201 Created', gzipped(gzipped($good)), 'content-encoding:gzip', 'Content-Encoding: x-gzip'),
		'gzip in a transfer of gzip' => "${head}Content-Encoding: gzip\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" . chunked(gzipped(gzipped($good))),
		'gzip that is none' => answer('201 Created', '{}', 'Content-Encoding: gzip'),
		'gzip that is cut off' => answer('201 Created', "\x1f\x8b\x08\0\0\0\0\0\0\3", 'Content-Encoding: gzip'),
		'a coding of the transfer that nobody knows' => "${head}Transfer-Encoding: odd\r\nContent-Length: 2\r\n\r\n{}",
		'a body that is shorter than announced' => "${head}Content-Length: 9999\r\n\r\n$good",
		'half of a status line' => 'HTTP/1.1 2',
		'nothing but line ends' => "\r\n" x 10);

	foreach my $name (sort keys %not_http)
	{
		my $wire = wired(sub { request_of($_[0]); send_all($_[0], $not_http{$name}); });
		my $got = outcome_of($name);
		my $said = $got->{sqlstate} // 'good';

		is($said, 'HV00M', "$name: SQLSTATE") || diag(explain($got));
		note("$name: " . ($got->{message} // '') . ', ' . $wire->connections . ' connections');
	}
	return;
}

# What a tolerant client accepts is still the answer, and nothing of it is left for the next one.
sub tolerated
{
	my $body = length $good;
	my %answers = (
		'HTTP/1.0 and the end' => "HTTP/1.0 201 Created\r\n\r\n$good",
		'a length that overflows, and the end' => "HTTP/1.1 201 Created\r\nContent-Length: 99999999999999999999\r\n\r\n$good",
		'no reason' => answer('201', $good),
		'line feeds alone' => "HTTP/1.1 201 Created\nContent-Length: $body\n\n$good",
		'a length twice' => answer('201 Created', $good, "Content-Length: $body"),
		'blanks around a length' => "HTTP/1.1 201 Created\r\nContent-Length:   $body  \r\n\r\n$good",
		'more bytes than announced' => answer('201 Created', $good) . answer('201 Created', '{"tags": "of another"}'),
		'chunks and a length' => "HTTP/1.1 201 Created\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
		  . sprintf("%x\r\n%s\r\n0\r\n\r\n", $body, $good),
		'a cookie' => answer('201 Created', $good, 'Set-Cookie: session=1; Path=/', 'Set-Cookie: other=2'),
		'Location under 201' => answer('201 Created', $good, 'Location: http://127.0.0.1:1/elsewhere'),
		'Refresh' => answer('201 Created', $good, 'Refresh: 0; url=http://127.0.0.1:1/elsewhere'),
		'Alt-Svc' => answer('201 Created', $good, 'Alt-Svc: h2="127.0.0.1:1", h3=":1"'),
		'Strict-Transport-Security' => answer('201 Created', $good, 'Strict-Transport-Security: max-age=31536000'),
		'Upgrade' => answer('201 Created', $good, 'Upgrade: h2c', 'Connection: Upgrade'),
		'a hundred header lines' => answer('201 Created', $good, map { "X-Odd-$_: " . 'x' x 100 } 1 .. 100),
		'a header line twice' => answer('201 Created', $good, 'Content-Type: text/html'),
		'headers that are not ASCII' => answer('201 Created', $good, "X-Odd: \xff\xfe"),
		'a header line like a status line' => answer('201 Created', $good, 'HTTP/1.1 100: Continue'),
		'another type' => answer('201 Created', $good, 'Content-Type: text/html; charset=utf-16'));

	foreach my $name (sort keys %answers)
	{
		my @heads;
		my $file = PostgreSQL::Test::Utils::tempdir() . '/heads';
		my $wire = wired(sub {
			my ($peer) = @_;
			while (my $request = request_of($peer))
			{
				append_to_file($file, $request . "\n");
				send_all($peer, $answers{$name}) or return;
				return if $name =~ /the end/;
			}
		});
		my @got = $calls->session('SET doubletick.server = wire', (removal($phone, ['lead'])) x 2);
		is_deeply([ map { $_->{value}{tags}{removed}[0] // $_->{message} } @got ], [ 'lead', 'lead' ], "$name: both calls get the answer");
		my $sent = slurp_file($file);
		is(scalar(() = $sent =~ m{^POST /customer/remove-tags-custom-fields HTTP/1\.1\r$}mg), 2, "$name: after one request each");
		unlike($sent, qr/^(?:Cookie|Upgrade|HTTP2-Settings|Referer):/mi, "$name: that repeat nothing of it");
	}
	return;
}

# What only a tolerant client takes for a status line or for an interim answer, and after it
# a first header line that begins with a blank: see 017.
sub folded
{
	my $folded = "\r\n a: b\r\nContent-Length: " . length($good) . "\r\n\r\n$good";
	my %odd = (
		'in lower case' => 'http/1.1 201 Created',
		'with a tab' => "HTTP/1.1 \t100 Continue\r\n\r\nHTTP/1.1 201 Created",
		'with blanks in its version' => "HTTP/ 1. 1 100 Continue\r\n\r\nHTTP/1.1 201 Created",
		'with zeros before its code' => "HTTP/2 00100\r\n\r\nHTTP/1.1 201 Created",
		'without a blank' => "HTTP/2100\r\n\r\nHTTP/1.1 201 Created");

	foreach my $name (sort keys %odd)
	{
		my $wire = wired(sub {
			my ($peer) = @_;
			while (request_of($peer))
			{
				send_all($peer, answer('201 Created', $good)) or return;
				request_of($peer) or return;
				send_all($peer, $odd{$name} . $folded) or return;
			}
		});
		is($calls->sql("SET doubletick.server = wire;
				SELECT count(answer) FILTER (WHERE i % 2 = 1 AND answer ? 'tags'), count(answer) FILTER (WHERE i % 2 = 0)
				FROM (SELECT i, dt_try_remove_tags_custom_fields('$phone', '{lead}') AS answer FROM generate_series(1, 20) AS i) AS calls"),
			'10|10', "a status line $name, and a folded header: the calls before and after it get their answers");
	}
	return;
}

# A server that asks for another proof of who is there than the key.
sub asked_for_proof
{
	foreach my $scheme ('Basic realm="x"', 'Digest realm="x", nonce="y"', 'Negotiate', 'NTLM', 'Bearer')
	{
		my $name = (split / /, $scheme)[0];
		fault_is("401 that asks for $name", sub { request_of($_[0]); send_all($_[0], answer('401 Unauthorized', '{"message": "who?"}', "WWW-Authenticate: $scheme")); wait_for_end($_[0]); },
			'28000', qr/HTTP status 401: who\?/, once => 1);
	}
	fault_is('407 of a server', sub { request_of($_[0]); send_all($_[0], answer('407 Proxy Authentication Required', '{}', 'Proxy-Authenticate: Basic realm="x"')); wait_for_end($_[0]); },
		'22023', qr/HTTP status 407/, once => 1);
	return;
}

# A proxy that does not make the tunnel.
sub proxies
{
	my %proxies = (
		'a proxy that does not answer' => [ sub { wait_for_end($_[0]) }, qr/^could not connect/ ],
		'a proxy that ends the connection' => [ sub { head_of($_[0]) }, qr/^could not connect/ ],
		'a proxy that wants a password' => [ sub { head_of($_[0]); send_all($_[0], "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n"); wait_for_end($_[0]); },
			qr/^could not connect.*407/ ],
		'a proxy whose trailer begins with a blank' => [ sub { head_of($_[0]); send_all($_[0], "HTTP/1.1 407 Proxy Authentication Required\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n a: b\r\n\r\n"); wait_for_end($_[0]); },
			qr/^could not connect/ ],
		'a proxy that is none' => [ sub { head_of($_[0]); send_all($_[0], "SSH-2.0-OpenSSH_9.2\r\n"); wait_for_end($_[0]); }, qr/^could not connect|not usable HTTP/ ],
		'a proxy whose head never ends' => [ sub { head_of($_[0]); send_all($_[0], "HTTP/1.1 200 OK\r\n"); while (send_all($_[0], 'X-Odd: ' . 'x' x 1000 . "\r\n")) { next; } }, qr/^could not connect|too long/ ],
		'a proxy that redirects' => [ sub { head_of($_[0]); send_all($_[0], "HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"); wait_for_end($_[0]); }, qr/^could not connect.*302/ ],
		'a proxy that ends the tunnel' => [ sub { head_of($_[0]); send_all($_[0], "HTTP/1.1 200 OK\r\n\r\n"); }, qr/^could not connect/ ],
		'a proxy whose tunnel leads elsewhere' => [ sub { head_of($_[0]); send_all($_[0], "HTTP/1.1 200 OK\r\n\r\n"); sysread $_[0], my $hello, 65536; send_all($_[0], "HTTP/1.1 201 Created\r\n\r\n{}"); wait_for_end($_[0]); },
			qr/^could not establish TLS/ ],);

	$calls->server('by_none', timeout => '1s');
	foreach my $name (sort keys %proxies)
	{
		my ($function, $message) = @{ $proxies{$name} };
		my $wire = Wire->new($function);
		(my $server = $name) =~ tr/a-z/_/cs;

		$sb->reset;
		$calls->server($server, proxy => $wire->url, timeout => '1s', connect_timeout => '400ms');
		my $begin = time;
		my ($before, $got, $tried) = $calls->session('SET doubletick.server = by_none', removal($Calls::well, ['lead']),
			"SET doubletick.server = $server", removal($phone, ['lead']), attempt($phone, ['lead']));
		ok($before->{value}{tags}, "$name: after an answer");
		like($got->{sqlstate}, qr/^HV00[NM]$/, "$name: SQLSTATE");
		like($got->{message}, $message, "$name: message");
		is($tried->{value}{statusCode}, undef, "$name: its status is not told as the API's");
		is(scalar @{ $sb->journal }, 1, "$name: nothing is sent");
		cmp_ok(time - $begin, '<', $too_long, "$name: in time");
	}

	# It is told who asks, but not the key.
	my $file = PostgreSQL::Test::Utils::tempdir() . '/connect';
	my $wire = Wire->new(sub { append_to_file($file, head_of($_[0])) });
	$calls->server('by_wire', proxy => $wire->url, timeout => '1s', connect_timeout => '400ms');
	$calls->session('SET doubletick.server = by_wire', attempt($phone, ['lead']));
	my ($head) = slurp_file($file) =~ /\A(CONNECT .*?\r\n)\r\n/s;
	like($head, qr{^User-Agent: doubletick/\d+\.\d+}m, 'a proxy knows who asks');
	unlike($head, qr/^(?:Authorization|Content-Type|Accept):/m, 'and nothing that is for the API');
	return;
}

# The header of a request has what the API and its gateways need, and no more; also that of
# more than 1 MiB, which names in another encoding than UTF-8 may make.
sub request_head
{
	my $file = PostgreSQL::Test::Utils::tempdir() . '/request';
	my $wire = wired(sub {
		append_to_file($file, request_of($_[0]) =~ s/(?<=\r\n\r\n).*//sr);
		send_all($_[0], answer('400 Bad Request', '{}', 'Connection: close'));
	});

	$calls->sql(q{CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'});
	$calls->set_up('latin', base_url => $wire->url, ca_file => undef);
	$calls->session('SET doubletick.server = wire', attempt($phone, ['lead']));
	$calls->session("SELECT dt_try_remove_tags_custom_fields('$phone', ARRAY[repeat(chr(233), 524288)])", { database => 'latin' });
	my @heads = split /(?<=\r\n\r\n)/, slurp_file($file);
	is(scalar @heads, 2, 'two requests');
	like($heads[1], qr/^Content-Length: 104\d{4}\r$/m, 'one of more than 1 MiB');
	foreach my $head (@heads)
	{
		my ($request, @lines) = split /\r\n/, $head;
		is($request, 'POST /customer/remove-tags-custom-fields HTTP/1.1', 'what is asked for');
		is_deeply([ sort map { /^([^:]+):/ } @lines ], [qw(Accept Authorization Content-Length Content-Type Host User-Agent)],
			'the header of a request: no Expect, and no compression');
	}
	return;
}

# An answer without a length ends with the connection, perhaps in the middle.
sub truncated
{
	$calls->server('brief', timeout => '1s');
	$calls->server('plain', timeout => '1s', base_url => $sb->http);
	$sb->reset;
	$sb->customer($phone, [ 'lead', 'vip' ], []);
	$sb->rule($phone, { fault => 'until_close', times => 2 });
	my ($whole, $next, $cut);
	($whole, $next) = $calls->session('SET doubletick.server = brief', removal($phone, ['lead']), removal($phone, ['vip']));
	is_deeply([ map { $_->{value}{tags}{removed}[0] } $whole, $next ], [ 'lead', 'vip' ], 'an answer that ends with close_notify is whole');
	foreach my $server (qw(brief plain))
	{
		$sb->rule($phone, { fault => 'until_cut' });
		($cut) = $calls->session("SET doubletick.server = $server", removal($phone, ['lead']));
		is($cut->{sqlstate} // 'good', 'HV00M', "an answer that is cut off is none, $server");
	}
	$sb->clear_rules;
	return;
}

# The queue: what was not read, or read in part, waits and is sent again.
sub queued
{
	my %wires = (
		'reset after part of the body' => sub { head_of($_[0]); sysread $_[0], my $part, 1000; reset_peer($_[0]); },
		'the end at once' => sub { return; },
		'a head that is cut off' => sub { request_of($_[0]); send_all($_[0], "HTTP/1.1 400 Bad Request\r\nX-Odd: a\r\n"); },
		'half of an answer' => sub { request_of($_[0]); send_all($_[0], substr answer('201 Created', $good), 0, -20); });

	foreach my $name (sort keys %wires)
	{
		my $wire = wired($wires{$name});
		fresh();
		my $id = $calls->sql("SET doubletick.server = wire; SELECT dt_enqueue_remove_tags_custom_fields('$phone', $large)");
		my $other = enqueue('919876543211', ['lead']);
		drain();
		is(states($id, $other), 'waiting done', "$name: the removal waits, and another server goes on");
		like(waiting($id)->{last_error}, qr/broke off/, "$name: it says why");
		cmp_ok(waiting($id)->{attempts}, '>=', 1, "$name: an attempt is counted");
		$calls->sql("ALTER SERVER wire OPTIONS (SET base_url '" . $sb->https . "')");
		$calls->sql('UPDATE dt_waiting SET due_at = now()');
		drain();
		is(states($id), 'done', "$name: and it is done when the server is well");
	}
	my $wire = wired(sub { head_of($_[0]); send_all($_[0], answer('413 Payload Too Large', '{"message": "too large"}', 'Connection: close')); shutdown $_[0], 1; wait_for_end($_[0]); });
	fresh();
	my $id = $calls->sql("SET doubletick.server = wire; SELECT dt_enqueue_remove_tags_custom_fields('$phone', $large)");
	drain();
	is($calls->sql("SELECT state, http_status, attempts FROM dt_history WHERE id = $id"), 'failed|413|1', 'a refusal that comes early is final');
	return;
}

while_sending();
before_the_request();
cut_off_heads();
interim();
odd_bytes();
tolerated();
folded();
asked_for_proof();
request_head();
proxies();
truncated();
queued();
done_testing;

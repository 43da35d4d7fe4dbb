
# From a name to a connection: what a name server may answer, addresses that do not
# answer, and a connection or a handshake that never comes to be.
#
# The name server is test/preload/slowdns.c.  Where that cannot be preloaded, the
# test is skipped.

use strict;
use warnings;

use File::Basename qw(dirname);
use IO::Socket::IP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;
use Queue;
use Wire;

# Seconds; what hangs would do so for a minute.
my $soon = 30;

plan skip_all => 'this needs a preloaded library' unless $^O eq 'linux';
{
	local $ENV{LD_PRELOAD} = build_preload('slowdns');
	open_queue(options => { rate_limit => '0' });
}
my $phone = '919876543210';
my $port = $sb->port('https');

# A server with this host, at the sandbox's port.
sub by_name
{
	my ($name, $host, %options) = @_;

	return $calls->server($name, base_url => "https://$host:$port", timeout => '20s', connect_timeout => '4s', %options);
}

sub arrives
{
	my ($server, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time;

	$sb->reset;
	my ($got, $tried) = $calls->session("SET doubletick.server = $server", removal($phone, ['lead']), attempt($phone, ['vip']));
	is(ref $got->{value}{tags}, 'HASH', "$name: a call") || diag($got->{message});
	is(ref $tried->{value}{tags}, 'HASH', "$name: dt_try");
	is(scalar(() = requests($phone)), 2, "$name: one request each");
	cmp_ok(time - $begin, '<', $soon, "$name: in time");
	return;
}

# Tests that nothing arrives, that both calls say so, and that a removal waits.
sub does_not_arrive
{
	my ($server, $name, $message) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time;

	$calls->fault_ok($name, $phone, { server => $server, sqlstate => 'HV00N', status => undef, vague => 1, message => $message,
		error => 'fdw_unable_to_establish_connection', hint => qr/base_url/ });
	cmp_ok(time - $begin, '<', 60, "$name: in time");
	fresh();
	my $id = enqueue($phone, ['lead'], undef, server => $server);
	my $other = enqueue('919876543211', ['lead']);
	drain();
	like(waiting($id)->{last_error}, $message, "$name: a removal waits, and says why");
	cmp_ok(waiting($id)->{attempts}, '>=', 1, "$name: after an attempt");
	is(states($other), 'done', "$name: another server goes on");
	return;
}

# A name that is looked up for the first time may not be found, or only the next time.
sub names
{
	by_name('one', 'one.sandbox.invalid');
	arrives('one', 'one address');
	by_name('again', 'again.sandbox.invalid');
	arrives('again', 'a name server that fails once');
	$calls->server('unresolved', base_url => 'https://nosuchhost.invalid', timeout => '500ms');
	does_not_arrive('unresolved', 'a name that does not resolve', qr/^could not connect to DoubleTick: /);
	return;
}

# The sandbox listens on 127.0.0.1 alone; nobody does on 127.0.0.2.
sub addresses
{
	by_name('second', 'second.sandbox.invalid');
	arrives('second', 'two addresses, of which the first refuses');
	by_name('dead', 'dead.sandbox.invalid', timeout => '500ms');
	does_not_arrive('dead', 'several addresses, all of which refuse', qr/^could not connect to DoubleTick: /);

	# As many connections as fit wait in the queue of 127.0.0.3: more get no answer.
	my $silent = IO::Socket::IP->new(LocalHost => '127.0.0.3', LocalPort => $port, Listen => 1, ReuseAddr => 1) or die "could not listen: $@";
	my @waiting = map { IO::Socket::IP->new(PeerHost => '127.0.0.3', PeerPort => $port, Blocking => 0) } 1 .. 8;
	by_name('silent', 'silent.sandbox.invalid');
	arrives('silent', 'two addresses, of which the first is silent');
	by_name('all_silent', 'all-silent.sandbox.invalid', timeout => '1s', connect_timeout => '300ms');
	does_not_arrive('all_silent', 'an address that is silent', qr/^could not connect to DoubleTick: .*time/i);
	interrupted('a connection', 'all-silent.sandbox.invalid', sub { 1 });
	return;
}

sub ipv6
{
	my $wire = eval {
		Wire->new(sub { to_sandbox($_[0]) }, host => '::1', port => $port);
	};
	unless ($wire)
	{
		note "no IPv6 here: $@";
		return;
	}
	by_name('six', 'six.sandbox.invalid');
	arrives('six', 'an address of IPv6 alone');
	by_name('six_literal', '[::1]');
	arrives('six_literal', 'a literal address of IPv6');
	undef $wire;
	by_name('six_first', 'six-first.sandbox.invalid');
	arrives('six_first', 'an address of IPv6 that refuses, before one of IPv4');
	does_not_arrive('six', 'an address of IPv6 alone that refuses', qr/^could not connect to DoubleTick: /);
	return;
}

# Passes bytes on between a connection and the sandbox.
sub to_sandbox
{
	my ($peer) = @_;
	my $sandbox = IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port) or return;
	my $select = IO::Select->new($peer, $sandbox);

	while (my @ready = $select->can_read)
	{
		foreach my $from (@ready)
		{
			sysread $from, my $bytes, 65536 or return;
			send_all($from == $peer ? $sandbox : $peer, $bytes) or return;
		}
	}
	return;
}

# Before a request is sent: a handshake of TLS that is not answered, or not by TLS.
sub handshakes
{
	my $hello = sub { sysread $_[0], my $waste, 65536; return; };
	my %wires = (
		'a handshake that is not answered' => [ sub { wait_for_end($_[0]) }, qr/^could not connect to DoubleTick: .*time/i ],
		'a handshake that is closed' => [ sub { $hello->($_[0]) }, qr/^could not connect to DoubleTick: / ],
		'a handshake that is reset' => [ sub { $hello->($_[0]); reset_peer($_[0]) }, qr/^could not connect to DoubleTick: / ],
		'a connection that is reset before the handshake' => [ sub { reset_peer($_[0]) }, qr/^could not connect to DoubleTick: / ],
		'half of a handshake, and the end' => [ sub { $hello->($_[0]); send_all($_[0], "\x16\x03\x03\x00\x7a\x02\x00\x00") },
			qr/^could not connect to DoubleTick: / ],);

	foreach my $name (sort keys %wires)
	{
		my ($function, $message) = @{ $wires{$name} };
		my $wire = Wire->new($function);
		(my $server = $name) =~ tr/a-z/_/cs;

		$calls->server($server, base_url => 'https://127.0.0.1:' . $wire->port, timeout => '1s', connect_timeout => '300ms');
		does_not_arrive($server, $name, $message);
		cmp_ok($wire->connections, '>=', 4, "$name: is tried again");
	}

	# A refusal will be the same another time: it holds.
	my %refusals = (
		'an alert in the handshake' => "\x15\x03\x03\x00\x02\x02\x28",
		'a handshake that is no TLS' => "220 mail.example.com ESMTP\r\n",);
	foreach my $name (sort keys %refusals)
	{
		my $wire = Wire->new(sub { $hello->($_[0]); send_all($_[0], $refusals{$name}); wait_for_end($_[0]); });
		(my $server = $name) =~ tr/a-z/_/cs;

		$calls->server($server, base_url => 'https://127.0.0.1:' . $wire->port, timeout => '5s');
		$calls->fault_ok($name, $phone, { server => $server, sqlstate => 'HV00N', status => undef, vague => 1,
			message => qr/^could not establish TLS with DoubleTick: /, error => 'fdw_unable_to_establish_connection', hint => qr/base_url/ });
		is($wire->connections, 2, "$name: is not tried again");
		fresh();
		my $id = enqueue($phone, ['lead'], undef, server => $server);
		drain();
		like(status($server)->{held}, qr/could not establish TLS/, "$name: holds the server and role");
		is(waiting($id)->{attempts}, 0, "$name: and counts no attempt");
	}

	my $wire = Wire->new(sub { wait_for_end($_[0]) });
	interrupted('a handshake', '127.0.0.1', sub { $wire->connections > 0 }, $wire->port);
	return;
}

# A call and a CALL that wait before a request is sent are cancelled at once.
sub interrupted
{
	my ($what, $host, $reached, $at) = @_;
	my %waits = (
		'a call' => removal($phone, ['lead']),
		'a CALL' => 'CALL dt_process_queue()');

	(my $server = "interrupted $what") =~ tr/a-z/_/cs;
	$calls->server($server, base_url => "https://$host:" . ($at || $port), timeout => '1min', connect_timeout => '1min');
	fresh();
	my $id = enqueue($phone, ['lead'], undef, server => $server);
	foreach my $who (sort keys %waits)
	{
		my $session = $node->background_psql('postgres', on_error_stop => 0);
		my $pid = $session->query("SET doubletick.server = $server; SELECT pg_backend_pid()");

		$session->query_until(qr/on its way/, "\\echo on its way\n$waits{$who};\n");
		eventually(sub { $calls->sql("SELECT wait_event FROM pg_stat_activity WHERE pid = $pid") =~ /^(?:Extension|Doubletick(?:Answer|Drain))$/ && $reached->() },
			"$what: $who waits for it");
		my $begin = time;
		$calls->sql("SELECT pg_cancel_backend($pid)");
		like(($session->query("SELECT 'it answers'"))[0], qr/it answers/, "$what: $who is cancelled");
		like($session->{stderr}, qr/canceling statement due to user request/, "$what: with the core's error");
		cmp_ok(time - $begin, '<', $soon, "$what: at once");
		$session->{stderr} = '';
		$session->quit;
	}
	is(waiting($id)->{attempts}, 0, "$what: what is broken off is no attempt");
	$calls->sql("SELECT dt_cancel($id)");
	return;
}

# While one server's name server hangs, others are served, and so are sessions.
sub hanging
{
	$calls->server('hanging', base_url => 'https://hanging.invalid', timeout => '1min', connect_timeout => '1min');
	interrupted('a name server', 'hanging.invalid', sub { 1 });
	fresh();
	my $id = enqueue($phone, ['lead'], undef, server => 'hanging');
	my @others = map { enqueue("9198765432$_", ['lead']) } 20 .. 39;
	my $drain = start_drain();
	eventually(sub { states(@others) eq join ' ', ('done') x @others }, 'while a name server hangs, another server is served');
	is(states($id), 'waiting', 'while a name server hangs, its own removal waits');
	my $begin = time;
	$calls->sql('CREATE DATABASE other');
	$calls->sql('DROP DATABASE other');
	cmp_ok(time - $begin, '<', $soon, 'while a name server hangs, DROP DATABASE goes through');
	break_off($drain);

	# The session that called ends at once, although the look-up has a thread of its own.
	$drain = start_drain();
	eventually(sub { status('hanging')->{in_flight} == 1 }, 'another CALL waits for the name server');
	$begin = time;
	$node->stop('fast');
	cmp_ok(time - $begin, '<', $soon, 'while a name server hangs, the server stops');
	return;
}

names();
addresses();
ipv6();
handshakes();
hanging();
done_testing;


# Whom the extension trusts, and by which way it goes: certificates, the option
# "ca_file", the option "proxy", and an environment that would lead elsewhere.

use strict;
use warnings;

use File::Basename qw(dirname);
use File::Copy qw(copy);
use IO::Socket::INET;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $phone = '919876543210';
my $nowhere = 'http://127.0.0.1:' . closed_port();
my $home = PostgreSQL::Test::Utils::tempdir();
my @variables = qw(http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY);
my ($calls, $sb);

# Starts the server where every request would go astray that looked around.
sub start_in_bad_environment
{
	append_to_file("$home/.netrc", "machine localhost login joe password secret\n"
		  . "machine 127.0.0.1 login joe password secret\ndefault login joe password secret\n");
	chmod 0600, "$home/.netrc" or die "could not change the mode: $!";
	append_to_file("$home/.curlrc", "proxy = $nowhere\n");

	local $ENV{HOME} = $home;
	local @ENV{@variables} = ($nowhere) x @variables;
	local @ENV{qw(no_proxy NO_PROXY NETRC)} = ('', '', "$home/.netrc");
	$calls = Calls->new;
	$sb = $calls->sandbox;
	return;
}

# Tests that requests of a server arrive; returns the last one.
sub arrives
{
	my ($server, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$sb->reset;
	$sb->customer($phone, ['lead'], ['plan']);
	my @got = $calls->session("SET doubletick.server = $server", removal($phone, ['lead']), attempt($phone, undef, ['plan']));
	is_deeply($got[0]{value}{tags}{removed}, ['lead'], "$name: a call");
	is_deeply($got[1]{value}{customFields}{removed}, ['plan'], "$name: dt_try");
	my $journal = $sb->journal;
	is(scalar @$journal, 2, "$name: received") or return {};
	return $journal->[-1];
}

# Tests that none does, and what the caller is told.
sub is_refused
{
	my ($server, $name, $message, %more) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$sb->reset;
	$calls->fault_ok($name, $phone, { server => $server, sqlstate => 'HV00N', status => undef, message => $message,
		error => 'fdw_unable_to_establish_connection', hint => qr/base_url/, %more });
	is_deeply([ grep { $_->{body}{phone} eq $phone } @{ $sb->journal } ], [], "$name: nothing received");
	return;
}

# The environment is really there, and really is ignored.
sub environment
{
	foreach my $variable (@variables, 'HOME')
	{
		is($calls->sql("CREATE TEMP TABLE e (v text); COPY e FROM PROGRAM 'printenv $variable'; SELECT v FROM e"),
			$variable eq 'HOME' ? $home : $nowhere, "the server has $variable");
	}
	my $got = arrives('doubletick', 'with proxies in the environment');
	is($got->{authorization}, $sb->key, 'no password of .netrc');
	is($sb->stats->{connects}, 0, 'no proxy');

	$calls->server('plain', base_url => $sb->http);
	$got = arrives('plain', 'the same without TLS');
	is($got->{authorization}, $sb->key, 'no password of .netrc');
	is($got->{path}, '/customer/remove-tags-custom-fields', 'no proxy');
	return;
}

# Each listener but "https" is named for what is wrong with it.
sub certificates
{
	my %wrong = (
		'expired' => qr/^could not establish TLS with DoubleTick: .*expired/,
		'wronghost' => qr/^could not establish TLS with DoubleTick: .*localhost/,
		'selfsigned' => qr/^could not establish TLS with DoubleTick: .*self.signed/,
		'tls11' => qr/^could not establish TLS with DoubleTick: ./);

	arrives('doubletick', 'a good certificate');
	foreach my $name (sort keys %wrong)
	{
		$calls->server($name, base_url => $sb->url($name));
		is_refused($name, $name, $wrong{$name});
	}

	$calls->server('by_address', base_url => 'https://127.0.0.1:' . $sb->port('https'));
	is(arrives('by_address', 'by address')->{listener}, 'https', 'by address: over TLS');
	$calls->server('tls_to_plain', base_url => 'https://localhost:' . $sb->port('http'), timeout => '600ms');
	is_refused('tls_to_plain', 'TLS to who speaks none', qr/^could not (?:connect|establish TLS)/, vague => 1);

	$calls->server('plain_to_tls', base_url => 'http://localhost:' . $sb->port('https'), timeout => '600ms');
	my ($got) = $calls->session('SET doubletick.server = plain_to_tls', removal($phone, ['lead']));
	like($got->{sqlstate}, qr/^HV00[MN]$/, 'no TLS to who speaks it');

	# That one listener is not trusted does not rub off, nor does trust.
	my @got = map { $_->{sqlstate} // 'good' } $calls->session(map {
			("SET doubletick.server = $_", removal($phone, ['lead'])) } qw(doubletick expired by_address wronghost doubletick selfsigned));
	is_deeply(\@got, [qw(good HV00N good HV00N good HV00N)], 'each by itself in one session');
	return;
}

# WARNINGs and such of a statement that succeeds.
sub notices
{
	my ($sql) = @_;
	my ($code, undef, $stderr) = $calls->node->psql('postgres', $sql);

	is($code, 0, 'accepted');
	return $stderr;
}

sub ca_file
{
	$calls->server('system_trust', ca_file => undef);
	is_refused('system_trust', 'without ca_file', qr/^could not establish TLS/);

	my $file = "$home/ca.pem";
	like(notices('CREATE SERVER later FOREIGN DATA WRAPPER doubletick OPTIONS ('
			  . $sb->server_options(ca_file => $file, rate_limit => '0') . ');
			CREATE USER MAPPING FOR CURRENT_USER SERVER later OPTIONS (api_key ' . quote($sb->key) . ')'),
		qr/WARNING: .*could not read file "\Q$file\E" of option "ca_file": No such file/, 'a missing ca_file is a WARNING');
	is_refused('later', 'a missing ca_file', qr/^could not establish TLS/);

	append_to_file($file, "nonsense\n");
	is_refused('later', 'a ca_file that is none', qr/^could not establish TLS/);
	unlink $file or die "could not remove \"$file\": $!";
	mkdir $file or die "could not make \"$file\": $!";
	is_refused('later', 'a ca_file that is a directory', qr/^could not establish TLS/);
	rmdir $file or die "could not remove \"$file\": $!";
	copy($sb->ca_file, $file) or die "could not copy: $!";
	arrives('later', 'a ca_file that has come');
	is(notices("ALTER SERVER later OPTIONS (SET ca_file '$file')"), '', 'no WARNING for one that is there');

	# In one session, a server goes from not trusted to trusted and back.
	my @got = map { $_->{sqlstate} // 'good' } $calls->session(
		'SET doubletick.server = system_trust', removal($phone, ['lead']),
		"ALTER SERVER system_trust OPTIONS (ADD ca_file '$file')", removal($phone, ['lead']),
		'ALTER SERVER system_trust OPTIONS (DROP ca_file)', removal($phone, ['lead']));
	is($got[1], 'good', 'an added ca_file counts at the next request');
	is($got[$_], 'HV00N', 'and nothing is trusted without it') foreach 0, 2;

	like((notices("ALTER SERVER later OPTIONS (SET ca_file '/nonexistent/ca.pem')")), qr/WARNING: /, 'ALTER warns, too');
	my ($code, undef, $stderr) = $calls->node->psql('postgres', "ALTER SERVER later OPTIONS (SET ca_file 'ca.pem')");
	isnt($code, 0, 'a relative path is refused');
	like($stderr, qr/ERROR: +option "ca_file" must be an absolute path/, 'by name');
	return;
}

# With a ca_file, the authorities that the system trusts are not trusted, be they in
# a bundle or in a directory.
sub ca_file_instead_of_the_system
{
	my $other = Sandbox->start;
	my @curl = ('curl', '-s', '-o', '/dev/null', '--noproxy', '*', '-w', '%{http_code}', '--cacert', $other->ca_file);
	my $directory = '/etc/ssl/certs';
	local %ENV = (%ENV, TRUST_DIRECTORY => $directory, TRUST_FILE => $sb->ca_file, LD_PRELOAD => build_preload('trust'));

	my ($status) = run_command([ @curl, '--capath', '/nonexistent', $sb->https ]);
	is($status, '000', 'another authority has not signed for the sandbox');
	($status) = run_command([ @curl, '--capath', $directory, $sb->https ]);
	isnt($status, '000', "the system's directory has its authority");

	$calls->node->restart;
	$calls->server('other_authority', ca_file => $other->ca_file);
	is_refused('other_authority', 'ca_file names another authority', qr/^could not establish TLS/);
	arrives('doubletick', 'ca_file names the right one');

	# The authority is in the directory alone, and is found there by the hash of its name.
	SKIP:
	{
		skip('libcurl uses no OpenSSL', 1) if `curl-config --ssl-backends` !~ /OpenSSL/;
		arrives('system_trust', 'without ca_file: the system trusts its directory');
	}
	return;
}

sub proxy
{
	$calls->server('by_proxy', proxy => $sb->http);
	is(arrives('by_proxy', 'by proxy')->{listener}, 'https', 'by proxy: over TLS all the way');
	is($sb->stats->{connects}, 1, 'by proxy: through one tunnel');
	$calls->server('plain_by_proxy', base_url => $sb->http, proxy => $sb->http);
	arrives('plain_by_proxy', 'by proxy without TLS');
	$calls->server('expired_by_proxy', proxy => $sb->http, base_url => $sb->url('expired'));
	is_refused('expired_by_proxy', 'by proxy to an expired certificate', qr/^could not establish TLS with DoubleTick: .*expired/);

	$calls->server('closed_proxy', proxy => $nowhere, timeout => '600ms');
	is_refused('closed_proxy', 'a closed proxy', qr/^could not connect to DoubleTick: /);
	my $connects = $sb->stats->{connects};

	# The sandbox's proxy answers 403 for other machines and so nobody is asked, and 502 for closed ports.
	$calls->server('refusing_proxy', proxy => $sb->http, base_url => 'https://api.example.com', timeout => '600ms');
	is_refused('refusing_proxy', 'a proxy that refuses', qr/^could not connect to DoubleTick: .*403/);
	$calls->server('failing_proxy', proxy => $sb->http, base_url => 'https://localhost:' . closed_port(), timeout => '600ms');
	is_refused('failing_proxy', 'a proxy that fails', qr/^could not connect to DoubleTick: .*502/);
	cmp_ok($sb->stats->{connects}, '>', 0, 'it was asked');

	my @got = $calls->session('SET doubletick.server = by_proxy', removal($phone, ['lead']),
		'ALTER SERVER by_proxy OPTIONS (DROP proxy)', removal($phone, ['lead']));
	is_deeply([ map { ref $_->{value}{tags} } @got ], [ 'HASH', 'HASH' ], 'a dropped proxy');
	return;
}

# "no_proxy" is for the environment's proxies, not for ours.
sub proxy_in_spite_of_environment
{
	local @ENV{qw(no_proxy NO_PROXY)} = ('*') x 2;
	$calls->node->restart;
	is($calls->sql("CREATE TEMP TABLE e (v text); COPY e FROM PROGRAM 'printenv no_proxy'; SELECT v FROM e"), '*',
		'the server has no_proxy');
	$calls->sql('ALTER SERVER by_proxy OPTIONS (ADD proxy ' . quote($sb->http) . ')');
	arrives('by_proxy', 'by proxy in spite of no_proxy');
	is($sb->stats->{connects}, 1, 'by proxy in spite of no_proxy: through a tunnel');
	return;
}

# A listener that takes the first words of a handshake and goes away, like a
# load balancer that is restarted: the call is tried again, unlike one whose
# certificate is refused.
sub broken_handshake
{
	my $listener = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die "could not listen: $!";
	my $connections = 3;
	my $child = fork // die "could not fork: $!";

	if ($child == 0)
	{
		for (1 .. $connections)
		{
			my $peer = $listener->accept or POSIX::_exit(1);
			sysread $peer, my $hello, 1;
			close $peer;		# with bytes unread, which resets it
		}
		POSIX::_exit(0);
	}
	$calls->server('restarted', timeout => '10s', connect_timeout => '1s');
	$calls->sql("ALTER SERVER restarted OPTIONS (SET base_url 'https://127.0.0.1:" . $listener->sockport . "')");
	my $session = $calls->node->background_psql('postgres', on_error_stop => 0);
	$session->query("SET doubletick.server = restarted; SET statement_timeout = '60s'");
	$session->query_until(qr/on its way/, "\\echo on its way\nSELECT dt_try_remove_tags_custom_fields('14155550100', '{lead}');\n");
	is(waitpid($child, 0), $child, 'a broken handshake is tried again');
	is($?, 0, 'and again');
	close $listener;
	my ($answer) = $session->query("SELECT 'done'");
	like($answer, qr/fdw_unable_to_establish_connection.*could not connect to DoubleTick/s, 'and is no connection');
	$session->quit;
	return;
}

start_in_bad_environment();
environment();
certificates();
ca_file();
proxy();
ca_file_instead_of_the_system();
proxy_in_spite_of_environment();
broken_handshake();
done_testing;

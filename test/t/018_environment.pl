
# What libcurl, its TLS library and the resolver would take from the server's
# environment. doc/security.md has a table of it (proxies and netrc: also 013_tls.pl): what
# it says is ignored changes no call, and what a process asks for is in the table.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $phone = '919876543210';
my $top = abs_path(dirname(__FILE__) . '/../..');
my $dir = PostgreSQL::Test::Utils::tempdir();
my $keys = "$dir/keys";
my $nowhere = 'http://127.0.0.1:' . closed_port();

# The variables of the table, by what becomes of them; "*" stands for more letters.
my %fate;
my ($table) = slurp_file("$top/doc/security.md") =~ /^\| variable \|.*?\n\|---.*?\n(.*?)\n\n/ms;
foreach my $row (split /\n/, $table // '')
{
	my (undef, $variables, undef, $fate) = split / *\| */, $row;

	$fate{$_} = $fate foreach $variables =~ /`([^`]+)`/g;
}
cmp_ok(scalar keys %fate, '>', 30, 'doc/security.md has a table of variables');

# A name that has no dot, and that "localhost" is said to be.
append_to_file("$dir/aliases", "localhost nowhere.invalid\n");
append_to_file("$dir/.netrc", "machine localhost login joe password secret\n");
append_to_file("$dir/host.conf", "multi on\n");
chmod 0755, $dir;
my %hostile = (
	(map { $_ => $nowhere } qw(http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY)),
	no_proxy => '', NO_PROXY => '',
	NETRC => "$dir/.netrc", HOME => $dir,
	SSLKEYLOGFILE => $keys, CURL_SSL_BACKEND => 'none',
	SSL_CERT_FILE => '/nonexistent/ca.pem', SSL_CERT_DIR => '/nonexistent', SSL_DIR => '/nonexistent',
	CURL_CA_BUNDLE => '/nonexistent/ca.pem', CURL_HOME => $dir,
	OPENSSL_CONF => '/nonexistent/openssl.cnf', OPENSSL_CONF_INCLUDE => '/nonexistent',
	OPENSSL_MODULES => '/nonexistent', OPENSSL_ENGINES => '/nonexistent',
	RANDFILE => '/nonexistent', CTLOG_FILE => '/nonexistent',
	LOCALDOMAIN => 'nowhere.invalid', RES_OPTIONS => 'ndots:15 timeout:1', HOSTALIASES => "$dir/aliases",
	RESOLV_HOST_CONF => "$dir/host.conf", RESOLV_MULTI => 'off', RESOLV_REORDER => 'on',
	QLOGDIR => $dir, CURL_NTLM_WB_FILE => '/nonexistent', NTLMUSER => 'joe', LOGNAME => 'joe', USER => 'joe',
	CURL_DEBUG => 'all', CURL_ENTROPY => '1', CURL_TIME => '1', KRB5_CONFIG => '/nonexistent',
	LDAPCONF => '/nonexistent', GNUTLS_SYSTEM_PRIORITY_FILE => '/nonexistent', SASL_PATH => '/nonexistent');

is_deeply([ grep { !fate_of($_) } sort keys %hostile ], [], 'and has all that the test sets');

# Starts a server in an environment.
my $nservers = 0;

sub server_in
{
	my ($environment) = @_;
	local @ENV{ keys %$environment } = values %$environment;

	return Calls->new(name => 'environment' . ++$nservers);
}

sub fate_of
{
	my ($name) = @_;
	my ($pattern) = grep { $_ eq $name } keys %fate;

	($pattern) = grep { my $like = quotemeta =~ s/\\\*/\\w+/gr; $name =~ /^$like$/ } keys %fate unless defined $pattern;
	return defined $pattern ? $fate{$pattern} : undef;
}

# All of them at once.
{
	my $calls = server_in(\%hostile);
	my $sb = $calls->sandbox;

	# The programs that COPY starts inherit the environment.
	my %found = map { split /=/, $_, 2 } split /\n/,
	  $calls->sql("CREATE TEMP TABLE e (v text); COPY e FROM PROGRAM 'env' (DELIMITER E'\\x01'); SELECT v FROM e");
	is_deeply({ map { $_ => $found{$_} } keys %hostile }, \%hostile, 'the server has them all');

	my ($call, $try, $left) = $calls->session(removal($phone, ['lead']), attempt($phone, ['lead']),
		'CREATE TEMP TABLE e (v text)', "COPY e FROM PROGRAM 'env' (DELIMITER E'\\x01')",
		"SELECT string_agg(v, ' ') FROM e WHERE v ~ '^(SSLKEYLOGFILE|CURL_SSL_BACKEND|OPENSSL_CONF|SSL_CERT_FILE)='");
	is(ref $call->{value}{tags}, 'HASH', 'a call over TLS goes through');
	is(ref $try->{value}{tags}, 'HASH', 'and a second one');
	is_deeply([ map { $_->{authorization} } @{ $sb->journal } ], [ ($sb->key) x 2 ], 'with the key of the mapping');
	is($sb->stats->{connects}, 0, 'over no proxy');
	ok(!-s $keys, 'its session keys are not written to a file');
	unlike($left->{value}, qr/SSLKEYLOGFILE|CURL_SSL_BACKEND/, 'what is removed is gone from that session');
	like($left->{value}, qr/OPENSSL_CONF.*SSL_CERT_FILE|SSL_CERT_FILE.*OPENSSL_CONF/, 'what others in the process may need is not');

	# Trust comes from ca_file alone.
	$calls->server('system_trust', ca_file => undef);
	my ($got) = $calls->session('SET doubletick.server = system_trust', removal($phone, ['lead']));
	is($got->{sqlstate}, 'HV00N', 'without ca_file the sandbox is not trusted');
	unlike($got->{message}, qr/nonexistent/, 'by the bundle that libcurl was built for');
	$calls->node->stop;
}

# The system's trust is not widened by variables of OpenSSL's.
{
	my $ca = Sandbox->start;
	my $calls = server_in({ SSL_CERT_FILE => $ca->ca_file, CURL_CA_BUNDLE => $ca->ca_file });

	$calls->server('system_trust', ca_file => undef, base_url => $ca->https);
	my ($got) = $calls->session('SET doubletick.server = system_trust', removal($phone, ['lead']));
	is($got->{sqlstate}, 'HV00N', 'SSL_CERT_FILE and CURL_CA_BUNDLE add no trust');
	$calls->node->stop;
}

# OpenSSL's configuration is in effect, as doc/security.md says: here it leaves ciphers that
# the sandbox does not have.
SKIP:
{
	skip 'libcurl uses another TLS library', 3 unless uses_openssl();
	my $elsewhere = Sandbox->start;

	append_to_file("$dir/openssl.cnf", join "\n", 'openssl_conf = all', '[all]', 'ssl_conf = ssl', '[ssl]',
		'system_default = defaults', '[defaults]', 'CipherString = ECDHE-ECDSA-AES128-CCM8',
		'Ciphersuites = TLS_AES_128_CCM_8_SHA256', '');
	foreach my $conf ("$dir/openssl.cnf", '/nonexistent/openssl.cnf')
	{
		my $calls = server_in({ OPENSSL_CONF => $conf });
		$calls->server('elsewhere', ca_file => $elsewhere->ca_file, base_url => $elsewhere->https);
		my ($got) = $calls->session('SET doubletick.server = elsewhere', removal($phone, ['lead']));
		is($got->{sqlstate} || 'none', $conf =~ /nonexistent/ ? 'none' : 'HV00N', "OPENSSL_CONF=$conf");
		$calls->node->stop;
	}
	like(fate_of('OPENSSL_CONF'), qr/in effect/, 'as doc/security.md says');
}

# Whatever a session asks for from when it loads the library is in the table.  OpenSSL
# may have been set up by the postmaster, when PostgreSQL is built with it.
{
	my $calls = server_in({ LD_PRELOAD => build_preload('getenv') });
	my $before = -s $calls->node->logfile;
	my ($got, $pid) = $calls->session("LOAD 'doubletick'", removal($phone, ['lead']), 'SELECT pg_backend_pid()');
	is(ref $got->{value}{tags}, 'HASH', 'a call goes through');
	my %asked = map { $_ => 1 } grep { !/^PG/ }
	  slurp_file($calls->node->logfile, $before) =~ /^getenv: $pid->{value} asks for (\w+)$/mg;
	ok($asked{SSLKEYLOGFILE}, 'what it asks for is noticed: ' . join ' ', sort keys %asked);
	is_deeply([ grep { !fate_of($_) } sort keys %asked ], [], 'it asks for nothing that the table does not have');
	$calls->node->stop;
}

# Debian's libcurl does; what others were built with, curl-config says.
sub uses_openssl { return `curl-config --ssl-backends` =~ /OpenSSL/; }

# libcurl may be older than the one that we were built with.
{
	my $calls = server_in({ LD_PRELOAD => build_preload('oldcurl') });
	foreach my $call (removal($phone, ['lead']), attempt($phone, ['lead']))
	{
		my ($got) = $calls->session($call);
		is($got->{sqlstate}, '55000', 'a libcurl that is too old');
		is($got->{message}, 'libcurl 7.87.0 is too old for doubletick', 'is named');
		like($got->{hint}, qr/libcurl 7\.88 or newer/, 'with the version that is needed');
	}
	$calls->node->stop;
}

done_testing;

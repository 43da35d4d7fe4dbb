
# What libcurl and its TLS library would take from the server's environment, but
# for proxies and netrc (013_tls.pl): nothing of it changes a call.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $phone = '919876543210';
my $keys = PostgreSQL::Test::Utils::tempdir() . '/keys';
my %environment = (
	SSLKEYLOGFILE => $keys,
	CURL_SSL_BACKEND => 'none',
	CURL_CA_BUNDLE => '/nonexistent/ca.pem',
	SSL_CERT_FILE => '/nonexistent/ca.pem',
	SSL_CERT_DIR => '/nonexistent');
my $calls;

{
	local @ENV{ keys %environment } = values %environment;
	$calls = Calls->new;
}
foreach my $variable (sort keys %environment)
{
	is($calls->sql("CREATE TEMP TABLE e (v text); COPY e FROM PROGRAM 'printenv $variable'; SELECT v FROM e"),
		$environment{$variable}, "the server has $variable");
}
my ($got) = $calls->session(removal($phone, ['lead']));
is(ref $got->{value}{tags}, 'HASH', 'a call over TLS goes through');
ok(!-s $keys, 'and its session keys are not written to a file');

# Trust comes from ca_file alone.
$calls->server('system_trust', ca_file => undef);
($got) = $calls->session('SET doubletick.server = system_trust', removal($phone, ['lead']));
is($got->{sqlstate}, 'HV00N', 'without ca_file the sandbox is not trusted');
unlike($got->{message}, qr/nonexistent/, 'by the bundle that libcurl was built for');

done_testing;

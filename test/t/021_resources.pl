
# A session whose calls fail many times takes no more descriptors and no more memory
# for it.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Calls qw(memory_kb);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sandbox;
use Test::More;
use Time::HiRes qw(time usleep);

my $sandbox = Sandbox->start('--no-journal');
my $node = PostgreSQL::Test::Cluster->new('resources');
$node->init;
# Few descriptors, so that their end can be reached.  Preloaded, for a change:
# libcurl must then be set up in each backend, and not before the fork.
$node->append_conf('postgresql.conf', <<'CONF');
max_files_per_process = 64
shared_preload_libraries = 'doubletick'
CONF
$node->start;

my %servers = (
	doubletick => $sandbox->server_options,
	refused => "base_url 'https://127.0.0.1:1'",
	nowhere => "base_url 'https://nowhere.invalid'",
	untrusted => "base_url '@{[ $sandbox->url('selfsigned') ]}'",);
$node->safe_psql('postgres', 'CREATE EXTENSION doubletick');
for my $name (sort keys %servers)
{
	$node->safe_psql('postgres', <<"SQL");
CREATE SERVER $name FOREIGN DATA WRAPPER doubletick
	OPTIONS ($servers{$name}, timeout '20ms', rate_limit '0');
CREATE USER MAPPING FOR PUBLIC SERVER $name OPTIONS (api_key '@{[ $sandbox->key ]}');
SQL
}
$node->safe_psql('postgres', "ALTER SERVER doubletick OPTIONS (SET timeout '5s')");

# Answers that are final, so that each call is one request.
my %rules = (
	'919876543220' => { status => 500 },
	'919876543221' => { status => 400, body => { message => [ 'x' x 100, 'y' x 100 ] } },
	'919876543222' => { status => 201, body => 'not JSON' },
	'919876543223' => { status => 201, body => '{"a": "\u0000"}' },
	'919876543224' => { fault => 'not_http' },
	'919876543225' => { fault => 'bad_gzip' },
	'919876543226' => { fault => 'redirect' },
	'919876543227' => { status => 201, body => '{"long": "' . 'x' x 500_000 . '"}' },);
$sandbox->rule($_, $rules{$_}) for keys %rules;

# One turn: each rule by the raising function, whose errors are caught in a
# subtransaction, and by the returning one; then servers that are not there.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION one_turn() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	failed int := 0;
	phone text;
	answer jsonb;
BEGIN
	FOR phone IN SELECT '91987654322' || i FROM generate_series(0, 7) i LOOP
		BEGIN
			PERFORM dt_remove_tags_custom_fields(phone, '{lead}', '{plan}');
		EXCEPTION WHEN OTHERS THEN
			failed := failed + 1;
		END;
		answer := dt_try_remove_tags_custom_fields(phone, '{lead}', '{plan}');
		failed := failed + (answer ? 'statusCode')::int;
	END LOOP;
	failed := failed + (dt_try_remove_tags_custom_fields('1', '{lead}') ? 'statusCode')::int;
	FOREACH phone IN ARRAY '{refused,nowhere,untrusted}'::text[] LOOP
		PERFORM set_config('doubletick.server', phone, true);
		failed := failed + (dt_try_remove_tags_custom_fields('919876543210', '{lead}') ? 'statusCode')::int;
	END LOOP;
	PERFORM set_config('doubletick.server', 'doubletick', true);
	RETURN failed;
END $$;
SQL

my $session = $node->background_psql('postgres');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
my $turn = 'SELECT sum(one_turn()) FROM generate_series(1, %d)';

is($session->query_safe(sprintf($turn, 1)), 18, 'every call of a turn fails but the long one');
$session->query_safe(sprintf($turn, 15));
my %before = usage();
is($session->query_safe(sprintf($turn, 60)), 18 * 60, 'a thousand calls fail');
my %after = usage();

is($after{contexts}, $before{contexts}, 'memory contexts have not grown');
cmp_ok($after{resident} - $before{resident}, '<', 1024, 'resident memory has not grown by 1 MiB');

# A thread that looks up a name may still have some open, although no call waits
# for it.
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
until ($after{descriptors} <= $before{descriptors} || time > $deadline)
{
	usleep 10_000;
	%after = usage();
}
cmp_ok($after{descriptors}, '<=', $before{descriptors}, 'descriptors are as many as before');
$session->quit;

# Each server has a connection of its own; when there is no descriptor left for
# one more, that is a fault like others, and the session lives on.
my $max_connections = 30;
for my $i (1 .. $max_connections)
{
	my $ca_file = $sandbox->ca_file . ".$i";

	system_or_bail('cp', $sandbox->ca_file, $ca_file);
	$node->safe_psql('postgres', <<"SQL");
CREATE SERVER s$i FOREIGN DATA WRAPPER doubletick
	OPTIONS (base_url '@{[ $sandbox->url('https') ]}', ca_file '$ca_file', rate_limit '0', timeout '2s',
		max_connections '1000');
CREATE USER MAPPING FOR PUBLIC SERVER s$i OPTIONS (api_key '@{[ $sandbox->key ]}');
SQL
}
my $many = <<"SQL";
CREATE FUNCTION call_all() RETURNS SETOF jsonb LANGUAGE plpgsql AS \$\$
BEGIN
	FOR i IN 1 .. $max_connections LOOP
		PERFORM set_config('doubletick.server', 's' || i, true);
		RETURN NEXT dt_try_remove_tags_custom_fields('919876543210', '{lead}');
	END LOOP;
END \$\$;
SQL
$node->safe_psql('postgres', $many);
my $answers = $node->safe_psql('postgres', 'SET statement_timeout = 0; SELECT call_all()');
like($answers, qr/"tags"/, 'connections are opened while there are descriptors');
like($answers, qr/no file descriptor is left in this session/, 'and refused when there are none left');
like($node->safe_psql('postgres', "SELECT count(*) FROM call_all(); SET doubletick.server = s1;
		SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}')"),
	qr/^$max_connections\n.*"tags"/s, 'while the connections that are open go on to serve');

done_testing();

# What the session holds now; resident memory in kB.
sub usage
{
	my %usage = (
		contexts => $session->query_safe(
			'SELECT sum(total_bytes) FROM pg_backend_memory_contexts'
			  . " WHERE name ~ 'doubletick' OR name IN ('TopMemoryContext')"));

	$usage{resident} = memory_kb($pid, 'VmRSS');

	# only Linux has /proc
	return (%usage, descriptors => 0) unless -d "/proc/$pid/fd";

	my @descriptors = glob("/proc/$pid/fd/*");
	$usage{descriptors} = scalar @descriptors;
	return %usage;
}


# A session whose calls fail many times takes no more descriptors and no more memory
# for it.

use strict;
use warnings;

use FindBin;
use IO::Socket::INET;
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

# Nobody answers there: what it may queue is taken.
my $hole = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die "could not listen: $!";
my @waiting = map {
	IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $hole->sockport, Blocking => 0)
} 1 .. 8;

my %servers = (
	doubletick => $sandbox->server_options,
	refused => "base_url 'https://127.0.0.1:1'",
	nowhere => "base_url 'https://nowhere.invalid'",
	hole => "base_url 'https://127.0.0.1:@{[ $hole->sockport ]}', connect_timeout '10ms'",
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

# Threads that look up a name may still have memory and descriptors, although no call
# waits for them.
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
until (($after{descriptors} <= $before{descriptors} && $after{resident} < $before{resident} + 1024) || time > $deadline)
{
	usleep 10_000;
	%after = usage();
}
cmp_ok($after{resident} - $before{resident}, '<', 1024, 'resident memory has not grown by 1 MiB');
cmp_ok($after{descriptors}, '<=', $before{descriptors}, 'descriptors are as many as before');

# libcurl closes a socket that is not connected yet; PostgreSQL must count it no more.
is($session->query_safe("SELECT count(*) FILTER (WHERE message ~ 'could not connect'), count(*) FILTER (WHERE message ~ 'descriptor') FROM"
		  . " (SELECT dt_try_remove_tags_custom_fields((919876543400 + n)::text, '{lead}', server => 'hole') ->> 'message' AS message"
		  . ' FROM generate_series(1, 40) AS n) AS failed'),
	'40|0', 'a socket that was never connected takes no descriptor when its call has ended');
$session->quit;

# Each server has a connection of its own.  When there is no descriptor left for one
# more, one that is idle is closed.
my $nservers = 30;
$node->safe_psql('postgres', 'CREATE EXTENSION dblink');
for my $i (1 .. $nservers)
{
	my $ca_file = $sandbox->ca_file . ".$i";

	system_or_bail('cp', $sandbox->ca_file, $ca_file);
	$node->safe_psql('postgres', <<"SQL");
CREATE SERVER s$i FOREIGN DATA WRAPPER doubletick
	OPTIONS (base_url '@{[ $sandbox->url('https') ]}', ca_file '$ca_file', rate_limit '0', timeout '5s',
		max_connections '1000');
CREATE USER MAPPING FOR PUBLIC SERVER s$i OPTIONS (api_key '@{[ $sandbox->key ]}');
SQL
}
# Calls through all servers: one after the other, or many at once.
my $call = "dt_remove_tags_custom_fields((919876543300 + n)::text, '{lead}', server => 's' || n)";
my $calls = "DROP TABLE IF EXISTS answers; CREATE TEMP TABLE answers AS SELECT $call AS answer FROM generate_series(1, $nservers) AS n;"
  . " SELECT count(answer -> 'tags') FROM answers";
my $singly = "SET client_min_messages = warning; SET doubletick.max_in_flight = 1; $calls";
my $at_once = "SET client_min_messages = warning; SET doubletick.max_in_flight = 256; $calls";

is($node->safe_psql('postgres', "$singly; $calls"), "$nservers\n$nservers",
	'more servers than descriptors: each call succeeds');
is($node->safe_psql('postgres', "$at_once; $calls"), "$nservers\n$nservers", 'and many at once, too');

# PostgreSQL grants a third of its descriptors; we open connections for fewer, so that
# others find some.
$sandbox->clear_stats;
$sandbox->rule('*', { delay_ms => 200 });
$session = $node->background_psql('postgres');
is($session->query_safe($at_once), $nservers, 'slow answers: each call succeeds');
cmp_ok($sandbox->stats->{max_in_flight}, '>', 4, 'some are in flight at once');
cmp_ok($sandbox->stats->{max_in_flight}, '<=', 64 / 4, 'and no more than a quarter of the descriptors');
# All other requests wait in the extension, not in libcurl, where their time would run.
my ($peak) = $session->query_safe("SET doubletick.max_in_flight = 256; EXPLAIN ANALYZE SELECT $call FROM generate_series(1, $nservers) AS n") =~ /Peak in Flight: (\d+)/;
ok(defined $peak && $peak <= 64 / 4, 'libcurl gets no more requests at once either');
is($session->query_safe("SELECT dblink_connect('x', 'dbname=postgres')"), 'OK', 'while others find descriptors');
$session->quit;

# Others may have taken nearly all of this third.
my ($ntaken, $nleft);
($session, $ntaken, $nleft) = session_without_descriptors();
cmp_ok($ntaken, '>', 6, 'others take all descriptors');
$session->query("SELECT dblink_disconnect('c$_')") foreach 1 .. 3 - $nleft;
$sandbox->clear_stats;
is($session->query($at_once), $nservers, 'few descriptors are left: each call succeeds');
# One more than are left: on PostgreSQL 18 with assertions it is 4.
cmp_ok($sandbox->stats->{max_in_flight}, '<=', 4, 'few descriptors are left: fewer calls at once');
is($session->query($singly), $nservers, 'few descriptors are left: one after the other');
$session->quit;

# A call that waits for a descriptor is not out of time for that, not even for
# connect_timeout (5 s).
($session) = session_without_descriptors();
$session->query("SELECT dblink_disconnect('c1')");
$node->safe_psql('postgres', "ALTER SERVER s$_ OPTIONS (SET timeout '4s')") foreach 1 .. 5;
$sandbox->rule('*', { delay_ms => 1500 });
is($session->query($at_once =~ s/(?<=1, )$nservers/5/r), 5, 'one descriptor is left, or two: no call is out of time');
$sandbox->clear_rules;

# With none at all, that is a fault like others, and the session lives on.
$session->quit;
($session) = session_without_descriptors();
$session->query("SET doubletick.server = 'doubletick'");
my $attempt = "SELECT dt_try_remove_tags_custom_fields('919876543210', '{lead}')";
SKIP:
{
	skip('dblink has left a descriptor', 1) if $nleft > 0;
	like($session->query($attempt), qr/no file descriptor is left in this session/, 'no descriptor is left: says so');
	$session->query("SELECT dblink_disconnect('c1')");
}
like($session->query($attempt), qr/"tags"/, 'no descriptor is left: until there is one');
$session->quit;

# A session in which dblink has all that PostgreSQL grants, how many these are, and how
# many are left: from PostgreSQL 18 on, dblink needs a second one while it connects.
sub session_without_descriptors
{
	my $new = $node->background_psql('postgres', on_error_stop => 0);
	my $n = 0;

	$n++ while ($new->query("SELECT dblink_connect('c$n', 'dbname=postgres')") // '') eq 'OK';
	my $left = $new->{stderr} =~ /epoll_create1/ ? 1 : 0;
	$new->{stderr} = '';
	return ($new, $n, $left);
}

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

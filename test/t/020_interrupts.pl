
# Whatever a call waits for, a cancel, a termination and a timeout end it at once,
# and meanwhile it keeps no other session waiting.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Calls qw(is_gone build_preload);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sandbox;
use Test::More;
use Time::HiRes qw(time);

# Seconds.  test/bench/call measures about a millisecond; here the machine may be
# busy, and this only tells a call that is ended from one that waits for its
# request, which takes a minute.
my $at_once = 30;

my $hanging = '919876543212';
my $normal = '919876543210';

my $sandbox = Sandbox->start;
$sandbox->rule($hanging, { fault => 'hang' });

my $node = PostgreSQL::Test::Cluster->new('interrupts');
$node->init;
{
	local $ENV{LD_PRELOAD} = build_preload('slowdns');
	$node->start;
}
$node->safe_psql('postgres', <<"SQL");
CREATE EXTENSION doubletick;
CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick
	OPTIONS (@{[ $sandbox->server_options ]}, timeout '1min', rate_limit '0');
CREATE SERVER nameless FOREIGN DATA WRAPPER doubletick
	OPTIONS (base_url 'https://hanging.invalid', timeout '1min', connect_timeout '1min', rate_limit '0');
CREATE SERVER slow FOREIGN DATA WRAPPER doubletick
	OPTIONS (@{[ $sandbox->server_options ]}, rate_limit '0.01');
CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key '@{[ $sandbox->key ]}');
CREATE USER MAPPING FOR PUBLIC SERVER nameless OPTIONS (api_key '@{[ $sandbox->key ]}');
CREATE USER MAPPING FOR PUBLIC SERVER slow OPTIONS (api_key '@{[ $sandbox->key ]}');
SQL

my $call = "SELECT dt_remove_tags_custom_fields('%s', '{lead}')";

my $looked_up_before;

# What a call may wait for: how to make it wait, and how to see that it does.
my %waits = (
	'an answer' => {
		sql => sprintf($call, $hanging),
		reached => sub { $sandbox->stats->{requests} >= 1 },
	},
	'a name server' => {
		sql => "SET doubletick.server = nameless; " . sprintf($call, $normal),
		reached => sub { looked_up() > $looked_up_before },
	},
	'its turn' => {
		sql => "SET doubletick.server = slow; "
		  . sprintf($call, $normal) . '; ' . sprintf($call, $normal),
		reached => sub { $sandbox->stats->{requests} >= 1 },
	},
	'the next try' => {
		sql => sprintf($call, '919876543213'),
		rule => [ '919876543213', { status => 429, retry_after => '50' } ],
		reached => sub { $sandbox->stats->{requests} >= 1 },
	},);

for my $what (sort keys %waits)
{
	my $wait = $waits{$what};
	my ($session, $pid, $begin);

	$sandbox->rule(@{ $wait->{rule} }) if $wait->{rule};

	# cancel
	($session, $pid) = waiting($wait);
	$begin = time;
	is($node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)"), 't', "$what: cancel sent");
	like(outcome($session), qr/ERROR:  57014: canceling statement due to user request/,
		"$what: cancelled");
	cmp_ok(time - $begin, '<', $at_once, "$what: cancelled at once");
	like(($session->query('RESET doubletick.server; ' . sprintf($call, $normal)))[0],
		qr/customFields/, "$what: the session goes on to work");
	$session->quit;

	# statement_timeout: long enough for the call to begin to wait
	($session, $pid) = waiting({ %$wait, sql => "SET statement_timeout = '3s'; $wait->{sql}" });
	like(outcome($session), qr/ERROR:  57014: canceling statement due to statement timeout/,
		"$what: timed out");
	$session->quit;

	# terminate
	($session, $pid) = waiting($wait);
	$begin = time;
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	ok($node->poll_query_until('postgres',
			"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)"),
		"$what: terminated");
	cmp_ok(time - $begin, '<', $at_once, "$what: terminated at once");
	eval { $session->quit };
	like(slurp_file($node->logfile), qr/FATAL:  57P01: |FATAL:  terminating connection due to administrator command/,
		"$what: with the core's message");

	# others are not kept waiting: DROP DATABASE needs an answer from every process
	($session, $pid) = waiting($wait);
	$node->safe_psql('postgres', 'CREATE DATABASE other');
	$begin = time;
	$node->safe_psql('postgres', 'DROP DATABASE other');
	cmp_ok(time - $begin, '<', $at_once, "$what: DROP DATABASE goes through meanwhile");
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	outcome($session);
	$session->quit;
}

# libcurl's thread must not run PostgreSQL's signal handlers
my @looked_up = slurp_file($node->logfile) =~ /slowdns: looking up \S+ with (\d+)/g;
cmp_ok(scalar @looked_up, '>=', 4, 'names were looked up in a thread');
is(join(',', grep { $_ ne '0' } @looked_up), '', 'signals are blocked in the resolver thread');

# the connection of a request that is given up is closed
ok(poll_until(sub { $sandbox->stats->{in_flight} == 0 }), 'cancelled requests are closed');

# the interrupt may come in a block that catches it
is( $node->safe_psql('postgres', <<"SQL"), "57014\nt", 'a cancel caught in PL/pgSQL leaves a working session');
SET statement_timeout = '300ms';
DO \$\$
BEGIN
	PERFORM dt_remove_tags_custom_fields('$hanging', '{lead}');
EXCEPTION WHEN query_canceled THEN
	PERFORM set_config('test.state', SQLSTATE, false);
END \$\$;
RESET statement_timeout;
SELECT current_setting('test.state');
SELECT dt_remove_tags_custom_fields('$normal', '{lead}') ? 'tags';
SQL

# a call that was cancelled takes the place of no other one
is( $node->safe_psql('postgres', <<"SQL"), 't', 'after a cancel as many requests may be in flight as before');
SET doubletick.max_in_flight = 1;
SET statement_timeout = '300ms';
DO \$\$
BEGIN
	PERFORM dt_remove_tags_custom_fields('$hanging', '{lead}');
EXCEPTION WHEN query_canceled THEN
	NULL;
END \$\$;
SET statement_timeout = '$at_once s';
SELECT dt_remove_tags_custom_fields('$normal', '{lead}') ? 'tags';
SQL

# the postmaster's death ends a call while it waits
{
	my ($session, $pid) = waiting($waits{'an answer'});
	my $begin = time;

	$node->kill9;
	ok(poll_until(sub { is_gone($pid) }), "the postmaster's death ends a call that hangs");
	cmp_ok(time - $begin, '<', $at_once, 'and does so at once');
	eval { $session->quit };
}

done_testing();

# Starts a session that waits as told; returns it and its process id.
sub waiting
{
	my ($wait) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');

	$session->query('\set VERBOSITY verbose');
	$session->query("LOAD 'doubletick'");
	$looked_up_before = looked_up();
	$sandbox->clear_stats;
	$session->query_until(qr/on its way/, "\\echo on its way\n$wait->{sql};\n");
	poll_until($wait->{reached}) or die 'the session does not wait';
	return ($session, $pid);
}

# How many times the hanging name was looked up so far.
sub looked_up
{
	my @lines = slurp_file($node->logfile) =~ /slowdns: looking up/g;
	return scalar @lines;
}

# What became of the session's statement.
sub outcome
{
	my ($session) = @_;
	my ($out) = $session->query("SELECT 'done'");

	like($out, qr/done/, 'the session answers');
	my $errors = $session->{stderr};
	$session->{stderr} = '';
	return $errors;
}

sub poll_until
{
	my ($condition) = @_;

	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $condition->();
		Time::HiRes::usleep(100_000);
	}
	return 0;
}

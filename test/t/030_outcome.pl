
# What becomes of a queued row after a request: the table that src/drain/outcome.c is
# held against, without a server, a clock or a chance.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls qw(is_testing_build);

my $node = PostgreSQL::Test::Cluster->new('outcome');
$node->init;
$node->start;
plan skip_all => 'the library is built without TESTING=1' unless is_testing_build($node);
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION outcome(result int, status int, is_object bool, no_route bool, retry_after bigint,
	nrows int, attempts int, age float8, retry_for float8)
RETURNS text LANGUAGE c STRICT AS 'doubletick', 'dt_test_outcome';
SQL

# As in http.h, in that order.
my @results = qw(answered no_connection no_trust broken_off timed_out not_http too_long no_memory);
my %result = map { $results[$_] => $_ } 0 .. $#results;

# The facts of a first request of a row by itself that was refused; a test says
# what is different.
my %usual = (
	result => 'answered', status => 400, is_object => 0, no_route => 0, retry_after => 0,
	nrows => 1, attempts => 1, age => 5_000, retry_for => 259_200_000);
my @order = qw(result status is_object no_route retry_after nrows attempts age retry_for);

# Name, facts, and the verdict: with the least delay and the random part on top
# of it, both in ms, where there is one; "pause" where it is the server's, "too old" where the age decides.
my @table;

sub expect
{
	my ($name, $facts, $verdict) = @_;

	$verdict =~ s/^\w+\K/ 0+0/ unless $verdict =~ /\+/;
	push @table, [ $name, { %usual, %$facts }, $verdict ];
	return;
}

# The same, however the row stands otherwise.
sub expect_in_any_case
{
	my ($name, $facts, $verdict) = @_;

	foreach my $nrows (1, 9)
	{
		foreach my $attempts (1, 30)
		{
			expect("$name, $nrows rows, attempts $attempts",
				{ nrows => $nrows, attempts => $attempts, %$facts }, $verdict);
		}
	}
	expect("$name, past its age", { %$facts, age => 259_200_001 }, $verdict);
	expect("$name, with Retry-After", { %$facts, retry_after => 60 }, $verdict);
	return;
}

# Final, whatever else there is.
foreach my $status (200, 201, 202, 204, 206, 299)
{
	expect_in_any_case("$status with an object", { status => $status, is_object => 1 }, 'done');
	expect_in_any_case("$status without", { status => $status }, 'failed');
}

# Held: it is not about the row.
expect_in_any_case('status 401', { status => 401 }, 'hold');
expect_in_any_case('status 404 without a route', { status => 404, is_object => 1, no_route => 1 }, 'hold');
expect_in_any_case('no trust', { result => 'no_trust', status => 0 }, 'hold');

# Refused: alone, it is the row; with others, it may be any of them.
foreach my $status (100, 199, 300, 301, 302, 304, 307, 399, 600, 999, 400, 402, 403, 404, 405, 406, 407, 409, 410, 413, 415, 418, 422, 424, 426, 428, 430, 431, 451, 499)
{
	foreach my $attempts (1, 2, 30)
	{
		expect("status $status alone, attempts $attempts", { status => $status, attempts => $attempts }, 'failed');
		expect("status $status with others, attempts $attempts",
			{ status => $status, attempts => $attempts, nrows => 9 }, $status == 413 ? 'parts together 4' : 'parts together 1');
	}
	expect("status $status with others, past its age", { status => $status, nrows => 2, age => 259_200_001 }, 'parts together 1');
	expect("status $status with an object", { status => $status, is_object => 1 }, 'failed');
}
expect('an answer that is too long', { result => 'too_long', status => 0 }, 'failed');
expect('an answer to several that is too long', { result => 'too_long', status => 0, nrows => 9 }, 'parts together 4');
expect('one to several that is too long, past their age', { result => 'too_long', status => 0, nrows => 2, age => 259_200_001 }, 'parts together 1');

# Again: all that may go well another time.
my %again = (
	(map { ("status $_" => { status => $_ }) } 408, 425, 500, 501, 502, 503, 504, 505, 507, 511, 520, 599),
	(map { ($_ => { result => $_, status => 0 }) } qw(no_connection broken_off timed_out not_http no_memory)));
# What the request carried may be the reason.
my %by_rows = map { $_ => 1 } 'broken_off', 'timed_out', 'not_http', grep { /^status (?:408|5)/ } keys %again;
my %also_again = (%again, 'status 429' => { status => 429 });
my $last_backoff = 15 * 60 * 1000;

foreach my $name (sort keys %also_again)
{
	my $facts = $also_again{$name};
	my $pause = $again{$name} ? '' : ' pause';

	# Backoff doubles from a second, up to 15 minutes.
	foreach my $attempts (1 .. 30)
	{
		my $backoff = 1000 * 2**($attempts - 1);

		$backoff = $last_backoff if $backoff > $last_backoff;
		expect("$name, attempts $attempts", { %$facts, attempts => $attempts }, "again 0+$backoff$pause");
	}
	expect("$name, attempts $_", { %$facts, attempts => $_ }, "again 0+$last_backoff$pause") foreach 64, 65, 2**31 - 1;
	expect("$name, with others", { %$facts, nrows => 9 }, "again 0+1000$pause");
	expect("$name, with others, after a few attempts", { %$facts, nrows => 9, attempts => 3 },
		"again 0+4000$pause" . ($by_rows{$name} ? ' together 4' : ''));
	expect("$name, with another, after a few attempts", { %$facts, nrows => 2, attempts => 4 },
		"again 0+8000$pause" . ($by_rows{$name} ? ' together 1' : ''));
	expect("$name, with an object", { %$facts, is_object => 1 }, "again 0+1000$pause");

	# Given up when its age is reached, and not before.
	expect("$name, just before its age", { %$facts, age => 259_199_999 }, "again 0+1000$pause");
	expect("$name, at its age", { %$facts, age => 259_200_000 }, "failed 0+1000$pause too old");
	expect("$name, past its age", { %$facts, age => 1e15, attempts => 3 }, "failed 0+4000$pause too old");
	expect("$name, never waits", { %$facts, age => 0, retry_for => 0 }, "failed 0+1000$pause too old");
	expect("$name, from the future", { %$facts, age => -5_000, retry_for => 1 }, "again 0+1000$pause");
}

# Retry-After comes before the backoff, and is at most an hour.
foreach my $status (429, 500, 503)
{
	my $pause = $status == 429 ? ' pause' : '';

	expect("status $status, Retry-After 1", { status => $status, retry_after => 1 }, "again 1000+1000$pause");
	expect("status $status, Retry-After 3599", { status => $status, retry_after => 3599 }, "again 3599000+1000$pause");
	foreach my $seconds (3600, 3601, 86_400, 2**32, '9223372036854775807')
	{
		expect("status $status, Retry-After $seconds", { status => $status, retry_after => $seconds, attempts => 2 },
			"again 3600000+2000$pause");
	}
	expect("status $status, Retry-After 5 past its age", { status => $status, retry_after => 5, age => 259_200_001 },
		"failed 5000+1000$pause too old");
}

# All at once, for a session for each would take minutes.
my $values = join ",\n", map {
	my ($n, $facts) = ($_, $table[$_][1]);
	my %sql = (
		%$facts,
		result => $result{ $facts->{result} },
		map { $_ => $facts->{$_} ? 'true' : 'false' } qw(is_object no_route));

	"($n, " . join(', ', map { "'$sql{$_}'" } @order) . ')';
} 0 .. $#table;
my $got = $node->safe_psql('postgres', <<"SQL");
SELECT outcome(result::int, status::int, is_object::bool, no_route::bool, retry_after::bigint, nrows::int,
	attempts::int, age::float8, retry_for::float8)
FROM (VALUES
$values) AS t (n, @{[ join ', ', @order ]})
ORDER BY n
SQL
my @got = split /\n/, $got;

is(scalar @got, scalar @table, 'an outcome for each');
is($got[$_], $table[$_][2], $table[$_][0]) foreach 0 .. $#table;

done_testing();

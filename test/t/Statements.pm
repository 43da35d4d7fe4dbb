
=head1 NAME

Statements - statements with calls, with and without many of them in flight

=head1 SYNOPSIS

  my $calls = open_statements();
  my @cases = ({ name => 'a scan', statement => 'SELECT id, TRY(phone, tag) FROM c ORDER BY id', scans => 1 });
  my $one = run_cases($calls, 1, @cases);
  my $many = run_cases($calls, 8, @cases);
  same_ok($cases[0], $one->[0], $many->[0], 8);

=head1 DESCRIPTION

In the statements TRY(phone, tag) and RAISE(phone, tag) stand for the two calls;
each removes a tag of its own, so that an answer names its row, and the journal
the statement. The tables are described at open_statements.

=cut

package Statements;

use strict;
use warnings;

use Exporter qw(import);
use File::Basename qw(dirname);
use Test::More;

use lib dirname(__FILE__);
use Calls;

our @EXPORT = qw(open_statements run_cases same_ok);

# Rows of the tables; two of the phones are bad.
our $nrows = 24;

# test/assert has the statements run without caches when many calls are in flight.
our $without_caches = $ENV{STATEMENTS_WITHOUT_CACHES};

=pod

=over

=item open_statements(option of Calls => value, ...)

A Calls with these tables: c(id, phone, tag, grp, answer), of which ids 9 and 17
have a bad phone; p, the same in three partitions, one with other columns; d, an
empty copy of c; log(id, what); and a sequence s.

=cut

sub open_statements
{
	my $calls = Calls->new(conf => "autovacuum = off\njit = off\n", @_);
	my $sandbox = $calls->sandbox;

	$calls->server('plain', base_url => $sandbox->http, ca_file => undef, max_connections => '100');
	$calls->sql("ALTER DATABASE postgres SET doubletick.server = plain");
	$calls->sql(<<'SQL');
CREATE TABLE c (id int PRIMARY KEY, phone text, tag text, grp int, answer jsonb);
CREATE TABLE d (LIKE c);
CREATE TABLE log (id int, what text);
CREATE SEQUENCE s;
CREATE TABLE p (id int, phone text, tag text, grp int, answer jsonb) PARTITION BY LIST (grp);
CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0, 1);
CREATE TABLE p1 (answer jsonb, gone int, grp int, tag text, phone text, id int);
ALTER TABLE p1 DROP COLUMN gone;
ALTER TABLE p ATTACH PARTITION p1 FOR VALUES IN (2);
CREATE TABLE p2 PARTITION OF p FOR VALUES IN (3);
CREATE FUNCTION seen() RETURNS bigint LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN (SELECT count(*) FROM d); END';
CREATE FUNCTION says(text) RETURNS text LANGUAGE plpgsql VOLATILE AS
'BEGIN RAISE NOTICE ''%'', $1; RETURN $1; END';
SQL
	return $calls;
}

=pod

=item run_cases(calls, max_in_flight, case, ...)

Runs each case in a transaction that is rolled back, all in one session: its
"setup", which must succeed; EXPLAIN; its "statement"; and "after", which looks.
Returns for each what EXPLAIN said, what came, and which tags were sent.

=cut

sub run_cases
{
	my ($calls, $window, @cases) = @_;
	my $script = "SET doubletick.max_in_flight = $window;\n\\set ON_ERROR_ROLLBACK on\n";
	my $number = 0;

	$calls->sandbox->clear_journal;
	$calls->sql(<<"SQL");
TRUNCATE c, p, d, log;
INSERT INTO c SELECT n, CASE WHEN n IN (9, 17) THEN 'bad' ELSE (919876543000 + n)::text END, 't' || n, n % 4
FROM generate_series(1, $nrows) AS n;
INSERT INTO p SELECT * FROM c;
VACUUM ANALYZE c, p, d, log;
SQL
	$script .= "SET debug_discard_caches = 1;\n" if $without_caches && $window > 1;
	foreach my $case (@cases)
	{
		my $prefix = sprintf "case-%d-", $number++;
		my ($setup, $statement, $after) = map { _expand($_, $prefix) }
		  map { $_ // '' } @$case{qw(setup statement after)};
		my $explain = $case->{explain} // $statement;

		# Each case finds the same tables.  What is rolled back leaves dead rows, and more of
		# them when an UPDATE ... RETURNING fails with many in flight.  From a table of more
		# pages the planner expects more rows, and then plans and the order of rows differ.
		$script .= "VACUUM c, p, d, log;\n";
		$script .= "\\echo \@begin\n\\warn \@begin\nBEGIN;\nALTER SEQUENCE s RESTART;\n\\set ON_ERROR_STOP on\n$setup;\n\\set ON_ERROR_STOP off\n";
		$script .= "\\echo \@explain\n" . ($explain ? "EXPLAIN (VERBOSE, COSTS OFF) $explain;\n" : '');
		$script .= "\\echo \@result\n$statement;\n\\echo :SQLSTATE\n$after;\n\\echo \@end\nROLLBACK;\nDEALLOCATE ALL;\n";
	}
	my ($out, $err) = ('', '');
	my $rc = $calls->node->psql('postgres', $script, stdout => \$out, stderr => \$err, on_error_stop => 0);
	my @parts = split /^\@begin\n/m, $out;

	# Slow statements say how far they are.
	my @said = split /^\@begin\n/m, $err =~ s/^psql:<stdin>:\d+: //gmr =~ s/^NOTICE:  calls: \d+ made.*\n//gmr;

	# What was sent, by the case.
	my @sent;
	foreach my $request (@{ $calls->sandbox->journal })
	{
		my ($case) = $request->{body}{tags}[0] =~ /^case-(\d+)-/ or next;
		push @{ $sent[$case] }, $request->{body}{tags}[0];
	}

	my @results;
	foreach my $n (0 .. $#cases)
	{
		my ($explain, $result) = ($parts[ $n + 1 ] // '') =~ /^\@explain\n(.*)^\@result\n(.*)^\@end/ms;

		$result .= "\@said\n$said[$n + 1]" if defined $result;
		push @results, { explain => $explain, result => $result, sent => [ sort @{ $sent[$n] || [] } ] };
	}
	diag("psql: $rc\n" . substr($err, -500)) if grep { !defined $_->{result} } @results;
	return \@results;
}

# TRY(phone, tag) and RAISE(phone, tag), whose arguments may have parentheses.
sub _expand
{
	my ($text, $prefix) = @_;
	my %function = (TRY => 'dt_try_remove_tags_custom_fields', RAISE => 'dt_remove_tags_custom_fields');
	my $piece = qr/(?:[^(),]|(?<in>\((?:[^()]++|(?&in))*\)))+/;

	$text =~ s/\b(?<call>TRY|RAISE)\((?<phone>$piece), (?<tag>$piece)\)/$function{$+{call}}($+{phone}, ARRAY[\$w\$$prefix\$w\$ || $+{tag}])/g;
	return $text;
}

=pod

=item same_ok(case, one, many, max_in_flight)

Tests that both are the same: the nodes of the plan but for call scans, rows, their
order, errors, and what was sent. Without ORDER BY, too, rows must come in the same
order: the plan is the same, and a call scan hands rows up in their order.

A statement that fails may have sent more when many were in flight: for each call scan,
at most the others, and those for the rows that a call scan above it has read. If the
case says how many call scans ("scans") the plan must have, tests that, too. "fails"
says that a statement fails inside of it; "is_early", that this may come of reading
ahead, so that some calls are not made, and some notices do not come.

=back

=cut

sub same_ok
{
	my ($case, $one, $many, $window) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $name = "$case->{name}, $window in flight";

	return fail("$name: was not run") unless defined $one->{result} && defined $many->{result};
	if (defined $case->{scans})
	{
		my $nscans = () = $many->{explain} =~ /DoubletickCalls/g;

		is($nscans, $case->{scans}, "$name: call scans") or diag($many->{explain});
		unlike($one->{explain}, qr/DoubletickCalls/, "$name: none with 1");
	}
	is(_nodes($many->{explain}), _nodes($one->{explain}), "$name: the other nodes of the plan");
	my $has_failed = $case->{fails} || $one->{result} =~ /^(?!00000)[0-9A-Z]{5}$/m;
	my ($expected, $got) = map { $has_failed && $case->{is_early} ? $_->{result} =~ s/^NOTICE:.*\n//gmr : $_->{result} } $one, $many;
	my $is_same = is($got, $expected, "$name: what came");
	my ($more, @less) = (0);
	my %sent;
	$sent{$_}++ foreach @{ $many->{sent} };
	$sent{$_}-- foreach @{ $one->{sent} };
	foreach my $tag (keys %sent)
	{
		push @less, $tag if $sent{$tag} < 0;
		$more += $sent{$tag} if $sent{$tag} > 0;
	}
	my $nscans = () = ($many->{explain} || 'DoubletickCalls') =~ /DoubletickCalls/g;
	my $nahead = $has_failed ? $nscans * ($nscans + 1) / 2 * ($window - 1) : 0;
	cmp_ok(scalar @less, '<=', $case->{is_early} ? $nahead : 0, "$name: nothing is missing");
	cmp_ok($more, '<=', $nahead, "$name: nothing more is sent");
	return $is_same;
}

# The nodes of a plan that EXPLAIN shows, without call scans. The lines below a node show
# its expressions, which a call scan splits.
sub _nodes
{
	my ($explain) = @_;

	return join "\n", grep { !/DoubletickCalls/ } $explain =~ /^(?: *-> +)?(\S.*)/mg;
}

1;

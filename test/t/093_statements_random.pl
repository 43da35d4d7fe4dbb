
# Random statements with calls do the same with many in flight as with one after the
# other (see Statements.pm).
#
# STATEMENTS_ROUNDS is the number of statements, STATEMENTS_SEED the seed, which a
# failure prints.

use strict;
use warnings;

use File::Basename qw(dirname);
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Statements;

my $rounds = $ENV{STATEMENTS_ROUNDS} // 100;
my $seed = $ENV{STATEMENTS_SEED} // int(rand(1_000_000));
srand $seed;
note "seed $seed";

my $calls = open_statements();

sub one_of { return $_[ int rand @_ ]; }

sub chance { return rand() < $_[0]; }

# An expression over a table with the alias t; "calls" says whether it may call.
sub expression
{
	my ($depth) = @_;
	my $call = call();

	return one_of($call, "$call ->> 'error'", "$call -> 'tags' -> 'errored'", "ROW(t.id, $call)", "ARRAY[$call, t.answer]",
		"$call IS NULL", "NOT $call ? 'tags'", "nullif($call, t.answer)", "concat($call, t.tag)")
	  if chance(0.5);
	return one_of("CASE WHEN t.grp = 1 THEN $call END", "coalesce(t.answer, $call)", "t.grp = 2 OR $call ? 'tags'",
		"nextval('s')", "says(t.tag)", "says($call ->> 'error')", "greatest(nextval('s'), t.id)", "ROW(nextval('s'), $call)")
	  if chance(0.35);
	return one_of('t.id', 't.tag', 't.grp + 1', 't', 'upper(t.phone)', 't.tableoid::regclass', "t.id::text || t.tag", '(SELECT max(id) FROM c)',
		'(SELECT x.id FROM c AS x WHERE x.id = t.id)')
	  if chance(0.9);
	return "says(t.id::text)";
}

# One of the two calls; to raise is rare, since it ends the statement.
sub call
{
	my $function = chance(0.06) ? 'RAISE' : 'TRY';
	my $phone = one_of(('t.phone') x 6, "'91987654' || t.grp", "coalesce(t.phone, 'none')", '(919876543000 + t.id)::text');
	my $tag = one_of(('t.tag') x 4, 't.id', "t.grp || 'x' || t.id", "'same'");

	return "$function($phone, $tag)";
}

sub list
{
	return join ', ', map { expression(0) . " AS c$_" } 1 .. 1 + int rand 3;
}

# A source of rows named t with the columns of c; without system columns unless it is a table.
sub source
{
	return one_of('c AS t', 'c AS t', 'p AS t') unless chance(0.35);
	return one_of('(SELECT * FROM c ORDER BY grp, id OFFSET 2) AS t', '(SELECT * FROM c UNION ALL SELECT * FROM p) AS t',
		'c AS t JOIN c AS u USING (id)', 'c AS t LEFT JOIN p AS u ON u.id = t.id + 20', 'c AS t TABLESAMPLE SYSTEM (100)',
		'(SELECT DISTINCT ON (id) * FROM p ORDER BY id) AS t');
}

sub condition
{
	return '' if chance(0.4);
	return ' WHERE '
	  . one_of('t.id > 5', 't.grp IN (1, 2)', 't.id % 3 <> 1', 't.id < 0', 't.phone <> \'bad\'', 'random() >= 0', "t.id BETWEEN 3 AND 12");
}

sub limit
{
	return '' if chance(0.55);
	return ' LIMIT ' . int(rand 12) if chance(0.5);
	return ' OFFSET ' . int(rand 10) if chance(0.3);
	return ' LIMIT ' . one_of(1, 2, 7, 20, 'NULL') . ' OFFSET ' . int(rand 8);
}

sub select_statement
{
	my $from = source();
	my $list = list();
	my $order = chance(0.5) ? ' ORDER BY ' . one_of('t.id', 't.grp, t.id', 't.tag DESC, t.id', '1, t.id') : '';

	# A subquery has no system columns; a joined column has no alias.
	$list =~ s/t\.tableoid::regclass/t.tag/g if $from =~ /^\(/;
	$from =~ s/ USING \(id\)/ ON t.id = u.id/;
	my $select = "SELECT $list FROM $from" . condition() . $order . limit();
	return $select if chance(0.6);
	return "SELECT * FROM ($select) AS s"
	  . one_of('', ' WHERE c1 IS NOT NULL', " WHERE c1::text <> 'x'", ' WHERE c1 IS NULL') . limit()
	  if chance(0.6);
	my $ncolumns = () = $list =~ / AS c/g;
	return "($select) UNION ALL SELECT " . join(', ', map { "s.c$_" } 1 .. $ncolumns) . " FROM ($select) AS s";
}

sub statement
{
	my $setup = join '; ', map { chance(0.25) ? "SET LOCAL enable_$_ = off" : () } qw(seqscan indexscan bitmapscan hashjoin mergejoin nestloop hashagg sort);
	my $call = call() =~ s/\bt\.//gr;
	my $other = call() =~ s/\bt\.//gr;
	my $where = condition() =~ s/\bt\.//gr;
	my ($text, $after) = ('', '');

	if (chance(0.5))
	{
		$text = select_statement();
	}
	elsif (chance(0.2))
	{
		$text = 'CREATE TABLE made AS ' . select_statement();
		$after = 'SELECT * FROM made';
	}
	elsif (chance(0.2))
	{
		my $select = select_statement();
		$text = "DECLARE x " . one_of('', 'SCROLL ') . "CURSOR FOR $select";
		$after = join '; ', map { one_of('FETCH 1 FROM x', 'FETCH 3 FROM x', 'FETCH 7 FROM x', $text =~ /SCROLL/ ? 'FETCH BACKWARD 2 FROM x' : 'FETCH ALL FROM x') } 1 .. 4;
		return { setup => $setup, explain => '', statement => $text, after => $after, fails => 1, is_early => 1 };
	}
	else
	{
		my $table = one_of('c', 'p');

		$text = one_of(
			"UPDATE $table SET answer = $call$where",
			"UPDATE $table SET answer = $call, tag = tag || '!'$where RETURNING id, answer",
			"UPDATE $table SET grp = (grp + 1) % 4$where RETURNING id, $call AS x, nextval('s')",
			"UPDATE $table SET answer = $call$where RETURNING $other",
			"DELETE FROM $table$where RETURNING id, $call",
			"DELETE FROM $table$where RETURNING CASE WHEN grp > 1 THEN $call END, $other",
			"INSERT INTO d SELECT id, phone, tag, grp, $call FROM $table$where RETURNING id, answer, $other",
			"WITH u AS (DELETE FROM $table$where RETURNING *) SELECT id, $call FROM u" . limit());
		$after = 'SELECT * FROM c ORDER BY id; SELECT * FROM p ORDER BY id; SELECT * FROM d ORDER BY id';
	}
	return { setup => $setup, statement => $text, after => $after, is_early => 1 };
}

my $number = 0;
my %scans;
while ($number < $rounds)
{
	my @cases = map { my $case = statement(); $case->{name} = 'statement ' . ++$number; $case } 1 .. 50;
	my $window = one_of(2, 4, 8, 32);
	my $one = run_cases($calls, 1, @cases);
	my $many = run_cases($calls, $window, @cases);

	foreach my $n (0 .. $#cases)
	{
		my $nfailed = grep { !$_ } Test::More->builder->summary;

		same_ok($cases[$n], $one->[$n], $many->[$n], $window);
		$scans{ ($many->[$n]{explain} // '') =~ /DoubletickCalls/ ? 'covered' : 'alone' }++;
		$scans{failed}++ if ($one->[$n]{result} // '') =~ /^(?!00000)[0-9A-Z]{5}$/m;
		diag("seed $seed: $cases[$n]{setup}; $cases[$n]{statement}")
		  if $nfailed < grep { !$_ } Test::More->builder->summary;
	}
}
note join ', ', map { "$_: $scans{$_}" } sort keys %scans;
cmp_ok($scans{covered}, '>', $rounds / 5, 'many are covered');
cmp_ok($scans{failed} // 0, '<', $rounds / 2, 'most succeed');

done_testing;

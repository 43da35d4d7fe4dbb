
# test/FAULTS.md cannot rot: each place has entries, and each entry names a test that
# is in the sources.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = dirname(__FILE__) . '/..';
my $least = 150;
my @places = ('definition', 'argument', 'enqueue', 'lock', 'read', 'name resolution', 'connect', 'TLS', 'send',
	'receive', 'parse', 'settle', 'commit', 'wake', 'start', 'stop', 'restore', 'upgrade');

my %sources;			# file name => text, read once
my (@headings, %entries, %faults);

foreach my $line (split /\n/, slurp_file("$dir/FAULTS.md"))
{
	if ($line =~ /^## (.+)$/)
	{
		push @headings, $1;
		$entries{$1} = 0;
	}
	next unless $line =~ /^\|/ && $line !~ /^\| fault \||^\|---/;
	my ($fault, $promise, $test) = $line =~ /^\| ([^|]+) \| ([^|]+) \| `([^|]+)` \|$/;
	ok(defined $test, 'an entry has a fault, a promise and a test') || diag($line);
	next unless defined $test;
	$entries{ $headings[-1] }++;
	is($faults{"$headings[-1]: $fault"}++, 0, "$headings[-1]: $fault: is there once") if $faults{"$headings[-1]: $fault"};
	my ($file, $name) = split /: /, $test, 2;
	ok(has_test($file, $name), "$headings[-1]: $fault: $test");
}
is(join(', ', @headings), join(', ', @places), 'the places, in their order');
cmp_ok($entries{$_} // 0, '>', 0, "$_ has entries") foreach @places;
my $total = 0;
$total += $_ foreach values %entries;
cmp_ok($total, '>=', $least, "there are $least entries or more");
done_testing;

# Is there a test of this name, or that begins so? In a TAP file a name is a string,
# perhaps one in a table of tests. The tests of pg_regress are statements and the
# comments before them.
sub has_test
{
	my ($file, $name) = @_;

	return 0 unless defined $name && length $name;
	my $path = $file =~ /\.pl$/ ? "$dir/t/$file" : $file =~ /\.sql$/ ? "$dir/sql/$file" : "$dir/torture/$file";
	return 0 unless -f $path;
	$sources{$file} //= slurp_file($path);
	return $sources{$file} =~ ($file =~ /\.pl$/ ? qr/['"]\Q$name\E/ : qr/^(?:-- |# )?\Q$name\E/m);
}


# No released script has changed, and each released version can be updated. Trees
# with made-up releases show that the check finds what it looks for.

use strict;
use warnings;

use Cwd qw(abs_path);
use Digest::SHA qw(sha256_hex);
use File::Basename qw(dirname);
use File::Path qw(make_path remove_tree);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Released;

my $top = abs_path(dirname(__FILE__) . '/../..');
my $dir = PostgreSQL::Test::Utils::tempdir() . '/tree';

# A tree with these files.
sub tree
{
	my (%files) = @_;

	remove_tree($dir);
	make_path("$dir/sql");
	append_to_file("$dir/$_", $files{$_}) foreach keys %files;
	return;
}

sub line { return sha256_hex($_[1]) . "  $_[0]\n"; }

# A tree with version 1.0.0 released, after a change.
sub released_tree
{
	my (%change) = @_;

	tree(
		'doubletick.control' => "default_version = '1.0.0'\n",
		'CHANGELOG.md' => "## 1.0.0 (2027-01-15)\n\n- Added all\n",
		'META.json' => qq{{"release_status": "unstable"}\n},
		'sql/doubletick--1.0.0.sql' => 'SELECT 1;',
		'sql/RELEASED' => "# a comment\n" . line('doubletick--1.0.0.sql', 'SELECT 1;'),
		%change);
	return;
}

# The next version, released or not.
my %next = (
	'doubletick.control' => "default_version = '1.1.0'\n",
	'CHANGELOG.md' => "## 1.1.0 (unreleased)\n\n## 1.0.0 (2027-01-15)\n",
	'sql/doubletick--1.0.0--1.1.0.sql' => 'SELECT 2;',
);

sub faults_are
{
	my ($name, @expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is_deeply([ Released::faults($dir) ], \@expected, $name);
	return;
}

is_deeply([ Released::faults($top) ], [], 'the scripts of this tree');

# The library has every symbol that a script names, those of old versions, too.
{
	my $source = join '', map { slurp_file($_) } glob "$top/src/*/*.c";
	my %missing = map { $_ => 1 } map { slurp_file($_) =~ /'MODULE_PATHNAME', '(\w+)'/g } glob "$top/sql/*.sql";
	cmp_ok(scalar keys %missing, '>', 5, 'the scripts name symbols');
	delete @missing{ $source =~ /^PG_FUNCTION_INFO_V1\((\w+)\);/mg };
	is_deeply([ sort keys %missing ], [], 'the library has all of them');
}

tree(
	'doubletick.control' => "default_version = '1.0.0'\n",
	'CHANGELOG.md' => "## 1.0.0 (unreleased)\n",
	'sql/doubletick--1.0.0.sql' => 'SELECT 1;',
	'sql/RELEASED' => "# nothing yet\n");
faults_are('before the first release a script may change');

released_tree();
faults_are('a released script is as it was');
released_tree('sql/doubletick--1.0.0.sql' => 'SELECT 3;');
faults_are('a released script was changed', 'doubletick--1.0.0.sql is released, and was changed');
released_tree('sql/RELEASED' => "# nothing\n");
faults_are('a release was forgotten', 'doubletick--1.0.0.sql is of a released version, but is not in sql/RELEASED');
released_tree('sql/RELEASED' => "oops\n" . line('doubletick--1.0.0.sql', 'SELECT 1;') x 2);
faults_are('lines that are wrong', 'sql/RELEASED has a line that is not understood: oops', 'sql/RELEASED has doubletick--1.0.0.sql twice');

released_tree(%next);
faults_are('the next version is not released, and may change');
released_tree(%next, 'CHANGELOG.md' => "## 1.1.0 (2027-03-01)\n\n## 1.0.0 (2027-01-15)\n");
faults_are('its update script was forgotten', 'doubletick--1.0.0--1.1.0.sql is of a released version, but is not in sql/RELEASED');
released_tree(%next, 'sql/RELEASED' => line('doubletick--1.0.0.sql', 'SELECT 1;') . line('doubletick--1.0.0--1.1.0.sql', 'SELECT 2;'));
faults_are('it was recorded too soon', 'sql/RELEASED has doubletick--1.0.0--1.1.0.sql, whose version has no date in CHANGELOG.md');
released_tree(%next, 'doubletick.control' => "default_version = '1.2.0'\n");
faults_are('nothing leads to the current version', 'no script creates version 1.2.0', 'no scripts lead from version 1.0.0 to version 1.2.0');
released_tree(%next, 'doubletick.control' => "default_version = '1.2.0'\n", 'sql/doubletick--1.1.0--1.2.0.sql' => 'SELECT 4;',
	'CHANGELOG.md' => "## 1.2.0 (unreleased)\n\n## 1.1.0 (2027-03-01)\n\n## 1.0.0 (2027-01-15)\n",
	'sql/RELEASED' => line('doubletick--1.0.0.sql', 'SELECT 1;') . line('doubletick--1.0.0--1.1.0.sql', 'SELECT 2;'));
faults_are('a way of two updates');
{
	released_tree(%next);
	unlink "$dir/sql/doubletick--1.0.0.sql" or die "could not remove a script: $!";
	faults_are('a released script is gone', 'doubletick--1.0.0.sql is released, and gone');
}

# test/release records what is released, once.
{
	released_tree(%next);
	my @command = ('bash', "$top/test/release", '2027-03-01', $dir);
	my ($stdout, $stderr) = run_command(\@command);
	is($stderr, '', 'test/release says nothing of errors');
	faults_are('test/release records a release');
	like(slurp_file("$dir/CHANGELOG.md"), qr/^## 1\.1\.0 \(2027-03-01\)$/m, 'and dates it');
	like(slurp_file("$dir/META.json"), qr/"release_status": "stable"/, 'and calls it stable');
	command_fails_like(\@command, qr/no version is unreleased/, 'test/release refuses to do it again');
}

done_testing;

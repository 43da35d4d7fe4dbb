
=head1 NAME

Installation - a private copy of the PostgreSQL installation, for TAP tests

=head1 SYNOPSIS

  my $installation = Installation->new;
  my $next = $installation->build_next('1.1.0-test', 'ALTER TABLE @extschema@.dt_waiting ADD COLUMN note text;');
  my $node = PostgreSQL::Test::Cluster->new('main', install_path => $installation->path);
  ...
  $installation->install($next);

=head1 DESCRIPTION

A test that installs another version of the extension must leave the real
installation alone, and may not be allowed to write there. The programs find
their files relative to their own place, so the copy has real programs, and links
to everything else but the extension.

=cut

package Installation;

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(basename dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use PostgreSQL::Test::Utils ();

my $top = abs_path(dirname(__FILE__) . '/../..');
my $ncopies = 0;

=pod

=over

=item Installation->new

Makes the copy. The test removes it with its other temporary files.

=cut

sub new
{
	my ($class) = @_;
	my $root = PostgreSQL::Test::Utils::tempdir() . '/installation' . ++$ncopies;
	my %at = map { $_ => pg_config($_) } qw(bindir pkglibdir sharedir);
	my $self = bless { map { $_ => "$root$at{$_}" } keys %at }, $class;

	make_path($self->{bindir});
	foreach my $program (grep { -f } glob "$at{bindir}/*")
	{
		copy($program, $self->{bindir}) && chmod 0755, "$self->{bindir}/" . basename($program)
		  or die "could not copy \"$program\": $!";
	}
	_link_all($at{pkglibdir}, $self->{pkglibdir});
	_link_all($at{sharedir}, $self->{sharedir}, 'extension');
	_link_all("$at{sharedir}/extension", $self->extension_dir);
	return $self;
}

# Links to what a directory has; the extension's own files are copied.
sub _link_all
{
	my ($from, $to, @except) = @_;

	make_path($to);
	foreach my $file (glob "$from/*")
	{
		my $name = basename($file);

		next if -e "$to/$name" || grep { $_ eq $name } @except;
		($name =~ /^doubletick/ ? copy($file, "$to/$name") : symlink $file, "$to/$name")
		  or die "could not make \"$to/$name\": $!";
	}
	return;
}

=pod

=item $installation->path, $installation->extension_dir

For PostgreSQL::Test::Cluster's install_path; where the scripts are.

=cut

sub path { return dirname($_[0]->{bindir}); }

sub extension_dir { return "$_[0]->{sharedir}/extension"; }

=pod

=item $installation->build_next(version, SQL)

Builds a library for SQL objects of a version that nobody has released, for which
dt_waiting has one more column, "note"; and makes the script that updates to it:
this SQL, after what each update script begins with. Returns a directory with
what is to be installed.

=cut

sub build_next
{
	my ($self, $version, $sql) = @_;
	my $tree = PostgreSQL::Test::Utils::tempdir() . '/next';
	my ($old) = _contents("$top/doubletick.control") =~ /^default_version = '(.+)'$/m;

	make_path($tree);
	_run('cp', '-Rp', map({ "$top/$_" } qw(Makefile META.json doubletick.control sql src)), $tree);
	_edit("$tree/doubletick.control", qr/^default_version = '\Q$old\E'$/m, "default_version = '$version'");
	_edit("$tree/src/queue/shape.c", qr/(waiting_columns\[\] = \{.*?)(?=\n\};)/s, "%s\n\t{\"note\", TEXTOID, false},");

	# What else is built already stays as it is.
	unlink map { "$tree/src/$_" } qw(base/extension.o queue/shape.o);
	unlink "$tree/doubletick.so";
	_run('make', '-s', '-C', $tree, 'PG_CONFIG=' . ($ENV{PG_CONFIG} || pg_config('bindir') . '/pg_config'), 'with_llvm=no',
		$self->_is_for_tests ? 'TESTING=1' : ());
	PostgreSQL::Test::Utils::append_to_file("$tree/doubletick--$old--$version.sql", <<"SQL");
/* doubletick--$old--$version.sql: made by a test */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\\echo Use "ALTER EXTENSION doubletick UPDATE TO '$version'" to load this file. \\quit

-- names without a schema mean PostgreSQL's own objects
SET LOCAL search_path = pg_catalog, pg_temp;

-- have the drainer settle what is in flight, and keep it away until this commits
CREATE FUNCTION \@extschema\@.dt_begin_update() RETURNS void
AS 'MODULE_PATHNAME', 'dt_begin_update' LANGUAGE C;
SELECT \@extschema\@.dt_begin_update();
DROP FUNCTION \@extschema\@.dt_begin_update();

$sql
SQL
	return $tree;
}

# Has the library that is installed fault points?
sub _is_for_tests
{
	my ($self) = @_;
	my ($library) = glob "$self->{pkglibdir}/doubletick.{so,dylib}";

	return _contents($library) =~ /doubletick\.fault_point/;
}

=pod

=item $installation->install(directory), $installation->install_scripts(directory)

Replaces the library, the control file and the scripts, each in one step, as
package managers do it; or all but the library.

=back

=cut

sub install
{
	my ($self, $from) = @_;

	_replace($_, $self->{pkglibdir}) foreach grep { -f } glob "$from/doubletick.{so,dylib}";
	return $self->install_scripts($from);
}

sub install_scripts
{
	my ($self, $from) = @_;

	_replace($_, $self->extension_dir) foreach grep { -f } glob "$from/doubletick.control $from/sql/*.sql $from/*.sql";
	return;
}

sub _replace
{
	my ($file, $dir) = @_;
	my $name = basename($file);

	copy($file, "$dir/$name.new") && chmod(0755, "$dir/$name.new") && rename "$dir/$name.new", "$dir/$name"
	  or die "could not install \"$dir/$name\": $!";
	return;
}

sub pg_config
{
	my ($what) = @_;
	my ($said) = PostgreSQL::Test::Utils::run_command([ 'pg_config', "--$what" ]);

	return $said;
}

sub _run
{
	my (@command) = @_;

	PostgreSQL::Test::Utils::system_or_bail(@command);
	return;
}

sub _contents
{
	my ($file) = @_;

	open my $in, '<:raw', $file or die "could not open \"$file\": $!";
	local $/;
	return scalar <$in>;
}

# Replaces what a pattern matches; "%s" stands for its first group.
sub _edit
{
	my ($file, $pattern, $replacement) = @_;
	my $text = _contents($file);

	$text =~ s/$pattern/my $group = $1; $replacement =~ s{%s}{$group}r/e or die "\"$file\" has changed";
	open my $out, '>:raw', $file or die "could not open \"$file\": $!";
	print $out $text;
	close $out or die "could not write \"$file\": $!";
	return;
}

1;

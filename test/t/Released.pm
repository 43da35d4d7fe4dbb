
=head1 NAME

Released - checks that no released script has changed, for TAP tests

=head1 SYNOPSIS

  is_deeply([ Released::faults($top) ], [], 'released scripts are as they were');

=head1 DESCRIPTION

A database has what the script of its version has made, and an update begins there. If
a released script is edited, databases of one version differ. sql/RELEASED has
the hashes of the scripts of every release.

=cut

package Released;

use strict;
use warnings;

use Digest::SHA ();

=pod

=over

=item Released::faults(directory)

What is wrong in a tree, a sentence each. CHANGELOG.md says which versions are
released: those with a date in their heading. doubletick.control says which version
the scripts make.

=back

=cut

sub faults
{
	my ($tree) = @_;
	my ($current) = _contents("$tree/doubletick.control") =~ /^default_version = '(.+)'$/m;
	my %released = map { $_ => 1 } _contents("$tree/CHANGELOG.md") =~ /^## (\S+) \(\d{4}-\d\d-\d\d\)$/mg;
	my %scripts = map { s{.*/}{}r => $_ } glob "$tree/sql/*.sql";
	my (%hashes, @faults);

	foreach (grep { !/^#/ } split /\n/, _contents("$tree/sql/RELEASED"))
	{
		my ($hash, $script) = /^([0-9a-f]{64})  (doubletick--\S+\.sql)$/;

		if (!defined $script) { push @faults, "sql/RELEASED has a line that is not understood: $_"; next; }
		push @faults, "sql/RELEASED has $script twice" if $hashes{$script};
		$hashes{$script} = $hash;
		push @faults, "sql/RELEASED has $script, whose version has no date in CHANGELOG.md" unless $released{ _version($script) };
	}
	foreach my $script (sort keys %hashes)
	{
		if (!$scripts{$script}) { push @faults, "$script is released, and gone"; }
		elsif (Digest::SHA->new(256)->addfile($scripts{$script})->hexdigest ne $hashes{$script})
		{
			push @faults, "$script is released, and was changed";
		}
	}
	foreach my $script (sort keys %scripts)
	{
		push @faults, "$script is of a released version, but is not in sql/RELEASED"
		  if $released{ _version($script) } && !$hashes{$script};
	}

	# From each version that is released there is a way to the current one.
	push @faults, "no script creates version $current"
	  unless $scripts{"doubletick--$current.sql"} || grep { _version($_) eq $current } keys %scripts;
	foreach my $version (sort grep { $_ ne $current } map { _version($_) } keys %hashes)
	{
		push @faults, "no scripts lead from version $version to version $current"
		  unless _leads($version, $current, {}, keys %scripts);
	}
	return @faults;
}

# The version that a script makes.
sub _version { return $_[0] =~ s/.*--(.*)\.sql$/$1/r; }

# Is there a way of update scripts between two versions?
sub _leads
{
	my ($from, $to, $seen, @scripts) = @_;

	return 1 if $from eq $to;
	return 0 if $seen->{$from}++;
	return scalar grep { _leads($_, $to, $seen, @scripts) } map { /^doubletick--\Q$from\E--(.*)\.sql$/ } @scripts;
}

sub _contents
{
	my ($file) = @_;

	open my $in, '<:raw', $file or die "could not open \"$file\": $!";
	local $/;
	return scalar <$in>;
}

1;


# What the packages say agrees with the tree: versions, licence, what they need. That
# they can be built, installed and used is shown by test/package.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = abs_path(dirname(__FILE__) . '/../..');

sub contents { return slurp_file("$top/$_[0]"); }

# Words alone: how the lines are broken, and Debian's marks, do not matter.
sub words { return join ' ', split /\s+/, $_[0] =~ s/^ \.?//gmr; }

my $meta = JSON::PP->new->utf8->decode(contents('META.json'));
my ($release, $date) = contents('CHANGELOG.md') =~ /^## (\S+) \((\S+)\)/;
my ($oldest) = contents('src/compat.h') =~ /^#if PG_VERSION_NUM < (\d\d)0000$/m;
my ($libcurl) = contents('README.md') =~ /libcurl (\d+\.\d+) or newer/;

# PGXN.
is($meta->{release_status}, $date eq 'unreleased' ? 'unstable' : 'stable', 'META.json says whether the version is released');
like($meta->{prereqs}{runtime}{requires}{PostgreSQL}, qr{^(?:>= )?$oldest\.0\.0\b}, 'META.json needs the oldest PostgreSQL that compiles');
like($meta->{version}, qr/^\d+\.\d+\.\d+$/, 'the version is a semantic one');
like($meta->{resources}{homepage}, qr{^https://}, 'META.json has a home page');
is_deeply([ grep { !/^[^\s\/\\,]{1,}( [^\s\/\\,]+)*$/ } @{ $meta->{tags} } ], [], 'its tags are as PGXN wants them');

# Debian.
my ($debian) = contents('debian/changelog') =~ /^doubletick \((\S+)-\d+\)/;
my $control = contents('debian/control.in');
is($debian, $release, 'debian/changelog begins with the version');
is(contents('debian/pgversions'), "$oldest+\n", 'Debian builds for the oldest PostgreSQL that compiles, and later ones');
like($control, qr/^ libcurl4 \(>= \Q$libcurl\E\),$/m, 'the package needs the libcurl of the README');
like($control, qr/^ libcurl4-openssl-dev \(>= \Q$libcurl\E\),$/m, 'and so does its build');
is(contents('debian/control'), $control =~ s/PGVERSION/15/gr, 'debian/control is made of control.in, for Debian 12');
my ($licence) = contents('LICENSE') =~ /(Permission to use.*)/s;
my ($copyright) = contents('debian/copyright') =~ /(Permission to use.*)/s;
is(words($copyright), words($licence), 'debian/copyright has the licence');
like(contents('debian/copyright'), qr/^Copyright: (.+)$/m, 'debian/copyright says whose it is');
my ($holders) = contents('LICENSE') =~ /^Copyright \(c\) (.+)$/m;
is((contents('debian/copyright') =~ /^Copyright: (.+)$/m)[0], $holders, 'as LICENSE does');

# Docker.
my $dockerfile = contents('docker/Dockerfile');
foreach my $file (map { split / / } $dockerfile =~ /^COPY (?!--from)(.+) \S+$/mg)
{
	ok(-e "$top/$file", "docker/Dockerfile copies $file, which is there");
}
like($dockerfile, qr/^ARG PG_MAJOR=$oldest$/m, 'docker/Dockerfile is for a PostgreSQL that compiles');

# No package has a machine's own addresses in it.
foreach my $file (glob("$top/debian/*"), glob("$top/docker/*"), "$top/META.json")
{
	next unless -f $file;
	my @hosts = grep { !/^(?:www\.debian\.org|pgxn\.org|127\.0\.0\.1)$/ } slurp_file($file) =~ m{\w+://([^/:\s"']+)}g;
	is("@hosts", '', substr($file, length "$top/") . ' names no other host');
}

done_testing;

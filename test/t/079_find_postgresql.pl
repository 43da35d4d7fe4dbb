
# Which PostgreSQL test/check and test/demo take: find_postgresql() of test/common.sh,
# with programs in place of apt-get and apt-cache that know what each case says.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Path qw(make_path);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $common = slurp_file(abs_path(dirname(__FILE__) . '/../common.sh'));
my ($function) = $common =~ /^(find_postgresql\(\) \{\n.*?^\}\n)/ms;
my ($versions) = $common =~ /^(versions="[\d ]+")/m;
my ($bash) = grep { -x } map { "$_/bash" } split /:/, $ENV{PATH};
my $ncases = 0;

sub program
{
	my ($path, $text) = @_;

	make_path(dirname($path));
	append_to_file($path, "#!$bash\n$text");
	chmod 0755, $path or die "could not chmod \"$path\": $!";
	return;
}

# A machine: "installed" has the versions that are, "without_headers" those of them that
# lack the package of the headers; "installable" what apt-get can install, "known" what
# apt-cache knows besides; "no_apt" a system without both.
sub found
{
	my (%machine) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir() . '/' . ++$ncases;
	my ($said, $complaint) = ('', '');

	make_path("$dir/bin", "$dir/postgresql");
	foreach my $version (@{ $machine{installed} || [] })
	{
		my $bin = "$dir/postgresql/$version/bin";

		make_path("$dir/postgresql/$version/include");
		program("$bin/pg_config", "echo '$dir/postgresql/$version/include'\n");
		program("$bin/initdb", '');
		append_to_file("$dir/postgresql/$version/include/postgres.h", '')
		  unless grep { $_ == $version } @{ $machine{without_headers} || [] };
	}
	unless ($machine{no_apt})
	{
		my $installable = join '|', map { "*' postgresql-$_ postgresql-server-dev-$_'" } @{ $machine{installable} || [] }, 'none';
		my $known = join '|', map { "postgresql-$_" } @{ $machine{installable} || [] }, @{ $machine{known} || [] }, 'none';

		program("$dir/bin/apt-get", qq{case " \$*" in $installable) exit 0 ;; esac\necho 'E: Unable to correct problems' >&2\nexit 100\n});
		# What nobody has is no error for apt-cache when another package names it.
		program("$dir/bin/apt-cache", qq{case \$2 in $known) echo "Package: \$2" ;; esac\n});
	}
	symlink $_, "$dir/bin/" . (split m{/})[-1] foreach grep { -x } '/usr/bin/tail', '/bin/tail';
	my $script = "set -euo pipefail\n$versions\npostgresql_dir=$dir/postgresql work=$dir packages=\n"
	  . "update_package_lists() { :; }\ndie() { echo \"\$*\" >&2; exit 1; }\n$function\nfind_postgresql\necho \"\${PG_CONFIG#$dir/postgresql/}\$packages\"\n";
	{
		local $ENV{PATH} = "$dir/bin";
		IPC::Run::run([ $bash, '-c', $script ], '<', \undef, '>', \$said, '2>', \$complaint);
	}
	return $said . $complaint;
}

ok($bash && $function && $versions, 'test/common.sh has the function');
is(found(installed => [ 15, 17 ], installable => [18]), "17/bin/pg_config\n", 'the newest that is installed');
is(found(installed => [ 14, 15, 20 ]), "15/bin/pg_config\n", 'of 15 to 19');
is(found(installed => [ 15, 17 ], without_headers => [17]), "15/bin/pg_config\n", 'one that can be built for');
is(found(installable => [ 15, 17 ]), "17/bin/pg_config postgresql-17 postgresql-server-dev-17\n", 'else the newest that can be installed');
is(found(installed => [14], installable => [ 14, 16 ], known => [ 18, 19 ]), "16/bin/pg_config postgresql-16 postgresql-server-dev-16\n",
	'not one that is only known');
is(found(installed => [14], installable => [ 14, 20 ]), "found no PostgreSQL of 15 to 19, neither installed nor in the package sources; set PG_CONFIG to one's pg_config\n",
	'where there is none, it says so');
is(found(known => [ 17, 19 ]),
	"found no PostgreSQL of 15 to 19, neither installed nor in the package sources; apt-get cannot install postgresql-19: E: Unable to correct problems; set PG_CONFIG to one's pg_config\n",
	'where one cannot be installed, it says which and why');
is(found(no_apt => 1, installed => [16]), "16/bin/pg_config\n", 'a system without apt: the one that is installed');
like(found(no_apt => 1), qr/^found no PostgreSQL of 15 to 19, neither installed nor in the package sources; set PG_CONFIG/, 'a system without apt: none');
done_testing();

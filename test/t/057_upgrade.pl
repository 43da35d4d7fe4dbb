
# What waits is sent after pg_upgrade, which gives a cluster another identity, and the
# guard against logical replication gets through pg_upgrade, a dump and a restore.

use strict;
use warnings;

use Cwd ();
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new;
my $node = $calls->node;
my $sb = $calls->sandbox;
my $bindir = $node->config_data('--bindir');

my $triggers = "SELECT string_agg(format('%s %s', tgname, tgenabled), ', ' ORDER BY tgname) FROM pg_trigger WHERE NOT tgisinternal";
my $guards = 'dt_hold_replicated R, dt_settled_replicated R, dt_waiting_replicated R';

# One removal is own, the other has arrived by logical replication.
$calls->configure('doubletick.enabled' => 'off');
$calls->sql(enqueue('own', 1));
my $theirs = $calls->sql(enqueue('theirs', 2) . " AS id \\gset\nCREATE TEMP TABLE saved AS SELECT * FROM dt_waiting WHERE id = :id;
	DELETE FROM dt_waiting WHERE id = :id; SET session_replication_role = replica;
	INSERT INTO dt_waiting OVERRIDING SYSTEM VALUE TABLE saved RETURNING id");
is($calls->sql("SELECT count(*) FILTER (WHERE replicated), count(*) FROM dt_waiting"), '1|2', 'of two removals that wait, one has arrived');
is($calls->sql($triggers), $guards, 'the triggers fire for what is replicated');

# pg_upgrade
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'doubletick'\nmax_worker_processes = 12\n");
my $identity = sub { return (run_command([ 'pg_controldata', $_[0]->data_dir ]))[0] =~ /^Database system identifier:\s+(\d+)/m ? $1 : '' };
$node->stop;
isnt($identity->($node), $identity->($new), 'the new cluster has another identity');
{
	my $old_dir = PostgreSQL::Test::Utils::tempdir();
	my $cwd = Cwd::getcwd();

	chdir $old_dir or die "could not chdir to \"$old_dir\": $!";
	command_ok([ 'pg_upgrade', '--no-sync', '-b', $bindir, '-B', $bindir, '-d', $node->data_dir, '-D', $new->data_dir,
		'-s', $new->host, '-p', $node->port, '-P', $new->port ], 'pg_upgrade succeeds');
	chdir $cwd or die "could not chdir to \"$cwd\": $!";
}
is($calls->has_sent('own'), 0, 'nothing was sent on the way');
$new->start;
eventually(sub { $calls->has_sent('own') }, 'what waited is sent by the upgraded cluster');
eventually(sub { $new->safe_psql('postgres', 'SELECT count(*) FROM dt_queue') eq '1' }, 'and settled');
is($new->safe_psql('postgres', 'SELECT id FROM dt_queue'), $theirs, 'but not what had arrived by logical replication');
is($calls->has_sent('theirs'), 0, 'which is not sent');
is($new->safe_psql('postgres', $triggers), $guards, 'the triggers are as they were');

# A dump of the extension, restored in both ways.
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
command_ok([ 'pg_dump', '-Fc', '-d', $new->connstr('postgres'), '-f', $dump ], 'pg_dump succeeds');
$new->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok([ 'pg_restore', '-d', $new->connstr('restored'), $dump ], 'pg_restore succeeds');
is($new->safe_psql('restored', $triggers), $guards, 'the restored triggers are as they were');
command_ok([ 'pg_restore', '--data-only', '--disable-triggers', '-d', $new->connstr('restored'), $dump ], 'pg_restore --disable-triggers succeeds');
is($new->safe_psql('restored', $triggers), $guards, 'and changes no trigger of ours');
is($new->safe_psql('restored', 'SELECT count(*) FROM dt_waiting'), '0', 'a dump has no rows of the queue');
$new->safe_psql('restored', enqueue('restored', 3));
eventually(sub { $calls->has_sent('restored') }, 'the restored database sends');
$new->safe_psql('restored', 'DROP EXTENSION doubletick CASCADE');
pass('and the extension can be dropped there');
$new->stop;

done_testing;


# What ends servers and workers while requests are out, beside what 050 to 059 try:
# a smart stop, a session that crashes, a database that changes its place or may not
# be connected to, and a name server that hangs meanwhile.

use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new(options => { timeout => '5min' }, conf => "autovacuum = off\n");
my $node = $calls->node;
my $sb = $calls->sandbox;
my $n = 0;

# Sends a request whose answer is held.
sub hold
{
	my ($tag, $database) = @_;
	my $number = ++$n;

	$sb->hold(Worker::phone($number), { times => 1 });
	$calls->sql(enqueue($tag, $number), database => $database);
	$sb->await_held(1);
	return;
}

# What was out is sent a second time, and settled; no attempt is counted for the first.
sub goes_on
{
	my ($tag, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	eventually(sub { $calls->waiting($database) eq '0' }, "$tag: the removal is sent");
	is($calls->has_sent($tag), 2, "$tag: what was out left a second time");
	is($calls->sql("SELECT state, attempts FROM dt_history WHERE tags = '{$tag}'", database => $database), 'done|1', "$tag: as the first attempt");
	return;
}

sub smart_stop
{
	hold('smart');
	my $begin = time;
	$node->stop('smart');
	cmp_ok(time - $begin, '<', $soon, 'smart: the stop does not wait for the request');
	$node->start;
	goes_on('smart');
	return;
}

# A session of somebody else crashes, so that all processes end.
sub session_crashes
{
	hold('crashed');
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');
	kill 'KILL', $pid;
	eventually(sub { is_gone($pid) }, 'crashed: a session is killed');
	eventually(sub { $node->psql('postgres', 'SELECT 1') == 0 }, 'crashed: the cluster is up again');
	eval { $session->quit };
	goes_on('crashed');
	return;
}

# Statements that need the database for themselves, or forbid to connect to it.
sub database_changes
{
	$calls->sql('CREATE DATABASE changed');
	$calls->set_up('changed', timeout => '5min');
	my $dir = PostgreSQL::Test::Utils::tempdir();
	$calls->sql("CREATE TABLESPACE elsewhere LOCATION '$dir'");
	hold('moved', 'changed');
	is($node->psql('postgres', 'ALTER DATABASE changed SET TABLESPACE elsewhere'), 0, 'moved: ALTER DATABASE SET TABLESPACE while a request is out');
	goes_on('moved', 'changed');
	$calls->sql('ALTER DATABASE changed CONNECTION LIMIT 0');
	$calls->sql(enqueue('limited', ++$n), database => 'changed');
	eventually(sub { $calls->has_sent('limited') }, 'limited: a worker needs none of the connections that CONNECTION LIMIT allows');
	hold('renamed', 'changed');
	is($node->psql('postgres', 'ALTER DATABASE changed RENAME TO renamed'), 0, 'renamed: ALTER DATABASE RENAME while a request is out');
	goes_on('renamed', 'renamed');

	# As a template, with what waits: the copy has a removal of its own, unless the option "database" forbids it.
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD database 'renamed')", database => 'renamed');
	hold('copied', 'renamed');
	is($node->psql('postgres', 'CREATE DATABASE copy TEMPLATE renamed'), 0, 'copied: CREATE DATABASE TEMPLATE while a request is out');
	eventually(sub { $calls->sql('SELECT held FROM dt_status', database => 'copy') =~ /sends nothing from database "copy"/ }, 'copied: the copy says that it sends nothing');
	goes_on('copied', 'renamed');
	is($calls->waiting('copy'), '1', 'copied: and its removal waits');

	$sb->hold(Worker::phone(++$n));
	$calls->sql(enqueue('gone', $n), database => 'renamed');
	$sb->await_held(1);
	$calls->sql('DROP DATABASE renamed');
	$calls->sql('DROP DATABASE copy');
	$sb->clear_rules;
	is($calls->has_sent('gone'), 1, 'gone: with its database a removal is gone');
	$calls->sql('DROP TABLESPACE elsewhere');
	return;
}

# The owner's last session ends by itself; the role that enqueued is renamed.
sub role_changes
{
	$calls->sql("CREATE ROLE joe LOGIN; GRANT USAGE ON FOREIGN SERVER doubletick TO joe;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO joe;
		CREATE USER MAPPING FOR joe SERVER doubletick OPTIONS (api_key " . quote($sb->key) . ')');
	my $number = ++$n;
	$sb->hold(Worker::phone($number), { times => 1, status => 503, retry_after => '1' });
	$calls->sql('SET SESSION AUTHORIZATION joe; ' . enqueue('role', $number));
	$sb->await_held(1);
	$calls->sql('ALTER ROLE joe RENAME TO jane; ALTER ROLE jane NOLOGIN');
	$sb->release;
	eventually(sub { $calls->waiting eq '0' }, 'role: a role that was renamed and may not log in goes on');
	is($calls->sql("SELECT role, state FROM dt_history WHERE tags = '{role}'"), 'jane|done', 'role: under its new name');
	return;
}

# Somebody tries to move the extension to another schema while a request is out.
sub extension_moves
{
	hold('schema');
	my ($status, undef, $stderr) = $node->psql('postgres', 'CREATE SCHEMA other; ALTER EXTENSION doubletick SET SCHEMA other');
	like($stderr, qr/does not support SET SCHEMA/, 'schema: the extension says that it cannot be moved');
	$sb->release;
	eventually(sub { $calls->waiting eq '0' }, 'schema: the removal is settled');
	is($calls->has_sent('schema'), 1, 'schema: which was sent once');
	return;
}

# A broken configuration file is refused by the core: the worker goes on.
sub broken_configuration
{
	my $log = -s $node->logfile;

	$node->append_conf('postgresql.conf', "doubletick.history_retention = 'soon'");
	$node->reload;
	eventually(sub { slurp_file($node->logfile, $log) =~ /history_retention/ }, 'configuration: the log tells of a bad value');
	$calls->sql(enqueue('configured', ++$n));
	eventually(sub { $calls->has_sent('configured') }, 'configuration: the worker goes on');
	$node->adjust_conf('postgresql.conf', 'doubletick.history_retention', undef);
	$node->reload;
	return;
}

# Requests go on when the launcher is stopped for a while, as by a debugger.
sub launcher_sleeps
{
	my $launcher = $calls->launcher;

	$calls->sql(enqueue('before_sleep', ++$n));
	eventually(sub { $calls->has_sent('before_sleep') }, 'launcher: a worker runs');
	kill 'STOP', $launcher;
	$calls->sql(enqueue('during_sleep', ++$n));
	eventually(sub { $calls->has_sent('during_sleep') }, 'launcher: while it is stopped, a worker that runs is woken');
	kill 'CONT', $launcher;
	is($calls->launcher, $launcher, 'launcher: it goes on');
	return;
}

smart_stop();
session_crashes();
database_changes();
role_changes();
extension_moves();
broken_configuration();
launcher_sleeps();
unlike(slurp_file($node->logfile), qr/PANIC|TRAP/, 'no process has crashed by itself');
done_testing;


# The worker makes way for a session that needs its database alone, and for one
# that drops or updates the extension.  It obeys doubletick.enabled.  After an
# error, and where it cannot be started, it is tried again.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new(options => { timeout => '5min' },
	conf => "max_worker_processes = 8\nmax_connections = 20\nautovacuum = off\n");
my $node = $calls->node;
my $sb = $calls->sandbox;

# Sends a request that hangs.
sub hang
{
	my ($database, $tag) = @_;

	$sb->rule(Worker::phone(9), { fault => 'hang', times => 1 });
	$calls->sql(enqueue($tag, 9), database => $database);
	eventually(sub { $calls->has_sent($tag) }, "$tag: a request hangs");
	return;
}

sub succeeds
{
	my ($sql) = @_;

	return $node->psql('postgres', $sql) == 0;
}

# Leaves only the database "served".  A copy of it would have a copy of what waits,
# and so a worker of its own, too.
sub undo
{
	my ($command) = @_;

	$calls->sql('DROP DATABASE copy') if $command =~ /copy/;
	$calls->sql('ALTER DATABASE renamed RENAME TO served') if $command =~ /TO renamed$/;
	return;
}

# PostgreSQL waits five seconds for other sessions to leave a database, and then
# refuses: that these statements succeed shows that the worker leaves in time.
sub database_wanted
{
	my %statements = (
		'ALTER DATABASE RENAME' => 'ALTER DATABASE served RENAME TO renamed; ALTER DATABASE renamed RENAME TO served',
		'CREATE DATABASE TEMPLATE' => 'CREATE DATABASE copy TEMPLATE served',
		'DROP DATABASE' => 'DROP DATABASE served');

	$calls->sql('CREATE DATABASE served');
	$calls->set_up('served', timeout => '5min', database => 'served');
	my $n = 0;
	for my $what ('ALTER DATABASE RENAME', 'CREATE DATABASE TEMPLATE', 'DROP DATABASE')
	{
		my $command = $statements{$what};
		my $tag = 'wanted' . ++$n;

		# With a worker that is idle, and with one whose request hangs.
		unless ($what eq 'DROP DATABASE')
		{
			$sb->clear_rules;
			$calls->sql(enqueue("idle_$tag", $n), database => 'served');
			eventually(sub { $calls->has_sent("idle_$tag") && $calls->waiting('served') eq '0' }, "$what: the worker is idle");
			ok(succeeds($_), "$what: while the worker is idle: $_") foreach split /; /, $command;
			undo($command);
		}
		hang('served', $tag);
		my ($first) = split /; /, $command;
		ok(succeeds($first), "$what: while a request hangs");
		undo($first);
		$sb->clear_rules;
		next if $what eq 'DROP DATABASE';
		eventually(sub { $calls->waiting('served') eq '0' }, "$what: the worker comes back");
	}
	eventually(sub { !grep { $_ } $calls->workers('served') }, 'DROP DATABASE: no worker is left');
	$calls->sql('CREATE DATABASE served');
	$calls->set_up('served', timeout => '5min');
	$calls->sql(enqueue('new_database'), database => 'served');
	eventually(sub { $calls->has_sent('new_database') }, 'DROP DATABASE: a new one of the same name is served');
	return;
}

# The requests in flight are given up; the worker meets no error.
sub extension_dropped
{
	my $log = -s $node->logfile;

	hang('served', 'dropped');
	my $begin = time;
	$calls->sql('DROP EXTENSION doubletick CASCADE', database => 'served');
	cmp_ok(time - $begin, '<', $soon, 'DROP EXTENSION does not wait for a request that hangs');
	eventually(sub { !$calls->workers('served') }, 'the worker leaves');
	$sb->clear_rules;

	$calls->sql('DROP FUNCTION outcome, as_jsonb; CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.dt_waiting (id int);
		CREATE TABLE elsewhere.dt_settled (id int); CREATE TABLE elsewhere.dt_hold (id int)', database => 'served');
	$calls->set_up('served');
	$calls->sql(enqueue('recreated'), database => 'served');
	eventually(sub { $calls->has_sent('recreated') }, 'an extension that is created again is served');
	is($calls->sql('SELECT count(*) FROM elsewhere.dt_settled', database => 'served'), '0', 'tables of the same names in another schema are not touched');

	# In one transaction, so that the worker finds another one in its place.
	$calls->sql('BEGIN; DROP EXTENSION doubletick CASCADE; CREATE EXTENSION doubletick SCHEMA elsewhere_too; COMMIT'
		=~ s/BEGIN;/BEGIN; CREATE SCHEMA elsewhere_too;/r, database => 'served');
	$calls->server('doubletick', database_of => 'served');
	$calls->sql('SET search_path = elsewhere_too; ' . enqueue('replaced'), database => 'served');
	eventually(sub { $calls->has_sent('replaced') }, 'so is one that is replaced in one transaction');
	unlike(slurp_file($node->logfile, $log), qr/ERROR|worker of database "postgres" has failed/, 'no worker has met an error');

	$calls->sql('DROP EXTENSION doubletick CASCADE', database => 'served');
	eventually(sub { !$calls->workers('served') }, 'the worker leaves a database that lacks the extension');
	$calls->sql('DROP DATABASE served');
	return;
}

# There is no other version yet: the update only takes the locks that it needs.
sub extension_updated
{
	hang('postgres', 'updated');
	my $begin = time;
	$calls->sql('BEGIN; LOCK TABLE dt_waiting, dt_settled, dt_hold; ALTER EXTENSION doubletick UPDATE; COMMIT');
	cmp_ok(time - $begin, '<', $soon, 'ALTER EXTENSION UPDATE does not wait for a request that hangs');
	$sb->clear_rules;
	$calls->sql('SELECT pg_terminate_backend(pid) FROM dt_worker()');
	eventually(sub { $calls->waiting eq '0' }, 'the worker goes on after it');
	return;
}

# What is out does not keep a worker that has old settings.
sub settings_changed
{
	hang('postgres', 'settings');
	my ($old) = $calls->workers('postgres');
	my $begin = time;
	$calls->sql("ALTER DATABASE postgres SET work_mem = '5MB'");
	eventually(sub { !grep { $_ == $old } $calls->workers('postgres') }, 'ALTER DATABASE SET while a request hangs: the worker leaves');
	cmp_ok(time - $begin, '<', 5, 'soon');
	eventually(sub { $calls->waiting eq '0' }, 'the next one sends the request again');
	is($calls->has_sent('settings'), 2, 'once');
	($old) = $calls->workers('postgres');
	$calls->sql('ALTER DATABASE postgres RESET work_mem');
	eventually(sub { !grep { $_ == $old } $calls->workers('postgres') }, 'and that one leaves, too, after ALTER DATABASE RESET');
	$sb->clear_rules;
	return;
}

sub switched_off
{
	$calls->sql(enqueue('on', 49));
	eventually(sub { $calls->has_sent('on') && $calls->workers('postgres') == 1 }, 'the worker sends');
	my ($old) = $calls->workers('postgres');
	my $session = $node->background_psql('postgres');
	my $check = 'SELECT object, hint FROM dt_check()';
	is($session->query_safe($check), '', 'nothing is wrong');
	$calls->sql('ALTER DATABASE postgres SET doubletick.enabled = off');
	eventually(sub { (($calls->workers('postgres'))[0] // $old) != $old }, 'after ALTER DATABASE SET another worker takes its place');
	$calls->sql(enqueue('off', 50));
	eventually(sub { $calls->sql('SELECT held FROM dt_status') =~ /switched off by "doubletick.enabled"/ },
		'dt_status says why rows are held');
	is($calls->sql("SELECT string_agg(DISTINCT reason, '') LIKE '%doubletick.enabled%' FROM dt_hold"), 't', 'the hold says why, too')
	  if eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, 'the worker holds the row');
	my $command = 'ALTER DATABASE postgres RESET doubletick.enabled;';
	is($calls->sql($check), "setting doubletick.enabled|$command", 'dt_check says that it is off');
	like($session->query_safe($check), qr/^requests of role \S+ to server doubletick\|Switch them on again: \Q$command\E$/,
		'a session for which it is on says what the worker is held for');
	$session->quit;
	is($calls->has_sent('off'), 0, 'nothing is sent');
	$calls->sql($command);
	eventually(sub { $calls->has_sent('off') }, 'after RESET it is sent');

	# A setting of the whole cluster comes by SIGHUP and counts from the next request on.
	$calls->configure('doubletick.enabled' => 'off');
	$calls->sql(enqueue('off_again', 51));
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, 'the worker holds the row');
	is($calls->has_sent('off_again'), 0, 'nothing is sent');
	$calls->configure('doubletick.enabled' => 'on');
	eventually(sub { $calls->has_sent('off_again') }, 'after the reload it is sent');
	return;
}

# An error ends the worker.  It is shown, and the worker is started again after
# pauses that grow.
sub failing
{
	my $log = -s $node->logfile;

	eventually(sub { $calls->waiting eq '0' }, 'nothing waits');
	# The library refuses to write to a table with such an index.
	$calls->sql('CREATE INDEX failing ON dt_settled (lower(phone)); ' . enqueue('failing', 60));
	eventually(sub { @{ [ slurp_file($node->logfile, $log) =~ /exited with exit code 1/g ] } >= 3 }, 'a worker that fails is started again');
	my @at = map { my ($h, $m, $s) = split /:/; ($h * 60 + $m) * 60 + $s }
	  slurp_file($node->logfile, $log) =~ /^\S+ (\d+:\d+:[\d.]+).*exited with exit code 1/mg;
	cmp_ok($at[1] - $at[0], '>=', 0.9, 'after a pause');
	cmp_ok($at[2] - $at[1], '>=', 1.9, 'which grows');
	is(scalar(() = slurp_file($node->logfile, $log) =~ /worker of database "postgres" has failed/g), 1, 'the log tells of it once');
	like($calls->sql('CREATE ROLE reader; SET ROLE reader; SELECT last_error FROM dt_worker()'),
		qr/^table "%s" is not as extension "doubletick" needs it \(SQLSTATE 55000\)$/, 'everybody can read the error, without what it names');
	$calls->sql('DROP INDEX failing');
	eventually(sub { $calls->sql("SELECT state FROM dt_history WHERE tags = '{failing}'") eq 'done' },
		'when the cause is removed, the row is sent');
	return;
}

# A worker cannot start: its database takes no connections, or no background
# worker is free.  It can, although all connections of max_connections are taken.
sub no_start
{
	my $log = -s $node->logfile;

	$calls->sql('CREATE DATABASE closed');
	$calls->set_up('closed');
	my $session = $node->background_psql('closed');
	$calls->sql('ALTER DATABASE closed ALLOW_CONNECTIONS false');
	$session->query_safe(enqueue('closed'));
	eventually(sub { slurp_file($node->logfile, $log) =~ /LOG:  queue of database "closed" waits, since the database takes no connections/ },
		'the log tells of a database that takes no connections');
	is($calls->has_sent('closed'), 0, 'its row is not sent');
	$calls->sql('ALTER DATABASE closed ALLOW_CONNECTIONS true');
	eventually(sub { $calls->has_sent('closed') }, 'when it takes connections again, the row is sent');
	is(scalar(() = slurp_file($node->logfile, $log) =~ /takes no connections/g), 1, 'the log told of it once');
	$session->quit;
	$calls->sql('DROP DATABASE closed');

	$calls->configure(max_worker_processes => 3);		# ours, and that of logical replication
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	$node->restart;
	$calls->sql('CREATE DATABASE second');
	$calls->set_up('second');
	my $none_free = qr/WARNING:  queue of database "second" waits, since no background worker is free/;
	$calls->sql(enqueue('first'));
	eventually(sub { $calls->has_sent('first') }, 'one worker can start');
	$calls->sql(enqueue('second'), database => 'second');
	eventually(sub { slurp_file($node->logfile) =~ $none_free }, 'a second one cannot');
	$calls->configure('doubletick.worker_idle_timeout' => '200ms');
	eventually(sub { $calls->has_sent('second') }, 'it can when the first has left');
	is(scalar(() = slurp_file($node->logfile) =~ /$none_free/g), 1, 'the log told of it once');

	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") eq '1' },
		'no other session is there');
	my @sessions = map { $node->background_psql('postgres') } 1 .. 20;
	$sessions[0]->query_safe(enqueue('crowded'));
	eventually(sub { $calls->has_sent('crowded') }, 'the worker needs none of the connections for sessions');
	$_->quit foreach @sessions;
	return;
}

database_wanted();
extension_dropped();
settings_changed();
switched_off();
failing();
extension_updated();
no_start();
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;

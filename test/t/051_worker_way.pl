
# The worker is in nobody's way, and nothing that is in its way ends it: who
# wants the database to himself, who drops the extension, who switches requests
# off, and what it lacks to start.

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

# A request that hangs, in a database of its own.
sub hang
{
	my ($database, $tag) = @_;

	$sb->rule(Worker::phone(9), { fault => 'hang', times => 1 });
	$calls->sql(enqueue($tag, 9), database => $database);
	eventually(sub { $calls->has_sent($tag) }, "$tag: a request hangs");
	return;
}

sub wanted_for_oneself
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
			my $begin = time;
			$calls->sql($_) foreach split /; /, $command;
			# Each of two statements may wait for it.
			cmp_ok(time - $begin, '<', $command =~ /;/ ? 4 : 2, "$what: beside an idle worker");
			$calls->sql('DROP DATABASE copy') if $command =~ /copy/;
		}
		hang('served', $tag);
		my $begin = time;
		my ($first) = split /; /, $command;
		$calls->sql($first);
		cmp_ok(time - $begin, '<', 2, "$what: while a request hangs");
		$calls->sql('ALTER DATABASE renamed RENAME TO served') if $command =~ /renamed/;
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

# What is in flight goes down with the extension; the worker stays unharmed.
sub extension_dropped
{
	my $log = -s $node->logfile;

	hang('served', 'dropped');
	my $begin = time;
	$calls->sql('DROP EXTENSION doubletick CASCADE', database => 'served');
	cmp_ok(time - $begin, '<', 2, 'DROP EXTENSION while a request hangs');
	eventually(sub { !$calls->workers('served') }, 'the worker leaves');
	$sb->clear_rules;

	$calls->sql('DROP FUNCTION outcome, as_jsonb; CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.dt_waiting (id int);
		CREATE TABLE elsewhere.dt_settled (id int); CREATE TABLE elsewhere.dt_hold (id int)', database => 'served');
	$calls->set_up('served');
	$calls->sql(enqueue('recreated'), database => 'served');
	eventually(sub { $calls->has_sent('recreated') }, 'the extension is created again, and served, beside foreign tables');
	is($calls->sql('SELECT count(*) FROM elsewhere.dt_settled', database => 'served'), '0', 'which nobody touches');

	# In one transaction, so that the worker finds another one in its place.
	$calls->sql('BEGIN; DROP EXTENSION doubletick CASCADE; CREATE EXTENSION doubletick SCHEMA elsewhere_too; COMMIT'
		=~ s/BEGIN;/BEGIN; CREATE SCHEMA elsewhere_too;/r, database => 'served');
	$calls->server('doubletick', database_of => 'served');
	$calls->sql('SET search_path = elsewhere_too; ' . enqueue('replaced'), database => 'served');
	eventually(sub { $calls->has_sent('replaced') }, 'replaced in one transaction, it is served as well');
	unlike(slurp_file($node->logfile, $log), qr/ERROR|worker of database \d+ has failed/, 'no worker has failed');

	$calls->sql('DROP EXTENSION doubletick CASCADE', database => 'served');
	eventually(sub { !$calls->workers('served') }, 'the worker leaves a database without the extension');
	$calls->sql('DROP DATABASE served');
	return;
}

# The update has nothing to do but to take its locks.
sub extension_updated
{
	my $dir = $calls->node->config_data('--sharedir') . '/extension';

  SKIP:
	{
		hang('postgres', 'updated');
		my $begin = time;
		$calls->sql('BEGIN; LOCK TABLE dt_waiting, dt_settled, dt_hold; ALTER EXTENSION doubletick UPDATE; COMMIT');
		cmp_ok(time - $begin, '<', 2, 'ALTER EXTENSION UPDATE while a request hangs');
		$sb->clear_rules;
		$calls->sql('SELECT pg_terminate_backend(pid) FROM dt_worker()');
		eventually(sub { $calls->waiting eq '0' }, 'the worker goes on after it');
	}
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
	$calls->sql('ALTER DATABASE postgres RESET work_mem');
	$sb->clear_rules;
	return;
}

sub switched_off
{
	$calls->sql(enqueue('on', 49));
	eventually(sub { $calls->has_sent('on') && $calls->workers('postgres') == 1 }, 'the worker is there');
	my ($old) = $calls->workers('postgres');
	$calls->sql('ALTER DATABASE postgres SET doubletick.enabled = off');
	eventually(sub { (($calls->workers('postgres'))[0] // $old) != $old }, 'ALTER DATABASE SET is noticed');
	$calls->sql(enqueue('off', 50));
	eventually(sub { $calls->sql('SELECT held FROM dt_status') =~ /switched off by "doubletick.enabled"/ },
		'dt_status says why rows are held');
	is($calls->sql("SELECT string_agg(DISTINCT reason, '') LIKE '%doubletick.enabled%' FROM dt_hold"), 't', 'as the worker found it')
	  if eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, 'the worker holds the row');
	is($calls->has_sent('off'), 0, 'nothing is sent');
	$calls->sql('ALTER DATABASE postgres RESET doubletick.enabled');
	eventually(sub { $calls->has_sent('off') }, 'RESET lets it go on');

	# For the whole cluster, by SIGHUP: from the next request on.
	$calls->configure('doubletick.enabled' => 'off');
	eventually(sub { $calls->sql('SHOW doubletick.enabled') eq 'off' }, 'a reload arrives');
	$calls->sql('SELECT 1');
	my $log = -s $node->logfile;
	$calls->sql(enqueue('off_again', 51));
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, 'the worker holds the row');
	is($calls->has_sent('off_again'), 0, 'nothing is sent');
	$calls->configure('doubletick.enabled' => 'on');
	eventually(sub { $calls->has_sent('off_again') }, 'SIGHUP lets it go on');
	return;
}

# An error of its own: shown, and tried again with pauses that grow.
sub failing
{
	my $log = -s $node->logfile;

	unless ($calls->sql("SELECT count(*) FROM pg_settings WHERE name = 'doubletick.fault_point'"))
	{
		note 'built without TESTING=1';
		return;
	}
	$calls->sql(enqueue('failing', 60));
	eventually(sub { $calls->waiting eq '0' }, 'a worker is there');
	$calls->configure('doubletick.fault_point' => 'error:before settling');
	$calls->sql(enqueue('failing_later', 60));
	eventually(sub { @{ [ slurp_file($node->logfile, $log) =~ /exited with exit code 1/g ] } >= 3 }, 'a worker that fails is started again');
	my @at = map { my ($h, $m, $s) = split /:/; ($h * 60 + $m) * 60 + $s }
	  slurp_file($node->logfile, $log) =~ /^\S+ (\d+:\d+:[\d.]+).*exited with exit code 1/mg;
	cmp_ok($at[1] - $at[0], '>=', 0.9, 'after a pause');
	cmp_ok($at[2] - $at[1], '>=', 1.9, 'that grows');
	is(scalar(() = slurp_file($node->logfile, $log) =~ /worker of database \d+ has failed/g), 1, 'which is said once');
	is($calls->sql('SELECT worker_error FROM dt_status'), 'fault point "%s" (SQLSTATE 53100)',
		'dt_status has the error, without what it names');
	is($calls->sql('CREATE ROLE reader; SET ROLE reader; SELECT last_error FROM dt_worker()'),
		'fault point "%s" (SQLSTATE 53100)', 'for everybody');
	$calls->configure('doubletick.fault_point' => '');
	eventually(sub { $calls->sql("SELECT state FROM dt_history WHERE tags = '{failing_later}'") eq 'done' },
		'it goes on when that is mended');
	return;
}

# The database takes no connections; no worker is free; no session is free.
sub no_start
{
	my $log = -s $node->logfile;

	$calls->sql('CREATE DATABASE closed');
	$calls->set_up('closed');
	my $session = $node->background_psql('closed');
	$calls->sql('ALTER DATABASE closed ALLOW_CONNECTIONS false');
	$session->query_safe(enqueue('closed'));
	eventually(sub { slurp_file($node->logfile, $log) =~ /LOG:  queue of database \d+ waits, since the database takes no connections/ },
		'a closed database is logged');
	is($calls->has_sent('closed'), 0, 'and not served');
	$calls->sql('ALTER DATABASE closed ALLOW_CONNECTIONS true');
	eventually(sub { $calls->has_sent('closed') }, 'until it takes connections again');
	is(scalar(() = slurp_file($node->logfile, $log) =~ /takes no connections/g), 1, 'it was logged once');
	$session->quit;
	$calls->sql('DROP DATABASE closed');

	$calls->configure(max_worker_processes => 3);		# ours, and that of logical replication
	$calls->configure('doubletick.worker_idle_timeout' => '1h');
	$node->restart;
	$log = -s $node->logfile;
	$calls->sql('CREATE DATABASE second');
	$calls->set_up('second');
	$calls->sql(enqueue('first'));
	eventually(sub { $calls->has_sent('first') }, 'one worker finds a place');
	$calls->sql(enqueue('second'), database => 'second');
	eventually(sub { slurp_file($node->logfile, $log) =~ /WARNING:  queue of database \d+ waits, since no background worker is free/ },
		'the second does not');
	my $placed = $calls->sql('SELECT pid FROM dt_worker()');
	$calls->configure('doubletick.worker_idle_timeout' => '200ms');
	eventually(sub { $calls->has_sent('second') }, 'until the first leaves');
	is(scalar(() = slurp_file($node->logfile, $log) =~ /no background worker is free/g), 1, 'it was logged once');

	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") eq '1' },
		'no other session is there');
	my @sessions = map { $node->background_psql('postgres') } 1 .. 20;
	$sessions[0]->query_safe(enqueue('crowded'));
	eventually(sub { $calls->has_sent('crowded') }, 'without a connection left the worker still comes');
	$_->quit foreach @sessions;
	return;
}

wanted_for_oneself();
extension_dropped();
settings_changed();
switched_off();
failing();
extension_updated();
no_start();
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;


# What may trouble the worker: administrators who terminate it, settings of its
# database that are meant for sessions, and databases that take no connections,
# are dropped in part, or are drained by a session.

use strict;
use warnings;

use File::Basename qw(dirname);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls qw(is_testing_build);
use Worker;

my $calls = Worker->new(options => { timeout => '5min' }, conf => "autovacuum = off\n");
my $node = $calls->node;
my $sb = $calls->sandbox;

# Launcher and worker end at the same moment, so that neither learns that the other
# has ended.
sub ended_together
{
	my $n = 0;

	for my $how ('terminate', 'cancel')
	{
		$sb->rule(Worker::phone(++$n), { fault => 'hang', times => 1 });
		$calls->sql(enqueue($how, $n));
		eventually(sub { $calls->has_sent($how) }, "$how: a request hangs");
		my $launcher = $calls->launcher;
		$calls->sql("SELECT pg_${how}_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'doubletick%'");
		eventually(sub { $calls->has_sent($how) == 2 }, "$how: another worker sends it again");
		isnt($calls->launcher, $launcher, "$how: another launcher has started that worker");
		eventually(sub { $calls->waiting eq '0' }, "$how: and settles it");
		is($calls->sql('SELECT worker_error FROM dt_status'), '', "$how: which is no error of the worker's");
	}
	return;
}

# An error while an answer is settled holds the server and role.  The worker goes on,
# and does not send the request again.
sub error_in_settling
{
	unless (is_testing_build($node))
	{
		note 'built without TESTING=1';
		return;
	}
	$calls->configure('doubletick.fault_point' => 'error:settling');
	$calls->sql(enqueue('unsettled', 30));
	eventually(sub { $calls->sql('SELECT held FROM dt_status') =~ /fault point "settling"/ }, 'an error in settling: dt_status says what holds');
	my $worker = $calls->sql('SELECT worker_pid FROM dt_status');
	$calls->configure('doubletick.fault_point' => '');
	eventually(sub { $calls->waiting eq '0' }, 'an error in settling: settled when the cause is removed');
	is($calls->has_sent('unsettled'), 1, 'an error in settling: sent once');
	is($calls->sql('SELECT worker_pid FROM dt_status'), $worker, 'an error in settling: by the same worker');
	return;
}

# DROP DATABASE ends the worker before the launcher knows why.
sub dropped_by_force
{
	$calls->sql('CREATE DATABASE forced');
	$calls->set_up('forced', timeout => '5min');
	$sb->rule(Worker::phone(3), { fault => 'hang', times => 1 });
	$calls->sql(enqueue('forced', 3), database => 'forced');
	eventually(sub { $calls->has_sent('forced') }, 'a request hangs');
	my $begin = time;
	$calls->sql('DROP DATABASE forced WITH (FORCE)');
	cmp_ok(time - $begin, '<', $soon, 'DROP DATABASE WITH (FORCE) does not wait for a request that hangs');
	$calls->sql(enqueue('after_forced'));
	eventually(sub { $calls->has_sent('after_forced') }, 'the launcher goes on');
	return;
}

# Settings of a database that would keep its worker from working, if it obeyed them.
sub strict_settings
{
	$calls->sql('CREATE ROLE nobody');
	$calls->sql('CREATE DATABASE strict');
	$calls->set_up('strict');
	my $session = $node->background_psql('strict');
	$calls->sql("ALTER DATABASE strict SET $_") foreach "lock_timeout = '10ms'", "statement_timeout = '10ms'",
	  "idle_in_transaction_session_timeout = '10ms'", 'default_transaction_read_only = on', "role = 'nobody'",
	  "default_transaction_isolation = 'serializable'", 'default_transaction_deferrable = on', "search_path = 'nowhere'",
	  'exit_on_error = on';
	$session->query_safe(enqueue('strict'));
	eventually(sub { $calls->has_sent('strict') && $session->query_safe('SELECT count(*) FROM dt_queue') eq '0' },
		'the worker sends under strict settings');
	my ($pid) = $calls->workers('strict');
	$session->query_safe('BEGIN; LOCK TABLE dt_waiting');
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND clock_timestamp() - waitstart > '200ms'") eq '1' },
		'it waits for a lock');
	$session->query_safe(enqueue('locked') . '; COMMIT');
	eventually(sub { $calls->has_sent('locked') }, 'and goes on when it gets it');

	# A row with an id that the sequence has yet to give, as a restore may bring it.
	$session->query_safe('BEGIN; ' . enqueue('restored') . ';
		CREATE TEMPORARY TABLE saved AS TABLE dt_waiting; UPDATE saved SET id = id + 1000, ord = ord + 1000;
		DELETE FROM dt_waiting; INSERT INTO dt_waiting OVERRIDING SYSTEM VALUE TABLE saved; COMMIT');
	eventually(sub { $calls->has_sent('restored') && $session->query_safe('SELECT count(*) FROM dt_queue') eq '0' }, 'it sends a row that was restored');
	cmp_ok($session->query_safe('SELECT last_value FROM dt_waiting_id_seq'), '>', 1000, 'and sets the sequence above it');

	# What is no JSON is an error that the worker catches.
	$sb->rule(Worker::phone(7), { status => 201, body => 'no JSON', times => 1 });
	$session->query_safe(enqueue('odd', 7));
	eventually(sub { $session->query_safe("SELECT state FROM dt_history WHERE phone = '" . Worker::phone(7) . "'") eq 'failed' }, 'an odd answer is settled');
	is(($calls->workers('strict'))[0], $pid, 'all that by the same process');
	$session->quit;
	$calls->sql('DROP DATABASE strict');
	return;
}

# A copy of a database has what waited there, and nobody has told the launcher.  The
# original does not send; its settings are not copied.
sub copied
{
	$calls->sql('CREATE DATABASE original');
	$calls->set_up('original');
	$calls->sql('ALTER DATABASE original SET doubletick.enabled = off');
	$calls->sql(enqueue('copied'), database => 'original');
	$calls->sql('CREATE DATABASE second_copy TEMPLATE original');

	# The launcher looks each minute, or when something else wakes it.
	$calls->sql('SELECT pg_reload_conf()');
	eventually(sub { $calls->has_sent('copied') && $calls->waiting('second_copy') eq '0' }, 'a copy of a database is served');
	is($calls->waiting('original'), '1', 'and the original waits');
	$calls->sql("DROP DATABASE $_") foreach qw(original second_copy);
	return;
}

# A worker has read the settings of its database when doubletick.enabled is switched
# off there, and has yet to begin: post_auth_delay, in seconds, gives us that long.
sub switched_off_at_start
{
	local $ENV{PGOPTIONS} = '-c post_auth_delay=0';

	$calls->sql('CREATE DATABASE late');
	$calls->set_up('late');
	$calls->configure('post_auth_delay' => '6');
	eventually(sub { $calls->sql("SELECT setting FROM pg_file_settings WHERE name = 'post_auth_delay' AND applied") eq '6' },
		'workers start slowly');
	$calls->sql(enqueue('late'), database => 'late');
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_database'::regclass
			AND objid = (SELECT oid FROM pg_database WHERE datname = 'late')") ne '0' }, 'one starts');
	$calls->sql('ALTER DATABASE late SET doubletick.enabled = off');
	is($calls->has_sent('late'), 0, 'nothing is sent before the database is switched off');
	eventually(sub { $calls->has_sent('late') || $calls->sql('SELECT count(*) FROM dt_hold', database => 'late') eq '1' },
		'the worker finds what waits');
	is($calls->has_sent('late'), 0, 'and does not send it');
	$calls->configure('post_auth_delay' => '0');
	$calls->sql('DROP DATABASE late');
	return;
}

# And when it is switched on again: the database has no setting left, or another one; or
# it was switched off for a role.
sub switched_on_at_start
{
	local $ENV{PGOPTIONS} = '-c post_auth_delay=0';
	my $superuser = $calls->sql('SELECT quote_ident(rolname) FROM pg_roles WHERE oid = 10');
	my %whose = (early => 'DATABASE early', earlier => 'DATABASE earlier',
		earliest => "ROLE $superuser IN DATABASE earliest");
	my @databases = sort keys %whose;

	foreach my $database (@databases)
	{
		$calls->sql("CREATE DATABASE $database");
		$calls->set_up($database);
		$calls->sql("ALTER $whose{$database} SET doubletick.enabled = off");
	}
	$calls->sql("ALTER DATABASE earlier SET doubletick.history_retention = '1d'");
	$calls->configure('post_auth_delay' => '6');
	eventually(sub { $calls->sql("SELECT setting FROM pg_file_settings WHERE name = 'post_auth_delay' AND applied") eq '6' },
		'workers start slowly again');
	foreach my $database (@databases)
	{
		$calls->sql(enqueue($database), database => $database);
		eventually(sub { $calls->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_database'::regclass
			AND objid = (SELECT oid FROM pg_database WHERE datname = '$database')") ne '0' }, "one starts in $database");
		$calls->sql("ALTER $whose{$database} RESET doubletick.enabled");
	}
	$calls->configure('post_auth_delay' => '0');
	eventually(sub { $calls->has_sent($_) }, "$_: what waits is sent") foreach @databases;
	$calls->sql("DROP DATABASE $_") foreach @databases;
	return;
}

# A worker that is idle obeys a stored setting before it sends what is committed next.
sub switched_off_while_idle
{
	my $n = 40;
	my $superuser = $calls->sql('SELECT quote_ident(rolname) FROM pg_roles WHERE oid = 10');
	foreach my $whose ('DATABASE postgres', 'ROLE ALL', "ROLE $superuser", "ROLE $superuser IN DATABASE postgres")
	{
		for my $round (1 .. 3)
		{
			my $tag = 'idle' . ++$n;

			$calls->sql(enqueue("warm$n", $n));
			eventually(sub { $calls->waiting eq '0' && $calls->sql('SELECT worker_state FROM dt_status') eq 'idle' }, "$whose, $round: the worker is idle");
			$calls->sql("ALTER $whose SET doubletick.enabled = off");
			$calls->sql(enqueue($tag, $n));
			eventually(sub { $calls->has_sent($tag) || $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, "$whose, $round: a worker finds what waits");
			is($calls->has_sent($tag), 0, "$whose, $round: and does not send it");
			$calls->sql("ALTER $whose RESET doubletick.enabled");
			eventually(sub { $calls->has_sent($tag) && $calls->waiting eq '0' }, "$whose, $round: but when it may");
		}
	}
	return;
}

# A DROP DATABASE that was broken off leaves a database that takes no connections.
sub half_dropped
{
	my $log = -s $node->logfile;

	$calls->sql('CREATE DATABASE half');
	$calls->set_up('half');
	my $session = $node->background_psql('half');
	$calls->sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'");
	$session->query_safe(enqueue('half'));
	eventually(sub { slurp_file($node->logfile, $log) =~ /LOG:  queue of database "[^"]+" waits, since the database takes no connections/ },
		'the log tells that it takes no connections');
	$session->quit;

	# After a restart no worker looks at it: one has looked at a database that comes
	# later in pg_database.
	$calls->sql('CREATE DATABASE whole');
	$calls->set_up('whole');
	$calls->configure('doubletick.enabled' => 'off');
	eventually(sub { $calls->sql('SHOW doubletick.enabled') eq 'off' }, 'nothing leaves');
	$calls->sql(enqueue('whole'), database => 'whole');
	$node->stop;
	$calls->configure_offline('doubletick.enabled = on');
	$node->start;
	eventually(sub { $calls->has_sent('whole') }, 'a worker looks at another database');
	unlike(slurp_file($node->logfile, $log), qr/FATAL:  cannot connect to invalid database/, 'none has tried the one that was dropped in part');
	$calls->sql("DROP DATABASE $_") foreach 'half', 'whole';
	return;
}

# After a start of the server each database is looked at, two at a time.  Two that
# sessions drain do not keep the others waiting.
sub drained_by_others
{
	local $ENV{PGOPTIONS} = '-c post_auth_delay=0';
	my @databases = map { "other$_" } 1 .. 3;

	$sb->rule(Worker::phone(10), { fault => 'hang' });
	$calls->configure('doubletick.enabled' => 'off');
	eventually(sub { $calls->sql('SHOW doubletick.enabled') eq 'off' }, 'nothing leaves');
	for my $database (@databases)
	{
		$calls->sql("CREATE DATABASE $database");
		$calls->set_up($database, timeout => '5min');
		$calls->sql(enqueue($database, $database eq 'other3' ? 11 : 10), database => $database);
	}

	# Sessions come first, for workers start slowly, as above.
	$node->stop;
	$calls->configure_offline("post_auth_delay = 6\ndoubletick.enabled = on");
	$node->start;
	my @sessions = map { $node->background_psql($_, on_error_stop => 0) } @databases[0, 1];
	$_->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n") foreach @sessions;
	eventually(sub { $calls->has_sent('other1') && $calls->has_sent('other2') }, 'sessions drain two databases');
	$calls->configure('post_auth_delay' => '0');
	eventually(sub { $calls->workers('other1') && $calls->workers('other2') }, 'the workers of these two wait');
	eventually(sub { $calls->has_sent('other3') }, 'another one looks at the third database');
	$calls->sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%'");
	eventually(sub { $calls->has_sent('other1') == 2 && $calls->has_sent('other2') == 2 }, 'when the CALLs are cancelled, the two workers send');
	$sb->clear_rules;
	foreach my $session (@sessions)
	{
		$session->query('SELECT 1');
		$session->{stderr} = '';
		$session->quit;
	}
	return;
}

# An error's message may quote a removal, and everybody may read worker_error.
sub quoting_error
{
	# An operator class that fails, but not for the only row of an index.  An error
	# of this class ends the worker; others would hold the server and role.
	$calls->sql(<<'SQL');
CREATE FUNCTION refuse(text, text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
	$$ BEGIN RAISE EXCEPTION 'phone %', $1 USING ERRCODE = 'cannot_connect_now'; END $$;
CREATE OPERATOR CLASS refusing FOR TYPE text USING btree AS
	OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 refuse(text, text);
TRUNCATE dt_settled;
CREATE INDEX refusing ON dt_settled (phone refusing);
SQL
	$calls->sql(enqueue('quoting_first', 21));
	eventually(sub { $calls->has_sent('quoting_first') && $calls->waiting eq '0' }, 'one row is settled');
	$calls->sql(enqueue('quoting_second', 22));
	eventually(sub { $calls->sql('SELECT worker_error FROM dt_status') ne '' }, 'the next is not: an error ends the worker');
	is($calls->sql('SELECT worker_error FROM dt_status'), '%s (SQLSTATE 57P03)', 'dt_status shows it without what it quotes');
	$calls->sql('DROP INDEX refusing');
	eventually(sub { $calls->waiting eq '0' }, 'when the cause is removed, the row is settled');
	return;
}

# A single-user session has shared memory, but no launcher to wake.
sub single_user
{
	$node->stop;
	enqueue_alone('single_user');
	$node->start;
	eventually(sub { $calls->has_sent('single_user') }, 'after the next start its row is sent');
	return;
}

sub enqueue_alone
{
	my ($tag, $database) = @_;
	my $enqueue = enqueue($tag);
	my ($out, $err) = ('', '');

	ok(IPC::Run::run([ 'postgres', '--single', '-D', $node->data_dir, $database || 'postgres' ],
			'<', \$enqueue, '>', \$out, '2>', \$err), "$tag: a single-user session enqueues") or diag($err);
	return;
}

# A removal became too old while the server was down.  The worker that finds it has
# nothing else to do and leaves at once, but logs it first.
sub given_up
{
	my $log = -s $node->logfile;

	$calls->sql('CREATE DATABASE aged');
	$calls->set_up('aged', retry_for => '1ms');
	$node->stop;
	enqueue_alone('aged', 'aged');
	$node->start;
	eventually(sub { $calls->sql('SELECT state FROM dt_history', database => 'aged') eq 'failed' }, 'it is given up for its age');
	eventually(sub { slurp_file($node->logfile, $log) =~ /WARNING:  gave up 1 removal of role "[^"]+" for server "doubletick", for its age\n[^\n]+DETAIL: [^\n]+\n[^\n]+HINT: [^\n]+\n[^\n]+CONTEXT:  doubletick worker of database "aged"/ }, 'the log says so');
	is($calls->has_sent('aged'), 0, 'it is not sent');
	return;
}

ended_together();
error_in_settling();
dropped_by_force();
strict_settings();
copied();
switched_off_at_start();
switched_on_at_start();
switched_off_while_idle();
half_dropped();
drained_by_others();
quoting_error();
single_user();
given_up();
unlike(slurp_file($node->logfile), qr/PANIC|terminated by signal|TRAP/, 'no process has crashed');
done_testing;

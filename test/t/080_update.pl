
# An update of the extension, while sessions and the worker are at work with the old
# library: it waits for what is in flight, no removal is lost or sent twice, a session
# whose library is of another version is refused with the command that mends it, and
# everything goes on after.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls qw(quote removal attempt eventually);
use Installation;
use Queue qw(open_queue $calls $sb $node new_phone enqueueing requests start_drain await_drain);

my $old = '1.0.0';
my $next = '1.1.0-test';
my $installation = Installation->new;
my $new_files = $installation->build_next($next, 'ALTER TABLE @extschema@.dt_waiting ADD COLUMN note text;');
my $old_files = PostgreSQL::Test::Utils::tempdir() . '/old';
my $update = "ALTER EXTENSION doubletick UPDATE TO '$next'";
my $other_version = qr/^extension "doubletick" has version \Q$next\E in this database, but this session has its library for version \Q$old\E$/;

mkdir $old_files or die "could not make \"$old_files\": $!";
system_or_bail('sh', '-c', "cp '$installation->{pkglibdir}'/doubletick.* '$old_files'");
open_queue(install_path => $installation->path);

# A database with the old version, a server, and a table with the trigger.
sub new_database
{
	my ($database) = @_;

	$calls->sql("CREATE DATABASE $database");
	$calls->set_up($database, timeout => '1min');
	$calls->sql(<<'SQL', database => $database);
CREATE TABLE customers (phone text PRIMARY KEY, tags text[]);
CREATE TRIGGER customers AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW
	EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
INSERT INTO customers VALUES ('919871111111', '{lead,vip}');
SQL
	return;
}

# A session that has called and enqueued, and whose trigger has fired.
sub begin_session
{
	my ($database) = @_;
	my $session = $node->background_psql($database, on_error_stop => 0);

	$session->query_safe("SELECT dt_payload('919876543210', '{lead}')");
	$session->query_safe('BEGIN; ' . enqueueing(new_phone(), ['lead']) . '; ROLLBACK');
	$session->query_safe("BEGIN; UPDATE customers SET tags = '{}'; ROLLBACK");
	return $session;
}

# What becomes of each kind of statement in a session: all of them are refused.
sub all_refused
{
	my ($session, $message, $hint, $name) = @_;
	my %statements = (
		enqueue => enqueueing('919872222222', ['lead']),
		call => removal('919872222222', ['lead']),
		'bulk call' => attempt('919872222222', ['lead']),
		'bulk enqueue' => enqueueing('919872222222', ['lead']) =~ s/dt_enqueue/dt_try_enqueue/r,
		keep => "SELECT dt_keep('919872222222', '{lead}')",
		cancel => 'SELECT dt_cancel(1)',
		retry => 'SELECT dt_retry(1)',
		trigger => "UPDATE customers SET tags = '{}'",
		drain => 'CALL dt_process_queue()',
	);

	$session->query('\set VERBOSITY verbose');
	foreach my $statement (sort keys %statements)
	{
		$session->{stderr} = '';
		$session->query($statements{$statement});
		my ($sqlstate, $said) = $session->{stderr} =~ /ERROR:  (\w{5}): (.*)/;
		my ($hinted) = $session->{stderr} =~ /HINT:  (.*)/;
		is($sqlstate, '55000', "$name: $statement: refused");
		like($said, $message, "$name: $statement: the message");
		like($hinted, $hint, "$name: $statement: the hint");
	}
	$session->{stderr} = '';
	is($session->query('SELECT tags FROM customers'), '{lead,vip}', "$name: the row is as it was");
	is($session->query("SELECT count(*) FROM dt_waiting WHERE phone = '919872222222'"), '0', "$name: nothing was enqueued");
	return;
}

# Waits until a session waits for a lock of this type.
sub waits_for
{
	my ($pid, $type, $name) = @_;

	return eventually(sub { $calls->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted AND locktype = '$type'") }, $name);
}

# Runs a statement in a session without waiting for its end.
sub start_statement
{
	my ($session, $statement) = @_;

	$session->query_until(qr/it begins/, "\\echo it begins\n$statement;\n");
	return;
}

# The update, while requests of a drainer of the old version are in flight.
sub update_at_work
{
	my ($database, $start_draining, $name) = @_;
	my ($done, $again, $failed, $later, $behind, $open_phone) = map { new_phone() } 1 .. 6;
	my $session = begin_session($database);
	my $open = $node->background_psql($database);
	my $updater = $node->background_psql($database, on_error_stop => 0);
	my $pid = $updater->query('SELECT pg_backend_pid()');

	$sb->hold($done, { times => 1 });
	$sb->hold($again, { status => 503, retry_after => '3000', times => 1 });
	$sb->hold($failed, { status => 422, times => 1 });
	$open->query_safe('BEGIN; ' . enqueueing($open_phone, ['lead']));
	$session->query_safe(enqueueing($_, ['lead'])) foreach $done, $again, $failed;
	my $finish_draining = $start_draining->();
	$sb->await_held(1, $_) foreach $done, $again, $failed;

	# It waits for the requests, and meanwhile nobody waits for it.
	start_statement($updater, $update);
	waits_for($pid, 'advisory', "$name: the update waits for the requests in flight");
	like($session->query_safe(enqueueing($_, ['lead'])), qr/^\d+$/, "$name: enqueueing goes on") foreach $later, $done;
	$sb->release($again);
	eventually(sub { $calls->sql("SELECT attempts FROM dt_queue WHERE phone = '$again'", database => $database) eq '1' },
		"$name: an answer that comes meanwhile is settled");
	waits_for($pid, 'advisory', "$name: the update waits for the other requests");
	is(scalar(() = requests($later)), 0, "$name: no other request leaves meanwhile");
	$sb->release;
	$finish_draining->();

	# Then it waits for transactions that have used the tables.
	waits_for($pid, 'relation', "$name: the update waits for an open transaction");
	$open->query_safe('COMMIT');
	$updater->query('SELECT 1');
	is($updater->{stderr}, '', "$name: the update succeeds");
	is($calls->sql("SELECT extversion FROM pg_extension WHERE extname = 'doubletick'", database => $database), $next, "$name: the version is the new one");
	is($calls->sql("SELECT count(*) FROM pg_proc WHERE proname = 'dt_begin_update'", database => $database), '0', "$name: the script leaves no function behind");
	$_->quit foreach $open, $updater;
	return ($session, $done, $again, $failed, $later, $open_phone);
}

# Everything that was enqueued is sent, as often as it must be, when the new library is there.
sub sent_in_the_end
{
	my ($database, $name, $done, $again, $failed, $later, $open_phone) = @_;
	my %expected = ($done => 'lead lead', $again => 'lead', $failed => 'lead', $later => 'lead', $open_phone => 'lead');

	eventually(sub { $calls->sql('SELECT count(*) FROM dt_queue WHERE due_at <= now()', database => $database) eq '0' }, "$name: nothing is left that is due");
	is(join(' ', map { @{ $_->{body}{tags} } } requests($_)), $expected{$_}, "$name: $_ was sent as often as it was enqueued")
	  foreach sort keys %expected;
	is($calls->sql("SELECT string_agg(state, ' ' ORDER BY id) FROM dt_history WHERE phone IN ('$done', '$failed', '$later', '$open_phone')",
			database => $database), 'done done failed done done', "$name: and is in the history");
	is($calls->sql("SELECT attempts FROM dt_queue WHERE phone = '$again'", database => $database), '1', "$name: what is to be tried again waits");
	return;
}

# A session goes on when it has the library of the objects.
sub goes_on
{
	my ($database, $name) = @_;
	my ($phone, $called) = map { new_phone() } 1 .. 2;

	$calls->sql(enqueueing($phone, ['lead']), database => $database);
	my ($answer) = $calls->session(removal($called, ['lead']), { database => $database });
	is(ref $answer->{value}{tags}, 'HASH', "$name: a call succeeds");
	$calls->sql("UPDATE customers SET tags = '{lead}'", database => $database);
	is($calls->sql("SELECT tags FROM dt_queue WHERE phone = '919871111111'
		UNION ALL SELECT tags FROM dt_history WHERE phone = '919871111111'", database => $database), '{vip}', "$name: the trigger fires");
	return;
}

# Not preloaded: the drainer is a session, and the other sessions may stay.
sub not_preloaded
{
	my $draining;
	my @work = update_at_work('apart', sub {
		$draining = start_drain(database => 'apart');
		return sub {
			my $messages = await_drain($draining);
			like($messages, qr/NOTICE:  the queue makes way for an update of extension "doubletick"/, 'CALL: it says why it ends');
			like($messages, qr/queue: 1 done, 1 failed, /, 'CALL: and what it has done');
		};
	}, 'CALL');
	my $session = shift @work;

	all_refused($session, $other_version, qr/^Connect again\. /, 'CALL: an old session');
	like($session->query("SELECT held FROM dt_status WHERE server = 'doubletick'"),
		qr/^role \S+: extension "doubletick" has version \Q$next\E in this database/, 'CALL: dt_status says why nothing is sent');
	$installation->install($new_files);
	all_refused($session, $other_version, qr/^Connect again\. /, 'CALL: an old session when the new library is there');
	$session->quit;
	goes_on('apart', 'CALL: a new session');
	Queue::drain(database => 'apart');
	sent_in_the_end('apart', 'CALL', @work);
	$calls->sql('DROP DATABASE apart');
	return;
}

# Preloaded: all sessions have the old library until the server is restarted.
sub preloaded
{
	my @work = update_at_work('shop', sub { return sub { } }, 'worker');
	my $session = shift @work;
	my $restart = qr/^Restart the server, which has preloaded the library\. /;

	all_refused($session, $other_version, $restart, 'worker: an old session');
	$session->quit;
	$session = $node->background_psql('shop', on_error_stop => 0);
	all_refused($session, $other_version, $restart, 'worker: a new session');
	eventually(sub { $session->query("SELECT worker_error FROM dt_status WHERE server = 'doubletick'") =~ /has version %s in this database.*55000/ },
		'worker: it has failed, and says why');
	like(slurp_file($node->logfile), qr/doubletick worker makes way: the extension is to be updated/, 'worker: it made way for the update');
	$session->quit;

	# The other database is still of the old version then.
	my $phone = new_phone();
	$calls->sql("ALTER SYSTEM SET doubletick.enabled = off");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT NOT current_setting('doubletick.enabled')::bool");
	$calls->sql(enqueueing($phone, ['lead']), database => 'later');
	$calls->sql("ALTER SYSTEM RESET doubletick.enabled");
	$installation->install($new_files);
	$node->restart;
	goes_on('shop', 'worker: after the restart');
	sent_in_the_end('shop', 'worker', @work);
	is(scalar(() = requests($phone)), 0, 'later: nothing is sent for objects of the old version');
	return $phone;
}

# The new library is there before the database is updated.
sub library_first
{
	my ($phone) = @_;
	my $message = qr/^extension "doubletick" has version \Q$old\E in this database, but this session has its library for version \Q$next\E$/;
	my $hint = qr/^Execute ALTER EXTENSION doubletick UPDATE\.$/;
	my $session = $node->background_psql('later', on_error_stop => 0);

	all_refused($session, $message, $hint, 'later');
	eventually(sub { $session->query("SELECT worker_error FROM dt_status WHERE server = 'doubletick'") =~ /has version %s in this database/ }, 'later: the worker has failed');
	$session->query_safe('ALTER EXTENSION doubletick UPDATE');
	goes_on('later', 'later: when the hint is followed');
	eventually(sub { scalar(() = requests($phone)) }, 'later: the worker sends what has waited');
	$session->query_safe(enqueueing(new_phone(), ['lead']));
	is($session->{stderr}, '', 'later: and the session that did it goes on');
	$session->quit;
	return;
}

new_database($_) foreach qw(apart shop later);
$installation->install_scripts($new_files);
not_preloaded();

# From here on with the worker, and again with the old library.
$installation->install($old_files);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'doubletick'\ndoubletick.worker_idle_timeout = '1h'\n");
$node->restart;
library_first(preloaded());
done_testing;


# The door to the queue: what comes in and for whom, when it may leave, who sees
# it, and what cancel, retry and keeps take back. The sandbox's journal tells
# what has left.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new(
	sandbox => [ '--key', 'key_sandbox', '--key', 'key_app' ],
	options => { timeout => '1min' },
	conf => <<'CONF');
max_prepared_transactions = 10
wal_level = replica
max_wal_senders = 5
CONF
my $sb = $calls->sandbox;
my $node = $calls->node;

# Each test has customers of its own.
my $nphones = 0;

sub new_phone { return sprintf '91987%07d', ++$nphones; }

# An enqueueing, as a statement for session() or sql().
sub enqueue
{
	my ($phone, $names, $fields, $waba) = @_;

	return removal($phone, $names, $fields, $waba) =~ s/dt_remove/dt_enqueue_remove/r;
}

# Drains the queue in a session of its own; what it says.
sub drain
{
	my (%with) = @_;
	my ($stdout, $stderr);
	my $status = $node->psql($with{database} || 'postgres', 'CALL dt_process_queue()',
		stdout => \$stdout, stderr => \$stderr);

	is($status, 0, 'the queue is drained') or diag($stderr);
	return $stderr;
}

# A session that drains, and its process id.
sub draining
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');

	$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
	return ($session, $pid);
}

# Breaks off the CALL of such a session, and ends it.
sub break_off
{
	my ($session, $pid) = @_;

	$calls->sql("SELECT pg_cancel_backend($pid)");
	$session->query('SELECT 1');
	like($session->{stderr}, qr/canceling statement due to user request/, 'the CALL was under way until now');
	$session->quit;
	return;
}

# What was received for a phone: names in order, a request each.
sub received
{
	my ($phone) = @_;

	return map { join ',', @{ $_->{body}{tags} }, map { "=$_" } @{ $_->{body}{customFields} } }
	  grep { $_->{body}{phone} eq $phone } @{ $sb->journal };
}

sub is_received
{
	my ($phone, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(join(' ', received($phone)), $expected, $name);
}

# A row's state: of the history, or "waiting", or "none".
sub state_of
{
	my ($id) = @_;

	return $calls->sql("SELECT coalesce((SELECT state FROM dt_history WHERE id = $id),
		(SELECT 'waiting' FROM dt_queue WHERE id = $id), 'none')");
}

# What fails, and how: SQLSTATE of a statement that is not a SELECT.
sub sqlstate_of
{
	my ($sql, $on) = @_;
	my $stderr;

	($on || $node)->psql('postgres', "\\set VERBOSITY verbose\n$sql", stderr => \$stderr);
	return $stderr =~ /ERROR:  (\w{5}):/ ? $1 : "none: $stderr";
}

sub refused
{
	my $phone = new_phone();
	my %refused = (
		'no phone' => [ '22004', undef, ['lead'] ],
		'a phone that is none' => [ '22023', '98765 43210', ['lead'] ],
		'a waba that is none' => [ '22023', $phone, ['lead'], undef, '0123456789' ],
		'nothing to remove' => [ '22023', $phone ],
		'empty arrays' => [ '22023', $phone, [], [] ],
		'an empty name' => [ '22023', $phone, [''] ],
		'too many names' => [ '22023', $phone, [ 1 .. 1000 ], ['one more'] ],);

	foreach my $what (sort keys %refused)
	{
		my ($sqlstate, @arguments) = @{ $refused{$what} };
		my ($got) = $calls->session(enqueue(@arguments));

		is($got->{sqlstate}, $sqlstate, "$what: SQLSTATE");
		shape_ok($got, $what);
	}
	my ($null_name, $matrix) = $calls->session(
		"SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{lead, NULL}')",
		"SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{{lead}, {vip}}')");
	is($null_name->{sqlstate}, '22004', 'a null name: SQLSTATE');
	is($matrix->{sqlstate}, '22023', 'an array of two dimensions: SQLSTATE');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'nothing of this is stored');
	return;
}

sub stored
{
	my $phone = new_phone();
	my @ids = split /\n/, $calls->sql(join ';',
		enqueue("+$phone", [ 'lead', 'vip', 'lead' ], ['plan'], '919812345678'),
		enqueue(new_phone(), undef, [ 'plan', "\x{1F600} ' \" \\" ]));

	cmp_ok($ids[0], '<', $ids[1], 'ids rise');
	is($calls->sql("SELECT id = $ids[0], server, role = current_user, enqueued_by = current_user, phone,
			tags, fields, waba, attempts, enqueued_at <= clock_timestamp(), due_at <= clock_timestamp(),
			last_error IS NULL
		FROM dt_queue WHERE id = $ids[0]"),
		"t|doubletick|t|t|+$phone|{lead,vip}|{plan}|919812345678|0|t|t|t", 'dt_queue shows what waits');
	is($calls->sql("SELECT tags, waba IS NULL FROM dt_queue WHERE id = $ids[1]"), '{}|t',
		'what was not given is an empty array, or NULL');

	drain();
	is_deeply([ received("+$phone") ], ['lead,vip,=plan'], 'it is received');
	is($calls->sql("SELECT state, attempts, http_status, phone, tags, fields, waba, answer ?& '{tags,customFields}',
			error LIKE '%lead%', settled_at >= enqueued_at
		FROM dt_history WHERE id = $ids[0]"),
		"done|1|201|+$phone|{lead,vip}|{plan}|919812345678|t|t|t", 'dt_history shows what was done, under the same id');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'nothing waits');
	drain();
	is_deeply([ received("+$phone") ], ['lead,vip,=plan'], 'and nothing goes again');
	return;
}

# Rows that PostgreSQL puts out of line are read where no snapshot is active.
sub large
{
	my $phone = new_phone();
	my $names = "(SELECT array_agg(md5(i::text || 'x') || md5(i::text) || md5(i::text || 'y')) FROM generate_series(%d, %d) i)";

	foreach my $part (0 .. 2)
	{
		$calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$phone', "
			  . sprintf($names, $part * 500, $part * 500 + 499) . ')');
		$calls->sql('SELECT dt_enqueue_remove_tags_custom_fields(' . quote(new_phone()) . ', '
			  . sprintf($names, 1, 500) . ')') for 1 .. 5;
	}
	drain();
	is($calls->sql("SELECT count(*), sum(cardinality(tags)) FROM dt_history WHERE phone = '$phone' AND state = 'done'"),
		'3|1500', 'rows of many long names are settled');
	is(join(' ', map { scalar(() = /,/g) + 1 } received($phone)), '1000 500', 'after two requests');
	$sb->clear_journal;
	return;
}

# What a transaction undoes was never there.
sub undone
{
	my %phones = map { $_ => new_phone() } qw(rolled kept savepoint exception handled after);

	$calls->sql('BEGIN; ' . enqueue($phones{rolled}, ['lead']) . '; ROLLBACK');
	$calls->sql(join ';', 'BEGIN', enqueue($phones{kept}, ['lead']), 'SAVEPOINT s',
		enqueue($phones{savepoint}, ['lead']), 'ROLLBACK TO s', enqueue($phones{after}, ['lead']), 'COMMIT');
	$calls->sql(<<"SQL");
DO \$\$
BEGIN
	BEGIN
		PERFORM dt_enqueue_remove_tags_custom_fields('$phones{exception}', '{lead}');
		PERFORM 1 / 0;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM dt_enqueue_remove_tags_custom_fields('$phones{handled}', '{lead}');
	END;
END \$\$
SQL
	drain();
	is_received($phones{$_}, '', "undone: $_") foreach qw(rolled savepoint exception);
	is_received($phones{$_}, 'lead', "committed: $_") foreach qw(kept after handled);
	return;
}

sub prepared
{
	my ($committed, $rolled) = (new_phone(), new_phone());

	$calls->sql('BEGIN; ' . enqueue($committed, ['lead']) . q(; PREPARE TRANSACTION 'committed'));
	$calls->sql('BEGIN; ' . enqueue($rolled, ['lead']) . q(; PREPARE TRANSACTION 'rolled'));
	drain();
	is_received($committed, '', 'what is prepared does not leave');
	$calls->sql(q(COMMIT PREPARED 'committed'));
	$calls->sql(q(ROLLBACK PREPARED 'rolled'));
	drain();
	is_received($committed, 'lead', 'what was prepared and committed does');
	is_received($rolled, '', 'what was prepared and rolled back does not');
	return;
}

# Ids are no order of commits: who comes late is found, by the next CALL, and by
# one that has seen larger ids already.
sub late
{
	my ($early, $late) = (new_phone(), new_phone());
	my $session = $node->background_psql('postgres');
	my $smaller = $session->query_safe('BEGIN; ' . enqueue($late, ['lead']));
	my $larger = $calls->sql(enqueue($early, ['lead']));

	cmp_ok($smaller, '<', $larger, 'the id of the late one is the smaller');
	drain();
	is_received($early, 'lead', 'the larger id is drained');
	$session->query_safe('COMMIT');
	drain();
	is_received($late, 'lead', 'and then the smaller');
	$session->quit;

	# Now in one CALL, that a request without an answer keeps busy.
	my %phones = map { $_ => new_phone() } qw(hanging open subtransaction prepared early later rolled);
	my @open = map { $node->background_psql('postgres') } 1 .. 3;

	$sb->rule($phones{hanging}, { fault => 'hang' });
	$open[0]->query_safe('BEGIN; ' . enqueue($phones{open}, ['lead']));
	$open[1]->query_safe('BEGIN; SAVEPOINT s; ' . enqueue($phones{subtransaction}, ['lead']) . '; RELEASE s');
	$open[2]->query_safe('BEGIN; ' . enqueue($phones{rolled}, ['lead']));
	$calls->sql('BEGIN; ' . enqueue($phones{prepared}, ['lead']) . q(; PREPARE TRANSACTION 'late'));
	$calls->sql(enqueue($phones{hanging}, ['lead']));
	my @draining = draining();
	eventually(sub { received($phones{hanging}) }, 'a drain is under way');
	$calls->sql(enqueue($phones{early}, ['lead']));
	eventually(sub { received($phones{early}) }, 'what is enqueued meanwhile is found');
	$_->query_safe('COMMIT') foreach @open[ 0, 1 ];
	$open[2]->query_safe('ROLLBACK');
	$calls->sql(q(COMMIT PREPARED 'late'));
	eventually(sub { received($phones{$_}) }, "what commits late is found: $_") foreach qw(open subtransaction prepared);
	$calls->sql(enqueue($phones{later}, ['lead']));
	eventually(sub { received($phones{later}) }, 'and so it goes on');
	is_received($phones{rolled}, '', 'but not with what was rolled back');
	break_off(@draining);
	$_->quit foreach @open;
	is_received($phones{$_}, 'lead', "received once: $_") foreach qw(open subtransaction prepared early later);

	# The hanging one was not settled, and goes now.
	$sb->clear_rules;
	drain();
	is_received($phones{hanging}, 'lead lead', 'what was broken off goes again');
	return;
}

# Roles: "app" sends; "other" has nothing to do with it; "member" inherits "app",
# "stranger" may only SET ROLE to it; "monitor" is in pg_monitor.
sub make_roles
{
	$calls->sql(<<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE other LOGIN;
CREATE ROLE member LOGIN;
CREATE ROLE stranger LOGIN NOINHERIT;
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE nobody LOGIN;
GRANT app TO member, stranger;
GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields, dt_cancel, dt_retry TO app, other, member, stranger;
GRANT EXECUTE ON PROCEDURE dt_process_queue TO app;
GRANT USAGE ON FOREIGN SERVER doubletick TO app, other;
CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key 'key_app');
CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_sandbox');
CREATE FUNCTION enqueue_as_app(phone text) RETURNS bigint LANGUAGE sql SECURITY DEFINER
	SET search_path = public, pg_temp
	AS $$ SELECT dt_enqueue_remove_tags_custom_fields(phone, '{lead}') $$;
ALTER FUNCTION enqueue_as_app OWNER TO app;
SQL
	return;
}

# Statements as another role logged in.
sub as
{
	my ($role, @statements) = @_;

	return $calls->sql("SET SESSION AUTHORIZATION $role; " . join(';', @statements));
}

sub whose
{
	my %phones = map { $_ => new_phone() } qw(own set definer);
	my %ids = (
		own => as('app', enqueue($phones{own}, ['lead'])),
		set => as('stranger', 'SET ROLE app', enqueue($phones{set}, ['lead'])),
		definer => as('other', "SELECT enqueue_as_app('$phones{definer}')"),);
	my %expected = (own => 'app|app', set => 'app|app', definer => 'app|other');

	foreach my $how (sort keys %ids)
	{
		is($calls->sql("SELECT role, enqueued_by FROM dt_queue WHERE id = $ids{$how}"), $expected{$how},
			"$how: whose it is, and who caused it");
	}

	# A role that may drain need not have any other right.
	as('app', 'CALL dt_process_queue()');
	foreach my $how (sort keys %ids)
	{
		my ($entry) = grep { $_->{body}{phone} eq $phones{$how} } @{ $sb->journal };

		is($entry->{authorization}, 'key_app', "$how: sent with the key of that role");
		is($calls->sql("SELECT role, enqueued_by, state FROM dt_history WHERE id = $ids{$how}"),
			"$expected{$how}|done", "$how: and so settled");
	}

	# There is no other way in.
	foreach my $role (qw(app monitor nobody))
	{
		foreach my $table (qw(dt_waiting dt_settled dt_hold))
		{
			is(sqlstate_of("SET SESSION AUTHORIZATION $role; $_"), '42501', "$role: $_")
			  foreach "SELECT FROM $table", "DELETE FROM $table", "INSERT INTO $table DEFAULT VALUES",
			  "UPDATE $table SET role = 10";
		}
		is(sqlstate_of("SET SESSION AUTHORIZATION $role; SELECT nextval('dt_waiting_id_seq')"), '42501',
			"$role: no id to be had");
		is(sqlstate_of("SET SESSION AUTHORIZATION $role; UPDATE dt_queue SET role = 'other'"), '55000',
			"$role: dt_queue is not to be written");
	}
	return;
}

# A role that is dropped, with rows that nobody can send any more.
sub dropped
{
	my @phones = map { new_phone() } 1 .. 3;

	$calls->sql('CREATE ROLE gone; GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO gone');
	my @ids = map { as('gone', enqueue($_, ['lead'])) } @phones;
	$calls->sql('DROP OWNED BY gone; DROP ROLE gone');
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE id IN (" . join(',', @ids) . ") AND role LIKE 'unknown%'"), '3',
		'a superuser sees the rows of a dropped role');
	is(as('app', 'SELECT count(*) FROM dt_queue'), '0', 'and others do not');

	# One of which is being cancelled: the drain does not wait for that.
	my $session = $node->background_psql('postgres');
	is($session->query_safe("BEGIN; SELECT dt_cancel($ids[0])"), 't', 'a superuser cancels one, not committed');
	$calls->sql("SET statement_timeout = '30s'; CALL dt_process_queue()");
	is(state_of($ids[0]), 'waiting', 'a drain leaves it alone');
	$session->query_safe('COMMIT');
	drain();
	is(state_of($ids[0]), 'cancelled', 'it is cancelled');
	is($calls->sql("SELECT state, attempts, error FROM dt_history WHERE id = $ids[$_]"), 'failed|0|role does not exist any more',
		'the others fail') foreach 1, 2;
	is_received($_, '', 'none is sent') foreach @phones;
	$session->quit;
	return;
}

sub visible
{
	my %phones = (app => new_phone(), other => new_phone());
	my %ids = map { $_ => as($_, enqueue($phones{$_}, ['lead'])) } keys %phones;
	my $these = "id IN ($ids{app}, $ids{other})";
	my %sees = (
		app => 'app', member => 'app', other => 'other', stranger => '', monitor => '', nobody => '',
		postgres => 'app,other');
	my $superuser = $calls->sql('SELECT current_user');

	foreach my $pass (qw(dt_queue dt_history))
	{
		foreach my $role (sort keys %sees)
		{
			is( as($role eq 'postgres' ? $superuser : $role,
					"SELECT coalesce(string_agg(role, ',' ORDER BY role), '') FROM $pass WHERE $these"),
				$sees{$role}, "$pass: what $role sees");
		}

		# Nor does a condition that tells what it is asked of.
		my $stderr;
		$node->psql('postgres', <<"SQL", stderr => \$stderr, on_error_die => 1);
SET SESSION AUTHORIZATION app;
CREATE TEMP TABLE t (x int);
CREATE FUNCTION pg_temp.tell(phone text) RETURNS boolean LANGUAGE plpgsql COST 0.0001
	AS 'BEGIN RAISE NOTICE ''%'', phone; RETURN true; END';
SELECT count(*) FROM $pass WHERE pg_temp.tell(phone);
SQL
		like($stderr, qr/$phones{app}/, "$pass: a condition sees the reader's rows");
		unlike($stderr, qr/$phones{other}/, "$pass: and no others");

		next if $pass eq 'dt_history';
		is(as('stranger', 'SET ROLE app', "SELECT count(*) FROM dt_queue WHERE $these"), '1',
			'stranger sees them after SET ROLE');
		my %counts = (app => '1', other => '1', member => '1', monitor => '2', $superuser => '2');
		foreach my $role (sort keys %counts)
		{
			is(as($role, 'SELECT waiting, due FROM dt_status'), "$counts{$role}|$counts{$role}", "dt_status: what $role sees");
		}
		is(as($_, 'SELECT count(*) FROM dt_status'), '0', "dt_status: what $_ sees") foreach qw(stranger nobody);
		drain();
	}
	my $whole = as('monitor', 'SELECT * FROM dt_status');
	like($whole, qr/^doubletick\|0\|0\|0\|\d+/, 'dt_status: when all is done');
	unlike($whole, qr/$phones{app}|$phones{other}|lead/, 'dt_status: no phones and no names');
	is(as('other', 'SELECT done FROM dt_status'), '1', 'dt_status: counts what is done of the reader');
	return;
}

sub privileges
{
	my @calls = ("SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}')",
		'SELECT dt_cancel(1)', 'SELECT dt_retry(1)', 'CALL dt_process_queue()');

	is(sqlstate_of("SET SESSION AUTHORIZATION nobody; $_"), '42501', "PUBLIC may not: $_") foreach @calls;
	return;
}

sub read_only
{
	my $id = $calls->sql(enqueue(new_phone(), ['lead']));
	my %writes = (
		'dt_enqueue' => enqueue(new_phone(), ['lead']),
		'dt_cancel' => "SELECT dt_cancel($id)",
		'dt_retry' => "SELECT dt_retry($id)",
		'dt_process_queue' => 'CALL dt_process_queue()',);
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$node->backup('backup');
	$standby->init_from_backup($node, 'backup', has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby);

	foreach my $what (sort keys %writes)
	{
		is(sqlstate_of("SET default_transaction_read_only = on;\n$writes{$what};"), '25006', "$what in a read-only session");
		is(sqlstate_of("$writes{$what};", $standby), '25006', "$what on a standby");
		is(sqlstate_of("BEGIN READ ONLY;\n$writes{$what};"), '25006', "$what in a read-only transaction")
		  if $what ne 'dt_process_queue';
	}
	is($standby->safe_psql('postgres', 'SELECT id FROM dt_queue'), $id, 'a standby shows the queue');
	is($standby->safe_psql('postgres', 'SELECT waiting FROM dt_status'), '1', 'and its status');
	$standby->stop;
	drain();
	return;
}

# At whatever level they run, users neither fail nor wait for the drainer.
sub undisturbed
{
	my ($superuser) = $calls->sql('SELECT current_user');

	foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
	{
		my ($before, $inside) = (new_phone(), new_phone());
		my $session = $node->background_psql('postgres');
		my $old = $calls->sql(enqueue($before, ['lead']));

		$session->query_safe("BEGIN ISOLATION LEVEL $level");
		is($session->query_safe("SELECT count(*) FROM dt_queue WHERE id = $old"), '1', "$level: sees what waits");
		$session->query_safe("SELECT count(*) FROM dt_history; " . enqueue($inside, ['lead']));

		# Even if the drainer's session would have it otherwise.
		$calls->sql("SET default_transaction_isolation = serializable; CALL dt_process_queue()");
		is_received($before, 'lead', "$level: which leaves meanwhile");
		is($session->query_safe("SELECT dt_cancel($old)"), 'f', "$level: cancel knows better than the snapshot");
		$session->query_safe(enqueue($before, ['vip']));
		$session->query_safe('COMMIT');
		drain();
		is_received($before, 'lead vip', "$level: commits");
		is_received($inside, 'lead', "$level: all of it");
		$session->quit;
	}

	my $phone = new_phone();
	$sb->rule($phone, { fault => 'hang' });
	$calls->sql(enqueue($phone, ['lead']));
	my @draining = draining();
	eventually(sub { received($phone) }, 'a request of the customer is out');
	like($calls->sql("SET statement_timeout = '10s'; " . enqueue($phone, ['vip'])), qr/^\d+$/, 'and yet one can enqueue');
	is_received($phone, 'lead', 'one request in flight per customer');
	break_off(@draining);
	$sb->clear_rules;
	drain();
	is_received($phone, 'lead lead,vip', 'what came meanwhile goes with the next one');
	return;
}

sub cancelled
{
	my %phones = map { $_ => new_phone() } qw(waiting other hanging again same statement);

	# Waits: true, and once.
	my $id = $calls->sql(enqueue($phones{waiting}, ['lead']));
	is($calls->sql("SELECT dt_cancel($id)"), 't', 'what waits is cancelled');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'but once');
	is($calls->sql("SELECT state, attempts, http_status IS NULL FROM dt_history WHERE id = $id"), 'cancelled|0|t', 'the history says so');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'what was cancelled cannot be retried');
	is($calls->sql("SELECT dt_cancel(NULL) IS NULL"), 't', 'NULL is strict');
	is($calls->sql("SELECT dt_cancel(9223372036854775807), dt_cancel(-1)"), 'f|f', 'ids that are not there');

	# Whose: that of the row's role.
	$id = as('app', enqueue($phones{other}, ['lead']));
	is(as($_, "SELECT dt_cancel($id)"), 'f', "$_ may not cancel") foreach qw(other stranger);
	drain();
	is_received($phones{other}, 'lead', 'and it goes');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'what is done is not cancelled');
	$id = as('app', enqueue($phones{other}, ['vip']));
	is(as('member', "SELECT dt_cancel($id)"), 't', 'a member may');

	# In flight: false, and so it is.
	$sb->rule($phones{hanging}, { fault => 'hang' });
	$id = $calls->sql(enqueue($phones{hanging}, ['lead']));
	my @draining = draining();
	eventually(sub { received($phones{hanging}) }, 'a request is out');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'what is in flight is not cancelled');
	is($calls->sql("SELECT in_flight FROM dt_status"), '1', 'dt_status knows of it');
	my $next = $calls->sql(enqueue($phones{hanging}, ['next']));
	is($calls->sql("SELECT dt_cancel($next)"), 'f', 'nor, for now, what waits behind it');
	break_off(@draining);
	is($calls->sql("SELECT dt_cancel($next)"), 't', 'which is, when nothing is in flight any more');
	$sb->clear_rules;
	drain();
	is(state_of($id), 'done', 'the one that was in flight goes again');
	is_received($phones{hanging}, 'lead lead', 'alone');

	# Attempted before: out, but false.
	$sb->rule($phones{again}, { status => 503, retry_after => '3000' });
	$id = $calls->sql(enqueue($phones{again}, ['lead']));
	drain();
	is(state_of($id), 'waiting', 'one that waits to be tried again');
	is($calls->sql("SELECT attempts, http_status, last_error IS NOT NULL, due_at > now() + interval '40 min'
		FROM dt_queue WHERE id = $id"), '1|503|t|t', 'as dt_queue says');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', 'has left before');
	is($calls->sql("SELECT state, attempts FROM dt_history WHERE id = $id"), 'cancelled|1', 'but is taken out');
	$sb->clear_rules;
	drain();
	is_received($phones{again}, 'lead', 'and does not go again');

	# In the transaction, and in the statement, of the enqueueing.
	is($calls->sql('BEGIN; ' . enqueue($phones{same}, ['lead']) . " AS id \\gset\nSELECT dt_cancel(:id);\nCOMMIT"), 't',
		'cancelled by the same transaction');
	is($calls->sql('SELECT dt_cancel(' . enqueue($phones{statement}, ['lead']) =~ s/SELECT //r . ')'), 't', 'cancelled by the same statement');
	drain();
	is_received($phones{$_}, '', "cancelled and never sent: $_") foreach qw(waiting same statement);
	return;
}

# A cancel that is not committed yet keeps its row from leaving.
sub cancel_undecided
{
	my %phones = map { $_ => new_phone() } qw(committed rolled savepoint prepared error);
	my %ids = map { $_ => $calls->sql(enqueue($phones{$_}, ['lead'])) } sort keys %phones;
	my @sessions = map { $node->background_psql('postgres') } 1 .. 2;

	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($ids{committed})"), 't', 'cancelled, not committed');
	is($sessions[1]->query_safe("BEGIN; SELECT dt_cancel($ids{rolled})"), 't', 'another');
	is($calls->sql("BEGIN; SAVEPOINT s; SELECT dt_cancel($ids{savepoint}); ROLLBACK TO s; COMMIT"), 't', 'one in a savepoint that is undone');
	is($calls->sql("BEGIN; SELECT dt_cancel($ids{prepared}); PREPARE TRANSACTION 'cancel'"), 't', 'one is prepared');
	drain();
	is_received($phones{$_}, '', "does not leave: $_") foreach qw(committed rolled prepared);
	is_received($phones{savepoint}, 'lead', 'one that was undone leaves');

	$sessions[0]->query_safe('COMMIT');
	$sessions[1]->query_safe('ROLLBACK');
	$calls->sql("COMMIT PREPARED 'cancel'");
	drain();
	is_received($phones{$_}, '', "never leaves: $_") foreach qw(committed prepared);
	is_received($phones{rolled}, 'lead', 'leaves when the cancel is rolled back');
	is(state_of($ids{$_}), 'cancelled', "cancelled: $_") foreach qw(committed prepared);
	is(state_of($ids{rolled}), 'done', 'and is done');

	# The same while one drain goes on.
	my ($hanging, $wanted) = (new_phone(), new_phone());
	$sb->rule($hanging, { fault => 'hang' });
	$calls->sql(enqueue($hanging, ['lead']));
	my $id = $calls->sql(enqueue($wanted, ['lead']));
	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($id)"), 't', 'cancelled, not committed');
	my @draining = draining();
	eventually(sub { received($hanging) }, 'a drain is under way');
	is_received($wanted, '', 'what is being cancelled does not leave');
	$sessions[0]->query_safe('ROLLBACK');
	eventually(sub { received($wanted) }, 'and does when the cancel is rolled back');
	break_off(@draining);

	# Two who cancel: one has it.
	$id = $calls->sql(enqueue(new_phone(), ['lead']));
	is($sessions[0]->query_safe("BEGIN; SELECT dt_cancel($id)"), 't', 'one cancels');
	$sessions[1]->query_until(qr/on its way/, "\\echo on its way\nSELECT 'it is ' || dt_cancel($id);\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") }, 'another waits');
	$sessions[0]->query_safe('COMMIT');
	like($sessions[1]->query('SELECT 1'), qr/it is false/, 'and is told that it has not');
	$_->quit foreach @sessions;
	$sb->clear_rules;
	drain();
	return;
}

# Locks are few, however many rows one transaction takes back.
sub cancel_in_bulk
{
	my $before = $calls->sql("SELECT count(*) FROM dt_history WHERE state = 'cancelled'");

	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields((919870000000 + i)::text, '{lead}'))
		FROM generate_series(1, 20000) i");
	$sb->clear_journal;
	is($calls->sql('SELECT count(*) FILTER (WHERE dt_cancel(id)) FROM dt_queue'), '20000', '20,000 rows are cancelled at once');
	is($calls->sql("SELECT count(*) - $before FROM dt_history WHERE state = 'cancelled'"), '20000', 'all of them');
	drain();
	is(scalar @{ $sb->journal }, 0, 'none of them leaves');
	return;
}

sub retried
{
	my ($phone, $other) = (new_phone(), new_phone());

	$sb->rule($_, { status => 422 }) foreach $phone, $other;
	my $id = as('app', enqueue("+$phone", [ 'lead', 'vip' ], ['plan'], '919812345678'));
	my $two = $calls->sql(enqueue($other, ['lead']));
	drain();
	is(state_of($id), 'failed', 'refused');
	is(as('other', "SELECT dt_retry($id)"), 'f', 'another role may not retry');
	is(as('stranger', "SELECT dt_retry($id)"), 'f', 'nor one that only may SET ROLE');
	is($calls->sql("BEGIN; SELECT dt_retry($id); ROLLBACK"), 't', 'a retry');
	is(state_of($id), 'failed', 'can be rolled back');

	my $was = $calls->sql("SELECT enqueued_at FROM dt_history WHERE id = $id");
	is(as('member', "SELECT dt_retry($id), dt_retry($id)"), 't|f', 'a member may, once');
	is($calls->sql("SELECT role, phone, tags, fields, waba, attempts, enqueued_at > '$was', last_error IS NULL, http_status IS NULL
		FROM dt_queue WHERE id = $id"), "app|+$phone|{lead,vip}|{plan}|919812345678|0|t|t|t", 'it waits as if it were new');
	is($calls->sql("SELECT count(*) FROM dt_history WHERE id = $id"), '0', 'and is no longer in the history');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'what waits cannot be retried');
	$sb->clear_rules;
	drain();
	is($calls->sql("SELECT state, attempts FROM dt_history WHERE id = $id"), 'done|1', 'it is done');
	is_received("+$phone", 'lead,vip,=plan lead,vip,=plan', 'by the second request');
	is($calls->sql("SELECT dt_retry($id)"), 'f', 'what is done cannot be retried');
	is($calls->sql("SELECT dt_retry(9223372036854775807), dt_retry(-1), dt_retry(NULL)"), 'f|f|', 'nor what is not there');

	# Two who retry: one has it. And it can be cancelled and fail again.
	my @sessions = map { $node->background_psql('postgres') } 1 .. 2;
	is($sessions[0]->query_safe("BEGIN; SELECT dt_retry($two)"), 't', 'one retries');
	$sessions[1]->query_until(qr/on its way/, "\\echo on its way\nSELECT 'it is ' || dt_retry($two);\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") }, 'another waits');
	$sessions[0]->query_safe('COMMIT');
	like($sessions[1]->query('SELECT 1'), qr/it is false/, 'and is told that it has not');
	$_->quit foreach @sessions;
	is($calls->sql("SELECT count(*) FROM dt_waiting WHERE id = $two"), '1', 'it waits once');
	is($calls->sql("SELECT dt_cancel($two)"), 't', 'and can be cancelled');
	is(state_of($two), 'cancelled', 'and is');
	return;
}

# A keep as the trigger would enter it: names that the customer has again.
sub keep
{
	my ($phone, $tags, $fields, $waba) = @_;

	return 'INSERT INTO dt_waiting (id, ord, xact, customer, enqueued_at, due_at, role, enqueued_by, attempts, keep, alone, server, phone, waba, tags, fields)'
	  . ' OVERRIDING SYSTEM VALUE'
	  . " SELECT n, n, pg_current_xact_id()::text::bigint, ltrim('$phone', '+')::bigint, now(), now(), current_user::regrole, current_user::regrole, 0, true, false, 'doubletick', '$phone', "
	  . quote($waba) . ", '{$tags}', '{" . ($fields // '') . "}' FROM nextval('dt_waiting_id_seq') AS n";
}

sub nkeeps { return $calls->sql('SELECT count(*) FROM dt_waiting WHERE keep'); }

sub kept
{
	my %phones = map { $_ => new_phone() } qw(some all earlier waba role retried hanging open);

	# Later keeps take back; the "+" does not matter.
	my %ids = (some => $calls->sql(enqueue($phones{some}, [ 'a', 'b', 'c' ], [ 'a', 'b' ])));
	$calls->sql(keep("+$phones{some}", 'b,z', 'a'));
	is($calls->sql("SELECT tags, fields FROM dt_queue WHERE id = $ids{some}"), '{a,c}|{b}', 'dt_queue shows what is left');
	$ids{all} = $calls->sql(enqueue($phones{all}, ['a'], ['b']));
	$calls->sql($_) foreach keep($phones{all}, 'a'), keep($phones{all}, '', 'b');
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE id = $ids{all}"), '0', 'what is wholly taken back is not shown');
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE attempts IS NULL OR id NOT IN (SELECT id FROM dt_waiting WHERE NOT keep)"), '0', 'nor are keeps');

	# Earlier ones do not.
	$ids{before} = $calls->sql(enqueue($phones{earlier}, ['x']));
	$calls->sql(keep($phones{earlier}, 'a'));
	$ids{earlier} = $calls->sql(enqueue($phones{earlier}, [ 'a', 'b' ]));
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $ids{earlier}"), '{a,b}', 'an earlier keep takes nothing back');

	# Nor those of another customer.
	$ids{waba} = $calls->sql(enqueue($phones{waba}, ['a'], undef, '919812345678'));
	$calls->sql($_) foreach keep($phones{waba}, 'a'), keep($phones{waba}, 'a', '', '919812345679');
	$ids{role} = as('app', enqueue($phones{role}, ['a']));
	$calls->sql(keep($phones{role}, 'a'));
	is($calls->sql("SELECT string_agg(tags::text, ' ') FROM dt_queue WHERE id IN ($ids{waba}, $ids{role})"), '{a} {a}', 'nor does one of another waba or role');

	drain();
	is_received($phones{some}, 'a,c,=b', 'sent without what was taken back');
	is_received($phones{all}, '', 'wholly taken back: not sent');
	is_received($phones{earlier}, 'x,a,b', 'the earlier keep took nothing back');
	is_received($phones{$_}, 'a', "another $_") foreach qw(waba role);
	is($calls->sql("SELECT state, attempts, http_status IS NULL, tags FROM dt_history WHERE id = $ids{all}"), 'cancelled|0|t|{a}', 'wholly taken back: cancelled');
	is(state_of($ids{some}), 'done', 'partly: done');
	is(nkeeps(), '0', 'keeps with nothing left to keep are gone');

	# One that comes while the removal is out changes nothing, and goes.
	$sb->rule($phones{hanging}, { delay_ms => 1000 });
	$ids{hanging} = $calls->sql(enqueue($phones{hanging}, ['a']));
	my ($session, $pid) = draining();
	eventually(sub { received($phones{hanging}) }, 'a request is out');
	$calls->sql(keep($phones{hanging}, 'a'));
	is(state_of($ids{hanging}), 'none', 'dt_queue shows it as taken back');
	$session->query('SELECT 1');
	is(state_of($ids{hanging}), 'done', 'but it was out, and is done');
	is(nkeeps(), '0', 'and the keep goes with it');
	$session->quit;

	# Out, and to be tried again: then it does.
	$sb->rule($phones{hanging}, { status => 503, delay_ms => 300, times => 1 });
	$ids{hanging} = $calls->sql(enqueue($phones{hanging}, [ 'a', 'b' ]));
	($session, $pid) = draining();
	eventually(sub { received($phones{hanging}) == 2 }, 'a request is out');
	$calls->sql(keep($phones{hanging}, 'a'));
	$session->query('SELECT 1');
	$session->quit;
	eventually(sub { drain(); state_of($ids{hanging}) eq 'done' }, 'it is tried again');
	is_received($phones{hanging}, 'a a,b b', 'without what came back meanwhile');
	is(nkeeps(), '0', 'and the keep goes with it');

	# Removal and keep of a transaction that is still open.
	$session = $node->background_psql('postgres');
	$ids{open} = $calls->sql(enqueue($phones{open}, [ 'a', 'b' ]));
	$session->query_safe('BEGIN; ' . keep($phones{open}, 'b'));
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $ids{open}"), '{a,b}', 'a keep counts when it is committed');
	$session->query_safe('ROLLBACK');
	drain();
	is_received($phones{open}, 'a,b', 'and not at all when it is rolled back');
	$calls->sql(enqueue($phones{open}, ['c']));
	$session->query_safe('BEGIN; ' . enqueue($phones{open}, ['d']));
	$calls->sql(keep($phones{open}, 'c,d'));
	drain();
	is(nkeeps(), '1', 'a keep stays while a removal before it may yet commit');
	$session->query_safe('COMMIT');
	drain();
	is_received($phones{open}, 'a,b', 'and takes that back too');
	is(nkeeps(), '0', 'and goes then');
	$session->quit;

	# dt_retry is newer than what came back before it.
	$sb->rule($phones{retried}, { status => 422, times => 1 });
	$ids{retried} = $calls->sql(enqueue($phones{retried}, ['a']));
	drain();
	$session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; ' . enqueue($phones{retried}, ['z']));
	$calls->sql(keep($phones{retried}, 'a'));
	is($calls->sql("SELECT dt_retry($ids{retried})"), 't', 'a retry, after its name came back');
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $ids{retried}"), '{a}', 'is shown');
	drain();
	is_received($phones{retried}, 'a a', 'and goes');
	$session->query_safe('ROLLBACK');
	$session->quit;
	drain();
	is(nkeeps(), '0', 'no keep is left');
	return;
}

# A dump has no rows of the queue; a database restored under another name sends
# nothing when the server says which database it is of.
sub restored
{
	my $dump = "$PostgreSQL::Test::Utils::tmp_check/dump.sql";
	my ($phone, $copied, $failed) = (new_phone(), new_phone(), new_phone());

	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD database 'postgres')");
	$sb->rule($failed, { status => 422 });
	$calls->sql(enqueue($failed, ['lead']));
	drain();
	$calls->sql(enqueue($phone, ['lead']));
	$node->run_log([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ]);
	unlike(slurp_file($dump), qr/$phone|$failed|COPY public\.dt_|dt_waiting|dt_settled|dt_hold/, 'a dump has nothing of the queue');

	$calls->sql('CREATE DATABASE restored');
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $dump ], 'it is restored under another name');
	my @restored = (database => 'restored');
	is($calls->sql('SELECT count(*) FROM dt_waiting', @restored), '0', 'nothing waits there');
	$calls->sql(enqueue($copied, ['lead']), @restored);
	like(drain(@restored), qr/WARNING:  requests of role .* are held: .*database/, 'it is warned of');
	is_received($copied, '', 'what is enqueued there is not sent');
	like($calls->sql('SELECT waiting, due, in_flight, held FROM dt_status', @restored), qr/^1\|1\|0\|.*sends nothing from database "restored"/, 'dt_status says why');
	$calls->sql('CREATE DATABASE copied TEMPLATE restored');
	drain(database => 'copied');
	is_received($copied, '', 'nor by a copy of the files');

	drain();
	is_received($phone, 'lead', 'what waits in the first one is sent');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP database)', @restored);
	drain(@restored);
	is_received($copied, 'lead', 'and that of the other when its server is changed');
	return;
}

refused();
stored();
large();
undone();
prepared();
late();
make_roles();
whose();
dropped();
visible();
privileges();
read_only();
undisturbed();
cancelled();
cancel_undecided();
cancel_in_bulk();
retried();
kept();
restored();
done_testing;


# Enqueueing: what is stored and for whom, when it is sent, and who sees it. Cancels,
# retries and keeps are tested in 035_cancel.pl.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(conf => <<'CONF');
max_prepared_transactions = 10
wal_level = replica
max_wal_senders = 5
CONF

sub refused
{
	my $phone = new_phone();
	my %refused = (
		'no phone' => [ '22004', undef, ['lead'] ],
		'a phone that is not a number' => [ '22023', '98765 43210', ['lead'] ],
		'a waba that is not a number' => [ '22023', $phone, ['lead'], undef, waba => '0123456789' ],
		'nothing to remove' => [ '22023', $phone ],
		'empty arrays' => [ '22023', $phone, [], [] ],
		'an empty name' => [ '22023', $phone, [''] ],
		'too many names' => [ '22023', $phone, [ 1 .. 1000 ], ['one more'] ],);

	foreach my $what (sort keys %refused)
	{
		my ($sqlstate, @arguments) = @{ $refused{$what} };
		my ($got) = $calls->session(enqueueing(@arguments));

		is($got->{sqlstate}, $sqlstate, "$what: SQLSTATE");
		shape_ok($got, $what);
	}
	my ($null_name, $matrix) = $calls->session(
		"SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{lead, NULL}')",
		"SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{{lead}, {vip}}')");
	is($null_name->{sqlstate}, '22004', 'a null name: SQLSTATE');
	is($matrix->{sqlstate}, '22023', 'an array of two dimensions: SQLSTATE');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'none of these is stored');
	return;
}

sub stored
{
	my $phone = new_phone();
	my @ids = split /\n/, $calls->sql(join ';',
		enqueueing("+$phone", [ 'lead', 'vip', 'lead' ], ['plan'], waba => '919812345678'),
		enqueueing(new_phone(), undef, [ 'plan', "\x{1F600} ' \" \\" ]));

	cmp_ok($ids[0], '<', $ids[1], 'ids rise');
	is($calls->sql("SELECT id = $ids[0], server, role = current_user, enqueued_by = current_user, phone,
			tags, fields, waba, attempts, enqueued_at <= clock_timestamp(), due_at <= clock_timestamp(),
			last_error IS NULL
		FROM dt_queue WHERE id = $ids[0]"),
		"t|doubletick|t|t|+$phone|{lead,vip}|{plan}|919812345678|0|t|t|t", 'dt_queue shows what waits');
	is($calls->sql("SELECT tags, waba IS NULL FROM dt_queue WHERE id = $ids[1]"), '{}|t',
		'what was not given is an empty array, or NULL');

	drain();
	is_deeply([ received("+$phone") ], ['lead,vip,=plan'], 'it is sent');
	is($calls->sql("SELECT state, attempts, http_status, phone, tags, fields, waba, answer ?& '{tags,customFields}',
			error LIKE '%lead%', settled_at >= enqueued_at
		FROM dt_history WHERE id = $ids[0]"),
		"done|1|201|+$phone|{lead,vip}|{plan}|919812345678|t|t|t", 'dt_history shows what was done, under the same id');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'nothing waits');
	drain();
	is_deeply([ received("+$phone") ], ['lead,vip,=plan'], 'the next CALL does not send it again');
	return;
}

# Names that PostgreSQL stores in a TOAST table are read when no snapshot is active.
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
		'3|1500', 'rows with many long names are settled');
	is(join(' ', map { scalar(() = /,/g) + 1 } received($phone)), '1000 500', 'after two requests');
	$sb->clear_journal;
	return;
}

# What a transaction rolls back is never sent.
sub undone
{
	my %phones = map { $_ => new_phone() } qw(rolled kept savepoint exception handled after);

	$calls->sql('BEGIN; ' . enqueueing($phones{rolled}, ['lead']) . '; ROLLBACK');
	$calls->sql(join ';', 'BEGIN', enqueueing($phones{kept}, ['lead']), 'SAVEPOINT s',
		enqueueing($phones{savepoint}, ['lead']), 'ROLLBACK TO s', enqueueing($phones{after}, ['lead']), 'COMMIT');
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
	is_received($phones{$_}, '', "rolled back, and not sent: $_") foreach qw(rolled savepoint exception);
	is_received($phones{$_}, 'lead', "committed, and sent: $_") foreach qw(kept after handled);
	return;
}

sub prepared
{
	my ($committed, $rolled) = (new_phone(), new_phone());

	$calls->sql('BEGIN; ' . enqueueing($committed, ['lead']) . q(; PREPARE TRANSACTION 'committed'));
	$calls->sql('BEGIN; ' . enqueueing($rolled, ['lead']) . q(; PREPARE TRANSACTION 'rolled'));
	drain();
	is_received($committed, '', 'a prepared transaction sends nothing');
	$calls->sql(q(COMMIT PREPARED 'committed'));
	$calls->sql(q(ROLLBACK PREPARED 'rolled'));
	drain();
	is_received($committed, 'lead', 'once it is committed, its removal is sent');
	is_received($rolled, '', 'once it is rolled back, its removal never is');
	return;
}

# Transactions do not commit in the order of their ids. A row that is committed late
# is found, by the next CALL and by one that has already seen larger ids.
sub late
{
	my ($early, $late) = (new_phone(), new_phone());
	my $session = $node->background_psql('postgres');
	my $smaller = $session->query_safe('BEGIN; ' . enqueueing($late, ['lead']));
	my $larger = enqueue($early, ['lead']);

	cmp_ok($smaller, '<', $larger, 'the row that commits late has the smaller id');
	drain();
	is_received($early, 'lead', 'the larger id is sent');
	$session->query_safe('COMMIT');
	drain();
	is_received($late, 'lead', 'and the smaller one by the next CALL');
	$session->quit;

	# Now during one CALL, which does not end as long as a request is not answered.
	my %phones = map { $_ => new_phone() } qw(hanging open subtransaction prepared early later rolled);
	my @open = map { $node->background_psql('postgres') } 1 .. 3;

	$sb->rule($phones{hanging}, { fault => 'hang' });
	$open[0]->query_safe('BEGIN; ' . enqueueing($phones{open}, ['lead']));
	$open[1]->query_safe('BEGIN; SAVEPOINT s; ' . enqueueing($phones{subtransaction}, ['lead']) . '; RELEASE s');
	$open[2]->query_safe('BEGIN; ' . enqueueing($phones{rolled}, ['lead']));
	$calls->sql('BEGIN; ' . enqueueing($phones{prepared}, ['lead']) . q(; PREPARE TRANSACTION 'late'));
	enqueue($phones{hanging}, ['lead']);
	my $drain = start_drain();
	eventually(sub { received($phones{hanging}) }, 'a request is out');
	enqueue($phones{early}, ['lead']);
	eventually(sub { received($phones{early}) }, 'a row that is enqueued meanwhile is sent');
	$_->query_safe('COMMIT') foreach @open[ 0, 1 ];
	$open[2]->query_safe('ROLLBACK');
	$calls->sql(q(COMMIT PREPARED 'late'));
	eventually(sub { received($phones{$_}) }, "a row that commits late is sent: $_") foreach qw(open subtransaction prepared);
	enqueue($phones{later}, ['lead']);
	eventually(sub { received($phones{later}) }, 'so is one that is enqueued later');
	is_received($phones{rolled}, '', 'a row that was rolled back is not');
	break_off($drain);
	$_->quit foreach @open;
	is_received($phones{$_}, 'lead', "sent once: $_") foreach qw(open subtransaction prepared early later);

	# The request that was not answered is not settled, and is sent again.
	$sb->clear_rules;
	drain();
	is_received($phones{hanging}, 'lead lead', 'the request that was broken off is sent again');
	return;
}

sub whose
{
	my %phones = map { $_ => new_phone() } qw(own set definer);
	my %ids = (
		own => as('app', enqueueing($phones{own}, ['lead'])),
		set => as('stranger', 'SET ROLE app', enqueueing($phones{set}, ['lead'])),
		definer => as('other', "SELECT enqueue_as_app('$phones{definer}')"),);
	my %expected = (own => 'app|app', set => 'app|app', definer => 'app|other');

	foreach my $how (sort keys %ids)
	{
		is($calls->sql("SELECT role, enqueued_by FROM dt_queue WHERE id = $ids{$how}"), $expected{$how},
			"$how: the role, and who enqueued it");
	}

	# A role that may call the procedure needs no other right.
	as('app', 'CALL dt_process_queue()');
	foreach my $how (sort keys %ids)
	{
		my ($entry) = grep { $_->{body}{phone} eq $phones{$how} } @{ $sb->journal };

		is($entry->{authorization}, 'key_app', "$how: sent with the key of that role");
		is($calls->sql("SELECT role, enqueued_by, state FROM dt_history WHERE id = $ids{$how}"),
			"$expected{$how}|done", "$how: settled for that role");
	}

	# The tables cannot be read or written in another way.
	foreach my $role (qw(app monitor nobody))
	{
		foreach my $table (qw(dt_waiting dt_settled dt_hold))
		{
			is(sqlstate_of("SET SESSION AUTHORIZATION $role; $_"), '42501', "$role: $_")
			  foreach "SELECT FROM $table", "DELETE FROM $table", "INSERT INTO $table DEFAULT VALUES",
			  "UPDATE $table SET role = 10";
		}
		is(sqlstate_of("SET SESSION AUTHORIZATION $role; SELECT nextval('dt_waiting_id_seq')"), '42501',
			"$role: cannot use the sequence");
		is(sqlstate_of("SET SESSION AUTHORIZATION $role; UPDATE dt_queue SET role = 'other'"), '55000',
			"$role: cannot write dt_queue");
	}
	return;
}

# A role is dropped; nobody can send its rows any more.
sub dropped
{
	my @phones = map { new_phone() } 1 .. 3;

	$calls->sql('CREATE ROLE gone; GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO gone');
	my @ids = map { as('gone', enqueueing($_, ['lead'])) } @phones;
	$calls->sql('DROP OWNED BY gone; DROP ROLE gone');
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE id IN (" . join(',', @ids) . ") AND role LIKE 'unknown%'"), '3',
		'a superuser sees the rows of a dropped role');
	is(as('app', 'SELECT count(*) FROM dt_queue'), '0', 'other roles do not');

	# One of them is being cancelled; the drain does not wait for the end of that.
	my $session = $node->background_psql('postgres');
	is($session->query_safe("BEGIN; SELECT dt_cancel($ids[0])"), 't', 'a superuser cancels one, not committed');
	$calls->sql("SET statement_timeout = '30s'; CALL dt_process_queue()");
	is(states($ids[0]), 'waiting', 'the drain leaves it alone');
	$session->query_safe('COMMIT');
	drain();
	is(states($ids[0]), 'cancelled', 'it is cancelled when the transaction commits');
	is($calls->sql("SELECT state, attempts, error FROM dt_history WHERE id = $ids[$_]"), 'failed|0|role does not exist any more',
		'the others fail') foreach 1, 2;
	is_received($_, '', 'none is sent') foreach @phones;
	$session->quit;
	return;
}

sub visible
{
	my %phones = (app => new_phone(), other => new_phone());
	my %ids = map { $_ => as($_, enqueueing($phones{$_}, ['lead'])) } keys %phones;
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

		# A function that raises its argument sees only the reader's rows, too.
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
			'stranger sees the rows after SET ROLE');
		my %counts = (app => '1', other => '1', member => '1', monitor => '2', $superuser => '2');
		foreach my $role (sort keys %counts)
		{
			is(as($role, 'SELECT waiting, due FROM dt_status'), "$counts{$role}|$counts{$role}", "dt_status: what $role sees");
		}
		is(as($_, 'SELECT waiting, due FROM dt_status'), '0|0', "dt_status: what $_ sees") foreach qw(stranger nobody);
		drain();
	}
	my $whole = as('monitor', 'SELECT * FROM dt_status');
	like($whole, qr/^doubletick\|0\|0\|0\|\d+/, 'dt_status: when all is done');
	unlike($whole, qr/$phones{app}|$phones{other}|lead/, 'dt_status: no phones and no names');
	is(as('other', 'SELECT done FROM dt_status'), '1', 'dt_status: counts what is done for the reader\'s roles');
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
	my $id = enqueue(new_phone(), ['lead']);
	my %writes = (
		'dt_enqueue' => enqueueing(new_phone(), ['lead']),
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

# At any isolation level, users neither fail because of the drainer nor wait for it.
sub undisturbed
{
	my ($superuser) = $calls->sql('SELECT current_user');

	foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
	{
		my ($before, $inside) = (new_phone(), new_phone());
		my $session = $node->background_psql('postgres');
		my $old = enqueue($before, ['lead']);

		$session->query_safe("BEGIN ISOLATION LEVEL $level");
		is($session->query_safe("SELECT count(*) FROM dt_queue WHERE id = $old"), '1', "$level: the transaction sees a row that waits");
		$session->query_safe("SELECT count(*) FROM dt_history; " . enqueueing($inside, ['lead']));

		# The drainer's own isolation level makes no difference.
		$calls->sql("SET default_transaction_isolation = serializable; CALL dt_process_queue()");
		is_received($before, 'lead', "$level: the row is sent meanwhile");
		is($session->query_safe("SELECT dt_cancel($old)"), 'f', "$level: dt_cancel sees that the row is gone, although the snapshot does not");
		$session->query_safe(enqueueing($before, ['vip']));
		$session->query_safe('COMMIT');
		drain();
		is_received($before, 'lead vip', "$level: what the transaction enqueued is sent");
		is_received($inside, 'lead', "$level: all of it, for each customer");
		$session->quit;
	}

	my $phone = new_phone();
	$sb->rule($phone, { fault => 'hang' });
	enqueue($phone, ['lead']);
	my $drain = start_drain();
	eventually(sub { received($phone) }, 'a request of the customer is out');
	like($calls->sql("SET statement_timeout = '10s'; " . enqueueing($phone, ['vip'])), qr/^\d+$/, 'another removal for the customer is enqueued without waiting');
	is_received($phone, 'lead', 'it is not sent while the first request is out');
	break_off($drain);
	$sb->clear_rules;
	drain();
	is_received($phone, 'lead lead,vip', 'it is sent with the next request');
	return;
}

# A dump has no rows of the queue. A database that is restored under another name
# sends nothing if the server has the option "database".
sub restored
{
	my $dump = "$PostgreSQL::Test::Utils::tmp_check/dump.sql";
	my ($phone, $copied, $failed) = (new_phone(), new_phone(), new_phone());

	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD database 'postgres')");
	$sb->rule($failed, { status => 422 });
	enqueue($failed, ['lead']);
	drain();
	enqueue($phone, ['lead']);
	$node->run_log([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ]);
	unlike(slurp_file($dump), qr/$phone|$failed|COPY public\.dt_|dt_waiting|dt_settled|dt_hold/, 'a dump has no rows of the queue');

	$calls->sql('CREATE DATABASE restored');
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $dump ], 'it can be restored under another name');
	my @restored = (database => 'restored');
	is($calls->sql('SELECT count(*) FROM dt_waiting', @restored), '0', 'nothing waits there');
	enqueue($copied, ['lead'], undef, @restored);
	like(drain(@restored), qr/WARNING:  requests of role .* are held: .*database/, 'a CALL there warns that requests are held');
	is_received($copied, '', 'a removal that is enqueued there is not sent');
	like($calls->sql('SELECT waiting, due, in_flight, held FROM dt_status', @restored), qr/^1\|1\|0\|.*sends nothing from database "restored"/, 'dt_status says why');
	$calls->sql('CREATE DATABASE copied TEMPLATE restored');
	drain(database => 'copied');
	is_received($copied, '', 'nor is it from a copy of that database');

	drain();
	is_received($phone, 'lead', 'the first database goes on to send');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP database)', @restored);
	drain(@restored);
	is_received($copied, 'lead', 'the restored one sends when the option is dropped');
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
restored();
done_testing;

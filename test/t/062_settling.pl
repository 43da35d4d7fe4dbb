
# What may happen between an answer and the commit that settles it, and to the rows
# that wait: locks and deadlocks, a disk that is full, a standby that does not
# confirm, rows that cannot be read or are gone, and answers of any form.

use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1, conf => "autovacuum = off\nwal_level = replica\nmax_wal_senders = 3\n");
$calls->server('second', base_url => $sb->http);

# A drain whose answer for a new customer is held; and that customer's removal.
sub drain_with_an_answer
{
	my (%with) = @_;
	my $phone = new_phone();

	$sb->hold($phone, { times => 1 });
	my $id = enqueue($phone, ['lead']);
	my $drain = start_drain(%with);
	$sb->await_held(1, $phone);
	return ($drain, $phone, $id);
}

# Has the process a wait of this kind?
sub waits_for
{
	my ($pid, $event, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND $event") eq '1' }, $name);
}

# An administrator locks our tables in another order than the drainer.
sub deadlock
{
	my ($drain, $phone, $id) = drain_with_an_answer(before => "SET deadlock_timeout = '3s'");
	my $locker = $node->background_psql('postgres', on_error_stop => 0);

	$locker->query_safe("SET deadlock_timeout = '1h'; BEGIN; LOCK TABLE dt_settled");
	$sb->release($phone);
	waits_for($drain->{pid}, "wait_event_type = 'Lock'", 'deadlock: the drain waits for one table');
	$locker->query_until(qr/on its way/, "\\echo on its way\nLOCK TABLE dt_waiting;\n");
	is($locker->query("SELECT 'locked'"), 'locked', 'deadlock: it is the drain that gives way');
	waits_for($drain->{pid}, "wait_event_type = 'Lock'", 'deadlock: and waits again');
	$locker->query_safe('COMMIT');
	$locker->quit;
	unlike(await_drain($drain), qr/ERROR/, 'deadlock: the CALL goes on');
	is(states($id), 'done', 'deadlock: the answer is settled');
	is_received($phone, 'lead', 'deadlock: and the request is sent once');
	return;
}

# The session's own timeouts end a CALL that waits for a lock; what users enqueue
# waits for an administrator's lock as it does for any table, and no longer.
sub locked_tables
{
	my $locker = $node->background_psql('postgres');
	my %sqlstate = ("SET lock_timeout = '50ms'" => '55P03', "SET statement_timeout = '50ms'" => '57014');

	foreach my $table (qw(dt_waiting dt_settled dt_hold))
	{
		$locker->query_safe("BEGIN; LOCK TABLE $table");
		foreach my $setting (sort keys %sqlstate)
		{
			is(sqlstate_of("$setting;\nCALL dt_process_queue();"), $sqlstate{$setting}, "$table is locked: CALL, $setting");
			is(sqlstate_of(($table eq 'dt_waiting' ? "$setting;\n" : '') . enqueueing(new_phone(), ['lead']) . ';'), $table eq 'dt_waiting' ? $sqlstate{$setting} : 'none: ',
				"$table is locked: enqueueing, $setting");
		}
		$locker->query_safe('ROLLBACK');
	}
	$locker->quit;
	drain();
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'locked tables: then all are sent');
	return;
}

# SQL's advisory locks, of whatever keys, are none of the drainer's.
sub advisory_locks
{
	my ($drain, $phone, $id) = drain_with_an_answer();
	my $keys = $calls->sql("SELECT string_agg(format('pg_advisory_lock(%s::bigint::bit(32)::int, %s::bigint::bit(32)::int), pg_advisory_lock(%s::bigint << 32 | %s::bigint)', classid, objid, classid, objid), ', ')
		FROM pg_locks WHERE locktype = 'advisory'");
	like($keys, qr/pg_advisory_lock/, 'advisory locks: the drain has some');
	break_off($drain);

	my $locker = $node->background_psql('postgres');
	$locker->query_safe("SET statement_timeout = '20s'; SELECT $keys");
	$sb->clear_rules;
	unlike(drain(), qr/another session drains/, 'advisory locks: those of SQL keep no drain waiting');
	is(states($id), 'done', 'advisory locks: nor a customer');
	$locker->quit;

	# Nor can SQL release them.
	($drain, $phone, $id) = drain_with_an_answer(before => 'SELECT pg_advisory_unlock_all()');
	$calls->sql('SELECT pg_advisory_unlock_all()');
	like(drain(), qr/another session drains/, 'advisory locks: pg_advisory_unlock_all() releases none');
	$sb->release;
	await_drain($drain);
	return;
}

# No table can grow, as on a full disk, while an answer is settled.
sub disk_full
{
	my $limit = 17 * 1024 * 1024;		# more than a segment of the WAL has

	unless (-x '/usr/bin/prlimit')
	{
		note 'there is no prlimit';
		return;
	}
	fresh();
	$calls->sql("INSERT INTO dt_settled SELECT -1, now(), now(), current_user::regrole, current_user::regrole, 0, NULL,
			'failed', 'doubletick', '98765', NULL, '{lead}', '{}', NULL, (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 59) AS i)
		FROM generate_series(1, 9500) AS n");
	cmp_ok($calls->sql("SELECT pg_relation_size('dt_settled')"), '>', $limit, 'disk full: the history is larger than the limit');

	# The last page may have room for a few rows.
	my ($drain, $phone, $id) = drain_with_an_answer();
	my @phones = map { new_phone() } 1 .. 9;
	$sb->hold($_, { times => 1 }) foreach @phones;
	my @ids = map { $calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$_', (SELECT array_agg(md5(n::text)) FROM generate_series(1, 50) AS n))") } @phones;
	$sb->await_held(10);
	my $log = -s $node->logfile;
	system_or_bail('prlimit', "--fsize=$limit:unlimited", '--pid', $drain->{pid});
	$sb->release;
	eventually(sub { (status('doubletick')->{held} // '') =~ /could not extend file/ }, 'disk full: the server and role are held, and dt_status says why');
	my $well = enqueue(new_phone(), ['lead'], undef, server => 'second');
	my $waiting = $calls->sql('SELECT count(*) FROM dt_queue');
	cmp_ok($waiting, '>', 1, 'disk full: what is answered waits');
	cmp_ok(scalar(() = slurp_file($node->logfile, $log) =~ /are held/g), '<=', 2, 'disk full: the log is not filled');
	system_or_bail('prlimit', '--fsize=unlimited', '--pid', $drain->{pid});
	unlike(await_drain($drain), qr/ERROR/, 'disk full: the CALL goes on');
	drain();
	is(states($id, @ids, $well), join(' ', ('done') x 11), 'disk full: all are settled when there is room again');
	is(scalar(() = requests($_)), 1, "disk full: $_ was sent once") foreach $phone, @phones;
	fresh();
	return;
}

# A synchronous standby does not confirm the commit.
sub standby_is_away
{
	my ($drain, $phone, $id) = drain_with_an_answer();

	$calls->sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
	$node->reload;
	my $other = $node->background_psql('postgres');
	$other->query_until(qr/on its way/, "\\echo on its way\nCREATE TABLE unconfirmed ();\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") eq '1' }, 'standby: commits wait for it');
	$sb->release($phone);
	waits_for($drain->{pid}, "wait_event = 'SyncRep'", 'standby: the commit that settles waits for it');
	is(states($id), 'waiting', 'standby: the removal is not settled for others');
	$calls->sql('ALTER SYSTEM RESET synchronous_standby_names');
	$node->reload;
	$other->query_safe('SELECT 1');
	$other->quit;
	unlike(await_drain($drain), qr/ERROR/, 'standby: the CALL goes on when nobody waits for it any more');
	is(states($id), 'done', 'standby: and the removal is settled');
	is_received($phone, 'lead', 'standby: which was sent once');
	return;
}

# A removal whose names are lost on disk: its server and role are held, others go on.
sub unreadable
{
	fresh();
	if ($calls->sql("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_surgery'") eq '0')
	{
		note 'pg_surgery is not there';
		return;
	}
	$calls->sql('CREATE EXTENSION pg_surgery');
	my $phone = new_phone();
	my $id = $calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$phone', (SELECT array_agg(md5(n::text) || md5((-n)::text)) FROM generate_series(1, 900) AS n))");
	my $toast = $calls->sql("SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'dt_waiting'::regclass");
	$calls->sql("SELECT heap_force_kill('$toast'::regclass, array_agg(ctid)) FROM $toast");
	my $well = enqueue(new_phone(), ['lead'], undef, server => 'second');
	my $behind = enqueue(new_phone(), ['lead']);

	like(drain(), qr/^WARNING:  requests of role .* are held: .*chunk/m, 'unreadable: the server and role are held, with the reason');
	is($calls->sql("SELECT count(*) FROM dt_waiting WHERE id IN ($id, $behind)"), '2', 'unreadable: its removals wait');
	is($calls->sql("SELECT state FROM dt_settled WHERE id = $well"), 'done', 'unreadable: the others go on');
	is_received($phone, '', 'unreadable: nothing is sent of it');
	unlike(drain(), qr/WARNING/, 'unreadable: the next CALL does not warn again');
	$calls->sql("DELETE FROM dt_waiting WHERE id = $id");
	time_passes('61 seconds', $behind);
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD retry_for '2d')");
	drain();
	is(states($behind), 'done', 'unreadable: when it is deleted, the server and role go on');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP retry_for)');

	# Of a role that was dropped the rows cannot even fail. The drainer does not try that
	# again and again: else this CALL would not end.
	$calls->sql('CREATE ROLE leaver; GRANT USAGE ON FOREIGN SERVER doubletick TO leaver;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO leaver');
	$id = $calls->sql("SET ROLE leaver; SELECT dt_enqueue_remove_tags_custom_fields('$phone', (SELECT array_agg(md5(n::text) || md5((-n)::text)) FROM generate_series(1, 900) AS n))");
	$calls->sql("SELECT heap_force_kill('$toast'::regclass, array_agg(ctid)) FROM $toast; DROP OWNED BY leaver; DROP ROLE leaver");
	like(drain(before => "SET statement_timeout = '30s'"), qr/are held: .*chunk.*1 left/s, 'unreadable, of a dropped role: it is held, and waits');
	$calls->sql("DELETE FROM dt_waiting WHERE id = $id; DROP EXTENSION pg_surgery");
	return;
}

# Rows that a superuser takes away or changes while their request is out.
sub taken_away
{
	my %changes = (
		'deleted' => [ 'DELETE FROM dt_waiting', 'none' ],
		'deleted and vacuumed' => [ 'DELETE FROM dt_waiting; VACUUM dt_waiting', 'none' ],
		'truncated' => [ 'TRUNCATE dt_waiting', 'none' ],
		'history truncated' => [ 'TRUNCATE dt_settled', 'done' ],
		'updated' => [ "UPDATE dt_waiting SET attempts = attempts + 1, due_at = now() + '1 hour'", 'done' ],
		'holds truncated' => [ 'TRUNCATE dt_hold', 'done' ],);

	foreach my $change (sort keys %changes)
	{
		my ($sql, $state) = @{ $changes{$change} };

		foreach my $status (201, 503, 422, 401)
		{
			fresh();
			my $phone = new_phone();
			$sb->hold($phone, { times => 1, $status == 201 ? () : (status => $status, retry_after => '600') });
			my $id = enqueue($phone, ['lead']);
			my $drain = start_drain();
			$sb->await_held(1, $phone);
			$calls->sql($sql);
			$sb->release;
			unlike(await_drain($drain), qr/ERROR/, "$change while out, $status: no error");
			is(scalar(() = requests($phone)), 1, "$change while out, $status: sent once");
			is(states($id), $state eq 'done' ? { 201 => 'done', 503 => 'waiting', 422 => 'failed', 401 => 'waiting' }->{$status} : 'none',
				"$change while out, $status: what becomes of it");
		}
	}
	fresh();
	return;
}

# Answers under 201 of any form: the removals are done and the whole answer is kept,
# without an error, and once.
sub answers_of_any_form
{
	my @null = (undef);
	my %answers = (
		'tags is null' => { tags => undef, customFields => undef },
		'tags is an array' => { tags => ['lead'], customFields => [] },
		'tags is a string' => { tags => 'lead' },
		'removed is null' => { tags => { removed => undef, errored => undef } },
		'removed has other types' => { tags => { removed => [ 1, undef, JSON::PP::true, {}, [], 'lead' ], errored => [] } },
		'removed is nested' => { tags => { removed => [ ['lead'] ], errored => [] } },
		'errored has other types' => { tags => { removed => [], errored => [ 1, undef, JSON::PP::false, [], {}, 'lead' ] } },
		'errored without a name' => { tags => { removed => [], errored => [ { error => 'busy' } ] } },
		'errored with a name that is no string' => { tags => { removed => [], errored => [ { tag => 5, error => 'busy' } ] } },
		'errored with an error that is no string' => { tags => { removed => [], errored => [ { tag => 'lead', error => { code => 5 } } ] } },
		'a name under both' => { tags => { removed => ['lead'], errored => [ { tag => 'lead', error => 'busy' } ] } },
		'a name twice' => { tags => { removed => [ ('lead') x 3 ], errored => [] } },
		'names that nobody asked for' => { tags => { removed => [ 'lead', 'vip', 'other' ], errored => [ { tag => 'more', error => 'x' } ] } },
		'further kinds' => { tags => { removed => ['lead'], errored => [], skipped => ['vip'] }, labels => { removed => [] } },
		'very many names' => { tags => { removed => [ map { "t$_" } 1 .. 60_000 ], errored => [] } },
		'very many keys' => { map { ("k$_" => $_) } 1 .. 40_000 },
		'a long message' => { tags => { removed => [], errored => [ { tag => 'lead', error => 'x' x 500_000 } ] } },
		'a message of many lines' => { tags => { removed => [], errored => [ { tag => 'lead', error => "a\r\nb\tc" } ] } },
		'deep' => '{"tags": ' . '{"a": ' x 1000 . '1' . '}' x 1000 . '}',
		'a key twice' => '{"tags": {"removed": ["vip"]}, "tags": {"removed": ["lead"], "errored": []}}',
		'blanks around' => " \t\r\n" . '{"tags": {"removed": ["lead"], "errored": []}}' . " \n" x 1000,
		'numbers at the limit' => '{"n": [1e-999, 1e999, -0, 0.000000000000000000000000000000001]}',
		'the empty key' => '{"": {"": ""}}');

	foreach my $name (sort keys %answers)
	{
		fresh();
		my $phone = new_phone();
		$sb->rule($phone, { status => 201, body => $answers{$name}, times => 1 });
		my @ids = map { enqueue($phone, [$_]) } qw(lead vip);
		like(drain(), qr/queue: 2 done, 0 failed, 0 left/, "answer: $name: both are done");
		is(scalar(() = requests($phone)), 1, "answer: $name: after one request");
		is($calls->sql("SELECT count(*) FROM dt_history WHERE id IN ($ids[0], $ids[1]) AND (jsonb_typeof(answer) = 'object' OR error LIKE '%; removal $ids[0] has all of it') AND (error IS NULL OR error !~ '[\\n\\r]')"), '2',
			"answer: $name: the history has an object, or says where it is");
	}
	fresh();

	# All names of a request, behind very many others.
	my $phone = new_phone();
	$sb->rule($phone, { status => 201, body => { tags => { removed => [ (map { "x$_" } 1 .. 40_000), (map { "t$_" } 1 .. 1000) ], errored => [] } } });
	$calls->sql("SELECT dt_enqueue_remove_tags_custom_fields('$phone', (SELECT array_agg('t' || n) FROM generate_series(1 + 500 * i, 500 + 500 * i) AS n)) FROM generate_series(0, 1) AS i");
	my $begin = time;
	like(drain(), qr/queue: 2 done, 0 failed, 0 left/, 'answer: 1,000 names behind 40,000 others: both are done');
	note(sprintf 'in %.1f s', time - $begin);
	is($calls->sql("SELECT count(*) FROM dt_history WHERE phone = '$phone' AND error IS NULL"), '2', 'answer: 1,000 names behind 40,000 others: none is missed');

	# Behind more than that, they are not looked for.
	$phone = new_phone();
	$sb->rule($phone, { status => 201, body => { tags => { removed => [], errored => [ (map { "x$_" } 1 .. 60_000), 't1' ] } } });
	my @ids = map { enqueue($phone, [ map { 't' . ($_ + 1) } 500 * $_ .. 500 * $_ + 499 ]) } 0, 1;
	like(drain(), qr/queue: 2 done, 0 failed, 0 left/, 'answer: 1,000 names and 60,000 others: both are done');
	is(settled($ids[0])->{error}, 'the answer mentions too many names to look these up', 'answer: 1,000 names and 60,000 others: the first says so');
	is(scalar @{ settled($ids[0])->{answer}{tags}{errored} }, 60_001, 'answer: 1,000 names and 60,000 others: and has all of it');
	is(settled($ids[1])->{error}, "the answer does not mention all names; removal $ids[0] has all of it", 'answer: 1,000 names and 60,000 others: the second says where it is');
	fresh();
	return;
}

deadlock();
locked_tables();
advisory_locks();
disk_full();
standby_is_away();
unreadable();
taken_away();
answers_of_any_form();
done_testing;

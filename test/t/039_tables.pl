
# What an administrator may do to the queue's tables while they are in use, and what
# the drain does when it cannot get them.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1, conf => 'autovacuum = off');

my $begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";

# A statement in a session of its own, which is returned; and the wait for its end.
sub in_background
{
	my ($statement) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_until(qr/on its way/, "\\echo on its way\n$statement;\n");
	return $session;
}

sub is_done
{
	my ($session, $name) = @_;

	$session->query('SELECT 1');
	is($session->{stderr}, '', $name);
	$session->quit;
	return;
}

# Tests that all indexes have an entry for each row.
sub indexes_are_whole
{
	my ($table, $name) = @_;
	my @indexes = split /\n/, $calls->sql("SELECT indexrelid::regclass FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid
		JOIN pg_am AS a ON a.oid = c.relam AND a.amname = 'btree' WHERE indrelid = '$table'::regclass AND indisvalid ORDER BY 1");

	$calls->sql('CREATE EXTENSION IF NOT EXISTS amcheck');
	foreach my $index (@indexes)
	{
		my ($status, $stdout, $stderr) = $node->psql('postgres', "SELECT bt_index_parent_check('$index', true)");
		is($stderr, '', "$name: $index");
	}
	return;
}

# All indexes are rebuilt while rows are enqueued and sent.
sub reindexed
{
	my $old = $node->background_psql('postgres');
	my $held = new_phone();
	my @ids;

	# Once with a drain under way, and once with none.
	foreach my $drained (0, 1)
	{
		my $drain;
		if ($drained)
		{
			$sb->hold($held);
			enqueue($held, ['lead']);
			$drain = start_drain();
			$sb->await_held(1);
		}
		$old->query_safe($begin);
		my $reindex = in_background('REINDEX TABLE CONCURRENTLY dt_waiting');
		foreach my $n (0 .. 1)
		{
			push @ids, map { enqueue(new_phone(), ["phase $n"]) } 1 .. 20;
			next if $n == 1;
			eventually(sub { $calls->sql("SELECT count(*) FROM pg_index WHERE indrelid = 'dt_waiting'::regclass AND NOT indisvalid AND indisready") ne '0' },
				'reindex: a new index is not valid yet');
		}
		if ($drained)
		{
			eventually(sub { $calls->sql('SELECT count(*) FROM dt_waiting') eq '1' }, 'reindex: what is enqueued meanwhile is sent');
		}
		$old->query_safe('COMMIT');
		push @ids, enqueue(new_phone(), ['after']);
		is_done($reindex, 'reindex: it succeeds');
		break_off($drain) if $drain;
		indexes_are_whole('dt_waiting', 'reindex');
		$sb->clear_rules;
		drain();
		is($calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done' AND id IN (" . join(',', @ids) . ')'), scalar @ids, 'reindex: all are sent');
		is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'reindex: none is left');
		is($calls->sql("SELECT count(*) FROM pg_index WHERE indrelid = 'dt_waiting'::regclass"), '2', 'reindex: no index is left behind');
	}
	$old->quit;
	return;
}

# A session that has cached the indexes as they were uses them as they are now.
sub known_before
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $phone = new_phone();

	foreach my $change ('REINDEX TABLE CONCURRENTLY dt_waiting', 'REINDEX TABLE CONCURRENTLY dt_settled',
		'VACUUM FULL dt_waiting', 'CLUSTER dt_settled USING dt_settled_id', 'REINDEX TABLE dt_waiting')
	{
		my $id = $session->query_safe(enqueueing($phone, ['a']));
		$session->query_safe("SELECT dt_cancel($id)");
		$session->query_safe('BEGIN; SELECT 1');
		$calls->sql($change);
		$session->query(enqueueing($phone, ['b']));
		is($session->{stderr}, '', "cached before $change: no error");
		$session->{stderr} = '';
		$session->query('COMMIT');
		is($session->{stderr}, '', "cached before $change: it can commit");
		$session->{stderr} = '';
		$calls->sql('SELECT count(dt_cancel(id)) FROM dt_queue');
		is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', "cached before $change: the rows can be found");
	}
	$session->quit;
	return;
}

# Plain indexes that somebody has added get their entries.
sub indexes_of_others
{
	my $phone = new_phone();

	$calls->sql("CREATE INDEX by_phone ON dt_settled (phone) INCLUDE (state);
		CREATE INDEX by_tags ON dt_settled USING gin (tags);
		CREATE INDEX waiting_by_phone ON dt_waiting (phone, attempts)");
	$sb->rule($phone, { status => 503, retry_after => '1', times => 1 });
	my $id = enqueue($phone, [ 'indexed', 'more' ]);
	drain();
	indexes_are_whole('dt_waiting', 'others');
	my %by = (index => 'SET enable_seqscan = off; SET enable_bitmapscan = on;', table => 'SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off;');
	is($calls->sql("$by{$_} SELECT attempts FROM dt_waiting WHERE phone = '$phone'"), '1', "others: the row that waits, by $_") foreach sort keys %by;
	settle();
	is(states($id), 'done', 'others: the removal is done');
	like($calls->sql("$by{index} EXPLAIN SELECT state FROM dt_settled WHERE phone = '$phone'"), qr/by_phone/, 'others: the index is used');
	foreach my $how (sort keys %by)
	{
		is($calls->sql("$by{$how} SELECT state FROM dt_settled WHERE phone = '$phone'"), 'done', "others: the row that is settled, by $how");
		is($calls->sql("$by{$how} SELECT id FROM dt_settled WHERE tags \@> '{indexed}'"), $id, "others: its names, by $how");
	}
	indexes_are_whole('dt_settled', 'others');
	$calls->sql('DROP INDEX by_phone, by_tags, waiting_by_phone');
	return;
}

# Indexes that cannot get their entries are refused before anything is sent, since it
# could not be settled.
sub indexes_that_cannot_be
{
	my %indexes = (
		'dt_waiting, expression' => 'CREATE INDEX odd ON dt_waiting ((attempts + 0))',
		'dt_waiting, condition' => 'CREATE INDEX odd ON dt_waiting (phone) WHERE attempts > 0',
		'dt_settled, expression' => 'CREATE INDEX odd ON dt_settled (lower(phone))',
		'dt_settled, condition' => "CREATE INDEX odd ON dt_settled (phone) WHERE state = 'failed'",
		'dt_settled, unique' => 'CREATE UNIQUE INDEX odd ON dt_settled (phone, id)',
		'dt_settled, exclusion' => 'ALTER TABLE dt_settled ADD CONSTRAINT odd EXCLUDE USING btree (id WITH =)');

	foreach my $name (sort keys %indexes)
	{
		my $phone = new_phone();
		my $is_early = $name =~ /waiting/;
		$sb->rule($phone, { status => 503, retry_after => '1', times => 1 });
		my $id = enqueue($phone, ['lead']);
		$calls->sql($indexes{$name});
		is(sqlstate_of(enqueueing(new_phone(), ['lead'])), $is_early ? '55000' : 'none: ', "$name: enqueueing");
		is(sqlstate_of('CALL dt_process_queue()'), '55000', "$name: draining");
		is_received($phone, '', "$name: nothing is sent whose answer could not be kept");
		$calls->sql($name =~ /exclusion/ ? 'ALTER TABLE dt_settled DROP CONSTRAINT odd' : 'DROP INDEX odd');
		settle();
		is(states($id), 'done', "$name: it is sent when the index is dropped");
	}
	return;
}

# The rows have moved when their answers come.
sub rewritten
{
	foreach my $statement ('VACUUM FULL dt_waiting', 'VACUUM FULL dt_settled', 'CLUSTER dt_waiting USING dt_waiting_customer',
		'CLUSTER dt_settled USING dt_settled_settled_at', 'VACUUM FULL dt_waiting, dt_settled, dt_hold')
	{
		my %rules = (done => {}, failed => { status => 400 }, waiting => { status => 503, retry_after => '3000' });
		my %phones = map { $_ => new_phone() } keys %rules;
		$sb->hold($phones{$_}, { times => 1, %{ $rules{$_} } }) foreach keys %rules;

		# Dead rows before them, so that they move.
		$calls->sql('SELECT count(dt_cancel(id)) FROM (SELECT dt_enqueue_remove_tags_custom_fields((919850000000 + n)::text, \'{lead}\') AS id
			FROM generate_series(1, 500) AS n OFFSET 0) AS rows');
		my %ids = map { $_ => enqueue($phones{$_}, [ 'a', 'b' ]) } sort keys %rules;
		my $drain = start_drain();
		$sb->await_held(3);
		$calls->sql($statement);
		$sb->release;
		unlike(await_drain($drain), qr/ERROR/, "$statement: no error");
		is(states($ids{$_}), $_, "$statement: $_") foreach sort keys %rules;
		is(scalar(my @all = received($phones{$_})), 1, "$statement: sent once") foreach sort keys %rules;
		is($calls->sql("SELECT attempts FROM dt_queue WHERE id = $ids{waiting}"), '1', "$statement: and counted as an attempt");
		$sb->clear_rules;
		time_passes('1 hour');
		drain();
	}
	indexes_are_whole($_, 'rewritten') foreach qw(dt_waiting dt_settled);
	return;
}

# The rows have been deleted when their answers come, and VACUUM has made the table
# shorter than it was.
sub deleted
{
	my %rules = (done => {}, failed => { status => 400 }, waiting => { status => 503, retry_after => '3000' });
	my %phones = map { $_ => new_phone() } keys %rules;
	$sb->hold($phones{$_}, { times => 1, %{ $rules{$_} } }) foreach keys %rules;

	# Dead rows before them, so that the table ends before their places then.
	$calls->sql('SELECT count(dt_cancel(id)) FROM (SELECT dt_enqueue_remove_tags_custom_fields((919850000000 + n)::text, \'{lead}\') AS id
		FROM generate_series(1, 500) AS n OFFSET 0) AS rows');
	my %ids = map { $_ => enqueue($phones{$_}, [ 'a', 'b' ]) } sort keys %rules;
	my $drain = start_drain();
	$sb->await_held(3);
	$calls->sql($_) foreach 'DELETE FROM dt_waiting', 'VACUUM dt_waiting';
	is($calls->sql("SELECT pg_relation_size('dt_waiting')"), '0', 'deleted: the table is empty');
	my $later = enqueue(new_phone(), ['later']);
	$sb->release;
	my $messages = await_drain($drain);
	unlike($messages, qr/ERROR|WARNING/, 'deleted: no error, and no hold');
	like($messages, qr/ 0 left/, 'deleted: nothing is left');
	is($calls->sql('SELECT count(*) FROM dt_history WHERE id IN (' . join(',', values %ids) . ')'), '0', 'deleted: nothing is recorded of rows that are gone');
	is(states($later), 'done', 'deleted: what was enqueued meanwhile is sent');
	$sb->clear_rules;
	return;
}

# A drain that fails leaves no lock behind, and its session goes on.
sub fails_in_the_middle
{
	my $locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";

	foreach my $table (qw(dt_settled dt_waiting))
	{
		my @phones = map { new_phone() } 1 .. 5;
		$sb->hold($_, { times => 1 }) foreach @phones;
		my @ids = map { enqueue($_, ['lead']) } @phones;
		my $locker = $node->background_psql('postgres');
		my $drain = start_drain();
		my $session = $drain->{session};
		$sb->await_held(5);
		cmp_ok($calls->sql($locks), '>', 5, "$table: the drain has locks on its customers");
		$locker->query_safe("BEGIN; LOCK TABLE $table IN ACCESS EXCLUSIVE MODE");
		$sb->release;
		eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CALL%'") eq '1' }, "$table: the drain waits");
		$calls->sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%' AND wait_event_type = 'Lock'");
		$session->query('SELECT 1');
		like($session->{stderr}, qr/ERROR:  canceling statement/, "$table: the CALL fails");
		is($calls->sql($locks), '0', "$table: no lock is left");
		$session->{stderr} = '';

		# The same by a timeout, in the same session.
		$session->query("SET lock_timeout = '100ms'");
		$session->query('CALL dt_process_queue()');
		like($session->{stderr}, qr/ERROR:  canceling statement due to lock timeout/, "$table: a second CALL fails by its timeout");
		is($calls->sql($locks), '0', "$table: and leaves no lock");
		$session->{stderr} = '';
		$locker->query_safe('COMMIT');
		$session->query('CALL dt_process_queue()');
		like($session->{stderr}, qr/queue: 5 done, 0 failed, 0 left/, "$table: a third one succeeds");
		is(join(' ', map { states($_) } @ids), 'done done done done done', "$table: all is settled");
		is($calls->sql($locks), '0', "$table: and no lock is left");
		$_->quit foreach $session, $locker;
	}
	return;
}

# A session keeps the tables locked until its transaction ends, though a cursor that has
# locked them fails in a savepoint.
sub keeps_its_locks
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $enqueue = "dt_enqueue_remove_tags_custom_fields('" . new_phone() . "', '{lead}')";
	my $locks = q{SELECT string_agg(relation::regclass::text, ' ' ORDER BY relation::regclass::text) FROM pg_locks
		WHERE pid = pg_backend_pid() AND relation::regclass::text LIKE 'dt_waiting%' AND relation <> 'dt_waiting_id_seq'::regclass};

	$session->query($_) foreach 'BEGIN', "DECLARE c CURSOR FOR SELECT 1 / (2 - n), $enqueue FROM generate_series(1, 2) AS n",
		'FETCH c', 'SAVEPOINT s', 'FETCH c', 'ROLLBACK TO s', 'RELEASE s', "SELECT $enqueue";
	like($session->{stderr}, qr/division by zero/, 'a cursor has failed');
	is($session->query($locks), 'dt_waiting dt_waiting_customer dt_waiting_pkey', 'and what it enqueued keeps the tables locked');
	$session->quit;
	return;
}

# The views use nothing that others have created under the names of what they use.
sub names_of_others
{
	$calls->sql('CREATE DATABASE planted');
	my ($status, $stdout, $stderr) = $node->psql('planted', <<'SQL', on_error_stop => 1);
CREATE SCHEMA target;
CREATE FUNCTION target.array_position(text[], text) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION target.ltrim(text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'planted' $$;
CREATE FUNCTION target.pg_get_userbyid(oid) RETURNS name LANGUAGE sql AS $$ SELECT 'planted'::name $$;
CREATE FUNCTION target.pg_has_role(oid, text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
CREATE FUNCTION target.hashtext(text) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION target.regexp_replace(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'planted' $$;
CREATE FUNCTION target.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS $$ SELECT 'planted' $$;
CREATE FUNCTION target.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$;
CREATE FUNCTION target.current_database() RETURNS name LANGUAGE sql AS $$ SELECT 'planted'::name $$;
CREATE FUNCTION target.always(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
CREATE FUNCTION target.always(text[], text[]) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
CREATE FUNCTION target.always(bigint, bigint) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
CREATE OPERATOR target.= (LEFTARG = text, RIGHTARG = text, FUNCTION = target.always);
CREATE OPERATOR target.<> (LEFTARG = text[], RIGHTARG = text[], FUNCTION = target.always);
CREATE OPERATOR target.> (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = target.always);
CREATE TABLE target.pg_locks (n int);
CREATE TABLE target.pg_database (n int);
SET search_path = target, pg_catalog, public;
CREATE EXTENSION doubletick SCHEMA target;
SHOW search_path;
SQL
	is($stderr, '', 'planted: the extension can be created');
	is($stdout, 'target, pg_catalog, public', 'planted: the search_path is as it was');
	is($calls->sql(<<'SQL', database => 'planted'), '', 'planted: the views use nothing but ours and PostgreSQL\'s');
SELECT DISTINCT pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
FROM pg_rewrite AS r
JOIN pg_class AS v ON v.oid = r.ev_class AND v.relname LIKE 'dt\_%'
JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
WHERE d.refobjid >= 16384
	AND NOT EXISTS (SELECT FROM pg_depend AS e WHERE e.classid = d.refclassid AND e.objid = d.refobjid AND e.deptype = 'e')
SQL
	is($calls->sql("SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'doubletick')", database => 'planted') > 10 ? 'some' : 'none', 'some',
		'planted: the extension has its members');
	$calls->sql('DROP DATABASE planted');
	return;
}

# A sequence that somebody has made before, under the name of ours, must not become ours:
# its owner could set the ids back, or drop it.
sub sequence_of_others
{
	$calls->sql('CREATE DATABASE planted');
	$calls->sql('CREATE SEQUENCE dt_waiting_id_seq', database => 'planted');
	my ($status, $stdout, $stderr) = $node->psql('planted', 'CREATE EXTENSION doubletick');
	like($stderr, qr/relation "dt_waiting_id_seq" already exists/, 'a sequence of others: the extension cannot be created');

	$calls->sql('DROP SEQUENCE dt_waiting_id_seq; CREATE EXTENSION doubletick', database => 'planted');
	is($calls->sql("SELECT pg_get_serial_sequence('dt_waiting', 'id')", database => 'planted'),
		'public.dt_waiting_id_seq', 'a sequence of others: without it, ours has its name');
	$calls->sql('ALTER SEQUENCE dt_waiting_id_seq RENAME TO other; CREATE SEQUENCE dt_waiting_id_seq; CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick',
		database => 'planted');
	($status, $stdout, $stderr) = $node->psql('planted', "SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}')");
	like($stderr, qr/Sequence "dt_waiting_id_seq" is not a member of the extension/, 'a sequence of others: it is not used later, either');
	$calls->sql('DROP DATABASE planted');
	return;
}

reindexed();
known_before();
indexes_of_others();
indexes_that_cannot_be();
rewritten();
deleted();
fails_in_the_middle();
keeps_its_locks();
names_of_others();
sequence_of_others();
done_testing;


# Logical replication of the extension's own tables, as FOR ALL TABLES does it: a
# removal is sent once, by the publisher, until an operator of the subscriber has what
# arrived sent from there.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new(
	idle => '1s',
	sandbox => [ map { ('--key', $_) } qw(key_sandbox key_subscriber) ],
	conf => "wal_level = logical\nmax_replication_slots = 10\nmax_wal_senders = 10\n"
	  . "max_logical_replication_workers = 10\nmax_worker_processes = 20\nwal_retrieve_retry_interval = '100ms'\n");
my $node = $calls->node;
my $sb = $calls->sandbox;

# A database that publishes all its tables, and one that subscribes to it.
sub replicate
{
	my ($name, $copy_data) = @_;
	my ($publisher, $subscriber) = ("pub_$name", "sub_$name");

	$calls->sql("CREATE DATABASE $_") foreach $publisher, $subscriber;
	$calls->set_up($publisher);
	$calls->set_up($subscriber);
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_subscriber')", database => $subscriber);
	$calls->sql('CREATE PUBLICATION p FOR ALL TABLES', database => $publisher);
	return ($publisher, $subscriber);
}

# The slot cannot be made by CREATE SUBSCRIPTION: it would wait for that transaction.
sub subscribe
{
	my ($publisher, $subscriber, $copy_data) = @_;

	$calls->sql("SELECT pg_create_logical_replication_slot('$subscriber', 'pgoutput')", database => $publisher);
	$calls->sql("CREATE SUBSCRIPTION $subscriber CONNECTION " . quote($node->connstr($publisher))
		  . " PUBLICATION p WITH (create_slot = false, copy_data = $copy_data)", database => $subscriber);
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_subscription_rel AS r JOIN pg_subscription AS s ON s.oid = r.srsubid
		WHERE subname = '$subscriber' AND srsubstate <> 'r'", database => $subscriber) eq '0' }, "$subscriber: the tables are synchronized");
	return;
}

# All that is committed at the publisher has been applied.
sub caught_up
{
	my ($publisher, $subscriber) = @_;
	my $lsn = $calls->sql('SELECT pg_current_wal_insert_lsn()');

	return eventually(sub { $calls->sql("SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name = '$subscriber'") eq 't' },
		"$subscriber: has caught up");
}

# Removes the subscription and the databases.
sub end_replication
{
	my ($publisher, $subscriber) = @_;

	$calls->sql("ALTER SUBSCRIPTION $subscriber DISABLE", database => $subscriber);
	$calls->sql("DROP SUBSCRIPTION $subscriber", database => $subscriber);
	$calls->sql("DROP DATABASE $_ WITH (FORCE)") foreach $subscriber, $publisher;
	return;
}

sub switch_off
{
	my ($database, $off) = @_;

	$calls->sql("ALTER DATABASE $database " . ($off ? 'SET doubletick.enabled = off' : 'RESET doubletick.enabled'));
	# A worker that is at work does not know at once.
	eventually(sub { !$calls->workers($database) }, "$database: no worker is at work when requests are switched off") if $off;
	return;
}

# Each for a customer of its own.
my $nenqueued = 0;

sub enqueue_many
{
	my ($database, $tag, $n) = @_;

	$nenqueued += $n;
	return $calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields(919876600000 + n || '', ARRAY['$tag' || n]))
		FROM generate_series($nenqueued - $n + 1, $nenqueued) AS n", database => $database);
}

# How many requests came with a key, and how many tags came twice.
sub sent_by { my ($key) = @_; return scalar grep { $_->{authorization} eq $key } @{ $sb->journal }; }

sub repeated
{
	my %count;

	$count{$_}++ foreach $calls->sent;
	return scalar grep { $_ > 1 } values %count;
}

# What is enqueued at the publisher is sent by the publisher alone.
sub sent_once
{
	my ($copy_data) = @_;
	my ($publisher, $subscriber) = replicate("once_$copy_data");

	$sb->reset;
	# What waits when the subscription is made, and what comes afterwards.
	switch_off($publisher, 1);
	enqueue_many($publisher, 'early', 30);
	subscribe($publisher, $subscriber, $copy_data);
	enqueue_many($publisher, 'late', 30);
	caught_up($publisher, $subscriber);
	is($calls->waiting($subscriber), $copy_data eq 'true' ? 60 : 30, "copy_data = $copy_data: removals wait at the subscriber, too");
	# This makes its worker look at all there is.
	$calls->sql(enqueue('own', 1), database => $subscriber);
	eventually(sub { $calls->has_sent('own') }, "copy_data = $copy_data: the subscriber sends what it enqueued itself");
	eventually(sub { !$calls->workers($subscriber) }, "copy_data = $copy_data: its worker leaves");
	is(sent_by('key_subscriber'), 1, "copy_data = $copy_data: it has sent nothing else");
	switch_off($publisher, 0);
	$calls->sql(enqueue('last', 2), database => $publisher);
	eventually(sub { sent_by('key_sandbox') == 61 }, "copy_data = $copy_data: the publisher sends all 60, and one more");
	eventually(sub { $calls->waiting($publisher) eq '0' }, "copy_data = $copy_data: and settles them");
	caught_up($publisher, $subscriber);
	is($calls->waiting($subscriber), 0, "copy_data = $copy_data: none waits at the subscriber any more");
	is(repeated(), 0, "copy_data = $copy_data: nothing was sent twice");
	is(sent_by('key_subscriber'), 1, "copy_data = $copy_data: the subscriber has sent nothing else");
	end_replication($publisher, $subscriber);
	return;
}


# A new database is like one that the launcher has looked at: whatever is there, its
# worker leaves.
sub nothing_but_replicated
{
	my ($publisher, $subscriber) = replicate('only');

	$sb->reset;
	switch_off($publisher, 1);
	subscribe($publisher, $subscriber, 'true');
	enqueue_many($publisher, 'only', 10);
	caught_up($publisher, $subscriber);
	is($calls->sql('SELECT count(*) FROM pg_stat_activity WHERE backend_type = \'doubletick worker\' AND datname = ' . quote($subscriber)), '0',
		'only replicated rows: what arrives starts no worker');
	$node->restart;
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_subscription WHERE subname = '$subscriber' AND pid IS NOT NULL") ne '0' },
		'only replicated rows: after a restart of the server');
	$calls->sql(enqueue('local', 3));
	eventually(sub { $calls->has_sent('local') }, 'only replicated rows: workers run');
	eventually(sub { !$calls->workers($subscriber) }, 'only replicated rows: the one of the subscriber leaves');
	is(sent_by('key_subscriber'), 0, 'only replicated rows: it has sent nothing');
	is($calls->waiting($subscriber), 10, 'only replicated rows: they wait');
	end_replication($publisher, $subscriber);
	return;
}

# The subscriber takes the publisher's place, while its worker or a CALL is at work.
sub switch_over
{
	my ($publisher, $subscriber) = replicate('over');
	my $sql = sub { return $calls->sql($_[0], database => $subscriber) };

	$sb->reset;
	switch_off($publisher, 1);
	foreach my $database ($publisher, $subscriber)
	{
		$calls->sql(<<'SQL', database => $database);
CREATE TABLE customers (phone text PRIMARY KEY, tags text[]);
CREATE TRIGGER customers AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW
	EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
SQL
	}
	subscribe($publisher, $subscriber, 'true');
	enqueue_many($publisher, 'over', 20);

	# Names that came back at the publisher, before the switch-over.
	$calls->sql("INSERT INTO customers VALUES ('919876543210', '{a,b,c,d}'); UPDATE customers SET tags = '{d}'; UPDATE customers SET tags = '{a,d}'",
		database => $publisher);

	# What waits for a later time is changed at the publisher.
	my $again = $calls->sql(enqueue('again', 200), database => $publisher);
	$calls->sql("UPDATE dt_waiting SET attempts = 1 WHERE id = $again", database => $publisher);
	caught_up($publisher, $subscriber);
	is($sql->("SELECT phone, tags FROM dt_queue WHERE tags \@> '{b}'"), '919876543210|{b,c}', 'switch-over: the keep counts for what it came with');
	is($sql->('SELECT waiting, due, held FROM dt_status'),
		'22|22|22 removals arrived by logical replication, and wait for dt_send_replicated()', 'switch-over: dt_status says why they are held');

	# Refused while the publisher may still send.
	my ($refused) = $calls->session('SELECT dt_send_replicated()', { database => $subscriber });
	is($refused->{sqlstate}, '55000', 'switch-over: refused while the subscription is enabled');
	is($refused->{message}, qq{subscription "$subscriber" still replicates table "dt_waiting"}, 'switch-over: the message');
	is($refused->{hint}, "When it sends no more, execute ALTER SUBSCRIPTION $subscriber DISABLE.", 'switch-over: the hint');
	$sql->("ALTER SUBSCRIPTION $subscriber DISABLE");

	# Before the operator has them sent, the application gains a name, loses another
	# one, and enqueues.
	$sql->("UPDATE customers SET tags = '{a,b,d}'; UPDATE customers SET tags = '{a,b}'");
	is($sql->("SELECT count(*) FROM dt_waiting WHERE keep AND NOT replicated"), '1', 'switch-over: a gained name is kept');
	eventually(sub { grep { $_ eq 'd' } $calls->sent }, 'switch-over: own removals are sent');
	is(join(' ', map { @{ $_->{body}{tags} } } grep { $_->{body}{phone} eq '919876543210' } @{ $sb->journal }), 'd', 'switch-over: with no replicated one');
	cmp_ok($sql->(enqueue('own', 201)), '>', $sql->('SELECT max(id) FROM dt_waiting WHERE replicated'), 'switch-over: own ids are larger');
	my ($cancelled) = split /\n/, $sql->("SELECT id FROM dt_waiting WHERE replicated AND NOT keep AND tags[1] LIKE 'over%' ORDER BY id LIMIT 1");
	is($sql->("SELECT dt_cancel($cancelled)"), 'f', 'switch-over: a cancel cannot tell whether the publisher has sent it');
	is($sql->("SELECT state FROM dt_history WHERE id = $cancelled"), 'cancelled', 'switch-over: but takes it out');

	# The worker stays, since one request hangs.
	$sb->rule(Worker::phone(202), { fault => 'hang' });
	$sql->(enqueue('hanging', 202));
	eventually(sub { $calls->has_sent('hanging') }, 'switch-over: the worker is at work');
	is(sent_by('key_subscriber'), 3, 'switch-over: it has sent nothing that is replicated');
	my ($worker) = $calls->workers($subscriber);
	is($sql->('BEGIN; SELECT dt_send_replicated(); ROLLBACK'), '21', 'switch-over: as often as one likes');
	is($sql->('SELECT dt_send_replicated()'), '21', 'switch-over: dt_send_replicated() says how many they are');
	is($sql->('SELECT dt_send_replicated()'), '0', 'switch-over: none is left');
	eventually(sub { sent_by('key_subscriber') == 3 + 21 }, 'switch-over: all are sent');
	is(($calls->workers($subscriber))[0], $worker, 'switch-over: by the worker that had passed over them');
	is(join(' ', map { @{ $_->{body}{tags} } } grep { $_->{body}{phone} eq '919876543210' } @{ $sb->journal }), 'd c', 'switch-over: without the names that came back, here or there');
	eventually(sub { $sql->('SELECT count(*) FROM dt_waiting') eq '1' }, 'switch-over: all is settled, but what hangs');
	is($sql->('SELECT held FROM dt_status'), '', 'switch-over: nothing is held any more');
	is(repeated(), 0, 'switch-over: nothing was sent twice');
	$sb->clear_rules;
	end_replication($publisher, $subscriber);
	return;
}

# Replicated changes do not reach what the subscriber has enqueued under the same ids,
# nor its history and its holds.
sub own_rows
{
	my ($publisher, $subscriber) = replicate('own');
	my $sql = sub { return $calls->sql($_[0], database => $subscriber) };
	my $own;

	$sb->reset;
	switch_off($_, 1) foreach $publisher, $subscriber;
	$calls->sql(enqueue("theirs$_", 300 + $_), database => $publisher) foreach 1 .. 3;
	$sql->(enqueue("own$_", 310 + $_)) foreach 1 .. 3;
	$own = $sql->('SELECT d::text FROM dt_waiting AS d ORDER BY id');
	is($calls->sql('SELECT string_agg(id::text, \' \' ORDER BY id) FROM dt_waiting', database => $_), '1 2 3', "own rows: ids in $_") foreach $publisher, $subscriber;
	subscribe($publisher, $subscriber, 'false');

	# The publisher's are tried again, refused, and done.
	$sb->rule(Worker::phone(301), { status => 503, retry_after => '3000' });
	$sb->rule(Worker::phone(302), { status => 404 });
	switch_off($publisher, 0);
	$calls->sql(enqueue('theirs4', 304), database => $publisher);
	eventually(sub { $calls->waiting($publisher) eq '1' }, 'own rows: the publisher settles its own');
	is($calls->sql('SELECT attempts FROM dt_queue', database => $publisher), '1', 'own rows: but one, which it tries again');
	caught_up($publisher, $subscriber);
	is($sql->('SELECT d::text FROM dt_waiting AS d ORDER BY id'), $own, 'own rows: the subscriber has all of its own, as they were');
	is($sql->('SELECT count(*) FROM dt_settled'), '0', 'own rows: and no history of the publisher');

	# Both hold the same lane, each for its own reason.
	$sb->rule(Worker::phone($_), { status => 401 }) foreach 305, 306;
	switch_off($subscriber, 0);
	$sql->(enqueue('refused', 305));
	$calls->sql(enqueue('refused', 306), database => $publisher);
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold', database => $_) eq '1' }, "own rows: $_ has a hold") foreach $publisher, $subscriber;
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD timeout '9s')", database => $publisher);
	$sb->clear_rules(Worker::phone(306));
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold', database => $publisher) eq '0' }, 'own rows: that of the publisher ends');
	caught_up($publisher, $subscriber);
	is($sql->('SELECT count(*) FROM dt_hold'), '1', 'own rows: that of the subscriber does not');
	$sb->clear_rules(Worker::phone(305));
	$sql->("ALTER SERVER doubletick OPTIONS (ADD timeout '9s'); " . enqueue('wakes', 307));
	eventually(sub { $sql->('SELECT count(*) FROM dt_waiting WHERE NOT replicated') eq '0' }, 'own rows: what it held goes on');
	end_replication($publisher, $subscriber);
	return;
}


# From here on, without a publisher: what arrives is written under
# session_replication_role = replica, as logical replication writes it.
sub make_arrive
{
	$calls->sql(<<'SQL');
CREATE FUNCTION arrive(phone text, tags text[], id bigint DEFAULT NULL) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	enqueued bigint := dt_enqueue_remove_tags_custom_fields(phone, tags);
	row dt_waiting;
BEGIN
	DELETE FROM dt_waiting AS w WHERE w.id = enqueued RETURNING * INTO row;
	row.id := coalesce(arrive.id, row.id);
	row.ord := row.id;
	PERFORM set_config('session_replication_role', 'replica', true);
	INSERT INTO dt_waiting OVERRIDING SYSTEM VALUE SELECT row.*;
	PERFORM set_config('session_replication_role', 'origin', true);
	RETURN row.id;
END $$;
SQL
	return;
}

sub arrive
{
	my ($tag, $number, $id) = @_;

	return $calls->sql("SELECT arrive('" . Worker::phone($number) . "', '{$tag}'" . ($id ? ", $id)" : ')'));
}

# Own and replicated rows of one customer have nothing to do with each other.
sub mixed
{
	$sb->reset;
	arrive('theirs', 400);
	$calls->sql(enqueue('mine', 400));
	eventually(sub { $calls->has_sent('mine') }, 'mixed: the own row is sent');
	eventually(sub { $calls->waiting eq '1' }, 'mixed: and settled');
	is($calls->has_sent('theirs'), 0, 'mixed: without the replicated one');

	# A keep that arrives takes nothing back from an own removal.
	switch_off('postgres', 1);
	my $own = $calls->sql(enqueue('mine', 401));
	$calls->sql("BEGIN; SET LOCAL session_replication_role = replica;
		INSERT INTO dt_waiting OVERRIDING SYSTEM VALUE SELECT id + 1, id + 1, xact, customer, enqueued_at, due_at, role, enqueued_by, 0, NULL, true, false, 0, NULL, server, phone, waba, tags, fields
		FROM dt_waiting WHERE id = $own; COMMIT");
	is($calls->sql("SELECT tags FROM dt_queue WHERE id = $own"), '{mine}', 'mixed: a keep that arrives takes nothing back, says dt_queue');
	$calls->sql("CREATE TABLE back (phone text, tags text[]); CREATE TRIGGER back AFTER INSERT ON back FOR EACH ROW
		EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags')");
	is($calls->sql("BEGIN; INSERT INTO back VALUES ('" . Worker::phone(401) . "', '{mine}'); SELECT count(*) FROM dt_waiting WHERE keep AND NOT replicated; ROLLBACK"), '1',
		'mixed: so a name that comes back is kept');
	$calls->sql('ALTER DATABASE postgres RESET doubletick.enabled; ' . enqueue('wakes', 402));
	eventually(sub { $calls->has_sent('mine') == 2 }, 'mixed: the removal is sent');
	eventually(sub { $calls->sql('SELECT string_agg(keep::text || replicated, \' \' ORDER BY id) FROM dt_waiting') eq 'falsetrue truetrue' },
		'mixed: what arrived waits, the keep too');

	# A CALL says that something is left.
	$node->restart;
	eventually(
		sub {
			# Unless the worker is looking at the same time.
			$node->psql('postgres', 'CALL dt_process_queue()', stderr => \my $stderr);
			return $stderr =~ /queue: 0 done, 0 failed, 1 left.*see dt_status/s;
		},
		'mixed: a CALL says that something is left');
	$calls->sql('TRUNCATE dt_waiting');
	return;
}

# Whatever ids arrive, new ones are larger.
sub ids
{
	$sb->reset;
	$calls->sql("TRUNCATE dt_waiting RESTART IDENTITY");
	arrive('first', 500, 1);
	my $next = $calls->sql(enqueue('next', 501));
	cmp_ok($next, '>', 1, 'ids: an own row does not collide with the first one that arrives');
	$calls->sql('ALTER SEQUENCE dt_waiting_id_seq INCREMENT BY 10');
	my $last = $calls->sql("SELECT nextval('dt_waiting_id_seq')");
	arrive('far', 502, $last + 1_000_000_003);
	$next = $calls->sql("SELECT nextval('dt_waiting_id_seq')");
	cmp_ok($next, '>', $last + 1_000_000_003, 'ids: larger than what arrives');
	is(($next - $last) % 10, 0, 'ids: by whole increments');
	arrive('below', 503, $last + 5);
	is($calls->sql("SELECT nextval('dt_waiting_id_seq')"), $next + 20, 'ids: a smaller one changes nothing');
	arrive('end', 504, '9223372036854775807');
	is($calls->sql("SELECT nextval('dt_waiting_id_seq')"), $next + 40, 'ids: the largest of all changes nothing');
	$calls->sql("TRUNCATE dt_waiting RESTART IDENTITY; ALTER SEQUENCE dt_waiting_id_seq INCREMENT BY 1");

	# Whoever may write the table needs no privilege on the sequence.
	$calls->sql("CREATE ROLE writer; GRANT INSERT ON dt_waiting TO writer; GRANT SET ON PARAMETER session_replication_role TO writer");
	$calls->sql("SET ROLE writer; SET session_replication_role = replica; INSERT INTO dt_waiting OVERRIDING SYSTEM VALUE
		VALUES (70, 70, 1, 1, now(), now(), 10, 10, 0, NULL, false, false, 0, NULL, 'doubletick', '919876543210', NULL, '{x}', '{}', NULL)");
	cmp_ok($calls->sql("SELECT nextval('dt_waiting_id_seq')"), '>', 70, 'ids: also if another role writes it');
	$calls->sql('TRUNCATE dt_waiting; DROP OWNED BY writer; DROP ROLE writer');
	return;
}

# Rows that somebody restores are own rows, even above what the sequence has given.
sub restored
{
	$sb->reset;
	switch_off('postgres', 1);
	$calls->sql("TRUNCATE dt_waiting RESTART IDENTITY");
	$calls->sql(enqueue("restored$_", 600 + $_)) foreach 1 .. 3;
	$calls->sql("CREATE TABLE saved AS SELECT * FROM dt_waiting; TRUNCATE dt_waiting RESTART IDENTITY;
		UPDATE saved SET id = id + 500, ord = ord + 500; ALTER DATABASE postgres RESET doubletick.enabled");
	$sb->rule(Worker::phone(603), { status => 503, retry_after => '3000' });
	$calls->sql(enqueue('before', 604));
	eventually(sub { $calls->has_sent('before') }, 'restored: a worker runs');
	$calls->sql("COPY saved TO '" . $node->data_dir . "/saved'; COPY dt_waiting FROM '" . $node->data_dir . "/saved'");
	is($calls->sql('SELECT count(*) FROM dt_waiting WHERE replicated'), '0', 'restored: the rows are not marked');
	$calls->sql(enqueue('after', 605));
	eventually(sub { $calls->has_sent('after') && $calls->has_sent('restored3') }, 'restored: all are sent');
	eventually(sub { $calls->waiting eq '1' }, 'restored: and settled');
	cmp_ok($calls->sql(enqueue('later', 606)), '>', 503, 'restored: from now on, ids are above them');
	eventually(sub { $calls->has_sent('later') }, 'restored: what comes then is sent');
	is(repeated(), 0, 'restored: nothing is sent twice');
	$sb->clear_rules;
	$calls->sql('TRUNCATE dt_waiting; DROP TABLE saved');
	return;
}

# What is enqueued under session_replication_role = replica is the session's own.
sub enqueued_in_replica_role
{
	$sb->reset;
	$calls->sql('SET session_replication_role = replica; ' . enqueue('in_replica_role', 700));
	eventually(sub { $calls->has_sent('in_replica_role') }, 'replica role: what is enqueued is sent');
	return;
}

# Another session changes and deletes rows while they are taken over.
sub meanwhile
{
	$sb->reset;
	$calls->sql('TRUNCATE dt_waiting');
	my @ids = map { arrive("meanwhile$_", 800 + $_) } 1 .. 3;
	my $session = $node->background_psql('postgres');
	my $other = $node->background_psql('postgres');

	$session->query_safe("BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM dt_waiting WHERE id = $ids[0];
		UPDATE dt_waiting SET attempts = 7, replicated = false WHERE id = $ids[1]");
	$other->query_until(qr/on its way/, "\\echo on its way\nSELECT 'sent ' || dt_send_replicated();\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%dt_send_replicated%' AND pid <> pg_backend_pid()") eq '1' },
		'meanwhile: it waits for a transaction that changes rows');
	$session->query_safe('COMMIT');
	like($other->query_safe('SELECT 1'), qr/sent 2/, 'meanwhile: a deleted row is not sent');
	eventually(sub { $calls->has_sent('meanwhile2') && $calls->has_sent('meanwhile3') }, 'meanwhile: the others are, the changed one too');
	eventually(sub { $calls->waiting eq '0' }, 'meanwhile: all is settled');
	is($calls->sql("SELECT attempts FROM dt_history WHERE id = $ids[1]"), '8', 'meanwhile: as it was changed');
	is($calls->has_sent('meanwhile1'), 0, 'meanwhile: the deleted one is not sent');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'meanwhile: no marker is left');
	$_->quit foreach $session, $other;
	return;
}

# Who sees, cancels, and has sent what arrived.
sub privileges
{
	$calls->sql("CREATE ROLE app LOGIN; CREATE ROLE monitor IN ROLE pg_monitor; CREATE ROLE reader IN ROLE pg_read_all_data; CREATE ROLE writer IN ROLE pg_write_all_data;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields, dt_cancel TO app, writer");
	my $id = arrive('seen', 900);
	$calls->sql("SET session_replication_role = replica; SET ROLE postgres; UPDATE dt_waiting SET role = 'app'::regrole, enqueued_by = 'app'::regrole WHERE id = $id"
		=~ s/SET ROLE postgres; //r);
	my %seen = (app => '0|0|', monitor => '0|1|1 removal arrived by logical replication, and wait for dt_send_replicated()', reader => '1|0|');
	foreach my $role (sort keys %seen)
	{
		is($calls->sql("SET ROLE $role; SELECT (SELECT count(*) FROM dt_queue), (SELECT waiting FROM dt_status), (SELECT held FROM dt_status)"), $seen{$role}, "privileges: what $role sees");
	}
	is($calls->sql("SET ROLE app; SELECT dt_cancel($id)"), 'f', 'privileges: a role of the same OID cannot cancel it');
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE id = $id"), '1', 'privileges: it still waits');
	my ($denied) = $calls->session('SET ROLE app', 'SELECT dt_send_replicated()');
	is($denied->{sqlstate}, '42501', 'privileges: EXECUTE on dt_send_replicated() is not for all');
	$calls->sql("SET ROLE writer; SELECT dt_cancel($id)");
	is($calls->sql("SELECT count(*) FROM dt_queue WHERE id = $id"), '0', 'privileges: who may delete from the table can');
	my ($read_only) = $calls->session('SET default_transaction_read_only = on', 'SELECT dt_send_replicated()');
	is($read_only->{sqlstate}, '25006', 'privileges: not in a read-only session');
	return;
}

# Roles that have other OIDs at the publisher.
sub other_roles
{
	$sb->reset;
	$calls->sql("TRUNCATE dt_waiting; GRANT USAGE ON FOREIGN SERVER doubletick TO app; CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key 'key_subscriber')");
	my $id = arrive('of_app', 920);
	$calls->sql("UPDATE dt_waiting SET role = 99999 WHERE id = $id");
	my ($refused) = $calls->session('SELECT dt_send_replicated()');
	is($refused->{sqlstate}, '42704', 'other roles: a role that does not exist is refused');
	my ($command) = $refused->{hint} =~ /Execute (.*)\.$/;
	$calls->sql($command =~ s/'name'/'app'/r);
	is($calls->sql('SELECT dt_send_replicated()'), '1', 'other roles: and sent when that is corrected');
	eventually(sub { sent_by('key_subscriber') == 1 }, 'other roles: with the mapping of the right role');
	return;
}

# The trigger's function, called otherwise.
sub trigger_function
{
	my $stderr;
	$node->psql('postgres', "\\set VERBOSITY verbose\nSELECT dt_replicated_trigger()", stderr => \$stderr);
	like($stderr, qr/ERROR:  39P01: /, 'trigger function: not called as a trigger');
	$calls->sql("CREATE TABLE mine (n int); CREATE TRIGGER odd BEFORE INSERT ON mine FOR EACH ROW EXECUTE FUNCTION dt_replicated_trigger(); ALTER TABLE mine ENABLE ALWAYS TRIGGER odd;
		CREATE TRIGGER odder AFTER DELETE ON mine FOR EACH STATEMENT EXECUTE FUNCTION dt_replicated_trigger()");
	$node->psql('postgres', "\\set VERBOSITY verbose\nSET session_replication_role = replica; INSERT INTO mine VALUES (1)", stderr => \$stderr);
	like($stderr, qr/39P01: table "mine" does not belong to extension/, 'trigger function: on another table');
	$node->psql('postgres', "\\set VERBOSITY verbose\nDELETE FROM mine", stderr => \$stderr);
	like($stderr, qr/39P01: dt_replicated_trigger\(\) must be called by a trigger BEFORE/, 'trigger function: after a statement');

	# ENABLE ALWAYS does no harm: under another role it changes nothing.
	$calls->sql('DROP TABLE mine; TRUNCATE dt_waiting, dt_settled; ALTER TABLE dt_waiting ENABLE ALWAYS TRIGGER dt_waiting_replicated; ALTER TABLE dt_settled ENABLE ALWAYS TRIGGER dt_settled_replicated');
	$sb->reset;
	$calls->sql(enqueue('always', 950));
	eventually(sub { $calls->has_sent('always') && $calls->waiting eq '0' }, 'trigger function: with ENABLE ALWAYS the queue goes on');
	$calls->sql('CREATE TABLE copy AS SELECT * FROM dt_settled; INSERT INTO dt_settled TABLE copy; UPDATE dt_settled SET attempts = 5');
	is($calls->sql('SELECT count(*), sum(attempts) FROM dt_settled'), '2|10', 'trigger function: the owner can write the tables');
	$calls->sql('SET session_replication_role = replica; INSERT INTO dt_settled TABLE copy; UPDATE dt_settled SET attempts = 6; DELETE FROM dt_settled');
	is($calls->sql('SELECT count(*), sum(attempts) FROM dt_settled'), '2|10', 'trigger function: replication cannot write the history');
	$calls->sql('DROP TABLE copy; ALTER TABLE dt_waiting ENABLE REPLICA TRIGGER dt_waiting_replicated; ALTER TABLE dt_settled ENABLE REPLICA TRIGGER dt_settled_replicated');
	return;
}

sent_once($_) foreach qw(true false);
nothing_but_replicated();
switch_over();
own_rows();
make_arrive();
mixed();
ids();
restored();
enqueued_in_replica_role();
meanwhile();
privileges();
other_roles();
trigger_function();

done_testing;

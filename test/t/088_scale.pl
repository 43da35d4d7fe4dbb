
# doc/scale.md: two sources without the extension, and one sender that subscribes to
# their tables and has the trigger. Two clusters, three databases. 090_documents.pl runs
# the page's own lines; here is what the page says will happen.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Worker;

my $sources = PostgreSQL::Test::Cluster->new('sources');
$sources->init(allows_streaming => 'logical');
$sources->append_conf('postgresql.conf', "max_replication_slots = 20\nmax_wal_senders = 20\nautovacuum = off\n");
$sources->start;

my $calls = Worker->new(idle => '1s', conf => "wal_level = replica\nmax_wal_senders = 4\nmax_logical_replication_workers = 10\n"
	  . "max_worker_processes = 20\nwal_retrieve_retry_interval = '100ms'\n");
my $sb = $calls->sandbox;
my $table = "CREATE TABLE customers (phone text PRIMARY KEY, tags text[] NOT NULL, fields jsonb NOT NULL DEFAULT '{}')";
my $nphones = 0;

sub new_phone { return sprintf '91987%07d', ++$nphones; }
sub at { my ($source, $sql) = @_; return $sources->safe_psql($source, $sql); }
sub add { my ($source, $phone, $tags) = @_; at($source, "INSERT INTO customers VALUES ('$phone', '{$tags}')"); return $phone; }

sub subscribe
{
	my ($source, $with) = @_;

	$calls->sql("CREATE SUBSCRIPTION $source CONNECTION " . quote($sources->connstr($source))
		  . " PUBLICATION doubletick" . ($with ? " WITH ($with)" : ''));
	return;
}

# All that the sources have committed has arrived, and all of it is sent.
sub arrived
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $lsn = at('north', 'SELECT pg_current_wal_insert_lsn()');

	eventually(sub { at('north', "SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn < '$lsn' AND slot_name IN ('north', 'south')") eq '0' },
		"$name: what the sources committed has arrived");
	return;
}

sub sent_all
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	arrived($name);
	return eventually(sub { $calls->sql('SELECT count(*) FROM dt_waiting') eq '0' }, "$name: and is sent");
}

# The tags that were sent for each phone, as "phone:tags" in the order of phones.
sub sent_is
{
	my ($name, %expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %sent;

	push @{ $sent{ $_->{body}{phone} } }, sort @{ $_->{body}{tags} } foreach @{ $sb->journal };
	is_deeply({ map { $_ => join ',', @{ $sent{$_} } } keys %sent }, \%expected, "$name: what was sent");
	$sb->clear_journal;
	return;
}

# The trigger comes first: a change during the copy would else be missed.
sub first_copy
{
	my ($early, $during) = (new_phone(), new_phone());

	foreach my $source ('north', 'south')
	{
		$sources->safe_psql('postgres', "CREATE DATABASE $source");
		at($source, "$table; CREATE PUBLICATION doubletick FOR TABLE customers");
		at($source, 'INSERT INTO customers SELECT ' . ($source eq 'north' ? '14155500000' : '14155600000') . " + n || '', '{lead, vip}' FROM generate_series(1, 500) AS n");
		add($source, $source eq 'north' ? $early : $during, 'lead,vip');
	}
	$calls->sql("$table; CREATE TRIGGER customers_doubletick AFTER INSERT OR UPDATE OR DELETE ON customers
		FOR EACH ROW EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields');
		ALTER TABLE customers ENABLE ALWAYS TRIGGER customers_doubletick");

	subscribe('north');
	eventually(sub { $calls->sql("SELECT count(*) FROM customers") eq '501' }, 'first copy: all rows of a source arrive');

	# The copy of the other source stops at its first row, until the test lets it go on.
	$calls->sql("CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END \$\$;
		CREATE TRIGGER pause BEFORE INSERT ON customers FOR EACH ROW EXECUTE FUNCTION pause();
		ALTER TABLE customers ENABLE ALWAYS TRIGGER pause");
	my $lock = $calls->node->background_psql('postgres');
	$lock->query_safe('SELECT pg_advisory_lock(1)');
	subscribe('south');
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = 0 AND objid = 1") ne '0' },
		'first copy: the copy of the other source is under way');
	at('south', "UPDATE customers SET tags = '{lead}' WHERE phone = '$during'");
	is($calls->sql('SELECT object, problem FROM dt_check()'), 'table public.customers|subscription "south" has not copied the table yet',
		'first copy: dt_check() says that it is not complete');
	$lock->query_safe('SELECT pg_advisory_unlock(1)');
	$lock->quit;
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'") eq '0' }, 'first copy: it is complete');
	$calls->sql('DROP TRIGGER pause ON customers');
	is($calls->sql('SELECT count(*) FROM customers'), '1002', 'first copy: two sources, one table');
	is($calls->sql('SELECT object, problem FROM dt_check()'), '', 'first copy: dt_check() has nothing to say any more');
	sent_all('first copy');
	sent_is('first copy: nothing but the change that was made meanwhile', $during => 'vip');
	at('north', "UPDATE customers SET tags = '{vip}' WHERE phone = '$early'");
	sent_all('first change');
	sent_is('first change', $early => 'lead');
	return;
}

sub changes
{
	my ($rolled_back, $put_back, $gone, $again, $again_less) = map { new_phone() } 1 .. 5;
	my ($one, $two, $elsewhere, $in_between) = map { new_phone() } 1 .. 4;

	add('north', $_, 'a,b') foreach $rolled_back, $put_back, $gone, $again, $again_less;
	add('north', $one, 'both,one');
	add('north', $two, 'both,two');
	add('south', $elsewhere, 'a,b');
	at('north', "BEGIN; UPDATE customers SET tags = '{}' WHERE phone = '$rolled_back'; ROLLBACK");
	at('north', "BEGIN; UPDATE customers SET tags = '{}' WHERE phone = '$rolled_back'; SAVEPOINT s;
		UPDATE customers SET tags = '{b}' WHERE phone = '$put_back'; ROLLBACK TO s; UPDATE customers SET tags = '{a,b}' WHERE phone = '$rolled_back'; COMMIT");
	at('north', "DELETE FROM customers WHERE phone = '$gone'");
	at('north', "BEGIN; DELETE FROM customers WHERE phone = '$again'; INSERT INTO customers VALUES ('$again', '{a,b}'); COMMIT");
	at('north', "BEGIN; DELETE FROM customers WHERE phone = '$again_less'; INSERT INTO customers VALUES ('$again_less', '{b}'); COMMIT");
	at('north', "BEGIN; UPDATE customers SET phone = '$in_between' WHERE phone = '$one'; UPDATE customers SET phone = '$one' WHERE phone = '$two';
		UPDATE customers SET phone = '$two' WHERE phone = '$in_between'; COMMIT");
	at('south', "UPDATE customers SET tags = '{a}', fields = '{\"plan\": 1}' WHERE phone = '$elsewhere'");
	sent_all('changes');
	sent_is('changes', $gone => 'a,b', $again_less => 'a', $one => 'one', $two => 'two', $elsewhere => 'b');

	# A name that comes back in another transaction, while its removal waits.
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD delay '1h')");
	at('north', "UPDATE customers SET tags = '{b}' WHERE phone = '$put_back'");
	arrived('put back');
	is($calls->sql("SELECT tags FROM dt_queue"), '{a}', 'put back: the removal waits');
	at('north', "UPDATE customers SET tags = '{a,b}' WHERE phone = '$put_back'");
	arrived('put back later');
	is($calls->sql("SELECT count(*) FROM dt_queue"), '0', 'put back: and is taken back');
	$calls->sql("ALTER SERVER doubletick OPTIONS (DROP delay); TRUNCATE dt_waiting");
	sent_is('put back');
	return;
}

# Without a replica identity, PostgreSQL refuses the change at the source. With one
# that is no primary key, all is as with one.
sub replica_identity
{
	my $phone = new_phone();
	my $stderr;

	at('north', 'CREATE TABLE guests (phone text, tags text[]); ALTER PUBLICATION doubletick ADD TABLE guests');
	$calls->sql("CREATE TABLE guests (phone text, tags text[]);
		CREATE TRIGGER guests AFTER INSERT OR UPDATE OR DELETE ON guests FOR EACH ROW EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
		ALTER TABLE guests ENABLE ALWAYS TRIGGER guests; ALTER SUBSCRIPTION north REFRESH PUBLICATION");
	at('north', "INSERT INTO guests VALUES ('$phone', '{a,b}')");
	$sources->psql('north', "\\set VERBOSITY verbose\nUPDATE guests SET tags = '{a}'", stderr => \$stderr);
	like($stderr, qr/ERROR:  55000: cannot update table "guests" because it does not have a replica identity/, 'replica identity: without one, the source refuses');
	at('north', "ALTER TABLE guests REPLICA IDENTITY FULL; UPDATE guests SET tags = '{a}'");
	sent_all('replica identity');
	sent_is('replica identity', $phone => 'b');

	# A trigger of one's own can enqueue what arrives, in a process without a client.
	$calls->sql("CREATE FUNCTION guest_left() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN
			PERFORM public.dt_enqueue_remove_tags_custom_fields(old.phone, '{guest}'); RETURN NULL; END \$\$;
		CREATE TRIGGER guest_left AFTER DELETE ON guests FOR EACH ROW EXECUTE FUNCTION guest_left();
		ALTER TABLE guests ENABLE ALWAYS TRIGGER guest_left");
	at('north', 'DELETE FROM guests');
	sent_all('own trigger');
	sent_is('own trigger', $phone => 'a,guest');
	at('north', 'ALTER PUBLICATION doubletick DROP TABLE guests');
	$calls->sql('ALTER SUBSCRIPTION north REFRESH PUBLICATION; DROP TABLE guests');
	return;
}

# A row that leaves the publication by its filter has left for the sender, and TRUNCATE
# tells nothing.
sub row_filter
{
	my ($left, $truncated) = (new_phone(), new_phone());

	at('north', "CREATE TABLE members (phone text PRIMARY KEY, tags text[], active boolean); ALTER TABLE members REPLICA IDENTITY FULL;
		ALTER PUBLICATION doubletick ADD TABLE members WHERE (active)");
	$calls->sql("CREATE TABLE members (phone text PRIMARY KEY, tags text[], active boolean);
		CREATE TRIGGER members AFTER INSERT OR UPDATE OR DELETE ON members FOR EACH ROW EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
		ALTER TABLE members ENABLE ALWAYS TRIGGER members; ALTER SUBSCRIPTION north REFRESH PUBLICATION");
	at('north', "INSERT INTO members VALUES ('$_', '{a,b}', true)") foreach $left, $truncated;
	at('north', "UPDATE members SET active = false WHERE phone = '$left'");
	sent_all('row filter');
	sent_is('row filter', $left => 'a,b');
	at('north', 'TRUNCATE members');
	sent_all('TRUNCATE');
	is($calls->sql('SELECT count(*) FROM members'), '0', 'TRUNCATE: empties the table of the sender');
	sent_is('TRUNCATE');
	at('north', 'ALTER PUBLICATION doubletick DROP TABLE members');
	$calls->sql('ALTER SUBSCRIPTION north REFRESH PUBLICATION; DROP TABLE members');
	return;
}

# A row that is there already when it arrives, as after a mended copy.
sub already_there
{
	my $phone = new_phone();
	my $errors = "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = 'north'";
	my $before = $calls->sql($errors);

	$calls->sql("INSERT INTO customers VALUES ('$phone', '{a}')");
	add('north', $phone, 'a');
	eventually(sub { $calls->sql($errors) > $before }, 'already there: the subscription stops');
	$calls->sql("BEGIN; ALTER TABLE customers DISABLE TRIGGER customers_doubletick; DELETE FROM customers WHERE phone = '$phone';
		ALTER TABLE customers ENABLE ALWAYS TRIGGER customers_doubletick; COMMIT");
	sent_all('already there, mended');
	sent_is('already there, mended');
	is($calls->sql("SELECT tags FROM customers WHERE phone = '$phone'"), '{a}', 'already there: the row has arrived');
	return;
}

# A customer of two sources stops the second one; the first goes on, and nothing wrong
# is sent.
sub customer_of_two_sources
{
	my ($twice, $other) = (new_phone(), new_phone());

	add('north', $twice, 'n,both');
	add('north', $other, 'a,b');
	arrived('two sources');
	add('south', $twice, 's,both');
	eventually(sub { $calls->sql("SELECT apply_error_count > 0 FROM pg_stat_subscription_stats WHERE subname = 'south'") eq 't' },
		'two sources: the subscription of the second one reports an error');
	like(slurp_file($calls->node->logfile), qr/duplicate key value violates unique constraint "customers_pkey"|conflict detected on relation "public.customers": conflict=insert_exists/, 'two sources: which the log has');
	at('north', "UPDATE customers SET tags = '{a}' WHERE phone = '$other'");
	eventually(sub { $calls->has_sent('b') }, 'two sources: the first one goes on');

	# The row that came first goes, while nothing is sent.
	$calls->sql('ALTER DATABASE postgres SET doubletick.enabled = off');
	eventually(sub { !$calls->workers }, 'two sources: no worker runs while requests are off');
	at('north', "DELETE FROM customers WHERE phone = '$twice'");
	sent_is('two sources', $other => 'b');
	arrived('two sources, mended');
	$calls->sql('ALTER DATABASE postgres RESET doubletick.enabled; ' . enqueue('wakes', 99));
	sent_all('two sources, mended');
	sent_is('two sources, mended', $twice => 'n', Worker::phone(99) => 'wakes');
	return;
}

# While the sender is down, the sources keep what it has not had.
sub sender_down
{
	my ($north, $south) = (new_phone(), new_phone());

	add('north', $north, 'a,b');
	add('south', $south, 'a,b');
	sent_all('down');
	$calls->node->stop;
	at('north', "UPDATE customers SET tags = '{a}' WHERE phone = '$north'");
	at('south', "UPDATE customers SET tags = '{b}' WHERE phone = '$south'");
	eventually(sub { at('north', "SELECT count(*) FROM pg_replication_slots WHERE active") eq '0' }, 'down: the sender is gone');
	is(at('north', 'SELECT count(*) FROM pg_replication_slots WHERE pg_current_wal_lsn() > confirmed_flush_lsn'), '2', 'down: both slots keep WAL');
	$calls->node->start;
	sent_all('down, and up again');
	sent_is('down, and up again', $north => 'b', $south => 'a');
	return;
}

# A standby of the sender takes its place, and subscribes where the sender was.
sub promoted
{
	my ($before, $after, $flying) = (new_phone(), new_phone(), new_phone());

	$calls->node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($calls->node, 'base', has_streaming => 1);
	$standby->start;
	my $old = $calls->node;

	add('north', $_, 'a,b') foreach $before, $after, $flying;
	at('north', "UPDATE customers SET tags = '{a}' WHERE phone = '$before'");
	sent_all('promoted');
	$sb->hold($flying, { times => 1 });
	at('north', "UPDATE customers SET tags = '{a}' WHERE phone = '$flying'");
	$sb->await_held(1, $flying);
	my $lsn = $calls->sql('SELECT pg_current_wal_flush_lsn()');
	eventually(sub { $standby->safe_psql('postgres', "SELECT pg_last_wal_replay_lsn() >= '$lsn'") eq 't' }, 'promoted: the standby has all of it');
	is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL"), '0', 'promoted: a standby does not subscribe');
	$old->stop('immediate');
	$sb->release($flying);
	at('north', "UPDATE customers SET tags = '{b}' WHERE phone = '$after'");
	$standby->promote;
	$calls->{node} = $standby;
	sent_all('promoted');
	sent_is('promoted', $before => 'b', $after => 'a', $flying => 'b,b');
	return;
}

# Requests with which a copy is compared with its sources, and mended. See doc/scale.md.
sub make_comparable
{
	$calls->sql('CREATE EXTENSION postgres_fdw');
	foreach my $source ('north', 'south')
	{
		my ($host, $port) = map { quote($_) } $sources->host, $sources->port;

		$calls->sql("CREATE SERVER $source FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host $host, port $port, dbname '$source');
			CREATE USER MAPPING FOR CURRENT_USER SERVER $source;
			CREATE FOREIGN TABLE ${source}_customers (phone text, tags text[], fields jsonb) SERVER $source OPTIONS (table_name 'customers')");
	}
	$calls->sql('CREATE VIEW source_customers AS TABLE north_customers UNION ALL TABLE south_customers');
	return;
}

sub differences
{
	return $calls->sql('SELECT phone, c.tags, s.tags FROM customers AS c FULL JOIN source_customers AS s USING (phone)
		WHERE (c.tags, c.fields) IS DISTINCT FROM (s.tags, s.fields) ORDER BY phone');
}

sub mend
{
	$calls->sql(<<'SQL');
BEGIN;
DELETE FROM customers AS c WHERE NOT EXISTS (SELECT FROM source_customers AS s WHERE s.phone = c.phone);
UPDATE customers AS c SET tags = s.tags, fields = s.fields FROM source_customers AS s
WHERE s.phone = c.phone AND (c.tags, c.fields) IS DISTINCT FROM (s.tags, s.fields);
INSERT INTO customers SELECT * FROM source_customers AS s WHERE NOT EXISTS (SELECT FROM customers AS c WHERE c.phone = s.phone);
COMMIT;
SQL
	return;
}

# An older state of the sender: what it has had since is not kept by the sources.
sub restored
{
	my ($sent, $unsent, $gone, $new, $later) = map { new_phone() } 1 .. 5;

	add('north', $_, 'a,b') foreach $sent, $unsent, $gone, $later;
	make_comparable();
	sent_all('restored');
	$calls->node->backup('old');
	at('north', "UPDATE customers SET tags = '{a}' WHERE phone = '$sent'");
	sent_all('restored');
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD delay '1h')");
	at('north', "UPDATE customers SET tags = '{a}' WHERE phone = '$unsent'");
	at('north', "DELETE FROM customers WHERE phone = '$gone'");
	add('north', $new, 'a,b');
	arrived('restored');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '2', 'restored: some removals wait when the sender is lost');
	my $old = $calls->node;
	$old->stop('immediate');
	at('north', "UPDATE customers SET tags = '{a}' WHERE phone = '$later'");
	sent_is('restored: before', $sent => 'b');

	my $restored = PostgreSQL::Test::Cluster->new('restored');
	$restored->init_from_backup($old, 'old');
	$restored->start;
	$calls->{node} = $restored;
	sent_all('restored');
	sent_is('restored: only what came after the loss arrives by itself', $later => 'b');
	is(differences(), join("\n", sort("$sent|{a,b}|{a}", "$unsent|{a,b}|{a}", "$gone|{a,b}|", "$new||{a,b}")), 'restored: the comparison shows what is missing');
	mend();
	is(differences(), '', 'restored: and mends it');
	sent_all('restored, mended');
	sent_is('restored, mended: what was lost is removed, and what was sent is sent again', $sent => 'b', $unsent => 'b', $gone => 'a,b');
	return;
}

# A source that keeps no more WAL than it is told to has the slot end.
sub lost_slot
{
	my ($missed, $later) = (new_phone(), new_phone());

	add('north', $_, 'a,b') foreach $missed, $later;
	sent_all('lost slot');
	$calls->node->stop;
	at('north', "UPDATE customers SET tags = '{a}' WHERE phone = '$missed'");
	$sources->append_conf('postgresql.conf', "max_slot_wal_keep_size = '1MB'");
	$sources->reload;
	eventually(sub {
			at('north', "CREATE TABLE filler AS SELECT 1; DROP TABLE filler; SELECT pg_switch_wal()");
			at('north', 'CHECKPOINT');
			return at('north', "SELECT string_agg(wal_status, ' ') FROM pg_replication_slots") eq 'lost lost';
		}, 'lost slot: the slots end when max_slot_wal_keep_size is passed');
	$calls->node->start;
	eventually(sub { slurp_file($calls->node->logfile) =~ /can(?:not|n't| no longer) (?:read from|get changes from|access|be accessed).*"(?:north|south)"/ }, 'lost slot: the log of the sender says so');
	foreach my $source ('north', 'south')
	{
		$calls->sql("DROP SUBSCRIPTION $source");
		subscribe($source, 'copy_data = false');
	}
	at('north', "UPDATE customers SET tags = '{b}' WHERE phone = '$later'");
	sent_all('lost slot');
	sent_is('lost slot: a new subscription goes on from now', $later => 'a');
	is(differences(), "$missed|{a,b}|{a}", 'lost slot: the comparison shows what is missing');
	mend();
	sent_all('lost slot, mended');
	sent_is('lost slot, mended', $missed => 'b');
	return;
}

first_copy();
changes();
replica_identity();
row_filter();
already_there();
customer_of_two_sources();
sender_down();
promoted();
restored();
lost_slot();
is($calls->sql('SELECT object, problem FROM dt_check()'), '', 'all is well in the end');
done_testing;

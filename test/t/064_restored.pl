
# Restores: what a dump has and what it does in a database in use, and a recovery to a
# point in time, where removals wait that have been sent since.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

my $archive = PostgreSQL::Test::Utils::tempdir();

open_queue(conf => <<"CONF");
wal_level = replica
max_wal_senders = 3
archive_mode = on
archive_command = 'cp "%p" "$archive/%f"'
CONF

my @phones = map { new_phone() } 1 .. 3;
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';

sub dump_of_a_table_with_a_trigger
{
	$calls->sql("CREATE TABLE customers (id int PRIMARY KEY, phone text, tags text[]);
		CREATE TRIGGER removals AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
		INSERT INTO customers VALUES (1, '$phones[0]', '{lead,vip}'), (2, '$phones[1]', '{lead}')");
	$calls->sql("UPDATE customers SET tags = '{vip}' WHERE id = 1");
	$node->command_ok([ 'pg_dump', '-Fc', '-d', $node->connstr('postgres'), '-f', $dump ], 'dump: with a removal that waits');

	# Restored into another database.
	$calls->sql('CREATE DATABASE restored');
	$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('restored'), $dump ], 'restore: into another database');
	is($calls->sql('SELECT count(*) FROM dt_waiting', database => 'restored'), '0', 'restore: nothing waits there');
	is($calls->sql('SELECT count(*) FROM customers', database => 'restored'), '2', 'restore: but the table is there');
	is($calls->sql("SELECT has_function_privilege('public', 'dt_cancel(bigint)', 'EXECUTE')", database => 'restored'), 'f', 'restore: with the privileges of the functions');
	$calls->sql("UPDATE customers SET tags = '{}' WHERE id = 2", database => 'restored');
	is($calls->sql('SELECT phone, tags FROM dt_queue', database => 'restored'), "$phones[1]|{lead}", 'restore: and its trigger enqueues');

	# The data alone, into the database in use: names that come back so are taken back.
	$calls->sql('DELETE FROM customers');
	is($calls->sql("SELECT string_agg(phone || tags::text, ' ' ORDER BY phone, id) FROM dt_queue"), "$phones[0]\{lead} $phones[0]\{vip} $phones[1]\{lead}", 'data only: all names wait to be removed');
	$node->command_ok([ 'pg_restore', '-e', '--data-only', '-t', 'customers', '-d', $node->connstr('postgres'), $dump ], 'data only: the rows are restored');
	is($calls->sql("SELECT string_agg(phone || tags::text, ' ' ORDER BY phone, id) FROM dt_queue"), "$phones[0]\{lead}", 'data only: removals of the names that came back are taken back');
	drain();
	is_received($phones[0], 'lead', 'data only: what is still lost is removed');
	is_received($phones[1], '', 'data only: nothing else is');

	# Without triggers the removals do not learn that the names came back.
	$calls->sql('DELETE FROM customers');
	$node->command_ok([ 'pg_restore', '-e', '--data-only', '--disable-triggers', '-t', 'customers', '-d', $node->connstr('postgres'), $dump ], 'disabled triggers: the rows are restored');
	is($calls->sql('SELECT count(*) FROM dt_queue'), '2', 'disabled triggers: the removals wait on');
	$calls->sql('SELECT dt_cancel(id) FROM dt_queue; DROP TABLE customers; DROP DATABASE restored');
	return;
}

# Roles and databases are restored by name: OIDs of the dump mean nothing.
sub other_oids
{
	$calls->sql("CREATE ROLE app; GRANT USAGE ON FOREIGN SERVER doubletick TO app; GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO app;
		CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key 'key_app')");
	$node->command_ok([ 'pg_dump', '-Fc', '-d', $node->connstr('postgres'), '-f', $dump ], 'roles: dump');
	$calls->sql('DROP OWNED BY app; DROP ROLE app; CREATE ROLE filler; CREATE ROLE app; CREATE DATABASE restored');
	$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('restored'), $dump ], 'roles: restore, where the role has another OID');
	my $phone = new_phone();
	$calls->sql('SET ROLE app; ' . enqueueing($phone, ['lead']), database => 'restored');
	drain(database => 'restored');
	is((requests($phone))[0]{authorization}, 'key_app', 'roles: it sends with its mapping');
	$calls->sql('DROP DATABASE restored');
	return;
}

# Recovery to a point in time, in a cluster of its own.
sub point_in_time
{
	my ($sent_before, $sent_since, $later) = map { new_phone() } 1 .. 3;
	my $copy = PostgreSQL::Test::Cluster->new('copy');

	$calls->sql('TRUNCATE dt_waiting, dt_settled');
	$node->backup('backup');
	my @ids = enqueue($sent_before, ['lead']);
	drain();
	push @ids, enqueue($sent_since, ['lead']);
	$calls->sql("SELECT pg_create_restore_point('here')");
	drain();
	push @ids, enqueue($later, ['lead']);
	$calls->sql('SELECT pg_switch_wal()');
	$node->poll_query_until('postgres', "SELECT last_archived_wal IS NOT NULL AND (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') = 0 FROM pg_stat_archiver")
	  or die 'the WAL is not archived';

	$copy->init_from_backup($node, 'backup');
	$copy->append_conf('postgresql.conf', <<"CONF");
archive_mode = off
restore_command = 'cp "$archive/%f" "%p"'
recovery_target_name = 'here'
recovery_target_action = promote
doubletick.enabled = off
CONF
	append_to_file($copy->data_dir . '/recovery.signal', '');
	$copy->start;
	ok($copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'point in time: the copy is up');
	is($copy->safe_psql('postgres', 'SELECT id FROM dt_queue'), $ids[1], 'point in time: what was sent since waits again');
	is($copy->safe_psql('postgres', 'SELECT id, state FROM dt_history'), "$ids[0]|done", 'point in time: what was sent before is done');
	my $before = @{ $sb->journal };
	my ($stdout, $stderr);
	$copy->psql('postgres', 'CALL dt_process_queue()', stdout => \$stdout, stderr => \$stderr);
	like($stderr, qr/are held: requests are switched off by "doubletick.enabled"/, 'point in time: with doubletick.enabled off, a CALL says that it holds');
	is(scalar @{ $sb->journal }, $before, 'point in time: and sends nothing');

	# An operator takes out what must not leave again; new ids do not come again.
	is($copy->safe_psql('postgres', "SELECT dt_cancel($ids[1])"), 't', 'point in time: what must not leave again is cancelled');
	cmp_ok($copy->safe_psql('postgres', enqueueing($later, ['vip'])), '>', $ids[1], 'point in time: ids go on');
	$copy->append_conf('postgresql.conf', 'doubletick.enabled = on');
	$copy->reload;
	$copy->poll_query_until('postgres', "SELECT current_setting('doubletick.enabled') = 'on'") or die 'not reloaded';
	$copy->safe_psql('postgres', 'CALL dt_process_queue()');
	is_received($later, 'vip', 'point in time: then the copy sends');
	is_received($sent_since, 'lead', 'point in time: but not what was cancelled');
	$copy->stop;
	drain();
	is(states(@ids), 'done done done', 'point in time: the first cluster goes on by itself');
	return;
}

# A cluster that crashes before the WAL is flushed: a removal that was not committed
# for sure is there whole or not at all, with its table's change.
sub crash_after_an_asynchronous_commit
{
	$calls->sql('CREATE TABLE changes (id bigint)');
	$calls->sql("SET synchronous_commit = off; INSERT INTO changes SELECT dt_enqueue_remove_tags_custom_fields('" . new_phone() . "', '{lead}') FROM generate_series(1, 5)") for 1 .. 20;
	$node->stop('immediate');
	$node->start;
	is($calls->sql('SELECT (SELECT count(*) FROM changes) = (SELECT count(*) FROM dt_waiting)'), 't', 'crash: as many removals wait as changes are there');
	my $id = enqueue(new_phone(), ['lead']);
	is($calls->sql("SELECT count(*) FROM changes WHERE id = $id"), '0', 'crash: and ids do not come again');
	drain();
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'crash: all are sent');
	return;
}

dump_of_a_table_with_a_trigger();
other_oids();
point_in_time();
crash_after_an_asynchronous_commit();
done_testing;


# Citus. What would be enqueued by half of a statement that fails is refused: that needs
# no Citus, but a connection that begins with its name. The rest does, and is skipped
# where there is none: what doc/scale.md says of Citus, and the lines that it has for it.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new(idle => '1s', sandbox => ['--any-key'], conf => "max_logical_replication_workers = 10\nmax_worker_processes = 20\nwal_retrieve_retry_interval = '100ms'\n");
my $sb = $calls->sandbox;
my $name_of_citus = 'citus_internal gpid=10000012345';
my $arguments = "'919876543210', '{lead}'";

# What a client says that begins its session with the name: "" when it raises nothing.
sub raised
{
	my ($sql, $name) = @_;
	my ($stdout, $stderr);

	$calls->node->psql('postgres', "\\set VERBOSITY sqlstate\n$sql", stdout => \$stdout, stderr => \$stderr,
		connstr => $calls->node->connstr('postgres') . ' application_name=' . quote($name // $name_of_citus));
	return join ' ', $stderr =~ /ERROR:  (\w+)/g;
}

sub refused
{
	my $function = 'dt_enqueue_remove_tags_custom_fields';
	my $stderr;

	foreach my $enqueue ($function, 'dt_try_enqueue_remove_tags_custom_fields', 'dt_keep')
	{
		is(raised("SELECT $enqueue($arguments)"), '25001', "refused: $enqueue outside a transaction block");
		is(raised("BEGIN; SELECT $enqueue($arguments); ROLLBACK"), '', "refused: $enqueue not in one");
		is(raised("DO \$\$ BEGIN PERFORM $enqueue($arguments); END \$\$"), '25001', "refused: $enqueue in a DO block");
		is(raised("SELECT $enqueue($arguments)", 'my application'), '', "refused: $enqueue not in other sessions");
		is(raised("SET application_name = '$name_of_citus'; SELECT $enqueue($arguments)", 'my application'), '', "refused: $enqueue not after SET");
	}
	is(raised("SET application_name = 'mine'; SELECT $function($arguments)"), '25001', 'refused: another name does not help');
	is(raised("SELECT dt_remove_tags_custom_fields($arguments); SELECT dt_try_remove_tags_custom_fields($arguments); SELECT dt_cancel(1); SELECT dt_retry(1)"),
		'', 'refused: calls, dt_cancel and dt_retry are not');
	$calls->node->psql('postgres', "SELECT $function($arguments)", stderr => \$stderr,
		connstr => $calls->node->connstr('postgres') . ' application_name=' . quote($name_of_citus));
	like($stderr, qr/ERROR:  cannot execute $function\(\) on a shard of Citus outside a transaction block\nDETAIL:  .*\nHINT:  Execute BEGIN before/,
		'refused: the message');

	# A client without a name; a process without a client is in 088_scale.pl.
	$calls->sql('CREATE EXTENSION dblink');
	is($calls->sql("SELECT id > 0 FROM dblink(" . quote($calls->node->connstr('postgres')) . ", 'SELECT $function(" . $arguments =~ s/'/''/gr . ")') AS d(id bigint)"),
		't', 'refused: a client without a name is not');
	return;
}

# The nodes: a coordinator and two workers.
my %node;

sub at { my ($name, $sql, $user) = @_; return $node{$name}->safe_psql('postgres', $sql, $user ? (extra_params => [ '-U', $user ]) : ()); }

sub sqlstate
{
	my ($sql) = @_;
	my $stderr;

	$node{coordinator}->psql('postgres', "\\set VERBOSITY sqlstate\n$sql", stderr => \$stderr);
	return $stderr =~ /ERROR:  (\w+)/ ? $1 : '';
}

sub everywhere { my ($sql) = @_; return join ' ', map { at($_, $sql) } qw(coordinator worker-1 worker-2); }

sub start_nodes
{
	foreach my $name (qw(coordinator worker-1 worker-2))
	{
		$node{$name} = PostgreSQL::Test::Cluster->new($name);
		$node{$name}->init;
		$node{$name}->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'citus, doubletick'
listen_addresses = '127.0.0.1'
wal_level = logical
citus.enable_change_data_capture = on
citus.enable_statistics_collection = off
doubletick.worker_idle_timeout = '1s'
max_prepared_transactions = 50
max_connections = 60
max_worker_processes = 30
max_wal_senders = 20
max_replication_slots = 20
log_statement = all
CONF
		$node{$name}->start;
		at($name, 'CREATE EXTENSION citus');
	}
	at('coordinator', "SELECT citus_set_coordinator_host('127.0.0.1', " . $node{coordinator}->port . ')');
	at('coordinator', "SELECT citus_add_node('127.0.0.1', " . $node{$_}->port . ')') foreach qw(worker-1 worker-2);
	at('coordinator', 'ALTER DATABASE postgres SET citus.shard_count = 6');
	return;
}

# The lines of doc/scale.md, in order. The key is a file, and hosts are ports here.
my $key_file = PostgreSQL::Test::Utils::tempdir() . '/doubletick.key';
my @lines = slurp_file(abs_path(dirname(__FILE__) . '/../../doc/scale.md')) =~ /^<!-- test: citus(; in the sender|; as app|) -->\n```sql\n(.*?)^```$/msg;
my $nblocks = @lines / 2;

sub next_block
{
	my ($where, $sql) = splice @lines, 0, 2;
	my $output;

	$sql =~ s/host=(\S+)\.example\.com dbname=shop user=replicator/'host=127.0.0.1 port=' . $node{$1}->port . ' dbname=postgres'/ge;
	$sql =~ s{/etc/postgresql/doubletick\.key}{$key_file};
	$output = $where eq '; in the sender' ? $calls->sql($sql) : at('coordinator', $sql, $where eq '; as app' ? 'app' : undef);
	unlike($output, qr/ERROR/, 'doc/scale.md: a block for Citus has no error') or diag($sql);
	return $output;
}

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

sub arrived
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	foreach my $node (qw(coordinator worker-1 worker-2))
	{
		my $lsn = at($node, 'SELECT pg_current_wal_insert_lsn()');
		my $slot = $node =~ tr/-/_/r;

		eventually(sub { at($node, "SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name = '$slot'") eq 't' }, "$name: what is committed in $node has arrived");
	}
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_waiting') eq '0' }, "$name: and is sent");
	return;
}

# One sender that subscribes to the nodes.
sub source
{
	$sb->reset;
	next_block();
	at('coordinator', "INSERT INTO customers SELECT 919876500000 + n || '', '{lead, vip}' FROM generate_series(1, 1000) AS n");
	$calls->sql("CREATE TABLE customers (phone text PRIMARY KEY, tags text[] NOT NULL, fields jsonb NOT NULL DEFAULT '{}');
		CREATE TRIGGER customers_doubletick AFTER INSERT OR UPDATE OR DELETE ON customers
		FOR EACH ROW EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields');
		ALTER TABLE customers ENABLE ALWAYS TRIGGER customers_doubletick");
	next_block();
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'") eq '0' }, 'source: the copy is complete');
	is($calls->sql('SELECT count(*) FROM customers'), '1000', 'source: with all rows, once');
	at('coordinator', "UPDATE customers SET tags = '{lead}' WHERE phone = '919876500001'");
	at('coordinator', "BEGIN; UPDATE customers SET tags = '{}'; ROLLBACK");
	at('coordinator', "UPDATE customers SET tags = '{vip}' WHERE phone BETWEEN '919876500002' AND '919876500005'");
	at('coordinator', "DELETE FROM customers WHERE phone = '919876500006'");
	at('coordinator', "BEGIN; DELETE FROM customers WHERE phone = '919876500007'; INSERT INTO customers VALUES ('919876500007', '{lead}'); COMMIT");
	arrived('source');
	sent_is('source', 919876500001 => 'vip', (map { 919876500000 + $_ => 'lead' } 2 .. 5), 919876500006 => 'lead,vip', 919876500007 => 'vip');

	# A shard goes to the other worker.
	at('coordinator', "SELECT citus_move_shard_placement(min(shardid), '127.0.0.1', " . $node{'worker-1'}->port . ", '127.0.0.1', " . $node{'worker-2'}->port . ", 'force_logical')
		FROM pg_dist_placement JOIN pg_dist_node USING (groupid) WHERE nodeport = " . $node{'worker-1'}->port);
	at('coordinator', "UPDATE customers SET tags = '{}' WHERE phone = '919876500001'");
	arrived('source: a shard moves');
	sent_is('source: a shard moves', 919876500001 => 'lead');
	is($calls->sql('SELECT count(*) FROM customers'), '999', 'source: all rows are there');
	is(sqlstate("CREATE TRIGGER t AFTER DELETE ON customers FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()") ne '', 1, 'source: Citus refuses triggers');
	return;
}

# The extension in Citus itself. All but the last rows go, so that each shard has a few.
sub inside
{
	my $enqueue = 'dt_enqueue_remove_tags_custom_fields';
	my $waiting = 'SELECT count(*) FROM dt_waiting';

	at('coordinator', "DELETE FROM customers WHERE phone > '919876500040'");
	$calls->sql("DROP SUBSCRIPTION $_") foreach qw(worker_1 worker_2 coordinator);
	next_block();
	is(everywhere('SELECT count(*) FROM pg_user_mapping'), '1 1 1', 'inside: mappings are everywhere');
	is(everywhere("SELECT has_function_privilege('app', oid, 'EXECUTE') FROM pg_proc WHERE proname = '$enqueue'"), 't t t', 'inside: and so is EXECUTE');
	# Nothing is sent, so that what is enqueued can be counted.
	at($_, 'ALTER SYSTEM SET doubletick.enabled = off; ') foreach keys %node;
	$node{$_}->reload foreach keys %node;

	# From a CTE, in the coordinator.
	next_block();
	is(everywhere($waiting), at('coordinator', "SELECT count(*) FROM customers WHERE phone > '919876500006'") . ' 0 0', 'inside: a CTE that changes rows enqueues in the coordinator');
	is(at('coordinator', "SELECT count(*) FROM customers WHERE 'lead' = ANY (tags)"), '0', 'inside: and changes them');
	at('coordinator', "DELETE FROM dt_waiting");
	next_block();
	is(everywhere($waiting), at('coordinator', "SELECT count(*) FROM customers WHERE 'vip' = ANY (tags)") . ' 0 0', 'inside: so does one that is materialized');
	at('coordinator', 'DELETE FROM dt_waiting');
	is(sqlstate("UPDATE customers SET tags = '{x}' RETURNING $enqueue(phone, '{a}')"), '0A000', 'inside: Citus refuses it in RETURNING');
	at('coordinator', "INSERT INTO customers VALUES ('bad', '{vip}')");
	is(sqlstate("WITH c AS (UPDATE customers SET tags = '{y}' RETURNING phone) SELECT count($enqueue(phone, '{a}')) FROM c"), '22023', 'inside: a CTE that fails');
	is(at('coordinator', "SELECT count(*) FROM customers WHERE tags = '{y}'") . ' ' . everywhere($waiting), '0 0 0 0', 'inside: has changed nothing and enqueued nothing');

	# On the shards.
	is(sqlstate("SELECT count($enqueue(phone, '{a}')) FROM customers"), '25001', 'inside: on the shards, without BEGIN');
	is(sqlstate("SELECT $enqueue(phone, '{a}') FROM customers WHERE phone = '919876500010'"), '25001', 'inside: on a single shard, without BEGIN');
	is(sqlstate("WITH c AS (SELECT phone FROM customers) SELECT count($enqueue(phone, '{a}')) FROM c"), '25001', 'inside: from a CTE that is not materialized');
	is(at('coordinator', "SELECT string_agg(DISTINCT success::text, '') FROM run_command_on_shards('customers', \$\$ SELECT count($enqueue(phone, '{a}')) FROM %s \$\$)"), 'false', 'inside: by run_command_on_shards()');
	is(sqlstate("BEGIN; SELECT count($enqueue(phone, '{a}')) FROM customers; COMMIT"), '22023', 'inside: in a transaction that fails');
	is(everywhere($waiting), '0 0 0', 'inside: nothing was enqueued');
	at('coordinator', "DELETE FROM customers WHERE phone = 'bad'");
	is(sqlstate("BEGIN; SELECT count($enqueue(phone, '{a}')) FROM customers; ROLLBACK") . everywhere($waiting), '0 0 0', 'inside: nor when it is rolled back');
	next_block();
	my @counts = split / /, everywhere($waiting);
	is($counts[0] + $counts[1] + $counts[2], at('coordinator', 'SELECT count(*) FROM customers'), 'inside: in a transaction, each row is enqueued');
	cmp_ok($counts[1] && $counts[2], '>', 0, 'inside: on the nodes of the shards');
	my %ids = map { $_ => 1 } map { split /\n/, at($_, 'SELECT id FROM dt_waiting') } keys %node;
	is(scalar keys %ids, $counts[0] + $counts[1] + $counts[2], 'inside: no id is there twice');
	unlike(slurp_file($node{'worker-1'}->logfile) =~ /.*SELECT count\(public\.dt_try_enqueue(.*)/s ? $1 : 'PREPARE TRANSACTION', qr/PREPARE TRANSACTION/, 'inside: the commit of what only reads has one phase');
	is(at('coordinator', "SELECT string_agg(DISTINCT success::text, '') FROM run_command_on_all_nodes(\$\$ SELECT count(*) FILTER (WHERE dt_cancel(id)) FROM dt_queue \$\$)"), 'true', 'inside: dt_cancel() on each node');
	is(everywhere($waiting), '0 0 0', 'inside: takes it out');

	# Each node sends what it has, and calls by itself.
	at($_, 'ALTER SYSTEM RESET doubletick.enabled') foreach keys %node;
	$node{$_}->reload foreach keys %node;
	at('coordinator', "ALTER SERVER doubletick OPTIONS (ADD base_url '" . $sb->https . "', ADD ca_file '" . $sb->ca_file . "', ADD rate_limit '0')");
	$sb->clear_journal;
	at('coordinator', "BEGIN; SELECT count($enqueue(phone, '{a}')) FROM customers; COMMIT", 'app');
	eventually(sub { everywhere($waiting) eq '0 0 0' }, 'inside: each node sends what it has');
	is(scalar @{ $sb->journal }, at('coordinator', 'SELECT count(*) FROM customers'), 'inside: once for each customer');
	at($_, "CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (api_key 'key')") foreach keys %node;
	is(at('coordinator', "SELECT count(dt_try_remove_tags_custom_fields(phone, '{b}') -> 'tags') FROM customers"), at('coordinator', 'SELECT count(*) FROM customers'), 'inside: calls go out from the shards, without BEGIN');
	return;
}

refused();
SKIP:
{
	my ($share) = PostgreSQL::Test::Utils::run_command([ 'pg_config', '--sharedir' ]);

	skip 'Citus is not installed', 1 unless -e "$share/extension/citus.control";
	PostgreSQL::Test::Utils::append_to_file($key_file, "key\n");
	chmod 0600, $key_file or die "could not chmod \"$key_file\": $!";
	start_nodes();
	source();
	inside();
	is($nblocks, 6, 'doc/scale.md: so many blocks are for Citus');
	is(scalar @lines, 0, 'doc/scale.md: all of them were run');
}
done_testing;

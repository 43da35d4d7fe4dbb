
# dt_check(): a row for each thing that is wrong, none when all is well, and hints that
# mend it when they are pasted.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1, options => { timeout => '5s' });

# keep() is not needed here, and its trigger fires on INSERT alone.
$calls->sql('DROP TABLE came_back');

# What dt_check() returns, as "object: problem" lines.
sub check
{
	my ($connect, $before) = @_;

	return $calls->sql(($before ? "$before; " : '') . "SELECT object || ': ' || problem FROM dt_check("
		  . ($connect ? 'connect => true' : '') . ')');
}

sub hint { return $calls->sql('SELECT hint FROM dt_check() ORDER BY object LIMIT 1'); }

# One thing is wrong: it is the only row, and pasting the hint mends it.
sub mended_ok
{
	my ($name, $problem, $command) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	like(check(), qr/^$problem$/, "$name: it is reported, and nothing else");
	my $hint = hint();
	my $paste = $hint =~ s/\.\.\./key_sandbox/r;
	if (defined $command)
	{
		like($hint, $command, "$name: the hint");
	}
	else
	{
		$calls->sql($paste);
		is(check(), '', "$name: the hint mends it");
	}
	return;
}

is(check(), '', 'all is well');
is(check(1), '', 'and the server can be connected to');

# The schema's owner need be no superuser, and dt_check() runs as one.
$calls->sql(q{ALTER SCHEMA public RENAME TO "it's"});
is($calls->sql(q{SELECT object || ': ' || problem FROM "it's".dt_check()}), '', "a quote in the schema's name is data");
$calls->sql(q{ALTER SCHEMA "it's" RENAME TO public});

# Privileges that ALTER DEFAULT PRIVILEGES or ON ALL TABLES IN SCHEMA may have granted.
$calls->sql('CREATE ROLE writer; GRANT SELECT, INSERT, UPDATE ON dt_waiting TO writer');
mended_ok('a table that others may write', qr/table public\.dt_waiting: writer has INSERT, UPDATE on it, and so may send as any role or keep others from sending/);
$calls->sql('GRANT ALL ON SEQUENCE dt_waiting_id_seq TO PUBLIC');
mended_ok('the sequence', qr/sequence public\.dt_waiting_id_seq: PUBLIC has UPDATE on it, .*/);
$calls->sql('GRANT INSERT (id, phone) ON dt_waiting TO writer');
mended_ok('columns that others may write', qr/table public\.dt_waiting: writer has INSERT on it, .*/);
foreach my $relation ('TABLE public.dt_waiting', 'TABLE public.dt_hold', 'VIEW public.dt_status')
{
	my $object = $relation =~ s/^(\w+)/\L$1/r;
	$calls->sql("ALTER $relation OWNER TO writer");
	mended_ok("an owner of $relation", qr/\Q$object\E: it belongs to writer, .*/);
}
$calls->sql('DROP OWNED BY writer; DROP ROLE writer');

# Servers and user mappings.
$calls->sql('DROP SERVER doubletick CASCADE');
like(check(), qr/^database postgres: it has no DoubleTick server$/, 'no server: it is reported, and nothing else');
is(hint(), 'CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick;', 'no server: the hint');
$calls->sql(hint());
mended_ok('no mapping', 'server doubletick: it has no user mapping, so nobody can send');
$calls->sql('DROP SERVER doubletick CASCADE');
$calls->server('doubletick', timeout => '5s');
is(check(), '', 'server: all is well again');
$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER doubletick; CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick');
mended_ok('no key', 'user mapping for \S+ on server doubletick: user mapping of role "\S+" on server "doubletick" has no API key',
	qr/^Add it: ALTER USER MAPPING FOR \S+ SERVER doubletick OPTIONS \(ADD api_key '\.\.\.'\);$/);
$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (ADD api_key 'key_sandbox')");
make_roles();
is(check(), '', 'roles with what they need');
$calls->sql('REVOKE USAGE ON FOREIGN SERVER doubletick FROM app');
mended_ok('no USAGE', 'user mapping for app on server doubletick: permission denied for foreign server doubletick',
	qr/^Grant it: GRANT USAGE ON FOREIGN SERVER doubletick TO app;$/);
$calls->sql('GRANT USAGE ON FOREIGN SERVER doubletick TO app');
$calls->sql("ALTER USER MAPPING FOR app SERVER doubletick OPTIONS (DROP api_key, ADD api_key_file '/nowhere/key')");
mended_ok('no key file', 'user mapping for app on server doubletick: could not open API key file "/nowhere/key": No such file or directory', qr/^Put the key there, .* can read; or name another file in the user mapping\.$/);
$calls->sql("ALTER USER MAPPING FOR app SERVER doubletick OPTIONS (DROP api_key_file, ADD api_key 'key_app')");
$calls->sql("CREATE SERVER public_one FOREIGN DATA WRAPPER doubletick; CREATE USER MAPPING FOR PUBLIC SERVER public_one");
mended_ok('a public mapping without a key', 'user mapping for \S+ on server public_one: .*has no API key', qr/FOR PUBLIC SERVER public_one/);
$calls->sql('DROP SERVER public_one CASCADE');
$calls->sql("ALTER SERVER doubletick OPTIONS (SET ca_file '/nowhere/ca.pem')");
mended_ok('no file of authorities', 'server doubletick: could not read file "/nowhere/ca.pem" of option "ca_file": No such file or directory',
	qr/option "ca_file"/);
$calls->sql("ALTER SERVER doubletick OPTIONS (SET ca_file '" . $sb->ca_file . "', ADD database 'other')");
like(check(), qr/^(?:user mapping for \S+ on server doubletick: server "doubletick" sends nothing from database "postgres"\n?){3}$/,
	'another database: each mapping is reported');
is(check(1), check(), 'another database: no connection is made');
$calls->sql('ALTER SERVER doubletick OPTIONS (DROP database)');

# Settings.
$calls->sql('ALTER DATABASE postgres SET doubletick.enabled = off');
mended_ok('switched off for the database', 'setting doubletick.enabled: it is off, so nothing is sent');
$calls->sql('ALTER ROLE ALL SET doubletick.enabled = off');
mended_ok('switched off for all roles', 'setting doubletick.enabled: it is off, so nothing is sent');
like(check(0, 'SET doubletick.enabled = off'), qr/^setting doubletick.enabled: it is off/, 'switched off in the session');
like(check(0, 'SET doubletick.server = nowhere'), qr/^setting doubletick.server: server "nowhere" does not exist$/, 'a server that does not exist');

# Connections.
$calls->server('closed', base_url => 'https://127.0.0.1:' . closed_port());
$calls->server('distrusted', ca_file => undef);
$sb->clear_journal;
like(check(1), qr/^server closed: could not connect to DoubleTick: .*\nserver distrusted: could not establish TLS with DoubleTick: .*$/,
	'connect: what cannot be connected to');
is(scalar @{ $sb->journal }, 0, 'connect: no request is sent');
is(check(), '', 'without connect, that is not looked at');
$calls->sql('DROP SERVER closed CASCADE; DROP SERVER distrusted CASCADE');
my $phone = new_phone();
is(check(1, removal($phone, ['a']) =~ s/^SELECT (.*)$/DO \$\$ BEGIN PERFORM $1; END \$\$/r), '', 'connect: after a call in the same session');

# Triggers.
my $fires = "EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger";
$calls->sql('CREATE TABLE customers (phone text PRIMARY KEY, tags text[])');
foreach my $case (
	[ 'a wrong column', "AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW $fires('phone', 'labels')",
		'trigger t on table public.customers: column "labels" of relation "customers" does not exist' ],
	[ 'no arguments', "AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW $fires()",
		'trigger t on table public.customers: trigger "t" names no column of the phone' ],
	[ 'UPDATE OF', "AFTER INSERT OR UPDATE OF tags OR DELETE ON customers FOR EACH ROW $fires('phone', 'tags')",
		'trigger t on table public.customers: trigger "t" is limited to some columns' ],
	[ 'a server that does not exist', "AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW $fires('phone', 'tags', '', '', 'nowhere')",
		'server nowhere: server "nowhere" does not exist' ],
	[ 'no INSERT', "AFTER UPDATE ON customers FOR EACH ROW $fires('phone', 'tags')",
		'table public.customers: no trigger of the extension fires on INSERT' ],
	[ 'no DELETE', "AFTER INSERT OR UPDATE ON customers FOR EACH ROW $fires('phone', 'tags')",
		'table public.customers: no trigger of the extension fires on DELETE' ],
	[ 'UPDATE alone at statement level', "AFTER UPDATE ON customers REFERENCING OLD TABLE AS old NEW TABLE AS new FOR EACH STATEMENT $fires('phone', 'tags')",
		'table public.customers: no trigger of the extension fires on INSERT' ])
{
	$calls->sql("CREATE TRIGGER t $case->[1]");
	is(check(), $case->[2], "trigger: $case->[0]");
	$calls->sql('DROP TRIGGER t ON customers');
}
$calls->sql("CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW $fires('phone', 'tags')");
is(check(), '', 'trigger: a good one');
foreach my $mode ('DISABLE', 'ENABLE REPLICA')
{
	$calls->sql("ALTER TABLE customers $mode TRIGGER t");
	mended_ok("trigger: $mode", 'trigger t on table public.customers: it (?:is disabled|fires for replicated changes alone)');
}
$calls->sql('CREATE ROLE owner; ALTER TABLE customers OWNER TO owner; GRANT CREATE ON SCHEMA public TO owner');
like(check(), qr/^user mapping for owner on server doubletick: permission denied/, 'trigger: an owner who cannot send');
$calls->sql('ALTER TABLE customers OWNER TO CURRENT_USER');
$calls->sql(q{CREATE TABLE parts (phone text, tags text[]) PARTITION BY HASH (phone);
	CREATE TABLE part PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0)});
$calls->sql("CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON parts FOR EACH ROW $fires('phone', 'labels')");
is(check(), 'trigger t on table public.parts: column "labels" of relation "parts" does not exist', 'trigger: a partitioned table is reported once');
$calls->sql('DROP TRIGGER t ON parts');
$calls->sql("CREATE TRIGGER i AFTER INSERT ON parts REFERENCING NEW TABLE AS new FOR EACH STATEMENT $fires('phone', 'tags');
	CREATE TRIGGER u AFTER UPDATE ON parts REFERENCING OLD TABLE AS old NEW TABLE AS new FOR EACH STATEMENT $fires('phone', 'tags');
	CREATE TRIGGER d AFTER DELETE ON parts REFERENCING OLD TABLE AS old FOR EACH STATEMENT $fires('phone', 'tags')");
like(check(), qr/^(?:trigger \w on table public.parts: the table is partitioned, and triggers FOR EACH STATEMENT miss .*\n?){3}$/, 'trigger: a partitioned table at statement level');
$calls->sql('DROP TABLE parts');

# A table that a subscription changes.
$calls->sql("CREATE TABLE subscribed (phone text PRIMARY KEY, tags text[]);
	CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON subscribed FOR EACH ROW $fires('phone', 'tags');
	CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false);
	INSERT INTO pg_subscription_rel SELECT oid, 'subscribed'::regclass, 'r', NULL FROM pg_subscription");
mended_ok('trigger: a subscription', 'trigger t on table public.subscribed: a subscription changes the table, and the trigger does not fire for that');
$calls->sql("DROP TRIGGER t ON subscribed;
	CREATE TRIGGER i AFTER INSERT ON subscribed REFERENCING NEW TABLE AS new FOR EACH STATEMENT $fires('phone', 'tags');
	CREATE TRIGGER u AFTER UPDATE ON subscribed REFERENCING OLD TABLE AS old NEW TABLE AS new FOR EACH STATEMENT $fires('phone', 'tags');
	CREATE TRIGGER d AFTER DELETE ON subscribed REFERENCING OLD TABLE AS old FOR EACH STATEMENT $fires('phone', 'tags')");
like(check(), qr/^(?:trigger \w on table public.subscribed: .*FOR EACH STATEMENT do not fire for that\n?){3}$/, 'trigger: a subscription at statement level');
$calls->sql("DELETE FROM pg_subscription_rel");
is(check(), '', 'trigger: all three at statement level are good');

# A subscription that sets sequences, from PostgreSQL 19 on.
$calls->sql("INSERT INTO pg_subscription_rel SELECT oid, 'dt_waiting_id_seq'::regclass, 'r', NULL FROM pg_subscription");
is(check(), 'sequence public.dt_waiting_id_seq: subscription "s" sets it, so that enqueueing may fail with "duplicate key"', 'a subscription that sets the sequence');
is(hint(), 'Take the publication FOR ALL SEQUENCES out of subscription s.', 'a subscription that sets the sequence: the hint');
$calls->sql('DELETE FROM pg_subscription_rel');

# A publication of all tables, as pg_createsubscriber makes it: the publisher enqueues.
$calls->sql("DROP TRIGGER i ON subscribed; DROP TRIGGER u ON subscribed; DROP TRIGGER d ON subscribed;
	CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON subscribed FOR EACH ROW $fires('phone', 'tags');
	INSERT INTO pg_subscription_rel SELECT s.oid, c.oid, 'r', NULL FROM pg_subscription AS s, pg_class AS c
		WHERE c.oid IN ('subscribed'::regclass, 'dt_waiting'::regclass)");
is(check(), '', 'trigger: a subscription that has dt_waiting, too: both would send if the trigger fired');
$calls->sql("DELETE FROM pg_subscription_rel");
$calls->sql("DROP TABLE subscribed");

# Subscribed partitions: a trigger of a partitioned table fires by the clones that its
# partitions have.
$calls->sql("CREATE TABLE parts (phone text PRIMARY KEY, tags text[]) PARTITION BY HASH (phone);
	CREATE TABLE part PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0);
	CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON parts FOR EACH ROW $fires('phone', 'tags')");
foreach my $table ('parts', 'part')
{
	$calls->sql("INSERT INTO pg_subscription_rel SELECT oid, '$table'::regclass, 'r', NULL FROM pg_subscription");
	mended_ok("trigger: a subscription of $table", 'trigger t on table public.parts: a subscription changes the table, and the trigger does not fire for that');
	is($calls->sql("SELECT string_agg(tgenabled::text, '') FROM pg_trigger WHERE tgname = 't' AND tgrelid IN ('parts'::regclass, 'part'::regclass)"),
		'AA', "trigger: a subscription of $table: the partition's clone fires always, too");
	$calls->sql('ALTER TABLE part ENABLE TRIGGER t');
	mended_ok("trigger: a clone of a subscribed $table", 'trigger t on table public.part: a subscription changes the table, and the trigger does not fire for that');
	$calls->sql('ALTER TABLE part DISABLE TRIGGER t');
	mended_ok("trigger: a disabled clone of a subscribed $table", 'trigger t on table public.part: it is disabled');
	$calls->sql('DELETE FROM pg_subscription_rel; ALTER TABLE parts ENABLE TRIGGER t');
}
$calls->sql('ALTER TABLE part DISABLE TRIGGER t');
mended_ok('trigger: a disabled clone', 'trigger t on table public.part: it is disabled');

# A first copy that is not complete. Nobody can tell from the catalog of another database.
foreach my $state ('i', 'd', 'f')
{
	$calls->sql("INSERT INTO pg_subscription_rel SELECT oid, 'parts'::regclass, '$state', NULL FROM pg_subscription;
		ALTER TABLE parts ENABLE ALWAYS TRIGGER t");
	is(check(), 'table public.parts: subscription "s" has not copied the table yet', "first copy: state $state is reported");
	$calls->sql('DELETE FROM pg_subscription_rel');
}
$calls->sql('CREATE DATABASE other');
$calls->set_up('other');
$calls->sql("CREATE TABLE parts (phone text PRIMARY KEY, tags text[]);
	CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON parts FOR EACH ROW $fires('phone', 'tags')", database => 'other');
is($calls->sql('SELECT object, problem FROM dt_check()', database => 'other'), '', 'trigger: a subscription of another database is not this one\'s');
$calls->sql("DROP DATABASE other; DROP TABLE parts; ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s");

# Our tables.
$calls->sql('ALTER TABLE dt_settled ADD COLUMN note text');
like(check(), qr/^table public.dt_settled: .*dt_settled/, 'a table of ours that was changed');
$calls->sql('ALTER TABLE dt_settled DROP COLUMN note');
$calls->sql('DROP INDEX dt_waiting_customer');
like(check(), qr/^table public.dt_waiting: /, 'an index of ours that was dropped');
$calls->sql('CREATE INDEX dt_waiting_customer ON dt_waiting (customer, keep, id)');

# What waits, and who sends it.
enqueue($phone, ['a']);
like(check(), qr/^library doubletick: it is not preloaded, so no worker sends the removals that wait: 1$/, 'not preloaded');
like(hint(), qr/^ALTER SYSTEM SET shared_preload_libraries = 'doubletick'; then restart/, 'not preloaded: the hint');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'doubletick'\ndoubletick.enabled = on\nmax_worker_processes = 0");
$node->restart;
like(check(), qr/^background process doubletick launcher: it does not run/, 'no launcher runs');
drain();
$sb->rule('*', { status => 401 });
enqueue($phone, ['b']);
drain();
like(check(), qr/^requests of role \S+ to server doubletick: they are held: request was refused with HTTP status 401.*\nbackground/s, 'what is held');
my $hint_of_hold = q{SELECT hint FROM dt_check() WHERE object LIKE 'requests of role %'};
like($calls->sql($hint_of_hold), qr/^Set the right API key: ALTER USER MAPPING FOR \S+ SERVER doubletick OPTIONS \(SET api_key '\.\.\.'\);$/,
	'what is held: the hint is the command that mends it');

# The next drainer writes the hold again when it sends a probe, and keeps the hint.
my $known = $calls->sql('SELECT quote_literal(hint) FROM dt_hold');
$sb->rule('*', { status => 503 });
foreach my $hint ($known, 'NULL')
{
	$calls->sql("UPDATE dt_hold SET probe_at = now(), hint = $hint");
	enqueue(new_phone(), ['c']);	# one that may be sent at once
	drain();
	is($calls->sql("SELECT probe_at > now() AND hint IS NOT DISTINCT FROM $hint FROM dt_hold"), 't', 'what is held: a probe leaves the hint as it is');
}
is($calls->sql($hint_of_hold), 'They go on by themselves when this is mended: one request a minute tries.', 'what is held: for a reason that has no hint');

# A role that was dropped is asked for by no account while requests are switched off.
$calls->sql("UPDATE dt_waiting SET role = 4000000000; UPDATE dt_hold SET role = 4000000000");
like(check(0, 'SET doubletick.enabled = off'), qr/^requests of role 4000000000 to server doubletick: they are held/m, 'what is held: a role that was dropped');
$calls->sql('TRUNCATE dt_waiting, dt_hold');
$sb->clear_rules;

# What others do while dt_check() waits for a lock of theirs.
sub check_meanwhile
{
	my ($table, $within, @meanwhile) = @_;
	my ($owner, $checker) = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 2;

	$owner->query("BEGIN; LOCK TABLE $table; $within");
	$checker->query_until(qr/on its way/, "\\echo on its way\nSELECT object || ': ' || problem FROM dt_check() WHERE object !~ 'launcher';\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_locks WHERE NOT granted") }, 'dt_check() waits');
	$calls->sql($_) foreach @meanwhile;
	$owner->query('COMMIT');
	my ($found) = $checker->query("SELECT 'over'");
	my $messages = $checker->{stderr};
	$_->quit foreach $owner, $checker;
	return "$found$messages";
}
$calls->sql("CREATE TABLE parts (phone text, tags text[]) PARTITION BY LIST (phone);
	CREATE TABLE part PARTITION OF parts FOR VALUES IN ('1');
	CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON parts FOR EACH ROW $fires('phone', 'tags');
	ALTER TABLE part DISABLE TRIGGER t");
is(check_meanwhile('parts', 'DROP TABLE part'), 'over', 'meanwhile: a partition is dropped');

# The schema's owner gives it another name, and views of theirs the names of our tables.
enqueue($phone, ['a']);
$calls->sql("CREATE FUNCTION evil() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE WARNING ''evil runs as %'', current_user; RETURN true; END'");
is(check_meanwhile('parts', '',
		q{BEGIN; ALTER SCHEMA public RENAME TO moved; CREATE SCHEMA public;
		CREATE VIEW public.dt_waiting AS SELECT 'x'::text AS server, 10::oid AS role, false AS keep WHERE moved.evil();
		CREATE VIEW public.dt_hold AS SELECT 'x'::text AS server, 10::oid AS role, '' AS reason, '' AS hint, '' AS definition; COMMIT}),
	'over', 'meanwhile: views that are not ours are not read');
$calls->sql('DROP SCHEMA public CASCADE; ALTER SCHEMA moved RENAME TO public; DROP TABLE parts; DROP FUNCTION evil()');

# Who may look, and that nothing is written.
is(sqlstate_of('SET SESSION AUTHORIZATION nobody; SELECT * FROM dt_check()'), '42501', 'not everybody');
like(as('monitor', 'SELECT object FROM dt_check()'), qr/background/, 'but members of pg_monitor');
is($calls->sql("BEGIN READ ONLY; SELECT count(*) > 0 FROM dt_check(true); SELECT pg_current_xact_id_if_assigned() IS NULL; COMMIT"),
	"t\nt", 'a read-only transaction, which gets no id');
done_testing();

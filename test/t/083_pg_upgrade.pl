
# pg_upgrade while removals wait: nothing in the queue or the history is lost, and the
# new server sends what has waited, once. And pg_dump and pg_restore, which carry the
# definitions to the new server, and leave the queue where it is.
#
# From the server under test to itself; and to it from each older one under
# /usr/lib/postgresql that has the extension. Or between two others that have it: their
# programs are in $ENV{DOUBLETICK_OLD_BINDIR} and $ENV{DOUBLETICK_NEW_BINDIR}.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls qw(quote eventually);
use Queue qw(new_phone enqueueing keep);
use Sandbox;

my ($new_bindir) = $ENV{DOUBLETICK_NEW_BINDIR} || run_command([ 'pg_config', '--bindir' ]);
my $new_version = server_version($new_bindir);
my $sb = Sandbox->start('--any-key');
my $nclusters = 0;
my @old_bindirs;

if ($ENV{DOUBLETICK_OLD_BINDIR}) { @old_bindirs = ($ENV{DOUBLETICK_OLD_BINDIR}); }
else
{
	@old_bindirs = ($new_bindir, grep { server_version($_) < $new_version && has_extension($_) }
		  grep { -x "$_/postgres" && -x "$_/pg_config" } glob '/usr/lib/postgresql/*/bin');
}

sub server_version
{
	my ($bindir) = @_;

	my ($stdout) = run_command([ "$bindir/pg_config", '--version' ]);
	my ($version) = $stdout =~ /PostgreSQL (\d+)/;

	return $version;
}

sub has_extension
{
	my ($bindir) = @_;
	my ($sharedir) = run_command([ "$bindir/pg_config", '--sharedir' ]);

	return -e "$sharedir/extension/doubletick.control";
}

# A cluster that preloads the library and sends nothing yet.
sub new_cluster
{
	my ($bindir) = @_;
	my $cluster = PostgreSQL::Test::Cluster->new('upgrade' . ++$nclusters, install_path => dirname($bindir));

	# From 18 on, initdb turns checksums on; both clusters must be alike.
	$cluster->init(extra => [ '--encoding=UTF8', '--locale=C', server_version($bindir) >= 18 ? '--no-data-checksums' : () ]);
	$cluster->append_conf('postgresql.conf', "shared_preload_libraries = 'doubletick'\ndoubletick.enabled = off\n");
	return $cluster;
}

sub switch
{
	my ($cluster, $value) = @_;

	$cluster->safe_psql('postgres', "ALTER SYSTEM SET doubletick.enabled = $value");
	$cluster->reload;
	return;
}

# What is upgraded: rows of each kind, of two roles.
sub fill
{
	my ($cluster, %phones) = @_;

	$cluster->safe_psql('postgres', 'CREATE EXTENSION doubletick;
		CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick OPTIONS (' . $sb->server_options(rate_limit => '0') . qq{);
		CREATE ROLE dropped; CREATE ROLE app LOGIN; DROP ROLE dropped;
		GRANT USAGE ON FOREIGN SERVER doubletick TO app;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO app;
		CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (api_key 'key_1');
		CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key 'key_app');
		CREATE TABLE came_back (phone text, tags text[], fields text[], waba text);
		CREATE TRIGGER came_back AFTER INSERT OR UPDATE OR DELETE ON came_back FOR EACH ROW
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields', 'waba')});
	$sb->rule($phones{failed}, { status => 422 });
	$sb->rule($phones{again}, { status => 503, retry_after => '3000', times => 1 });
	$cluster->safe_psql('postgres', enqueueing($phones{$_}, ['lead'])) foreach qw(done failed again);
	switch($cluster, 'on');
	eventually(sub {
		$cluster->safe_psql('postgres', 'SELECT (SELECT count(*) FROM dt_history), (SELECT sum(attempts) FROM dt_queue)') eq '2|1' },
		'the old server has sent');
	switch($cluster, 'off');
	eventually(sub { $cluster->safe_psql('postgres', 'SHOW doubletick.enabled') eq 'off' }, 'the old server sends no more');
	$cluster->safe_psql('postgres', "SET ROLE app; " . enqueueing($phones{of_app}, ['lead'], ['plan'], waba => '919812345678'));
	$cluster->safe_psql('postgres', enqueueing($phones{kept}, [ 'lead', 'vip' ]));
	$cluster->safe_psql('postgres', keep($phones{kept}, ['vip']));
	return;
}

sub contents
{
	my ($cluster) = @_;

	return join "\n--\n", map { $cluster->safe_psql('postgres', $_) } (
		'SELECT * FROM dt_waiting ORDER BY id', 'SELECT * FROM dt_settled ORDER BY id',
		'SELECT id, role, phone, tags, fields, waba FROM dt_queue ORDER BY id',
		'SELECT server, role FROM dt_hold', 'SELECT last_value FROM dt_waiting_id_seq');
}

# What pg_dump and pg_restore carry.
sub definitions
{
	my ($cluster, $database) = @_;

	return join "\n--\n", map { $cluster->safe_psql($database, $_) } (
		"SELECT extversion FROM pg_extension WHERE extname = 'doubletick'",
		'SELECT srvname, srvoptions, srvacl FROM pg_foreign_server ORDER BY 1',
		'SELECT srvname, usename, umoptions FROM pg_user_mappings ORDER BY 1, 2',
		'SELECT * FROM came_back',
		q{SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'came_back'::regclass ORDER BY 1},
		q{SELECT proname, proacl FROM pg_proc WHERE proname LIKE 'dt\_%' ORDER BY 1});
}

sub restored
{
	my ($cluster, $dump, $phone, $name) = @_;

	$cluster->safe_psql('postgres', 'CREATE DATABASE restored');
	command_ok([ "$new_bindir/pg_restore", '--exit-on-error', '-d', $cluster->connstr('restored'), $dump ],
		"$name: pg_restore succeeds");
	is(definitions($cluster, 'restored'), definitions($cluster, 'postgres'), "$name: what is restored is what was upgraded");
	is($cluster->safe_psql('restored', 'SELECT count(*) FROM dt_waiting'), '0', "$name: but nothing waits there");
	$cluster->safe_psql('restored', "INSERT INTO came_back VALUES ('$phone', '{lead}'); DELETE FROM came_back WHERE phone = '$phone'");
	is($cluster->safe_psql('restored', 'SELECT phone, tags FROM dt_queue'), "$phone|{lead}", "$name: the restored trigger fires");
	return;
}

sub sent { return map { join ',', @{ $_->{body}{tags} }, map { "=$_" } @{ $_->{body}{customFields} } } grep { $_->{body}{phone} eq $_[0] } @{ $sb->journal }; }

sub upgraded
{
	my ($old_bindir) = @_;
	my $name = sprintf 'from %d to %d', server_version($old_bindir), $new_version;
	my $old = new_cluster($old_bindir);

	$old->start;
  SKIP:
	{
		my $option = unknown_option($old);

		skip("$name: any table of this PostgreSQL has an option of a column that others do not know: $option", 1)
		  if $option && server_version($old_bindir) != $new_version;
		upgraded_cluster($old_bindir, $old, $name);
	}
	return;
}

# An option that a column has of which nobody has said anything, as in a build of 17.12.
sub unknown_option
{
	my ($cluster) = @_;

	$cluster->safe_psql('postgres', 'CREATE TABLE plain (id int)');
	my $option = $cluster->safe_psql('postgres', "SELECT max(attoptions::text) FROM pg_attribute WHERE attrelid = 'plain'::regclass");
	$cluster->safe_psql('postgres', 'DROP TABLE plain');
	return $option;
}

sub upgraded_cluster
{
	my ($old_bindir, $old, $name) = @_;
	my %phones = map { $_ => new_phone() } qw(done failed again of_app kept after restored);
	my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
	my $new = new_cluster($new_bindir);

	fill($old, %phones);
	my $before = contents($old);
	command_ok([ "$new_bindir/pg_dump", '-Fc', '-d', $old->connstr('postgres'), '-f', $dump ], "$name: pg_dump succeeds");
	$old->stop;
	command_ok([ 'sh', '-c', 'cd "$1" && shift && exec "$@"', 'sh', PostgreSQL::Test::Utils::tempdir(),
			"$new_bindir/pg_upgrade", '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir,
			'-b', $old_bindir, '-B', $new_bindir, '-s', $new->host, '-p', $old->port, '-P', $new->port ],
		"$name: pg_upgrade succeeds");
	$new->start;
	is(contents($new), $before, "$name: the queue and the history are as they were");
	$new->safe_psql('postgres', 'ALTER EXTENSION doubletick UPDATE');
	restored($new, $dump, $phones{restored}, $name);
	is(scalar(() = sent($phones{of_app})), 0, "$name: nothing was sent so far");
	switch($new, 'on');
	my $id = $new->safe_psql('postgres', enqueueing($phones{after}, ['lead']));
	cmp_ok($id, '>', $new->safe_psql('postgres', 'SELECT max(id) FROM dt_settled WHERE id <> ' . $id), "$name: ids go on");
	eventually(sub { $new->safe_psql('postgres', "SELECT count(*) FROM dt_queue WHERE due_at <= now()") eq '0' }, "$name: the new server sends");
	is(join(' ', sent($phones{of_app})), 'lead,=plan', "$name: what a role has enqueued is sent once");
	is(join(' ', sent($phones{kept})), 'lead', "$name: a name that came back is not");
	is(join(' ', sent($phones{$_})), 'lead', "$name: $_ is sent once") foreach qw(done failed again after);
	is($new->safe_psql('postgres', "SELECT role, state FROM dt_history WHERE phone = '$phones{of_app}'"), 'app|done', "$name: it belongs to the same role");
	$new->safe_psql('postgres', "DELETE FROM came_back WHERE phone = '$phones{kept}'");
	eventually(sub { join(' ', sent($phones{kept})) eq 'lead vip' }, "$name: the trigger fires");
	eventually(sub { join(' ', sent($phones{restored})) eq 'lead' }, "$name: what was enqueued in the restored database is sent");
	is($new->safe_psql('postgres', "SELECT dt_retry(id) FROM dt_history WHERE phone = '$phones{failed}'"), 't', "$name: what failed before can be tried again");
	eventually(sub { scalar(() = sent($phones{failed})) == 2 }, "$name: and is sent");
	$new->stop;
	$sb->clear_rules;
	return;
}

upgraded($_) foreach @old_bindirs;
done_testing;

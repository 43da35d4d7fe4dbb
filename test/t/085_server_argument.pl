
# The server as the fifth argument of calls, of enqueueing and of dt_keep(): a SET does
# not travel through a connection pool.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue();
make_roles();

# The other server has another key: it tells which of the two a request was for.
$calls->server('"Other one"');
$calls->sql(q{ALTER USER MAPPING FOR CURRENT_USER SERVER "Other one" OPTIONS (SET api_key 'key_app')});
$calls->sql('CREATE FOREIGN DATA WRAPPER foreign_one; CREATE SERVER foreign_one FOREIGN DATA WRAPPER foreign_one');

my %server_of = (key_sandbox => 'doubletick', key_app => 'Other one');
my @calls = qw(dt_remove_tags_custom_fields dt_try_remove_tags_custom_fields);
my @enqueueing = qw(dt_enqueue_remove_tags_custom_fields dt_try_enqueue_remove_tags_custom_fields);
my $superuser = $calls->sql('SELECT current_user');

# The servers that got requests for a phone, in order.
sub servers
{
	my ($phone) = @_;

	return join ', ', map { $server_of{ $_->{authorization} } // 'none' } requests($phone);
}

sub calls_go_there
{
	foreach my $function (@calls)
	{
		my $phone = new_phone();

		$calls->session(
			"SELECT $function('$phone', '{a}', NULL, NULL, 'Other one')",
			"SELECT $function('$phone', '{b}')",
			"SELECT $function('$phone', '{c}', server => NULL)",
			q{SET doubletick.server = 'Other one'},
			"SELECT $function('$phone', '{d}', server => NULL)",
			"SELECT $function('$phone', '{e}', server => 'doubletick')",
			"SELECT $function('$phone', '{f}')");
		is(servers($phone), 'Other one, doubletick, doubletick, Other one, doubletick, Other one',
			"$function: the argument, or else the setting");
	}

	# One server after the other in one statement, and from a table.
	my $phone = new_phone();
	$calls->sql("SELECT count(dt_remove_tags_custom_fields('$phone', '{lead}', server => s))
		FROM unnest(ARRAY['doubletick', 'Other one', NULL, 'Other one']) AS s");
	is(servers($phone), 'doubletick, Other one, doubletick, Other one', 'a server for each row');
	return;
}

sub enqueueing_goes_there
{
	foreach my $function (@enqueueing)
	{
		my $phone = new_phone();

		foreach my $statement (
			"SELECT $function('$phone', '{a}', NULL, NULL, 'Other one')",
			"SELECT $function('$phone', '{b}')",
			"SELECT $function('$phone', '{c}', server => NULL)",
			"SET doubletick.server = 'Other one'; SELECT $function('$phone', '{d}', server => NULL)",
			"SET doubletick.server = 'Other one'; SELECT $function('$phone', '{e}', server => 'doubletick')")
		{
			my $id = $calls->sql($statement);

			is(waiting($id)->{server}, $statement =~ /\{[ad]\}/ ? 'Other one' : 'doubletick', "enqueued: $statement");
			drain();
		}
		is(servers($phone), 'Other one, doubletick, doubletick, Other one, doubletick', "$function: sent there");
	}

	# A removal with a bad argument is recorded with the server that was named.
	my $id = $calls->sql(q{SELECT dt_try_enqueue_remove_tags_custom_fields('0987', '{lead}', server => 'Other one')});
	is(join(' ', @{ settled($id) }{qw(server state)}), 'Other one failed', 'a bad phone: recorded with the server');

	# The option "delay" is that of the server that was named.
	my $phone = new_phone();
	$calls->sql(q{ALTER SERVER "Other one" OPTIONS (ADD delay '1h')});
	$id = enqueue($phone, ['lead'], undef, server => 'Other one');
	is($calls->sql("SELECT due_at - enqueued_at FROM dt_queue WHERE id = $id"), '01:00:00', 'its delay');
	$calls->sql(q{ALTER SERVER "Other one" OPTIONS (DROP delay)});

	# A keep takes back what waits for its server, and no other.
	is($calls->sql("SELECT dt_keep('$phone', '{lead}')"), 'f', 'dt_keep: a removal for another server');
	is($calls->sql("SELECT dt_keep('$phone', '{lead}', server => 'doubletick')"), 'f', 'dt_keep: the same, by the argument');
	is($calls->sql("SELECT dt_keep('$phone', '{lead}', server => 'Other one')"), 't', 'dt_keep: its server');
	fresh();
	return;
}

# What raises an error, and what its hint says.
sub no_such_server
{
	my ($phone, %says) = (new_phone());
	my %message = (nowhere => 'does not exist', foreign_one => 'is not a DoubleTick server', '' => 'does not exist',
		'x' x 64 => 'does not exist');

	foreach my $server (sort keys %message)
	{
		my $hint = $server eq 'foreign_one'
		  ? q{In the argument "server", name a server of the foreign-data wrapper "doubletick".}
		  : q{The argument "server" names it; this database has "doubletick", "Other one".};

		foreach my $function (@calls, @enqueueing, 'dt_keep')
		{
			my ($raised) = $calls->session("SELECT $function('$phone', '{lead}', server => '$server')");

			is($raised->{sqlstate}, '42704', "$function, \"$server\": SQLSTATE");
			is($raised->{message}, "server \"$server\" $message{$server}", "$function, \"$server\": message");
			is($raised->{hint}, $hint, "$function, \"$server\": the hint speaks of the argument");
		}
		next unless length $server;
		my ($raised) = $calls->session("SELECT set_config('doubletick.server', '" . substr($server, 0, 63) . "', false)", removal($phone, ['lead']));
		unlike($raised->{hint} // '', qr/argument "server"/, "setting \"$server\": the hint speaks of the setting");
	}
	is(scalar(requests($phone)), 0, 'nothing was sent');

	# Of many servers the hint names five.
	$calls->sql(join ';', map { "CREATE SERVER many$_ FOREIGN DATA WRAPPER doubletick" } 1 .. 4);
	my ($one_of_many) = $calls->session("SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{lead}', server => 'nowhere')");
	is(scalar(() = $one_of_many->{hint} =~ /"(?:doubletick|Other one|many\d)"/g), 5, 'of six servers the hint names five') || diag($one_of_many->{hint});
	$calls->sql(join ';', map { "DROP SERVER many$_" } 1 .. 4);

	# The hint is about the server; other errors keep theirs.
	my ($raised) = $calls->session("SELECT dt_remove_tags_custom_fields('x', '{lead}', server => 'nowhere')");
	like($raised->{hint}, qr/country code/, 'a bad phone comes first');
	($raised) = $calls->session('CREATE ROLE unmapped SUPERUSER', 'SET ROLE unmapped',
		"SELECT dt_remove_tags_custom_fields('$phone', '{lead}', server => 'Other one')");
	is("$raised->{sqlstate} $raised->{hint}", q{42704 Create it: CREATE USER MAPPING FOR unmapped SERVER "Other one" OPTIONS (api_key '...');},
		'no mapping on that server');

	# The context names the server, and dt_payload() has none.
	my $stderr;
	$node->psql('postgres', q{SELECT dt_enqueue_remove_tags_custom_fields('0987', '{lead}', server => 'Other one')}, stderr => \$stderr);
	like($stderr, qr/^CONTEXT:  removal for phone 0987, server "Other one", role "\Q$superuser\E"$/m, 'the context of an error: enqueueing');
	$node->psql('postgres', q{SELECT dt_remove_tags_custom_fields('0987', '{lead}', server => 'Other one')}, stderr => \$stderr);
	like($stderr, qr/^CONTEXT:  removal for phone 0987, server "Other one", role "\Q$superuser\E"$/m, 'the context of an error: a call');
	is(sqlstate_of("SELECT dt_payload('$phone', '{lead}', server => 'doubletick')"), '42883', 'dt_payload() has no server');

	# A pause is said of the server that was named.
	$sb->rule($phone, { status => 429, retry_after => '3600', times => 1 });
	my ($refused, $paused, $other) = $calls->session(
		map { "SELECT dt_try_remove_tags_custom_fields('$phone', '{lead}', server => $_)" } q{'Other one'}, q{'Other one'}, 'NULL');
	like($paused->{value}{message}, qr/^server "Other one" is paused for another/, 'a pause of the server that was named');
	is(ref $other->{value}{tags}, 'HASH', 'and of no other');
	return;
}

# USAGE on the server is needed, however the server was chosen.
sub without_usage
{
	my $phone = new_phone();

	$calls->sql('GRANT EXECUTE ON FUNCTION dt_remove_tags_custom_fields, dt_try_remove_tags_custom_fields TO app;'
		  . q{CREATE USER MAPPING FOR app SERVER "Other one" OPTIONS (api_key 'key_app')});
	foreach my $function (@calls)
	{
		my ($raised) = $calls->session('SET SESSION AUTHORIZATION app', "SELECT $function('$phone', '{lead}', server => 'Other one')");
		is("$raised->{sqlstate} $raised->{message}", '42501 permission denied for foreign server Other one', "$function without USAGE");
	}
	my $id = as('app', "SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{lead}', server => 'Other one')");
	like(drain(), qr/permission denied for foreign server Other one/, 'the queue asks for it when it sends');
	is(states($id), 'waiting', 'and holds the removal');
	is(scalar(requests($phone)), 0, 'nothing was sent');

	$calls->sql('GRANT USAGE ON FOREIGN SERVER "Other one" TO app');
	drain();
	is(servers($phone), 'Other one', 'with USAGE it is sent');

	# A SECURITY DEFINER function that names the server: its caller's setting is nothing to it.
	$calls->sql(q{CREATE FUNCTION lent(phone text) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
		AS $$ SELECT dt_enqueue_remove_tags_custom_fields(phone, '{lent}', server => 'Other one') $$;
		ALTER FUNCTION lent OWNER TO app});
	$id = as('nobody', 'SET doubletick.server = doubletick', "SELECT lent('$phone')");
	is(join(' ', @{ waiting($id) }{qw(server role)}), 'Other one app', 'SECURITY DEFINER: the server that the function names');
	drain();
	return;
}

# As parts of other statements.
sub in_statements
{
	my $phone = new_phone();

	$calls->sql("CREATE TABLE leads (phone text, server text); INSERT INTO leads VALUES ('$phone', 'Other one'), ('$phone', 'doubletick'), ('$phone', NULL)");
	$calls->sql(q{CREATE VIEW removals AS SELECT phone, server, dt_try_remove_tags_custom_fields(phone, '{lead}', server => server) AS answer FROM leads});
	is($calls->sql('SELECT count(answer) FROM removals'), '3', 'a view over a table that names the servers');
	is(servers($phone), 'Other one, doubletick, doubletick', 'each row goes to its own');

	# Prepared: the plan is generic after some executions.
	my $other = new_phone();
	$calls->sql("PREPARE removal(text, text) AS SELECT dt_remove_tags_custom_fields(\$1, '{lead}', server => \$2);"
		  . "SET plan_cache_mode = force_generic_plan;"
		  . join(';', map { "EXECUTE removal('$other', $_)" } q{'Other one'}, 'NULL', q{'doubletick'}, q{'Other one'})
		  . "; SET doubletick.server = 'Other one'; EXECUTE removal('$other', NULL); EXECUTE removal('$other', 'doubletick')");
	is(servers($other), 'Other one, doubletick, doubletick, Other one, Other one, doubletick', 'a prepared statement');

	$calls->sql("PREPARE enqueueing(text) AS SELECT dt_enqueue_remove_tags_custom_fields('$other', '{later}', server => \$1);"
		  . q{EXECUTE enqueueing('Other one'); ALTER SERVER "Other one" RENAME TO renamed; EXECUTE enqueueing('renamed')});
	is($calls->sql(q{SELECT string_agg(server, ', ' ORDER BY id) FROM dt_queue}), 'Other one, renamed', 'a prepared statement, while the server is renamed');
	$calls->sql('ALTER SERVER renamed RENAME TO "Other one"');
	fresh();

	# In a transaction that goes on: nothing stays of it.
	is($calls->sql("BEGIN; SELECT dt_enqueue_remove_tags_custom_fields('$other', '{a}', server => 'Other one') > 0;
		SELECT current_setting('doubletick.server'); COMMIT"), "t\ndoubletick", 'the setting stays as it is');
	return;
}

calls_go_there();
enqueueing_goes_there();
no_such_server();
without_usage();
in_statements();
done_testing;

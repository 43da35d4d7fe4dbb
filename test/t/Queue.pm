
=head1 NAME

Queue - the queue, for TAP tests

=head1 SYNOPSIS

  use Queue;
  open_queue(conf => 'max_prepared_transactions = 10');
  my $phone = new_phone();
  my $id = enqueue($phone, ['lead']);
  like(drain(), qr/1 done/);
  is_received($phone, 'lead', 'it is received');
  is(states($id), 'done', 'and settled');

A race, made by an answer that the sandbox holds:

  $sb->hold($phone);
  my $drain = start_drain();
  $sb->await_held(1, $phone);
  # Whatever is to happen while the request is out.
  $sb->release($phone);
  await_drain($drain);

=head1 DESCRIPTION

Functions about the queue of one cluster. What is not said otherwise is done by
the superuser in the database "postgres", for the server "doubletick".

=cut

package Queue;

use strict;
use warnings;

use Calls;
use Encode qw(decode encode);
use Exporter qw(import);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw($calls $sb $node open_queue new_phone enqueue enqueueing enqueue_many keep
  drain start_drain await_drain break_off received is_received requests states waiting settled
  status everything_is_seen time_passes settle fresh make_roles as sqlstate_of);

our ($calls, $sb, $node);

my $json = JSON::PP->new->utf8->allow_nonref;

=pod

=over

=item open_queue(testing => 1, conf => text, options => {...}, sandbox => [argument, ...])

Starts a sandbox and a cluster, as Calls->new does, and sets $calls, $sb and
$node. Unless given, the timeout of a request is a minute, so that an answer can
be held; and the sandbox takes the keys "key_sandbox" and "key_app".

With "testing" the whole test is skipped where the library is built without
TESTING=1: time_passes and dt_test_customer(), which need that, are not there.

=cut

sub open_queue
{
	my (%with) = @_;
	my %options = (timeout => '1min', %{ delete $with{options} || {} });
	my $needs_testing = delete $with{testing};

	$calls = Calls->new(
		sandbox => [ '--key', 'key_sandbox', '--key', 'key_app' ],
		options => \%options,
		%with);
	$sb = $calls->sandbox;
	$node = $calls->node;
	$calls->sql(<<'SQL');
CREATE TABLE came_back (phone text, tags text[], fields text[], waba text);
CREATE TRIGGER came_back AFTER INSERT ON came_back FOR EACH ROW
	EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields', 'waba');
SQL
	if (is_testing_build($node))
	{
		$calls->sql(<<'SQL');
CREATE FUNCTION dt_test_customer(server text, role oid, phone text, waba text) RETURNS bigint
	LANGUAGE c IMMUTABLE AS 'doubletick';
CREATE FUNCTION dt_test_time_passes(passed interval, ids bigint[]) RETURNS void
	LANGUAGE c AS 'doubletick';
SQL
	}
	elsif ($needs_testing)
	{
		plan skip_all => 'the library is built without TESTING=1';
	}
	return;
}

=pod

=item new_phone()

A phone that nobody has used: each test has customers of its own.

=cut

my $nphones = 0;

sub new_phone { return sprintf '91987%07d', ++$nphones; }

=pod

=item enqueue(phone, [tags], [fields], waba => text, server => name, role => name, database => name)

Enqueues a removal, and returns its id. "role" is set in the session that does it.

=item enqueueing(phone, [tags], [fields], waba => text, server => name)

The same as a statement, for a session or a transaction of the test's own.

=cut

sub enqueue
{
	my ($phone, $tags, $fields, %with) = @_;
	my $set = $with{role} ? "SET ROLE $with{role};\n" : '';

	return $calls->sql($set . enqueueing($phone, $tags, $fields, %with), database => $with{database});
}

sub enqueueing
{
	my ($phone, $tags, $fields, %with) = @_;

	return removal($phone, $tags, $fields, @with{qw(waba server)}) =~ s/dt_remove/dt_enqueue_remove/r;
}

=pod

=item enqueue_many(first phone, count, server => name)

Enqueues the removal of the tag "lead" for so many customers in a row.

=cut

sub enqueue_many
{
	my ($first, $count, %with) = @_;

	return $calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields((n + $first)::text, '{lead}', server => "
		  . quote($with{server}) . ")) FROM generate_series(0, $count - 1) AS n");
}

=pod

=item keep(phone, [tags], [fields], waba => text)

A statement by which a customer has these names again. The trigger enters a keep
of those of them that wait to be removed.

=cut

sub keep
{
	my ($phone, $tags, $fields, %with) = @_;

	return removal($phone, $tags, $fields, $with{waba})
	  =~ s/^SELECT dt_remove_tags_custom_fields/INSERT INTO came_back VALUES /r;
}

=pod

=item drain(before => SQL, database => name, fails => 1)

CALL dt_process_queue() in a session of its own, after other SQL if there is
any. Tests that nothing fails, unless "fails" is given. Returns the messages.

=cut

sub drain
{
	my (%with) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($stdout, $stderr);
	my $status = $node->psql($with{database} || 'postgres',
		encode('UTF-8', ($with{before} ? "$with{before};\n" : '') . "CALL dt_process_queue();\n"),
		stdout => \$stdout, stderr => \$stderr, on_error_stop => 0,
		timeout => $PostgreSQL::Test::Utils::timeout_default);

	ok($status == 0 && $stderr !~ /^\S*\s?ERROR:/m, 'the CALL succeeds') || diag($stderr) unless $with{fails};

	# Not where in psql's input the statement was.
	return decode('UTF-8', $stderr =~ s/^psql:<stdin>:\d+: //mgr);
}

=pod

=item start_drain(before => SQL, database => name), await_drain(drain), break_off(drain)

The CALL in a session that goes on beside the test: its "session" and "pid", as a
hash. The session is ended when the CALL has come to its end, or is cancelled;
await_drain returns its messages.

=cut

sub start_drain
{
	my (%with) = @_;
	my $session = $node->background_psql($with{database} || 'postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');

	$session->query($with{before}) if $with{before};
	$session->query_until(qr/the CALL begins/, "\\echo the CALL begins\nCALL dt_process_queue();\n");
	return { session => $session, pid => $pid };
}

sub await_drain
{
	my ($drain) = @_;
	my $session = $drain->{session};

	$session->query('SELECT 1');
	my $messages = $session->{stderr};
	$session->{stderr} = '';
	$session->quit;
	return $messages;
}

sub break_off
{
	my ($drain) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$calls->sql("SELECT pg_cancel_backend($drain->{pid})");
	like(await_drain($drain), qr/canceling statement due to user request/, 'the CALL was under way until it was cancelled');
	return;
}

=pod

=item requests(phone, ...), received(phone), is_received(phone, expected, name)

What the sandbox has received for a phone, with or without a "+": the entries of
its journal; and as text, the names of each request in order, "=" before those of
custom fields. Without a phone, requests() returns all entries.

=cut

sub requests
{
	my (@phones) = @_;
	my %wanted = map { s/^\+//r => 1 } @phones;

	return grep { !@phones || $wanted{ ($_->{body}{phone} // '') =~ s/^\+//r } } @{ $sb->journal };
}

sub received
{
	my ($phone) = @_;

	return map { join ',', @{ $_->{body}{tags} }, map { "=$_" } @{ $_->{body}{customFields} } } requests($phone);
}

sub is_received
{
	my ($phone, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(join(' ', received($phone)), $expected, $name);
}

=pod

=item states(id, ...)

Their states in dt_history, "waiting" for those in dt_queue, "none" for those in
neither, as one text.

=cut

sub states
{
	my (@ids) = @_;
	my $ids = join ',', @ids;

	return $calls->sql("SELECT string_agg(coalesce(h.state, CASE WHEN q.id IS NOT NULL THEN 'waiting' END, 'none'),
			' ' ORDER BY i.n)
		FROM unnest('{$ids}'::bigint[]) WITH ORDINALITY AS i(id, n)
		LEFT JOIN dt_history AS h USING (id) LEFT JOIN dt_queue AS q USING (id)");
}

=pod

=item waiting(id, database => name), settled(id, database => name), status(server)

The row of dt_queue, of dt_history, and of dt_status, as a hash; undef when there
is none.

=cut

sub waiting { return _row('dt_queue', "id = $_[0]", @_[ 1 .. $#_ ]); }

sub settled { return _row('dt_history', "id = $_[0]", @_[ 1 .. $#_ ]); }

sub status { return _row('dt_status', 'server = ' . quote($_[0])); }

sub _row
{
	my ($view, $where, %with) = @_;
	my $row = $calls->sql("SELECT to_json(r) FROM $view AS r WHERE $where", %with);

	return length $row ? $json->decode($row) : undef;
}

=pod

=item everything_is_seen(name)

The drain that is under way has seen all that was committed before: a row that is
enqueued now is sent. A test.

=cut

sub everything_is_seen
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $phone = new_phone();

	enqueue($phone, ['now']);
	return eventually(sub { received($phone) }, $name);
}

=pod

=item time_passes(interval), time_passes(interval, id, ...)

Makes all that waits, is settled and is held so much older; or only these rows of
the queue and the history. A drain that is under way keeps what it has read.

=cut

sub time_passes
{
	my ($interval, @ids) = @_;

	$calls->sql("SELECT dt_test_time_passes('$interval', "
		  . (@ids ? "'{" . join(',', @ids) . "}'" : 'NULL') . ')');
	return;
}

=pod

=item settle()

Drains again and again, while time passes, until nothing waits. A test.

=cut

sub settle
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return eventually(
		sub {
			time_passes('1 hour');
			drain();
			return $calls->sql('SELECT count(*) FROM dt_waiting') eq '0';
		},
		'everything is settled in the end');
}

=pod

=item fresh()

Empties the queue, the history and the holds, and resets the sandbox.

=cut

sub fresh
{
	$calls->sql('TRUNCATE dt_waiting, dt_settled, dt_hold');
	$sb->reset;
	return;
}

=pod

=item make_roles()

Roles: "app" sends, with the key "key_app"; "other" has nothing to do with it;
"member" inherits "app", "stranger" may only SET ROLE to it; "monitor" is in
pg_monitor; "nobody" has nothing.

=cut

sub make_roles
{
	$calls->sql(<<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE other LOGIN;
CREATE ROLE member LOGIN;
CREATE ROLE stranger LOGIN NOINHERIT;
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE nobody LOGIN;
GRANT app TO member, stranger;
GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields, dt_cancel, dt_retry TO app, other, member, stranger;
GRANT EXECUTE ON PROCEDURE dt_process_queue TO app;
GRANT USAGE ON FOREIGN SERVER doubletick TO app, other;
CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key 'key_app');
CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_sandbox');
CREATE FUNCTION enqueue_as_app(phone text) RETURNS bigint LANGUAGE sql SECURITY DEFINER
	SET search_path = public, pg_temp
	AS $$ SELECT dt_enqueue_remove_tags_custom_fields(phone, '{lead}') $$;
ALTER FUNCTION enqueue_as_app OWNER TO app;
SQL
	return;
}

=pod

=item as(role, statement, ...)

Runs statements in a session of another role, and returns what they say.

=item sqlstate_of(SQL, node)

The SQLSTATE with which SQL fails; "none: " and the messages when it does not.

=back

=cut

sub as
{
	my ($role, @statements) = @_;

	return $calls->sql("SET SESSION AUTHORIZATION $role; " . join(';', @statements));
}

sub sqlstate_of
{
	my ($sql, $on) = @_;
	my $stderr;

	($on || $node)->psql('postgres', "\\set VERBOSITY verbose\n$sql", stderr => \$stderr);
	return $stderr =~ /ERROR:  (\w{5}):/ ? $1 : "none: $stderr";
}

1;

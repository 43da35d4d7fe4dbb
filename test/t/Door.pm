
=head1 NAME

Door - the door to the queue, for TAP tests

=head1 SYNOPSIS

  use Door;
  open_door(conf => 'max_prepared_transactions = 10');
  my $phone = new_phone();
  my $id = $calls->sql(enqueue($phone, ['lead']));
  drain();
  is_received($phone, 'lead', 'it is received');

=head1 DESCRIPTION

A Calls and what is asked of its queue, one customer at a time, as functions. The
sandbox's journal tells what has left.

=cut

package Door;

use strict;
use warnings;

use Calls;
use Exporter qw(import);
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw($calls $sb $node open_door new_phone enqueue keep drain draining break_off received
  is_received state_of sqlstate_of make_roles as);

our ($calls, $sb, $node);

=pod

=over

=item open_door(conf => text), $calls, $sb, $node

Starts a sandbox and a node, for the keys "key_sandbox" and, of the role "app",
"key_app".

=cut

sub open_door
{
	my (%with) = @_;

	$calls = Calls->new(
		sandbox => [ '--key', 'key_sandbox', '--key', 'key_app' ],
		options => { timeout => '1min' },
		%with);
	$sb = $calls->sandbox;
	$node = $calls->node;
	return;
}

=pod

=item new_phone

Each test has customers of its own.

=cut

my $nphones = 0;

sub new_phone { return sprintf '91987%07d', ++$nphones; }

=pod

=item enqueue(phone, [tags], [fields], waba)

An enqueueing, as a statement for $calls->session or sql.

=cut

sub enqueue
{
	my ($phone, $names, $fields, $waba) = @_;

	return removal($phone, $names, $fields, $waba) =~ s/dt_remove/dt_enqueue_remove/r;
}

=pod

=item keep(phone, tags, fields, waba)

A keep as the trigger would enter it, of names with commas between them: names that
the customer has again.

=cut

sub keep
{
	my ($phone, $tags, $fields, $waba) = @_;
	my $digits = $phone =~ s/^\+//r;
	my $hash = "hashtextextended('$digits', hashtextextended('doubletick', current_user::regrole::oid::bigint))";

	$hash = "hashtextextended('" . $waba =~ s/^\+//r . "', $hash)" if defined $waba;
	return 'INSERT INTO dt_waiting (id, ord, xact, customer, enqueued_at, due_at, role, enqueued_by, attempts, keep, alone, server, phone, waba, tags, fields)'
	  . ' OVERRIDING SYSTEM VALUE'
	  . " SELECT n, n, pg_current_xact_id()::text::bigint, ${digits}::bigint << 14 | ($hash & 16383), now(), now(),"
	  . " current_user::regrole, current_user::regrole, 0, true, false, 'doubletick', '$phone', "
	  . quote($waba) . ", '{$tags}', '{" . ($fields // '') . "}' FROM nextval('dt_waiting_id_seq') AS n";
}

=pod

=item drain(database => name)

Drains the queue in a session of its own. Returns what it says.

=cut

sub drain
{
	my (%with) = @_;
	my ($stdout, $stderr);
	my $status = $node->psql($with{database} || 'postgres', 'CALL dt_process_queue()',
		stdout => \$stdout, stderr => \$stderr);

	is($status, 0, 'the queue is drained') or diag($stderr);
	return $stderr;
}

=pod

=item draining, break_off(session, pid)

A session that drains, and its process id. Breaks off the CALL of such a session,
and ends it.

=cut

sub draining
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');

	$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
	return ($session, $pid);
}

sub break_off
{
	my ($session, $pid) = @_;

	$calls->sql("SELECT pg_cancel_backend($pid)");
	$session->query('SELECT 1');
	like($session->{stderr}, qr/canceling statement due to user request/, 'the CALL was under way until now');
	$session->quit;
	return;
}

=pod

=item received(phone), is_received(phone, expected, name)

What was received for a phone: names in order, a request each.

=cut

sub received
{
	my ($phone) = @_;

	return map { join ',', @{ $_->{body}{tags} }, map { "=$_" } @{ $_->{body}{customFields} } }
	  grep { $_->{body}{phone} eq $phone } @{ $sb->journal };
}

sub is_received
{
	my ($phone, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(join(' ', received($phone)), $expected, $name);
}

=pod

=item state_of(id)

A row's state: of the history, or "waiting", or "none".

=cut

sub state_of
{
	my ($id) = @_;

	return $calls->sql("SELECT coalesce((SELECT state FROM dt_history WHERE id = $id),
		(SELECT 'waiting' FROM dt_queue WHERE id = $id), 'none')");
}

=pod

=item sqlstate_of(sql, node)

What fails, and how: SQLSTATE of a statement that is not a SELECT.

=cut

sub sqlstate_of
{
	my ($sql, $on) = @_;
	my $stderr;

	($on || $node)->psql('postgres', "\\set VERBOSITY verbose\n$sql", stderr => \$stderr);
	return $stderr =~ /ERROR:  (\w{5}):/ ? $1 : "none: $stderr";
}

=pod

=item make_roles

Roles: "app" sends; "other" has nothing to do with it; "member" inherits "app",
"stranger" may only SET ROLE to it; "monitor" is in pg_monitor; "nobody" has nothing.

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

Statements as another role logged in. Returns what comes of them.

=back

=cut

sub as
{
	my ($role, @statements) = @_;

	return $calls->sql("SET SESSION AUTHORIZATION $role; " . join(';', @statements));
}

1;

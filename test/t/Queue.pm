
=head1 NAME

Queue - what becomes of queued removals, for TAP tests

=head1 SYNOPSIS

  my $queue = Queue->new;
  my $id = $queue->enqueue('919876543210', ['lead'], ['plan']);
  like($queue->process, qr/1 done/);
  is($queue->settled($id)->{state}, 'done');

=head1 DESCRIPTION

A Calls, and what asks the queue of its database. "database", "server" and "role"
are what is set in the session that enqueues.

=cut

package Queue;

use strict;
use warnings;

use parent -norequire, 'Calls';

use Calls;
use Encode qw(decode encode);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $json = JSON::PP->new->utf8->allow_nonref;

=pod

=over

=item $queue->enqueue(phone, [tags], [fields], waba => text, server => name, role => name, database => name)

Returns the id.

=cut

sub enqueue
{
	my ($self, $phone, $tags, $fields, %with) = @_;
	my $set = join '', map { "SET " . ($_ eq 'role' ? 'role' : "doubletick.$_") . " = $with{$_};\n" }
	  grep { $with{$_} } qw(server role);
	my $call = removal($phone, $tags, $fields, $with{waba}) =~ s/dt_remove/dt_enqueue_remove/r;

	return $self->sql($set . $call, database => $with{database});
}

=pod

=item $queue->enqueue_many(first phone, count, server => name)

A removal of the tag "lead" for each of that many customers in a row.

=cut

sub enqueue_many
{
	my ($self, $first, $count, %with) = @_;

	return $self->sql(($with{server} ? "SET doubletick.server = $with{server};" : '')
		  . "SELECT count(dt_enqueue_remove_tags_custom_fields((n + $first)::text, '{lead}'))"
		  . " FROM generate_series(0, $count - 1) AS n");
}

=pod

=item $queue->process(before => SQL, database => name)

CALL dt_process_queue(), after other SQL in the same session if there is any.
Returns the messages that come of it.

=cut

sub process
{
	my ($self, %with) = @_;
	my ($stdout, $stderr);
	$self->node->psql($with{database} || 'postgres',
		encode('UTF-8', ($with{before} ? "$with{before};\n" : '') . "CALL dt_process_queue();\n"),
		stdout => \$stdout, stderr => \$stderr, on_error_stop => 0,
		timeout => $PostgreSQL::Test::Utils::timeout_default);

	# Not where in psql's input the statement was.
	return decode('UTF-8', $stderr =~ s/^psql:<stdin>:\d+: //mgr);
}

=pod

=item $queue->process_in_background, $queue->await(session)

The same in a session that is returned; waits until it is through, ends the
session, and returns the messages.

=cut

sub process_in_background
{
	my ($self) = @_;
	my $session = $self->node->background_psql('postgres', on_error_stop => 0);

	$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
	return $session;
}

sub await
{
	my ($self, $session) = @_;

	$session->query("SELECT 'done'");
	my $messages = $session->{stderr};
	$session->{stderr} = '';
	$session->quit;
	return $messages;
}

=pod

=item $queue->waiting(id), $queue->settled(id), $queue->status(server)

The row of dt_queue, dt_history, dt_status; undef when there is none.

=cut

sub waiting { return _row($_[0], 'dt_queue', "id = $_[1]", @_[ 2 .. $#_ ]); }

sub settled { return _row($_[0], 'dt_history', "id = $_[1]", @_[ 2 .. $#_ ]); }

sub status { return _row($_[0], 'dt_status', 'server = ' . quote($_[1])); }

sub _row
{
	my ($self, $view, $where, %with) = @_;
	my $row = $self->sql("SELECT to_json(r) FROM $view AS r WHERE $where", %with);

	return length $row ? $json->decode($row) : undef;
}

=pod

=item $queue->states(id, ...)

Their states in dt_history, "waiting" for those in dt_queue.

=cut

sub states
{
	my ($self, @ids) = @_;
	my $ids = join ',', @ids;

	return $self->sql("SELECT string_agg(coalesce(h.state, CASE WHEN q.id IS NOT NULL THEN 'waiting' END, 'nowhere'),
			' ' ORDER BY i.n)
		FROM unnest('{$ids}'::bigint[]) WITH ORDINALITY AS i(id, n)
		LEFT JOIN dt_history AS h USING (id) LEFT JOIN dt_queue AS q USING (id)");
}

=pod

=item $queue->settle

Makes due what waits, and processes it, until nothing waits.

=cut

sub settle
{
	my ($self) = @_;

	return eventually(
		sub {
			$self->sql('UPDATE dt_waiting SET due_at = enqueued_at');
			$self->process;
			return $self->sql('SELECT count(*) FROM dt_waiting') eq '0';
		},
		'everything is settled in the end');
}

=pod

=item $queue->requests(phone, ...)

The journal's entries for these phones, a "+" left aside; all when none is given.

=cut

sub requests
{
	my ($self, @phones) = @_;
	my %wanted = map { s/^\+//r => 1 } @phones;

	return grep { !@phones || $wanted{ ($_->{body}{phone} // '') =~ s/^\+//r } } @{ $self->sandbox->journal };
}

=pod

=item $queue->fresh

Empties the queue, the history and the holds, and resets the sandbox.

=back

=cut

sub fresh
{
	my ($self) = @_;

	$self->sql('TRUNCATE dt_waiting, dt_settled, dt_hold');
	$self->sandbox->reset;
	return;
}

1;

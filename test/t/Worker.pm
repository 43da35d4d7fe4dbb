
=head1 NAME

Worker - a cluster with the worker, for TAP tests

=head1 SYNOPSIS

  my $calls = Worker->new;
  $calls->sql(enqueue('lead'));
  eventually(sub { $calls->has_sent('lead') }, 'the worker sends it');

=head1 DESCRIPTION

As Calls, with the library preloaded, and with words for what the worker does. A
tag stands for a row: tests give each its own.

=cut

package Worker;

use strict;
use warnings;

use Calls;
use Exporter qw(import);
use PostgreSQL::Test::Utils ();

our @ISA = qw(Calls);

# Seconds for what must not wait for a request that hangs, in tests where that
# takes five minutes.  The machine may be busy.
our $soon = 60;
our @EXPORT = qw(enqueue quote eventually is_gone memory_kb $soon);

=pod

=over

=item Worker->new(idle => duration, conf => text, ...)

"idle" is doubletick.worker_idle_timeout: an hour unless given, so that no test
passes because a worker left and another one came.

=cut

sub new
{
	my ($class, %with) = @_;
	my $idle = delete $with{idle} || '1h';

	return Calls::new($class, %with, conf => <<"CONF" . ($with{conf} || ''));
shared_preload_libraries = 'doubletick'
doubletick.worker_idle_timeout = '$idle'
restart_after_crash = on
CONF
}

=pod

=item enqueue(tag, number)

SQL that enqueues a tag for one of 100,000 phones. phone(number) is that.

=cut

sub enqueue
{
	my ($tag, $number) = @_;

	return "SELECT dt_enqueue_remove_tags_custom_fields('" . phone($number) . "', '{$tag}')";
}

sub phone { return '9198765' . sprintf '%05d', $_[0] || 1; }

=pod

=item $calls->sent, $calls->has_sent(tag)

The tags that the sandbox has received, in order; and how often it did so.

=cut

sub sent
{
	my ($self) = @_;

	return map { @{ $_->{body}{tags} || [] } } @{ $self->sandbox->journal };
}

sub has_sent
{
	my ($self, $tag) = @_;

	return scalar grep { $_ eq $tag } $self->sent;
}

=pod

=item $calls->workers(database), $calls->launcher

Process ids: of all workers, or of a database's, and of the launcher.

=cut

sub workers
{
	my ($self, $database) = @_;

	return split /\n/, $self->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'doubletick worker'"
		  . ($database ? " AND datname = '$database'" : ''));
}

sub launcher
{
	my ($self) = @_;

	return $self->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'doubletick launcher'");
}

=pod

=item $calls->waiting(database)

How many rows wait.

=item $calls->configure(name => value, ...), $calls->configure_offline(line)

ALTER SYSTEM and a reload, which the postmaster has made and passed on when
this returns; the same while the server is down.

=back

=cut

sub waiting
{
	my ($self, $database) = @_;

	return $self->sql('SELECT count(*) FROM dt_queue', database => $database);
}

sub configure
{
	my ($self, %settings) = @_;

	my $loaded = $self->sql('SELECT pg_conf_load_time()');

	$self->sql("ALTER SYSTEM SET $_ = " . quote($settings{$_})) foreach sort keys %settings;
	$self->node->reload;

	# The postmaster signals all processes before it starts a session that knows.
	$self->node->poll_query_until('postgres', "SELECT pg_conf_load_time() <> '$loaded'")
	  or die 'the configuration is not loaded';
	return;
}

sub configure_offline
{
	my ($self, $line) = @_;

	PostgreSQL::Test::Utils::append_to_file($self->node->data_dir . '/postgresql.auto.conf', "$line\n");
	return;
}

1;

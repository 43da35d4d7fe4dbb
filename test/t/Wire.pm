
=head1 NAME

Wire - a server that speaks, or does not speak, what a test tells it, byte by byte

=head1 SYNOPSIS

  use Wire;
  my $wire = Wire->new(sub {
	my ($peer) = @_;
	request_of($peer);
	send_all($peer, "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}");
  });
  $calls->server('wire', base_url => $wire->url);

=head1 DESCRIPTION

For what the sandbox cannot do, since it understands what it receives. A child of
the test accepts connections on a free port, and makes a child for each, which runs
the test's function. When the function returns, the connection ends. All of them end
with the object.

=cut

package Wire;

use strict;
use warnings;

use Exporter qw(import);
use File::Temp ();
use IO::Select;
use IO::Socket::IP;
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);

our @EXPORT = qw(request_of head_of send_all reset_peer wait_for_end);

=pod

=over

=item Wire->new(function, host => address, port => number, backlog => number)

The function is called with the connection, and the number of connections before it.

=item $wire->url, $wire->port, $wire->connections

"url" is that of plain HTTP. "connections" is how many have been accepted.

=cut

sub new
{
	my ($class, $function, %with) = @_;
	my $listener = IO::Socket::IP->new(
		LocalHost => $with{host} || '127.0.0.1',
		LocalPort => $with{port} || 0,
		Listen => $with{backlog} || 100,
		ReuseAddr => 1) or die "could not listen: $@";
	my $self = bless {
		host => $with{host} || '127.0.0.1',
		port => $listener->sockport,
		seen => File::Temp->new,
		owner => $$,
	}, $class;

	$self->{pid} = fork // die "could not fork: $!";
	if ($self->{pid} == 0)
	{
		POSIX::setpgid(0, 0);
		$self->_accept($listener, $function);
		POSIX::_exit(0);
	}
	POSIX::setpgid($self->{pid}, $self->{pid});
	close $listener;
	return $self;
}

sub _accept
{
	my ($self, $listener, $function) = @_;
	my $before = 0;

	local $SIG{CHLD} = 'IGNORE';
	# Not longer than the test, even if it dies without a word.
	my $select = IO::Select->new($listener);
	while (getppid == $self->{owner})
	{
		$select->can_read(1) or next;
		my $peer = $listener->accept or next;
		syswrite $self->{seen}, '.';
		my $pid = fork // POSIX::_exit(1);
		if ($pid == 0)
		{
			$peer->autoflush(1);
			eval { $function->($peer, $before); };
			close $peer;
			POSIX::_exit(0);
		}
		close $peer;
		$before++;
	}
	return;
}

sub url
{
	my ($self) = @_;

	return 'http://' . ($self->{host} =~ /:/ ? "[$self->{host}]" : $self->{host}) . ":$self->{port}";
}

sub port { return $_[0]->{port}; }

sub connections { return -s $_[0]->{seen}->filename; }

sub DESTROY
{
	my ($self) = @_;

	return if $$ != $self->{owner};
	local ($?, $!);
	kill 'KILL', -$self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

=pod

=item head_of(peer), request_of(peer)

Reads the head of a request, and no byte more; reads all of it. Returns the text, ""
when the connection ends before.

=item send_all(peer, text)

=item reset_peer(peer)

Ends the connection by a reset.

=item wait_for_end(peer)

Reads and forgets until the other side ends the connection.

=back

=cut

sub head_of
{
	my ($peer) = @_;
	my $head = '';

	until ($head =~ /\r\n\r\n\z/)
	{
		sysread $peer, $head, 1, length $head or return '';
	}
	return $head;
}

sub request_of
{
	my ($peer) = @_;
	my $request = head_of($peer);
	my ($length) = $request =~ /^Content-Length: (\d+)/mi;
	my $whole = length($request) + ($length // 0);

	while (length $request < $whole)
	{
		sysread $peer, $request, $whole - length $request, length $request or return '';
	}
	return $request;
}

sub send_all
{
	my ($peer, $text) = @_;

	while (length $text)
	{
		my $sent = syswrite $peer, $text;
		return 0 unless $sent;
		substr $text, 0, $sent, '';
	}
	return 1;
}

sub reset_peer
{
	my ($peer) = @_;

	setsockopt $peer, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0);
	close $peer;
	return;
}

sub wait_for_end
{
	my ($peer) = @_;

	while (sysread $peer, my $waste, 65536) { next; }
	return;
}

1;

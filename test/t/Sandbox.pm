
=head1 NAME

Sandbox - start test/sandbox/sandbox and talk to it from a TAP test

=head1 SYNOPSIS

  my $sb = Sandbox->start;
  $node->safe_psql('postgres', 'CREATE SERVER doubletick'
	. ' FOREIGN DATA WRAPPER doubletick OPTIONS (' . $sb->server_options . ')');

  $sb->customer('919876543210', ['lead'], ['plan']);
  $sb->rule('919876543210', { fault => 'reset', times => 1 });
  ...
  is($sb->journal->[0]{authorization}, $sb->key);

=head1 DESCRIPTION

The sandbox listens on ephemeral ports of 127.0.0.1, so any number of them may
run at once. It ends with the object, and also when the test dies without a
word: its standard input then reaches its end. Names are Perl character strings
in both directions.

=cut

package Sandbox;

use strict;
use warnings;

use Carp qw(croak);
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp ();
use HTTP::Tiny;
use IO::Select;
use JSON::PP;
use POSIX ();
use Time::HiRes qw(sleep time);

# Seconds within which the sandbox must be ready, and must be gone when told so.
our $timeout = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 60;

=pod

=over

=item Sandbox->start(argument, ...)

Starts $ENV{DT_SANDBOX}, or else the program built beside this directory, with
these further arguments, and waits until it is ready.

=cut

sub start
{
	my ($class, @arguments) = @_;
	my $program = $ENV{DT_SANDBOX} || abs_path(dirname(__FILE__)) . '/../sandbox/sandbox';
	my $self = bless {
		dir => File::Temp->newdir('sandbox-XXXXXX', TMPDIR => 1),
		owner => $$,
		json => JSON::PP->new->utf8->canonical->allow_nonref,
		http_client => HTTP::Tiny->new(timeout => $timeout, no_proxy => ['127.0.0.1']),
	}, $class;

	croak "\"$program\" is missing: run make in test/sandbox, or set DT_SANDBOX"
	  unless -x $program;

	# The server under test may run as another user, and reads the CA file.
	chmod 0755, $self->{dir}->dirname;
	$self->_spawn($program, '--until-eof', '--dir', $self->{dir}->dirname, @arguments);
	$self->_await_ready;

	my $file = $self->{dir}->dirname . '/sandbox.json';
	open my $in, '<:raw', $file or croak "could not open \"$file\": $!";
	local $/;
	$self->{summary} = $self->{json}->decode(scalar <$in>);
	close $in;
	return $self;
}

# Runs the program between two pipes. One end of each is ours alone: should
# another child inherit it, the sandbox would outlive us.
sub _spawn
{
	my ($self, @command) = @_;

	pipe(my $from_us, my $to_it) or croak "could not make a pipe: $!";
	pipe(my $from_it, my $to_us) or croak "could not make a pipe: $!";
	my $pid = fork;
	croak "could not fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		close $to_it;
		close $from_it;
		open STDIN, '<&', $from_us or POSIX::_exit(127);
		open STDOUT, '>&', $to_us or POSIX::_exit(127);
		{ exec { $command[0] } @command };
		print STDERR "could not run \"$command[0]\": $!\n";
		POSIX::_exit(127);
	}
	@$self{qw(pid stdin stdout)} = ($pid, $to_it, $from_it);
	return;
}

# Reads what the sandbox says until it says that it is ready.
sub _await_ready
{
	my ($self) = @_;
	my $pipe = IO::Select->new($self->{stdout});
	my $deadline = time + $timeout;
	my $said = '';

	until ($said =~ /^ready$/m)
	{
		my $left = $deadline - time;
		croak "the sandbox was not ready within $timeout s: $said"
		  unless $left > 0 && $pipe->can_read($left);
		croak "the sandbox ended before it was ready: $said"
		  unless sysread $self->{stdout}, $said, 4096, length $said;
	}
	($self->{sql}) = $said =~ /^(CREATE EXTENSION .*)^ready$/ms;
	return;
}

=pod

=item $sb->sql

The SQL that the sandbox prints, which connects to it.

=cut

sub sql { return $_[0]->{sql}; }

=pod

=item $sb->port(name), $sb->url(name), $sb->https, $sb->http

The port of a listener, its base URL, and the URLs of the two that are in use
most. The names are https, http, expired, wronghost, tls11 and selfsigned.

=cut

sub port
{
	my ($self, $name) = @_;

	croak "the sandbox has no listener \"$name\"" unless $self->{summary}{$name};
	return $self->{summary}{$name};
}

sub url
{
	my ($self, $name) = @_;
	my $port = $self->port($name);

	return $name eq 'http' ? "http://127.0.0.1:$port" : "https://localhost:$port";
}

sub https { return $_[0]->url('https'); }

sub http { return $_[0]->url('http'); }

=pod

=item $sb->ca_file, $sb->key, $sb->pid

=cut

sub ca_file { return $_[0]->{summary}{ca_file}; }

sub key { return $_[0]->{summary}{key}; }

sub pid { return $_[0]->{pid}; }

=pod

=item $sb->server_options(name => value, ...)

The text for OPTIONS (...) of CREATE SERVER: base_url and ca_file, and what else
is given here, which also may replace these two. An undefined value leaves an
option out.

=cut

sub server_options
{
	my ($self, %given) = @_;
	my %options = (base_url => $self->https, ca_file => $self->ca_file, %given);

	return join ', ', map {
		(my $value = $options{$_}) =~ s/'/''/g;
		"$_ '$value'"
	} grep { defined $options{$_} } sort keys %options;
}

=pod

=item $sb->rule(phone, {...}), $sb->clear_rules, $sb->clear_rules(phone)

How to misbehave towards a phone, or any phone ("*"): see test/sandbox/rule.c.

=cut

sub rule
{
	my ($self, $phone, $rule) = @_;

	return $self->_ask(PUT => 'rules/' . _escape($phone), $rule);
}

sub clear_rules
{
	my ($self, $phone) = @_;

	return $self->_ask(DELETE => defined $phone ? 'rules/' . _escape($phone) : 'rules');
}

=pod

=item $sb->hold(phone), $sb->hold(phone, {...})

A rule with "hold", and what else is given: answers to this phone, or any phone
("*"), are held until they are released.

=item $sb->held, $sb->held(phone), $sb->await_held(number), $sb->await_held(number, phone)

How many answers are held, by a rule with "hold", for a phone or in all; waits
until that many are. It dies if they are not within the time that a test has.

=item $sb->release, $sb->release(phone)

Lets the answers go that are held, for a phone or all of them, and returns how
many they were.

=cut

sub hold
{
	my ($self, $phone, $rule) = @_;

	return $self->rule($phone, { hold => JSON::PP::true, %{ $rule || {} } });
}

sub held
{
	my ($self, $phone) = @_;

	return $self->_ask(GET => 'held' . (defined $phone ? '/' . _escape($phone) : ''))->{held};
}

sub await_held
{
	my ($self, $number, $phone) = @_;
	my $deadline = time + $timeout;
	my $held;

	until (($held = $self->held($phone)) == $number)
	{
		croak "$held answers are held, not $number" if time > $deadline;
		sleep 0.005;
	}
	return;
}

sub release
{
	my ($self, $phone) = @_;

	return $self->_ask(POST => 'release' . (defined $phone ? '/' . _escape($phone) : ''))->{released};
}

=pod

=item $sb->customer(phone, [tags], [fields]), $sb->customer_now(phone)

Sets what a customer has, and returns it as {phone, tags, customFields}; undef
when there is no such customer.

=cut

sub customer
{
	my ($self, $phone, $tags, $fields) = @_;

	return $self->_ask(PUT => 'customers/' . _escape($phone),
		{ tags => $tags || [], customFields => $fields || [] });
}

sub customer_now
{
	my ($self, $phone) = @_;

	return $self->_ask(GET => 'customers/' . _escape($phone));
}

sub clear_customers { return $_[0]->_ask(DELETE => 'customers'); }

=pod

=item $sb->journal, $sb->journal(since), $sb->clear_journal

The requests received, in order, as a reference to an array of hashes; only those
numbered above "since", if given. Numbers go on rising after a clear_journal.

=cut

sub journal
{
	my ($self, $since) = @_;

	return $self->_ask(GET => 'journal' . ($since ? "?since=$since" : ''));
}

sub clear_journal { return $_[0]->_ask(DELETE => 'journal'); }

=pod

=item $sb->stats, $sb->clear_stats, $sb->reset

The counters; their reset; and the reset of rules, customers, journal and
counters at once. The answers that are held are released.

=cut

sub stats { return $_[0]->_ask(GET => 'stats'); }

sub clear_stats { return $_[0]->_ask(DELETE => 'stats'); }

sub reset
{
	my ($self) = @_;

	$self->_ask(DELETE => $_) foreach qw(rules customers journal stats);
	return;
}

=pod

=item $sb->stop

Ends the sandbox and returns its wait status. Destroying the object does the same.

=back

=cut

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;
	my $deadline = time + $timeout;

	# $? is also what the test will exit with.
	local ($?, $!);
	close $self->{stdin};
	kill 'TERM', $pid;
	until (waitpid($pid, POSIX::WNOHANG()) == $pid)
	{
		kill 'KILL', $pid if time > $deadline;
		sleep 0.005;
	}
	close $self->{stdout};
	return $?;
}

sub DESTROY
{
	my ($self) = @_;

	# A forked copy of the test is not who started it.
	return if $$ != $self->{owner};
	local $@;
	$self->stop;
	return;
}

# One administrative request. Returns the decoded answer; undef for 404 and 204.
sub _ask
{
	my ($self, $method, $path, $body) = @_;
	my %options;

	if (defined $body)
	{
		$options{content} = $self->{json}->encode($body);
		$options{headers} = { 'Content-Type' => 'application/json' };
	}
	my $answer = $self->{http_client}
	  ->request($method, $self->http . "/sandbox/$path", \%options);
	return undef if $answer->{status} == 404 && $method eq 'GET';
	croak "$method $path: $answer->{status} $answer->{content}" unless $answer->{success};
	return length $answer->{content} ? $self->{json}->decode($answer->{content}) : undef;
}

sub _escape
{
	my ($phone) = @_;

	$phone =~ s/([^0-9A-Za-z])/sprintf '%%%02X', ord $1/ge;
	return $phone;
}

1;

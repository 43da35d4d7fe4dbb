
=head1 NAME

Calls - what becomes of the extension's calls, for TAP tests

=head1 SYNOPSIS

  my $calls = Calls->new;
  $calls->sandbox->rule('919876543210', { status => 422 });
  my ($raised, $returned) = $calls->session(
	removal('919876543210', ['lead']), attempt('919876543210', ['lead']));
  is($raised->{sqlstate}, '22023');
  is($returned->{value}{statusCode}, 422);

=head1 DESCRIPTION

One sandbox and one cluster, with the extension in the database postgres, a
server "doubletick" that leads to the sandbox, and a mapping for the superuser.
Text is Perl character strings in both directions.

=cut

package Calls;

use strict;
use warnings;

use Encode qw(encode);
use Exporter qw(import);
use File::Basename qw(dirname);
use IO::Socket::INET;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sandbox;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(quote removal attempt eventually shape_ok is_gone memory_kb is_testing_build
  closed_port most_in_a_second build_preload);

# A phone that no test makes a rule for: whether the session still works.
our $well = '14155550199';

my $json = JSON::PP->new->utf8->canonical->allow_nonref;

# In each database: what becomes of a statement of one column, as one line.
my $helpers = <<'SQL';
CREATE FUNCTION as_jsonb(t text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN t::jsonb;
EXCEPTION WHEN others THEN
	RETURN NULL;
END $$;

CREATE FUNCTION outcome(statement text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	value jsonb;
	state text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE 'SELECT to_jsonb(x) FROM (' || statement || ') AS s(x)' INTO value;
	RETURN jsonb_build_object('value', value);
EXCEPTION WHEN others THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN jsonb_build_object('sqlstate', state, 'message', message,
		'detail', public.as_jsonb(detail), 'hint', hint);
END $$;
SQL

=pod

=over

=item Calls->new(sandbox => [argument, ...], conf => text, options => {...}, name => text)

"options" are further options of the server, as for Sandbox's server_options;
"rate_limit" is 0 unless given. "name" is the cluster's; a second one needs another.
"install_path" is another installation's.

=cut

sub new
{
	my ($class, %with) = @_;
	my $self = bless {
		sandbox => Sandbox->start(@{ $with{sandbox} || [] }),
		node => PostgreSQL::Test::Cluster->new($with{name} || 'main',
			$with{install_path} ? (install_path => $with{install_path}) : ()),
	}, $class;

	$ENV{PGCLIENTENCODING} = 'UTF8';
	$self->node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
	$self->node->append_conf('postgresql.conf', $with{conf}) if $with{conf};
	$self->node->start;
	$self->set_up('postgres', %{ $with{options} || {} });
	return $self;
}

=pod

=item $calls->sandbox, $calls->node

=item $calls->set_up(database, option => value, ...)

The extension, the server "doubletick", a mapping, and outcome(statement).

=cut

sub sandbox { return $_[0]->{sandbox}; }

sub node { return $_[0]->{node}; }

sub set_up
{
	my ($self, $database, %options) = @_;

	$self->sql("CREATE EXTENSION doubletick; $helpers", database => $database);
	$self->server('doubletick', %options, database_of => $database);
	return;
}

=pod

=item $calls->server(name, option => value, ...)

A server, and a mapping of the superuser with the sandbox's key.

=cut

sub server
{
	my ($self, $name, %options) = @_;
	my $database = delete $options{database_of} || 'postgres';
	my $text = $self->sandbox->server_options(rate_limit => '0', %options);

	return $self->sql("CREATE SERVER $name FOREIGN DATA WRAPPER doubletick OPTIONS ($text);"
		  . "CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (api_key "
		  . quote($self->sandbox->key) . ')', database => $database);
}

=pod

=item $calls->sql(text, database => name)

Runs SQL that must succeed and returns what it says.

=cut

sub sql
{
	my ($self, $text, %with) = @_;

	return $self->node->safe_psql($with{database} || 'postgres', encode('UTF-8', $text));
}

=pod

=item $calls->session(statement, ..., {database => name})

Runs statements in one session. Those that begin with SELECT, and are of one
column, may fail; the others may not. Returns for each of the former {value}, or
{sqlstate, message, detail, hint}, where detail is undef unless it is JSON.

=cut

sub session
{
	my ($self, @statements) = @_;
	my %with = ref $statements[-1] ? %{ pop @statements } : ();
	my $text = join '', map { /^SELECT\b/ ? 'SELECT public.outcome(' . quote($_) . ");\n" : "$_;\n" }
	  @statements;

	return map { $json->decode($_) } split /\n/, $self->sql($text, %with);
}

=pod

=item $calls->fault_ok(name, phone, {...})

Makes both calls for a phone, and then one for a phone that is well, all in one
session. Tests what the first raises and the second returns: "sqlstate",
"message" (a pattern), "status", "error" (undef: any), "says" (the message in
the object; undef: any) and "hint" (a pattern; undef: no hint). With "raised" the
second must raise the same; with "vague" the two messages may differ, as the last
of several tries may. "server" is the server to use.

=cut

sub fault_ok
{
	my ($self, $name, $phone, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($raised, $returned, $after) = $self->session(
		($expected->{server} ? "SET doubletick.server = '$expected->{server}'" : ()),
		removal($phone, ['lead'], ['plan']),
		attempt($phone, ['lead'], ['plan']),
		'RESET doubletick.server',
		removal($well, ['lead']));
	my $object = $raised->{detail};

	is($raised->{sqlstate}, $expected->{sqlstate}, "$name: SQLSTATE");
	like($raised->{message}, $expected->{message}, "$name: message");
	shape_ok($raised, $name);
	is(ref $object eq 'HASH' ? $object->{statusCode} : 'no object', $expected->{status}, "$name: statusCode");
	is($object->{error}, $expected->{error}, "$name: error") if defined $expected->{error};
	is_deeply($object->{message}, $expected->{says}, "$name: message of the object")
	  if defined $expected->{says};
	defined $expected->{hint}
	  ? like($raised->{hint}, $expected->{hint}, "$name: HINT")
	  : is($raised->{hint}, '', "$name: no HINT");

	my $other = $expected->{raised} ? $returned : $returned->{value};
	my $same = $expected->{raised} ? $raised : $object;
	if ($expected->{vague})
	{
		delete $_->{message} foreach $other, $same;
	}
	is_deeply($other, $same, "$name: dt_try " . ($expected->{raised} ? 'raises it too' : 'returns the DETAIL'));
	is(ref $after->{value}{tags}, 'HASH', "$name: the session goes on");
	return $raised;
}

=pod

=item shape_ok(outcome, name)

Is the primary message as PostgreSQL's style has it, and the DETAIL JSON?

=cut

sub shape_ok
{
	my ($raised, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $object = $raised->{detail};

	# The first word may be a name, the last words may be the API's own.
	like($raised->{message} // '', qr/\A(?:[a-z]|DoubleTick |API )[^\p{Cntrl}]*\z/,
		"$name: message is lower-case and one line");
	is(join(' ', grep { exists $object->{$_} } qw(error message statusCode)),
		'error message statusCode', "$name: DETAIL is an object with all keys");
	unlike($raised->{sqlstate} // '', qr/^08/, "$name: not class 08");
	return;
}

=pod

=item quote(text), removal(phone, [tags], [fields], waba, server), attempt(same)

SQL: a literal, and the two calls as statements for session.

=cut

sub quote
{
	my ($text) = @_;

	return 'NULL' unless defined $text;
	return "'" . ($text =~ s/'/''/gr) . "'";
}

sub removal { return _call('dt_remove_tags_custom_fields', @_); }

sub attempt { return _call('dt_try_remove_tags_custom_fields', @_); }

sub _call
{
	my ($function, $phone, $tags, $fields, $waba, $server) = @_;

	return "SELECT $function(" . join(', ', quote($phone), _array($tags), _array($fields), quote($waba),
		defined $server ? quote($server) : ()) . ')';
}

sub _array
{
	my ($names) = @_;

	return 'NULL' unless $names;
	return 'ARRAY[' . join(', ', map { quote($_) } @$names) . ']::text[]';
}

=pod

=item eventually(condition, name)

Polls until the condition holds; a test.

=item closed_port()

A port that nobody listens on.

=item most_in_a_second(request, ...)

The most of these entries of the journal that left within any second. The first
over each connection is not counted: it is allowed to leave before the connection
is made, which takes long on a busy machine.

=item is_gone(pid)

Whether the process has ended. One that has ended but whose parent has not yet
asked for its status still takes signals; where there is no /proc it counts as
running.

=item memory_kb(pid, field)

What /proc says in this field of the memory of a process: VmRSS, RssAnon or VmHWM.
0 where there is no /proc; and with test/sanitize, since a sanitizer keeps what is
freed.

=item is_testing_build(node)

Whether the library is built with TESTING=1, and so has fault points.

=item build_preload(name)

Builds a library of test/preload, for LD_PRELOAD; returns its path.

=back

=cut

sub eventually
{
	my ($condition, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	until ($condition->())
	{
		return fail($name) if time > $deadline;
		sleep 0.01;
	}
	return pass($name);
}

sub is_gone
{
	my ($pid) = @_;

	return 1 unless kill 0, $pid;
	open my $stat, '<', "/proc/$pid/stat" or return !kill 0, $pid;
	# "pid (name) state ...": the name may hold anything.
	return (<$stat> // ') Z') =~ /.*\) [ZX]/s;
}

sub memory_kb
{
	my ($pid, $field) = @_;
	my $file = "/proc/$pid/status";

	return 0 if $ENV{DOUBLETICK_SANITIZED} || !-r $file;
	return (PostgreSQL::Test::Utils::slurp_file($file) =~ /^$field:\s+(\d+)/m)[0];
}

sub is_testing_build
{
	my ($node) = @_;
	my $setting = "SELECT count(*) FROM pg_settings WHERE name = 'doubletick.fault_point'";

	return $node->safe_psql('postgres', "LOAD 'doubletick'; $setting");
}

sub build_preload
{
	my ($name) = @_;
	my $library = "$PostgreSQL::Test::Utils::tmp_check/$name.so";

	PostgreSQL::Test::Utils::system_or_bail($ENV{CC} || 'cc', '-Wall', '-Wextra', '-Werror', '-fPIC', '-shared',
		'-o', $library, dirname(__FILE__) . "/../preload/$name.c", '-ldl');
	return $library;
}

sub closed_port
{
	my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die "could not listen: $!";

	return $socket->sockport;
}

sub most_in_a_second
{
	my %connected;
	my @at = sort { $a <=> $b } map { $_->{at} } grep { $connected{ $_->{connection} }++ } @_;
	my $most = 0;

	for (my ($first, $last) = (0, 0); $last < @at; $last++)
	{
		$first++ while $at[$last] - $at[$first] >= 1;
		$most = $last - $first + 1 if $most < $last - $first + 1;
	}
	return $most;
}

1;

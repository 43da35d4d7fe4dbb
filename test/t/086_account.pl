
# Servers with the same option "account" share one pace, one pause and, for each customer,
# one request in flight: over roles, servers and databases.  Other servers share nothing.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls qw(most_in_a_second is_testing_build);
use Worker qw(eventually);

# Each server and role has a key of its own, which tells whose a request was.
my %key_of = map { $_ => "key_$_" } qw(first app second third alone apart);
my %sender_of = reverse %key_of;
my @account = qw(first app second third);
my $calls = Worker->new(sandbox => [ map { ('--key', $_) } 'key_sandbox', sort values %key_of ]);
my $sb = $calls->sandbox;
my $node = $calls->node;
my $nphones = 0;

# "third" and "apart" are in another database, of another encoding; "app" is a role that
# sends to "first".
$calls->sql(q{CREATE DATABASE other TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'});
$calls->set_up('other');
foreach my $server (qw(first second third alone apart))
{
	$calls->server($server, database_of => database_of($server), timeout => '1min', rate_limit => '0.001',
		account => $server =~ /^a/ ? undef : 'one & only');
	in($server, "ALTER USER MAPPING FOR CURRENT_USER SERVER $server OPTIONS (SET api_key '$key_of{$server}')");
}
$calls->sql(qq{CREATE ROLE app; GRANT USAGE ON FOREIGN SERVER first TO app;
	GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO app;
	CREATE USER MAPPING FOR app SERVER first OPTIONS (api_key '$key_of{app}')});

sub database_of { return $_[0] =~ /^(?:third|apart)$/ ? 'other' : 'postgres'; }

sub in { return $calls->sql($_[1], database => database_of($_[0])); }

sub alter { return in($_[0], "ALTER SERVER $_[0] OPTIONS ($_[1])"); }

sub new_phone { return sprintf '91987%07d', ++$nphones; }

# Enqueues the removal of a tag from customers, and returns the ids.
sub enqueue
{
	my ($sender, $tag, @phones) = @_;
	my ($role, $server) = $sender eq 'app' ? ('SET ROLE app;', 'first') : ('', $sender);
	my $phones = join ',', @phones;

	return split /\n/, in($server, "$role SELECT dt_enqueue_remove_tags_custom_fields(phone, '{$tag}', server => '$server')
		FROM unnest('{$phones}'::text[]) AS phone");
}

sub call { return "SELECT dt_try_remove_tags_custom_fields('$_[1]', '{lead}', server => '$_[0]')"; }

# How many requests each has sent, as text.
sub sent
{
	my %count;

	$count{ $sender_of{ $_->{authorization} } }++ foreach @{ $sb->journal };
	return join ' ', map { "$_ $count{$_}" } sort keys %count;
}

sub waiting { return $calls->waiting('postgres') + $calls->waiting('other'); }

sub held { return in($_[0], "SELECT held FROM dt_status WHERE server = '$_[0]'"); }

# A limit at which nobody gets a second turn.
sub one_turn
{
	my $cancelled = 0;

	enqueue($_, 'queued', new_phone()) foreach @account;
	enqueue($_, 'queued', new_phone()) foreach qw(alone apart);
	eventually(sub { $sb->stats->{requests} == 3 && waiting() == 3 }, 'the account sends one request, and each other server one of its own');
	like(sent(), qr{^alone 1 apart 1 \w+ 1$}, 'those without the option have turns of their own');

	# Sessions of both databases wait for the same turn.
	foreach my $server (qw(first second third alone apart))
	{
		my $stderr;

		$node->psql(database_of($server), "SET statement_timeout = '300ms'; " . call($server, new_phone()), stderr => \$stderr);
		$cancelled += $stderr =~ /canceling statement due to statement timeout/;
	}
	is($cancelled, 5, 'calls wait for the turn of their account, too');
	is($sb->stats->{requests}, 3, 'and nothing was sent meanwhile');

	# A new limit counts at once, for a server whose turn it was not, too.
	alter($_, q{SET rate_limit '100'}) foreach qw(first second third alone apart);
	eventually(sub { waiting() == 0 }, 'with a larger limit all is sent');
	is(sent(), 'alone 1 apart 1 app 1 first 1 second 1 third 1', 'by whom it was enqueued');
	return;
}

# Workers of two databases, two servers, two roles and sessions of both databases send for
# some seconds.
sub one_pace
{
	my ($rate, $each) = (20, 12);
	my @calling = qw(second third);
	my @sessions = map { $node->background_psql(database_of($_), on_error_stop => 0) } @calling;
	my $total = $each * (@account + @calling);

	alter($_, "SET rate_limit '0.001'") foreach qw(first second third);
	enqueue($_, 'queued', map { new_phone() } 1 .. $each) foreach @account;
	$sb->reset;
	$_->query('SELECT 1') foreach @sessions;
	alter($_, "SET rate_limit '$rate'") foreach qw(first second third);
	foreach my $i (0 .. 1)
	{
		my $phone = new_phone();

		$sessions[$i]->query_until(qr/on its way/, "\\echo on its way\nSELECT count(dt_remove_tags_custom_fields('$phone', '{called}', server => '$calling[$i]')) FROM generate_series(1, $each);\n");
	}
	eventually(sub { waiting() == 0 && $sb->stats->{requests} >= $total - 1 }, 'a pace for all: everything is sent');
	$_->query('SELECT 1') foreach @sessions;
	$_->quit foreach @sessions;

	my @journal = @{ $sb->journal };
	my $most = most_in_a_second(@journal);
	cmp_ok($most, '<=', $rate + 1, 'a pace for all: within one second leave at most the rate and one');
	cmp_ok($most, '>=', $rate * 0.6, 'a pace for all: and not far fewer');

	# Nobody waits until the others have nothing left.
	my %first_of;
	foreach my $n (0 .. $#journal)
	{
		$first_of{"$journal[$n]{authorization} $journal[$n]{body}{tags}[0]"} //= $n;
	}
	is(scalar(keys %first_of), 6, 'a pace for all: all have sent');
	my ($last) = sort { $b <=> $a } values %first_of;
	cmp_ok($last, '<', $total * 0.7, 'a pace for all: each gets turns while the others want some') or diag(explain(\%first_of));
	return;
}

# Two servers of one drainer, which waits for the same turns with both.
sub in_turn
{
	my $each = 20;

	alter($_, q{SET rate_limit '0.001'}) foreach qw(first second);
	enqueue($_, 'queued', map { new_phone() } 1 .. $each) foreach qw(first second);
	eventually(sub { waiting() >= 2 * $each - 1 }, 'two servers of a database: much waits for both');
	$sb->reset;
	alter($_, q{SET rate_limit '20'}) foreach qw(first second);
	eventually(sub { waiting() == 0 }, 'two servers of a database: everything is sent');
	my @senders = map { $sender_of{ $_->{authorization} } } @{ $sb->journal };
	my $of_first = grep { $_ eq 'first' } @senders[0 .. $each - 1];
	ok($of_first >= $each / 5 && $of_first <= $each * 4 / 5, 'two servers of a database: both send from the beginning on')
	  or diag("@senders");
	return;
}

# A server with a smaller limit keeps it, and is not starved; all together keep the larger.
sub different_limits
{
	my %rate = (second => 4, third => 20);
	my %count = (second => 8, third => 40);

	alter($_, "SET rate_limit '0.001'") foreach keys %rate;
	enqueue($_, 'limited', map { new_phone() } 1 .. $count{$_}) foreach keys %rate;
	$sb->reset;
	alter($_, "SET rate_limit '$rate{$_}'") foreach sort { $b cmp $a } keys %rate;
	eventually(sub { waiting() == 0 }, 'different limits: everything is sent');
	my @journal = @{ $sb->journal };
	cmp_ok(most_in_a_second(@journal), '<=', $rate{third} + 1, 'different limits: together they keep the larger one');
	cmp_ok(most_in_a_second(grep { $_->{authorization} eq $key_of{second} } @journal), '<=', $rate{second} + 1, 'different limits: the smaller one is kept, too');
	my ($last_of_third) = grep { $journal[$_]{authorization} eq $key_of{third} } reverse 0 .. $#journal;
	my $between = grep { $_->{authorization} eq $key_of{second} } @journal[0 .. $last_of_third];
	cmp_ok($between, '>=', 3, 'different limits: the one with the smaller limit gets turns');

	# dt_check() sees what differs within a database.
	alter('first', q{SET rate_limit '2.5'});
	is($calls->sql('SELECT object, problem, hint FROM dt_check()'),
		q{server second|its "rate_limit" is 4, but that of server "first" of the same account is 2.5|ALTER SERVER second OPTIONS (SET rate_limit '2.5');},
		'dt_check: the server with the larger limit');
	alter('first', 'DROP rate_limit');
	my $hint = $calls->sql('SELECT hint FROM dt_check()');
	is($hint, q{ALTER SERVER first OPTIONS (ADD rate_limit '4');}, 'dt_check: a limit that is the default');
	$calls->sql($hint);
	is($calls->sql('SELECT object, problem, hint FROM dt_check()'), '', 'dt_check: the hint mends it');
	alter('first', q{SET rate_limit '0'});
	is($calls->sql('SELECT hint FROM dt_check()'), q{ALTER SERVER first OPTIONS (SET rate_limit '4');}, 'dt_check: no limit is the largest');
	alter($_, q{SET rate_limit '0'}) foreach qw(first second third);
	is($calls->sql('SELECT count(*) FROM dt_check()'), '0', 'dt_check: no limit for both');
	is(in('third', q{SELECT string_agg(server || '=' || coalesce(account, 'none'), ', ' ORDER BY server) FROM dt_status}),
		'apart=none, doubletick=none, third=one & only', 'dt_status: the account');
	return;
}

# A 429 pauses all servers of the account, until one of them is changed.
sub one_pause
{
	my @phones = map { new_phone() } 1 .. 2;

	foreach my $case ([ 'second', 'third' ], [ 'third', 'first' ], [ 'first', 'first' ])
	{
		my ($refused, $changed) = @$case;
		my $name = "429 for $refused";

		# Changes of before do not count.
		alter($_, q{SET timeout '50s'}) foreach qw(first second third);
		$sb->reset;
		$sb->rule($phones[0], { status => 429, retry_after => '3600', times => 1 });
		if ($refused eq 'third')
		{
			my ($id) = enqueue($refused, 'refused', $phones[0]);
			eventually(sub { held($refused) =~ /paused/ }, "$name: the worker meets it");
			in($refused, "SELECT dt_cancel($id)");	# else it waits an hour for its next try
		}
		else
		{
			like(in($refused, call($refused, $phones[0])), qr/"statusCode": 429/, "$name: a call meets it");
		}
		foreach my $server (qw(first second third))
		{
			like(in($server, call($server, $phones[1])), qr/server \\"$server\\" is paused for another 3[56]\d\d s/, "$name: calls to $server are paused");
		}
		unlike(in($_, call($_, $phones[1])), qr/statusCode/, "$name: calls to $_ are not") foreach qw(alone apart);
		$sb->clear_journal;
		enqueue($_, 'paused', new_phone()) foreach @account;
		foreach my $server (qw(first second third))
		{
			eventually(sub { held($server) =~ /paused for another/ }, "$name: dt_status says that $server is paused");
		}
		alter('alone', q{SET timeout '40s'});
		in('alone', call('alone', $phones[1]));
		like(in($refused, call($refused, $phones[1])), qr/is paused/, "$name: ALTER SERVER of another account does not end it");
		is($sb->stats->{requests}, 4, "$name: nothing is sent meanwhile");

		alter($changed, q{SET timeout '40s'});
		unlike(in($changed, call($changed, $phones[1])), qr/statusCode/, "$name: ALTER SERVER of $changed ends it");
		eventually(sub { waiting() == 0 }, "$name: for all of them");
	}

	# A shorter pause does not end a longer one.
	$sb->rule($phones[0], { status => 429, retry_after => '3600', times => 1 });
	$sb->hold($phones[1], { status => 429, retry_after => '100', times => 1 });
	my $session = $node->background_psql('other', on_error_stop => 0);
	$session->query_until(qr/on its way/, "\\echo on its way\n" . call('third', $phones[1]) . ";\n");
	$sb->await_held(1);
	in('second', call('second', $phones[0]));
	$sb->release;
	like($session->query('SELECT 1'), qr/429/, 'a shorter pause comes later');
	$session->quit;
	like(in('third', call('third', $phones[1])), qr/is paused for another 3[56]\d\d s/, 'the longer one stays');
	alter('second', q{SET timeout '50s'});
	unlike(in('second', call('second', $phones[1])), qr/statusCode/, 'and ends when the server that met it is changed');
	$sb->reset;
	return;
}

# A customer has one request in flight, whoever's it is.
sub one_flight
{
	my $phone = new_phone();
	my @ids;

	alter($_, q{SET rate_limit '0', SET timeout '1min'}) foreach qw(first second third alone apart);
	$sb->reset;
	$sb->hold($phone);
	push @ids, enqueue($_, 'lead', $_ eq 'third' ? "+$phone" : $phone) foreach @account;
	enqueue($_, 'lead', $phone) foreach qw(alone apart);
	# Others behind them show that the workers have come past them.
	enqueue($_, 'behind', new_phone()) foreach @account;
	eventually(sub { (() = grep { $_->{body}{tags}[0] eq 'behind' } @{ $sb->journal }) == 4 }, 'other customers are sent');
	$sb->await_held(3, $phone);
	like(join(' ', sort map { $sender_of{ $_->{authorization} } } grep { $_->{body}{tags}[0] eq 'lead' } @{ $sb->journal }), qr/^alone (?:app )?apart(?: \w+)?$/,
		'a customer: one request of the account is in flight, and one of each other server');

	# Neither of the two that wait is lost, nor is one that is cancelled sent.
	my $in_flight = (grep { $_->{body}{tags}[0] eq 'lead' && $_->{authorization} !~ /^key_a(?:lone|part)$/ } @{ $sb->journal })[0];
	my %id_of;
	@id_of{@account} = @ids;
	my $sender = $sender_of{ $in_flight->{authorization} };
	my ($other) = grep { $_ ne $sender && $_ ne 'app' } @account;
	is(in($sender eq 'app' ? 'first' : $sender, "SELECT dt_cancel($id_of{$sender})"), 'f', 'a customer: what is in flight cannot be cancelled');
	eventually(sub { in($other, "SELECT dt_cancel($id_of{$other})") eq 't' }, 'a customer: what waits for it can');

	my $most = 0;
	my $sent = 3;
	while ($sent < 5)
	{
		$sb->release($phone);
		$sent++;
		eventually(sub { (() = grep { $_->{body}{tags}[0] eq 'lead' } @{ $sb->journal }) == $sent }, "a customer: request $sent follows");
		my $held = $sb->held($phone);
		$most = $held if $held > $most;
	}
	$sb->await_held(1, $phone);
	is($most, 1, 'a customer: never two at once');
	$sb->clear_rules;
	eventually(sub { waiting() == 0 }, 'a customer: all is sent');
	is(scalar(() = grep { $_->{body}{tags}[0] eq 'lead' } @{ $sb->journal }), 5, 'a customer: each once, but for the cancelled one');
	is($calls->sql(q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid IN (21809, 21812)}), '0', 'no lock is left');

	# A worker that is killed has none.
	$sb->hold($phone, { times => 1 });
	enqueue('first', 'lead', $phone);
	$sb->await_held(1, $phone);
	enqueue('third', 'lead', $phone);
	my ($worker) = $calls->workers('postgres');
	$calls->sql("SELECT pg_terminate_backend($worker)");
	eventually(sub { waiting() == 0 }, 'a worker is terminated: the other one goes on, and the next one, too');
	$sb->reset;
	return;
}

# Of a turn that fails, nothing stays locked.
sub failed_turn
{
	my $phone = new_phone();

	return unless is_testing_build($node);
	$calls->configure('doubletick.fault_point' => 'error:after reading');
	enqueue('first', 'lead', $phone);
	eventually(sub { slurp_file($node->logfile) =~ /fault point "after reading"/ }, 'a turn fails after it has made a request');
	$calls->configure('doubletick.fault_point' => '');
	enqueue('third', 'lead', $phone);
	eventually(sub { waiting() == 0 }, 'the customer is not locked for ever');
	return;
}

# Without a worker: the locks hold, and each session has its own pace.
sub not_preloaded
{
	my ($phone, $other) = (new_phone(), new_phone());
	my $session;

	$calls->configure_offline(q{shared_preload_libraries = ''});
	$node->restart;
	$sb->reset;
	$sb->hold($phone);
	enqueue('first', 'lead', $phone);
	enqueue('third', 'lead', $phone);
	$session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_until(qr/on its way/, "\\echo on its way\nCALL dt_process_queue();\n");
	$sb->await_held(1, $phone);
	in('third', 'CALL dt_process_queue()');
	is($calls->waiting('other'), '1', 'a CALL leaves out a customer for whom another database sends');
	$sb->clear_rules;
	$session->query('SELECT 1');
	$session->quit;
	in('third', 'CALL dt_process_queue()');
	is(waiting(), 0, 'the next one sends it');

	alter($_, q{SET rate_limit '0.001'}) foreach qw(first second);
	foreach my $server (qw(first second))
	{
		my $stdout;

		$node->psql('postgres', call($server, $other) . ";\nSET statement_timeout = '300ms';\n" . call('second', $other), stdout => \$stdout, on_error_stop => 0);
		is(scalar(() = $stdout =~ /customFields/g), 1, "a session has its own pace, and one for all servers of the account: $server");
	}
	like($calls->sql('SELECT object, problem, hint FROM dt_check()'),
		qr/^library doubletick\|it is not preloaded, so each session has a pace of its own for an account\|ALTER SYSTEM SET shared_preload_libraries = /,
		'dt_check says so');
	return;
}

one_turn();
one_pace();
in_turn();
different_limits();
one_pause();
one_flight();
failed_turn();
not_preloaded();
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal|you don't own a lock/, 'no process has crashed, and no lock was released twice');
done_testing;

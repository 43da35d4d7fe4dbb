
# What a call tries again, when it does so, and what it does not try again; that
# connections are kept; the pace; and that a changed definition counts from the
# next request on.

use strict;
use warnings;

use File::Basename qw(dirname);
use IO::Socket::INET;
use List::Util qw(uniq);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new(sandbox => [ '--key', 'key_sandbox', '--key', 'key_second' ]);
my $sb = $calls->sandbox;
my $phone = '919876543210';

# Seconds; a test that passes takes far fewer.
my $too_long = 60;

# Seconds, enough for some tries on a busy machine.
my $budget = 3;
$calls->server('brief', timeout => "${budget}s");

# Makes each of the two calls under a rule, with nothing left of the call before.
# Passes its outcome and the journal to the test.
sub with_both
{
	my ($name, $rule, $server, $test) = @_;
	my %calls = (dt_remove => \&removal, dt_try => \&attempt);

	foreach my $call (sort keys %calls)
	{
		$sb->reset;
		$sb->customer($phone, ['lead'], []);
		$sb->rule($phone, $rule);
		my ($got) = $calls->session("SET doubletick.server = $server", $calls{$call}->($phone, ['lead']));
		$test->("$name, $call", $got, $sb->journal);
	}
	return;
}

# After a bad answer there is too little time for another one: the caller gets the bad one,
# which says more.
sub no_time_left
{
	foreach my $call (removal($phone, ['lead']), attempt($phone, ['lead']))
	{
		$sb->reset;
		$sb->hold($phone, { status => 503 });
		my $session = $calls->node->background_psql('postgres', on_error_stop => 0);
		$session->query_until(qr/begins/, "\\echo begins\nSET doubletick.server = brief; $call;\n");
		$sb->await_held(1);
		$sb->rule($phone, { fault => 'hang' });
		$sb->release($phone);
		like($session->query('SELECT 1') . $session->{stderr}, qr/request failed with HTTP status 503/, 'no time left: the fault is the answer that came');
		$session->{stderr} = '';
		$session->quit;
		is(scalar @{ $sb->journal }, 2, 'no time left: to the first of two requests');
	}
	$sb->reset;
	return;
}

# After one bad answer comes a good one, which the caller gets.
sub tried_again
{
	my @rules = (
		(map { { status => $_ } } 429, 502, 503, 504),
		(map { { fault => $_ } } qw(reset empty truncate truncate_chunked reset_body)));

	foreach my $rule (@rules)
	{
		with_both($rule->{fault} || "status $rule->{status}", { %$rule, times => 1 }, 'doubletick', sub {
			my ($name, $got, $journal) = @_;
			my $removed = $sb->customer_now($phone)->{tags};
			ok(exists $got->{value}{tags}, "$name: a good answer");
			is($got->{value}{statusCode}, undef, "$name: and no refusal");
			is(scalar @$journal, 2, "$name: to the second request");
			is_deeply($journal->[1]{body}, $journal->[0]{body}, "$name: which is the same as the first");
			is_deeply($removed, [], "$name: and the removal is done");
		});
	}
	with_both('three times', { status => 503, times => 3 }, 'doubletick', sub {
		my ($name, $got, $journal) = @_;
		ok(exists $got->{value}{tags}, "$name: a good answer");
		is(scalar @$journal, 4, "$name: to the fourth request");
	});
	return;
}

# Answers that the same request would get again.
sub never_tried_again
{
	foreach my $status (400, 401, 403, 404, 409, 422, 500, 501, 302)
	{
		with_both("status $status", { status => $status, times => 1 }, 'doubletick', sub {
			my ($name, $got, $journal) = @_;
			is($got->{sqlstate} ? $status : $got->{value}{statusCode}, $status, "$name: an error");
			is(scalar @$journal, 1, "$name: one request");
			is_deeply($sb->customer_now($phone)->{tags}, ['lead'], "$name: that did nothing");
		});
	}
	return;
}

# When each answer is bad: until the timeout is over, with pauses.
sub until_the_budget_ends
{
	my %sqlstate = (429 => '53400', 503 => '58000');

	foreach my $status (sort keys %sqlstate)
	{
		my $begin = time;
		with_both("status $status for ever", { status => 0 + $status }, 'brief', sub {
			my ($name, $got, $journal) = @_;
			is($got->{sqlstate} || $got->{value}{statusCode}, $got->{value} ? $status : $sqlstate{$status},
				"$name: the error");
			cmp_ok(scalar @$journal, '>=', 2, "$name: after several requests");
			cmp_ok(scalar @$journal, '<=', 60, "$name: but not a storm of them");
			cmp_ok($journal->[-1]{at} - $journal->[0]{at}, '<=', $budget * 1.5, "$name: all within about the timeout");
		});
		cmp_ok(time - $begin, '<', $too_long, "status $status for ever: in time");
	}
	return;
}

# The server says when to try again; a date has whole seconds.
sub retry_after_obeyed
{
	with_both('Retry-After of a second', { status => 429, retry_after => '1', times => 1 }, 'doubletick', sub {
		my ($name, $got, $journal) = @_;
		ok(exists $got->{value}{tags}, "$name: a good answer");
		is(scalar @$journal, 2, "$name: to the second request");
		cmp_ok($journal->[1]{at} - $journal->[0]{at}, '>=', 0.99, "$name: not before");
	});
	with_both('Retry-After of a date', { status => 503, retry_after => { date_in => 2 }, times => 1 }, 'doubletick', sub {
		my ($name, $got, $journal) = @_;
		ok(exists $got->{value}{tags}, "$name: a good answer");
		is(scalar @$journal, 2, "$name: to the second request");
		cmp_ok($journal->[1]{at}, '>=', int($journal->[0]{at}) + 1.99, "$name: not before");
	});
	foreach my $nothing ('0', 'soon', { date_in => -3600 })
	{
		my $text = ref $nothing ? 'of a past date' : "\"$nothing\"";
		with_both("Retry-After $text", { status => 503, retry_after => $nothing, times => 1 }, 'doubletick', sub {
			my ($name, $got, $journal) = @_;
			ok(exists $got->{value}{tags}, "$name: a good answer");
			is(scalar @$journal, 2, "$name: to the second request");
		});
	}
	return;
}

# A call does not wait for a time that is beyond its timeout.
sub retry_after_too_late
{
	foreach my $later ('11', '86400', '4294967296', { date_in => 3600 })
	{
		foreach my $status (429, 503)
		{
			my $begin = time;
			with_both('Retry-After ' . (ref $later ? 'of a late date' : $later) . " with status $status",
				{ status => $status, retry_after => $later, times => 1 }, 'doubletick', sub {
				my ($name, $got, $journal) = @_;
				is($got->{value} ? $got->{value}{statusCode} : $got->{sqlstate},
					$got->{value} ? $status : $status == 429 ? '53400' : '58000', "$name: the error");
				is(scalar @$journal, 1, "$name: after one request");
			});
			# Both calls would wait for 22 s or more.
			cmp_ok(time - $begin, '<', 20, 'without waiting');
		}
	}
	return;
}

sub no_connection
{
	my $closed = closed_port();
	my %urls = (refused => "https://localhost:$closed", 'refused by address' => "https://127.0.0.1:$closed",
		'refused in the clear' => "http://127.0.0.1:$closed", unresolved => 'https://nosuchhost.invalid');

	foreach my $name (sort keys %urls)
	{
		(my $server = $name) =~ tr/ /_/;
		my $begin = time;
		$calls->server($server, base_url => $urls{$name}, timeout => '300ms');
		$calls->fault_ok($name, $phone, { server => $server, sqlstate => 'HV00N', status => undef, vague => 1,
			message => qr/^could not connect to DoubleTick: /, error => 'fdw_unable_to_establish_connection',
			hint => qr/base_url/ });
		cmp_ok(time - $begin, '<', $too_long, "$name: in time");
	}

	# A listener whose queue is full: a connection is not refused, and never comes.
	my $deaf = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die "could not listen: $!";
	$calls->server('deaf', base_url => 'https://127.0.0.1:' . $deaf->sockport, connect_timeout => '200ms', timeout => '1s');
	$calls->fault_ok('no handshake', $phone, { server => 'deaf', sqlstate => 'HV00N', status => undef, vague => 1,
		message => qr/^could not connect to DoubleTick: /, error => 'fdw_unable_to_establish_connection', hint => qr/connect_timeout/ });
	return;
}

# Over statements and transactions, good answers and refusals.
sub one_connection
{
	$sb->reset;
	$sb->rule('14155550103', { status => 422 });
	$calls->sql(join ";\n", 'SET doubletick.max_in_flight = 1', (map { "SELECT dt_try_remove_tags_custom_fields('1415555010' || n, '{lead}') FROM generate_series(1, 5) AS n" } 1 .. 5),
		'BEGIN', "SELECT dt_remove_tags_custom_fields('14155550101', '{lead}')", 'ROLLBACK',
		"SELECT outcome('SELECT dt_remove_tags_custom_fields(''14155550103'', ''{lead}'')') FROM generate_series(1, 20)",
		"SELECT dt_remove_tags_custom_fields('14155550101', '{lead}')");
	is($sb->stats->{requests}, 47, 'many requests');
	is($sb->stats->{connections}, 1, 'over one connection');
	is(scalar(uniq(map { $_->{connection} } @{ $sb->journal })), 1, 'as the journal has it');
	is($sb->stats->{max_in_flight}, 1, 'one after the other');
	return;
}

sub pace
{
	my $many = "SELECT count(dt_try_remove_tags_custom_fields('$phone', '{lead}')) FROM generate_series(1, %d)";

	$sb->reset;
	$calls->server('paced', rate_limit => '20');
	my $begin = time;
	is($calls->sql('SET doubletick.server = paced; ' . sprintf $many, 35), '35', 'calls at a pace');
	is(scalar @{ $sb->journal }, 35, 'all sent');
	cmp_ok(most_in_a_second(@{ $sb->journal }), '<=', 21, 'no second has more than the rate and one');
	cmp_ok($sb->journal->[-1]{at} - $begin, '>=', 34 / 20 - 0.05, 'all together take as long as the rate says');

	# The rate counts each try of a call.
	$sb->reset;
	$sb->rule($phone, { status => 503 });
	$calls->server('paced_brief', rate_limit => '10', timeout => '3s');
	$calls->sql('SET doubletick.server = paced_brief; ' . sprintf $many, 1);
	cmp_ok(most_in_a_second(@{ $sb->journal }), '<=', 11, 'nor when calls are tried again');
	cmp_ok(scalar @{ $sb->journal }, '>=', 2, 'and they are');

	# The timeout does not count the time that a call waits for its turn.
	$sb->reset;
	$calls->server('slow_paced', rate_limit => '0.4', timeout => '2s');
	$begin = time;
	is($calls->sql("SET doubletick.server = slow_paced; SELECT count(t->'tags') FROM
		(SELECT dt_try_remove_tags_custom_fields('$phone', '{lead}') AS t FROM generate_series(1, 3)) AS _"),
		'3', 'calls that wait longer than their timeout for their turn succeed');
	cmp_ok($sb->journal->[-1]{at} - $begin, '>=', 4.95, 'and they did wait');

	$sb->reset;
	is($calls->sql(sprintf $many, 100), '100', 'no limit');
	cmp_ok($sb->journal->[-1]{at} - $sb->journal->[0]{at}, '<', 100 / 20, 'is faster than the default');

	# In a session that goes on.  At the old rate these would take a quarter of a second.
	$sb->reset;
	$calls->sql('SET doubletick.server = paced; ' . sprintf($many, 5) . "; ALTER SERVER paced OPTIONS (SET rate_limit '4'); "
		  . sprintf $many, 5);
	cmp_ok($sb->journal->[-1]{at} - $sb->journal->[4]{at}, '>=', 5 / 4 - 0.25, 'a changed rate counts at once');
	return;
}

# Makes one call in a session that goes on, and returns the request.
sub ask
{
	my ($session, $waba) = @_;

	$sb->clear_journal;
	$session->query_safe("SELECT dt_try_remove_tags_custom_fields('$phone', '{lead}')");
	my $journal = $sb->journal;
	is(scalar @$journal, 1, 'one request') or return {};
	return $journal->[0];
}

# Another session changes definitions while this one goes on.
sub changed_elsewhere
{
	my $session = $calls->node->background_psql('postgres', on_error_stop => 1);

	$sb->reset;
	is(ask($session)->{body}{wabaNumber}, undef, 'no waba');
	my $connection = ask($session)->{connection};
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD waba_number '14155550100')");
	is(ask($session)->{body}{wabaNumber}, '14155550100', 'an added option counts');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET waba_number '14155550111')");
	is(ask($session)->{body}{wabaNumber}, '14155550111', 'a changed option counts');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP waba_number)');
	is(ask($session)->{body}{wabaNumber}, undef, 'a dropped option counts');

	is(ask($session)->{authorization}, 'key_sandbox', 'the key');
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_second')");
	is(ask($session)->{authorization}, 'key_second', 'a changed key counts');
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_sandbox')");
	is(ask($session)->{authorization}, 'key_sandbox', 'and the old one again');
	is(ask($session)->{connection}, $connection, 'over the same connection all the while');

	$calls->sql("ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->http . "')");
	is(ask($session)->{listener}, 'http', 'a changed address counts');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->https . "/')");
	is(ask($session)->{listener}, 'https', 'and the old one again');

	$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER doubletick');
	my ($output, $failed) = $session->query("SELECT outcome('SELECT dt_try_remove_tags_custom_fields(''$phone'', ''{lead}'')')->>'sqlstate'");
	is($output, '42704', 'a dropped mapping counts');
	$calls->sql("CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key 'key_second')");
	is(ask($session)->{authorization}, 'key_second', 'a mapping for all');
	$calls->sql("CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (api_key 'key_sandbox')");
	is(ask($session)->{authorization}, 'key_sandbox', 'and one of its own goes before it');

	$calls->sql('ALTER SERVER doubletick RENAME TO renamed');
	($output) = $session->query("SELECT outcome('SELECT dt_try_remove_tags_custom_fields(''$phone'', ''{lead}'')')->>'sqlstate'");
	is($output, '42704', 'a renamed server is not found');
	$calls->sql('ALTER SERVER renamed RENAME TO doubletick');
	is(ask($session)->{listener}, 'https', 'and found again');
	$session->quit;
	return;
}

# A change in a transaction, before and after it rolls back.
sub changed_here
{
	$sb->reset;
	$calls->session('BEGIN', "ALTER SERVER doubletick OPTIONS (ADD waba_number '14155550100')", removal($phone, ['lead']),
		'ROLLBACK', removal($phone, ['lead']));
	is_deeply([ map { $_->{body}{wabaNumber} } @{ $sb->journal } ], [ '14155550100', undef ],
		'a change counts in its own transaction, and no longer when it is rolled back');
	return;
}

sub which_server
{
	$calls->server('plain', base_url => $sb->http, waba_number => '14155550100');
	$sb->reset;
	$calls->session(removal($phone, ['1']), 'SET doubletick.server = plain', removal($phone, ['2']), 'RESET doubletick.server',
		attempt($phone, ['3']), "SET doubletick.server = 'plain'", attempt($phone, ['4']),
		'BEGIN', 'SET LOCAL doubletick.server = doubletick', removal($phone, ['5']), 'COMMIT', removal($phone, ['6']));
	is(join(' ', map { $_->{listener} } @{ $sb->journal }), 'https http https http https http',
		'two servers by turns in one session');
	is(join(' ', map { $_->{body}{wabaNumber} // '-' } @{ $sb->journal }),
		'- 14155550100 - 14155550100 - 14155550100', 'each with its own options');
	is($sb->stats->{connections}, 2, 'each with a kept connection');

	# A role's setting is for the sessions that begin after it.
	$calls->sql('ALTER ROLE CURRENT_USER SET doubletick.server = plain');
	$sb->reset;
	$calls->session(removal($phone, ['1']), 'SET doubletick.server = doubletick', removal($phone, ['2']));
	is(join(' ', map { $_->{listener} } @{ $sb->journal }), 'http https', 'ALTER ROLE SET');
	$calls->sql('ALTER ROLE CURRENT_USER RESET doubletick.server; ALTER DATABASE postgres SET doubletick.server = plain');
	$sb->reset;
	$calls->session(removal($phone, ['1']));
	is($sb->journal->[0]{listener}, 'http', 'ALTER DATABASE SET');
	$calls->sql('ALTER DATABASE postgres RESET doubletick.server');
	return;
}

# A change by another session counts for the rows of a statement that are yet to
# come, even if the next of them waits for its turn already.
sub changed_in_mid_statement
{
	$sb->reset;
	$calls->server('unhurried', rate_limit => '10');
	my $session = $calls->node->background_psql('postgres', on_error_stop => 0);
	$session->query('SET doubletick.server = unhurried');
	$session->query_until(qr/on its way/, "\\echo on its way\nSELECT count(x) FROM generate_series(1, 1000)"
		  . " AS i, LATERAL (SELECT dt_try_remove_tags_custom_fields('$phone', ARRAY['t' || i])) AS s(x);\n");
	eventually(sub { @{ $sb->journal } >= 2 }, 'a long statement sends');
	$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER unhurried');
	my $sent = @{ $sb->journal };
	$session->query("SELECT 'done'");
	like($session->{stderr}, qr/has no user mapping/, 'a mapping dropped meanwhile ends it');
	cmp_ok(scalar @{ $sb->journal }, '<=', $sent + 1, 'with the next row');
	$session->{stderr} = '';
	$session->quit;
	return;
}

# A server that keeps few connections does not close those of others.
sub kept_connections
{
	$sb->reset;
	$calls->server('narrow', max_connections => '1');
	$calls->sql("ALTER SERVER narrow OPTIONS (SET base_url '" . $sb->url('https') =~ s/localhost/127.0.0.1/r . "')");
	$calls->session(map { ("SET doubletick.server = $_", removal($phone, ['lead'])) } ('doubletick', 'narrow') x 5);
	is(scalar keys %{ { map { $_->{connection} => 1 } @{ $sb->journal } } }, 2, 'two servers by turns keep a connection each');
	return;
}

# Each role in one session has its own mapping.
sub which_role
{
	$calls->sql("CREATE ROLE second; GRANT USAGE ON FOREIGN SERVER doubletick TO second;
		GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO second;
		CREATE USER MAPPING FOR second SERVER doubletick OPTIONS (api_key 'key_second')");
	$sb->reset;
	$calls->session(removal($phone, ['1']), 'SET ROLE second', removal($phone, ['2']), 'RESET ROLE', removal($phone, ['3']));
	is(join(' ', map { $_->{authorization} } @{ $sb->journal }), 'key_sandbox key_second key_sandbox', 'two roles by turns in one session');
	return;
}

tried_again();
no_time_left();
never_tried_again();
until_the_budget_ends();
retry_after_obeyed();
retry_after_too_late();
no_connection();
one_connection();
pace();
changed_elsewhere();
changed_here();
which_server();
which_role();
changed_in_mid_statement();
kept_connections();
done_testing;


# Statements with many calls in flight, when something is in their way: locks, slow
# clients, refusals, pauses, limits, changes of the account, and interrupts.

use strict;
use warnings;

use File::Basename qw(dirname);
use IO::Select;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib dirname(__FILE__);
use Calls;
use Statements;
use Wire;

my $calls = open_statements();
my $sandbox = $calls->sandbox;
my $node = $calls->node;
my $call = 'dt_try_remove_tags_custom_fields(phone, ARRAY[tag])';
my $raising = 'dt_remove_tags_custom_fields(phone, ARRAY[tag])';
my $window = 'SET doubletick.max_in_flight = ';

sub phone { return (919876543000 + $_[0]) . ''; }

sub fresh
{
	$sandbox->reset;
	$calls->sql(<<"SQL");
TRUNCATE c;
INSERT INTO c SELECT n, (919876543000 + n)::text, 't' || n, n % 4 FROM generate_series(1, 20) AS n;
SQL
	return;
}

# Starts statements in a session of their own, and returns the session and its pid.
sub begin
{
	my ($sql) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');

	$session->query_until(qr/begins/, "\\echo begins\n$sql;\n\\echo over :SQLSTATE\n");
	return ($session, $pid);
}

# Waits until the statements are over; what they printed.
sub finish
{
	my ($session) = @_;

	my $out = $session->query("SELECT 'done'");
	my $err = $session->{stderr};
	$session->quit;
	return ($out, $err);
}

sub tags { return map { $_->{body}{tags}[0] } @{ $sandbox->journal }; }

# The first call goes alone, then as many as the setting says; a call of the same
# session elsewhere in the statement counts, too.
sub in_flight
{
	fresh();
	$sandbox->hold('*');
	my ($session) = begin("$window 5; SELECT id, $call FROM c");
	$sandbox->await_held(1);
	$sandbox->release;
	$sandbox->await_held(5);
	$sandbox->clear_rules;
	my ($out) = finish($session);
	is(scalar(() = $out =~ /^\d+\|\{"tags"/mg), 20, 'in flight: all rows');
	is($sandbox->stats->{max_in_flight}, 5, 'in flight: never more than the setting says');
	is(join(' ', sort { $a cmp $b } tags()), join(' ', sort { $a cmp $b } map { "t$_" } 1 .. 20), 'in flight: each call once');

	fresh();
	$sandbox->hold('*');
	$calls->sql("ALTER SERVER plain OPTIONS (SET max_connections '3')");
	($session) = begin("$window 8; SELECT id, $call FROM c");
	$sandbox->await_held(1);
	$sandbox->release;
	$sandbox->await_held(3);
	$sandbox->clear_rules;
	finish($session);
	is($sandbox->stats->{max_in_flight}, 3, 'in flight: never more than max_connections');

	# Of two servers, each has its own max_connections.
	fresh();
	$sandbox->hold('*');
	$calls->server('other', base_url => $sandbox->http, ca_file => undef, max_connections => '3');
	($session) = begin("$window 8; SELECT id, dt_try_remove_tags_custom_fields(phone, ARRAY[tag], server => CASE WHEN id % 2 = 0 THEN 'other' ELSE 'plain' END) FROM c");
	$sandbox->await_held(1);
	$sandbox->release;
	foreach my $turn (1 .. 3)
	{
		$sandbox->await_held(6);
		is(scalar(grep { $sandbox->held(phone($_)) } map { 2 * $_ } 1 .. 10), 3, "in flight: three of one server, turn $turn");
		$sandbox->release;
	}
	$sandbox->clear_rules;
	finish($session);
	is($sandbox->stats->{max_in_flight}, 6, 'in flight: and three of the other one');
	$calls->sql('DROP SERVER other CASCADE');
	$calls->sql("ALTER SERVER plain OPTIONS (SET max_connections '100')");
	return;
}

# Rows of one customer go one after the other, in their order.
sub one_customer
{
	fresh();
	$calls->sql("UPDATE c SET phone = CASE WHEN id % 2 = 0 THEN '+' ELSE '' END || '919876543001' WHERE id <= 12");
	$sandbox->rule('*', { delay_ms => 5 });
	my ($out) = finish((begin("$window 16; SELECT id, $call FROM c ORDER BY id"))[0]);
	is(scalar(() = $out =~ /^\d+\|\{"tags"/mg), 20, 'one customer: all rows');
	is(join(' ', grep { /^t([1-9]|1[0-2])$/ } tags()), join(' ', map { "t$_" } 1 .. 12), 'one customer: in the order of the rows');

	$sandbox->reset;
	$sandbox->hold('919876543001');
	$sandbox->hold('+919876543001');
	my ($session) = begin("$window 16; SELECT id, $call FROM c ORDER BY id");
	my $most = 0;
	foreach my $n (1 .. 12)
	{
		eventually(sub { $sandbox->held > 0 }, "one customer: request $n");
		$most = $sandbox->held if $sandbox->held > $most;
		$sandbox->release;
	}
	finish($session);
	is($most, 1, 'one customer: one request at a time');
	return;
}

# While a statement waits for a lock, the time of its calls stands still.
sub lock_of_a_row
{
	fresh();
	$calls->sql("ALTER SERVER plain OPTIONS (ADD timeout '3s')");
	$sandbox->hold(phone($_)) foreach 3 .. 9;
	my $locker = $node->background_psql('postgres');
	$locker->query_safe('BEGIN; SELECT 1 FROM c WHERE id = 2 FOR UPDATE');
	my ($session, $pid) = begin("$window 8; UPDATE c SET answer = $call");
	ok($node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid"),
		'a lock: the statement waits for it');
	$sandbox->await_held(7);
	$sandbox->clear_rules(phone($_)) foreach 3 .. 5;
	ok($node->poll_query_until('postgres', "SELECT state_change < clock_timestamp() - interval '4 s' FROM pg_stat_activity WHERE pid = $pid"),
		'a lock: longer than the timeout');
	$locker->query_safe('ROLLBACK');
	$sandbox->clear_rules;
	$locker->quit;
	finish($session);
	is($calls->sql("SELECT count(*) FROM c WHERE answer ? 'tags'"), 20, 'a lock: no call is out of time for it');
	$calls->sql("ALTER SERVER plain OPTIONS (DROP timeout)");
	return;
}

# A client that does not read stops the statement while its calls are in flight. Their
# answers come meanwhile, and the API closes the connections: no call is out of time.
sub slow_client
{
	fresh();
	$calls->sql("ALTER SERVER plain OPTIONS (ADD timeout '2s')");
	$sandbox->rule('*', { fault => 'close' });
	$sandbox->hold(phone($_), { fault => 'close' }) foreach 5 .. 9;
	my ($session, $pid) = begin("$window 8; SELECT id, $call, repeat('x', 2000000) AS wide FROM c");
	$sandbox->await_held(1, phone(5));
	my $psql = $session->{run}{KIDS}[0]{PID};
	kill 'STOP', $psql;
	$sandbox->clear_rules(phone(5));
	ok($node->poll_query_until('postgres', "SELECT wait_event = 'ClientWrite' FROM pg_stat_activity WHERE pid = $pid"),
		'a slow client: the statement waits for it');
	$sandbox->clear_rules(phone($_)) foreach 6 .. 8;
	ok($node->poll_query_until('postgres', "SELECT state_change < clock_timestamp() - interval '4 s' FROM pg_stat_activity WHERE pid = $pid"),
		'a slow client: longer than the timeout');
	is($calls->sql("SELECT wait_event FROM pg_stat_activity WHERE pid = $pid"), 'ClientWrite', 'a slow client: and still does');
	kill 'CONT', $psql;
	$sandbox->clear_rules;
	my ($out) = finish($session);
	is(scalar(() = $out =~ /^\d+\|\{"tags"/mg), 20, 'a slow client: no call is out of time for it');
	$calls->sql("ALTER SERVER plain OPTIONS (DROP timeout)");
	return;
}

# A trigger that takes longer than the timeout, with a call in flight that is answered
# after it.
sub slow_trigger
{
	fresh();
	$calls->sql(<<'SQL');
ALTER SERVER plain OPTIONS (ADD timeout '2s');
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2.5); RETURN new; END';
CREATE TRIGGER slow BEFORE UPDATE ON c FOR EACH ROW WHEN (old.id = 2) EXECUTE FUNCTION slow();
SQL
	$sandbox->rule(phone(9), { delay_ms => 3000 });
	finish((begin("$window 8; UPDATE c SET answer = $call"))[0]);
	is($calls->sql("SELECT count(*) FROM c WHERE answer ? 'tags'"), 20, 'a slow trigger: no call is out of time for it');
	$calls->sql('DROP TRIGGER slow ON c; ALTER SERVER plain OPTIONS (DROP timeout)');
	return;
}

# A library that puts itself in our place keeps from us how many rows are wanted. Then no
# row is read ahead, since its call might not be made otherwise.
sub untold
{
  SKIP:
	{
		skip 'a build without TESTING=1 has no function for it', 1 unless is_testing_build($node);
		fresh();
		finish((begin("CREATE FUNCTION pg_temp.take() RETURNS void LANGUAGE c AS 'doubletick', 'dt_test_take_run_hook'; SELECT pg_temp.take();"
			. "$window 8; BEGIN; DECLARE x CURSOR FOR SELECT id, $call FROM c; FETCH 3 FROM x; COMMIT"))[0]);
		is(join(' ', tags()), 't1 t2 t3', 'nobody says how many rows are wanted: one after the other');
	}
	return;
}

# No row is handed up while a request is yet to leave, since its connection is being made:
# else, while the statement does something else, it would leave late, past the rate limit.
sub all_have_left
{
	my $gate = "$PostgreSQL::Test::Utils::tmp_check/gate";
	my $wire = Wire->new(sub {
		my ($peer, $before) = @_;
		my $https = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $sandbox->port('https')) or return;
		my $select = IO::Select->new($peer, $https);

		# All connections but the first wait for their handshakes.
		sleep 0.01 until $before == 0 || -e $gate;
		while (my @ready = $select->can_read)
		{
			foreach my $from (@ready)
			{
				sysread $from, my $bytes, 65536 or return;
				send_all($from == $peer ? $https : $peer, $bytes) or return;
			}
		}
	});

	fresh();
	$sandbox->hold(phone(2));
	$calls->server('gate', base_url => 'https://localhost:' . $wire->port);
	my $locker = $node->background_psql('postgres');
	$locker->query_safe('BEGIN; SELECT 1 FROM c WHERE id = 2 FOR UPDATE');
	my ($session, $pid) = begin("SET doubletick.server = 'gate'; $window 4; UPDATE c SET answer = $call");
	my $is_waiting = sub { $calls->sql("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid") eq 't' };

	# The second row has the first one's connection, which the third would take if it was free.
	$sandbox->await_held(1, phone(2));
	eventually(sub { $wire->connections == 4 }, 'half a connection: three others make one');
	$sandbox->clear_rules;
	eventually(sub { tags() == 2 && $sandbox->stats->{in_flight} == 0 },
		'half a connection: the second row is answered, three others are yet to leave');
	my $deadline = time + 1;
	sleep 0.02 until $is_waiting->() || time > $deadline;
	ok(!$is_waiting->(), 'half a connection: no row is handed up');
	append_to_file($gate, 'open');
	eventually($is_waiting, 'half a connection: until all have left');
	is(scalar tags(), 5, 'half a connection: as many as may be in flight');
	$locker->query_safe('ROLLBACK');
	$locker->quit;
	finish($session);
	is($calls->sql("SELECT count(*) FROM c WHERE answer ? 'tags'"), 20, 'half a connection: all rows succeed');
	$calls->sql('DROP SERVER gate CASCADE');
	return;
}

# A statement that is executed again begins anew: the first row alone, then as many as ever.
sub executed_again
{
	fresh();
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_safe("$window 4; BEGIN; DECLARE again SCROLL CURSOR FOR SELECT id, $call FROM c LIMIT 9; FETCH ALL FROM again; MOVE ABSOLUTE 0 FROM again");
	is(scalar tags(), 9, 'executed again: nine calls');
	$sandbox->hold('*');
	$session->query_until(qr/begins/, "\\echo begins\nFETCH ALL FROM again;\n");
	$sandbox->await_held(1);
	is($sandbox->held, 1, 'executed again: the first row goes alone');
	$sandbox->release;
	$sandbox->await_held(4);
	$sandbox->clear_rules;
	finish($session);
	is(scalar tags(), 18, 'executed again: nine calls more');
	return;
}

# What is wrong with all rows is found by the first, alone.
sub first_alone
{
	fresh();
	$sandbox->rule('*', { status => 401 });
	my ($out, $err) = $calls->session("SELECT count($call) FROM c", "SELECT array_agg(x) FROM (SELECT $call AS x FROM c) AS s");
	is($err->{sqlstate}, '28000', 'a wrong key: the statement fails');
	$sandbox->reset;
	$sandbox->rule('*', { status => 401 });
	finish((begin("$window 32; SELECT $call FROM c"))[0]);
	is(scalar tags(), 1, 'a wrong key: after one request');
	$sandbox->clear_journal;
	finish((begin("$window 32; SELECT $call, dt_try_remove_tags_custom_fields('919876543999', ARRAY['x']) FROM c"))[0]);
	is(scalar tags(), 1, 'a wrong key: after one request, too, if a row has two calls');

	$sandbox->reset;
	finish((begin("SET doubletick.enabled = off; $window 32; SELECT $call FROM c"))[0]);
	is(scalar tags(), 0, 'switched off: no request');

	# So is a connection that is refused, in one timeout and not one for each row.
	$calls->server('refused', base_url => 'http://127.0.0.1:' . closed_port(), ca_file => undef, timeout => '50ms');
	($out, $err) = finish((begin("$window 32; SELECT $raising FROM c, set_config('doubletick.server', 'refused', true) AS s(x) WHERE x <> ''"))[0]);
	like($err, qr/ERROR:  could not connect/, 'a refused connection: the statement fails') ;
	$calls->sql('DROP SERVER refused CASCADE; CREATE SERVER unmapped FOREIGN DATA WRAPPER doubletick');
	my ($none, $says) = finish((begin("SET doubletick.server = 'unmapped'; $window 32; SELECT $call FROM c"))[0]);
	like($none, qr/over 42704/, 'no mapping: the statement fails');
	is(scalar(() = $says =~ /ERROR/g), 1, 'no mapping: once');
	$calls->sql('DROP SERVER unmapped');
	return;
}

# 429 and 503 in the middle, then success: each row gets its answer.
sub tried_again
{
	fresh();
	$sandbox->rule(phone(5), { status => 429, retry_after => '1', times => 1 });
	$sandbox->rule(phone($_), { status => 503, times => 1 }) foreach 3, 8, 9;
	my ($out) = finish((begin("$window 8; SELECT id, $call FROM c"))[0]);
	is(scalar(() = $out =~ /^\d+\|\{"tags"/mg), 20, 'tried again: all rows succeed');
	is(scalar tags(), 24, 'tried again: with four requests more');

	fresh();
	$sandbox->rule(phone(5), { status => 422 });
	($out) = finish((begin("$window 8; EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT id, $raising FROM c WHERE id <> 5"))[0]);
	like($out, qr/Custom Scan \(DoubletickCalls\).*Calls per Row: 1\n\s*Max in Flight: 8\n\s*Calls: 19\n\s*Requests: 19\n\s*Peak in Flight: 8\n/s,
		'EXPLAIN ANALYZE counts');
	return;
}

# While a call that is tried again waits for the only connection, its time stands still.
sub no_connection_left
{
	fresh();
	$calls->sql("ALTER SERVER plain OPTIONS (ADD timeout '3s', SET max_connections '1')");
	$sandbox->rule(phone(2), { status => 503, retry_after => '1', times => 1 });
	$sandbox->hold(phone(3));
	my ($session) = begin("$window 8; SELECT id, $call FROM c WHERE id <= 3");
	$sandbox->await_held(1, phone(3));
	$sandbox->rule(phone(2), { delay_ms => 500 });
	my ($out) = finish($session);
	like($out, qr/^3\|.*no answer within \d+ ms/m, 'no connection left: another call has it until its time is up');
	like($out, qr/^2\|\{"tags"/m, 'no connection left: the call that waits for it has its time left');
	$calls->sql("ALTER SERVER plain OPTIONS (DROP timeout, SET max_connections '100')");
	return;
}

# The limit of a server holds however many may be in flight.
sub rate_limit
{
	# While a call that is tried again waits for its turn, its time stands still.
	fresh();
	$calls->sql("ALTER SERVER plain OPTIONS (SET rate_limit '0.4', ADD timeout '2s')");
	$sandbox->rule(phone(1), { status => 503, retry_after => '1', times => 1 });
	my ($session) = begin("SELECT id, $call FROM c WHERE id = 1");
	eventually(sub { tags() == 1 }, 'rate_limit: a call is sent');
	$sandbox->rule(phone(1), { delay_ms => 200 });
	like((finish($session))[0], qr/^1\|\{"tags"/m, 'rate_limit: and tried again after its turn, with its time left');
	$calls->sql('ALTER SERVER plain OPTIONS (DROP timeout)');

	fresh();
	$calls->sql("ALTER SERVER plain OPTIONS (SET rate_limit '20'); INSERT INTO c SELECT n, (919876543000 + n)::text, 't' || n FROM generate_series(21, 60) AS n");
	my ($out) = finish((begin("$window 32; SELECT id, $call FROM c"))[0]);
	is(scalar(() = $out =~ /^\d+\|\{"tags"/mg), 60, 'rate_limit: all rows');
	cmp_ok(most_in_a_second(@{ $sandbox->journal }), '<=', 21, 'rate_limit: never more in a second');
	# One that needs a new connection may arrive after the next one.
	my @ids = map { substr $_, 1 } tags();
	is(join(' ', sort { $a <=> $b } @ids), join(' ', 1 .. 60), 'rate_limit: each row once');
	is(join(' ', grep { abs($ids[ $_ - 1 ] - $_) > 3 } 1 .. 60), '', 'rate_limit: in the order of the rows');
	$calls->sql("ALTER SERVER plain OPTIONS (SET rate_limit '0')");
	return;
}

# A statement whose first call is over and that has four more in flight, which are held.
sub four_in_flight
{
	fresh();
	$sandbox->hold('*');
	my ($session) = begin("$window 4; SELECT id, $call FROM c");
	$sandbox->await_held(1);
	$sandbox->release;
	$sandbox->await_held(4);
	return $session;
}

# What is changed meanwhile counts from the next request on.
sub changes
{
	my $key = $sandbox->key;

	my $session = four_in_flight();
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER plain OPTIONS (SET api_key 'another')");
	$sandbox->release;
	$sandbox->clear_rules;
	my ($out) = finish($session);
	like($out, qr/over 28000$/m, 'a changed key: counts for rows that have yet to be sent');
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER plain OPTIONS (SET api_key '$key')");

	# So does an option, and a setting that a row's expression changes.
	$session = four_in_flight();
	$calls->sql("ALTER SERVER plain OPTIONS (SET base_url '" . $sandbox->http . "/nowhere')");
	$sandbox->release;
	$sandbox->clear_rules;
	($out) = finish($session);
	is(scalar(() = $out =~ /^\d+\|\{"tags"/mg), 5, 'ALTER SERVER: what was in flight ends as before');
	is(scalar(() = $out =~ /Cannot POST/g), 15, 'ALTER SERVER: counts for rows that have yet to be sent');
	$calls->sql("ALTER SERVER plain OPTIONS (SET base_url '" . $sandbox->http . "')");

	$session = four_in_flight();
	$calls->sql(q{LOAD 'doubletick'; ALTER SYSTEM SET doubletick.enabled = off; SELECT pg_reload_conf()});
	eventually(sub { $calls->sql(q{LOAD 'doubletick'; SHOW doubletick.enabled}) eq 'off' }, 'enabled off: is read');
	$sandbox->release;
	$sandbox->clear_rules;
	($out, my $err) = finish($session);
	$calls->sql(q{LOAD 'doubletick'; ALTER SYSTEM SET doubletick.enabled = on; SELECT pg_reload_conf()});
	eventually(sub { $calls->sql(q{LOAD 'doubletick'; SHOW doubletick.enabled}) eq 'on' }, 'enabled on: is read');
	is(scalar(() = $out =~ /^\d+\|\{"tags"/mg), 20, 'enabled off: a statement that runs keeps its settings');

	# A call that is tried again has the options of then.
	fresh();
	$sandbox->hold(phone(1), { status => 503, times => 1 });
	($session) = begin("SELECT id, $call FROM c WHERE id = 1");
	$sandbox->await_held(1);
	$calls->sql("ALTER SERVER plain OPTIONS (ADD waba_number '14155550100')");
	$sandbox->release;
	finish($session);
	is($sandbox->journal->[1]{body}{wabaNumber}, '14155550100', 'a changed option: counts for a call that is tried again');
	$calls->sql('ALTER SERVER plain OPTIONS (DROP waba_number)');
	return;
}

# An API that does not answer costs one timeout or two, not one for each row.
sub no_answer
{
	fresh();
	$calls->sql("ALTER SERVER plain OPTIONS (ADD timeout '1s')");
	$sandbox->rule('*', { fault => 'hang' });
	my ($out) = finish((begin("$window 16; SELECT id, $call FROM c WHERE id <= 10"))[0]);
	my @at = sort { $a <=> $b } map { $_->{at} } @{ $sandbox->journal };
	is(scalar(() = $out =~ /no answer within \d+ ms/g), 10, 'no answer: all rows say so');
	cmp_ok($at[-1] - $at[0], '<', 5, 'no answer: the last call is made after one timeout');
	$calls->sql("ALTER SERVER plain OPTIONS (DROP timeout)");
	return;
}

# PostgreSQL evaluates a row again that changed while the statement waited for it.
sub row_that_changed
{
	foreach my $case ([ "UPDATE c SET answer = $call, grp = grp + 1", 2 ], [ "UPDATE c SET grp = grp + 1 RETURNING id, $call", 1 ],
		[ "DELETE FROM c RETURNING id, $call", 1 ])
	{
		my ($sql, $ncalls) = @$case;

		fresh();
		my $locker = $node->background_psql('postgres');
		$locker->query_safe("BEGIN; UPDATE c SET tag = 'new' WHERE id = 2");
		my ($session, $pid) = begin("$window 8; $sql");
		ok($node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid"), "$sql: waits");
		$locker->query_safe('COMMIT');
		$locker->quit;
		my ($out) = finish($session);
		like($out, qr/over 00000$/m, "$sql: succeeds");
		is(scalar(grep { /^(t2|new)$/ } tags()), $ncalls, "$sql: calls for the row");
		ok((grep { $_ eq 'new' } tags()), "$sql: with what it has then");
	}
	return;
}

# Interrupts end the statement and all its requests at once.
sub interrupts
{
	foreach my $how ('cancel', 'timeout', 'terminate')
	{
		fresh();
		$sandbox->hold('*');
		my ($session, $pid) = begin(($how eq 'timeout' ? "SET statement_timeout = '3s';" : '') . "$window 8; SELECT id, $call FROM c");
		$sandbox->await_held(1);
		$sandbox->release;
		$sandbox->await_held(8) unless $how eq 'timeout';
		$calls->sql("SELECT pg_${how}_backend($pid)") unless $how eq 'timeout';
		eventually(sub { $sandbox->stats->{in_flight} == 0 }, "$how: no request is left");
		if ($how ne 'terminate')
		{
			my $out = $session->query("SELECT 'done'");
			like($out, qr/over 57014/, "$how: says so");
			$sandbox->clear_rules;
			my $again = $session->query("SELECT count(x) FROM (SELECT $call AS x FROM c OFFSET 0) AS s");
			is($again, 20, "$how: the session goes on");
		}
		eval { $session->quit };
	}
	return;
}

# Statements that fail leave nothing behind.
sub failing_statements
{
	fresh();
	$sandbox->rule(phone(4), { status => 422 });
	my @used = split /\n/, $calls->sql(<<"SQL");
$window 8;
CREATE FUNCTION fails(n int) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	FOR i IN 1 .. n LOOP
		BEGIN
			PERFORM $raising FROM c;
		EXCEPTION WHEN invalid_parameter_value THEN
			NULL;
		END;
	END LOOP;
END \$\$;
SELECT fails(20) IS NULL;
SELECT sum(used_bytes) FROM pg_backend_memory_contexts;
SELECT fails(1000) IS NULL;
SELECT sum(used_bytes) FROM pg_backend_memory_contexts;
SELECT count(x) FROM (SELECT $call AS x FROM c OFFSET 0) AS s;
SQL
	cmp_ok($used[3] - $used[1], '<', 100_000, 'failing statements: no memory is lost');
	is($used[4], 20, 'failing statements: the session goes on');
	is($sandbox->stats->{in_flight}, 0, 'failing statements: no request is left');

	# A SQL function starts an executor for each row, in memory that lives longer.
	$calls->sql("CREATE FUNCTION g(n int) RETURNS jsonb LANGUAGE sql VOLATILE AS 'SELECT $call FROM c WHERE id = n OR id < 0';
		CREATE FUNCTION used() RETURNS numeric LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT sum(used_bytes) FROM pg_backend_memory_contexts); END'");
	my $lost = $calls->sql(<<"SQL");
SELECT max(used) - min(used)
FROM (SELECT g(1) AS answer, CASE WHEN n IN (20, 320) THEN used() END AS used
	FROM generate_series(1, 320) AS n OFFSET 0) AS s
WHERE answer IS NOT NULL
SQL
	cmp_ok($lost, '<', 100_000, 'a SQL function: no memory is lost while the statement runs');

	# What a call scan has used is free when its rows have ended, and partitions have one each.
	$calls->sql("CREATE FUNCTION ncalls() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM pg_backend_memory_contexts WHERE name = ''doubletick call''); END'");
	my $left = $calls->sql("$window 4; CREATE TEMP TABLE made AS "
		. join(' UNION ALL ', ("SELECT 0::bigint AS n, $call AS answer FROM c") x 9, "SELECT ncalls(), $call FROM c")
		. '; SELECT max(n), count(answer) FROM made');
	is($left, '5|200', 'ten call scans: one of them has memory for calls');
	return;
}

# Answers of the largest size, very many at once: they take some times their size, and
# give it back, also when the last row fails.
sub large_answers
{
	my $nrows = 300;
	my $size = 1024 * 1024 - 100;
	my $rule = { status => 201, body => '{"long": "' . 'x' x $size . '"}' };

	fresh();
	$calls->sql("ALTER SERVER plain OPTIONS (SET max_connections '256'); TRUNCATE c;
		INSERT INTO c SELECT n, (919876543000 + n)::text, 't' || n FROM generate_series(1, $nrows) AS n");
	$sandbox->rule('*', $rule);
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query("SET client_min_messages = warning; $window 256; SELECT pg_backend_pid()");
	my $statement = "DROP TABLE IF EXISTS long; CREATE TEMP TABLE long AS SELECT length($raising ->> 'long') AS n FROM c; SELECT sum(n) FROM long";
	my $used = 'SELECT sum(used_bytes) FROM pg_backend_memory_contexts';

	# Once with few, so that only the large ones count.
	is($session->query("$window 2; $statement LIMIT 20; $window 256"), $nrows * $size, 'large answers: two at once');
	my $used_before = $session->query($used);
	my $resident_before = memory_kb($pid, 'VmRSS');
	foreach my $case ('large answers', 'large answers and a fault')
	{
		my $fails = $case =~ /fault/;
		$sandbox->reset;
		$sandbox->rule(phone($nrows), { status => 422 }) if $fails;
		$sandbox->hold('*', $rule);
		$session->query_until(qr/begins/, "\\echo begins\n$statement;\n");
		$sandbox->await_held(1);
		$sandbox->release;
		eventually(sub { $sandbox->held > 200 }, "$case: very many in flight");
		$sandbox->rule('*', $rule);
		$sandbox->release;
		my $result = $session->query($used);
		is($result =~ s/\n?(\d+)\z//r, $fails ? '' : $nrows * $size, "$case: each row has its own");
		cmp_ok($1 - $used_before, '<', 100_000, "$case: no memory is lost");
		cmp_ok(memory_kb($pid, 'VmHWM') - $resident_before, '<', 256 * 2 * 1024, "$case: each takes no more than twice its size");
		cmp_ok(memory_kb($pid, 'VmRSS') - $resident_before, '<', 32 * 1024, "$case: and the system gets it back");
		like($session->{stderr}, $fails ? qr/ERROR/ : qr/\A\Z/, "$case: the statement " . ($fails ? 'fails' : 'succeeds'));
		$session->{stderr} = '';
	}
	$calls->sql("ALTER SERVER plain OPTIONS (SET max_connections '100')");
	$session->quit;
	return;
}

# A statement that takes long says how far it is.
sub progress
{
	fresh();
	$sandbox->hold(phone(12));
	my ($session, $pid) = begin("$window 4; SELECT id, $call FROM c");
	$sandbox->await_held(1);
	eventually(sub { $session->{stderr} =~ /calls: / || !$session->{run}->pump_nb }, 'progress: a notice comes');
	$sandbox->clear_rules;
	my ($out, $err) = finish($session);
	like($err, qr/NOTICE:  calls: 15 made, 1 in flight, \d+\.\d per second/, 'progress: with what is done');
	return;
}

# Another session has changed a row since the snapshot: the statement fails at this row, and
# has made at most the calls of the rows that were read ahead.
sub could_not_serialize
{
	fresh();
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query("$window 4; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM c");
	$calls->sql('UPDATE c SET grp = 9 WHERE id = 15');
	$session->query("UPDATE c SET tag = $call ->> 'error'");
	like($session->{stderr}, qr/could not serialize access due to concurrent update/, 'could not serialize: the statement fails');
	$session->quit;
	my @tags = tags();
	# Requests that are in flight at once arrive in any order.
	is(join(' ', grep { $_ <= 15 } sort { $a <=> $b } map { substr($_, 1) } @tags), join(' ', 1 .. 15), 'could not serialize: the calls up to this row were made');
	cmp_ok(scalar @tags, '<=', 18, 'could not serialize: and at most three more');
	is($calls->sql("SELECT count(*) FROM c WHERE tag IS NULL"), '0', 'could not serialize: no row is changed');
	return;
}

# DROP DATABASE waits until each process has noticed it, also one that waits for answers.
sub database_dropped_elsewhere
{
	fresh();
	$sandbox->hold(phone(5));
	my ($session) = begin("$window 4; SELECT id, $call FROM c");
	$sandbox->await_held(1);
	$calls->sql('CREATE DATABASE elsewhere');
	$calls->sql('DROP DATABASE elsewhere');
	$sandbox->await_held(1);
	$sandbox->clear_rules;
	my ($out, $err) = finish($session);
	is(join(' ', sort { $a <=> $b } map { s/t//r } tags()), join(' ', 1 .. 20), 'database dropped elsewhere: nobody waits for the answers');
	return;
}

in_flight();
one_customer();
could_not_serialize();
database_dropped_elsewhere();
lock_of_a_row();
slow_client();
slow_trigger();
untold();
all_have_left();
executed_again();
first_alone();
tried_again();
no_connection_left();
rate_limit();
changes();
no_answer();
row_that_changed();
interrupts();
failing_statements();
large_answers();
progress();

done_testing;

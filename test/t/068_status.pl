
# What dt_status counts: for every server, always, and over all sessions when the
# library is preloaded.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

my $counters = 'requests_total, calls_total, status_2xx_total, status_4xx_total, status_429_total, status_5xx_total, no_answer_total,'
  . ' done_total, errored_total, failed_total, cancelled_total';

sub counts
{
	my ($server) = @_;

	return $calls->sql("SELECT $counters FROM dt_status WHERE server = '$server'");
}

sub preloaded
{
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'doubletick'\nmax_worker_processes = 0");
	$node->restart;
	my $phone = new_phone();

	# A server for which nothing was ever enqueued.
	$calls->server('quiet', timeout => '1min');
	is($calls->sql("SELECT waiting, due, in_flight, done, oldest_age IS NULL, rate, held IS NULL, time_left IS NULL, counted_since IS NULL
			FROM dt_status WHERE server = 'quiet'"), '0|0|0|0|t|0.0|t|t|t', 'a quiet server has a row');
	is(counts('quiet'), '0|0|0|0|0|0|0|0|0|0|0', 'which counts nothing');
	is($calls->sql('SELECT DISTINCT counted_in FROM dt_status'), 'all sessions', 'preloaded: all sessions are counted');

	# Calls.
	$calls->sql(removal($phone, ['a']));
	$sb->rule($phone, { status => 422, times => 1 });
	$calls->sql(attempt($phone, ['a']));
	$sb->rule($phone, { status => 503, times => 1 });
	$calls->sql(attempt($phone, ['a']));
	is(counts('doubletick'), '4|4|2|1|0|1|0|0|0|0|0', 'calls are counted, a repetition, too');
	$sb->rule($phone, { status => 429, retry_after => '0', times => 1 });
	$calls->sql(attempt($phone, ['a']));
	is(counts('doubletick'), '6|6|3|2|1|1|0|0|0|0|0', 'HTTP status 429 is counted among 4xx, and by itself');

	# The queue: done, with errors, failed, taken back.
	enqueue($phone, ['a']);
	drain();
	$sb->rule($phone, { status => 422, times => 1 });
	enqueue($phone, ['b']);
	drain();
	enqueue($phone, ['no such tag']);
	drain();
	enqueue($phone, ['d']);
	$calls->sql("SELECT dt_keep('$phone', '{d}')");
	drain();
	is(counts('doubletick'), '9|6|5|3|1|1|0|2|2|1|1', 'so are requests of the queue, and what came of removals');
	is(counts('quiet'), '0|0|0|0|0|0|0|0|0|0|0', 'each server for itself');
	cmp_ok($calls->sql("SELECT rate FROM dt_status WHERE server = 'doubletick'"), '>', 0, 'a rate is shown');
	is($calls->sql("SELECT last_error FROM dt_status WHERE server = 'doubletick'"), 'request was refused with HTTP status 422',
		'the last error is that of what failed');
	$calls->sql("SET doubletick.server = quiet; SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{no such tag}')");
	drain();
	is($calls->sql("SELECT last_error FROM dt_status WHERE server = 'quiet'"), 'some names could not be removed',
		'where nothing failed, names that could not be removed are');

	# Removals whose names have all come back do not wait any more.
	enqueue($phone, [ 'e', 'f' ]);
	enqueue($phone, ['g']);
	enqueue(new_phone(), ['g']);
	is($calls->sql("SELECT waiting, due FROM dt_status WHERE server = 'doubletick'"), '3|3', 'three removals wait');
	$calls->sql("SELECT dt_keep('$phone', '{e}')");
	is($calls->sql("SELECT waiting, due FROM dt_status WHERE server = 'doubletick'"), '3|3', 'one of two names came back');
	$calls->sql("SELECT dt_keep('$phone', '{g}')");
	is($calls->sql("SELECT waiting, due FROM dt_status WHERE server = 'doubletick'"), '2|2', 'the only name came back');
	is($calls->sql("SELECT count(*) FROM dt_queue"), '2', 'dt_queue shows as many');

	# Where nothing else waits, there is no oldest.
	is($calls->sql("SELECT oldest_age IS NULL FROM dt_status WHERE server = 'doubletick'"), 'f', 'the oldest has an age');
	$calls->sql("SELECT dt_keep(phone, tags) FROM dt_queue");
	is($calls->sql("SELECT waiting, due, oldest_age IS NULL FROM dt_status WHERE server = 'doubletick'"), '0|0|t', 'when all names came back, nothing waits, and nothing has an age');
	$calls->sql("SELECT count(dt_cancel(id)) FROM dt_queue");
	drain();

	# What came of requests, by the call and by the queue: a status that HTTP has not, and
	# answers that are broken off, which a call tries again.
	my %cases = (
		larger => [ { status => 999 }, '0|0|0|0|2' ],
		redirect => [ { status => 307 }, '0|0|0|0|2' ],
		truncated => [ { fault => 'truncate' }, '2|1|0|0|0' ],
		truncated_error => [ { fault => 'truncate', status => 500 }, '2|1|0|0|0' ],
		endless => [ { fault => 'endless' }, '2|0|0|0|0' ]);
	foreach my $name (sort keys %cases)
	{
		my ($rule, $expected) = @{ $cases{$name} };

		$calls->server($name);
		$sb->rule($phone, { %$rule, times => 1 });
		$calls->sql(attempt($phone, ['a'], undef, undef, $name));
		$sb->rule($phone, { %$rule, times => 1 });
		my $id = enqueue($phone, ['a'], undef, server => $name);
		drain();
		is($calls->sql("SELECT no_answer_total, status_2xx_total, status_4xx_total, status_5xx_total, other_status_total
			FROM dt_status WHERE server = '$name'"), $expected, "what came of requests: $name");
		$calls->sql("SELECT dt_cancel($id)");
	}

	# No answer comes, and then the server is not there any more.
	$calls->server('closed', base_url => 'http://127.0.0.1:' . closed_port());
	$calls->sql("SET doubletick.server = closed; " . attempt($phone, ['a']));
	my ($requests, $unanswered) = $calls->sql("SELECT requests_total, no_answer_total FROM dt_status WHERE server = 'closed'") =~ /(\d+)/g;
	cmp_ok($unanswered, '>=', 1, 'a request that is not answered is counted');
	is($unanswered, $requests, 'as often as it was sent');
	$calls->sql('DROP SERVER closed CASCADE');
	is($calls->sql("SELECT count(*) FROM dt_status WHERE server = 'closed'"), '0', 'a server that was dropped has no row');

	# What waits for a server that was dropped is shown.
	$calls->server('gone');
	$calls->sql("SET doubletick.server = gone; SELECT dt_enqueue_remove_tags_custom_fields('$phone', '{a}')");
	$calls->sql('DROP SERVER gone CASCADE');
	is($calls->sql("SELECT waiting, requests_total, counted_in FROM dt_status WHERE server = 'gone'"), '1|0|all sessions', 'what waits for it is shown');
	like($calls->sql("SELECT held FROM dt_status WHERE server = 'gone'"), qr/^role \S+: server "gone" does not exist/, 'and why it is held');

	# Who is held.
	make_roles();
	as('app', enqueueing($phone, ['a']));
	as('other', enqueueing($phone, ['a']));
	$calls->sql('DROP USER MAPPING FOR app SERVER doubletick; REVOKE USAGE ON FOREIGN SERVER doubletick FROM other');
	is($calls->sql("SELECT held FROM dt_status WHERE server = 'doubletick'"),
		'role app: role "app" has no user mapping on server "doubletick"; role other: permission denied for foreign server doubletick',
		'each role that is held is named');
	return;
}

sub of_this_session
{
	my @phones = map { new_phone() } 1 .. 3;

	$calls->sql(join ';', map { enqueueing($_, ['a']) } @phones);
	is($calls->sql('SELECT time_left IS NULL, due FROM dt_status'), 't|3', 'no time is left to say while nothing is sent');
	$sb->hold($phones[1]);
	my $drain = start_drain();
	$sb->await_held(1);
	is($calls->sql('SELECT counted_in, requests_total, counted_since IS NULL FROM dt_status'), 'this session|0|t',
		'not preloaded: each session counts what it has sent itself');
	$sb->release($phones[1]);
	await_drain($drain);
	is($calls->sql("$_; SELECT requests_total, calls_total, rate > 0 FROM dt_status"), "1|1|t", 'not preloaded: a call of this session')
	  foreach (removal($phones[0], ['a']) =~ s/^SELECT (.*)$/DO \$\$ BEGIN PERFORM $1; END \$\$/r);
	return;
}

# The time that is left, while requests are out.
sub time_left
{
	my @phones = map { new_phone() } 1 .. 3;

	$calls->sql(join ';', map { enqueueing($_, ['a']) } @phones);
	$sb->hold($phones[1]);
	my $drain = start_drain();
	$sb->await_held(1);
	like($calls->sql("SELECT time_left, due FROM dt_status WHERE server = 'doubletick'"), qr/^00:0\d:\d\d\|\d$/, 'the time that is left');
	$sb->release($phones[1]);
	await_drain($drain);
	return;
}

# A long queue is estimated: as it fills, when much of it is gone, and until it is short.
sub long_queue
{
	my $name = 'long queue';
	my $blocks = sub {
		my ($counts) = $calls->sql('EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM dt_status') =~ /Buffers: shared ([^\n]*)/;
		my $n = 0;
		$n += $_ foreach $counts =~ /(?:hit|read)=(\d+)/g;
		return $n;
	};

	# Within five percent of what is there.
	my $is_near = sub {
		my ($step) = @_;
		my ($waiting, $due, $estimated) = split /\|/, $calls->sql("SELECT waiting, due, estimated FROM dt_status WHERE server = 'doubletick'");
		my $there = $calls->sql("SELECT count(*) FROM dt_waiting WHERE NOT keep AND server = 'doubletick'");

		is($estimated, 't', "$name: $step: it is an estimate");
		cmp_ok(abs($waiting - $there), '<=', 0.05 * $there, "$name: $step: the estimate is near") || diag("$waiting, not $there");
		is($due, $waiting, "$name: $step: all are due");
		return;
	};

	# A plan that costs more than jit_above_cost is compiled, which takes seconds.
	my $is_cheap = sub {
		my ($cost) = $calls->sql('EXPLAIN SELECT * FROM dt_status') =~ /\.\.([\d.]+) rows/;
		cmp_ok($cost, '<', $calls->sql('SHOW jit_above_cost'), "$name: a plan is not compiled: $_[0]");
		return;
	};

	fresh();
	enqueue_many('14150000000', 10_000);
	$is_cheap->('10,000 rows');
	is($calls->sql("SELECT waiting, due, estimated FROM dt_status WHERE server = 'doubletick'"), '10000|10000|f', "$name: 10,000 are counted");
	enqueue_many('14160000000', 1);
	is($calls->sql("SELECT waiting, due, estimated FROM dt_status WHERE server = 'doubletick'"), '10001|10001|t', "$name: more are estimated");
	enqueue_many('14170000000', 110_000);
	$calls->sql("SET doubletick.server = quiet; SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}')");
	$is_cheap->('120,000 rows');
	$calls->sql('VACUUM ANALYZE dt_waiting');
	$is_cheap->('analyzed');
	my $pages = $calls->sql("SELECT relpages FROM pg_class WHERE oid = 'dt_waiting'::regclass");
	cmp_ok($pages, '>', 2_000, "$name: the table is longer than a sample");
	$is_near->('full');
	is($calls->sql("SELECT waiting FROM dt_status WHERE server = 'quiet'"), '1', "$name: what came last is counted, for another server");
	cmp_ok($blocks->(), '<', 2_000, "$name: dt_status does not read it all") || diag($pages);
	$calls->sql('SELECT dt_keep(phone, \'{lead}\') FROM dt_queue WHERE id % 1000 = 0');
	$calls->sql('DELETE FROM dt_waiting WHERE id < (SELECT percentile_disc(0.7) WITHIN GROUP (ORDER BY id) FROM dt_waiting); VACUUM dt_waiting');
	$is_near->('the older part is gone');
	$calls->sql('DELETE FROM dt_waiting WHERE id % 2 = 0');
	$is_near->('each second row is gone');
	$calls->sql("UPDATE dt_waiting SET due_at = due_at + interval '1 hour' WHERE id % 4 = 1");
	my ($waiting, $due) = split /\|/, $calls->sql("SELECT waiting, due FROM dt_status WHERE server = 'doubletick'");
	cmp_ok(abs($due - $waiting / 2), '<', $waiting / 20, "$name: half of them are due") || diag("$due of $waiting");
	like(drain(before => 'SET doubletick.enabled = off'), qr/queue: 0 done, 0 failed, 1[678]\d\d\d left/, "$name: so are those that a CALL leaves");

	# Whose removals are held is shown, even if a sample has none of them.
	$calls->sql("INSERT INTO dt_hold VALUES ('quiet', 'app'::regrole, now(), now(), '', 'some reason')");
	like($calls->sql("SELECT held FROM dt_status WHERE server = 'quiet'"), qr/role app: /, "$name: a hold is shown");
	$calls->sql('TRUNCATE dt_hold');

	# Who may see one role's removals sees as many as that role has.
	as('other', "SELECT count(dt_enqueue_remove_tags_custom_fields((14180000000 + n)::text, '{lead}')) FROM generate_series(1, 500) AS n");
	is(as('other', "SELECT waiting, estimated FROM dt_status WHERE server = 'doubletick'"), '500|t', "$name: a role sees its own");
	$calls->sql('DELETE FROM dt_waiting WHERE id < (SELECT max(id) - 5000 FROM dt_waiting)');
	is($calls->sql("SELECT waiting = (SELECT count(*) FROM dt_waiting WHERE NOT keep AND server = 'doubletick'), estimated FROM dt_status WHERE server = 'doubletick'"),
		't|f', "$name: the last ones are counted");
	$calls->sql('CREATE TABLE sampled AS SELECT n FROM generate_series(1, 10000) AS n');
	is($calls->sql('SELECT count(*) FROM sampled TABLESAMPLE dt_every_page (1)'), '10000', "$name: each page of a table, if a sample is to have all");
	is($calls->sql("SELECT count(DISTINCT (ctid::text::point)[0]), max((ctid::text::point)[0]) FROM sampled TABLESAMPLE dt_every_page (20)"),
		'2|30', "$name: each twentieth");
	is($calls->sql('SELECT count(*) FROM sampled TABLESAMPLE dt_every_page (2147483647)'), '0', "$name: none, if the first is beyond its end");
	is(sqlstate_of('SELECT count(*) FROM sampled TABLESAMPLE dt_every_page (0)'), '22023', "$name: a step of 0 is refused");
	fresh();
	return;
}

open_queue(options => { rate_limit => '0', max_connections => '1' });
of_this_session();
preloaded();
long_queue();
time_left();
done_testing();

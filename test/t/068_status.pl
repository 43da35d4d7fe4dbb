
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
	is($calls->sql("SELECT waiting, requests_total FROM dt_status WHERE server = 'gone'"), '1|0', 'what waits for it is shown');
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

open_queue(options => { rate_limit => '0', max_connections => '1' });
of_this_session();
preloaded();
time_left();
done_testing();

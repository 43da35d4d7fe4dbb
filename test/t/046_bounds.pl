
# What bounds the drainer's transactions and its use of the CPU, and what neither a slow
# server nor a wrong clock nor a long line may do to others.

use strict;
use warnings;

use File::Basename qw(dirname);
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib dirname(__FILE__);
use Calls;
use Queue;

# Few descriptors, so that a process has few slots.
open_queue(testing => 1, options => { rate_limit => '0', max_connections => '1000' }, conf => <<'CONF');
max_files_per_process = 100
max_locks_per_transaction = 10
CONF
$calls->server('second', base_url => $sb->http, rate_limit => '0');

# Rows that need no request: many roles, and more rows than a transaction may have.
{
	my $nroles = 30;
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD retry_for '1min'); DO \$\$ BEGIN FOR n IN 1 .. $nroles LOOP
		EXECUTE format('CREATE ROLE bulk%s; GRANT USAGE ON FOREIGN SERVER doubletick TO bulk%1\$s;
			CREATE USER MAPPING FOR bulk%1\$s SERVER doubletick OPTIONS (api_key ''key_sandbox'');
			GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO bulk%1\$s', n);
	END LOOP; END \$\$");
	$calls->sql(join '', map {
		"SET ROLE bulk$_; SELECT count(dt_enqueue_remove_tags_custom_fields((14155560000 + n)::text, '{lead}')) FROM generate_series(1, 100) AS n; RESET ROLE;"
	} 1 .. $nroles);
	time_passes('5 min');
	like(drain(), qr/queue: 0 done, 3000 failed, 0 left/, 'removals that are too old are given up');
	cmp_ok($calls->sql('SELECT max(n) FROM (SELECT count(*) AS n FROM dt_settled GROUP BY xmin::text) AS s'), '<=', 1000,
		'no transaction settles more than 1,000');
	is(scalar(() = requests()), 0, 'none is sent');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP retry_for)');
}

# A server that does not answer leaves slots to others, whose number is not known
# before.
{
	fresh();
	my $capacity = 100;		# more than there can be
	$sb->hold('*');
	enqueue_many('14155570000', $capacity);
	my $drain = start_drain();
	eventually(sub { status('doubletick')->{in_flight} > 0 && $sb->held == status('doubletick')->{in_flight} }, 'a slow server has requests in flight');
	my $most = status('doubletick')->{in_flight};
	my $id = enqueue('919876543299', ['lead'], undef, server => 'second');
	eventually(sub { status('second')->{in_flight} == 1 }, 'another server has one, too, although none has been answered');
	cmp_ok(status('doubletick')->{in_flight}, '==', $most, 'the slow server has no more than before');
	$sb->release('919876543299');
	eventually(sub { states($id) eq 'done' }, 'and it is done');
	$sb->clear_rules;
	await_drain($drain);
	is($calls->sql('SELECT count(*) FROM dt_queue'), '0', 'then all are');
}

# The share of its time for which a process has used the CPU in the next seconds.
sub share_of_cpu
{
	my ($pid) = @_;
	my ($begin, $used) = (time, cpu_seconds($pid));

	sleep 2;
	return (cpu_seconds($pid) - $used) / (time - $begin);
}

# Its user and system time; the fields are counted from the end of its name.
sub cpu_seconds
{
	my ($pid) = @_;
	my (undef, $fields) = split /\) /, slurp_file("/proc/$pid/stat");
	my ($user, $system) = (split ' ', $fields)[ 11, 12 ];

	return ($user + $system) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# Something is in the way of very many rows: a transaction that has cancelled them, and
# goes on.
SKIP: {
	skip 'this needs /proc', 5 unless -r "/proc/$$/stat";
	my $nrows = 100_000;
	my $phone = '919876543298';
	my $session = $node->background_psql('postgres');

	fresh();
	make_roles();
	$sb->hold($phone);
	enqueue_many('14155590000', $nrows);
	is($session->query_safe('BEGIN; SELECT count(*) FILTER (WHERE dt_cancel(id)) FROM dt_waiting'), $nrows, 'in the way: very many rows are being cancelled');
	my $id = as('other', enqueueing($phone, ['lead']));
	my $drain = start_drain();
	$sb->await_held(1, $phone);
	eventually(sub { share_of_cpu($drain->{pid}) < 0.3 }, 'in the way: when it knows them, the drainer rests meanwhile');
	$session->query_safe('COMMIT');
	$session->quit;
	$sb->release($phone);
	await_drain($drain);
	is(states($id), 'done', 'in the way: others are sent');

	# And a request for their phone, of another server of their account.
	fresh();
	$calls->server("${_}_of_one", rate_limit => '0', account => 'one') foreach 'first', 'other';
	$sb->hold($phone);
	enqueue($phone, ['lead'], undef, server => 'first_of_one');
	$drain = start_drain();
	$sb->await_held(1, $phone);
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['t' || i], NULL, NULL, 'other_of_one')) FROM generate_series(1, $nrows) AS i");
	eventually(sub { share_of_cpu($drain->{pid}) < 0.3 },
		'in the way, of one account: when it knows them, the drainer rests meanwhile');
	is($calls->sql("SELECT count(*) FILTER (WHERE dt_cancel(id)) FROM dt_waiting WHERE server = 'other_of_one'"), $nrows, 'in the way, of one account: none has been sent');
	$sb->release($phone);
	await_drain($drain);
	$calls->sql('DROP SERVER first_of_one, other_of_one CASCADE');
}

# Two servers of one account have removals for the same customers: one waits for the other
# each time, and one CALL sends all.
{
	my @servers = qw(first_of_one other_of_one);

	fresh();
	$calls->server($_, rate_limit => '0', account => 'one') foreach @servers;
	foreach my $nphones (1, 30)
	{
		$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('91987654' || 1000 + i, '{lead}', NULL, NULL, server))
			FROM generate_series(1, $nphones) AS i, unnest('{@{[ join ',', @servers ]}}'::text[]) AS server");
		like(drain(), qr/queue: @{[ 2 * $nphones ]} done, 0 failed, 0 left/, "one account, $nphones customers of two servers: one CALL sends all");
	}
	$calls->sql("DROP SERVER $_ CASCADE") foreach @servers;
}

# A clock that was ahead when the rows were written.
{
	fresh();
	$sb->rule('919876543201', { status => 503, times => 1 });
	my @ids = map { enqueue($_, ['lead']) } qw(919876543201 919876543202);
	drain();
	is(states(@ids), 'waiting done', 'one backs off');
	time_passes('-2 days');
	my $later = enqueue('919876543201', ['vip']);
	drain();
	is(states($ids[0], $later), 'done done', 'due in two days, by a clock that was wrong: due now');
}
{
	fresh();
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'wrong')");
	my $id = enqueue('919876543203', ['lead']);
	drain();
	ok(defined status('doubletick')->{held}, 'a wrong key holds');
	$sb->add_key('wrong') if $sb->can('add_key');
	time_passes('-2 days');
	my $before = () = requests('919876543203');
	drain();
	cmp_ok(scalar(() = requests('919876543203')), '>', $before, 'a probe in two days, by a clock that was wrong: now');
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_sandbox')");
	drain();
	is(states($id), 'done', 'and it goes when the key is right');
}

# Age: what merely stands in line is not given up, nor what has no server that
# could say for how long it may wait.
{
	fresh();
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD retry_for '2s', SET rate_limit '10')");
	enqueue_many('14155580000', 60);
	like(drain(), qr/queue: 60 done, 0 failed, 0 left/, 'removals that stand in line for longer than retry_for are sent');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '0')");

	$sb->rule('919876543204', { status => 503 });
	my $tried = enqueue('919876543204', ['lead']);
	drain();
	time_passes('1 min', $tried);
	drain();
	is(states($tried), 'failed', 'one that was tried is given up for its age');

	# An option that the library does not know may stand before "retry_for".
	$calls->sql("ALTER FOREIGN DATA WRAPPER doubletick NO VALIDATOR; ALTER SERVER doubletick OPTIONS (DROP retry_for);
		ALTER SERVER doubletick OPTIONS (ADD newer_option 'x', ADD retry_for '30d')");
	my $unread = enqueue('919876543209', ['lead']);
	time_passes('10 days', $unread);
	drain();
	is(states($unread), 'waiting', 'while the options cannot be read, an old one waits');
	$calls->sql("ALTER FOREIGN DATA WRAPPER doubletick VALIDATOR dt_fdw_validator; ALTER SERVER doubletick OPTIONS (DROP newer_option)");
	drain();
	is(states($unread), 'done', 'and goes when they can');

	my $old = enqueue('919876543205', ['lead']);
	$calls->sql('ALTER SERVER doubletick RENAME TO away');
	time_passes('10 days', $old);
	drain();
	is(states($old), 'waiting', 'without its server, an old one waits');
	$calls->sql('ALTER SERVER away RENAME TO doubletick');
	drain();
	is(states($old), 'done', 'and goes when the server is there again');
}

done_testing();

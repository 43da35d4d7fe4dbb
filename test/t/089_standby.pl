
# A hot standby: calls send from there, at a pace of its own; nothing else does. When
# it is promoted, its worker sends what waits, and repeats what was in flight.

use strict;
use warnings;

use CPAN::Meta::YAML;
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new(idle => '1s', conf => "wal_level = replica\nmax_wal_senders = 4\n");
my $sb = $calls->sandbox;
my $primary = $calls->node;

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# The same sandbox, from the standby.
my $there = bless { sandbox => $sb, node => $standby }, 'Worker';

sub caught_up
{
	my ($name) = @_;
	my $lsn = $calls->sql('SELECT pg_current_wal_flush_lsn()');

	return eventually(sub { $there->sql("SELECT pg_last_wal_replay_lsn() >= '$lsn'") eq 't' }, "$name: the standby has caught up");
}

sub call { return Calls::removal(Worker::phone($_[0]), [ $_[1] ]); }
sub try_call { return Calls::attempt(Worker::phone($_[0]), [ $_[1] ]); }

# Both calls send, and the standby counts what its own sessions have sent.
sub calls_send
{
	my ($answer, $returned) = $there->session(call(1, 'call'), try_call(1, 'try'));

	is(ref $answer->{value}{tags}, 'HASH', 'calls: dt_remove… returns the answer');
	is(ref $returned->{value}{tags}, 'HASH', 'calls: dt_try_remove… returns the answer');
	is(join(' ', $calls->sent), 'call try', 'calls: both have been sent');
	is($there->sql('SELECT requests_total, calls_total, counted_in FROM dt_status'), '2|2|all sessions', 'calls: dt_status of the standby counts them');
	is($calls->sql('SELECT requests_total FROM dt_status'), '0', 'calls: that of the primary does not');

	$sb->rule(Worker::phone(2), { status => 422 });
	my ($refused) = $there->session(call(2, 'refused'));
	is($refused->{sqlstate}, '22023', 'calls: a refusal is the error that it is on a primary');
	$sb->clear_rules;
	return;
}

# One request in 1,000 seconds: who needs a second turn of a pace waits too long.
sub own_pace
{
	my $in_time = "SET doubletick.server = 'slow'; SET statement_timeout =";

	$calls->server('slow', rate_limit => '0.001');
	caught_up('own pace');
	$sb->reset;
	is(ref(($calls->session("$in_time '1min'", call(3, 'primary')))[0]{value}), 'HASH', 'own pace: the primary calls at once');
	is(ref(($there->session("$in_time '1min'", call(3, 'standby')))[0]{value}), 'HASH', 'own pace: the standby calls at once, too');
	foreach my $on ($calls, $there)
	{
		my $stderr;

		$on->node->psql('postgres', "\\set VERBOSITY verbose\n$in_time '200ms'; " . call(3, 'again'), stderr => \$stderr);
		like($stderr, qr/ERROR:  57014: /, 'own pace: another session there waits for its turn, as all sessions of a cluster share a pace');
	}
	is(join(' ', $calls->sent), 'primary standby', 'own pace: it has sent nothing');
	return;
}

# A pause after a 429 is of one cluster alone.
sub own_pause
{
	$sb->reset;
	$sb->rule(Worker::phone(4), { status => 429, retry_after => '3000', times => 1 });
	is(($there->session(call(4, 'paused')))[0]{sqlstate}, '53400', 'own pause: a call on the standby is refused for the rate');
	my ($paused) = $there->session(call(5, 'other'));
	is($paused->{sqlstate}, '53400', 'own pause: and so is the next one there');
	like($paused->{message}, qr/^server "doubletick" is paused for another /, 'own pause: which is not sent');
	is(ref(($calls->session(call(5, 'primary')))[0]{value}), 'HASH', 'own pause: the primary knows of no pause');
	return;
}

# What writes the queue is refused; what waits at the primary is seen, and stays.
sub queue_is_read_only
{
	$sb->reset;
	$calls->sql("ALTER DATABASE postgres SET doubletick.enabled = off");
	eventually(sub { !$calls->workers }, 'queue: the worker of the primary has made way');
	my $id = $calls->sql(enqueue('waits', 6));
	caught_up('queue');
	is($there->sql('SELECT id, tags FROM dt_queue'), "$id|{waits}", 'queue: dt_queue shows what waits at the primary');
	is($there->sql('SELECT waiting FROM dt_status WHERE server = \'doubletick\''), '1', 'queue: so does dt_status');
	is($there->sql('SELECT count(*) FROM dt_history'), '0', 'queue: dt_history can be read');
	my $arguments = quote(Worker::phone(7)) . ", '{a}'";
	foreach my $call ("dt_enqueue_remove_tags_custom_fields($arguments)", "dt_try_enqueue_remove_tags_custom_fields($arguments)",
		"dt_keep($arguments)", "dt_cancel($id)", "dt_retry($id)", 'dt_send_replicated()')
	{
		my ($function) = $call =~ /^(\w+)/;
		my ($refused) = $there->session("SELECT $call");

		is($refused->{sqlstate}, '25006', "queue: $function is refused");
		is($refused->{message}, "cannot execute $function() during recovery", "queue: the message of $function");
	}
	my $stderr;
	$standby->psql('postgres', "\\set VERBOSITY verbose\nCALL dt_process_queue()", stderr => \$stderr);
	like($stderr, qr/ERROR:  25006: cannot execute dt_process_queue\(\) during recovery/, 'queue: CALL dt_process_queue() is refused');
	$calls->sql("ALTER DATABASE postgres RESET doubletick.enabled");
	$calls->sql(enqueue('wakes', 8));
	eventually(sub { $calls->waiting eq '0' }, 'queue: the primary sends it');
	is(join(' ', sort $calls->sent), 'waits wakes', 'queue: once');
	caught_up('queue');
	is($there->sql("SELECT state FROM dt_history WHERE id = $id"), 'done', 'queue: dt_history of the standby shows the answer');
	return;
}

# dt_check() has nothing to say of the worker, which a standby does not have.
sub nothing_to_check
{
	$calls->sql(enqueue('for_later', 9) =~ s/^SELECT/ALTER SERVER doubletick OPTIONS (ADD delay '1h'); SELECT/r
		  . '; ALTER SERVER doubletick OPTIONS (DROP delay)');
	caught_up('check');
	is($there->sql('SELECT object, problem FROM dt_check(true)'), '', 'check: all is well on a standby');
	is($there->sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'doubletick%'"), '0', 'check: no launcher and no worker runs there');
	is($calls->sql('SELECT object, problem FROM dt_check()'), '', 'check: and on the primary');
	my $query = CPAN::Meta::YAML->read(dirname(__FILE__) . '/../../monitoring/queries.yaml')->[0]{doubletick}{query};
	is($there->sql("SELECT sum(waiting), bool_and(worker_running IS NULL) FROM ($query) AS metrics"), '1|t', 'check: the alerts of monitoring/ miss no worker, either');
	$calls->sql("TRUNCATE dt_waiting");
	return;
}

# The primary dies while a request is out; the standby takes its place.
sub promotion
{
	my $flying = Worker::phone(10);

	$sb->reset;
	$sb->hold($flying, { times => 1 });
	$calls->sql(enqueue('flying', 10));
	$sb->await_held(1, $flying);
	# It waits, since one request for a customer is out at a time.
	my $last = $calls->sql(enqueue('waits', 10));
	caught_up('promotion');
	$primary->stop('immediate');
	$sb->release($flying);
	is($there->sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'doubletick%'"), '0', 'promotion: without the primary nobody sends');
	is($there->waiting, 2, 'promotion: and both wait');
	$standby->promote;
	eventually(sub { $there->waiting eq '0' }, 'promotion: the worker of the new primary sends what waits');
	is($calls->has_sent('flying'), 2, 'promotion: what was in flight is sent again');
	is($calls->has_sent('waits'), 1, 'promotion: the rest once');
	cmp_ok($there->sql(enqueue('new', 12)), '>', $last, 'promotion: new ids are larger');
	eventually(sub { $calls->has_sent('new') }, 'promotion: what is enqueued there is sent');
	is($there->sql('SELECT object, problem FROM dt_check()'), '', 'promotion: dt_check() finds the launcher');
	return;
}

calls_send();
own_pace();
own_pause();
queue_is_read_only();
nothing_to_check();
promotion();
done_testing;

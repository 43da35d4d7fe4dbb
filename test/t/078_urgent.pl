
# The transactions that have enqueued are served in turn: who enqueues one removal beside
# a bulk waits for about as many requests as there are transactions, and not for the bulk.

use strict;
use warnings;

use File::Basename qw(dirname);
use List::Util qw(max uniq);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

# One request at a time, so that the sandbox's journal shows in which order rows are
# served; each takes as long as the time between two searches for new rows.
open_queue(options => { rate_limit => '0', max_connections => '1' },
	conf => "synchronous_commit = off\nmax_connections = 20");
make_roles();

# Requests that leave before the urgent row is found.
my $slack = 6;

my $first_phone = 14150000000;

# Enqueues so many customers in one transaction; returns their first phone.
sub bulk
{
	my ($count, %with) = @_;
	my $first = $first_phone;

	$first_phone += $count;
	$calls->sql(($with{role} ? "SET ROLE $with{role};" : '')
		  . "SELECT count(dt_enqueue_remove_tags_custom_fields((n + $first)::text, '{bulk}')) FROM generate_series(0, $count - 1) AS n");
	return $first;
}

sub slow_answers { return $sb->rule('*', { delay_ms => 20 }); }

# The phones to which requests were sent, in order.
sub served { return map { $_->{body}{phone} } @{ $sb->journal }; }

sub place_of
{
	my ($phone) = @_;
	my @served = served();

	return (grep { $served[$_] eq $phone } 0 .. $#served)[0];
}

# The urgent row is served after at most one row of each transaction, when "before" requests
# have been sent as it comes.
sub is_soon
{
	my ($phone, $before, $ntransactions, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	eventually(sub { defined place_of($phone) }, "$name: the urgent row is sent");
	return cmp_ok(place_of($phone) - $before, '<=', $ntransactions + $slack, "$name: soon");
}

sub one_bulk
{
	fresh();
	slow_answers();
	my $first = bulk(600);
	my $drain = start_drain();
	eventually(sub { served() > 20 }, 'one bulk: it is being sent');
	my $urgent = new_phone();
	enqueue($urgent, ['lead']);
	my $before = served();
	is_soon($urgent, $before, 1, 'one bulk');
	$sb->clear_rules;
	await_drain($drain);
	my @bulk = grep { $_ ne $urgent } served();
	is("@bulk", join(' ', map { $first + $_ } 0 .. 599), 'one bulk: it is sent in its order, each row once');
	return;
}

# Transactions of many sizes, and of rows that came by turns.
sub many_transactions
{
	fresh();
	slow_answers();
	my @sessions = map { $node->background_psql('postgres') } 1 .. 2;
	my @open = map { $first_phone += 1000; $first_phone } @sessions;
	$_->query_safe('BEGIN') foreach @sessions;
	for my $n (0 .. 29)
	{
		$sessions[$_]->query_safe("SELECT dt_enqueue_remove_tags_custom_fields('" . ($open[$_] + $n) . "', '{bulk}')") foreach 0, 1;
	}
	$_->query_safe('COMMIT') foreach @sessions;
	$_->quit foreach @sessions;
	$first_phone += 1000;
	my %size = map { bulk($_) => $_ } 400, 9, 8, 3, 1;
	$size{$_} = 30 foreach @open;

	my $drain = start_drain();
	eventually(sub { served() > 20 }, 'many: they are being sent');
	my $urgent = new_phone();
	enqueue($urgent, ['lead']);
	my $before = served();
	is_soon($urgent, $before, 2 * keys(%size), 'many');
	$sb->clear_rules;
	await_drain($drain);
	my @served = grep { $_ ne $urgent } served();
	is(scalar(uniq(@served)), 481, 'many: all are sent') && is(scalar(@served), 481, 'many: once');
	foreach my $first (sort keys %size)
	{
		my @own = grep { $_ >= $first && $_ < $first + $size{$first} } @served;

		is("@own", join(' ', map { $first + $_ } 0 .. $size{$first} - 1), "many: a transaction of $size{$first} is served in its order");
	}
	my $last = max(map { place_of($_ + $size{$_} - 1) } grep { $size{$_} == 30 } keys %size);
	cmp_ok($last, '<', 300, 'many: those of 30 end long before that of 400');
	return;
}

# Each role has its lane; in each the transactions are served in turn.
sub two_roles
{
	fresh();
	slow_answers();
	bulk(300);
	bulk(300, role => 'app');
	my $drain = start_drain();
	eventually(sub { served() > 20 }, 'two roles: both are being sent');
	my $urgent = new_phone();
	enqueue($urgent, ['lead'], undef, role => 'app');
	my $before = served();
	is_soon($urgent, $before, 4, 'two roles');
	break_off($drain);
	return;
}

# Rows that waited when the drainer began: what one bulk, one urgent row and another bulk
# have left.
sub restart
{
	fresh();
	my $urgent = new_phone();
	my $first = bulk(300);
	slow_answers();
	my $drain = start_drain();
	eventually(sub { served() > 5 }, 'restart: the first bulk is being sent');
	break_off($drain);
	enqueue($urgent, ['lead']);
	bulk(300);
	my $before = served();
	$drain = start_drain();
	is_soon($urgent, $before, 2, 'restart');
	break_off($drain);
	return;
}

# A row of the bulk goes out with the urgent row of its customer, in the order of the ids,
# and not once more; one that a keep takes back is not sent.
sub keeps_and_coalescing
{
	fresh();
	slow_answers();
	my $first = bulk(400);
	my ($both, $kept) = ($first + 380, $first + 390);
	my $drain = start_drain();
	eventually(sub { served() > 5 }, 'customers: the bulk is being sent');
	$calls->sql(keep($kept, ['bulk']));
	enqueue($both, ['urgent']);
	my $before = served();
	is_soon($both, $before, 1, 'customers');
	$sb->clear_rules;
	await_drain($drain);
	is_received($both, 'bulk,urgent', 'customers: both names go out in one request, in their order');
	is_received($kept, '', 'customers: what a keep takes back is not sent');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'customers: nothing is left');
	return;
}

# One customer has far more than a request can carry: his rows come back into the lane each
# time that one is settled, and do not stop the others.
sub one_customer
{
	fresh();
	slow_answers();
	my ($phone, $urgent) = (new_phone(), new_phone());
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY(SELECT n || ' ' || i FROM generate_series(1, 600) AS i)))"
		  . ' FROM generate_series(1, 100) AS n');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET max_connections '2')");
	my $drain = start_drain();
	eventually(sub { served() > 5 }, 'one customer: his rows are being sent');
	enqueue($urgent, ['lead']);
	my $before = served();
	is_soon($urgent, $before, 1, 'one customer');
	$sb->clear_rules;
	await_drain($drain);
	is(join(' ', map { (split / /)[0] } received($phone)), join(' ', 1 .. 100), 'one customer: his rows are sent in their order');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET max_connections '1')");
	return;
}

# At a pace, rows are not taken before it is their turn.
sub at_a_pace
{
	fresh();
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '50')");
	bulk(400);
	my $drain = start_drain();
	eventually(sub { served() > 20 }, 'pace: the bulk is being sent');
	my $urgent = new_phone();
	enqueue($urgent, ['lead']);
	my $before = served();
	is_soon($urgent, $before, 1, 'pace');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '0')");
	await_drain($drain);
	is(scalar(uniq(served())), 401, 'pace: all are sent');
	return;
}

# Rows that are delayed join their transactions when they are due.
sub delayed
{
	fresh();
	my ($held, $urgent) = (new_phone(), new_phone());
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET max_connections '2')");
	slow_answers();
	$sb->hold($held);
	enqueue($held, ['lead']);
	my $drain = start_drain();		# which does not end as long as that is out
	$sb->await_held(1);
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD delay '2s')");
	bulk(400);
	my $id = enqueue($urgent, ['lead']);
	is($calls->sql("SELECT due_at - enqueued_at FROM dt_queue WHERE id = $id"), '00:00:02', 'delayed: it is not due yet');
	eventually(sub { defined place_of($urgent) }, 'delayed: the urgent row is sent');
	cmp_ok(place_of($urgent), '<', 200, 'delayed: before the bulk that was due before');
	cmp_ok(place_of($urgent), '>', 0, 'delayed: not before all of it');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP delay)');
	$sb->clear_rules;
	$sb->release($held);
	await_drain($drain);
	is(scalar(uniq(served())), 402, 'delayed: all are sent');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET max_connections '1')");
	return;
}

# More rows than a search reads are the backlog: what is committed late, below and above it,
# is found, and nothing is missed. 60 customers have 500 removals each, to save requests.
sub backlog
{
	fresh();
	my ($held, $below, $above) = map { new_phone() } 1 .. 3;
	my $late = $node->background_psql('postgres');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET max_connections '2')");
	$sb->hold($held);
	enqueue($held, ['lead']);
	$late->query_safe('BEGIN; ' . enqueueing($below, ['late']));
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields((14170000000 + n / 500)::text, ARRAY[n::text])) FROM generate_series(0, 29999) AS n");
	$late->query_safe(enqueueing($above, ['late']));
	my $drain = start_drain();
	eventually(sub { served() > 1 }, 'backlog: it is being sent');
	$late->query_safe('COMMIT');
	$late->quit;
	eventually(sub { defined place_of($_) }, 'backlog: what is committed late is sent') foreach $below, $above;
	$sb->release($held);
	await_drain($drain);
	is($calls->sql('SELECT count(*), count(DISTINCT id), (SELECT count(*) FROM dt_waiting) FROM dt_history'), '30003|30003|0', 'backlog: all are sent');
	is_received($_, 'late', 'backlog: what is committed late is sent once') foreach $below, $above;
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET max_connections '1')");
	return;
}

# Removals of a role that was dropped are settled, however many transactions they are of.
sub dropped_role
{
	fresh();
	$calls->sql('CREATE ROLE gone; GRANT USAGE ON FOREIGN SERVER doubletick TO gone; GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO gone');
	bulk($_, role => 'gone') foreach 30, 5, 1;
	$calls->sql('DROP OWNED BY gone; DROP ROLE gone');
	like(drain(), qr/failed 36 removals.*queue: 0 done, 36 failed, 0 left/s, 'dropped role: all fail');
	return;
}

# 50,000 rows are known to the drainer, of transactions of "size" rows: what they cost.
sub memory
{
	my ($size) = @_;
	my $count = 50_000;
	my $name = "memory, transactions of $size";
	my $held = new_phone();

	fresh();
	$sb->hold($held);
	enqueue($held, ['lead']);
	$calls->sql(<<"SQL");
DO \$\$ BEGIN
	FOR n IN 1 .. $count / $size LOOP
		PERFORM dt_enqueue_remove_tags_custom_fields((14160000000 + n::bigint * $size + i)::text, '{lead}') FROM generate_series(1, $size) AS i;
		COMMIT;
	END LOOP;
END \$\$
SQL
	my $offset = -s $node->logfile;
	my $drain = start_drain();
	$sb->await_held(1);
	my $urgent = new_phone();
	enqueue($urgent, ['lead']);

	# 16 bytes each, twice as many when the rings have just been doubled.
	my $bytes = 0;
	eventually(sub {
			$calls->sql("SELECT pg_log_backend_memory_contexts($drain->{pid})");
			my $said = slurp_file($node->logfile, $offset);
			my @lanes = $said =~ /doubletick schedule: (\d+) total/g;
			my @groups = $said =~ /doubletick groups: (\d+) total/g;
			return @groups && ($bytes = $lanes[-1] + $groups[-1]) > 16 * $count;
		}, "$name: the drainer knows the rows");
	cmp_ok($bytes, '<', 33 * $count + 200_000, "$name: they cost 16 to 32 bytes each");
	note("$name: " . $bytes / $count . ' bytes a row');
	break_off($drain);
	return;
}

one_bulk();
many_transactions();
two_roles();
restart();
keeps_and_coalescing();
one_customer();
at_a_pace();
delayed();
backlog();
dropped_role();
memory($_) foreach 1, 2, 50_000;
done_testing();

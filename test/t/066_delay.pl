
# The server option "delay": a removal is not due before that long after it was
# enqueued, so that there is time to take it back.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1, options => { delay => '10min' });

my $phone = new_phone();
my $other = new_phone();

# What is enqueued waits for ten minutes.
my $id = enqueue($phone, ['first']);
is($calls->sql("SELECT due_at - enqueued_at FROM dt_queue WHERE id = $id"), '00:10:00', 'dt_queue shows when the removal is due');
drain();
is(states($id), 'waiting', 'it is not sent before');
is(status('doubletick')->{due}, 0, 'dt_status does not count it as due');
time_passes('8 minutes');
my $next = enqueue($phone, ['second']);
drain();
is_received($phone, '', 'nor two minutes before its time');

# A later removal of the customer does not put the first one off.
time_passes('2 minutes');
drain();
is_received($phone, 'first', 'the first is sent when it is due');
is(states($next), 'waiting', 'the second waits for its own time');
time_passes('8 minutes');
drain();
is_received($phone, 'first second', 'and is sent then');

# What is late goes out together.
my @ids = map { enqueue($phone, [$_]) } qw(a b);
time_passes('601 seconds');
drain();
is_received($phone, 'first second a,b', 'two that are due go out together');

# A delay counts only when all options can be read: nothing is sent before that.
$calls->sql("ALTER FOREIGN DATA WRAPPER doubletick NO VALIDATOR; ALTER SERVER doubletick OPTIONS (ADD newer_option 'x')");
$id = enqueue($phone, ['c']);
is($calls->sql("SELECT due_at - enqueued_at FROM dt_waiting WHERE id = $id"), '00:00:00', 'options that cannot be read: there is no delay');
$calls->sql("ALTER SERVER doubletick OPTIONS (DROP newer_option); ALTER FOREIGN DATA WRAPPER doubletick VALIDATOR dt_fdw_validator; SELECT dt_cancel($id)");

# What can be taken back: by a cancel, by a keep, and by the trigger.
$calls->sql(q{
	CREATE TABLE customers (phone text PRIMARY KEY, tags text[]);
	CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON customers
		FOR EACH ROW EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags')});
$calls->sql("INSERT INTO customers VALUES ('$other', '{x,y,z}'); CREATE TABLE lost AS SELECT * FROM customers");
$calls->sql('DELETE FROM customers');
is($calls->sql("SELECT due_at - enqueued_at FROM dt_queue WHERE phone = '$other'"), '00:10:00', 'the trigger heeds the delay');
drain();
is_received($other, '', 'so that a mistaken DELETE sends nothing');
$calls->sql('INSERT INTO customers SELECT * FROM lost');
time_passes('601 seconds');
drain();
is_received($other, '', 'when the rows are back, nothing is sent at all');
is($calls->sql("SELECT state FROM dt_history WHERE phone = '$other'"), 'cancelled', 'the history says so');
$id = enqueue($other, ['c']);
is($calls->sql("SELECT dt_cancel($id)"), 't', 'a removal that is not due can be cancelled');

# A customer that the drainer looks at twice in one turn: what came back is settled once.
@ids = map { enqueue($_->[0], [$_->[1]]) } [ $phone, 'gone' ], [ $other, 'c' ], [ $phone, 'd' ], [ $other, 'e' ];
$calls->sql("SELECT dt_keep('$phone', '{gone}')");
like(drain(), qr/queue: 0 done, 0 failed/, 'looked at twice: nothing is due');
is($calls->sql("SELECT count(*) FROM dt_history WHERE id = $ids[0]"), '1', 'looked at twice: what came back is in the history once');
$calls->sql("SELECT dt_cancel(id) FROM dt_queue");

# A retry waits for its backoff, not for the delay.  A removal of the same customer
# that is due meanwhile waits, too.
$sb->rule($other, { status => 503, retry_after => '1200', times => 1 });
$id = enqueue($other, ['d']);
time_passes('5 minutes');
$next = enqueue($other, ['e']);
time_passes('301 seconds');
drain();
is($calls->sql("SELECT attempts FROM dt_queue WHERE id = $id"), '1', 'retry: it was tried');
time_passes('300 seconds');
drain();
is_received($other, 'd', 'retry: nothing goes out before the API wants it');
time_passes('1000 seconds');
drain();
is_received($other, 'd d,e', 'retry: then both go out');

# dt_retry sends at once.
$sb->rule($other, { status => 422, times => 1 });
$id = enqueue($other, ['f']);
time_passes('601 seconds');
drain();
is(states($id), 'failed', 'dt_retry: the removal was refused');
is($calls->sql("SELECT dt_retry($id)"), 't', 'dt_retry: it is put back');
drain();
is(states($id), 'done', 'dt_retry: it is sent at once');

# retry_for counts from when a removal is due.
$calls->server('short', delay => '1h', retry_for => '1min');
$id = $calls->sql("SET doubletick.server = short; SELECT dt_enqueue_remove_tags_custom_fields('$other', '{g}')");
time_passes('59 minutes');
drain();
is(states($id), 'waiting', 'retry_for: a removal is not given up before it is due');
time_passes('61 seconds');
drain();
is(states($id), 'done', 'retry_for: it is sent when it is due');
$sb->rule($other, { status => 503 });
$id = $calls->sql("SET doubletick.server = short; SELECT dt_enqueue_remove_tags_custom_fields('$other', '{h}')");
time_passes('3605 seconds');
drain();
is($calls->sql("SELECT attempts FROM dt_queue WHERE id = $id"), '1', 'retry_for: it is tried although it is older');
time_passes('61 seconds');
drain();
is(states($id), 'failed', 'retry_for: it is given up a minute after it was due');
$sb->clear_rules;

# The same if it was never tried, since nobody drained the queue.
$id = $calls->sql("SET doubletick.server = short; SELECT dt_enqueue_remove_tags_custom_fields('$other', '{i}')");
time_passes('3665 seconds');
drain();
is($calls->sql("SELECT state, attempts FROM dt_history WHERE id = $id"), 'failed|0', 'retry_for: what was not tried is given up at the same time');

# A removal that was put off for longer than the server says now is given up no sooner.
my @put_off = map { $calls->sql("SET doubletick.server = short; SELECT dt_enqueue_remove_tags_custom_fields('$_', '{j}')") } $other, $phone;
$calls->sql('ALTER SERVER short OPTIONS (SET delay $$0$$)');
time_passes('3605 seconds');
time_passes('60 seconds', $put_off[1]);
drain();
is(states(@put_off), 'done failed', 'retry_for: counts from when it was due, although the delay is shorter now');

# A changed delay holds for what is enqueued later.
$id = enqueue($phone, ['old']);
$calls->sql('ALTER SERVER doubletick OPTIONS (SET delay $$0$$)');
$next = enqueue($phone, ['new']);
drain();
is(states($id, $next), 'waiting done', 'ALTER SERVER changes the delay of later removals');

# A clock that was ahead does not add to the delay.
$calls->sql('ALTER SERVER doubletick OPTIONS (SET delay $$1d$$)');
$id = enqueue($phone, ['ahead']);
$calls->sql("UPDATE dt_waiting SET enqueued_at = enqueued_at + '30 days', due_at = due_at + '30 days' WHERE id = $id");
drain();
is(states($id), 'done', 'a removal that a clock far ahead has enqueued is due');

foreach my $case ([ '7d', undef ], [ '0', undef ], [ '8d', 1 ], [ '-1s', 1 ], [ 'soon', 1 ])
{
	my $state = sqlstate_of("ALTER SERVER doubletick OPTIONS (SET delay '$case->[0]')");

	is($state =~ /^none/ ? 'taken' : $state, $case->[1] ? '22023' : 'taken', "delay '$case->[0]'");
}
done_testing();


# Many rows of one customer: they go in few requests, each row gets its own part of
# the answer, and memory and time do not grow with the square of their number.  And many
# long answers at once.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1);

# The most memory that the process has ever had, in MB; 0 where /proc does not say it.
sub peak
{
	my ($pid) = @_;

	return memory_kb($pid, 'VmHWM') / 1024;
}

# Drains in a session of its own, and tests the result, the time and the memory.
sub drained
{
	my ($name, $expected, $most_seconds) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');

	$sb->clear_journal;
	my $begin = time;
	$session->query('CALL dt_process_queue()');
	my $seconds = time - $begin;
	like($session->{stderr}, $expected, "$name: all is settled");
	cmp_ok($seconds, '<', $most_seconds, "$name: in time");
	cmp_ok(peak($pid), '<', 200, "$name: with little memory");
	$session->{stderr} = '';
	cmp_ok($session->query("SELECT coalesce(sum(total_bytes), 0) FROM pg_backend_memory_contexts WHERE name LIKE 'doubletick%'"),
		'<', 1024 * 1024, "$name: which it gives back");
	note(sprintf '%s: %.1f s, %.0f MB', $name, $seconds, peak($pid));
	$session->quit;
	return;
}

sub nrequests
{
	my ($phone) = @_;

	return scalar grep { $_->{body}{phone} eq $phone } @{ $sb->journal };
}

# More rows than one request can carry.
sub many_rows
{
	my $phone = new_phone();

	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['t' || n])) FROM generate_series(1, 4000) AS n");
	drained('4,000 rows', qr/queue: 4000 done, 0 failed, 0 left/, 60);
	cmp_ok(nrequests($phone), '>=', 4, '4,000 rows: as many requests as are needed');
	cmp_ok(nrequests($phone), '<=', 5, '4,000 rows: and no more');
	my %names = map { $_ => 1 } map { split /,/ } received($phone);
	is(scalar keys %names, 4000, '4,000 rows: every name is sent');

	# Many have failed, by their age, and are retried, while a row with a lower id waits for its own retry.
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; ' . enqueueing($phone, ['first']));
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['t' || n])) FROM generate_series(1, 4000) AS n");
	time_passes('73 hours');
	drain();
	$session->query_safe('COMMIT');
	$session->quit;
	$sb->rule($phone, { status => 503, retry_after => '3000', times => 1 });
	drain();
	is($calls->sql("SELECT count(dt_retry(id)) FROM dt_history WHERE phone = '$phone' AND state = 'failed'"), '4000', '4,000 retried: they have failed');
	drained('4,000 retried', qr/queue: 0 done, 0 failed, 4001 left/, 60);
	is(nrequests($phone), 0, '4,000 retried: they wait with the first one');
	time_passes('1 hour');
	drained('4,000 retried', qr/queue: 4001 done, 0 failed, 0 left/, 60);
	cmp_ok(nrequests($phone), '<=', 6, '4,000 retried: they go together');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', '4,000 retried: no keep is left');
	return;
}

# The rows are retried while a drain is under way in which their customer backs off.
sub retried_meanwhile
{
	my ($phone, $held) = (new_phone(), new_phone());

	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['t' || n])) FROM generate_series(1, 3000) AS n");
	time_passes('73 hours');
	drain();
	$sb->rule($phone, { status => 503, retry_after => '3000', times => 1 });
	enqueue($phone, ['first']);
	$sb->hold($held);
	enqueue($held, ['lead']);
	my $drain = start_drain();
	eventually(sub { $calls->sql("SELECT attempts FROM dt_queue WHERE phone = '$phone'") eq '1' }, 'retried meanwhile: the customer backs off');
	is($calls->sql("SELECT count(dt_retry(id)) FROM dt_history WHERE phone = '$phone' AND state = 'failed'"), '3000',
		'retried meanwhile: they have failed');
	my $later = new_phone();
	enqueue($later, ['now']);
	eventually(sub { received($later) }, 'retried meanwhile: another customer is sent to');
	cmp_ok(peak($drain->{pid}), '<', 200, 'retried meanwhile: with little memory');
	note(sprintf 'retried meanwhile: %.0f MB', peak($drain->{pid}));
	break_off($drain);
	$sb->clear_rules;
	time_passes('1 hour');
	drain();
	return;
}

# Many rows that need no request.
sub many_expire
{
	my $phone = new_phone();

	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['t' || n])) FROM generate_series(1, 8000) AS n");
	time_passes('73 hours');
	drained('8,000 too old', qr/gave up 8000 removals.*queue: 0 done, 8000 failed, 0 left/s, 20);
	is(nrequests($phone), 0, '8,000 too old: none is sent');
	return;
}

sub many_are_taken_back
{
	my $phone = new_phone();

	$calls->sql("CREATE TABLE customers (phone text, tags text[], fields text[], waba text);
		INSERT INTO customers VALUES ('$phone', (SELECT array_agg('t' || n) FROM generate_series(1, 900) AS n));
		CREATE TRIGGER removals AFTER UPDATE ON customers FOR EACH ROW
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields', 'waba', 'doubletick')");
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY['t' || n % 900 + 1])) FROM generate_series(1, 5000) AS n;
		UPDATE customers SET tags = '{}';
		UPDATE customers SET tags = (SELECT array_agg('t' || n) FROM generate_series(1, 900) AS n)");
	is($calls->sql('SELECT count(*) FROM dt_queue'), '0', 'taken back: dt_queue shows nothing');
	drained('5,001 taken back', qr/queue: 0 done, 0 failed, 0 left/, 20);
	is($calls->sql("SELECT count(*) FROM dt_history WHERE phone = '$phone' AND state = 'cancelled'"), '5001', 'taken back: all are cancelled');
	is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'taken back: no keep is left');
	return;
}

# As much as one request can carry, with a name of the answer for each row.
sub long_names
{
	my $phone = new_phone();
	my $name = "lpad(n::text, 500, 'x')";

	$sb->customer($phone, [ map { ('x' x (500 - length)) . $_ } grep { $_ % 10 } 1 .. 1000 ], []);
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('$phone', ARRAY[$name])) FROM generate_series(1, 1000) AS n");
	drained('long names', qr/queue: 1000 done, 0 failed, 0 left/, 60);
	is(nrequests($phone), 1, 'long names: one request');
	my $shape = "jsonb_build_object('tags', jsonb_build_object('removed', %s, 'errored', %s), 'customFields', '{\"removed\": [], \"errored\": []}'::jsonb)";
	my $removed = sprintf $shape, 'to_jsonb(tags)', "'[]'::jsonb";
	my $errored = sprintf $shape, "'[]'::jsonb", "jsonb_build_array(jsonb_build_object('tag', tags[1], 'error', answer #> '{tags,errored,0,error}'))";
	is($calls->sql("SELECT count(*) FILTER (WHERE answer = $removed AND right(tags[1], 1) <> '0'), count(*) FILTER (WHERE answer = $errored AND right(tags[1], 1) = '0')
		FROM dt_history WHERE phone = '$phone'"), '900|100', 'long names: each row has its own name');
	return;
}

# Of different customers.  What they take is given back to the system.
sub long_answers
{
	my $shape = join ', ', map { qq("$_": {"removed": [], "errored": []}) } qw(tags customFields);
	my $rule = { status => 201, body => qq({$shape, "long": ") . 'x' x (1024 * 1024 - 200) . '"}' };

	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD max_connections '128')");
	$sb->rule('*', $rule);
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');
	enqueue_many('14155590000', 2);
	$session->query('CALL dt_process_queue()');
	my $before = memory_kb($pid, 'VmRSS');

	$sb->hold('*', $rule);
	enqueue_many('14155591000', 100);
	$session->query_until(qr/begins/, "\\echo begins\nCALL dt_process_queue();\n");
	eventually(sub { $sb->held == 100 }, 'long answers: 100 are in flight');
	$sb->release;
	$session->query('SELECT 1');
	like($session->{stderr}, qr/queue: 100 done, 0 failed, 0 left/, 'long answers: all is settled');
	my ($after, $most) = map { memory_kb($pid, $_) } qw(VmRSS VmHWM);
	# All but that of the connections, which are kept.
	cmp_ok($after - $before, '<', 32 * 1024, 'long answers: the system gets their memory back');
	note("$before kB before, $most at most, $after after");
	$session->quit;
	return;
}

many_rows();
retried_meanwhile();
many_expire();
many_are_taken_back();
long_names();
long_answers();
done_testing;

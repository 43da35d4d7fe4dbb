
# What SQL adds to the queue beside plain removals: removals of which one may be bad,
# and keeps.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue();

# One bad row does not undo a bulk statement: it is found in the history.
sub bad_rows
{
	my @phones = map { new_phone() } 1 .. 2;
	my %bad = (
		'a phone that is none' => ["'98765 43210'", 'ARRAY[$$lead$$]', 'NULL', 'NULL'],
		'a null phone' => ['NULL', 'ARRAY[$$lead$$]', 'NULL', 'NULL'],
		'a bad WABA number' => ["'$phones[0]'", 'ARRAY[$$lead$$]', 'NULL', "'0123'"],
		'a null name' => ["'$phones[0]'", 'ARRAY[$$lead$$, NULL]', 'NULL', 'NULL'],
		'an empty name' => ["'$phones[0]'", 'NULL', 'ARRAY[$$$$]', 'NULL'],
		'an array of two dimensions' => ["'$phones[0]'", 'ARRAY[ARRAY[$$lead$$]]', 'NULL', 'NULL'],
		'nothing to remove' => ["'$phones[0]'", 'NULL', '$${}$$', 'NULL'],
		'too many names' => ["'$phones[0]'", 'array_fill($$lead$$::text, $${1001}$$)', 'NULL', 'NULL'],
	);

	foreach my $case (sort keys %bad)
	{
		my $arguments = join ', ', @{ $bad{$case} };
		my ($error) = $calls->session("SELECT dt_enqueue_remove_tags_custom_fields($arguments)");
		my $id = $calls->sql("SELECT dt_try_enqueue_remove_tags_custom_fields($arguments)");

		is(states($id), 'failed', "$case: in the history as failed");
		is(settled($id, 'error')->{error}, $error->{message}, "$case: with the error of the sibling");
	}
	is($calls->sql('SELECT count(*) FROM dt_queue'), '0', 'none of them waits');

	is($calls->sql("SELECT count(dt_try_enqueue_remove_tags_custom_fields(phone, '{lead}'))
			FROM unnest(ARRAY['$phones[0]', 'no phone', '$phones[1]']) AS phone"),
		'3', 'a bulk statement with a bad row in it');
	drain();
	is_received($_, 'lead', 'the good rows are sent') foreach @phones;
	is($calls->sql("SELECT phone, tags, fields, waba IS NULL, attempts, role = current_user FROM dt_history
			WHERE error LIKE '%no phone%'"),
		'no phone|{lead}|{}|t|0|t', 'the bad row is recorded as it was given');

	# What would hit every row raises an error.
	is(sqlstate_of("SET doubletick.server = nowhere; SELECT dt_try_enqueue_remove_tags_custom_fields('x')"),
		'42704', 'a server that does not exist');
	is(sqlstate_of("SET default_transaction_read_only = on; SELECT dt_try_enqueue_remove_tags_custom_fields('x')"),
		'25006', 'a read-only session');
	make_roles();
	is(sqlstate_of("SET SESSION AUTHORIZATION nobody; SELECT dt_try_enqueue_remove_tags_custom_fields('x')"), '42501', 'no EXECUTE for PUBLIC');
	is(sqlstate_of("SET SESSION AUTHORIZATION nobody; SELECT dt_keep('919876543210', '{lead}')"), '42501', 'nor for keeps');
	return;
}

sub keeps
{
	my ($phone, $other) = (new_phone(), new_phone());
	my $id;

	# A name comes back before the request leaves.
	enqueue($phone, [ 'lead', 'vip' ], ['plan']);
	is($calls->sql("SELECT dt_keep('+$phone', '{lead, new}')"), 't', 'one of the names waits');
	is($calls->sql("SELECT dt_keep('$phone', '{lead}')"), 'f', 'it is taken out once');
	is($calls->sql("SELECT dt_keep('$phone', fields => '{plan}')"), 't', 'a custom field');
	is($calls->sql("SELECT dt_keep('$other', '{vip}')"), 'f', 'another customer');
	is($calls->sql("SELECT dt_keep('$phone', '{vip}', waba => '919812345678')"), 'f', 'another WABA number');
	is($calls->sql("SELECT dt_keep('$phone', '{Vip}')"), 'f', 'another name');
	is($calls->sql("SELECT dt_keep('$phone'), dt_keep('$phone', '{}', '{}')"), 'f|f', 'no name is no fault');
	drain();
	is_received($phone, 'vip', 'only the other name is removed');

	# All names come back; then one is lost again.
	$id = enqueue($phone, ['lead']);
	is($calls->sql("SELECT dt_keep('$phone', '{lead}')"), 't', 'the only name');
	drain();
	is(states($id), 'cancelled', 'the removal is not sent');
	enqueue($phone, ['lead']);
	drain();
	is_received($phone, 'vip lead', 'a later removal is');

	# A transaction that rolls back takes its keep with it.
	enqueue($phone, ['again']);
	$calls->sql("BEGIN; SELECT dt_keep('$phone', '{again}'); ROLLBACK");
	drain();
	is_received($phone, 'vip lead again', 'rolled back');

	# The sequence is set back, as PostgreSQL 19 does it when it replicates sequences.
	$id = enqueue($phone, ['back']);
	$calls->sql("SELECT setval('dt_waiting_id_seq', $id - 3)");
	is($calls->sql("SELECT dt_keep('$phone', '{back}')"), 't', 'set back: a keep');
	is($calls->sql('SELECT count(*) FROM dt_queue'), '0', 'set back: it takes the removal back');
	drain();
	is(states($id), 'cancelled', 'set back: the removal is not sent');
	is_received($phone, 'vip lead again', 'set back: nothing is removed');

	# Removals of others are not touched.
	as('app', enqueueing($phone, ['own']));
	is($calls->sql("SELECT dt_keep('$phone', '{own}')"), 'f', 'a removal of another role');

	# A trigger that somebody wrote for a join table.
	$calls->sql(q{
		CREATE TABLE labels (phone text, label text);
		CREATE FUNCTION label_changed() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF TG_OP = 'INSERT' THEN
				PERFORM dt_keep(NEW.phone, ARRAY[NEW.label]);
			ELSE
				PERFORM dt_try_enqueue_remove_tags_custom_fields(OLD.phone, ARRAY[OLD.label]);
			END IF;
			RETURN NULL;
		END $$;
		CREATE TRIGGER t AFTER INSERT OR DELETE ON labels FOR EACH ROW EXECUTE FUNCTION label_changed()});
	$calls->sql("INSERT INTO labels VALUES ('$other', 'a'), ('$other', 'b'); DELETE FROM labels; INSERT INTO labels VALUES ('$other', 'a')");
	drain();
	is_received($other, 'b', 'a label that is put back is not removed');

	foreach my $case (
		[ "NULL, '{lead}'", '22004' ],
		[ "'98765 43210', '{lead}'", '22023' ],
		[ "'$phone', '{lead, NULL}'", '22004' ],
		[ "'$phone', '{{lead}}'", '22023' ])
	{
		is(sqlstate_of("SELECT dt_keep($case->[0])"), $case->[1], "arguments: $case->[0]");
	}
	is(sqlstate_of("SET doubletick.server = nowhere; SELECT dt_keep('$phone', '{lead}')"), '42704', 'keep: a server that does not exist');
	is(sqlstate_of("SET default_transaction_read_only = on; SELECT dt_keep('$phone', '{lead}')"), '25006', 'keep: a read-only session');
	return;
}

bad_rows();
keeps();
done_testing();


# Many statements of one transaction that each take another name from one phone: what one
# of them has read of the queue serves the next, unless something may have been added.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue();

my $phone = new_phone();
$calls->sql(<<'SQL');
CREATE TABLE customers (id int PRIMARY KEY, phone text, tags text[]);
CREATE TRIGGER t AFTER UPDATE ON customers FOR EACH ROW
	EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
CREATE PROCEDURE lose(first int, last int) LANGUAGE plpgsql AS $$
BEGIN
	FOR n IN first .. last LOOP
		UPDATE customers SET tags = '{keep}' WHERE id = n;
	END LOOP;
END $$;
SQL

sub fill
{
	my ($nrows) = @_;

	return $calls->sql("TRUNCATE customers, dt_waiting, dt_settled;
		INSERT INTO customers SELECT n, '$phone', ARRAY['keep', 't' || n] FROM generate_series(1, $nrows) AS n");
}

# What the statements of one transaction read of the queue, in blocks.
sub blocks_read
{
	my ($nrows) = @_;

	fill($nrows);
	return $calls->sql("BEGIN; CALL lose(1, $nrows);
		SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class WHERE relname IN ('dt_waiting', 'dt_waiting_customer'); COMMIT");
}

# What waits, in the order of the names.
sub names_waiting
{
	return $calls->sql('SELECT array_agg(tag ORDER BY length(tag), tag) FROM dt_queue, unnest(tags) AS tag');
}

sub linear
{
	my ($few, $many) = map { blocks_read($_) } 200, 800;

	note("$few blocks for 200 statements, $many for 800");
	cmp_ok($many, '<', 6 * $few, 'four times as many statements read about four times as much');
	is($calls->sql('SELECT count(DISTINCT tag) FROM dt_queue, unnest(tags) AS tag'), '800', 'each name waits to be removed');
	return;
}

# The name "keep" is enqueued while the transaction is under way, in "session" or beside it.
# Then a statement changes a row that has the name, so it must not be removed.
sub name_is_kept
{
	my ($case, $before, $between, $after) = @_;

	fill(50);
	$before->() if $before;
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; CALL lose(1, 40)');
	$between->($session);
	$session->query_safe('CALL lose(41, 41)');
	$after->() if $after;
	$session->query_safe('COMMIT');
	$session->quit;
	is(names_waiting(), '{' . join(',', map { "t$_" } 1 .. 41) . '}', "$case: the name is kept");
	return;
}

sub names_are_kept
{
	my $enqueue = enqueueing($phone, ['keep']);
	my $other = $node->background_psql('postgres');
	my $insert = 'SET session_replication_role = replica; INSERT INTO dt_waiting OVERRIDING SYSTEM VALUE TABLE arrived; RESET session_replication_role';
	my $failed;

	name_is_kept('nothing in between', undef, sub { return; });
	name_is_kept('another session', undef, sub { $calls->sql($enqueue) });
	name_is_kept('another session has not committed', undef,
		sub { $other->query_safe("BEGIN; $enqueue") }, sub { $other->query_safe('COMMIT') });
	name_is_kept('another session had not committed', sub { $other->query_safe("BEGIN; $enqueue") },
		sub { $other->query_safe('COMMIT') });
	name_is_kept('the same session', undef, sub { $_[0]->query_safe($enqueue) });
	name_is_kept('a retry', sub {
			$failed = enqueue($phone, ['keep']);
			$sb->rule($phone, { status => 422 });
			drain();
			$sb->clear_rules;
			is(states($failed), 'failed', 'a removal has failed');
		},
		sub { is($_[0]->query_safe("SELECT dt_retry($failed)"), 't', 'it is put back') });
	name_is_kept('after a savepoint', undef,
		sub { $_[0]->query_safe('SAVEPOINT s; CALL lose(42, 45); ROLLBACK TO s'); $calls->sql($enqueue) });

	# By logical replication, with an id that was taken before.
	fill(1);
	enqueue($phone, ['keep']);
	$calls->sql('CREATE TABLE arrived AS TABLE dt_waiting');
	name_is_kept('a row that arrives', undef, sub { $calls->sql($insert) });
	name_is_kept('a row that arrives in the same session', undef, sub { $_[0]->query_safe($insert) });
	$other->quit;
	return;
}

# A bulk statement finds that nothing waits.  Then another transaction enqueues the first
# removal of all.
sub first_id_is_noticed
{
	my $session = $node->background_psql('postgres');
	my $other = $node->background_psql('postgres');

	fill(50);
	$calls->sql('TRUNCATE dt_waiting RESTART IDENTITY');
	$session->query_safe("BEGIN; UPDATE customers SET tags = tags || '{x}' WHERE id <= 40");
	$other->query_safe('BEGIN; ' . enqueueing($phone, ['keep']));
	$session->query_safe("UPDATE customers SET tags = tags || '{x}' WHERE id = 41");
	$other->query_safe('COMMIT');
	$session->query_safe('COMMIT');
	is(names_waiting(), '', 'the first id of the sequence: the name is kept');
	$_->quit foreach $session, $other;
	return;
}

# A transaction has taken the id of a removal when the queue is read, and inserts the row
# later: its statement inserts rows together, and waits for the history.
sub removal_with_older_id
{
	my ($session, $other, $locker) = map { $node->background_psql('postgres') } 1 .. 3;

	fill(50);
	$calls->sql("CREATE TABLE deleted (phone text, tags text[]);
		CREATE TRIGGER t AFTER DELETE ON deleted REFERENCING OLD TABLE AS old FOR EACH STATEMENT
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
		INSERT INTO deleted VALUES ('$phone', '{keep}'), ('no phone', '{keep}')");
	$locker->query_safe('BEGIN; LOCK TABLE dt_settled IN SHARE MODE');
	$other->query_until(qr/the statement begins/, "BEGIN;\n\\echo the statement begins\nDELETE FROM deleted;\n");
	ok($node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'dt_settled'::regclass AND NOT granted)"),
		'an older id: the statement waits for the history');
	$session->query_safe("BEGIN; UPDATE customers SET tags = tags || '{x}' WHERE id <= 40");
	$locker->query_safe('COMMIT');
	$other->query_safe('SELECT');
	$session->query_safe("UPDATE customers SET tags = tags || '{x}' WHERE id = 41");
	$other->query_safe('COMMIT');
	$session->query_safe('COMMIT');
	is(names_waiting(), '', 'an older id: the name is kept');
	$_->quit foreach $session, $other, $locker;
	return;
}

linear();
names_are_kept();
first_id_is_noticed();
removal_with_older_id();
done_testing();

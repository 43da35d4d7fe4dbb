
# PostgreSQL's allocations fail, one after the other, and libcurl's: in a call, a drained
# row, an enqueue, and a trigger of each level. The operation succeeds or says "out of
# memory"; then the session works, nothing is lost, and what was sent is not sent again.
#
# ALLOCATION_STEP is the distance between two allocations that are tried (test/torture/allocations
# tries each).

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Calls;
use Queue;
use Test::More;

my $step = $ENV{ALLOCATION_STEP} || 13;
my %settings = (PostgreSQL => 'doubletick.fault_palloc', libcurl => 'doubletick.fault_allocation');

open_queue(testing => 1, options => { timeout => '5s' });

# Statements in a session, each with one allocation failing: what has become of it.
$calls->sql(<<'SQL');
CREATE TABLE customers (phone text PRIMARY KEY, tags text[], fields jsonb);
CREATE TABLE bulk (LIKE customers INCLUDING ALL);
CREATE TRIGGER row_level AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW
	EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields');
CREATE TRIGGER statement_level AFTER UPDATE ON bulk REFERENCING OLD TABLE AS old NEW TABLE AS new
	FOR EACH STATEMENT EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields');

-- "good", or the SQLSTATE; "over" when fewer allocations were made.
CREATE FUNCTION without_memory(setting text, number int, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	outcome text;
BEGIN
	BEGIN
		PERFORM set_config(setting, number::text, false);
		EXECUTE statement;
		outcome := CASE WHEN current_setting(setting)::int > 0 THEN 'over' ELSE 'good' END;
		PERFORM set_config(setting, '0', false);
	EXCEPTION WHEN OTHERS THEN
		outcome := SQLSTATE;
	END;
	RETURN outcome;
END $$;

CREATE FUNCTION phone_of(number int) RETURNS text LANGUAGE sql RETURN (919000000000 + number)::text;
SQL

# Each of the allocations, one try after the other, in one session. "statement" has $1 for
# the number of the try; "check" is a query for its number that is empty when all is well,
# after it was good (true) or has failed (false).
sub try_each
{
	my ($name, $whose, %with) = @_;
	my $number = 0;
	my (%outcomes, @wrong, $over);

	until ($over)
	{
		my @numbers = map { $_ * $step } $number + 1 .. $number + 100;
		my $script = "LOAD 'doubletick';\n" . ($with{before} // '');

		foreach my $n (@numbers)
		{
			my ($statement, $check) = map { s/\$1/$n/gr } @with{qw(statement check)};

			$script .= "SELECT without_memory('$settings{$whose}', $n, " . quote($statement) . ") AS outcome \\gset\n"
			  . "SELECT '$n', :'outcome';\n"
			  . "SELECT 'wrong', $n, :'outcome', w FROM (" . ($check =~ s/GOOD/:'outcome' IN ('good', 'over')/gr) . ") AS w;\n";
		}
		foreach (split /\n/, $calls->sql($script))
		{
			if (/^wrong/) { push @wrong, $_; }
			elsif (!$over && /^\d+\|(.*)/) { $outcomes{$1}++; $over = 1 if $1 eq 'over'; }
		}
		$number += 100;
	}
	report($name, $whose, \%outcomes, @wrong);
	return;
}

sub report
{
	my ($name, $whose, $outcomes, @wrong) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $failed = $outcomes->{53200} // 0;

	is(join("\n", @wrong), '', "$name, $whose: nothing is lost or done twice");
	is(join(' ', grep { !/^(?:53200|good|over)$/ } sort keys %$outcomes), '', "$name, $whose: good, or out of memory");
	cmp_ok($failed, '>', 0, "$name, $whose: out of memory was met with");
	note("allocations: $name, $whose: $failed failed" . ($outcomes->{good} ? ", $outcomes->{good} more did no harm" : ''));
	return;
}

# A call: what follows it in the session is well. The fault may be told by the call's own
# retry, which succeeds.
my $call = "SELECT dt_remove_tags_custom_fields(phone_of(\$1), '{lead}', '{plan}')";
try_each('call', $_,
	statement => $call,
	check => "SELECT 1 WHERE NOT dt_try_remove_tags_custom_fields(phone_of(\$1), '{lead}') ? 'tags'")
  foreach sort keys %settings;

try_each('enqueue', 'PostgreSQL',
	statement => "SELECT dt_enqueue_remove_tags_custom_fields(phone_of(\$1), '{lead}', '{plan}')",
	check => "SELECT count(*) FROM dt_queue WHERE phone = phone_of(\$1) HAVING (count(*) = 1) <> GOOD");

# What a trigger enters is in the queue just when the statement was good.
fresh();
$calls->sql("INSERT INTO customers SELECT phone_of(n), '{lead}', '{\"plan\": 1}' FROM generate_series(1, 100000) AS n");
try_each('row trigger', 'PostgreSQL',
	statement => "UPDATE customers SET tags = '{}', fields = NULL WHERE phone = phone_of(\$1)",
	check => "SELECT count(*) FROM dt_queue WHERE phone = phone_of(\$1) AND tags = '{lead}' AND fields = '{plan}' HAVING (count(*) = 1) <> GOOD");

fresh();
$calls->sql("INSERT INTO bulk SELECT phone_of(n), '{lead}', '{\"plan\": 1}' FROM generate_series(1, 100000) AS n");
try_each('statement trigger', 'PostgreSQL',
	statement => "UPDATE bulk SET tags = '{}', fields = NULL WHERE phone IN (phone_of(\$1), phone_of(\$1 - 1 + 50000))",
	check => "SELECT count(*) FROM dt_queue WHERE phone IN (phone_of(\$1), phone_of(\$1 - 1 + 50000)) AND tags = '{lead}' AND fields = '{plan}'"
	  . ' HAVING (count(*) = 2) <> GOOD');

# A row that is drained: a CALL fails, and the next one goes on. When libcurl cannot read
# an answer, the row is sent again, as after any lost answer; this counts as an attempt.
foreach my $whose (sort keys %settings)
{
	my $number = 0;
	my ($over, %outcomes, %attempts, @wrong);

	fresh();
	$sb->rule('*', { status => 201, body => { tags => { removed => ['lead'], errored => [] }, customFields => { removed => [], errored => [] } } });
	until ($over)
	{
		my @numbers = map { $_ * $step } $number + 1 .. $number + 50;
		my $script = "LOAD 'doubletick';\nSET client_min_messages = error;\n";

		foreach my $n (@numbers)
		{
			$script .= "SELECT id FROM dt_enqueue_remove_tags_custom_fields(phone_of($n), '{lead}') AS id \\gset\n"
			  . "SET $settings{$whose} = $n;\nCALL dt_process_queue();\n\\echo outcome $n :SQLSTATE\n"
			  . "SELECT 'left', current_setting('$settings{$whose}');\n\\echo after $n :SQLSTATE\n"
			  . "SET $settings{$whose} = 0;\nSELECT dt_test_time_passes('1 hour', ARRAY[:id]) \\g /dev/null\n"
			  . "CALL dt_process_queue();\n\\echo next $n :SQLSTATE\n"
			  . "SELECT 'state', phone_of($n), state, attempts FROM (SELECT) AS s LEFT JOIN dt_history ON id = :id;\n";
		}
		my ($out, $stderr);
		$node->psql('postgres', $script, stdout => \$out, stderr => \$stderr, on_error_stop => 0);
		push @wrong, $1 if $stderr =~ /^(.*connection to server was lost.*)/m;
		foreach (split /\n/, $out)
		{
			$outcomes{ $1 eq '00000' ? 'good' : $1 }++ if !$over && /^outcome \d+ (.*)/;
			push @wrong, $_ if /^next \d+ (.*)/ && $1 ne '00000';
			push @wrong, $_ if /^state/ && !/^state\|\d+\|done\|/;
			$attempts{$1} = $2 if /^state\|(\d+)\|\w+\|(\d+)/;
			$over = 1 if /^left\|[1-9]/ || (/^after \d+ (.*)/ && $1 ne '00000');
		}
		$number += 50;
	}
	my %times;
	$times{ $_->{body}{phone} }++ foreach requests();
	push @wrong, map { "$_ was sent $times{$_} times in $attempts{$_} attempts" }
	  grep { $times{$_} > ($whose eq 'libcurl' ? $attempts{$_} : 1) } sort keys %times;
	report('drained row', $whose, \%outcomes, @wrong);
	$sb->clear_rules;
}

# CALLs with each of PostgreSQL's allocations failing, not one in so many: few of them
# matter here. "prepare" is SQL for the number of the try, "check" a query that is empty
# when all is well.
sub drain_without_memory
{
	my ($name, $ok, %with) = @_;
	my ($number, $failed, $over, @wrong) = (0, 0);

	until ($over)
	{
		my $script = "LOAD 'doubletick';\nSET client_min_messages = error;\n";
		my ($out, $stderr);

		foreach my $n ($number + 1 .. $number + 100)
		{
			$script .= "DELETE FROM dt_hold;\nDELETE FROM dt_waiting;\n" . $with{prepare}->($n)
			  . "SET $settings{PostgreSQL} = $n;\nCALL dt_process_queue();\n\\echo outcome :SQLSTATE\n"
			  . "SELECT 'over' WHERE current_setting('$settings{PostgreSQL}') <> '0';\nSET $settings{PostgreSQL} = 0;\n"
			  . "SELECT 'wrong', $n FROM ($with{check}) AS wrong;\nSELECT pg_advisory_unlock_all() \\g /dev/null\n";
		}
		$node->psql('postgres', $script, stdout => \$out, stderr => \$stderr, on_error_stop => 0);
		push @wrong, $1 if $stderr =~ /^(\S*ERROR:  (?!out of memory).*)/m || $stderr =~ /^(.*connection to server was lost.*)/m;
		push @wrong, $out =~ /^(wrong.*)/mg;
		$failed += () = $out =~ /^outcome 53200/mg;
		$over = $out =~ /^over/m || @wrong;
		$number += 100;
	}
	is("@wrong", '', "$name, PostgreSQL: $ok");
	cmp_ok($failed, '>', 100, "$name, PostgreSQL: out of memory was met with");
	fresh();
	return;
}

# A turn fails for a bad row when another customer's request is ready, and memory lacks
# while it is undone: the session keeps no lock of that customer, which would stop him in
# all databases of the account.
fresh();
$calls->sql("ALTER SERVER doubletick OPTIONS (ADD account 'one')");
drain_without_memory('an undone turn', 'no lock is left',
	prepare => sub {
		return "SELECT dt_enqueue_remove_tags_custom_fields(phone_of($_[0]), '{lead}') \\g /dev/null\n"
		  . "SELECT dt_enqueue_remove_tags_custom_fields(phone_of(0), '{lead}') AS id \\gset\n"
		  . "UPDATE dt_waiting SET tags = '{NULL}' WHERE id = :id;\n";
	},
	check => "SELECT FROM pg_locks WHERE locktype = 'advisory' HAVING count(*) > 0");
$calls->sql('ALTER SERVER doubletick OPTIONS (DROP account)');

# The key is refused, and memory lacks while this makes a hold: the answer is settled
# again, and the hold made.
$sb->rule('*', { status => 401 });
drain_without_memory('a new hold', 'the removals wait, and what was refused is held',
	prepare => sub { return "SELECT dt_enqueue_remove_tags_custom_fields(phone_of($_[0]), '{lead}') \\g /dev/null\n" },
	check => 'SELECT FROM dt_queue AS q LEFT JOIN dt_hold AS h USING (server)
		HAVING count(*) <> 1 OR count(q.http_status) <> count(h.reason)');
$sb->clear_rules;

unlike($node->safe_psql('postgres', 'SELECT 1') . PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/PANIC|TRAP|terminated by signal|\bXX\d{3}\b/, 'no process has crashed');

done_testing;

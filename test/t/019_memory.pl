
# libcurl's allocations fail, one after the other: a call succeeds or says "out of
# memory", and never tells this as another fault; the next call is well.

use strict;
use warnings;

use File::Basename qw(dirname);
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new(options => { timeout => '2s', connect_timeout => '2s' });
my $sb = $calls->sandbox;
my $phone = '919876543210';

$calls->sql(<<'SQL');
CREATE FUNCTION one(number int, phone text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	outcome text;
	answer jsonb;
	next jsonb;
BEGIN
	PERFORM set_config('doubletick.fault_allocation', number::text, false);
	BEGIN
		answer := dt_try_remove_tags_custom_fields(phone, '{lead}');
		outcome := CASE WHEN answer ? 'statusCode' THEN answer ->> 'message' ELSE 'good' END;
	EXCEPTION WHEN OTHERS THEN
		outcome := SQLSTATE;
	END;
	PERFORM set_config('doubletick.fault_allocation', '0', false);
	next := dt_try_remove_tags_custom_fields(phone, '{lead}');
	IF next ? 'statusCode' THEN
		outcome := outcome || ', and then ' || (next ->> 'message');
	END IF;
	RETURN outcome;
END $$;
SQL

sub outcomes_ok
{
	my ($name, $outcomes) = @_;
	my @lines = split /\n/, $outcomes;
	my @bad = grep { !/\|(?:good|53200)$/ } @lines;

	is(join("\n", @bad), '', "$name: good, or out of memory");
	cmp_ok(scalar(grep { /53200/ } @lines), '>', 0, "$name: out of memory was met with");
	return;
}

# Over a kept connection, and over a new one each time.
outcomes_ok('kept', $calls->sql("LOAD 'doubletick'; SELECT n, one(n, '$phone') FROM generate_series(1, 60) AS n"));
$sb->rule($phone, { status => 201, headers => { Connection => 'close' } });
outcomes_ok('new', $calls->sql("LOAD 'doubletick'; SELECT n, one(n, '$phone') FROM generate_series(1, 200) AS n"));

# The first call of a session sets libcurl up.
my $first = '';
$first .= $calls->sql("LOAD 'doubletick'; SELECT $_, one($_, '$phone')") . "\n" foreach map { 4 * $_ } 1 .. 20;
outcomes_ok('first', $first);

done_testing;


# Times that are over when they are handed on: a budget that has become negative
# while a call slept or computed is no error, and no call ends by one.

use strict;
use warnings;

use File::Basename qw(dirname);
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new;
my $phone = '919876543210';

$calls->sql("CREATE FUNCTION dt_test_turn(timeout int) RETURNS void LANGUAGE c STRICT AS 'doubletick', 'dt_test_turn'");

# A turn of libcurl in a session that has sent something.
foreach my $timeout (0, -1, -2147483648)
{
	my (undef, $turn) = $calls->session(removal($phone, ['lead']), "SELECT dt_test_turn($timeout)::text");
	is($turn->{sqlstate}, undef, "a turn of $timeout ms");
}

# Retries whose pause ends about when the budget does.
$calls->server('brief', timeout => '5ms');
$calls->sandbox->rule($phone, { status => 503 });
is($calls->sql("SET doubletick.server = brief;
		SELECT count(dt_try_remove_tags_custom_fields('$phone', '{lead}')) FROM generate_series(1, 500)"),
	500, 'calls without time left return their fault');

done_testing;


# A pause after a 429 ends when the server's definition is changed.

use strict;
use warnings;

use File::Basename qw(dirname);
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new;
my $sb = $calls->sandbox;
my $phone = '919876543210';

$sb->rule($phone, { status => 429, retry_after => '3600', times => 1 });
my ($first, $paused, $lifted) = $calls->session(attempt($phone, ['lead']), attempt($phone, ['lead']),
	"ALTER SERVER doubletick OPTIONS (ADD timeout '9s')", attempt($phone, ['lead']));

is($first->{value}{statusCode}, 429, 'a call meets a 429');
like($paused->{value}{message}, qr/^server "doubletick" is paused for another 3[56]\d\d s/, 'and the next one its pause');
is(ref $lifted->{value}{tags}, 'HASH', 'ALTER SERVER ends it');
is(scalar @{ $sb->journal }, 2, 'nothing was sent meanwhile');

# However long the server asks for.
$sb->rule($phone, { status => 429, retry_after => '86400', times => 1 });
(undef, $paused) = $calls->session(attempt($phone, ['lead']), attempt($phone, ['lead']));
like($paused->{value}{message} // '', qr/^server "doubletick" is paused for another 3[56]\d\d s/, 'a pause is at most an hour');

# The change of another server does not.
$sb->rule($phone, { status => 429, retry_after => '3600', times => 1 });
$calls->server('other');
(undef, $paused) = $calls->session(attempt($phone, ['lead']), "ALTER SERVER other OPTIONS (ADD timeout '9s')", attempt($phone, ['lead']));
like($paused->{value}{message}, qr/^server "doubletick" is paused/, 'another server is none of its business');

done_testing;

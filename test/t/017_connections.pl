
# What one answer may do to the next one, over a handle and a connection that are
# used again: nothing.

use strict;
use warnings;

use File::Basename qw(dirname);
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new;
my $sb = $calls->sandbox;
my $phone = '919876543210';
my $odd = '919876543211';

# For answers that would be tried again until the time is over.
$calls->server('brief', timeout => '300ms');

# A first header line that begins with a blank goes on with nothing.  libcurl before
# 8.1 takes it for more of the last header of the handle's last answer, whose memory
# is free by then.
sub folded_line
{
	$sb->rule($odd, { fault => 'fold_first' });
	my ($alone) = $calls->session('SET doubletick.server = brief', attempt($odd, ['lead']));
	my (undef, $second) = $calls->session('SET doubletick.server = brief', attempt($phone, ['lead']), attempt($odd, ['lead']));
	is($second->{value}{error}, $alone->{value}{error}, 'a folded first header line: the same answer after another one');
	is($calls->sql("SET doubletick.server = brief;
			SELECT count(dt_try_remove_tags_custom_fields(CASE WHEN i % 2 = 0 THEN '$odd' ELSE '$phone' END, '{lead}'))
			FROM generate_series(1, 20) AS i"), 20, 'and after many');
	like($alone->{value}{message}, qr/^answer is not usable HTTP/, 'which is none');
	$sb->clear_rules;
	return;
}

folded_line();
done_testing;


# A time of day that steps while the drainer runs, as it does when a machine whose clock
# was ahead learns the right time.
#
# The clock is test/preload/wrongclock.c.  Where that cannot be preloaded, the test is
# skipped.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

plan skip_all => 'this needs a preloaded library' unless $^O eq 'linux';

# Seconds; longer than removals may wait by default.
my $ahead = 5 * 24 * 60 * 60;

my $file = "$PostgreSQL::Test::Utils::tmp_check/clock";

sub set_clock
{
	PostgreSQL::Test::Utils::append_to_file("$file.new", $_[0]);
	rename "$file.new", $file or die "could not rename: $!";
	return;
}

set_clock(0);
{
	local @ENV{qw(LD_PRELOAD CLOCK_OFFSET)} = (build_preload('wrongclock'), $file);
	open_queue(options => { rate_limit => '0' });
}

# It is set back while a request is out, and a server without a key is held.
{
	my ($first, $second) = (new_phone(), new_phone());
	$calls->sql('CREATE SERVER keyless FOREIGN DATA WRAPPER doubletick');
	$sb->hold($first);
	set_clock($ahead);
	my @ids = enqueue($first, ['lead']);
	my $held = enqueue($first, ['lead'], undef, server => 'keyless');
	my $drain = start_drain();
	$sb->await_held(1, $first);
	is($calls->sql('SELECT server FROM dt_hold'), 'keyless', 'back: a server is held');

	set_clock(0);
	push @ids, enqueue($second, ['lead']);
	eventually(sub { states($ids[1]) ne 'waiting' }, 'back: what is enqueued then does not wait');
	is_received($second, 'lead', 'back: it is sent');
	eventually(sub { $calls->sql("SELECT probe_at <= now() + interval '1 min' FROM dt_hold") eq 't' },
		'back: the drainer does not look at the hold all the time');
	$sb->release($first);
	await_drain($drain);
	is(states(@ids, $held), 'done done waiting', 'back: nothing is given up for its age');
}

done_testing();

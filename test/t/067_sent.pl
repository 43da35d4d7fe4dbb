
# What dt_history shows of what was sent, beside what was asked for.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue();

# What a removal asked for, and what was sent of it.
sub shows_ok
{
	my ($id, $expected, $name) = @_;

	is($calls->sql("SELECT state, tags, fields, sent_tags, sent_fields FROM dt_history WHERE id = $id"), $expected, $name);
	return;
}

my $phone = new_phone();
my $id = enqueue($phone, [ 'a', 'b' ], ['f']);
drain();
shows_ok($id, 'done|{a,b}|{f}|{a,b}|{f}', 'all that was asked for');

# Some names came back before.
$id = enqueue($phone, [ 'a', 'b' ], [ 'f', 'g' ]);
$calls->sql(keep($phone, ['a'], ['g']));
drain();
is_received($phone, 'a,b,=f b,=f', 'names that came back are not sent');
shows_ok($id, 'done|{a,b}|{f,g}|{b}|{f}', 'what was sent, without names that came back');
$id = enqueue($phone, ['a'], ['f']);
$calls->sql(keep($phone, ['a'], []));
drain();
shows_ok($id, 'done|{a}|{f}|{}|{f}', 'no tag was sent');

# All of them came back.
$id = enqueue($phone, ['a']);
$calls->sql(keep($phone, ['a'], []));
drain();
shows_ok($id, 'cancelled|{a}|{}||', 'nothing was sent');

# What was refused was sent; what was cancelled or given up was not.
$sb->rule($phone, { status => 422, times => 1 });
$id = enqueue($phone, [ 'a', 'b' ]);
$calls->sql(keep($phone, ['b'], []));
drain();
shows_ok($id, 'failed|{a,b}|{}|{a}|{}', 'refused');
is($calls->sql("SELECT dt_retry($id)"), 't', 'refused: put back');
drain();
shows_ok($id, 'done|{a,b}|{}|{a,b}|{}', 'put back, and sent with all its names');
$id = enqueue($phone, ['a']);
$calls->sql("SELECT dt_cancel($id)");
shows_ok($id, 'cancelled|{a}|{}||', 'cancelled');
$id = $calls->sql("SELECT dt_try_enqueue_remove_tags_custom_fields('$phone', '{a,NULL}')");
shows_ok($id, 'failed|{a}|{}||', 'never sent');

# Of the rows that went out together, each has its own names.
my @ids = (enqueue($phone, [ 'a', 'b' ]), enqueue($phone, [ 'b', 'c' ]));
$calls->sql(keep($phone, ['a'], []));
drain();
shows_ok($ids[0], 'done|{a,b}|{}|{b}|{}', 'the first of two');
shows_ok($ids[1], 'done|{b,c}|{}|{b,c}|{}', 'the second');
done_testing();

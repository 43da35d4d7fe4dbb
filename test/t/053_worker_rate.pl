
# The worker and all sessions of the cluster share one pace, and one pause after
# a 429.

use strict;
use warnings;

use File::Basename qw(dirname);
use Test::More;

use lib dirname(__FILE__);
use Calls qw(most_in_a_second removal);
use Worker;

my $calls = Worker->new;
my $node = $calls->node;
my $sb = $calls->sandbox;
my $sessions = 3;

# Sessions call while the worker drains, for two and a half seconds or more.
sub pace
{
	my ($rate, $listener) = @_;
	my $what = "$rate a second, $listener";
	my $each = int($rate * 2.5 / ($sessions + 1)) + 1;

	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '0', SET base_url '" . $sb->url($listener) . "')");
	my @running = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. $sessions;
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '$rate')");
	$sb->reset;
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('9198765' || lpad(i::text, 5, '0'), '{queued}'))
		FROM generate_series(1, $each) AS i");
	$_->query_until(qr/on its way/, "\\echo on its way\nSELECT count(dt_remove_tags_custom_fields('919876400000', '{called}'))"
		  . " FROM generate_series(1, $each);\n") foreach @running;
	eventually(sub { $sb->stats->{requests} >= $each * ($sessions + 1) }, "$what: all requests are sent");
	$_->query('SELECT 1') foreach @running;
	$_->quit foreach @running;

	my @journal = @{ $sb->journal };
	my %by;
	$by{ $_->{body}{tags}[0] }++ foreach @journal;
	is($by{queued}, $each, "$what: the worker sends what is enqueued");
	is($by{called}, $each * $sessions, "$what: the sessions send what they call");
	my $most = most_in_a_second(@journal);
	cmp_ok($most, '<=', $rate + 1, "$what: within one second leave at most the rate and one");

	# A busy machine may be too slow for a higher rate.
	cmp_ok($most, '>=', $rate * 0.6, "$what: and not far fewer") if $rate == 10;
	return;
}

# When the worker meets a 429, a session's call waits; when a session meets one,
# the worker waits.
sub pause_for_all
{
	my $pause = 6;

	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '0')");
	for my $first ('worker', 'session')
	{
		$sb->reset;
		$sb->rule(Worker::phone(1), { status => 429, retry_after => "$pause", times => 1 });
		if ($first eq 'worker')
		{
			$calls->sql(enqueue('refused', 1));
			eventually(sub { $calls->sql('SELECT http_status FROM dt_queue') eq '429' }, 'the worker meets a 429');
			$calls->sql("SELECT dt_remove_tags_custom_fields('" . Worker::phone(2) . "', '{after_worker}')");
		}
		else
		{
			# The call does not wait for a pause that is longer than its timeout: when it
			# returns, the pause has begun.
			$calls->sql("ALTER SERVER doubletick OPTIONS (ADD timeout '5s')");
			my ($raised) = $calls->session(removal(Worker::phone(1), ['refused']));
			is($raised->{sqlstate}, '53400', 'a session meets a 429');
			$calls->sql(enqueue('after_session', 2));
		}
		eventually(sub { $calls->has_sent("after_$first") && $calls->waiting eq '0' }, "$first: the request of the other one is sent");
		my %at = map { $_->{body}{tags}[0] => $_->{at} } reverse @{ $sb->journal };
		cmp_ok($at{"after_$first"} - $at{refused}, '>=', $pause - 0.01, "$first: and not before the pause is over");
	}
	return;
}

foreach my $rate (10, 50, 200)
{
	pace($rate, $_) foreach 'https', 'http';
}
pause_for_all();
done_testing;


# The pace, and the pause after a 429, hold over the worker and all sessions of
# the cluster together.

use strict;
use warnings;

use File::Basename qw(dirname);
use List::Util qw(max);
use Test::More;

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new;
my $node = $calls->node;
my $sb = $calls->sandbox;
my $sessions = 3;

# The most requests within any window of one second.
sub most_in_a_second
{
	my @at = sort { $a <=> $b } map { $_->{at} } @{ $sb->journal };
	my $most = 0;

	for (my ($first, $last) = (0, 0); $last < @at; $last++)
	{
		$first++ while $at[$last] - $at[$first] >= 1;
		$most = max($most, $last - $first + 1);
	}
	return $most;
}

# Sessions that call and a worker that drains, for about two seconds and a half.
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
	eventually(sub { $sb->stats->{requests} >= $each * ($sessions + 1) }, "$what: all are sent");
	$_->query('SELECT 1') foreach @running;
	$_->quit foreach @running;

	my @journal = @{ $sb->journal };
	my %by;
	$by{ $_->{body}{tags}[0] }++ foreach @journal;
	is($by{queued}, $each, "$what: the worker's part");
	is($by{called}, $each * $sessions, "$what: the sessions' part");
	cmp_ok(most_in_a_second(), '<=', $rate + 1, "$what: no second has more than the rate and one");
	cmp_ok(most_in_a_second(), '>=', $rate * 0.6, "$what: nor far less");
	return;
}

# The worker meets a 429: a session's call waits; and the other way round.
sub pause_for_all
{
	my $pause = 2;

	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '0')");
	for my $first ('worker', 'session')
	{
		my $call = "SELECT dt_remove_tags_custom_fields('919876400001', '{after_$first}')";

		$sb->reset;
		$sb->rule(Worker::phone(1), { status => 429, retry_after => "$pause", times => 1 });
		if ($first eq 'worker')
		{
			$calls->sql(enqueue('refused', 1));
			eventually(sub { $calls->sql('SELECT http_status FROM dt_queue') eq '429' }, 'the worker meets a 429');
			$calls->sql($call);
		}
		else
		{
			my $session = $node->background_psql('postgres', on_error_stop => 0);
			$session->query_until(qr/on its way/, "\\echo on its way\nSELECT dt_remove_tags_custom_fields('"
				  . Worker::phone(1) . "', '{refused}');\n");
			eventually(sub { @{ $sb->journal } == 1 && $sb->journal->[0]{status} }, 'a session meets a 429');
			# The answer is under way to the session: what it makes of it can be seen.
			eventually(sub { $calls->sql("SELECT wait_event FROM pg_stat_activity WHERE query LIKE '%refused%' AND pid <> pg_backend_pid()") ne '' },
				'and waits');
			$sb->rule(Worker::phone(2), {});
			$calls->sql(enqueue("after_$first", 2));
			$session->query('SELECT 1');
			$session->quit;
		}
		eventually(sub { $calls->has_sent("after_$first") && $calls->waiting eq '0' }, "$first: the others' request goes in the end");
		my %at = map { $_->{body}{tags}[0] => $_->{at} } reverse @{ $sb->journal };
		cmp_ok($at{"after_$first"} - $at{refused}, '>=', $pause - 0.01, "$first: after the pause");
	}
	return;
}

foreach my $rate (10, 50, 200)
{
	pace($rate, $_) foreach 'https', 'http';
}
pause_for_all();
done_testing;


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
# is free by then.  Later ones refuse it, or take it without its blanks.
sub folded_line
{
	foreach my $fault (qw(fold_first fold_tab fold_interim fold_long))
	{
		$sb->rule($odd, { fault => $fault });
		my ($alone) = $calls->session('SET doubletick.server = brief', attempt($odd, ['lead']));
		my (undef, $second) = $calls->session('SET doubletick.server = brief', attempt($phone, ['lead']), attempt($odd, ['lead']));
		is($second->{value}{error}, $alone->{value}{error}, "$fault: the same answer after another one");
		is($calls->sql("SET doubletick.server = brief;
				SELECT count(dt_try_remove_tags_custom_fields(CASE WHEN i % 2 = 0 THEN '$odd' ELSE '$phone' END, '{lead}'))
				FROM generate_series(1, 20) AS i"), 20, "$fault: and after many");
		like($alone->{value}{tags} ? 'answered' : $alone->{value}{message}, qr/^(?:answer is not usable HTTP|answered$)/,
			"$fault: which is none, or a good one");
	}
	$sb->clear_rules;
	return;
}

# What libcurl hands over in pieces, or more than once, is the answer nonetheless.
sub whole_answer
{
	foreach my $fault (qw(long_first interim chunked gzip))
	{
		$sb->reset;
		$sb->customer($phone, ['lead'], []);
		$sb->rule($phone, { fault => $fault });
		my ($answer) = $calls->session(attempt($phone, ['lead']));
		is_deeply($answer->{value}{tags}{removed}, ['lead'], "$fault: the answer");
	}
	$sb->clear_rules;
	return;
}

# What comes over an idle connection is nobody's answer.
sub unasked_answer
{
	foreach my $server (qw(doubletick plain))
	{
		foreach my $fault (qw(unasked unasked_refusal))
		{
			my $name = "$fault, $server";

			$sb->reset;
			$sb->customer($phone, ['other'], []);
			$sb->rule($odd, { fault => $fault });
			my ($first, undef, $second, $third) = $calls->session("SET doubletick.server = $server", attempt($odd, ['lead']),
				'SELECT pg_sleep(0.2)::text', attempt($phone, ['other']), attempt($phone, ['third']));
			is($first->{value}{tags}{errored}[0]{tag}, 'lead', "$name: the answer that was asked for");
			is_deeply($second->{value}{tags}{removed}, ['other'], "$name: the next request gets its own");
			is($third->{value}{tags}{errored}[0]{tag}, 'third', "$name: and so does the one after it");
			is(scalar @{ $sb->journal }, 3, "$name: each was sent once");
			is($sb->stats->{connections}, 2, "$name: over a second connection");
		}
	}
	return;
}

folded_line();
whole_answer();
$calls->server('plain', base_url => $sb->http);
unasked_answer();
done_testing;


# Each fault that the sandbox knows, as both calls meet it: what SQL gets, that it
# gets it in time, and that the session can go on.
#
# A call whose connection breaks off is tried again until its "timeout" is over, so
# that is short here.

use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new;
my $sb = $calls->sandbox;
my $phone = '919876543210';

# Seconds; a test that passes takes far fewer.
my $too_long = 60;

# The server "doubletick" has the default timeout; these have less, but enough for
# some tries on a busy machine.
$calls->server('brief', timeout => '1s', base_url => $sb->http);
$calls->server('brief_tls', timeout => '2s');

# Tests one fault; the journal then has the requests.
sub fault_ok
{
	my ($rule, $name, %expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time;

	$sb->clear_journal;
	$sb->rule($phone, $rule);
	my $raised = $calls->fault_ok($name, $phone,
		{ sqlstate => 'HV00M', status => undef, error => 'fdw_unable_to_create_reply', %expected });
	cmp_ok(time - $begin, '<', $too_long, "$name: in time");
	return $raised;
}

# Tests that the normal answer comes in spite of a fault.
sub answer_ok
{
	my ($rule, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	foreach my $call (\&removal, \&attempt)
	{
		$sb->clear_journal;
		$sb->customer($phone, [ 'lead', 'vip' ], ['plan']);
		$sb->rule($phone, $rule);
		my ($got, $after) = $calls->session($call->($phone, ['lead'], ['plan']), $call->($phone, ['vip']));
		is_deeply($got->{value}, {
				tags => { removed => ['lead'], errored => [] },
				customFields => { removed => ['plan'], errored => [] } },
			"$name: the normal answer");
		is_deeply($after->{value}{tags}, { removed => ['vip'], errored => [] }, "$name: and so for the next call");
		is_deeply([ map { $_->{body}{tags}[0] } @{ $sb->journal } ], [ 'lead', 'vip' ], "$name: with one request each");
	}
	return;
}

# Tests that each of the two calls has made at least two requests.
sub tried_again_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	cmp_ok(scalar(grep { $_->{body}{phone} eq $phone } @{ $sb->journal }), '>=', 4, "$name: is tried again");
	return;
}

# Tests that each of the two calls has made one request.
sub tried_once_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(scalar(grep { $_->{body}{phone} eq $phone } @{ $sb->journal }), 2, "$name: is not tried again");
	return;
}

# No answer comes, or only part of one.
sub broken_off
{
	my %part_of = (reset => '', empty => '', reset_body => '', truncate => '', truncate_chunked => '',
		bad_chunks => '');

	foreach my $fault (sort keys %part_of)
	{
		foreach my $server ('brief', 'brief_tls')
		{
			my $name = "$fault, $server";
			fault_ok({ fault => $fault }, $name, server => $server, vague => 1,
				message => qr/broke off|in time|not (?:valid|usable) HTTP/, hint => qr/no harm|base_url/);
			tried_again_ok($name) unless $fault eq 'bad_chunks';
		}
	}

	# When only the answer is lost, the removal is done.
	foreach my $fault (qw(reset_body truncate truncate_chunked))
	{
		$sb->customer($phone, ['lead'], []);
		$sb->rule($phone, { fault => $fault });
		my ($lost) = $calls->session('SET doubletick.server = brief', attempt($phone, ['lead']));
		is($lost->{value}{error}, 'fdw_unable_to_create_reply', "$fault: the answer is lost");
		is_deeply($sb->customer_now($phone)->{tags}, [], "$fault: but the removal is done");
	}
	return;
}

# Something comes that is not an answer.
sub not_an_answer
{
	fault_ok({ fault => 'not_http' }, 'not_http', message => qr/not (?:valid|usable) HTTP/, hint => qr/base_url/);
	tried_once_ok('not_http');
	fault_ok({ fault => 'bad_gzip' }, 'bad_gzip', message => qr/not (?:valid|usable) HTTP/, hint => qr/./);
	tried_once_ok('bad_gzip');
	fault_ok({ body => '{}', headers => { 'Content-Encoding' => 'x-nonesuch' } }, 'an unknown Content-Encoding',
		message => qr/not (?:valid|usable) HTTP/, hint => qr/./);
	fault_ok({ fault => 'no_content' }, 'no_content', status => 204, message => qr/HTTP status 204/, hint => qr/no harm/);
	tried_once_ok('no_content');
	fault_ok({ fault => 'redirect' }, 'redirect', status => 302, error => undef,
		message => qr/redirected with HTTP status 302/, hint => qr/never followed/);
	tried_once_ok('redirect');
	return;
}

# Memory and time stay bounded however much comes.
sub without_end
{
	foreach my $fault (qw(endless gzip_bomb header_flood))
	{
		fault_ok({ fault => $fault }, $fault, message => qr/too long/, hint => qr/|./);
		tried_once_ok($fault);
		fault_ok({ fault => $fault, status => 500 }, "$fault under status 500", message => qr/too long/, hint => qr/|./);
	}
	fault_ok({ fault => 'long_header' }, 'long_header', message => qr/too long: .* of headers/, hint => qr/|./);
	fault_ok({ fault => 'endless_interim' }, 'endless_interim', server => 'brief',
		message => qr/in time|too long/, vague => 1, hint => qr/timeout/);
	return;
}

# A call waits until its timeout is over, and no longer, although some bytes come
# meanwhile.
sub out_of_time
{
	foreach my $rule ({ fault => 'hang' }, { fault => 'slow', interval_ms => 200 }, { delay_ms => 30_000 })
	{
		my $name = ($rule->{fault} || 'delay') . ' beyond the timeout';
		my $begin = time;
		fault_ok($rule, $name, server => 'brief', vague => 1, message => qr/did not answer in time/, hint => qr/timeout/);
		cmp_ok(time - $begin, '>=', 1.9, "$name: each call waits for a second");
		# The answer itself would take 20 s or more.
		cmp_ok(time - $begin, '<', 20, "$name: and not for the answer");
	}
	return;
}

# Answers of an unusual form, or that come late.
sub answers
{
	answer_ok({ fault => 'slow', interval_ms => 1, times => 1 }, 'slow within the timeout');
	answer_ok({ fault => $_, times => 1 }, $_) foreach qw(gzip chunked interim close);

	my $session = $calls->node->background_psql('postgres', on_error_stop => 0);
	$sb->customer($phone, ['lead'], []);
	$sb->rule($phone, { hold => JSON::PP::true });
	$session->query_until(qr/on its way/, "\\echo on its way\n" . removal($phone, ['lead']) . ";\n");
	$sb->await_held(1);
	$sb->clear_rules;
	like(($session->query("SELECT 'over'"))[0], qr/"removed": \["lead"\].*over/s, 'an answer that comes late');
	$session->quit;
	return;
}

# The kept connection turns out to be closed: the request is sent once more over a
# new one, and the caller does not notice.
sub stale_connection
{
	foreach my $call (\&removal, \&attempt)
	{
		$sb->reset;
		$sb->customer($phone, [ 'one', 'two', 'three' ], []);
		$sb->rule($phone, { fault => 'close_idle', times => 1 });
		my @got = $calls->session(map { $call->($phone, [$_]) } qw(one two three));
		is_deeply([ map { $_->{value}{tags} } @got ],
			[ map { { removed => [$_], errored => [] } } qw(one two three) ], 'close_idle: three good answers');
		is_deeply([ map { $_->{body}{tags}[0] } @{ $sb->journal } ], [qw(one two three)],
			'close_idle: each removal received once');
		is_deeply($sb->customer_now($phone)->{tags}, [], 'close_idle: and done');
		is($sb->stats->{connections}, 2, 'close_idle: the stale connection was replaced, once');
	}
	return;
}

# A server repeats the key in its answer.  What SQL gets must not show it.
sub key_echoed
{
	my $key = $sb->key;
	my %rules = (
		echo_key => { fault => 'echo_key' },
		'echo_key under status 403' => { fault => 'echo_key', status => 403 },
		'in a page' => { status => 500, body => "<html>$key</html>" },
		'in bytes that are no text' => { status => 201, body => "key $key\0" },
		'in an object' => { status => 422, body => { message => [ $key, "x$key$key" ], $key => [ { a => $key } ] } });

	foreach my $name (sort keys %rules)
	{
		$sb->rule($phone, $rules{$name});
		my ($raised, $returned) = $calls->session(removal($phone, ['lead']), attempt($phone, ['lead']));
		like($raised->{sqlstate}, qr/^(22023|28000|58000|HV00M)$/, "$name: an error");
		like(JSON::PP->new->encode($raised), qr/\*{8}/, "$name: where the key was");
		unlike(JSON::PP->new->encode($_), qr/\Q$key\E/, "$name: does not show it") foreach $raised, $returned;
		my (undef, undef, $stderr) = $calls->node->psql('postgres',
			'\set VERBOSITY verbose' . "\n" . removal($phone, ['lead']) . ';');
		like($stderr, qr/ERROR: /, "$name: an error on the wire");
		unlike($stderr, qr/\Q$key\E/, "$name: that does not show it");
	}
	$sb->rule($phone, { status => 201, body => { note => "for $key" } });
	my ($answer) = $calls->session(removal($phone, ['lead']));
	is($answer->{value}{note}, 'for ' . '*' x length $key, 'a success does not show the key');
	unlike(slurp_file($calls->node->logfile), qr/(?<!api_key ')(?<!api_key '')\Q$key\E/, 'nor does the log');
	return;
}

# A fault in one of many rows: the rows around it are done.
sub among_many
{
	my %rules = (2 => { fault => 'not_http' }, 4 => { fault => 'gzip_bomb' }, 6 => { fault => 'no_content' },
		8 => { fault => 'header_flood' }, 9 => { fault => 'echo_key' });

	$sb->reset;
	$sb->rule("1415555010$_", $rules{$_}) foreach keys %rules;
	$sb->customer("1415555010$_", ['lead'], []) foreach 1 .. 9;
	is($calls->sql(q{SELECT string_agg(CASE WHEN t ? 'statusCode' THEN '-' ELSE t->'tags'->'removed'->>0 END, ' ' ORDER BY n)
		FROM (SELECT n, dt_try_remove_tags_custom_fields('1415555010' || n, '{lead}') AS t FROM generate_series(1, 9) AS n) AS _}),
		'lead - lead - lead - lead - -', 'faults among many calls of one statement');
	is($calls->sql(q{SELECT dt_try_remove_tags_custom_fields('14155550101', '{x}') ? 'tags'}), 't', 'and all is well after');
	return;
}

broken_off();
not_an_answer();
without_end();
out_of_time();
answers();
stale_connection();
key_echoed();
among_many();
done_testing;

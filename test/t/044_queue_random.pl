
# dt_queue shows what is sent: random removals, keeps, cancels and retries, with and
# without a "+", and now and then a refusal or an outage. DT_SEED repeats a run.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

use constant ROUNDS => 40;

my $seed = $ENV{DT_SEED} // 20250115;
srand $seed;
note("DT_SEED=$seed");
open_queue(testing => 1);

my @phones = map { new_phone() } 1 .. 5;
my @wabas = (undef, undef, '919812345678', '919812345679');
my @names = 'a' .. 'f';

sub one_of { return $_[ int rand @_ ]; }

sub some_of
{
	my ($chance, @from) = @_;

	return grep { rand() < $chance } @from;
}

sub plus
{
	my ($number) = @_;

	return defined $number && rand() < 0.5 ? "+$number" : $number;
}

# SQL of something that a user may do.
sub step
{
	my @customer = (plus(one_of(@phones)), plus(one_of(@wabas)));
	my @tags = some_of(0.3, @names);
	my @fields = some_of(0.2, @names);
	my $what = rand;

	push @tags, one_of(@names) unless @tags || @fields;
	return enqueueing($customer[0], \@tags, \@fields, waba => $customer[1]) if $what < 0.5;
	return keep($customer[0], \@tags, \@fields, waba => $customer[1]) if $what < 0.8;
	return 'SELECT dt_cancel(id) FROM dt_queue ORDER BY (id * 7919) % 101 LIMIT 1' if $what < 0.87;
	return "SELECT dt_retry(id) FROM dt_history WHERE state = 'failed' ORDER BY (id * 7919) % 101 LIMIT 1";
}

sub steps
{
	my $count = 5 + int rand 25;
	my $sql = '';

	while ($count-- > 0)
	{
		my $one = join ';', map { step() } 0 .. rand 3;
		my $how = rand;
		$sql .= $how < 0.5 ? "$one;\n" : $how < 0.7 ? "BEGIN; $one; COMMIT;\n" : $how < 0.8 ? "BEGIN; $one; ROLLBACK;\n"
		  : 'BEGIN; ' . step() . "; SAVEPOINT s; $one; ROLLBACK TO s; " . step() . "; COMMIT;\n";
	}
	return $sql;
}

# The names of each customer, each once.
sub shown
{
	return $calls->sql(<<'SQL');
SELECT ltrim(phone, '+'), ltrim(coalesce(waba, '-'), '+'), string_agg(DISTINCT name, ',' ORDER BY name)
FROM dt_queue, LATERAL (SELECT unnest(tags) UNION ALL SELECT '=' || unnest(fields)) AS n(name)
GROUP BY 1, 2 ORDER BY 1, 2
SQL
}

sub sent
{
	my %names;

	foreach my $body (map { $_->{body} } @{ $sb->journal })
	{
		my $customer = join '|', map { s/^\+//r } $body->{phone}, $body->{wabaNumber} // '-';
		$names{$customer}{$_} = 1 foreach @{ $body->{tags} }, map { "=$_" } @{ $body->{customFields} };
	}
	return join "\n", map { my $c = $_; "$c|" . join ',', sort keys %{ $names{$c} } } sort keys %names;
}

my $nrequests = 0;

foreach my $round (1 .. ROUNDS)
{
	$sb->clear_rules;
	$sb->clear_journal;
	foreach my $phone (some_of(0.4, @phones))
	{
		$sb->rule($phone, one_of({ status => 422, times => 1 }, { status => 503, retry_after => '3000', times => 1 }));
	}
	my $sql = steps();
	$calls->sql($sql);
	my $shown = shown();
	my $removals = $calls->sql('SELECT count(*) FROM dt_waiting WHERE NOT keep');
	drain();
	$nrequests += @{ $sb->journal };
	is(sent(), $shown, "round $round: what dt_queue showed was sent") || diag("seed $seed:\n$sql");
	is($calls->sql('SELECT count(*) FROM dt_waiting WHERE NOT keep AND attempts = 0'), '0', "round $round: nothing waits that was not sent");
	time_passes('1 hour');
}
$sb->clear_rules;
drain();
is($calls->sql('SELECT count(*) FROM dt_waiting'), '0', 'nothing is left, and no keep either');
is($calls->sql("SELECT count(*) FROM dt_history GROUP BY id HAVING count(*) > 1"), '', 'nothing is settled twice');
cmp_ok($nrequests, '>', 2 * ROUNDS, 'many requests were sent');
done_testing;

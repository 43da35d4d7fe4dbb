
# monitoring/: the queries give a member of pg_monitor what they say, alert rules and
# dashboard name nothing else, and the pictures are made of what they should be.
#
# Debian's promtool, prometheus-postgres-exporter and prometheus are tried where they
# are installed.  test/check does not install them.

use strict;
use warnings;

use Cwd qw(abs_path);
use CPAN::Meta::YAML;
use File::Basename qw(dirname);
use HTTP::Tiny;
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

my $top = abs_path(dirname(__FILE__) . '/../..');
my $json = JSON::PP->new->utf8;
my $http = HTTP::Tiny->new(timeout => 10, no_proxy => ['127.0.0.1']);
my $readme = slurp_file("$top/monitoring/README.md");
my ($exporters_role, @statements) = $readme =~ /^```sql\n(.*?)^```/gms;
my @started;

END { $_->kill_kill foreach @started; }

# The columns of each query, with their use.
my $queries = yaml('queries.yaml');
my %columns = map { $_ => { map { %{$_} } @{ $queries->{$_}{metrics} } } } keys %{$queries};
my (%labels, %metrics);
foreach my $query (keys %columns)
{
	foreach my $column (keys %{ $columns{$query} })
	{
		my $is_label = $columns{$query}{$column}{usage} eq 'LABEL';

		$is_label ? $labels{$column} : $metrics{"${query}_$column"} = 1;
	}
}

my @rules = map { @{ $_->{rules} } } @{ yaml('alerts.yaml')->{groups} };
my $dashboard = $json->decode(slurp_file("$top/monitoring/dashboard.json"));
my @targets = map { @{ $_->{targets} } } @{ $dashboard->{panels} };
my @variables = grep { $_->{type} eq 'query' } @{ $dashboard->{templating}{list} };

sub yaml { return CPAN::Meta::YAML->read("$top/monitoring/$_[0]")->[0]; }

# What an expression of PromQL names: metrics, and labels.
sub names_in
{
	my ($expression) = @_;
	my @labels;

	$expression =~ s/"[^"]*"/""/g;
	$expression =~ s/\{(.*?)\}/push @labels, $1 =~ m{(\w+)\s*[=!]}g; ''/ge;
	$expression =~ s/\[.*?\]//g;
	$expression =~ s/\b(?:by|on|without|ignoring)\s*\((.*?)\)/push @labels, $1 =~ m{\w+}g; ''/ge;
	return ([ grep { !/^(?:and|or|unless|bool)$/ } $expression =~ /\b([a-z_]\w*)\b(?!\s*\()/gi ], \@labels);
}

# The files, against one another.
sub files_agree
{
	my %used;

	foreach my $expression (map { $_->{expr} } @rules, @targets)
	{
		my ($names, $labels) = names_in($expression);
		my $name = $expression =~ s/\s+/ /gr;

		is_deeply([ grep { !$metrics{$_} } @{$names} ], [], "metrics of the queries: $name");
		is_deeply([ grep { !$labels{$_} } @{$labels} ], [], "labels of the queries: $name");
		$used{$_} = 1 foreach @{$names};
	}
	is_deeply([ sort keys %used ], [ sort keys %metrics ], 'each metric is shown or watched');
	foreach my $text ((map { values %{ $_->{annotations} } } @rules), map { $_->{legendFormat} } @targets)
	{
		is_deeply([ grep { defined && !$labels{$_} } $text =~ /\$labels\.(\w+)|\{\{(\w+)\}\}/g ], [], "labels of the queries: $text");
	}
	foreach my $variable (@variables)
	{
		my ($metric, $label) = $variable->{query}{query} =~ /^label_values\((\w+), (\w+)\)$/;

		ok($metrics{$metric} && $labels{$label}, "the variable $variable->{name} is a label of the queries");
	}
	is_deeply([ grep { $readme !~ /`\Q$_\E`/ } sort keys %metrics ], [], 'README.md has each metric');
	is_deeply([ grep { $readme !~ /`$_`/ } map { $_->{alert} } @rules ], [], 'and each alert');

	return;
}

# What Grafana asks of a dashboard, so that each panel can be drawn.
sub dashboard_is_complete
{
	my %variables = map { $_->{name} => $_->{type} } @{ $dashboard->{templating}{list} };
	my (%ids, %places);

	like($dashboard->{schemaVersion}, qr/^\d+$/, 'the dashboard says which schema it has');
	foreach my $panel (@{ $dashboard->{panels} })
	{
		my $grid = $panel->{gridPos};
		my @names = map { $_->{expr} =~ /\$(?!__)(\w+)/g } @{ $panel->{targets} };
		my @sources = map { $_->{datasource}{uid} =~ /^\$\{(\w+)\}$/ } $panel, @{ $panel->{targets} };
		my %references = map { $_->{refId} => 1 } @{ $panel->{targets} };

		$ids{ $panel->{id} }++;
		for my $x ($grid->{x} .. $grid->{x} + $grid->{w} - 1)
		{
			$places{"$x $_"}++ foreach $grid->{y} .. $grid->{y} + $grid->{h} - 1;
			$places{'outside'} += 2 if $x > 23;
		}
		like($panel->{type}, qr/^(?:stat|timeseries|state-timeline)$/, "$panel->{title}: its type");
		is_deeply([ grep { !$variables{$_} } @names ], [], "$panel->{title}: its variables are there");
		is_deeply([ map { $variables{$_} } @sources ], [ ('datasource') x (1 + @{ $panel->{targets} }) ], "$panel->{title}: its data source is the one that was chosen");
		is(scalar keys %references, scalar @{ $panel->{targets} }, "$panel->{title}: each expression has a letter of its own");
	}
	is_deeply([ grep { $_ != 1 } values %ids, values %places ], [], 'each panel has an id and a place of its own');
	return;
}

# doc/flow.svg has each text of doc/flow.dot, and plot.pl draws what it is given.
sub pictures_are_right
{
	my ($in, $out) = map { slurp_file("$top/doc/flow.$_") } qw(dot svg);
	my @texts = map { split /\\[nl]/ } $in =~ /label="(.*?)"/g;
	my $svg;

	$out =~ s/&#160;/ /g;
	is_deeply([ grep { $out !~ />\s*\Q$_\E\s*</ } map { s/^\s+|\s+$//gr } @texts ], [], 'doc/flow.svg is up to date: else make pictures');

	IPC::Run::run([ $^X, "$top/monitoring/plot.pl", 20 ], '<', \"100.0\t5\t0\t0\tf\n110.0\t1500\t10\t40\tf\n120.0\t0\t2000\t1\tt\n", '>', \$svg);
	like($svg, qr/^<svg .*<\/svg>\n\z/s, 'a picture is drawn');
	like($svg, qr/points="70\.0,269\.5 405\.0,105\.0 740\.0,270\.0"/, 'of what waits');
	my @held = $svg =~ /<rect x="405\.0" y="\d+" width="335\.3"/g;
	is(scalar @held, 2, 'and of the time in which it was held');
	return;
}

# What a query gives to the exporter's role; and the row of a server.
sub rows
{
	my ($query) = @_;

	return @{ $json->decode(as('prometheus', 'SET default_transaction_read_only = on',
		"SELECT coalesce(json_agg(r), '[]') FROM ($queries->{$query}{query}) AS r")) };
}

sub row
{
	my ($server) = @_;
	my ($row) = grep { $_->{foreign_server} eq $server } rows('doubletick');

	return $row;
}

# A bit of everything happens; then three removals wait, one of them for a role that
# is held.
sub do_something
{
	my ($phone) = @_;

	$sb->customer($phone, ['lead']);
	$calls->sql(removal($phone, ['lead']));
	$sb->rule($phone, { status => 503, times => 1 });
	$calls->sql(attempt($phone, ['lead']));
	$sb->rule($phone, { status => 429, retry_after => '0', times => 1 });
	$calls->sql(attempt($phone, ['lead']));
	$sb->customer($phone, ['lead']);
	enqueue($phone, ['lead']);
	drain();
	$sb->rule($phone, { status => 422, times => 1 });
	enqueue($phone, ['lead']);
	drain();
	enqueue($phone, ['no such tag']);
	drain();
	enqueue($phone, ['lead']);
	$calls->sql("SELECT dt_keep('$phone', '{lead}')");
	drain();
	enqueue($phone, ['lead']) foreach 1 .. 2;
	as('app', enqueueing($phone, ['lead']));
	$calls->sql('DROP USER MAPPING FOR app SERVER doubletick');
	return;
}

my %expected = (
	datname => 'postgres', foreign_server => 'doubletick', waiting => 3, due => 3, in_flight => 0, held => 1,
	done_last_hour => 2, errored_last_hour => 1, failed_last_hour => 1, worker_running => 0, worker_error => 0,
	counters_of_all_sessions => 1, requests_total => 8, calls_total => 5, status_2xx_total => 5,
	status_4xx_total => 2, status_429_total => 1, status_5xx_total => 1, other_status_total => 0, no_answer_total => 0,
	done_total => 2, errored_total => 1, failed_total => 1, cancelled_total => 1);

sub values_are_right
{
	my $row = row('doubletick');
	my @zero = grep { $_ ne 'counters_of_all_sessions' && !ref $expected{$_} && $expected{$_} =~ /^\d+$/ } sort keys %expected;
	my $quiet = row('quiet');

	is_deeply({ map { $_ => $row->{$_} } keys %expected }, \%expected, 'the role sees what waits and what came of it');
	cmp_ok($row->{oldest_age_seconds}, '>', 0, 'the oldest has an age');
	is_deeply([ map { $quiet->{$_} } @zero, 'oldest_age_seconds', 'requests_per_second' ], [ (0) x (@zero + 2) ], 'a quiet server counts nothing');
	cmp_ok((rows('doubletick_check'))[0]{problems}, '==', $calls->sql('SELECT count(*) FROM dt_check()'), 'the problems of dt_check are counted');
	cmp_ok((rows('doubletick_check'))[0]{problems}, '>', 0, 'and there are some');
	foreach my $query (sort keys %columns)
	{
		my ($first) = rows($query);

		is_deeply([ sort keys %{$first} ], [ sort keys %{ $columns{$query} } ], "$query: each column has its use");
	}
	is_deeply([ sort map { "$_->{datname} $_->{foreign_server}" } rows('doubletick') ], [ 'postgres doubletick', 'postgres quiet' ], 'what the labels hold');
	is_deeply([ grep { defined && !/^-?[\d.]+(?:e[-+]?\d+)?$/ } map { my %row = %{$_}; delete @row{ keys %labels }; values %row } map { rows($_) } keys %columns ],
		[], 'all else is a number');
	return;
}

# Statements of README.md and of alerts work.
sub statements_work
{
	foreach my $statements (@statements)
	{
		is($node->psql('postgres', $statements), 0, 'README.md has a statement that works') || diag($statements);
	}
	foreach my $rule (@rules)
	{
		my ($statement) = $rule->{annotations}{description} =~ /: (SELECT .*)$/;

		is($node->psql('postgres', $statement), 0, "$rule->{alert} shows a statement that works") if $statement;
	}
	return;
}

# The time_left_seconds and the pace of a server to which something is sent now.
sub pace_is_shown
{
	my @phones = map { new_phone() } 1 .. 3;

	enqueue($_, ['lead'], undef, server => 'quiet') foreach @phones;
	$sb->hold($phones[1]);
	my $drain = start_drain();
	$sb->await_held(1);
	my $row = row('quiet');
	cmp_ok($row->{requests_per_second}, '>', 0, 'the pace');
	cmp_ok($row->{time_left_seconds}, '>=', 0, 'the time that is left');
	is($row->{in_flight}, 1, 'the request that is in flight');
	$sb->release($phones[1]);
	await_drain($drain);
	return;
}

sub is_installed
{
	my (@names) = @_;

	foreach my $name (@names)
	{
		return $name if grep { -x "$_/$name" } split /:/, $ENV{PATH};
	}
	return;
}

sub promtool_agrees
{
  SKIP:
	{
		my $promtool = is_installed('promtool');
		skip 'promtool is not installed', 2 unless $promtool;
		command_ok([ $promtool, 'check', 'rules', "$top/monitoring/alerts.yaml" ], 'promtool takes the rules');
		command_ok([ $promtool, 'test', 'rules', "$top/monitoring/alerts_test.yaml" ], 'each alert fires when it should');
	}
	return;
}

# Starts a program, whose output goes to a file of the test.
sub start_program
{
	my ($log, @command) = @_;

	push @started, IPC::Run::start(\@command, '<', \undef, '>', $log, '2>&1');
	return;
}

sub get
{
	my ($url) = @_;

	return $http->get($url)->{content} // '';
}

# The exporter, and Prometheus over it: the dashboard's expressions have values.
sub exporter_exports
{
	my $exporter = is_installed('prometheus-postgres-exporter', 'postgres_exporter');
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $text;

	return note('prometheus-postgres-exporter is not installed') unless $exporter;
	{
		local $ENV{DATA_SOURCE_NAME} = 'user=prometheus dbname=postgres sslmode=disable host=' . $node->host . ' port=' . $node->port;
		start_program("$dir/exporter.log", $exporter, '--disable-default-metrics', '--disable-settings-metrics',
			"--extend.query-path=$top/monitoring/queries.yaml", "--web.listen-address=127.0.0.1:$port");
	}
	eventually(sub { ($text = get("http://127.0.0.1:$port/metrics")) =~ /^doubletick_check_problems\{/m }, 'the exporter runs')
	  or return diag(slurp_file("$dir/exporter.log"));
	my %exported = map { $_ => 1 } $text =~ /^(doubletick_\w+)\{/gm;
	is_deeply([ sort keys %exported ], [ sort keys %metrics ], 'it exports each metric');
	foreach my $column (grep { !$labels{$_} } sort keys %expected)
	{
		my ($value) = $text =~ /^doubletick_$column\{.*foreign_server="doubletick".*\} (\S+)$/m;

		is($value, $expected{$column}, "it exports $column");
	}
	unlike($text, qr/^pg_exporter_user_queries_load_error.* 1$|^pg_exporter_last_scrape_error.* 1$/m, 'without an error');
	unlike($text, qr/91987\d{7}|no such tag|key_/, 'no phone, no tag, and no key');
	prometheus_reads($port, $dir);
	return;
}

sub prometheus_reads
{
	my ($exporter_port, $dir) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $ask = sub { return eval { $json->decode(get("http://127.0.0.1:$port/api/v1/$_[0]")) } || {}; };

	return note('prometheus is not installed') unless is_installed('prometheus');
	append_to_file("$dir/prometheus.yml", <<"YML");
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: ['$top/monitoring/alerts.yaml']
scrape_configs: [{ job_name: doubletick, static_configs: [{ targets: ['127.0.0.1:$exporter_port'] }] }]
YML
	start_program("$dir/prometheus.log", 'prometheus', "--config.file=$dir/prometheus.yml", "--storage.tsdb.path=$dir/prometheus",
		"--web.listen-address=127.0.0.1:$port");
	eventually(sub { ($ask->('rules')->{data}{groups} // [])->[0] }, 'Prometheus runs') or return diag(slurp_file("$dir/prometheus.log"));
	eventually(sub { my @healthy = grep { $_->{health} eq 'ok' } map { @{ $_->{rules} } } @{ $ask->('rules')->{data}{groups} }; @healthy == @rules },
		'and evaluates each rule');
	foreach my $target (@targets)
	{
		my $expression = $target->{expr} =~ s/\$__rate_interval/1m/gr =~ s/\$(?:datname|server)\b/.*/gr;
		my $query = join '', map { sprintf '%%%02X', ord } split //, $expression;

		# Nothing has a time left while nothing is sent.
		eventually(
			sub {
				my $answer = $ask->("query?query=$query");
				($answer->{status} // '') eq 'success' && (@{ $answer->{data}{result} } > 0 || $expression =~ /time_left_seconds/);
			}, "it has a value for $expression");
	}
	return;
}

files_agree();
dashboard_is_complete();
pictures_are_right();
promtool_agrees();

# Not preloaded: there are no counters, and no worker.
open_queue(options => { rate_limit => '0', max_connections => '1' });
make_roles();
$calls->sql($exporters_role);
enqueue(new_phone(), ['lead']);
is_deeply({ %{ row('doubletick') } {qw(waiting worker_running counters_of_all_sessions requests_total requests_per_second time_left_seconds failed_total)} },
	{ waiting => 1, worker_running => 0, counters_of_all_sessions => 0,
		map { $_ => undef } qw(requests_total requests_per_second time_left_seconds failed_total) },
	'not preloaded: no counters are shown, since they are not those of all sessions');
fresh();

# Preloaded; the worker finds no slot.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'doubletick'\nmax_worker_processes = 0");
$node->restart;
$calls->server('quiet', timeout => '1min');
do_something(new_phone());
values_are_right();
statements_work();
exporter_exports();
pace_is_shown();

# With the worker.
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
eventually(sub { row('quiet')->{worker_running} }, 'the worker is seen');
done_testing();

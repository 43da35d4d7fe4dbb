
# Every part of the library once, and nothing that depends on the clock: calls and
# their errors, the queue and its worker, both triggers, a CALL.  It is short, for it
# is run where everything is slow: without caches (test/assert), in valgrind
# (test/valgrind), with sanitizers (test/sanitize).  What is slow there is a new session
# above all, so one does many things.

use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls qw(removal attempt);
use Worker;

my $calls = Worker->new(options => { timeout => '10min', connect_timeout => '10min', waba_number => '919812345678', rate_limit => '1000' });
my $sb = $calls->sandbox;
my $nphones = 0;

sub phone { return sprintf '91987%07d', ++$nphones; }

# SQL: a removal that is enqueued.
sub enqueueing { return removal(@_) =~ s/dt_remove/dt_enqueue_remove/r; }

# What is tried again goes to the server "brief", which soon gives up; on a slow machine
# perhaps before it has a connection.
sub calls
{
	my @refusals = (
		[ { status => 422 } => '22023' ],
		[ { status => 400, body => { message => [ 'one', 'two' ], error => 'Bad Request', statusCode => 400 } } => '22023' ],
		[ { status => 401 } => '28000' ],
		[ { status => 404 } => '22023' ]);
	my @faults = (
		[ { status => 200, body => 'not JSON' } => 'HV00[MN]' ],
		(map { [ { fault => $_ } => 'HV00[MN]' ] } qw(redirect reset truncate bad_gzip not_http header_flood endless hang)),
		[ { status => 429, retry_after => '0' } => '53400|HV00[MN]' ]);
	my @well = map { { fault => $_ } } qw(gzip chunked interim close);

	$calls->server('brief', timeout => '1s');
	foreach my $list ([ 'doubletick', @refusals ], [ 'brief', @faults ])
	{
		my ($server, @rules) = @$list;
		my @phones = map { phone() } @rules;

		$sb->rule($phones[$_], $rules[$_][0]) foreach 0 .. $#rules;
		my @outcomes = $calls->session("SET doubletick.server = $server",
			map { (removal($_, ['lead'], ['plan']), attempt($_, ['lead'], ['plan'])) } @phones);
		foreach my $rule (@rules)
		{
			my ($answer, $sqlstate) = @$rule;
			my $name = $answer->{fault} || "status $answer->{status}";
			my ($raised, $returned) = splice @outcomes, 0, 2;

			like($raised->{sqlstate}, qr/^(?:$sqlstate)$/, "$name: it is raised");
			like(encode_json($returned), qr/statusCode/, "$name: it is returned");
		}
	}

	my @phones = map { phone() } @well, 'outage';
	$sb->customer($_, [ 'lead', 'vip' ], ['plan']) foreach @phones;
	$sb->rule($phones[$_], $well[$_]) foreach 0 .. $#well;
	$sb->rule($phones[-1], { status => 503, times => 1 });
	my @outcomes = $calls->session((map { removal($_, ['lead'], ['plan']) } @phones),
		removal('12', ['lead']), removal(phone()), removal(phone(), [undef]), attempt(phone(), [ '', 'lead' ]),
		removal(phone(), ['lead'], undef, 'x'), 'SET doubletick.server = missing', removal(phone(), ['lead']));
	foreach my $name ((map { $_->{fault} } @well), 'an outage, after which the second try succeeds')
	{
		is_deeply((shift @outcomes)->{value}{tags}, { removed => ['lead'], errored => [] }, "$name: the answer");
	}
	is(join(' ', map { $_->{sqlstate} // $_->{value}{error} } @outcomes), '22023 22023 22004 invalid_parameter_value 22023 42704',
		'arguments that are wrong, and a server that does not exist');

	my $held = phone();
	$sb->hold($held);
	$calls->node->psql('postgres',
		"SELECT count(dt_try_remove_tags_custom_fields(p, '{lead}')) FROM unnest('{${\phone()},x,${\phone()}}'::text[]) AS p;"
		  . 'SET statement_timeout = 500; ' . removal($held, ['lead']), stdout => \my $many, stderr => \my $stderr);
	is($many, '3', 'several rows, one of which is wrong');
	like($stderr, qr/canceling statement due to statement timeout/, 'a call that is cancelled');
	$sb->clear_rules;
	return;
}

sub queue
{
	my %phone = map { $_ => phone() } qw(done refused outage parts silent unknown cancelled held dropped);
	my $states = sub {
		return { split /[|\n]/, $calls->sql("SELECT phone, string_agg(state, ' ' ORDER BY id) FROM dt_history GROUP BY phone") };
	};

	$sb->customer($phone{$_}, [ 'lead', 'vip' ], ['plan']) foreach qw(done outage parts);
	$sb->rule($phone{refused}, { status => 422 });
	$sb->rule($phone{outage}, { status => 503, times => 1 });
	$sb->rule($phone{parts}, { status => 400, times => 1 });
	$sb->rule($phone{silent}, { status => 200, body => {} });
	$sb->hold($phone{cancelled});
	my @ids = split /\n/, $calls->sql(join ';',
		'CREATE SERVER keyless FOREIGN DATA WRAPPER doubletick OPTIONS (' . $sb->server_options . ')',
		'CREATE SERVER dropped FOREIGN DATA WRAPPER doubletick',
		'BEGIN', enqueueing($phone{done}, ['lead'], ['plan']), 'SAVEPOINT s', enqueueing($phone{done}, ['vip']), 'ROLLBACK TO s', 'COMMIT',
		(map { enqueueing($phone{$_}, [ 'lead', 'x' ], undef, '+919812345679') } qw(refused outage silent unknown)),
		'BEGIN', (map { enqueueing($phone{parts}, [$_]) } qw(lead vip other)), 'COMMIT',
		'SET doubletick.server = dropped', enqueueing($phone{dropped}, ['lead']),
		'SET doubletick.server = keyless', enqueueing($phone{held}, ['lead']),
		'DROP SERVER dropped');
	my ($dropped, $held) = @ids[ -2, -1 ];

	eventually(sub { $calls->sql("SELECT held FROM dt_status WHERE server = 'keyless'") }, 'there is no mapping: a hold');
	my ($is_cancelled, $again, $cancelled) = split /\n/, $calls->sql(join ';',
		"SELECT dt_cancel($held)",
		'SET doubletick.server = keyless', enqueueing($phone{held}, ['lead']),
		"CREATE USER MAPPING FOR CURRENT_USER SERVER keyless OPTIONS (api_key '${\$sb->key}')",
		'RESET doubletick.server', enqueueing($phone{cancelled}, ['lead']));
	is($is_cancelled, 't', 'what is held is cancelled');

	$sb->await_held(1, $phone{cancelled});
	my @said = split /\n/, $calls->sql(join ';',
		"SELECT dt_cancel($cancelled)", enqueueing($phone{cancelled}, ['lead']),
		"SELECT count(*) FROM dt_queue WHERE phone = '$phone{cancelled}'", "SELECT dt_cancel($dropped)");
	is($said[0], 'f', 'what is in flight is not cancelled');
	is($said[2], '2', 'both are shown');
	is($said[3], 't', 'what waits for a server that is dropped is cancelled');
	$calls->node->psql('postgres', 'CALL dt_process_queue()', stderr => \my $stderr);
	like($stderr, qr/another session drains the queue/, 'a CALL leaves it to the worker');
	$sb->clear_rules($phone{cancelled});

	eventually(sub { $calls->waiting eq '0' }, 'the worker sends and settles everything');
	my %expected = (
		done => 'done',
		refused => 'failed',
		outage => 'done',
		parts => 'done done done',
		silent => 'done',
		unknown => 'done',
		held => 'cancelled done',
		cancelled => 'done done',
		dropped => 'cancelled');
	is_deeply($states->(), { map { $phone{$_} => $expected{$_} } keys %expected }, 'how each of them ends');
	is_deeply($sb->customer_now($phone{$_})->{tags}, $_ eq 'outage' ? ['vip'] : $_ eq 'done' ? ['vip'] : [], "$_: the customer")
	  foreach qw(done outage parts);

	$sb->clear_rules($phone{refused});
	is($calls->sql("SELECT dt_retry(id) FROM dt_history WHERE phone = '$phone{refused}'"), 't', 'a failed one is put back');
	eventually(sub { ($states->()->{ $phone{refused} } // '') eq 'done' }, 'and done');
	return;
}

# What a row loses is removed, at whatever level the trigger is.
sub triggers
{
	my $function = "EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', %s)";
	my @triggers = ('CREATE TRIGGER doubletick AFTER INSERT OR UPDATE OR DELETE ON by_row FOR EACH ROW '
		  . sprintf $function, "'tags', 'fields', 'waba'");

	foreach my $table ([ by_statement => "'tags', 'fields', 'waba'" ], [ parted => "'tags', 'fields', 'waba'" ],
		[ only_tags => "'tags'" ], [ only_fields => "'', 'fields'" ])
	{
		my ($name, $columns) = @$table;

		push @triggers, map {
			"CREATE TRIGGER $_ AFTER $_ ON $name REFERENCING "
			  . ($_ eq 'INSERT' ? '' : 'OLD TABLE AS old ') . ($_ eq 'DELETE' ? '' : 'NEW TABLE AS new ')
			  . 'FOR EACH STATEMENT ' . sprintf $function, $columns
		} qw(INSERT UPDATE DELETE);
	}
	$calls->sql(join ";\n", <<'SQL', @triggers);
DROP SERVER brief CASCADE;
CREATE TABLE by_row (id int PRIMARY KEY, phone text, tags text[], fields jsonb, waba text);
CREATE TABLE by_statement (LIKE by_row INCLUDING ALL);
CREATE TABLE parted (LIKE by_row INCLUDING ALL) PARTITION BY RANGE (id);
CREATE TABLE parted1 PARTITION OF parted FOR VALUES FROM (1) TO (3);
CREATE TABLE parted2 PARTITION OF parted DEFAULT;
CREATE TABLE only_tags (phone text, tags text[]);
CREATE TABLE only_fields (phone text, fields jsonb);
SQL
	foreach my $table (qw(by_row by_statement parted))
	{
		my ($a, $b, $c) = (phone(), phone(), phone());

		$sb->customer($_, [qw(x y z)], [qw(f g)]) foreach $a, $b, $c;
		$calls->sql(<<"SQL");
INSERT INTO $table VALUES (1, '$a', '{x,y}', '["f"]', NULL), (2, '+$b', '{x,y}', '{"f": 1, "g": 2}', NULL),
	(3, '$c', '{x,y,z}', NULL, NULL), (4, 'wrong', '{x}', NULL, NULL), (5, NULL, '{x}', NULL, NULL);
UPDATE $table SET tags = array_remove(tags, 'x') WHERE id IN (1, 4);
BEGIN;
UPDATE $table SET phone = CASE id WHEN 2 THEN '$c' ELSE '$b' END WHERE id IN (2, 3);
SAVEPOINT s;
DELETE FROM $table;
ROLLBACK TO s;
UPDATE $table SET id = id + 100 WHERE id >= 2;
COMMIT;
MERGE INTO $table AS t USING (VALUES (1), (9)) AS s (id) ON t.id = s.id
	WHEN MATCHED THEN UPDATE SET fields = '[]' WHEN NOT MATCHED THEN INSERT VALUES (9, '$c', '{z}', '["g"]');
DELETE FROM $table WHERE id = 9;
INSERT INTO $table VALUES (1, '$a', '{z}', NULL, NULL) ON CONFLICT (id) DO UPDATE SET tags = '{}';
BEGIN;
DELETE FROM $table WHERE id = 103;
INSERT INTO $table VALUES (11, '$b', '{y,z}', NULL, NULL);
COMMIT;
SQL
		eventually(sub { $calls->waiting eq '0' }, "$table: everything is sent");
		my @left = map {
			my $now = $sb->customer_now($_);
			join ',', map { @{ $now->{$_} } } qw(tags customFields);
		} $a, $b, $c;
		is("@left", 'z,g y,z x,y,f', "$table: what the customers have left");
	}
	my $phone = phone();
	$sb->customer($phone, [qw(x y)], [qw(f g)]);
	$calls->sql(<<"SQL");
INSERT INTO only_tags VALUES ('$phone', '{x,y}');
INSERT INTO only_fields VALUES ('$phone', '["f"]');
UPDATE only_tags SET tags = '{x}';
DELETE FROM only_fields;
SQL
	eventually(sub { $calls->waiting eq '0' }, 'tables with only tags or only fields: everything is sent');
	my $now = $sb->customer_now($phone);
	is_deeply([ @$now{qw(tags customFields)} ], [ ['x'], ['g'] ], 'and what they lost is removed');
	is($calls->sql("SELECT object || ': ' || problem FROM dt_check(true) WHERE problem !~ '^the table is partitioned'"), '', 'what dt_check() says');
	return;
}

# Configuration, the end of a worker, and of the extension.
sub ends
{
	my ($worker) = $calls->workers('postgres');

	$calls->configure('doubletick.history_retention' => '0', 'doubletick.enabled' => 'off');
	$calls->sql("SELECT pg_terminate_backend($worker)");
	eventually(sub { is_gone($worker) }, 'the worker ends');
	$calls->sql(enqueueing(phone(), ['lead']));
	eventually(sub { $calls->sql('SELECT held FROM dt_status WHERE held IS NOT NULL LIMIT 1') }, 'another one finds that nothing may be sent');
	$calls->configure('doubletick.enabled' => 'on');
	eventually(sub { $calls->waiting eq '0' }, 'until it may');
	$calls->sql('DROP EXTENSION doubletick CASCADE; CREATE EXTENSION doubletick');
	$calls->server('doubletick');
	my $phone = phone();
	$calls->sql(enqueueing($phone, ['again']));
	eventually(sub { $calls->has_sent('again') }, 'after the extension is dropped and created anew, the worker sends');
	return;
}

calls();
queue();
triggers();
ends();
$calls->node->stop;
done_testing();


# Tables of the extension that somebody has changed: what the library cannot work
# with is refused before anything is enqueued or sent, with the command that mends it.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(conf => 'autovacuum = off');

# SQLSTATE and hint of a statement that must fail.
sub refused
{
	my ($statement) = @_;
	my ($stdout, $stderr);

	$node->psql('postgres', "\\set VERBOSITY verbose\n$statement;\n", stdout => \$stdout, stderr => \$stderr, on_error_stop => 0);
	my ($sqlstate) = $stderr =~ /ERROR:  (\w{5}):/;
	my ($hint) = $stderr =~ /HINT:  Execute (.*)\.$/m;
	return ($sqlstate // 'none', $hint // '');
}

# What a change breaks is refused, and goes on when the hint is followed.
sub refused_and_mended
{
	my ($name, $change, $mend) = @_;
	my $phone = new_phone();
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my ($table) = $change =~ /(dt_\w+)/;

	# A session that knows the table as it was.
	$session->query_safe(enqueueing(new_phone(), ['lead']));
	drain();
	my $id = enqueue($phone, ['lead']);
	$calls->sql($change);
	if ($table =~ /^dt_waiting/)
	{
		my ($sqlstate, $hint) = refused(enqueueing(new_phone(), ['lead']));
		is($sqlstate, '55000', "$name: enqueueing is refused");
		$session->query(enqueueing(new_phone(), ['lead']));
		like($session->{stderr}, qr/is not as extension "doubletick" needs it/, "$name: also in a session that knew the table");
	}
	$session->{stderr} = '';
	my ($sqlstate, $hint) = refused('CALL dt_process_queue()');
	is($sqlstate, '55000', "$name: the CALL is refused");
	is(scalar(() = requests($phone)), 0, "$name: nothing has left");
	like($hint, $mend, "$name: the hint");
	$calls->sql($hint =~ s/, or, if.*//r);
	drain();
	is(states($id), 'done', "$name: it goes when that is executed");
	$session->query(enqueueing(new_phone(), ['lead']));
	is($session->{stderr}, '', "$name: and the session goes on");
	$session->quit;
	return;
}

# Of another shape.
foreach my $table (qw(dt_waiting dt_settled dt_hold))
{
	refused_and_mended("$table, a column", "ALTER TABLE $table ADD COLUMN \"a note\" text", qr/^ALTER TABLE public.$table DROP COLUMN "a note"/);
	refused_and_mended("$table, a column with a default", "ALTER TABLE $table ADD COLUMN n int NOT NULL DEFAULT 7", qr/^ALTER TABLE public.$table DROP COLUMN n/);
}
refused_and_mended("$_->[0], a renamed column", "ALTER TABLE $_->[0] RENAME COLUMN $_->[1] TO \"the $_->[1]\"",
	qr/^ALTER TABLE public.$_->[0] RENAME COLUMN "the $_->[1]" TO $_->[1]$/)
	foreach [ 'dt_waiting', 'due_at' ], [ 'dt_settled', 'phone' ], [ 'dt_hold', 'reason' ];
refused_and_mended('access method', 'CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler; ALTER TABLE dt_waiting SET ACCESS METHOD other',
	qr/^ALTER TABLE public.dt_waiting SET ACCESS METHOD heap$/);
refused_and_mended('not logged', 'ALTER TABLE dt_settled SET UNLOGGED', qr/^ALTER TABLE public.dt_settled SET LOGGED$/);
refused_and_mended('membership', 'ALTER EXTENSION doubletick DROP TABLE dt_settled', qr/^ALTER EXTENSION doubletick ADD TABLE public.dt_settled$/);
refused_and_mended('nulls', 'ALTER TABLE dt_waiting ALTER COLUMN phone DROP NOT NULL', qr/^ALTER TABLE public.dt_waiting ALTER COLUMN phone SET NOT NULL$/);


foreach my $column ('dt_waiting ALTER tags', 'dt_settled ALTER answer', 'dt_settled ALTER error', 'dt_hold ALTER reason')
{
	refused_and_mended("storage, $column", "ALTER TABLE $column SET STORAGE PLAIN", qr/^ALTER TABLE public\.dt_\w+ ALTER COLUMN \w+ SET STORAGE EXTENDED$/);
}
foreach my $other ('server COLLATE "POSIX", role', 'server text_pattern_ops, role', 'role, server', 'server DESC, role')
{
	refused_and_mended("order of an index, $other", "ALTER TABLE dt_hold DROP CONSTRAINT dt_hold_pkey; CREATE UNIQUE INDEX dt_hold_pkey ON dt_hold ($other)",
		qr/^DROP INDEX public.dt_hold_pkey; ALTER TABLE public.dt_hold ADD CONSTRAINT dt_hold_pkey PRIMARY KEY \(server, role\)$/);
}
refused_and_mended('order of an index, a constraint', 'ALTER TABLE dt_hold DROP CONSTRAINT dt_hold_pkey; ALTER TABLE dt_hold ADD CONSTRAINT dt_hold_pkey PRIMARY KEY (role, server)',
	qr/^ALTER TABLE public.dt_hold DROP CONSTRAINT dt_hold_pkey; ALTER TABLE public.dt_hold ADD CONSTRAINT dt_hold_pkey PRIMARY KEY /);

# The sequence of ids.
foreach my $change ('CACHE 20', 'CYCLE', 'INCREMENT -1 MINVALUE -1000')
{
	refused_and_mended("sequence, $change", "ALTER SEQUENCE dt_waiting_id_seq $change",
		qr/^ALTER SEQUENCE public.dt_waiting_id_seq INCREMENT 1 CACHE 1 NO CYCLE$/);
}
refused_and_mended('sequence, not logged', 'ALTER SEQUENCE dt_waiting_id_seq SET UNLOGGED', qr/^ALTER SEQUENCE public.dt_waiting_id_seq SET LOGGED$/);

# What has no simple mend.
foreach my $change ('ALTER TABLE dt_waiting DROP COLUMN last_error',
	'ALTER TABLE dt_settled ALTER COLUMN attempts TYPE bigint')
{
	my $drops = join '', map { "ALTER EXTENSION doubletick DROP VIEW $_; DROP VIEW $_;" } qw(dt_status dt_history dt_queue dt_removals);
	$calls->sql('CREATE DATABASE changed');
	$calls->sql("CREATE EXTENSION doubletick; $drops $change", database => 'changed');
	my ($stdout, $stderr);
	$node->psql('changed', "\\set VERBOSITY verbose\nCALL dt_process_queue();\n", stdout => \$stdout, stderr => \$stderr, on_error_stop => 0);
	like($stderr, qr/ERROR:  55000: table "dt_\w+" is not as/, "$change: refused");
	like($stderr, qr/HINT:  Execute ALTER EXTENSION doubletick UPDATE/, "$change: the hint");
	$calls->sql('DROP DATABASE changed');
}

# What could make the settling fail, or what no insert or delete of ours would obey.
refused_and_mended('CHECK', 'ALTER TABLE dt_settled ADD CONSTRAINT odd CHECK (attempts < 100)', qr/^ALTER TABLE public.dt_settled DROP CONSTRAINT odd$/);
refused_and_mended('CHECK of dt_waiting', 'ALTER TABLE dt_waiting ADD CONSTRAINT "Odd one" CHECK (attempts < 100)', qr/^ALTER TABLE public.dt_waiting DROP CONSTRAINT "Odd one"$/);
refused_and_mended('NOT NULL', 'TRUNCATE dt_settled; ALTER TABLE dt_settled ALTER COLUMN error SET NOT NULL', qr/^ALTER TABLE public.dt_settled ALTER COLUMN error DROP NOT NULL$/);
refused_and_mended('unique', 'CREATE UNIQUE INDEX odd ON dt_settled (phone, id)', qr/^DROP INDEX public.odd$/);
refused_and_mended('unique constraint', 'ALTER TABLE dt_waiting ADD CONSTRAINT odd UNIQUE (phone, id)', qr/^ALTER TABLE public.dt_waiting DROP CONSTRAINT odd$/);
refused_and_mended('exclusion', 'ALTER TABLE dt_settled ADD CONSTRAINT odd EXCLUDE USING btree (id WITH =, settled_at WITH =)', qr/^ALTER TABLE public.dt_settled DROP CONSTRAINT odd$/);
refused_and_mended('expression', 'CREATE INDEX odd ON dt_settled (lower(phone))', qr/^DROP INDEX public.odd$/);
refused_and_mended('condition', "CREATE INDEX odd ON dt_waiting (phone) WHERE attempts > 0", qr/^DROP INDEX public.odd$/);
refused_and_mended("index of what may be long, $_", "CREATE INDEX odd ON $_", qr/^DROP INDEX public.odd$/)
  foreach 'dt_waiting (tags)', 'dt_settled (id) INCLUDE (sent_tags)', 'dt_settled (answer)';
refused_and_mended('row security', 'ALTER TABLE dt_waiting ENABLE ROW LEVEL SECURITY', qr/^ALTER TABLE public.dt_waiting DISABLE ROW LEVEL SECURITY$/);
refused_and_mended('trigger', 'CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
	CREATE TRIGGER odd BEFORE INSERT ON dt_settled FOR EACH ROW EXECUTE FUNCTION nothing()', qr/^DROP TRIGGER odd ON public.dt_settled$/);
refused_and_mended('no trigger of ours', 'DROP TRIGGER dt_waiting_replicated ON dt_waiting', qr/^CREATE TRIGGER dt_waiting_replicated BEFORE INSERT OR UPDATE OR DELETE ON public.dt_waiting /);
foreach my $change ('DISABLE TRIGGER ALL', 'ENABLE TRIGGER ALL')
{
	refused_and_mended($change, "ALTER TABLE $_ $change", qr/^ALTER TABLE public.$_ ENABLE REPLICA TRIGGER ${_}_replicated$/) foreach qw(dt_waiting dt_settled dt_hold);
}
foreach my $other ('BEFORE INSERT OR DELETE ON dt_settled FOR EACH ROW EXECUTE FUNCTION dt_replicated_trigger()',
	'BEFORE INSERT OR UPDATE OR DELETE ON dt_settled FOR EACH ROW WHEN (pg_backend_pid() = 0) EXECUTE FUNCTION dt_replicated_trigger()',
	'BEFORE INSERT OR DELETE OR UPDATE OF id ON dt_settled FOR EACH ROW EXECUTE FUNCTION dt_replicated_trigger()',
	'BEFORE INSERT OR UPDATE OR DELETE ON dt_settled FOR EACH ROW EXECUTE FUNCTION nothing()')
{
	$calls->sql("CREATE OR REPLACE TRIGGER dt_settled_replicated $other; ALTER TABLE dt_settled ENABLE REPLICA TRIGGER dt_settled_replicated");
	my $hint = (refused('CALL dt_process_queue()'))[1];
	is($hint, 'DROP TRIGGER dt_settled_replicated ON public.dt_settled', "refused: $other");
	$calls->sql($hint);
	$calls->sql((refused('CALL dt_process_queue()'))[1]);
	drain();
}
$calls->sql('ALTER TABLE dt_settled ENABLE ALWAYS TRIGGER dt_settled_replicated');
drain();
$calls->sql('ALTER TABLE dt_settled ENABLE REPLICA TRIGGER dt_settled_replicated');
$calls->sql('CREATE SCHEMA app; CREATE TABLE app.note (id bigint)');
refused_and_mended('foreign key', 'ALTER TABLE app.note ADD CONSTRAINT "for us" FOREIGN KEY (id) REFERENCES dt_waiting (id)', qr/^ALTER TABLE app.note DROP CONSTRAINT "for us"$/);

# An index that REINDEX or CREATE INDEX CONCURRENTLY has left behind.
{
	drain();
	enqueue(new_phone(), ['lead']);
	my $old = $calls->sql('SELECT count(*) FROM dt_waiting');
	$calls->sql('INSERT INTO dt_settled SELECT s.* FROM dt_settled AS s LIMIT 1');
	$node->psql('postgres', 'CREATE UNIQUE INDEX CONCURRENTLY odd ON dt_settled (id)');
	is($calls->sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'odd'::regclass"), 'f', 'an index that is not valid');
	is((refused('CALL dt_process_queue()'))[0], '55000', 'not valid, and unique: refused');
	$calls->sql('DROP INDEX odd; DELETE FROM dt_settled');
}

# An index of ours that is gone, or was made otherwise.
foreach my $case (
	[ 'dt_waiting_customer', 'ALTER EXTENSION doubletick DROP INDEX dt_waiting_customer; DROP INDEX dt_waiting_customer /* of dt_waiting */', qr/^CREATE INDEX dt_waiting_customer ON public.dt_waiting \(customer, keep, id\)$/ ],
	[ 'dt_settled_id', 'ALTER EXTENSION doubletick DROP INDEX dt_settled_id; DROP INDEX dt_settled_id /* of dt_settled */', qr/^CREATE INDEX dt_settled_id ON public.dt_settled \(id\)$/ ])
{
	my ($index, $change, $mend) = @$case;

	# Indexes are not members by themselves.
	$change =~ s/^ALTER EXTENSION[^;]*; //;
	refused_and_mended("$index is gone", $change, $mend);
}

# REINDEX CONCURRENTLY beside many other indexes fails nobody's statement.
{
	my @names = map { "more_$_" } 1 .. 9;

	$calls->sql(join ' ', map { "CREATE INDEX $_ ON dt_waiting (phone); CREATE INDEX s_$_ ON dt_settled (phone);" } @names);
	my $old = $node->background_psql('postgres');
	$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class');
	my $reindex = $node->background_psql('postgres', on_error_stop => 0);
	$reindex->query_until(qr/on its way/, "\\echo on its way\nREINDEX TABLE CONCURRENTLY dt_waiting;\n");
	eventually(sub { $calls->sql("SELECT count(*) FROM pg_index WHERE indrelid = 'dt_waiting'::regclass AND NOT indisvalid AND indisready") > 8 },
		'REINDEX: there are twenty indexes');
	my $id = enqueue(new_phone(), ['lead']);
	like($id, qr/^\d+$/, 'REINDEX: enqueueing goes on');
	drain();
	is(states($id), 'done', 'REINDEX: and so does sending');
	$old->query_safe('COMMIT');
	$reindex->query('SELECT 1');
	is($reindex->{stderr}, '', 'REINDEX: it goes through');
	$_->quit foreach $old, $reindex;
	$calls->sql('CREATE EXTENSION amcheck');
	foreach my $index (split /\n/, $calls->sql("SELECT indexrelid::regclass FROM pg_index WHERE indrelid IN ('dt_waiting'::regclass, 'dt_settled'::regclass)"))
	{
		my ($status, $stdout, $stderr) = $node->psql('postgres', "SELECT bt_index_parent_check('$index', true)");
		is($stderr, '', "REINDEX: $index has every row");
	}
	$calls->sql('DROP INDEX ' . join ', ', map { ($_, "s_$_") } @names);
}

# A BRIN index can be filled, and so it may be there.  It keeps pages pinned between two
# insertions.
{
	$calls->sql('CREATE INDEX odd ON dt_settled USING brin (settled_at); CREATE INDEX odd_too ON dt_waiting USING brin (id)');
	my $id = enqueue(new_phone(), ['lead']);
	$calls->sql("SELECT count(dt_enqueue_remove_tags_custom_fields('1415555' || n, '{lead}')) FROM generate_series(1000, 1099) AS n");
	my $offset = -s $node->logfile;
	foreach my $statement (
		"SELECT count(dt_enqueue_remove_tags_custom_fields('1415555' || n, '{lead}')) FROM generate_series(2000, 2099) AS n",
		"DO \$\$ BEGIN PERFORM dt_enqueue_remove_tags_custom_fields('14155553000', '{lead}'); RAISE 'undone'; EXCEPTION WHEN raise_exception THEN END \$\$")
	{
		my ($code, undef, $stderr) = $node->psql('postgres', $statement);
		is($stderr, '', 'BRIN: enqueued');
	}
	drain();
	is(states($id), 'done', 'BRIN: settled');
	unlike(slurp_file($node->logfile, $offset), qr/resource was not closed|refcount leak/, 'BRIN: no page stays pinned');
	is($calls->sql("SET enable_seqscan = off; SET enable_indexscan = off; SELECT count(*) FROM dt_settled WHERE settled_at > now() - interval '1 hour' AND id = $id"), '1', 'BRIN: and found');
	$calls->sql('DROP INDEX odd, odd_too');
}

# Indexes into which every row fits, however long what it has is.
{
	my @names = map { "fits_$_" } 1 .. 6;
	my @columns = ('dt_settled (server, phone, waba, error)', 'dt_settled (error)', 'dt_settled USING hash (tags)',
		'dt_settled USING gin (answer)', 'dt_settled USING hash (answer)', 'dt_waiting USING hash (tags)');
	my $long = join '', map { chr(97 + int rand 26) } 1 .. 20_000;
	my ($good, $bad, $told) = map { new_phone() } 1 .. 3;

	$calls->sql("CREATE INDEX $names[$_] ON $columns[$_]") foreach 0 .. 5;
	$sb->rule($told, { status => 422, body => { message => $long } });
	my @ids = (enqueue($good, [$long], ["f$long"]), enqueue($told, ['lead']));
	drain();
	is(states(@ids), 'done failed', 'long names and a long answer: settled');

	# Of a phone or a WABA number that cannot be used, the history has the beginning.
	foreach my $change ("UPDATE long SET tags = '{}'", "UPDATE long SET phone = phone || '1', waba = waba || '1'", 'DELETE FROM long')
	{
		$calls->sql("DROP TABLE IF EXISTS long; CREATE TABLE long (phone text, tags text[], waba text);
			INSERT INTO long VALUES ('+$long', '{x}', '$long'), ('$good', '{x}', '$long'), ('$good', '{x}', NULL), ('$long', '{x}', NULL);
			CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON long FOR EACH ROW
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', '', 'waba'); DELETE FROM dt_settled");
		my ($code, undef, $stderr) = $node->psql('postgres', $change);
		is($stderr, '', "$change: long numbers fail no statement");
		cmp_ok($calls->sql("SELECT count(*) FROM dt_history WHERE state = 'failed' AND length(phone) <= 200 AND coalesce(length(waba), 0) <= 200"), '>=', 3,
			"$change: the history says so");
	}
	is(states($calls->sql("SELECT dt_try_enqueue_remove_tags_custom_fields('$long', '{x}', waba => '$long')")), 'failed',
		'dt_try_enqueue: a long number, too');
	$calls->sql('DROP TABLE long; DROP INDEX ' . join ', ', @names);
	fresh();
}

# A GIN index of names holds each by itself, if it is not too long.
{
	my $long = join '', map { chr(97 + int rand 26) } 1 .. 20_000;

	foreach my $columns ('tags', 'tags, fields', 'sent_fields')
	{
		my ($good, $bad, $worse) = map { new_phone() } 1 .. 3;

		fresh();
		$calls->sql("CREATE INDEX odd ON dt_settled USING gin ($columns)");
		my $id = enqueue($good, [ map { "t$_" . 'x' x 400 } 1 .. 100 ], [ map { "f$_" } 1 .. 100 ]);
		drain();
		is(states($id), 'done', "GIN ($columns): many names are settled");
		my @ids = (enqueue($bad, [ 'lead', $long ]), enqueue($worse, undef, [ 'plan', $long ]));
		like(drain(), qr/held: error 54000: a name is too long for index "odd" of table "dt_settled"\n.*^HINT:  Execute DROP INDEX public.odd\.$/ms,
			"GIN ($columns): one that is too long holds");
		is(scalar(() = requests($bad, $worse)), 0, "GIN ($columns): before anything leaves");
		$calls->sql('DROP INDEX odd; ALTER SERVER doubletick OPTIONS (SET timeout \'1min\')');
		drain();
		is(states(@ids), 'done done', "GIN ($columns): they go when that is executed");
	}
	fresh();
}

# Ids that come again.
{
	my @ids = map { enqueue(new_phone(), ['lead']) } 1 .. 3;
	drain();
	$calls->sql("SELECT setval('dt_waiting_id_seq', $ids[0], false)");
	my @phones = map { new_phone() } 1 .. 2;
	$sb->rule($phones[1], { status => 404 });
	my @again = map { enqueue($_, ['lead']) } @phones;
	is("@again", "$ids[0] $ids[1]", 'again: the ids are the same');
	drain() for 1 .. 2;
	is(scalar(() = requests($_)), 1, "again: $_ is sent once") foreach @phones;
	is($calls->sql("SELECT string_agg(state, ' ' ORDER BY id, settled_at) FROM dt_history WHERE id IN ($ids[0], $ids[1])"), 'done done done failed', 'again: both are in the history');
	$sb->clear_rules;
	is($calls->sql("SELECT dt_retry($ids[0])"), 'f', 'again: what was done twice is not retried');
	is($calls->sql("SELECT dt_retry($ids[1])"), 't', 'again: the one of both that failed is');
	drain();
	is(scalar(() = requests($phones[1])), 2, 'again: and is sent');

	$calls->sql('TRUNCATE dt_waiting RESTART IDENTITY');
	my $id = enqueue($phones[0], ['lead']);
	drain();
	is(scalar(() = requests($phones[0])), 2, 'again: after TRUNCATE RESTART IDENTITY, too');
}

# Ids that come again while a drainer is at work: it finds rows below what it has seen.
my $beyond = "BEGIN; TRUNCATE dt_waiting RESTART IDENTITY;
	SELECT count(dt_enqueue_remove_tags_custom_fields('14155599999', ARRAY['t' || n])) FROM generate_series(1, 1500) AS n; COMMIT";
foreach my $reset ('TRUNCATE dt_waiting RESTART IDENTITY', "SELECT setval('dt_waiting_id_seq', 1, false)",
	'ALTER SEQUENCE dt_waiting_id_seq RESTART WITH 2', $beyond)
{
	drain();
	$calls->sql("DELETE FROM dt_waiting; SELECT setval('dt_waiting_id_seq', 1000)");
	my ($hanging, $phone, $late) = map { new_phone() } 1 .. 3;
	$sb->rule($hanging, { fault => 'hang' });
	enqueue($hanging, ['lead']);
	my $draining = start_drain();
	eventually(sub { scalar(() = requests($hanging)) }, "$reset: a drainer has seen id 1001");

	# A transaction that began before, and commits after what follows is sent.
	my $open = $node->background_psql('postgres');
	$open->query_safe('BEGIN; SELECT pg_current_xact_id()');
	$calls->sql($reset);
	$open->query_safe("SELECT dt_enqueue_remove_tags_custom_fields('$late', '{lead}')");
	my $id = enqueue($phone, ['lead']);
	# Unless a row is left above: then the drainer may have advanced the sequence.
	cmp_ok($id, '<', $reset eq $beyond ? 2000 : 1000, "$reset: ids come again") if $reset =~ /TRUNCATE/;
	eventually(sub { scalar(() = requests($phone)) }, "$reset: the removal is sent");
	$open->query_safe('COMMIT');
	eventually(sub { scalar(() = requests($late)) }, "$reset: and so is one that commits late");
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_queue WHERE phone = '14155599999'") eq '0' }, "$reset: and so are all others");
	$open->quit;
	$node->psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL dt_process_queue%'");
	await_drain($draining);
	$sb->clear_rules;
}

done_testing;

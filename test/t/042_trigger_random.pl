
# Random tables, changes, savepoints and rollbacks, while the table's owner and the
# trigger's server change: compares what the sandbox received with what is computed from
# the committed states of the table. A row has several names or one; its phone may stand in
# another table, and be copied by a foreign key.
#
# HISTORIES is the number of random histories, SEED decides what they are, HISTORY
# picks a single one and shows it (test/torture/trigger).
#
# The computation knows for each transaction the rows before and after it, and which
# rows were touched. For a customer and a name:
#
#   a row has it that did not have it    it must not be removed
#   fewer rows have it than before       it must be removed
#   else                                 nothing has changed for it
#
# One case stays open: a row that was touched, and still has the name, takes back the
# removals that were stored before it was touched, but not the later ones.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Calls;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $histories = $ENV{HISTORIES} || 40;
my $seed = $ENV{SEED} || 1;
my $only = $ENV{HISTORY};

my @phones = ('919876543210', '+919876543210', '919876543211', '+919876543211', '919876543212', '919876543213', undef);
my @wabas = (undef, undef, '919812345678', '+919812345678');
my $own_waba = '919812345678';
my @owners = qw(first_owner second_owner);
my @servers = qw(doubletick second);
my @names = ([qw(x y z)], [qw(x f)]);

# Types of a column, how names are written there, and how they are read.
my @types = (
	[ 'text[]', sub { _array('text', @_) }, 'to_jsonb(%1$s)' ],
	[ 'varchar(9)[]', sub { _array('varchar', @_) }, 'to_jsonb(%1$s)' ],
	[ 'jsonb', sub { quote(encode_json([@_])) }, '%1$s' ],
	[ 'text', sub { quote(pick('', @_)) }, q{CASE WHEN %1$s <> '' THEN jsonb_build_array(%1$s) END} ]);
my %types = (
	tags => [ @types,
		[ 'jsonb', sub { quote(encode_json({ (map { $_ => pick(1, JSON::PP::true) } @_), pick(qw(y z)) => pick(JSON::PP::false, undef) })) },
			q{(SELECT jsonb_agg(key) FROM jsonb_each(%1$s) WHERE value NOT IN ('false', 'null'))} ] ],
	fields => [ @types,
		[ 'jsonb', sub { quote(encode_json({ map { $_ => pick(1, JSON::PP::false, undef) } @_ })) },
			'(SELECT jsonb_agg(key) FROM jsonb_object_keys(%1$s) AS key)' ],
		[ 'hstore', sub { quote(join ',', map { "$_=>1" } @_) . '::hstore' }, 'to_jsonb(akeys(%1$s))' ] ]);

my $calls = Calls->new;
$calls->sql('CREATE EXTENSION hstore');
$calls->server('second');
$calls->sql("GRANT USAGE ON FOREIGN SERVER $_ TO PUBLIC; ALTER SERVER $_ OPTIONS (ADD waba_number '$own_waba');"
	  . "CREATE USER MAPPING FOR PUBLIC SERVER $_ OPTIONS (api_key '" . $calls->sandbox->key . "')") foreach @servers;
$calls->sql("CREATE ROLE $_") foreach @owners;
my ($nsent, $nopen, $ntransactions) = (0, 0, 0);
my $failed = 0;

foreach my $number (length($only // '') ? $only : 1 .. $histories)
{
	srand $seed * 1_000_003 + $number;
	my @wrong = history();
	next unless @wrong;
	$failed++;
	fail("seed $seed, history $number");
	diag($_) foreach @wrong;
	last if $failed == 5;
}
ok($failed == 0, "seed $seed: $histories histories, $ntransactions transactions, $nsent names removed, $nopen left open");
cmp_ok($nsent, '>', 0, 'some names were removed');
done_testing();

# One table and its transactions. Returns what is wrong.
sub history
{
	my $table = random_table();
	my %waiting;
	my @wrong;

	$calls->sql("SET client_min_messages = warning; $table->{create}");
	foreach my $epoch (1 .. 1 + int rand 3)
	{
		my $script = "TRUNCATE touched;\n$table->{state};\n";

		$script .= definition($table) . transaction($table) foreach 1 .. 1 + int rand 4;
		$calls->sandbox->clear_journal;
		my @states = map { decode_json($_) } split /\n/, $calls->sql($script);
		$calls->sql('CALL dt_process_queue()');

		my $before = shift @states;
		while (my ($after, $touched) = splice @states, 0, 2)
		{
			recompute(\%waiting, $table, $before, $after, $touched);
			$before = $after;
			$ntransactions++;
		}
		my %sent = sent();
		push @wrong, map { "epoch $epoch: \"$_\" was removed, and must not be" } grep { !$waiting{$_} } sort keys %sent;
		push @wrong, map { "epoch $epoch: \"$_\" was not removed, and must be" }
		  grep { $waiting{$_} eq 'yes' && !$sent{$_} } sort keys %waiting;
		$nsent += keys %sent;
		$nopen += grep { $_ eq 'perhaps' } values %waiting;
		%waiting = ();
		diag($table->{create} . $script) if @wrong || length($only // '');
		return @wrong if @wrong;
	}
	return;
}

# The names that wait to be removed, "yes" or "perhaps", after a transaction.
sub recompute
{
	my ($waiting, $table, $before, $after, $touched) = @_;
	my %had = holders($before);
	my %has = holders($after);
	my %all = (%had, %has, %$waiting);

	foreach my $name (keys %all)
	{
		my ($had, $has) = map { $_ || {} } $had{$name}, $has{$name};
		my $gained = grep { !$had->{$_} } keys %$has;
		my $fewer = keys %$has < keys %$had;
		my $kept = grep { $had->{$_} && $touched->{$_} } keys %$has;

		if ($gained) { delete $waiting->{$name}; }
		elsif ($fewer) { $waiting->{$name} = $kept ? 'perhaps' : 'yes'; }
		elsif ($waiting->{$name} && $kept) { $waiting->{$name} = 'perhaps'; }
	}
	return;
}

# "CUSTOMER KIND NAME" => {row => 1}
sub holders
{
	my ($state) = @_;
	my %holders;

	foreach my $row (@$state)
	{
		my ($key, $phone, $waba, $tags, $fields) = @$row;

		next unless length($phone // '');
		my $customer = ltrim($phone) . '/' . ltrim($waba // $own_waba);
		$holders{"$customer tag $_"}{$key} = 1 foreach @{ $tags || [] };
		$holders{"$customer field $_"}{$key} = 1 foreach @{ $fields || [] };
	}
	return %holders;
}

# What the sandbox has received, in the same form.
sub sent
{
	my %sent;

	foreach my $request (@{ $calls->sandbox->journal })
	{
		my $body = $request->{body};
		my $customer = ltrim($body->{phone}) . '/' . ltrim($body->{wabaNumber});

		$sent{"$customer tag $_"} = 1 foreach @{ $body->{tags} };
		$sent{"$customer field $_"} = 1 foreach @{ $body->{customFields} };
	}
	return %sent;
}

sub ltrim { return $_[0] =~ s/^\+//r; }

# A random table: how to create it, with rows and triggers; its level, its columns.
sub random_table
{
	my $table = {
		level => pick(qw(row row statement deferred)),
		(map { $_ => pick(@{ $types{$_} }) } qw(tags fields)),
		partitioned => rand() < 0.3,
		keyless => rand() < 0.2,
		# What the changes name: the phone, or a row of another table that has it.
		phone => pick(qw(phone phone person)),
		nrows => 2 + int rand 5,
	};
	my %columns = ('k' => 'int', 'id' => 'int', phone => 'text', person => 'int', waba => 'varchar', region => 'int',
		tags => $table->{tags}[0], fields => $table->{fields}[0]);
	my @columns = shuffle(keys %columns);
	my $definition = join ', ', (map { "$_ $columns{$_}" } @columns),
	  ($table->{keyless} ? () : 'PRIMARY KEY (k, region)'),
	  ($table->{phone} eq 'phone' ? () : 'FOREIGN KEY (person, phone) REFERENCES people (id, phone) ON UPDATE CASCADE ON DELETE CASCADE');

	$table->{state} = sprintf 'SELECT coalesce(jsonb_agg(jsonb_build_array(k, %s.phone, waba, %s, %s)), \'[]\') FROM customers LEFT JOIN people ON people.id = person',
	  $table->{phone} eq 'phone' ? 'customers' : 'people', map { sprintf $table->{$_}[2], $_ } qw(tags fields);
	$table->{create} = <<"SQL" . triggers($table, pick(@servers));
DROP TABLE IF EXISTS customers, touched, people;
TRUNCATE dt_waiting, dt_settled;
CREATE TABLE touched (k int);
GRANT INSERT ON touched TO PUBLIC;
CREATE TABLE people (id int PRIMARY KEY, phone text NOT NULL, UNIQUE (id, phone));
INSERT INTO people VALUES @{[ join ', ', map { "($_, " . phone_of_person() . ')' } 1 .. 3 ]};
CREATE TABLE customers ($definition)@{[ $table->{partitioned} ? ' PARTITION BY LIST (region)' : '' ]};
ALTER TABLE customers OWNER TO @{[ pick(@owners) ]};
@{[ $table->{partitioned} ? partitions(\%columns) : '' ]}
@{[ $table->{phone} eq 'phone' ? '' : copied_phone() ]}
INSERT INTO customers (k, id, region, $table->{phone}, waba, tags, fields) VALUES
	@{[ join ', ', map { values_of($table, $_) } 1 .. $table->{nrows} ]};
SQL
	return $table;
}

# The copy of the phone in a new row; a foreign key does the rest.
sub copied_phone
{
	return <<'SQL';
CREATE OR REPLACE FUNCTION copy_phone() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
	SELECT phone INTO NEW.phone FROM people WHERE id = NEW.person FOR KEY SHARE;
	RETURN NEW;
END $$;
CREATE TRIGGER copy_phone BEFORE INSERT OR UPDATE OF person ON customers FOR EACH ROW EXECUTE FUNCTION copy_phone();
SQL
}

sub partitions
{
	my ($columns) = @_;
	my $other = join ', ', map { "$_ $columns->{$_}" . (/^(?:k|region)$/ ? ' NOT NULL' : '') } shuffle(keys %$columns);

	return "CREATE TABLE one PARTITION OF customers FOR VALUES IN (0);"
	  . "CREATE TABLE two ($other, gone int); ALTER TABLE two DROP gone; ALTER TABLE customers ATTACH PARTITION two FOR VALUES IN (1);";
}

# Creates the triggers, or creates them anew.
sub triggers
{
	my ($table, $server) = @_;
	my $function = "EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags', 'fields', 'waba', '$server')";
	my $touch = join('', map { "DROP TRIGGER IF EXISTS $_ ON customers;\n" } qw(touch t t_INSERT t_UPDATE t_DELETE)) . <<'SQL';
CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO touched VALUES (coalesce(NEW.k, OLD.k));
	RETURN NULL;
END $$;
CREATE TRIGGER touch AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW EXECUTE FUNCTION touch();
SQL

	return $touch . "CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW $function;\n"
	  if $table->{level} eq 'row';
	return $touch . 'CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON customers'
	  . " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW $function;\n"
	  if $table->{level} eq 'deferred';
	return $touch . join '', map { "CREATE TRIGGER t_$_->[0] AFTER $_->[0] ON customers REFERENCING $_->[1] FOR EACH STATEMENT $function;\n" }
	  [ INSERT => 'NEW TABLE AS new' ], [ UPDATE => 'OLD TABLE AS old NEW TABLE AS new' ], [ DELETE => 'OLD TABLE AS old' ];
}

# The table gets another owner, or its triggers another server; or neither.
sub definition
{
	my ($table) = @_;

	return pick('', new_owner() . "\n", triggers($table, pick(@servers)));
}

sub new_owner { return 'ALTER TABLE customers OWNER TO ' . pick(@owners) . ';'; }

# A transaction, and the queries for the state after it.
sub transaction
{
	my ($table) = @_;
	my @open;
	my $script = "TRUNCATE touched;\nBEGIN;\n";
	my $nsavepoints = 0;

	foreach (1 .. 1 + int rand 8)
	{
		my $dice = rand;

		if ($dice < 0.12)
		{
			push @open, 's' . $nsavepoints++;
			$script .= "SAVEPOINT $open[-1];\n";
		}
		elsif ($dice < 0.24 && @open)
		{
			my $i = int rand @open;
			$script .= "ROLLBACK TO $open[$i];\n";
			$#open = $i;
		}
		elsif ($dice < 0.30 && @open)
		{
			my $i = int rand @open;
			$script .= "RELEASE $open[$i];\n";
			$#open = $i - 1;
		}
		elsif ($dice < 0.34 && $table->{level} ne 'deferred') { $script .= new_owner() . "\n"; }
		elsif ($dice < 0.40)
		{
			$script .= "DO \$\$ BEGIN " . change($table) . ' ' . (rand() < 0.5 ? 'RAISE division_by_zero; ' : '')
			  . "EXCEPTION WHEN division_by_zero THEN NULL; END \$\$;\n";
		}
		else { $script .= change($table) . "\n"; }
	}
	$script .= (rand() < 0.15 ? 'ROLLBACK' : 'COMMIT') . ";\n$table->{state};\n";
	return $script . "SELECT coalesce(jsonb_object_agg(k, n), '{}') FROM (SELECT k, count(*) AS n FROM touched GROUP BY k) AS t;\n";
}

sub change
{
	my ($table) = @_;
	my ($k, $l) = map { 1 + int rand $table->{nrows} + 1 } 1 .. 2;
	my $which = pick("k = $k", "k IN ($k, $l)", "k = $k", 'true');

	my $phone = $table->{phone};
	my $value = $phone eq 'phone' ? quote(pick(@phones)) : person();
	my $columns = "k, id, region, $phone, waba, tags, fields";

	return change_of_people() if $phone eq 'person' && rand() < 0.3;
	return pick(
		"UPDATE customers SET $phone = $value WHERE $which;",
		"UPDATE customers SET tags = " . some($table, 'tags') . " WHERE $which;",
		"UPDATE customers SET fields = " . some($table, 'fields') . ", tags = " . some($table, 'tags') . " WHERE $which;",
		"UPDATE customers SET waba = " . quote(pick(@wabas)) . " WHERE $which;",
		"UPDATE customers SET $phone = CASE k WHEN $k THEN (SELECT $phone FROM customers WHERE k = $l LIMIT 1)"
		  . " ELSE (SELECT $phone FROM customers WHERE k = $k LIMIT 1) END WHERE k IN ($k, $l);",
		"UPDATE customers SET id = id + 1;",
		($phone eq 'phone' ? ("UPDATE customers SET phone = ltrim(phone, '+') WHERE $which;",
			"UPDATE customers SET phone = '+' || ltrim(phone, '+') WHERE $which;") : ()),
		"UPDATE customers SET region = 1 - region WHERE $which;",
		"UPDATE customers SET region = 1 - region, tags = " . some($table, 'tags') . " WHERE $which;",
		"DELETE FROM customers WHERE $which;",
		"DELETE FROM customers WHERE k = $k; INSERT INTO customers ($columns) VALUES " . values_of($table, $k) . ';',
		"INSERT INTO customers ($columns) SELECT * FROM (VALUES " . values_of($table, $k)
		  . ") AS v WHERE NOT EXISTS (SELECT FROM customers WHERE k = $k);",
		($table->{keyless} ? () : "INSERT INTO customers ($columns) VALUES " . values_of($table, $k)
			  . " ON CONFLICT (k, region) DO UPDATE SET $phone = EXCLUDED.$phone, tags = EXCLUDED.tags, fields = EXCLUDED.fields;"),
		"MERGE INTO customers USING (VALUES " . join(', ', map { values_of($table, $_) } $k, $k + 1) . ") AS s ($columns)"
		  . ' ON customers.k = s.k AND customers.region = s.region'
		  . pick('', " WHEN MATCHED AND s.k = $k THEN DELETE")
		  . " WHEN MATCHED THEN UPDATE SET $phone = s.$phone, tags = s.tags"
		  . " WHEN NOT MATCHED THEN INSERT ($columns) VALUES (s.k, s.id, s.region, s.$phone, s.waba, s.tags, s.fields);");
}

# Of the other table. Its last row is never deleted.
sub change_of_people
{
	my ($person, $other) = map { 1 + int rand 3 } 1 .. 2;
	my $mortal = 1 + int rand 2;

	return pick(
		"UPDATE people SET phone = " . phone_of_person() . " WHERE id = $person;",
		"UPDATE people SET phone = " . phone_of_person() . ';',
		"UPDATE people SET phone = ltrim(phone, '+');",
		"UPDATE people SET phone = p.phone FROM people AS p WHERE p.id = 1 + people.id % 3;",
		"UPDATE people SET phone = p.phone FROM people AS p WHERE people.id IN ($person, $other) AND p.id = $person + $other - people.id;",
		"DELETE FROM people WHERE id = $mortal;",
		"DELETE FROM people WHERE id < 3;",
		"DELETE FROM people WHERE id = $mortal; INSERT INTO people VALUES ($mortal, " . phone_of_person() . ');',
		"INSERT INTO people VALUES ($mortal, " . phone_of_person() . ') ON CONFLICT DO NOTHING;');
}

sub phone_of_person { return quote(pick(@phones) // ''); }

# SQL for a row of the other table that exists.
sub person { return 'coalesce((SELECT id FROM people WHERE id = ' . pick(1, 2) . '), 3)'; }

sub values_of
{
	my ($table, $k) = @_;

	# There is one row of each number, in whichever partition.
	return "($k, $k, coalesce((SELECT region FROM customers WHERE k = $k), " . int(rand 2) . '), ' . ($table->{phone} eq 'phone' ? quote(pick(@phones)) . '::text' : person()) . ', ' . quote(pick(@wabas)) . '::varchar, '
	  . some($table, 'tags') . ', ' . some($table, 'fields') . ')';
}

# SQL for some names, none, or NULL.
sub some
{
	my ($table, $column) = @_;
	my $type = $table->{$column};

	return "NULL::$type->[0]" if rand() < 0.05;
	return $type->[1]->(grep { rand() < 0.5 } @{ $names[ $column eq 'fields' ] }) . "::$type->[0]";
}

sub _array
{
	my ($type, @names) = @_;

	return 'ARRAY[' . join(', ', map { quote($_) } @names) . "]::${type}[]";
}

sub pick { return $_[ int rand @_ ]; }

sub shuffle
{
	my @left = sort @_;

	return map { splice @left, int rand @left, 1 } 1 .. @left;
}

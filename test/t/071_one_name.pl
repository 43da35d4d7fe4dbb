
# Tables that have a row for each name: the trigger at both levels, the types of the
# column, and tables whose phone stands in another table. Also names in jsonb.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(conf => "wal_level = logical\nmax_wal_senders = 4\nmax_replication_slots = 4\n");

my $function = 'EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger';
my ($a, $b) = map { "91987654321$_" } 0 .. 1;

# What waits, as "PHONE {TAGS} {FIELDS}; ...".
sub queued
{
	return $calls->sql(q{SELECT string_agg(concat_ws(' ', phone, tags, fields), '; ' ORDER BY phone)
		FROM (SELECT ltrim(phone, '+') AS phone, array_remove(array_agg(DISTINCT tag ORDER BY tag), NULL) AS tags,
				array_remove(array_agg(DISTINCT field ORDER BY field), NULL) AS fields
			FROM dt_queue LEFT JOIN LATERAL unnest(tags, fields) AS n (tag, field) ON true GROUP BY 1) AS q});
}

sub clear_queue { return $calls->sql('TRUNCATE dt_waiting, dt_settled'); }

sub triggers
{
	my ($level, $table, $arguments) = @_;
	my %tables = (INSERT => 'NEW TABLE AS new', UPDATE => 'OLD TABLE AS old NEW TABLE AS new', DELETE => 'OLD TABLE AS old');

	return "CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON $table FOR EACH ROW $function($arguments);" if $level eq 'row';
	return join '', map { "CREATE TRIGGER $_ AFTER $_ ON $table REFERENCING $tables{$_} FOR EACH STATEMENT $function($arguments);" } sort keys %tables;
}

# A table with these rows, which nothing waits for.
sub labels
{
	my ($level, $definition, $arguments, $rows) = @_;

	$calls->sql("SET client_min_messages = warning; DROP TABLE IF EXISTS labels; CREATE TABLE labels ($definition;"
		  . ($rows ? "INSERT INTO labels VALUES $rows;" : '') . triggers($level, 'labels', $arguments));
	clear_queue();
	return;
}

# Runs statements on a new table of phones and tags, and tests what waits then.
sub changed
{
	my ($level, $name, $statements, $expected, $rows) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	labels($level, 'phone text, tag text, PRIMARY KEY (phone, tag))', "'phone', 'tag'",
		$rows // "('$a', 'lead'), ('$a', 'vip'), ('$b', 'lead')");
	$calls->sql($statements);
	return is(queued(), $expected, "$level: $name");
}

sub changes
{
	my ($level) = @_;
	my $delete = "DELETE FROM labels WHERE phone = '$a' AND tag = 'lead';";
	my $insert = "INSERT INTO labels VALUES ('$a', 'lead');";

	changed($level, 'INSERT removes nothing', "INSERT INTO labels VALUES ('$a', 'new')", '');
	changed($level, 'DELETE removes the name', $delete, "$a {lead} {}");
	changed($level, 'DELETE of several rows', 'DELETE FROM labels', "$a {lead,vip} {}; $b {lead} {}");
	changed($level, 'an UPDATE that changes nothing', 'UPDATE labels SET tag = tag', '');
	changed($level, 'an UPDATE of the name removes the old one', "UPDATE labels SET tag = 'new' WHERE tag = 'vip'", "$a {vip} {}");
	changed($level, 'and keeps the new one', "DELETE FROM labels WHERE tag = 'lead'; UPDATE labels SET tag = 'lead' WHERE tag = 'vip'",
		"$a {vip} {}; $b {lead} {}");
	changed($level, 'an UPDATE of the phone', "UPDATE labels SET phone = '$b' WHERE tag = 'vip'", "$a {vip} {}");
	changed($level, 'a leading + makes no other phone', "UPDATE labels SET phone = '+' || phone", '');

	# One transaction, in either order, and two.
	changed($level, 'a row that is deleted and inserted again', "BEGIN; $delete $insert COMMIT", '');
	changed($level, 'in two transactions', "$delete $insert", '');
	changed($level, 'a name that another row gains first', "BEGIN; INSERT INTO labels VALUES ('+$a', 'lead'); $delete COMMIT", '');
	changed($level, 'all rows are replaced', "BEGIN; DELETE FROM labels; INSERT INTO labels VALUES ('$a', 'vip'), ('$b', 'lead'); COMMIT",
		"$a {lead} {}");
	changed($level, 'and the one that was left out comes back', "BEGIN; DELETE FROM labels; INSERT INTO labels VALUES ('$a', 'vip'); COMMIT; $insert", "$b {lead} {}");
	changed($level, 'names that change places',
		"BEGIN; UPDATE labels SET tag = 'x' WHERE phone = '$a' AND tag = 'lead'; UPDATE labels SET tag = 'lead' WHERE tag = 'vip';"
		  . "UPDATE labels SET tag = 'vip' WHERE tag = 'x'; COMMIT", '');
	changed($level, 'a savepoint that is rolled back', "BEGIN; SAVEPOINT s; $delete ROLLBACK TO s; DELETE FROM labels WHERE tag = 'vip'; COMMIT", "$a {vip} {}");
	changed($level, 'a gain that a savepoint rolled back', "BEGIN; SAVEPOINT s; INSERT INTO labels VALUES ('+$a', 'lead'); ROLLBACK TO s; $delete COMMIT",
		"$a {lead} {}");
	changed($level, 'ON CONFLICT', "$delete INSERT INTO labels VALUES ('$a', 'lead'), ('$a', 'vip') ON CONFLICT DO NOTHING", '');

	# Two rows have the name. The one that is not touched does not count.
	my $twice = "('$a', 'lead'), ('+$a', 'lead')";
	changed($level, 'one of two rows with the name is deleted', "DELETE FROM labels WHERE phone = '$a'", "$a {lead} {}", $twice);
	changed($level, 'both are', 'DELETE FROM labels', "$a {lead} {}", $twice);
	changed($level, 'the other row is changed later', "DELETE FROM labels WHERE phone = '$a'; UPDATE labels SET phone = '$a'", '', $twice);
	changed($level, 'the other row is changed by the same statement',
		"UPDATE labels SET phone = CASE WHEN phone = '$a' THEN '$b' ELSE '$a' END", '', $twice) if $level eq 'statement';

	# No key: of rows that are equal, it is known how many have gained the name.
	labels($level, 'phone text, tag text)', "'phone', 'tag'");
	$calls->sql("BEGIN; INSERT INTO labels SELECT '$a', 'lead' FROM generate_series(1, 2);"
		  . 'DELETE FROM labels WHERE ctid = (SELECT min(ctid) FROM labels); COMMIT');
	is(queued(), '', "$level: one of two new rows without a key is deleted");
	$calls->sql('DELETE FROM labels');
	is(queued(), "$a {lead} {}", "$level: and the other one");

	# A table of tags and custom fields, told apart by a column.
	labels($level, "phone text, kind text, name text, PRIMARY KEY (phone, kind, name),"
		  . "tag text GENERATED ALWAYS AS (CASE kind WHEN 'tag' THEN name END) STORED,"
		  . "field text GENERATED ALWAYS AS (CASE kind WHEN 'field' THEN name END) STORED)",
		"'phone', 'tag', 'field'", "('$a', 'tag', 'lead'), ('$a', 'field', 'lead'), ('$a', 'note', 'lead'), ('$a', 'field', 'plan')");
	$calls->sql("DELETE FROM labels WHERE kind = 'field'");
	is(queued(), "$a {} {lead,plan}", "$level: a custom field is no tag");
	$calls->sql("DELETE FROM labels WHERE kind = 'note'; UPDATE labels SET kind = 'field'");
	is(queued(), "$a {lead} {plan}", "$level: a tag becomes a custom field");

	# Rows that are not deleted, but marked.
	labels($level, "id int PRIMARY KEY, phone text, tag text, ended date,"
		  . "live_tag text GENERATED ALWAYS AS (CASE WHEN ended IS NULL THEN tag END) STORED)",
		"'phone', 'live_tag'", "(1, '$a', 'lead', NULL), (2, '$a', 'vip', '2026-01-01')");
	$calls->sql("UPDATE labels SET ended = '2026-11-27' WHERE id = 1; DELETE FROM labels WHERE id = 2");
	is(queued(), "$a {lead} {}", "$level: a row that is marked as ended");
	$calls->sql("UPDATE labels SET ended = NULL");
	is(queued(), '', "$level: and is not any more");
	return;
}

# Each type that the column may have, with values that are no name.
sub types
{
	my %types = (text => '', varchar => '', 'char(8)' => '   ', name => '', citext => '', word => '');

	$calls->sql('CREATE EXTENSION citext; CREATE DOMAIN word AS varchar');
	foreach my $type (sort keys %types)
	{
		labels('row', "id int, phone text, tag $type, field $type)", "'phone', 'tag', 'field'",
			"(1, '$a', 'lead', 'plan'), (2, '$a', '$types{$type}', NULL), (3, '$b', NULL, '$types{$type}'), (4, NULL, 'lead', 'plan')");
		$calls->sql('DELETE FROM labels');
		is(queued(), "$a {lead} {plan}", "a column of type $type");
	}
	labels('row', 'phone text, tag text)', "'phone', 'tag'", "('$a', 'lead, vip')");
	$calls->sql('DELETE FROM labels');
	is($calls->sql('SELECT cardinality(tags), tags[1] FROM dt_queue'), '1|lead, vip', 'a comma is part of the name');

	labels('row', 'phone text, tag text)', "'phone', 'tag'", "('98765 43210', 'lead'), ('$a', repeat('x', 2000000))");
	$calls->sql('DELETE FROM labels');
	is($calls->sql("SELECT string_agg(state, ' ') FROM dt_history"), 'failed failed', 'what cannot be sent goes into the history');
	is(queued(), '', 'and does not wait');

	# A long value out of line, which an UPDATE leaves where it is.
	labels('row', 'id int, phone text, tag text)', "'phone', 'tag'", "(1, '$a', repeat('x', 9000))");
	$calls->sql('UPDATE labels SET id = 2');
	is(queued(), '', 'a long name that is not changed');
	$calls->sql("UPDATE labels SET tag = 'x'");
	is($calls->sql('SELECT length(tags[1]) FROM dt_queue'), '9000', 'and is');
	return;
}

# Names in jsonb that is no array.
sub names_in_jsonb
{
	my %tags = (
		'{"lead": true, "vip": 1, "a": false, "b": null, "c": {}, "": true, "d": "", "e": [true]}' => '{c,d,e,lead,vip}',
		'"lead"' => '{lead}', '""' => '', 'true' => '', '3' => '', 'null' => '', '{}' => '', '{"lead": false}' => '',
		'["lead", {"vip": true}, ["x"], false, null, 3, ""]' => '{lead}');

	foreach my $value (sort keys %tags)
	{
		labels('row', 'phone text, tags jsonb)', "'phone', 'tags'", "('$a', '$value')");
		$calls->sql('DELETE FROM labels');
		is(queued(), $tags{$value} && "$a $tags{$value} {}", "tags: $value");
	}
	labels('row', 'phone text, fields jsonb)', "'phone', '', 'fields'", qq{('$a', '{"plan": null, "city": false, "": 1}'), ('$b', '"plan"')});
	$calls->sql('DELETE FROM labels');
	is(queued(), "$a {} {city,plan}; $b {} {plan}", 'custom fields: a key counts whatever its value is');
	foreach my $level (qw(row statement))
	{
		labels($level, 'phone text, tags jsonb)', "'phone', 'tags'", qq{('$a', '{"lead": true, "vip": true}')});
		$calls->sql(q{UPDATE labels SET tags = '{"lead": false, "vip": 1}'});
		is(queued(), "$a {lead} {}", "$level: a tag whose value becomes false is lost");
		$calls->sql(q{UPDATE labels SET tags = '{"lead": true}'});
		is(queued(), "$a {vip} {}", "$level: and comes back");
	}
	return;
}

sub partitions
{
	foreach my $level (qw(row statement))
	{
		labels($level, 'tag text, phone text, region int, PRIMARY KEY (phone, tag, region)) PARTITION BY LIST (region);'
			  . 'CREATE TABLE one PARTITION OF labels FOR VALUES IN (1);'
			  . 'CREATE TABLE two (region int NOT NULL, gone int, phone text NOT NULL, tag text NOT NULL); ALTER TABLE two DROP gone;'
			  . 'ALTER TABLE labels ATTACH PARTITION two FOR VALUES IN (2)', "'phone', 'tag'",
			"('lead', '$a', 1), ('vip', '$a', 2)");
		$calls->sql('UPDATE labels SET region = 3 - region');
		is(queued(), '', "$level: rows that move to another partition lose nothing");
		$calls->sql("UPDATE labels SET region = 3 - region, tag = 'new' WHERE tag = 'vip'");
		is(queued(), "$a {vip} {}", "$level: but for the name that is changed");
		$calls->sql('DELETE FROM labels');
		is(queued(), "$a {lead,new,vip} {}", "$level: rows of both partitions are deleted");
	}
	return;
}

# Changes that logical replication applies.
sub replicated
{
	my $definition = 'phone text, tag text, PRIMARY KEY (phone, tag))';

	$calls->sql('CREATE DATABASE publisher');
	$calls->sql("CREATE TABLE labels ($definition; CREATE PUBLICATION p FOR TABLE labels;"
		  . "SELECT pg_create_logical_replication_slot('s', 'pgoutput')", database => 'publisher');
	labels('row', $definition, "'phone', 'tag'");
	$calls->sql('ALTER TABLE labels ENABLE ALWAYS TRIGGER t');
	$calls->sql('CREATE SUBSCRIPTION s CONNECTION ' . quote($node->connstr('publisher')) . ' PUBLICATION p WITH (create_slot = false)');
	eventually(sub { $calls->sql("SELECT string_agg(srsubstate, '') FROM pg_subscription_rel") eq 'r' }, 'the tables are synchronized');
	$calls->sql("INSERT INTO labels VALUES ('$a', 'lead'), ('$a', 'vip'), ('$b', 'lead');"
		  . "DELETE FROM labels WHERE phone = '$b'; UPDATE labels SET tag = 'new' WHERE tag = 'vip';"
		  . "BEGIN; DELETE FROM labels WHERE tag = 'lead'; INSERT INTO labels VALUES ('$a', 'lead'), ('$a', 'last'); COMMIT", database => 'publisher');
	eventually(sub { $calls->sql("SELECT count(*) FROM labels WHERE tag = 'last'") eq '1' }, 'all is replicated');
	is(queued(), "$a {vip} {}; $b {lead} {}", 'what replication applies');
	clear_queue();
	$calls->sql("DELETE FROM labels WHERE tag = 'last'", database => 'publisher');
	eventually(sub { queued() eq "$a {last} {}" }, 'a row that replication deletes');
	$calls->sql('DROP SUBSCRIPTION s');
	return;
}

# The phone stands in another table: the table of tags has a copy, which a foreign key
# keeps up to date. The documentation shows this.
sub phone_elsewhere
{
	my ($level) = @_;

	$calls->sql("SET client_min_messages = warning; DROP TABLE IF EXISTS labels, people;" . <<'SQL' . triggers($level, 'labels', "'phone', 'tag'"));
CREATE TABLE people (id int PRIMARY KEY, phone text NOT NULL, UNIQUE (id, phone));
CREATE TABLE labels (person int, phone text NOT NULL, tag text, PRIMARY KEY (person, tag),
	FOREIGN KEY (person, phone) REFERENCES people (id, phone) ON UPDATE CASCADE ON DELETE CASCADE);
CREATE OR REPLACE FUNCTION copy_phone() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
	SELECT phone INTO NEW.phone FROM people WHERE id = NEW.person FOR KEY SHARE;
	RETURN NEW;
END $$;
REVOKE EXECUTE ON FUNCTION copy_phone FROM PUBLIC;
CREATE TRIGGER copy_phone BEFORE INSERT OR UPDATE OF person ON labels FOR EACH ROW EXECUTE FUNCTION copy_phone();
SQL
	$calls->sql("INSERT INTO people VALUES (1, '$a'), (2, '$b'), (3, '');"
		  . "INSERT INTO labels (person, tag) VALUES (1, 'lead'), (1, 'vip'), (2, 'lead'), (3, 'lead')");
	clear_queue();
	return;
}

sub phone_changes
{
	my ($level) = @_;
	my $tags = "INSERT INTO labels (person, tag) VALUES (1, 'lead'), (1, 'vip');";
	my @cases = (
		[ 'a row is deleted', "DELETE FROM labels WHERE tag = 'vip'", "$a {vip} {}" ],
		[ 'and inserted again', "DELETE FROM labels WHERE tag = 'vip'; INSERT INTO labels (person, tag) VALUES (1, 'vip')", '' ],
		[ 'a customer is deleted', 'DELETE FROM people WHERE id = 1', "$a {lead,vip} {}" ],
		[ 'several are', 'DELETE FROM people', "$a {lead,vip} {}; $b {lead} {}" ],
		[ 'a customer is deleted and inserted again', "BEGIN; DELETE FROM people WHERE id = 1; INSERT INTO people VALUES (1, '$a'); $tags COMMIT", '' ],
		[ 'under another id', "BEGIN; DELETE FROM people WHERE id = 1; INSERT INTO people VALUES (4, '$a');"
			  . "INSERT INTO labels (person, tag) VALUES (4, 'lead'); COMMIT", "$a {vip} {}" ],
		[ 'a customer gets another phone', "UPDATE people SET phone = '919876543219' WHERE id = 1", "$a {lead,vip} {}" ],
		[ 'a phone changes and changes back', "BEGIN; UPDATE people SET phone = '919876543219' WHERE id = 1; UPDATE people SET phone = '$a' WHERE id = 1; COMMIT", '' ],
		[ 'customers swap their phones', "UPDATE people SET phone = CASE id WHEN 1 THEN '$b' ELSE '$a' END WHERE id < 3", "$a {vip} {}" ],
		[ 'a customer gets another id', 'UPDATE people SET id = 7 WHERE id = 1', '' ],
		[ 'a customer has no phone any more', "UPDATE people SET phone = '' WHERE id = 1", "$a {lead,vip} {}" ],
		[ 'a customer has a phone now', "UPDATE people SET phone = '$a' WHERE id = 3; DELETE FROM people WHERE id = 3", "$a {lead} {}" ],
		[ 'a tag is given to another customer', "UPDATE labels SET person = 2 WHERE tag = 'vip'", "$a {vip} {}" ],
		[ 'a customer is deleted and all is rolled back', 'BEGIN; DELETE FROM people; ROLLBACK', '' ]);

	foreach my $case (@cases)
	{
		phone_elsewhere($level);
		$calls->sql($case->[1]);
		is(queued(), $case->[2], "$level, the phone in another table: $case->[0]");
	}
	phone_elsewhere($level);
	is(sqlstate_of("UPDATE labels SET phone = '$b' WHERE person = 1"), '23503', "$level: nobody can change the copy alone");
	is(sqlstate_of("INSERT INTO labels (person, tag) VALUES (9, 'lead')"), '23502', "$level: no tag without a customer");

	# A role that may only write the table of tags.
	$calls->sql('GRANT INSERT, DELETE, SELECT ON labels TO app');
	as('app', "INSERT INTO labels (person, tag) VALUES (1, 'new'); DELETE FROM labels WHERE tag = 'new'");
	is(queued(), "$a {new} {}", "$level: a role that may not read the table of customers");
	return;
}

# Two sessions at once: the second waits for the first, and then sees what it has done.
sub phone_changes_meanwhile
{
	my ($level) = @_;
	my $phone = "UPDATE people SET phone = '919876543219' WHERE id = 1";
	my @cases = (
		[ "INSERT INTO labels (person, tag) VALUES (1, 'new')", $phone, "$a {lead,new,vip} {}" ],
		[ $phone, "INSERT INTO labels (person, tag) VALUES (1, 'new')", "$a {lead,vip} {}" ],
		[ "DELETE FROM labels WHERE person = 1 AND tag = 'lead'", $phone, "$a {lead,vip} {}" ],
		[ $phone, "DELETE FROM labels WHERE person = 1 AND tag = 'lead'", "$a {lead,vip} {}; 919876543219 {lead} {}" ],
		[ $phone, 'DELETE FROM people WHERE id = 1', "$a {lead,vip} {}; 919876543219 {lead,vip} {}" ],
		[ "DELETE FROM labels WHERE tag = 'vip'", 'DELETE FROM people WHERE id = 1', "$a {lead,vip} {}" ]);
	my @sessions = map { $node->background_psql('postgres') } 1 .. 2;
	my $pid = $sessions[1]->query_safe('SELECT pg_backend_pid()');

	foreach my $case (@cases)
	{
		phone_elsewhere($level);
		$sessions[0]->query_safe("BEGIN; $case->[0]");
		$sessions[1]->query_until(qr/begun/, "\\echo begun\n$case->[1];\n\\echo ended\n");
		eventually(sub { $calls->sql("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $pid") eq 'Lock' }, "$level: it waits: $case->[1]");
		$sessions[0]->query_safe('COMMIT');
		$sessions[1]->query_until(qr/done/, "\\echo done\n");
		is(queued(), $case->[2], "$level: $case->[0]; meanwhile $case->[1]");
		is($calls->sql('SELECT count(*) FROM labels JOIN people ON id = person WHERE labels.phone <> people.phone'), '0', "$level: the copies are right");
	}
	$_->quit foreach @sessions;
	return;
}

make_roles();
changes($_) foreach qw(row statement);
types();
names_in_jsonb();
partitions();
phone_changes($_) foreach qw(row statement);
phone_changes_meanwhile($_) foreach qw(row statement);
replicated();
done_testing();

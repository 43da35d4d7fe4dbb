
# What messages say to whoever meets them in a session: which row of many it is, and
# a command that mends it, which is tried here.

use strict;
use warnings;
use utf8;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue();
make_roles();
my $superuser = $calls->sql('SELECT current_user');
my $switched_off = q{SELECT dt_remove_tags_custom_fields('919876543210', '{lead}')};

# What a statement in a session of its own says, with all parts of the message.
sub said
{
	my ($sql, %params) = @_;
	my $stderr;

	$node->psql($params{database} // 'postgres', $sql, stderr => \$stderr, on_error_stop => 0,
		extra_params => [ '-U', $params{role} // $superuser ]);
	utf8::decode($stderr);
	return $stderr =~ s/^psql:<stdin>:\d+: //mgr;
}

# The command of a hint that ends with it.
sub command_of
{
	my ($said) = @_;

	return $said =~ /^HINT:  [^:]*: (.*;)$/m ? $1 : "no command in: $said";
}

# A bulk statement says which of its rows was bad.
{
	my $rows = "FROM (VALUES (1, '919876543210'), (2, '0987'), (3, '919876543211')) AS c(n, phone)";

	$sb->reset;
	foreach my $function (qw(dt_remove_tags_custom_fields dt_enqueue_remove_tags_custom_fields dt_keep))
	{
		like(said("SELECT $function(phone, '{lead}') $rows"), qr/^CONTEXT:  removal for phone 0987, server "doubletick", role "\Q$superuser\E"$/m,
			"$function: which row is bad");
		like(said("SELECT $function('', '{lead}')"), qr/^CONTEXT:  removal for phone "", server /m, "$function: an empty phone");
		like(said("SELECT $function(nullif(phone, '0987'), '{lead}') $rows"), qr/^CONTEXT:  removal for phone null, server "doubletick", role "\Q$superuser\E"$/m,
			"$function: a row without a phone");
	}
	like(said("SELECT dt_payload(phone, CASE n WHEN 2 THEN '{}' ELSE '{lead}' END::text[]) FROM (VALUES (1, '919876543210'), (2, '919876543211')) AS c(n, phone)"),
		qr/^ERROR:  nothing to remove\n.*^CONTEXT:  removal for phone 919876543211$/ms, 'dt_payload: which row has no names');
	like(said("SELECT dt_remove_tags_custom_fields('919876543210', '{lead,NULL}')"),
		qr/^HINT:  Leave nulls out: array_remove\(tags, NULL\)\n.*^CONTEXT:  removal for phone 919876543210,/ms, 'a null among tags: which row');
	$sb->rule('919876543211', { status => 400 });
	like(said("SELECT dt_remove_tags_custom_fields(phone, '{lead}') FROM (VALUES ('919876543210'), ('919876543211')) AS c(phone)"),
		qr/^ERROR:  request was refused with HTTP status 400.*^CONTEXT:  removal for phone 919876543211, server "doubletick"/ms, 'a refusal: which row');
	my $phone = '9' x 100;
	like(said("SELECT dt_remove_tags_custom_fields(E'$phone\\nx', '{lead}')"), qr/^CONTEXT:  removal for phone 9{64}, server/m, 'a long phone is cut');
	$sb->reset;
}

# dt_retry() of what a trigger entered as failed.
{
	fresh();
	$calls->sql(q{INSERT INTO came_back VALUES ('0987', '{lead}'); DELETE FROM came_back;
		CREATE TABLE lost (phone text, tags text[]); ALTER TABLE lost OWNER TO app;
		CREATE TRIGGER lost AFTER INSERT OR DELETE ON lost FOR EACH ROW
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
		INSERT INTO lost VALUES ('0988', '{lead}')});
	$calls->sql('DELETE FROM lost');
	like(said("\\set SHOW_CONTEXT always\nSELECT dt_retry(id) FROM dt_history"),
		qr/^NOTICE:  removal \d+ is not put back: phone is not [^\n]*: "0988"\nHINT:  Write [^\n]*\nCONTEXT:  removal for phone 0988, server "doubletick", role "app"$/m,
		'dt_retry: which row');
	$calls->sql('DROP TABLE lost');
}

# An error or a WARNING of a trigger names it, whatever it is about.
{
	$calls->sql(q{CREATE TABLE customers (phone text, tags text[]);
		CREATE TRIGGER follow AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tag')});
	my $said = said(q{INSERT INTO customers VALUES ('919876543210', '{lead}')});
	like($said, qr/^DETAIL:  Trigger "follow" names it as the column of the tags\.$/m, 'a trigger: which column');
	like($said, qr/^HINT:  If it was renamed, create the trigger anew with the new name\. Its arguments name, in this order, the columns of the phone, /m, 'a trigger: what its arguments are');
	like($said, qr/^CONTEXT:  trigger "follow" of table "customers"$/m, 'a trigger: which one');
	$calls->sql(q{DROP TRIGGER follow ON customers;
		CREATE TRIGGER follow AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW
			EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags');
		INSERT INTO customers VALUES ('919876543210', '{lead}')});
	like(said('ALTER TABLE dt_waiting ADD COLUMN extra int; DELETE FROM customers'),
		qr/^ERROR:  .*^CONTEXT:  trigger "follow" of table "customers"$/ms, 'a trigger: an error about something else');
	$calls->sql('ALTER TABLE dt_waiting DROP COLUMN extra');
	like(said('DO $$ BEGIN DELETE FROM customers; RAISE EXCEPTION \'ours\'; END $$'), qr/^ERROR:  ours\nCONTEXT:  PL.pgSQL[^\n]*\Z/, 'a trigger: none of what comes after it');
	$calls->sql('DROP TABLE customers');
}

# A wrong key: the command for the role's own mapping, for that of PUBLIC, and for a file.
{
	my $refused = sub { return said(q{SELECT dt_remove_tags_custom_fields('919876543210', '{lead}')}, role => 'app') };
	my $works = sub { return $calls->sql(q{SET ROLE app; SELECT dt_remove_tags_custom_fields('919876543210', '{lead}') IS NOT NULL}) };

	$calls->sql('GRANT EXECUTE ON FUNCTION dt_remove_tags_custom_fields TO app');
	$calls->sql("ALTER USER MAPPING FOR app SERVER doubletick OPTIONS (SET api_key 'key_wrong')");
	my $command = command_of($refused->());
	is($command, q{ALTER USER MAPPING FOR app SERVER doubletick OPTIONS (SET api_key '...');}, '401: the command for a role');
	$calls->sql($command =~ s/\.\.\./key_app/r);
	is($works->(), 't', '401: it mends the key');

	$calls->sql("DROP USER MAPPING FOR app SERVER doubletick; CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key 'key_wrong')");
	$command = command_of($refused->());
	is($command, q{ALTER USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (SET api_key '...');}, '401: the command for PUBLIC');
	$calls->sql($command =~ s/\.\.\./key_app/r);
	is($works->(), 't', '401: it mends the key of all');

	my $file = $node->basedir . '/api_key';
	append_to_file($file, "key_wrong\n");
	chmod 0600, $file;
	$calls->sql("DROP USER MAPPING FOR PUBLIC SERVER doubletick; CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key_file '$file')");
	like($refused->(), qr/^HINT:  Put the right API key into the file that the user mapping for app on server doubletick names\.$/m, '401: a key file');

	# The drainer's hold says the same.
	fresh();
	my $id = $calls->sql("SET SESSION AUTHORIZATION app; SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}')");
	like(drain(), qr/^WARNING:  requests of role "app" to server "doubletick" are held: .*HTTP status 401.*^HINT:  Put the right API key into the file that/ms, '401: the hold says how to mend it');
	is($calls->sql("SELECT dt_cancel($id)"), 'f', '401: the removal was tried');

	# The mapping is dropped while the request is out.
	fresh();
	$calls->sql("DROP USER MAPPING FOR app SERVER doubletick; CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key 'key_app')");
	$sb->hold('919876543210', { status => 401 });
	$id = $calls->sql("SET SESSION AUTHORIZATION app; SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}')");
	my $drain = start_drain();
	$sb->await_held(1);
	$calls->sql('DROP USER MAPPING FOR app SERVER doubletick');
	$sb->reset;
	my $messages = await_drain($drain);
	like($messages, qr/ are held: role "app" has no user mapping/, '401: without a mapping');
	$calls->sql("CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key 'key_app')");
}

# Where doubletick.enabled was switched off: the command undoes it.
{
	my @places = (
		[ 'the session', 'SET doubletick.enabled = off', 'SET doubletick.enabled = on;' ],
		[ 'a session that has the library', "LOAD 'doubletick'; SET doubletick.enabled = off", 'SET doubletick.enabled = on;' ],
		[ 'the role in the database', "ALTER ROLE \"$superuser\" IN DATABASE postgres SET doubletick.enabled = off", qr/^ALTER ROLE \S+ IN DATABASE postgres RESET doubletick\.enabled;$/ ],
		[ 'the role', "ALTER ROLE \"$superuser\" SET doubletick.enabled = off", qr/^ALTER ROLE \S+ RESET doubletick\.enabled;$/ ],
		[ 'the database', 'ALTER DATABASE postgres SET doubletick.enabled = off', 'ALTER DATABASE postgres RESET doubletick.enabled;' ],
		[ 'all roles', 'ALTER ROLE ALL SET doubletick.enabled = off', 'ALTER ROLE ALL RESET doubletick.enabled;' ],
		[ 'the configuration', "LOAD 'doubletick';\nALTER SYSTEM SET doubletick.enabled = off;\nSELECT pg_reload_conf();", 'ALTER SYSTEM SET doubletick.enabled = on; SELECT pg_reload_conf();' ]);

	foreach my $place (@places)
	{
		my ($name, $off, $expected) = @$place;
		my $here = $name =~ /session/;
		my $before = $here ? "$off;" : '';
		my $said = '';

		# Settings of something else are no reason.
		$calls->sql("ALTER DATABASE postgres SET work_mem = '5MB'") unless $here;
		$calls->sql($off) unless $here;
		eventually(sub { ($said = said("$before $switched_off")) =~ /^ERROR:  requests are switched off/m }, "off for $name: nothing is sent");
		my $command = command_of($said);
		like($command, ref $expected ? $expected : qr/^\Q$expected\E$/, "off for $name: the command");
		if ($here)
		{
			like(said("$before $command $switched_off"), qr/\A\Z/, "off for $name: it switches requests on");
			next;
		}
		# Each by itself, as psql sends them, where the hint was shown.
		$calls->sql("LOAD 'doubletick';\n" . $command =~ s/(?<=;) /\n/r);
		eventually(sub { said($switched_off) eq '' }, "off for $name: it switches requests on");
	}
	$calls->sql('ALTER DATABASE postgres RESET work_mem');
	off_on_the_command_line();
}

# ALTER SYSTEM would not help where the server's command line has the setting.
sub off_on_the_command_line
{
	my @pg_ctl = ('pg_ctl', '-s', '-w', '-D', $node->data_dir, '-l', $node->logfile);
	my $said;

	$node->stop;
	system_or_bail(@pg_ctl, '-o', '-c doubletick.enabled=off', 'start');
	$said = said($switched_off);
	my ($command) = $said =~ /^HINT:  Switch them on again: (ALTER DATABASE postgres SET doubletick\.enabled = on; -- .*command line)$/m;
	ok($command, 'off on the command line: nothing is sent, and the hint says what helps') or diag($said);
	is(said($command // ''), '', 'off on the command line: the command can be pasted');
	is(said($switched_off), '', 'off on the command line: it switches requests on');
	said('ALTER DATABASE postgres RESET doubletick.enabled');
	system_or_bail(@pg_ctl, '-m', 'fast', 'stop');
	$node->start;
	return;
}

# A server that does not exist: those that do, at most five.
{
	$calls->sql('CREATE DATABASE bare');
	$calls->sql('CREATE EXTENSION doubletick; CREATE FOREIGN DATA WRAPPER other; CREATE SERVER elsewhere FOREIGN DATA WRAPPER other', database => 'bare');
	my $enqueue = q{SELECT dt_enqueue_remove_tags_custom_fields('919876543210', '{lead}')};

	my $command = command_of(said($enqueue, database => 'bare'));
	is($command, 'CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick;', 'no server: the command creates it');
	$calls->sql("$command $enqueue", database => 'bare');
	my $elsewhere = "SET doubletick.server = 'DoubleTick'; $enqueue";
	like(said($elsewhere, database => 'bare'), qr/^HINT:  .*; this database has "doubletick"\.$/m, 'another name: the one that there is');
	$calls->sql("CREATE SERVER s$_ FOREIGN DATA WRAPPER doubletick", database => 'bare') foreach 1 .. 6;
	is(scalar(() = said($elsewhere, database => 'bare') =~ /"(?:s\d|doubletick)"[,.]/g), 5, 'another name: five of many');
	$calls->sql('DROP DATABASE bare');
}

# Characters that do not show, or that look like others.
{
	my %invisible = (
		"91987\x{200B}6543210" => 'U+200B (zero width space) at position 6',
		"\x{FF0B}919876543210" => 'U+FF0B (full-width plus sign) at position 1',
		"9198\x{FF17}6543210" => 'U+FF17 (full-width digit) at position 5',
		"\x{FEFF}919876543210" => 'U+FEFF (byte order mark) at position 1',
		"919876543210\x{A0}" => 'U+00A0 (no-break space) at position 13',
		"919876543210\t" => 'U+0009 (tab) at position 13',
		"91\x{E9}\x{2060}" => 'U+2060 (word joiner) at position 4');
	my %latin1 = (
		"919876543210\x{A0}" => 'U+00A0 (no-break space) at position 13',
		"\x{E9}919876543210\x{AD}" => 'U+00AD (soft hyphen) at position 14');
	my %control = ("\x{E9}919876543210\n" => 'U+000A (line feed) at position 14', "919876543210\x{E9}" => undef);
	my @databases = ([ 'UTF8', \%invisible ], [ 'SQL_ASCII', \%invisible ], [ 'LATIN1', { %latin1, %control } ], [ 'LATIN2', \%control ], [ 'EUC_JP', { "日本\t" => 'U+0009 (tab) at position 3', '日本' => undef } ]);

	local $ENV{PGCLIENTENCODING} = 'UTF8';
	foreach my $database (@databases)
	{
		my ($encoding, $phones) = @$database;
		my $name = "in_\L$encoding";

		$calls->sql("CREATE DATABASE $name TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
		$calls->sql('CREATE EXTENSION doubletick', database => $name);
		foreach my $phone (sort keys %$phones)
		{
			my $sql = "SELECT dt_payload('$phone', '{lead}')";
			my $expected = defined $phones->{$phone} ? qr/"[^"\n]*" contains \Q$phones->{$phone}\E$/ : qr/"[^"\n]*"$/;

			utf8::encode($sql);
			like((split /\n/, said($sql, database => $name))[0], qr/ERROR:  phone is not a number in international format: $expected/,
				"$encoding: " . ($phones->{$phone} // 'nothing that does not show'));
		}
		$calls->sql("DROP DATABASE $name");
	}
	# Bytes that are no UTF-8.
	$calls->sql("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'");
	$calls->sql('CREATE EXTENSION doubletick', database => 'bytes');
	local $ENV{PGCLIENTENCODING} = 'SQL_ASCII';
	like(said(q{SELECT dt_payload(E'91\xe2\t', '{lead}')}, database => 'bytes'), qr/contains U\+0009 \(tab\) at position 4$/m, 'SQL_ASCII: no UTF-8');
	$calls->sql('DROP DATABASE bytes');
}

# \df+ fits a screen: a short sentence about each function; all else is in the reference.
is($calls->sql(q{SELECT string_agg(proname, ' ') FROM pg_proc WHERE proname LIKE 'dt\_%'
	AND proname NOT LIKE 'dt\_test%' AND (length(obj_description(oid, 'pg_proc')) > 100 OR obj_description(oid, 'pg_proc') ~ '[.] ')}),
	'', 'a short sentence about each function');

done_testing;


# Text goes out as UTF-8 and comes in as UTF-8, whatever the database's encoding:
# names as they arrive, answers and messages as they come back, and what cannot
# be had in the one or the other.

use strict;
use warnings;
use utf8;

use Encode qw(decode encode);
use File::Basename qw(dirname);
use JSON::PP;
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $calls = Calls->new;
my $sb = $calls->sandbox;
my $phone = '919876543210';

# Later versions of PostgreSQL know it no more.
my @no_conversion = $calls->sql("SELECT pg_char_to_encoding('MULE_INTERNAL') >= 0") eq 't' ? 'MULE_INTERNAL' : ();

# For each encoding: names that it can hold, as a client with UTF-8 writes them;
# a name that it cannot; and the bytes that it has for the first name.
my %databases = (
	LATIN1 => { names => [ 'é', 'Größe', "\x{A0}x", 'ASCII' ], foreign => '日本', bytes => 'e9' },
	EUC_JP => { names => [ '日', '日本語', 'タグ', '、', 'ASCII' ], foreign => '😀한', bytes => 'c6fc' },
	SQL_ASCII => { names => [ 'é', '日本', '😀', 'ASCII' ], bytes => 'c3a9' },
	UTF8 => { names => [ '😀', '日本', 'é', "e\x{301}", "\x{10FFFD}", 'ASCII' ], bytes => 'f09f9880' },
	WIN1252 => { names => [ '€', '„Größe“', 'ASCII' ], foreign => '日', bytes => '80' });

# PostgreSQL has no conversion for MULE_INTERNAL, which is why it is here.
sub client_encoding { return $_[0] eq 'MULE_INTERNAL' ? 'SQL_ASCII' : 'UTF8'; }

# Runs statements in one session of a database.
sub in_database
{
	my ($encoding, @statements) = @_;

	local $ENV{PGCLIENTENCODING} = client_encoding($encoding);
	return $calls->session(@statements, { database => lc $encoding });
}

# A literal with escapes for what is not ASCII, as JSON has them.
sub escaped
{
	my ($value) = @_;

	return JSON::PP->new->ascii->canonical->encode($value);
}

sub create_databases
{
	foreach my $encoding (sort(keys %databases), @no_conversion)
	{
		my $name = lc $encoding;
		$calls->sql("CREATE DATABASE $name ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
		local $ENV{PGCLIENTENCODING} = client_encoding($encoding);
		$calls->set_up($name);
		is($calls->sql('SHOW server_encoding', database => $name), $encoding, "a database in $encoding");
	}
	return;
}

# There as UTF-8, and back in the database's encoding.
sub round_trip
{
	my ($encoding) = @_;
	my $names = $databases{$encoding}{names};

	$sb->reset;
	$sb->customer($phone, $names, $names);
	my ($got, $tried, $bytes) = in_database($encoding, removal($phone, $names, []), attempt($phone, ['none'], $names),
		"SELECT encode(convert_to(answer->>'a', getdatabaseencoding()), 'hex') FROM (SELECT 1) AS _,"
		  . " LATERAL (SELECT jsonb_build_object('a', " . quote($names->[0]) . ') AS answer) AS a');
	my ($first, $second) = @{ $sb->journal };

	is_deeply($first->{body}{tags}, $names, "$encoding: tags arrive as UTF-8");
	is_deeply($second->{body}{customFields}, $names, "$encoding: custom fields, too");
	is_deeply($got->{value}{tags}, { removed => $names, errored => [] }, "$encoding: names come back");
	is_deeply($tried->{value}{customFields}, { removed => $names, errored => [] }, "$encoding: by dt_try, too");
	is($bytes->{value}, $databases{$encoding}{bytes}, "$encoding: the test writes what it means");
	is_deeply($sb->customer_now($phone), { phone => $phone, tags => [], customFields => [] }, "$encoding: and are gone");

	my ($in_encoding) = in_database($encoding, "SELECT encode(convert_to(dt_remove_tags_custom_fields('$phone', ARRAY["
		  . quote($names->[0]) . "])->'tags'->'errored'->0->>'tag', getdatabaseencoding()), 'hex')");
	is($in_encoding->{value}, $databases{$encoding}{bytes}, "$encoding: in the database's own bytes");
	return;
}

# The API's own words.
sub messages
{
	my ($encoding) = @_;
	my ($name, @more) = @{ $databases{$encoding}{names} };

	$sb->rule($phone, { status => 422, body => { message => [ "no $name", @more ], error => $name } });
	my ($raised, $returned) = in_database($encoding, removal($phone, ['x']), attempt($phone, ['x']));
	is($raised->{sqlstate}, '22023', "$encoding: a refusal");
	is($raised->{message}, 'request was refused with HTTP status 422: ' . join('; ', "no $name", @more), "$encoding: in the API's words");
	is_deeply($raised->{detail}, { statusCode => 422, error => $name, message => [ "no $name", @more ] }, "$encoding: in DETAIL");
	is_deeply($returned->{value}, $raised->{detail}, "$encoding: by dt_try, too");

	$sb->rule($phone, { status => 400, body => { message => $name x 3000 } });
	my (undef, undef, $stderr) = $calls->node->psql(lc $encoding, "\\set VERBOSITY verbose\n" . removal($phone, ['x']));
	$stderr = decode('UTF-8', $stderr);
	like($stderr, qr/ERROR:  22023: [^\n]*: (?:\Q$name\E)+\.\.\.$/m, "$encoding: a long message is clipped between characters");
	like($stderr, qr/^DETAIL:  .*"message": "(?:\Q$name\E){3000}"/m, "$encoding: DETAIL has it whole");
	$sb->clear_rules;
	return;
}

# The same characters, as JSON may also have them.
sub escapes
{
	my ($encoding) = @_;
	my $value = { tags => $databases{$encoding}{names}, $databases{$encoding}{names}[0] => 'k' };

	$sb->rule($phone, { body => escaped($value) });
	my ($got, $tried) = in_database($encoding, removal($phone, ['x']), attempt($phone, ['x']));
	if ($encoding eq 'SQL_ASCII')
	{
		unstorable($encoding, 'escapes', $got, $tried, qr/\\u[0-9a-f]{4}/i);
	}
	else
	{
		is_deeply($got->{value}, $value, "$encoding: escapes in an answer");
		is_deeply($tried->{value}, $value, "$encoding: by dt_try, too");
	}
	$sb->rule($phone, { body => '{"a": "\u0041\u005c\"\/\n"}' });
	($got) = in_database($encoding, removal($phone, ['x']));
	is($got->{value}{a}, "A\\\"/\n", "$encoding: escapes of ASCII");
	$sb->rule($phone, { body => '{"a": "\u0000"}' });
	($got, $tried) = in_database($encoding, removal($phone, ['x']), attempt($phone, ['x']));
	unstorable($encoding, '\u0000', $got, $tried, qr/\\u0000/);
	return;
}

# Tests what an answer that the database cannot hold becomes.
sub unstorable
{
	my ($encoding, $what, $raised, $returned, $excerpt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is($raised->{sqlstate}, 'HV00M', "$encoding, $what: SQLSTATE");
	like($raised->{message}, $excerpt, "$encoding, $what: an excerpt");
	unlike($raised->{message}, qr/[^ -~]/, "$encoding, $what: in ASCII");
	is($raised->{detail}{statusCode}, 201, "$encoding, $what: statusCode");
	shape_ok($raised, "$encoding, $what");
	is_deeply($returned->{value}, $raised->{detail}, "$encoding, $what: dt_try returns the DETAIL");
	return;
}

# Characters that are not in the database's encoding.
sub foreign_characters
{
	my ($encoding) = @_;
	my $foreign = $databases{$encoding}{foreign};
	my $hex = join '', map { sprintf '\\\\x%02x', $_ } unpack 'C*', encode('UTF-8', $foreign);

	foreach my $rule ({ body => { tags => $foreign } }, { body => { $foreign => 1 } })
	{
		$sb->rule($phone, $rule);
		my @got = in_database($encoding, removal($phone, ['x']), attempt($phone, ['x']), removal($Calls::well, ['x']));
		unstorable($encoding, 'foreign characters', @got[ 0, 1 ], qr/$hex/);
		is(ref $got[2]{value}{tags}, 'HASH', "$encoding: the session goes on");
	}
	$sb->rule($phone, { body => escaped({ tags => $foreign }) });
	unstorable($encoding, 'escaped foreign characters',
		in_database($encoding, removal($phone, ['x']), attempt($phone, ['x'])), qr/\\u[0-9a-f]{4}/i);

	# Not in a subtransaction either is anything left behind that would be warned of.
	my (undef, $stdout, $stderr) = $calls->node->psql(lc $encoding,
		'BEGIN; ' . join('; ', (attempt($phone, ['x'])) x 3, attempt($Calls::well, ['x']), 'COMMIT'));
	is($stderr, '', "$encoding: no warning");
	is(scalar(() = $stdout =~ /"statusCode": 201/g), 3, "$encoding: three faults");
	like($stdout, qr/"removed": \[\]/, "$encoding: and a good answer in one transaction");

	# A refusal stays one, with what can be shown of it.
	$sb->rule($phone, { status => 400, body => { message => $foreign } });
	my ($raised, $returned) = in_database($encoding, removal($phone, ['x']), attempt($phone, ['x']));
	is($raised->{sqlstate}, '22023', "$encoding: a refusal in foreign characters");
	like($raised->{message}, qr/HTTP status 400: .*$hex/, "$encoding: is shown escaped");
	is_deeply($returned->{value}, $raised->{detail}, "$encoding: dt_try returns the DETAIL");
	is($returned->{value}{statusCode}, 400, "$encoding: with its status");
	$sb->clear_rules;
	return;
}

# Names that have no form in UTF-8 are refused before anything is sent.
sub unsendable
{
	my ($encoding, $bytes, $what) = @_;

	$sb->reset;
	foreach my $arguments ("ARRAY['x', n]", "NULL, ARRAY[n]")
	{
		my $from = "FROM (SELECT convert_from('$bytes'::bytea, getdatabaseencoding()) AS n) AS _";
		my ($raised, $returned) = in_database($encoding, "SELECT dt_remove_tags_custom_fields('$phone', $arguments) $from",
			"SELECT dt_try_remove_tags_custom_fields('$phone', $arguments) $from");
		is($raised->{sqlstate}, '22023', "$encoding, $what: SQLSTATE");
		like($raised->{message}, qr/UTF-8/, "$encoding, $what: message");
		shape_ok($raised, "$encoding, $what");
		is_deeply($returned->{value}, $raised->{detail}, "$encoding, $what: dt_try returns the DETAIL");
		is($returned->{value}{error}, 'invalid_parameter_value', "$encoding, $what: error");
	}
	is_deeply($sb->journal, [], "$encoding, $what: no request");
	my ($after) = in_database($encoding, removal($Calls::well, ['x']));
	is(ref $after->{value}{tags}, 'HASH', "$encoding, $what: others do go");
	return;
}

# A client in another encoding than its database.
sub other_client
{
	my $latin1 = encode('ISO-8859-1', 'é');
	local $ENV{PGCLIENTENCODING} = 'LATIN1';

	$sb->reset;
	$sb->customer($phone, ['é'], []);
	my $said = $calls->node->safe_psql('utf8', "SELECT dt_remove_tags_custom_fields('$phone', '{$latin1}')->'tags'->'removed'->>0");
	is($said, $latin1, 'LATIN1 client, UTF8 database: there and back');
	is($sb->journal->[0]{body}{tags}[0], 'é', 'LATIN1 client, UTF8 database: as UTF-8 between');
	return;
}

# Phones are shown when they are no good, in whatever encoding.
sub bad_phone
{
	my ($encoding) = @_;
	my $name = $databases{$encoding}{names}[0];
	my ($raised, $returned) = in_database($encoding, removal($name x 100, ['x']), attempt($name x 100, ['x']));

	is($raised->{sqlstate}, '22023', "$encoding: a bad phone");
	is_deeply($returned->{value}, $raised->{detail}, "$encoding: a bad phone by dt_try");
	return;
}

create_databases();
foreach my $encoding (sort keys %databases)
{
	round_trip($encoding);
	messages($encoding);
	escapes($encoding);
	foreign_characters($encoding) if $databases{$encoding}{foreign};
	bad_phone($encoding);
}
unsendable('SQL_ASCII', '\xe9', 'a byte that is no UTF-8');
unsendable('SQL_ASCII', '\xc3', 'a character cut off');
unsendable('SQL_ASCII', '\xeda080', 'a surrogate');
unsendable('EUC_JP', '\xa9a1', 'a character without a counterpart');
unsendable($_, '\x81e9', 'an encoding without a conversion') foreach @no_conversion;
other_client();
done_testing;

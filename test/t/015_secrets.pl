
# The API key: that our code shows it nowhere, where it is read from and which
# files are refused, and who may use which key from where.

use strict;
use warnings;

use File::Basename qw(dirname);
use File::Find qw(find);
use JSON::PP;
use POSIX qw(mkfifo);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib dirname(__FILE__);
use Calls;

my $phone = '919876543210';

# The core logs as little as it can be told to: what is left is ours.
my $conf = <<'CONF';
log_min_messages = debug5
log_statement = none
log_min_error_statement = panic
log_min_duration_statement = -1
log_error_verbosity = verbose
CONF

my $file_key = 'key_from_a_file';
my $other_key = 'key_that_came_later';
my $odd_key = 'odd"\\\\one/<key>';
my $calls = Calls->new(conf => $conf, sandbox => [ map { ('--key', $_) } 'key_sandbox', $file_key, $other_key, $odd_key ]);
my $sb = $calls->sandbox;
my $dir = PostgreSQL::Test::Utils::tempdir();
my $key_file = "$dir/api_key";

# Loads the library, which knows more of a setting than that it has a prefix.
my $load = "SELECT dt_payload('$phone', '{lead}');";

# Writes a key file, as the server's user should have it.
sub write_file
{
	my ($content, $mode) = @_;

	unlink $key_file;
	append_to_file($key_file, $content);
	chmod defined $mode ? $mode : 0600, $key_file or die "could not change the mode of \"$key_file\": $!";
	return;
}

# Runs SQL by psql, where all messages are shown, and returns what it says.
sub all_it_says
{
	my ($sql) = @_;
	my (undef, $stdout, $stderr) = $calls->node->psql('postgres',
		"SET client_min_messages = debug5;\n\\set VERBOSITY verbose\n\\set SHOW_CONTEXT always\n$sql", on_error_stop => 0);

	return ($stdout, $stderr);
}

sub log_size { return -s $calls->node->logfile; }

# Tests that a key is neither in the text nor in what was logged meanwhile.
sub is_silent
{
	my ($name, $key, $text, $offset) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	unlike($text, qr/\Q$key\E/, "$name: the client is not shown the key");
	unlike(slurp_file($calls->node->logfile, $offset), qr/\Q$key\E/, "$name: nor is the log");
	return;
}

# Calls and what they may meet, at the highest verbosity.
sub calls_are_silent
{
	my $key = $sb->key;
	my %rules = (
		success => [ undef, qr/"removed"/ ],
		refusal => [ { status => 422 }, qr/22023/ ],
		unauthorized => [ { status => 401 }, qr/28000/ ],
		'echoed key' => [ { fault => 'echo_key' }, qr/22023/ ],
		'echoed key in a page' => [ { status => 500, body => "Authorization: $key" }, qr/58000/ ],
		'broken off' => [ { fault => 'reset' }, qr/HV00M/ ],
		'not HTTP' => [ { fault => 'not_http' }, qr/HV00M/ ],
		redirect => [ { fault => 'redirect', location => "https://localhost/?$key" }, qr/HV00M/ ],
		'out of time' => [ { fault => 'hang' }, qr/HV00M/ ]);

	$calls->server('brief', timeout => '2s');
	foreach my $name (sort keys %rules)
	{
		my ($rule, $expected) = @{ $rules{$name} };
		$sb->reset;
		$sb->rule($phone, $rule) if $rule;
		my $offset = log_size();
		my ($stdout, $stderr) = all_it_says('SET doubletick.server = brief; ' . removal($phone, ['lead']) . ";\n" . attempt($phone, ['lead']));
		like("$stdout$stderr", $expected, "$name: is what happened");
		is($sb->journal->[0]{authorization}, $key, "$name: the key was sent");
		is_silent($name, $key, "$stdout$stderr", $offset);
		like(slurp_file($calls->node->logfile, $offset), qr/DEBUG: /, "$name: the log is as talkative as can be");
	}
	$sb->reset;
	return;
}

# While a request is in flight.
sub activity_is_silent
{
	my $session = $calls->node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	$sb->reset;
	$sb->rule($phone, { hold => JSON::PP::true });
	$session->query_until(qr/begun/, "\\echo begun\n" . removal($phone, ['lead']) . ";\n");
	$sb->await_held(1);
	my $activity = $calls->sql("SELECT a FROM pg_stat_activity AS a WHERE pid = $pid");
	like($activity, qr/dt_remove_tags_custom_fields/, 'pg_stat_activity shows the call');
	unlike($activity, qr/\Q@{[ $sb->key ]}\E/, 'but not the key');
	unlike(slurp_file("/proc/$pid/cmdline"), qr/\Q@{[ $sb->key ]}\E/, 'nor does the process list') if -r "/proc/$pid/cmdline";
	$sb->reset;
	$session->query("SELECT 'over'");
	$session->quit;
	return;
}

# The message about a refused definition does not repeat the key.
sub definitions_are_silent
{
	my %bad = (
		'a line feed' => "E'key_secret\\nx'",
		'a carriage return' => "E'key_secret\\r'",
		'a tab' => "E'key_\\tsecret'",
		'an escape' => "E'key_secret\\x1b'",
		'a DEL' => "E'key_secret\\x7f'",
		'not ASCII' => "E'key_secret\\u00e9'",
		'a blank before' => "' key_secret'",
		'a blank after' => "'key_secret '",
		'only a blank' => "' '",
		'empty' => "''",
		'too long' => 'repeat');

	$calls->sql('CREATE SERVER bad FOREIGN DATA WRAPPER doubletick');
	foreach my $name (sort keys %bad)
	{
		my $value = $bad{$name} eq 'repeat' ? quote('key_secret' x 2000) : $bad{$name};
		my $offset = log_size();
		my ($stdout, $stderr) = all_it_says("CREATE USER MAPPING FOR CURRENT_USER SERVER bad OPTIONS (api_key $value)");
		like($stderr, qr/ERROR: +22023: option "api_key" /, "$name: refused at CREATE");
		is_silent($name, 'key_secret', $stderr, $offset);
	}
	is($calls->sql("SELECT count(*) FROM pg_user_mappings WHERE srvname = 'bad'"), '0', 'none came to be');

	my $offset = log_size();
	my (undef, $stderr) = all_it_says("CREATE USER MAPPING FOR CURRENT_USER SERVER bad
		OPTIONS (api_key 'key_secret', api_key_file '/nonexistent/key')");
	like($stderr, qr/ERROR: +22023: .*exclude each other/, 'a key and a file');
	is_silent('a key and a file', 'key_secret', $stderr, $offset);
	(undef, $stderr) = all_it_says("CREATE USER MAPPING FOR CURRENT_USER SERVER bad OPTIONS (api_kee 'key_secret')");
	like($stderr, qr/ERROR: +HV00D: invalid option "api_kee"/, 'a misspelt option');
	is_silent('a misspelt option', 'key_secret', $stderr, $offset);

	$calls->sql("CREATE USER MAPPING FOR CURRENT_USER SERVER bad OPTIONS (api_key 'good')");
	(undef, $stderr) = all_it_says("ALTER USER MAPPING FOR CURRENT_USER SERVER bad OPTIONS (SET api_key E'key_secret\\n')");
	like($stderr, qr/ERROR: +22023: /, 'refused at ALTER');
	(undef, $stderr) = all_it_says("ALTER USER MAPPING FOR CURRENT_USER SERVER bad OPTIONS (ADD api_key_file '/nonexistent/key')");
	like($stderr, qr/ERROR: +22023: .*exclude each other/, 'a file beside a key');
	is_silent('ALTER', 'key_secret', $stderr, $offset);

	# A URL may hold a password.
	(undef, $stderr) = all_it_says("CREATE SERVER worse FOREIGN DATA WRAPPER doubletick OPTIONS (proxy 'http://joe:key_secret\@localhost')");
	like($stderr, qr/ERROR: +22023: option "proxy" must not contain a user or password/, 'a password in a URL');
	is_silent('a password in a URL', 'key_secret', $stderr, $offset);
	return;
}

# The outcome of a call by the server "by_file".
sub by_file
{
	$sb->clear_journal;
	my ($got) = $calls->session('SET doubletick.server = by_file', $_[0] || removal($phone, ['lead']));
	return $got;
}

sub key_sent { return join ' ', map { $_->{authorization} } @{ $sb->journal }; }

sub key_file
{
	my (undef, $warning) = $calls->node->psql('postgres', 'SELECT 1');
	(undef, undef, $warning) = $calls->node->psql('postgres', 'CREATE SERVER by_file FOREIGN DATA WRAPPER doubletick OPTIONS ('
		  . $sb->server_options(rate_limit => '0') . "); CREATE USER MAPPING FOR CURRENT_USER SERVER by_file OPTIONS (api_key_file '$key_file')");
	like($warning, qr/WARNING: .*could not read file "\Q$key_file\E" of option "api_key_file"/, 'a missing file is a WARNING');
	key_file_refused('a missing file', qr/could not open API key file "\Q$key_file\E": No such file/);

	foreach my $end ('', "\n", "\r\n")
	{
		write_file($file_key . $end);
		ok(exists by_file()->{value}{tags}, 'a key from a file');
		is(key_sent(), $file_key, 'is sent without its line end');
	}
	write_file($file_key, $_), is(ref by_file()->{value}, 'HASH', sprintf('mode %04o', $_)) foreach 0400, 0600, 0700;
	return;
}

sub key_file_refused
{
	my ($name, $message) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time;
	my ($got, $tried) = (by_file(), by_file(attempt($phone, ['lead'])));

	is($got->{sqlstate}, '55000', "$name: SQLSTATE");
	like($got->{message}, $message, "$name: message");
	shape_ok($got, $name);
	is($tried->{sqlstate}, '55000', "$name: dt_try raises it");
	is_deeply($sb->journal, [], "$name: no request");
	# Some files would never come to an end.
	cmp_ok(time - $begin, '<', 60, "$name: in time");
	return;
}

sub bad_key_files
{
	my %content = (
		'empty' => '', 'a line end alone' => "\n", 'too long' => 'k' x 10_000, 'very long' => 'k' x 10_000_000,
		'two lines' => "$file_key\n$other_key\n", 'two line ends' => "$file_key\n\n", 'a control character' => "$file_key\x01",
		'a NUL byte' => "$file_key\0", 'a tab' => "\t$file_key", 'a blank before' => " $file_key", 'a blank after' => "$file_key \n",
		'not ASCII' => "$file_key\xE9", 'a byte order mark' => "\xEF\xBB\xBF$file_key");
	my $offset = log_size();

	foreach my $name (sort keys %content)
	{
		write_file($content{$name});
		key_file_refused($name, qr/^API key in file "\Q$key_file\E" (?:must|is)/);
	}
	foreach my $mode (0644, 0640, 0660, 0604, 0602, 0610, 0666)
	{
		write_file($file_key, $mode);
		key_file_refused(sprintf('mode %04o', $mode), qr/is open to others$/);
	}
	unlink $key_file;
	mkdir $key_file, 0700 or die "could not make \"$key_file\": $!";
	key_file_refused('a directory', qr/is not a regular file$/);
	rmdir $key_file or die "could not remove \"$key_file\": $!";
	mkfifo($key_file, 0600) or die "could not make \"$key_file\": $!";
	key_file_refused('a fifo', qr/is not a regular file$/);
	unlink $key_file;
	symlink '/dev/zero', $key_file or die "could not link: $!";
	key_file_refused('a device', qr/is not a regular file$/);
	unlink $key_file;
	write_file($file_key, 0000);
	key_file_refused('a file that cannot be read', qr/could not open API key file/) if $> != 0;
	unlike(slurp_file($calls->node->logfile, $offset), qr/\Q$file_key\E/, 'no content of a bad file is logged');

	write_file($file_key);
	ok(exists by_file()->{value}{tags}, 'a good file again');
	return;
}

# Within one session.
sub changed_key_file
{
	my $session = $calls->node->background_psql('postgres', on_error_stop => 1);
	my $call = attempt($phone, ['lead']);

	$sb->clear_journal;
	$session->query_safe('SET doubletick.server = by_file');
	write_file($file_key);
	$session->query_safe($call);
	write_file($other_key);
	$session->query_safe($call);
	append_to_file($key_file, "\n");
	$session->query_safe($call);
	write_file("$file_key\r\n");
	$session->query_safe($call);
	is(key_sent(), join(' ', $file_key, $other_key, $other_key, $file_key), 'a changed file counts at the next call');
	$session->quit;
	return;
}

# The core never sees a key that is in a file: so no file of the cluster may have it.
sub nothing_written
{
	my @found;

	write_file($file_key);
	foreach my $rule (undef, { status => 400 }, { fault => 'echo_key' }, { fault => 'echo_key', status => 401 },
		{ status => 201, body => "oops $file_key" }, { body => { a => $file_key } })
	{
		$sb->clear_rules;
		$sb->rule($phone, $rule) if $rule;
		by_file();
		is(key_sent(), $file_key, 'the key was sent');
		$calls->session('SET doubletick.server = by_file', attempt($phone, ['lead']));
	}
	$sb->clear_rules;
	$calls->sql("CREATE TABLE answers AS SELECT outcome('SELECT dt_remove_tags_custom_fields(''$phone'', ''{lead}'')') FROM generate_series(1, 3)");
	$calls->sql('CHECKPOINT');
	find({ no_chdir => 1, wanted => sub {
		push @found, $_ if -f $_ && slurp_file($_) =~ /\Q$file_key\E/;
	} }, $calls->node->data_dir, dirname($calls->node->logfile));
	is_deeply([ grep { !/regress_log/ } @found ], [], 'a key from a file is in no file of the cluster');
	return;
}

# The SQLSTATE of a statement, as psql shows it; empty when it succeeds.
sub sqlstate
{
	my ($sql, %with) = @_;
	my ($code, undef, $stderr) = $calls->node->psql('postgres', "\\set VERBOSITY sqlstate\n$sql", %with);

	return $stderr =~ /ERROR: +(\w{5})/ ? $1 : $code;
}

sub superuser_options
{
	$calls->sql("CREATE ROLE owner; GRANT USAGE ON FOREIGN DATA WRAPPER doubletick TO owner;
		CREATE SERVER plain FOREIGN DATA WRAPPER doubletick; ALTER SERVER plain OWNER TO owner;
		CREATE SERVER special FOREIGN DATA WRAPPER doubletick OPTIONS (ca_file '" . $sb->ca_file . "'); ALTER SERVER special OWNER TO owner;
		CREATE SERVER proxied FOREIGN DATA WRAPPER doubletick OPTIONS (proxy '" . $sb->http . "'); ALTER SERVER proxied OWNER TO owner;
		CREATE USER MAPPING FOR owner SERVER special OPTIONS (api_key_file '$key_file')");
	my %cases = (
		"CREATE SERVER s FOREIGN DATA WRAPPER doubletick OPTIONS (ca_file '/x')" => '42501',
		"CREATE SERVER s FOREIGN DATA WRAPPER doubletick OPTIONS (proxy 'http://localhost:1')" => '42501',
		"ALTER SERVER plain OPTIONS (ADD ca_file '/x')" => '42501',
		"ALTER SERVER plain OPTIONS (ADD proxy 'http://localhost:1')" => '42501',
		"CREATE USER MAPPING FOR owner SERVER plain OPTIONS (api_key_file '/x')" => '42501',
		"ALTER SERVER special OPTIONS (ADD rate_limit '5')" => '42501',
		"ALTER SERVER proxied OPTIONS (ADD base_url 'https://evil.example.com')" => '42501',
		"ALTER USER MAPPING FOR owner SERVER special OPTIONS (SET api_key_file '/etc/passwd')" => '42501',
		"ALTER USER MAPPING FOR owner SERVER special OPTIONS (DROP api_key_file, ADD api_key 'k')" => 0,
		"ALTER SERVER plain OPTIONS (ADD rate_limit '5')" => 0,
		'ALTER SERVER special OPTIONS (DROP ca_file)' => 0,
		'DROP SERVER special CASCADE' => 0,
		"CREATE USER MAPPING FOR owner SERVER plain OPTIONS (api_key 'key')" => 0);

	is(sqlstate("BEGIN; SET ROLE owner; $_; ROLLBACK"), $cases{$_}, 'no superuser: ' . s/'\/tmp.*?'/'...'/r) foreach sort keys %cases;
	return;
}

# Tests that both calls raise an error and send nothing.
sub raised_without_request
{
	my ($name, $sqlstate, $message, $setting, %with) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $database = $with{database} || 'postgres';

	$sb->clear_journal;
	my @got = $calls->session($setting, removal($phone, ['lead']), attempt($phone, ['lead']), { database => $database });
	foreach my $got (@got)
	{
		is($got->{sqlstate}, $sqlstate, "$name: SQLSTATE");
		like($got->{message}, $message, "$name: message");
		isnt($got->{hint}, '', "$name: HINT");
		shape_ok($got, $name);
	}
	is_deeply($sb->journal, [], "$name: no request");
	return;
}

sub not_set_up
{
	raised_without_request('no server', '42704', qr/^server "nonesuch" does not exist$/, 'SET doubletick.server = nonesuch');
	$calls->sql('CREATE SERVER unmapped FOREIGN DATA WRAPPER doubletick');
	raised_without_request('no mapping', '42704', qr/^role \S+ has no user mapping on server "unmapped"$/, 'SET doubletick.server = unmapped');
	$calls->sql('CREATE SERVER keyless FOREIGN DATA WRAPPER doubletick; CREATE USER MAPPING FOR CURRENT_USER SERVER keyless');
	raised_without_request('no key', '55000', qr/on server "keyless" has no API key$/, 'SET doubletick.server = keyless');
	$calls->sql('CREATE FOREIGN DATA WRAPPER other; CREATE SERVER other FOREIGN DATA WRAPPER other;
		CREATE USER MAPPING FOR CURRENT_USER SERVER other');
	raised_without_request('a server of another wrapper', '42704', qr/^server "other" is not a DoubleTick server$/, 'SET doubletick.server = other');

	is(sqlstate("$load SET doubletick.server = ''"), '22023', 'an empty name of a server');
	is(sqlstate("$load SET doubletick.server = '" . 'x' x 64 . "'"), '22023', 'too long a name of a server');
	$calls->sql(q{CREATE SERVER "Odd ""name""" FOREIGN DATA WRAPPER doubletick OPTIONS (} . $sb->server_options(rate_limit => '0')
		  . q{); CREATE USER MAPPING FOR CURRENT_USER SERVER "Odd ""name""" OPTIONS (api_key } . quote($sb->key) . ')');
	my ($got) = $calls->session(q{SET doubletick.server = 'Odd "name"'}, removal($phone, ['lead']));
	is(ref $got->{value}{tags}, 'HASH', 'an odd name of a server');
	return;
}

sub switched_off
{
	my $off = qr/switched off by "doubletick.enabled"/;

	raised_without_request('off in the session', '55000', $off, 'SET doubletick.enabled = off');
	$calls->sql('ALTER DATABASE postgres SET doubletick.enabled = off');
	raised_without_request('off for the database', '55000', $off, 'SET work_mem = DEFAULT');
	$calls->sql('ALTER DATABASE postgres RESET doubletick.enabled; ALTER ROLE CURRENT_USER SET doubletick.enabled = off');
	raised_without_request('off for the role', '55000', $off, 'SET work_mem = DEFAULT');
	$calls->sql('ALTER ROLE CURRENT_USER RESET doubletick.enabled');

	# Also before the library is loaded and knows who may.
	$calls->sql("CREATE ROLE joe LOGIN; GRANT USAGE ON FOREIGN SERVER doubletick TO joe;
		GRANT EXECUTE ON FUNCTION dt_remove_tags_custom_fields, dt_try_remove_tags_custom_fields TO joe;
		CREATE USER MAPPING FOR joe SERVER doubletick OPTIONS (api_key '$other_key')");
	is(sqlstate("SET ROLE joe; $load SET doubletick.enabled = on"), '42501', 'only a superuser may switch');
	$calls->sql('ALTER DATABASE postgres SET doubletick.enabled = off');
	is(sqlstate('SET doubletick.enabled = on; ' . removal($phone, ['lead']), connstr => $calls->node->connstr('postgres') . ' user=joe'),
		'55000', 'before the library is loaded, too');
	is(sqlstate(removal($phone, ['lead']), connstr => $calls->node->connstr('postgres') . " user=joe options='-c doubletick.enabled=on'"),
		'55000', 'and when connecting');
	$calls->sql('ALTER DATABASE postgres RESET doubletick.enabled');
	is(sqlstate(removal($phone, ['lead']), connstr => $calls->node->connstr('postgres') . ' user=joe'), 0, 'who may send otherwise');

	my ($before, $after) = $calls->session('SET doubletick.enabled = off', removal($phone, ['lead']),
		'SET doubletick.enabled = on', removal($phone, ['lead']));
	is($before->{sqlstate}, '55000', 'off');
	is(ref $after->{value}{tags}, 'HASH', 'and on again, in one session');
	return;
}

# A copy restored under another name stays silent.
sub other_database
{
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD database 'postgres')");
	my ($got) = $calls->session(removal($phone, ['lead']));
	is(ref $got->{value}{tags}, 'HASH', 'from the database named by the option');
	$calls->sql('CREATE DATABASE staging TEMPLATE postgres');
	raised_without_request('a copy', '55000', qr/^server "doubletick" sends nothing from database "staging"$/,
		'SET work_mem = DEFAULT', database => 'staging');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET database 'staging')", database => 'staging');
	($got) = $calls->session(removal($phone, ['lead']), { database => 'staging' });
	is(ref $got->{value}{tags}, 'HASH', 'a copy whose option was changed');
	$calls->sql('ALTER DATABASE staging RENAME TO renamed');
	raised_without_request('a renamed database', '55000', qr/^server "doubletick" sends nothing from database "renamed"$/,
		'SET work_mem = DEFAULT', database => 'renamed');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP database)');
	return;
}

# JSON may escape a key's characters, and must escape some.
sub escaped_key
{
	my $alter = 'ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key %s)';
	my $key = $odd_key;
	my $escaped = $key =~ s/(["\\])/\\$1/gr;
	my %forms = (
		'as it is' => $key, 'escaped' => $escaped, 'with slashes escaped' => $escaped =~ s{/}{\\/}gr,
		'as codes' => join('', map { sprintf '\\u%04x', ord } split //, $key),
		'as codes of capital letters' => join('', map { sprintf '\\u%04X', ord } split //, $key),
		'some as codes' => $escaped =~ s/([<k])/sprintf '\\u%04x', ord $1/ger);

	$calls->sql(sprintf $alter, quote($key));
	foreach my $name (sort keys %forms)
	{
		my $form = $forms{$name};
		foreach my $body (qq({"statusCode": 400, "message": "<$form> and $form", "a": {"$form": ["$form"]}}), "<p>$form</p>", $form)
		{
			$sb->reset;
			$sb->rule($phone, { status => 400, body => $body });
			my $offset = log_size();
			my ($stdout, $stderr) = all_it_says(removal($phone, ['lead']) . ";\n" . attempt($phone, ['lead']));
			my $all = $stdout . $stderr;
			like($all, qr/\*{8}/, "a key $name: asterisks stand for it");
			is_silent("a key $name", $form, $all, $offset);
			ok(index($all, $key) < 0 && $all !~ /odd.*key/, "a key $name: in no other form");
			my ($got) = $calls->session(attempt($phone, ['lead']));
			ok($body !~ /^\{/ || ref $got->{value}{a} eq 'HASH', "a key $name: what was JSON is JSON");
		}
	}
	$sb->reset;
	$sb->rule($phone, { fault => 'echo_key' });
	my ($got) = $calls->session(attempt($phone, ['lead']));
	like($got->{value}{message}, qr/\*{8}/, 'an echoed key: asterisks stand for it');
	unlike($got->{value}{message}, qr/odd/, 'an echoed key: nothing of it is left');
	$sb->reset;
	$calls->sql(sprintf $alter, quote($sb->key));
	return;
}

# A short key may be part of a word of an answer: there it is not masked.
sub short_key
{
	my $calls_before = 'ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key %s)';

	$calls->sql(sprintf($calls_before, "'api'"));
	my ($got) = $calls->session(removal($phone, ['lead']));
	like($got->{message}, qr/Invalid public api key$/, 'a short key leaves the words of an answer alone');
	$calls->sql(sprintf($calls_before, quote($sb->key)));
	return;
}

sub privileges
{
	my $functions = 'FUNCTION dt_remove_tags_custom_fields, dt_try_remove_tags_custom_fields';
	my $call = "SELECT dt_remove_tags_custom_fields('$phone', '{lead}')";
	my $try = "SELECT dt_try_remove_tags_custom_fields('$phone', '{lead}')";

	$calls->sql("CREATE ROLE app; CREATE ROLE team; CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key '$other_key')");
	$sb->clear_journal;
	is(sqlstate("SET ROLE app; $_"), '42501', 'no EXECUTE') foreach $call, $try;
	is(sqlstate("SET ROLE app; SELECT dt_payload('$phone', '{lead}')"), 0, 'which dt_payload is not in need of');
	$calls->sql("GRANT EXECUTE ON $functions TO app");
	foreach my $statement ($call, $try)
	{
		my ($got) = $calls->session('SET ROLE app', $statement);
		is($got->{sqlstate}, '42501', 'no USAGE');
		is($got->{message}, 'permission denied for foreign server doubletick', 'no USAGE: message');
		shape_ok($got, 'no USAGE');
	}
	is_deeply($sb->journal, [], 'no request without a privilege');

	$calls->sql('GRANT USAGE ON FOREIGN SERVER doubletick TO team; GRANT team TO app');
	is(sqlstate("SET ROLE app; $call"), 0, 'USAGE by membership');
	is(key_sent(), $other_key, 'and the mapping for all');
	$calls->sql("CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key '$file_key')");
	$sb->clear_journal;
	is(sqlstate("SET ROLE app; $call"), 0, 'a mapping of its own');
	is(key_sent(), $file_key, 'goes before the one for all');
	$calls->sql('REVOKE team FROM app');
	is(sqlstate("SET ROLE app; $call"), '42501', 'a revoked membership');

	# Who may not send can be given a function that does: it sends as its owner.
	$calls->sql("CREATE ROLE clerk;
		CREATE FUNCTION forget_lead(phone text) RETURNS jsonb SECURITY DEFINER SET search_path = public
			RETURN dt_remove_tags_custom_fields(phone, '{lead}')");
	$sb->clear_journal;
	is(sqlstate("SET ROLE clerk; SELECT forget_lead('$phone')"), 0, 'a function with SECURITY DEFINER');
	is(key_sent(), $sb->key, "sends with its owner's key");
	$calls->sql('GRANT USAGE ON FOREIGN SERVER doubletick TO app; ALTER FUNCTION forget_lead OWNER TO app');
	$sb->clear_journal;
	is(sqlstate("SELECT forget_lead('$phone')"), 0, 'even when a superuser calls it');
	is(key_sent(), $file_key, "sends with its owner's key");
	is(sqlstate("SET ROLE clerk; $call"), '42501', 'though the caller may not');

	# A mapping is shown to its user and to the server's owner, but not to others.
	is($calls->sql("SET ROLE clerk; SELECT count(umoptions) FROM pg_user_mappings WHERE srvname = 'doubletick'"), '0',
		"nobody else's options are shown");
	return;
}

# USAGE that a role has as a member of another one ends with the membership, in a session
# that has called before, too.
sub membership
{
	$calls->sql("CREATE ROLE senders; CREATE ROLE member IN ROLE senders; GRANT USAGE ON FOREIGN SERVER doubletick TO senders;
		GRANT EXECUTE ON FUNCTION dt_try_remove_tags_custom_fields, dt_remove_tags_custom_fields TO member;
		CREATE USER MAPPING FOR member SERVER doubletick OPTIONS (api_key '" . $calls->sandbox->key . q{')});
	my ($before, $after) = $calls->session('SET ROLE member', removal('14155550198', ['lead']), 'RESET ROLE', 'REVOKE senders FROM member',
		'SET ROLE member', removal('14155550198', ['lead']));
	is($before->{sqlstate}, undef, 'a member may call');
	is($after->{sqlstate}, '42501', 'and no longer when it is none');
	$calls->sql('DROP OWNED BY member, senders; DROP USER MAPPING IF EXISTS FOR member SERVER doubletick; DROP ROLE member, senders');
	return;
}

calls_are_silent();
activity_is_silent();
definitions_are_silent();
key_file();
bad_key_files();
changed_key_file();
nothing_written();
superuser_options();
not_set_up();
switched_off();
other_database();
escaped_key();
short_key();
privileges();
membership();
done_testing;

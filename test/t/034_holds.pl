
# Holds: what holds the requests of a role to a server; that no request counts as an
# attempt then, that one warning says why, that others go on, and what lifts a hold.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(testing => 1);
my @phones = map { "1415555010$_" } 1 .. 5;
my $other = '919876543210';

$calls->server('second', base_url => $sb->http);
$calls->sql("CREATE ROLE other; GRANT USAGE ON FOREIGN SERVER doubletick TO other;
	GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO other;
	CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_app')");
my $options = $sb->server_options(rate_limit => '0');
my $superuser = $calls->sql('SELECT current_user');
my $mapping = "CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (api_key 'key_sandbox');";

# The warnings among a CALL's messages.
sub warnings_of
{
	return [ $_[0] =~ /^WARNING:  (.*)$/mg ];
}

# The SQL "broken", or such answers ("rule"), make a hold of server "doubletick", for
# "reason", and the SQL "mended" lifts it. At most so many "requests" are sent until it is known; "role"
# enqueues; with "all" everything is held.
sub held_ok
{
	my ($name, %case) = @_;
	my $role = $case{role} || $superuser;
	my $warning = qr/^requests of role "$role" to server "doubletick" are held: $case{reason}/;
	my $requests = $case{requests} || 0;

	fresh();
	my @held = map { enqueue($_, ['lead'], undef, role => $case{role}) } @phones;
	my $well = enqueue($other, ['lead'], undef, server => 'second');
	my @others = $case{role} ? enqueue($other, ['lead']) : ();
	$calls->sql($case{broken}) if $case{broken};
	$sb->rule($_, $case{rule}) foreach $case{rule} ? @phones : ();

	my $warnings = warnings_of(drain());
	my @ours = grep { /server "doubletick"/ } @$warnings;
	is(scalar @ours, 1, "$name: one warning");
	like($ours[0] // '', $warning, "$name: it says why");
	is(scalar(my @sent = requests(@phones)) <= $requests ? 'few' : 'many', 'few', "$name: no more requests are sent than it takes to know");
	is(states(@held), join(' ', ('waiting') x @held), "$name: all wait");
	is($calls->sql("SELECT sum(attempts) FROM dt_waiting"), '0', "$name: without an attempt");
	like(status('doubletick')->{held}, qr/^role \S+: $case{reason}/, "$name: dt_status says why");
	unless ($case{all})
	{
		is(states($well, @others), join(' ', 'done', ('done') x @others), "$name: others go on");
		is(status('second')->{held}, undef, "$name: and dt_status shows no hold of theirs");
	}

	my $before = @{ $sb->journal };
	is_deeply(warnings_of(drain()), [], "$name: the next CALL does not warn again");
	is(scalar @{ $sb->journal }, $before, "$name: and sends nothing");

	$calls->sql($case{mended});
	$sb->clear_rules;
	is_deeply(warnings_of(drain()), [], "$name: mended, and no warning");
	is(states(@held, $well, @others), join(' ', ('done') x (@held + 1 + @others)), "$name: all are sent at once");
	is($calls->sql("SELECT string_agg(DISTINCT attempts::text, ' ') FROM dt_history"), '1', "$name: with one attempt");
	is(status('doubletick')->{held}, undef, "$name: dt_status no longer shows the hold");
	is($calls->sql('SELECT count(*) FROM dt_hold'), '0', "$name: the hold is deleted");
	return;
}

# Holds by an answer, or by what happens in its place.
sub by_answer
{
	held_ok('a wrong key',
		broken => "ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_wrong')",
		mended => "ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_sandbox')",
		reason => qr/request was refused with HTTP status 401: Invalid public api key/, requests => 5);
	held_ok('a wrong key of one role',
		broken => "ALTER USER MAPPING FOR other SERVER doubletick OPTIONS (SET api_key 'key_wrong')",
		mended => "ALTER USER MAPPING FOR other SERVER doubletick OPTIONS (SET api_key 'key_app')",
		reason => qr/request was refused with HTTP status 401/, requests => 5, role => 'other');
	held_ok('a wrong address',
		broken => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->https . "/api')",
		mended => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->https . "')",
		reason => qr{request was refused with HTTP status 404: Cannot POST /api/customer}, requests => 5);
	foreach my $body ('Cannot POST /api', "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Error</title>\n</head>\n"
		. "<body>\n<pre>Cannot POST /customer/remove-tags-custom-fields</pre>\n</body>\n</html>\n")
	{
		held_ok('a wrong address, ' . ($body =~ /</ ? 'on a page' : 'as plain text'),
			rule => { status => 404, body => $body, content_type => '' },
			mended => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->https . "')",
			reason => qr{request was refused with HTTP status 404(?:: Cannot POST /api| \(Not Found\))}, requests => 5);
	}
	held_ok('no trust',
		broken => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->url('selfsigned') . "')",
		mended => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->https . "')",
		reason => qr/could not establish TLS with DoubleTick/);
	return;
}

# Holds by the definitions in this database.
sub by_definition
{
	held_ok('no server',
		broken => 'DROP SERVER doubletick CASCADE',
		mended => "CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick OPTIONS ($options); $mapping
			CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_app');
			GRANT USAGE ON FOREIGN SERVER doubletick TO other",
		reason => qr/server "doubletick" does not exist/);
	held_ok('a renamed server',
		broken => 'ALTER SERVER doubletick RENAME TO renamed',
		mended => 'ALTER SERVER renamed RENAME TO doubletick',
		reason => qr/server "doubletick" does not exist/);
	held_ok('no mapping',
		broken => 'DROP USER MAPPING FOR CURRENT_USER SERVER doubletick',
		mended => $mapping,
		reason => qr/role "$superuser" has no user mapping on server "doubletick"/);
	held_ok('no mapping of one role',
		broken => 'DROP USER MAPPING FOR other SERVER doubletick',
		mended => "CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key 'key_app')",
		reason => qr/role "other" has no user mapping on server "doubletick"/, role => 'other');
	$calls->sql("DROP USER MAPPING FOR PUBLIC SERVER doubletick;
		CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_app')");
	held_ok('no key',
		broken => 'ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (DROP api_key)',
		mended => "ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (ADD api_key 'key_sandbox')",
		reason => qr/user mapping of role "$superuser" on server "doubletick" has no API key/);
	held_ok('no USAGE',
		broken => 'REVOKE USAGE ON FOREIGN SERVER doubletick FROM other',
		mended => 'GRANT USAGE ON FOREIGN SERVER doubletick TO other',
		reason => qr/permission denied for foreign server doubletick/, role => 'other');
	held_ok('another database',
		broken => "ALTER SERVER doubletick OPTIONS (ADD database 'elsewhere')",
		mended => "ALTER SERVER doubletick OPTIONS (SET database 'postgres')",
		reason => qr/server "doubletick" sends nothing from database "postgres"/);
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP database)');
	foreach my $whose ('DATABASE postgres', 'ROLE CURRENT_USER')
	{
		held_ok("switched off, $whose",
			broken => "ALTER $whose SET doubletick.enabled = off",
			mended => "ALTER $whose RESET doubletick.enabled",
			reason => qr/requests are switched off by "doubletick.enabled"/, all => 1);
	}
	return;
}

# While nothing changes here, one request a minute probes whether the hold is over.
sub probes
{
	fresh();
	$sb->rule($_, { status => 401 }) foreach @phones;
	my @ids = map { enqueue($_, ['lead']) } @phones;
	drain();
	my $before = @{ $sb->journal };
	drain() foreach 1 .. 3;
	is(scalar @{ $sb->journal }, $before, 'probe: none before a minute is over');

	time_passes('61 seconds');
	is_deeply(warnings_of(drain()), [], 'probe: the same warning is not repeated');
	is(scalar @{ $sb->journal }, $before + 1, 'probe: one request');
	is(states(@ids), 'waiting waiting waiting waiting waiting', 'probe: all wait on');
	is($calls->sql('SELECT sum(attempts) FROM dt_waiting'), '0', 'probe: it is no attempt');
	is($calls->sql("SELECT probe_at BETWEEN now() + '50 s' AND now() + '60 s' FROM dt_hold"), 't', 'probe: the next one is due in a minute');
	drain();
	is(scalar @{ $sb->journal }, $before + 1, 'probe: and does not leave before');

	# An outage of the API says nothing about the key.
	$sb->rule($_, { status => 503 }) foreach @phones;
	time_passes('61 seconds');
	drain();
	is(scalar @{ $sb->journal }, $before + 2, 'probe: after an outage nothing more is sent');
	like(status('doubletick')->{held}, qr/HTTP status 401/, 'probe: and the hold stays');

	# Nor does a broken connection.
	$sb->rule($_, { fault => 'reset' }) foreach @phones;
	time_passes('61 seconds');
	drain();
	is(scalar @{ $sb->journal }, $before + 3, 'probe: the same after a broken connection');

	$sb->clear_rules;
	time_passes('61 seconds');
	is_deeply(warnings_of(drain()), [], 'probe: it gets through');
	is(states(@ids), 'done done done done done', 'probe: all others follow');
	is($calls->sql('SELECT count(*) FROM dt_hold'), '0', 'probe: the hold is lifted');

	# A probe whose own row is refused has got through, too.
	fresh();
	$sb->rule($_, { status => 401, times => 1 }) foreach @phones;
	@ids = map { enqueue($_, ['lead']) } @phones;
	drain();
	$sb->clear_rules;
	$sb->rule($_, { status => 422 }) foreach @phones;
	time_passes('61 seconds');
	drain();
	is(states(@ids), 'failed failed failed failed failed', 'probe: a refusal lifts the hold');
	return;
}

# Another reason gives another warning.
sub reason_changes
{
	fresh();
	$sb->rule($_, { status => 401 }) foreach @phones;
	my @ids = map { enqueue($_, ['lead']) } @phones;
	is(scalar @{ warnings_of(drain()) }, 1, 'reasons: one warning');
	$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER doubletick');
	like(join('+', @{ warnings_of(drain()) }), qr/^requests [^+]* has no user mapping on server "doubletick"$/,
		'reasons: another warning for the next reason');
	like(status('doubletick')->{held}, qr/no user mapping/, 'reasons: dt_status shows that one');
	is_deeply(warnings_of(drain()), [], 'reasons: no warning for the same reason');
	$calls->sql($mapping);
	like(join('+', @{ warnings_of(drain()) }), qr/^requests [^+]* HTTP status 401[^+]*$/, 'reasons: and one for the first reason again');
	$sb->clear_rules;
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_app')");
	drain();
	is(states(@ids), 'done done done done done', 'reasons: all are done in the end');
	$calls->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_sandbox')");
	return;
}

# Held rows are given up when they are too old.
sub held_rows_age
{
	# When the hold begins, and with each probe.
	fresh();
	my @ids = map { enqueue($_, ['lead']) } @phones;
	time_passes('73 hours', @ids[ 0, 1 ]);
	$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER doubletick');
	like(drain(), qr/gave up 2 removals.*queue: 0 done, 2 failed, 3 left/s, 'held rows: two are given up when the hold begins');
	time_passes('73 hours', $ids[2]);
	time_passes('61 seconds');
	like(drain(), qr/gave up 1 removal of role "[^"]+" for server "[^"]+", for its age.*queue: 0 done, 1 failed, 2 left/s, 'held rows: another one a minute later');
	is(states(@ids), 'failed failed failed waiting waiting', 'held rows: the young ones wait');
	$calls->sql($mapping);
	drain();
	is(states(@ids), 'failed failed failed done done', 'held rows: and are done when it is mended');

	fresh();
	$sb->rule($_, { status => 401 }) foreach @phones;
	@ids = map { enqueue($_, ['lead']) } @phones;
	drain();
	time_passes('73 hours');
	like(drain(), qr/gave up 5 removals/, 'held by an answer: the rows are given up');
	is(states(@ids), 'failed failed failed failed failed', 'held by an answer: all of them');
	return;
}

# The rows of a role that is dropped fail.
sub dropped_role
{
	fresh();
	$calls->sql("CREATE ROLE passing; GRANT USAGE ON FOREIGN SERVER doubletick TO passing;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO passing");
	my @ids = map { enqueue($_, ['lead'], undef, role => 'passing') } @phones;
	drain();
	is(states(@ids), 'waiting waiting waiting waiting waiting', 'a dropped role: its rows wait');
	$calls->sql('DROP OWNED BY passing; DROP ROLE passing');
	my $well = enqueue($other, ['lead']);
	my $messages = drain();
	like($messages, qr/queue: 1 done, 5 failed, 0 left/, 'a dropped role: its rows fail');
	is(scalar(() = $messages =~ /WARNING:  failed 5 removals for server "doubletick", since their role \(OID \d+\) does not exist any more$/mg), 1,
		'a dropped role: one warning counts them');
	unlike(drain(), qr/WARNING/, 'a dropped role: and no other');
	is(states(@ids, $well), 'failed failed failed failed failed done', 'a dropped role: only its rows fail');
	like(settled($ids[0])->{error}, qr/^role does not exist any more$/, 'a dropped role: the error says why');
	is(settled($ids[0])->{attempts}, 0, 'a dropped role: without a request');
	is($calls->sql('SELECT count(*) FROM dt_hold'), '0', 'a dropped role: the hold is deleted');

	# It is dropped while its probe is out: what waits fails, and is not said to go on.
	fresh();
	$calls->sql("CREATE ROLE passing; GRANT USAGE ON FOREIGN SERVER doubletick TO passing;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO passing;
		CREATE USER MAPPING FOR passing SERVER doubletick OPTIONS (api_key 'key_sandbox')");
	$sb->rule($phones[0], { status => 401, times => 1 });
	enqueue($phones[0], ['lead'], undef, role => 'passing');
	drain();
	enqueue($phones[1], ['lead'], undef, role => 'passing');
	$calls->sql("UPDATE dt_hold SET probe_at = now()");
	$sb->hold($_) foreach @phones[ 0, 1 ];
	my $log = -s $node->logfile;
	my $drain = start_drain();
	$sb->await_held(1);
	$calls->sql('DROP OWNED BY passing; DROP ROLE passing');
	$sb->clear_rules;
	like(await_drain($drain), qr/failed 1 removal for server "doubletick", since its role/, 'dropped while its probe is out: what waits fails');
	unlike(slurp_file($node->logfile, $log), qr/ go on$/m, 'dropped while its probe is out: nothing goes on');
	return;
}

# The answer to a probe says nothing of a hold that has begun after it left.
sub probe_of_another_hold
{
	fresh();
	$sb->rule($phones[0], { status => 401, times => 1 });
	my @ids = enqueue($phones[0], ['lead']);
	drain();
	push @ids, enqueue($phones[1], ['lead']);
	$calls->sql('UPDATE dt_hold SET probe_at = now()');
	$sb->hold($_) foreach @phones[ 0, 1 ];
	my $log = -s $node->logfile;
	my $drain = start_drain();
	$sb->await_held(1);
	$calls->sql('DROP USER MAPPING FOR CURRENT_USER SERVER doubletick');
	eventually(sub { $calls->sql('SELECT reason FROM dt_hold') =~ /no user mapping/ }, 'another hold while the probe is out: it begins');
	$sb->clear_rules;
	is(scalar @{ warnings_of(await_drain($drain) =~ s/^psql:<stdin>:\d+: //mgr) }, 1, 'another hold while the probe is out: one warning');
	unlike(slurp_file($node->logfile, $log), qr/ go on$/m, 'another hold while the probe is out: the answer does not end it');
	$calls->sql($mapping);
	drain();
	is(states(@ids), 'done done', 'another hold while the probe is out: it ends when it is mended');
	return;
}

# What happens while requests are out: the SQL "change", then the answers come one by
# one, each in a turn of its own, as "rule" says; "warnings" is how many there may be.
sub requests_are_out
{
	my ($name, %case) = @_;
	my $rule = $case{rule} || sub { {} };
	my $log = -s $node->logfile;
	my @out = map { "1415555020$_" } 1 .. 8;

	fresh();
	$sb->hold($out[$_], { times => 1, %{ $rule->($_) } }) foreach 0 .. $#out;
	my @ids = map { enqueue($_, ['lead'], undef, role => $case{role}) } @out;
	my $drain = start_drain();
	$sb->await_held(scalar @out);
	my $change = $case{change} || '';
	$change = 'SET LOCAL ROLE ' . ($case{role} || 'NONE') . '; ' . enqueueing($other, ['lead']) . "; SET LOCAL ROLE NONE; $change" unless $case{alone};
	push @ids, split /\n/, $calls->sql("BEGIN; $change; COMMIT");
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, "$name: it is held while the requests are out") if $case{held};
	foreach my $n (0 .. $#out)
	{
		$sb->release($out[$n]);
		eventually(sub { ($calls->sql("SELECT last_error IS NULL FROM dt_waiting WHERE id = $ids[$n]") || 'f') ne 't' },
			"$name: answer " . ($n + 1) . ' is settled');
	}
	my $messages = await_drain($drain) =~ s/^psql:<stdin>:\d+: //mgr;
	is(scalar(grep { / are held: / } @{ warnings_of($messages) }), $case{warnings}, "$name: " . ($case{warnings} ? 'one warning' : 'no warning')) || diag($messages);
	ok(slurp_file($node->logfile, $log) !~ /to server "doubletick" go on/, "$name: nothing is said to go on before it is mended") if $case{warnings};
	is_deeply(warnings_of(drain()), [], "$name: and none by the next CALL");
	if ($case{mended})
	{
		$calls->sql($case{mended});
		drain();
	}
	is(states(@ids), join(' ', ($case{becomes} || 'done') x @ids), "$name: what becomes of the removals");
	is($calls->sql('SELECT count(*) FROM dt_hold'), '0', "$name: the hold is over");
	return;
}

# One hold gives one warning, however many requests were out when it began.
sub one_warning_of_one_hold
{
	my $make_server = "CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick OPTIONS ($options); $mapping
		CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_app');
		GRANT USAGE ON FOREIGN SERVER doubletick TO other";
	my $set_key = "ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key '%s')";
	my $refused = sub { { status => 401 } };
	my $refused_in_other_words = sub {
		{ status => 401, body => { statusCode => 401, error => 'Unauthorized', message => "no access: incident $_[0]" } };
	};

	requests_are_out('mapping dropped', change => 'DROP USER MAPPING FOR CURRENT_USER SERVER doubletick',
		held => 1, warnings => 1, mended => $mapping);
	requests_are_out('mapping dropped, answers 401', change => 'DROP USER MAPPING FOR CURRENT_USER SERVER doubletick',
		held => 1, rule => $refused, warnings => 1, mended => $mapping);
	requests_are_out('server dropped', change => 'DROP SERVER doubletick CASCADE',
		held => 1, warnings => 1, mended => $make_server);
	requests_are_out('server dropped, answers 401', change => 'DROP SERVER doubletick CASCADE',
		held => 1, rule => $refused, warnings => 1, mended => $make_server);
	requests_are_out('USAGE revoked', change => 'REVOKE USAGE ON FOREIGN SERVER doubletick FROM other', role => 'other',
		held => 1, warnings => 1, mended => 'GRANT USAGE ON FOREIGN SERVER doubletick TO other');
	requests_are_out('key changed, answers 401', change => sprintf($set_key, 'key_app'), rule => $refused, warnings => 0);
	$calls->sql(sprintf $set_key, 'key_sandbox');
	requests_are_out('answers 401', rule => $refused, alone => 1, warnings => 1, mended => sprintf($set_key, 'key_app'));
	requests_are_out('answers 401, each in other words', rule => $refused_in_other_words, alone => 1,
		warnings => 1, mended => sprintf($set_key, 'key_sandbox'));
	requests_are_out('answers 401 and 404', alone => 1, warnings => 1, mended => sprintf($set_key, 'key_app'),
		rule => sub { $_[0] % 2 ? { status => 404, body => { statusCode => 404, message => 'Cannot POST /x' } } : { status => 401 } });
	requests_are_out('answers 401 and 201', alone => 1, warnings => 1, mended => sprintf($set_key, 'key_sandbox'),
		rule => sub { $_[0] % 2 ? {} : { status => 401 } });

	foreach my $rule ($refused, undef)
	{
		# Nothing that defines the account changes when the role goes.
		$calls->sql("CREATE ROLE passing; GRANT USAGE ON FOREIGN SERVER doubletick TO PUBLIC;
			GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO passing;
			CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key 'key_app')");
		requests_are_out('role dropped' . ($rule ? ', answers 401' : ''), alone => 1, role => 'passing', rule => $rule,
			change => 'DROP OWNED BY passing; DROP ROLE passing', warnings => 0, becomes => $rule ? 'failed' : 'done');
		$calls->sql('DROP USER MAPPING FOR PUBLIC SERVER doubletick; REVOKE USAGE ON FOREIGN SERVER doubletick FROM PUBLIC');
	}
	return;
}

# The probes of one hold are refused in words that differ.
sub other_words
{
	fresh();
	my $id = enqueue($other, ['lead']);
	foreach my $n (1 .. 3)
	{
		$sb->rule($other, { status => 401, body => { statusCode => 401, error => 'Unauthorized', message => "no access: incident $n" } });
		is(scalar @{ warnings_of(drain()) }, $n == 1 ? 1 : 0, "other words: refusal $n, one warning in all");
		like(status('doubletick')->{held}, qr/incident $n$/, 'other words: dt_status has the newest');
		time_passes('61 seconds');
	}
	$sb->clear_rules;
	drain();
	is(states($id), 'done', 'other words: and a probe gets through');
	return;
}

by_answer();
by_definition();
one_warning_of_one_hold();
other_words();
probes();
reason_changes();
held_rows_age();
dropped_role();
probe_of_another_hold();
done_testing;

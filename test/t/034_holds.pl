
# What holds the requests of a role to a server: that none is counted as an
# attempt, that one warning says why, that others go on, and what lifts it.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

my $queue = Queue->new(sandbox => [ '--key', 'key_sandbox', '--key', 'key_second' ]);
my $sb = $queue->sandbox;
my @phones = map { "1415555010$_" } 1 .. 5;
my $other = '919876543210';

$queue->server('second', base_url => $sb->http);
$queue->sql("CREATE ROLE other; GRANT USAGE ON FOREIGN SERVER doubletick TO other;
	GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO other;
	CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_second')");
my $options = $sb->server_options(rate_limit => '0');
my $mapping = "CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (api_key 'key_sandbox');";

# Names a CALL's warnings.
sub warnings_of
{
	return [ $_[0] =~ /^WARNING:  (.*)$/mg ];
}

# Holds the server "doubletick" by "broken", and lifts it by "mended". "requests"
# are made to find out, at most; "role" is who enqueues; "all" tells that nothing
# else goes on meanwhile.
sub held_ok
{
	my ($name, %case) = @_;
	my $role = $case{role} || 'postgres';
	my $warning = qr/^requests of role "$role" to server "doubletick" are held: $case{reason}/;
	my $requests = $case{requests} || 0;

	$queue->fresh;
	$queue->sql($case{broken});
	my @held = map { $queue->enqueue($_, ['lead'], undef, role => $case{role}) } @phones;
	my $well = $queue->enqueue($other, ['lead'], undef, server => 'second');
	my @others = $case{role} ? $queue->enqueue($other, ['lead']) : ();

	my $warnings = warnings_of($queue->process);
	my @ours = grep { /server "doubletick"/ } @$warnings;
	is(scalar @ours, 1, "$name: one warning");
	like($ours[0] // '', $warning, "$name: that says why");
	is(scalar(my @sent = $queue->requests(@phones)) <= $requests ? 'few' : 'many', 'few', "$name: nothing more is sent");
	is($queue->states(@held), join(' ', ('waiting') x @held), "$name: all wait");
	is($queue->sql("SELECT sum(attempts) FROM dt_waiting"), '0', "$name: and none has an attempt");
	like($queue->status('doubletick')->{held}, qr/^$case{reason}/, "$name: dt_status says why");
	unless ($case{all})
	{
		is($queue->states($well, @others), join(' ', 'done', ('done') x @others), "$name: others go on");
		is($queue->status('second')->{held}, undef, "$name: and are not held");
	}

	my $before = @{ $sb->journal };
	is_deeply(warnings_of($queue->process), [], "$name: warned of once");
	is(scalar @{ $sb->journal }, $before, "$name: nothing is sent again");

	$queue->sql($case{mended});
	$sb->clear_rules;
	is_deeply(warnings_of($queue->process), [], "$name: mended");
	is($queue->states(@held, $well, @others), join(' ', ('done') x (@held + 1 + @others)), "$name: all goes on at once");
	is($queue->sql("SELECT string_agg(DISTINCT attempts::text, ' ') FROM dt_history"), '1', "$name: with one attempt");
	is($queue->status('doubletick')->{held}, undef, "$name: dt_status says no more of it");
	is($queue->sql('SELECT count(*) FROM dt_hold'), '0', "$name: the hold is forgotten");
	return;
}

# By what DoubleTick, or what is in its place, says.
sub by_answer
{
	held_ok('a wrong key',
		broken => "ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_wrong')",
		mended => "ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_sandbox')",
		reason => qr/request was refused with HTTP status 401: Invalid public api key/, requests => 5);
	held_ok('a wrong key of one role',
		broken => "ALTER USER MAPPING FOR other SERVER doubletick OPTIONS (SET api_key 'key_wrong')",
		mended => "ALTER USER MAPPING FOR other SERVER doubletick OPTIONS (SET api_key 'key_second')",
		reason => qr/request was refused with HTTP status 401/, requests => 5, role => 'other');
	held_ok('a wrong address',
		broken => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->https . "/api')",
		mended => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->https . "')",
		reason => qr{request was refused with HTTP status 404: Cannot POST /api/customer}, requests => 5);
	held_ok('no trust',
		broken => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->url('selfsigned') . "')",
		mended => "ALTER SERVER doubletick OPTIONS (SET base_url '" . $sb->https . "')",
		reason => qr/could not establish TLS with DoubleTick/);
	return;
}

# By what is defined in this database.
sub by_definition
{
	held_ok('no server',
		broken => 'DROP SERVER doubletick CASCADE',
		mended => "CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick OPTIONS ($options); $mapping
			CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_second');
			GRANT USAGE ON FOREIGN SERVER doubletick TO other",
		reason => qr/server "doubletick" does not exist/);
	held_ok('a renamed server',
		broken => 'ALTER SERVER doubletick RENAME TO renamed',
		mended => 'ALTER SERVER renamed RENAME TO doubletick',
		reason => qr/server "doubletick" does not exist/);
	held_ok('no mapping',
		broken => 'DROP USER MAPPING FOR CURRENT_USER SERVER doubletick',
		mended => $mapping,
		reason => qr/role "postgres" has no user mapping on server "doubletick"/);
	held_ok('no mapping of one role',
		broken => 'DROP USER MAPPING FOR other SERVER doubletick',
		mended => "CREATE USER MAPPING FOR PUBLIC SERVER doubletick OPTIONS (api_key 'key_second')",
		reason => qr/role "other" has no user mapping on server "doubletick"/, role => 'other');
	$queue->sql("DROP USER MAPPING FOR PUBLIC SERVER doubletick;
		CREATE USER MAPPING FOR other SERVER doubletick OPTIONS (api_key 'key_second')");
	held_ok('no key',
		broken => 'ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (DROP api_key)',
		mended => "ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (ADD api_key 'key_sandbox')",
		reason => qr/user mapping of role "postgres" on server "doubletick" has no API key/);
	held_ok('no USAGE',
		broken => 'REVOKE USAGE ON FOREIGN SERVER doubletick FROM other',
		mended => 'GRANT USAGE ON FOREIGN SERVER doubletick TO other',
		reason => qr/permission denied for foreign server doubletick/, role => 'other');
	held_ok('another database',
		broken => "ALTER SERVER doubletick OPTIONS (ADD database 'elsewhere')",
		mended => "ALTER SERVER doubletick OPTIONS (SET database 'postgres')",
		reason => qr/server "doubletick" sends nothing from database "postgres"/);
	$queue->sql('ALTER SERVER doubletick OPTIONS (DROP database)');
	foreach my $whose ('DATABASE postgres', 'ROLE postgres')
	{
		held_ok("switched off, $whose",
			broken => "ALTER $whose SET doubletick.enabled = off",
			mended => "ALTER $whose RESET doubletick.enabled",
			reason => qr/requests are switched off by "doubletick.enabled"/, all => 1);
	}
	return;
}

# Nothing has changed here, and so one request a minute finds out.
sub probes
{
	$queue->fresh;
	$sb->rule($_, { status => 401 }) foreach @phones;
	my @ids = map { $queue->enqueue($_, ['lead']) } @phones;
	$queue->process;
	my $before = @{ $sb->journal };
	$queue->process foreach 1 .. 3;
	is(scalar @{ $sb->journal }, $before, 'probe: not before a minute is over');

	my $minute_over = "UPDATE dt_hold SET probe_at = now() - interval '1 second'";
	$queue->sql($minute_over);
	is_deeply(warnings_of($queue->process), [], 'probe: no warning of the same');
	is(scalar @{ $sb->journal }, $before + 1, 'probe: one request');
	is($queue->states(@ids), 'waiting waiting waiting waiting waiting', 'probe: all wait on');
	is($queue->sql('SELECT sum(attempts) FROM dt_waiting'), '0', 'probe: and it is no attempt');
	is($queue->sql("SELECT probe_at BETWEEN now() + '50 s' AND now() + '60 s' FROM dt_hold"), 't', 'probe: the next in a minute');
	$queue->process;
	is(scalar @{ $sb->journal }, $before + 1, 'probe: and not before');

	# An outage at the other side tells nothing of the key.
	$sb->rule($_, { status => 503 }) foreach @phones;
	$queue->sql($minute_over);
	$queue->process;
	is(scalar @{ $sb->journal }, $before + 2, 'probe: an outage lets nothing more through');
	like($queue->status('doubletick')->{held}, qr/HTTP status 401/, 'probe: and lifts nothing');

	# Nor does a connection that breaks off.
	$sb->rule($_, { fault => 'reset' }) foreach @phones;
	$queue->sql("$minute_over; UPDATE dt_waiting SET due_at = enqueued_at");
	$queue->process;
	is(scalar @{ $sb->journal }, $before + 3, 'probe: nor does a broken connection');

	$sb->clear_rules;
	$queue->sql("$minute_over; UPDATE dt_waiting SET due_at = enqueued_at");
	is_deeply(warnings_of($queue->process), [], 'probe: gets through');
	is($queue->states(@ids), 'done done done done done', 'probe: and all the others follow');
	is($queue->sql('SELECT count(*) FROM dt_hold'), '0', 'probe: the hold is lifted');

	# One that is refused for itself has got through, too.
	$queue->fresh;
	$sb->rule($_, { status => 401, times => 1 }) foreach @phones;
	@ids = map { $queue->enqueue($_, ['lead']) } @phones;
	$queue->process;
	$sb->clear_rules;
	$sb->rule($_, { status => 422 }) foreach @phones;
	$queue->sql($minute_over);
	$queue->process;
	is($queue->states(@ids), 'failed failed failed failed failed', 'probe: a refusal gets through');
	return;
}

# Another reason is worth another warning.
sub reason_changes
{
	$queue->fresh;
	$sb->rule($_, { status => 401 }) foreach @phones;
	my @ids = map { $queue->enqueue($_, ['lead']) } @phones;
	is(scalar @{ warnings_of($queue->process) }, 1, 'reasons: a warning');
	$queue->sql('DROP USER MAPPING FOR CURRENT_USER SERVER doubletick');
	like(join('+', @{ warnings_of($queue->process) }), qr/^requests [^+]* has no user mapping on server "doubletick"$/,
		'reasons: a warning of the next');
	like($queue->status('doubletick')->{held}, qr/no user mapping/, 'reasons: dt_status says the next');
	is_deeply(warnings_of($queue->process), [], 'reasons: once');
	$queue->sql($mapping);
	like(join('+', @{ warnings_of($queue->process) }), qr/^requests [^+]* HTTP status 401[^+]*$/, 'reasons: and of the first again');
	$sb->clear_rules;
	$queue->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_second')");
	$queue->process;
	is($queue->states(@ids), 'done done done done done', 'reasons: done in the end');
	$queue->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (SET api_key 'key_sandbox')");
	return;
}

# Rows do not wait for ever for somebody to mend it.
sub held_rows_age
{
	my $aged = "UPDATE dt_waiting SET enqueued_at = enqueued_at - interval '73 hours', due_at = due_at - interval '73 hours' WHERE id IN (%s)";

	# When the hold begins, and each minute of it.
	$queue->fresh;
	my @ids = map { $queue->enqueue($_, ['lead']) } @phones;
	$queue->sql(sprintf($aged, join ',', @ids[ 0, 1 ]) . '; DROP USER MAPPING FOR CURRENT_USER SERVER doubletick');
	like($queue->process, qr/gave up 2 removals.*queue: 0 done, 2 failed, 3 left/s, 'held rows: are given up');
	$queue->sql(sprintf($aged, $ids[2]) . "; UPDATE dt_hold SET probe_at = now() - interval '1 second'");
	like($queue->process, qr/gave up 1 removal for its age.*queue: 0 done, 1 failed, 2 left/s, 'held rows: and are later');
	is($queue->states(@ids), 'failed failed failed waiting waiting', 'held rows: the young ones wait');
	$queue->sql($mapping);
	$queue->process;
	is($queue->states(@ids), 'failed failed failed done done', 'held rows: and are done');

	$queue->fresh;
	$sb->rule($_, { status => 401 }) foreach @phones;
	@ids = map { $queue->enqueue($_, ['lead']) } @phones;
	$queue->process;
	$queue->sql(sprintf($aged, join ',', @ids) . "; UPDATE dt_hold SET probe_at = now() - interval '1 second'");
	like($queue->process, qr/gave up 5 removals/, 'held by an answer: are given up');
	is($queue->states(@ids), 'failed failed failed failed failed', 'held by an answer: all');
	return;
}

# A role that is gone does not come back.
sub dropped_role
{
	$queue->fresh;
	$queue->sql("CREATE ROLE passing; GRANT USAGE ON FOREIGN SERVER doubletick TO passing;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO passing");
	my @ids = map { $queue->enqueue($_, ['lead'], undef, role => 'passing') } @phones;
	$queue->process;
	is($queue->states(@ids), 'waiting waiting waiting waiting waiting', 'a dropped role: its rows wait');
	$queue->sql('DROP OWNED BY passing; DROP ROLE passing');
	my $well = $queue->enqueue($other, ['lead']);
	like($queue->process, qr/queue: 1 done, 5 failed, 0 left/, 'a dropped role: its rows fail');
	is($queue->states(@ids, $well), 'failed failed failed failed failed done', 'a dropped role: those alone');
	like($queue->settled($ids[0])->{error}, qr/^role does not exist any more$/, 'a dropped role: with a reason');
	is($queue->settled($ids[0])->{attempts}, 0, 'a dropped role: without a request');
	is($queue->sql('SELECT count(*) FROM dt_hold'), '0', 'a dropped role: the hold is forgotten');
	return;
}

by_answer();
by_definition();
probes();
reason_changes();
held_rows_age();
dropped_role();
done_testing;

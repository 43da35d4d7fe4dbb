
# One bad thing stops only itself: an error that comes up while the drainer works
# for one server and role holds these, and the others go on.

use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;
use Queue;

open_queue(sandbox => [ '--key', 'key_sandbox', '--key', 'key_second' ]);
my ($bad, $good) = ('14155550101', '14155550102');

$calls->server('second', base_url => $sb->http);
$calls->sql('ALTER SERVER doubletick OPTIONS (SET rate_limit \'0\')');

# An option that only another version of the library knows, or a bad value, which
# NO VALIDATOR lets pass.
foreach my $case (
	[ 'an unknown option', "ADD newer_option 'x'", 'DROP newer_option', 'invalid option "newer_option"' ],
	[ 'a bad value', "ADD max_connections 'many'", 'DROP max_connections', 'invalid value for option "max_connections"' ],
	[ 'a bad URL', "SET base_url 'http://example.com'", 'SET base_url \'' . $sb->http . "'", 'option "base_url" must start with https' ])
{
	my ($name, $break, $mend, $reason) = @$case;

	fresh();
	$calls->sql("ALTER FOREIGN DATA WRAPPER doubletick NO VALIDATOR; ALTER SERVER doubletick OPTIONS ($break)");
	my @ids = map { enqueue($_, ['lead']) } $bad, "${bad}1";
	my $other = enqueue($good, ['lead'], undef, server => 'second');

	my $messages = drain();
	like($messages, qr/^WARNING:  requests of role "[^"]+" to server "doubletick" are held: .*\Q$reason\E/m, "$name: the hold says why");
	unlike($messages, qr/CONTEXT:  row/, "$name: and names no row, since it is not about one");
	is(states($other), 'done', "$name: the other server goes on");
	is(states(@ids), 'waiting waiting', "$name: its own removals wait");
	like(status('doubletick')->{held}, qr/\Q$reason\E/, "$name: dt_status says why");

	$calls->sql("ALTER SERVER doubletick OPTIONS ($mend); ALTER FOREIGN DATA WRAPPER doubletick VALIDATOR dt_fdw_validator");
	drain();
	is(states(@ids), 'done done', "$name: they go when it is mended");
}

# An age at which removals are given up counts only when it can be read: it may come behind
# an option that cannot.
SKIP:
{
	skip 'built without TESTING=1', 2 unless is_testing_build($node);
	fresh();
	my $id = enqueue($bad, ['lead']);
	$calls->sql("ALTER FOREIGN DATA WRAPPER doubletick NO VALIDATOR; ALTER SERVER doubletick OPTIONS (ADD newer_option 'x', ADD retry_for '30d')");
	time_passes('4 days', $id);
	drain();
	is(states($id), 'waiting', 'options that cannot be read: nothing is given up by the default of retry_for');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP newer_option, DROP retry_for); ALTER FOREIGN DATA WRAPPER doubletick VALIDATOR dt_fdw_validator');
}

# An error while an answer is settled, such as a disk that is full: the requests
# that are in flight are not sent a second time.
SKIP:
{
	skip 'built without TESTING=1', 14 unless is_testing_build($node);
	fresh();
	my @phones = map { sprintf '1415555%04d', $_ } 1 .. 40;
	my @ids = map { enqueue($_, ['lead']) } @phones;
	my $log = -s $node->logfile;
	my $drain = start_drain(before => "SET doubletick.fault_point = 'error:settling'");

	eventually(sub { (status('doubletick')->{held} // '') =~ /fault point "settling"/ }, 'an error in settling holds the server and role');
	like(slurp_file($node->logfile, $log), qr/WARNING:  requests of role "[^"]+" to server "doubletick" are held: error [^\n]*fault point "settling"[^\n]*\n(?:[^\n]*\n){0,3}[^\n]*CONTEXT:  row (?:${\ join '|', @ids}) of dt_waiting, or another one of its customer$/m,
		'the log says which row was worked on');
	my $sent = () = requests(@phones);
	eventually(sub { $calls->sql("SELECT count(*) FROM dt_hold WHERE probe_at > now()") eq '1' }, 'and is remembered');
	ok($sent <= 16, "no more than max_connections requests have left: $sent");
	is(states(@ids), join(' ', ('waiting') x @ids), 'no removal is lost');
	is(scalar(() = requests(@phones)), $sent, 'and none is sent again');
	break_off($drain);

	$calls->sql('ALTER SERVER doubletick OPTIONS (ADD retry_for \'2d\')');
	drain();
	is(states(@ids), join(' ', ('done') x @ids), 'all go when there is room again');

	# The answer that could not be settled ends the hold when it can be, whatever was
	# altered meanwhile.
	fresh();
	$sb->hold($bad, { times => 1 });
	my $id = enqueue($bad, ['lead']);
	$drain = start_drain();
	$sb->await_held(1, $bad);
	$node->append_conf('postgresql.conf', "doubletick.fault_point = 'error:settling'");
	$node->reload;
	$sb->release($bad);
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '1' }, 'an error in settling, for a while: the server and role are held');
	my $definition = $calls->sql('SELECT definition FROM dt_hold');
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET retry_for '3d')");
	eventually(sub { $calls->sql('SELECT definition FROM dt_hold') ne $definition }, 'an error in settling, for a while: it is held anew when the server was altered');
	my $behind = enqueue("${bad}1", ['lead']);
	$node->append_conf('postgresql.conf', "doubletick.fault_point = ''");
	$node->reload;
	unlike(await_drain($drain), qr/ERROR/, 'an error in settling, for a while: the CALL goes on');
	drain();
	is(states($id, $behind), 'done done', 'an error in settling, for a while: the hold ends with it, before a minute is over');
	is_received($bad, 'lead', 'an error in settling, for a while: nothing is sent twice');
}

# A server and role that are held in the turn that an error ends, be it the first: the
# next CALL knows of both.
{
	fresh();
	$calls->sql("CREATE ROLE unmapped; GRANT USAGE ON FOREIGN SERVER doubletick TO unmapped;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO unmapped");
	enqueue($good, ['lead'], undef, role => 'unmapped');
	my $id = enqueue($bad, ['lead']);
	$calls->sql("UPDATE dt_waiting SET tags = '{NULL}' WHERE id = $id");
	is(scalar(() = drain() =~ /^WARNING:  requests of role .* are held: /mg), 2, 'two holds in one turn: both are warned of');
	is($calls->sql('SELECT count(*) FROM dt_hold'), '2', 'two holds in one turn: and remembered');
	unlike(drain(), qr/WARNING/, 'two holds in one turn: so that the next CALL warns of neither');
	$calls->sql('DROP OWNED BY unmapped; DROP ROLE unmapped');
}

# Lanes whose rows cannot be read are tried again and again: that takes no more memory each
# time.
{
	my @servers = map { "bad$_" } 1 .. 6;
	my $count = 0;

	fresh();
	$calls->server($_, base_url => $sb->http) foreach @servers;
	$sb->hold($good);
	enqueue($good, ['lead']);
	enqueue($bad, ['lead'], undef, server => $_) foreach @servers;
	$calls->sql("UPDATE dt_waiting SET tags = '{NULL}' WHERE server LIKE 'bad%'");
	my $offset = -s $node->logfile;
	my $drain = start_drain();
	eventually(sub { $calls->sql('SELECT count(*) FROM dt_hold') eq '6' }, 'rows that cannot be read hold their lanes');
	eventually(sub {
			$calls->sql("SELECT pg_log_backend_memory_contexts($drain->{pid})");
			my ($said) = slurp_file($node->logfile, $offset) =~ /.*logging memory contexts of PID $drain->{pid}(.*Grand total)/s;
			$count = () = ($said // '') =~ /doubletick request: /g;
			return $count > 0;
		}, 'the drainer shows its memory');
	cmp_ok($count, '<', 4, 'they share the memory of a request');
	$sb->release($good);
	await_drain($drain);
}

# What an answer does not say in the shape of API.md is not lost.
{
	my $phone = '14155550150';
	my %answers = (
		'another case' => { tags => { removed => ['Lead'], errored => [] }, customFields => { removed => [], errored => [] } },
		'under neither list' => { tags => { removed => [], errored => [] }, customFields => { removed => [], errored => [] } },
		'no lists' => { success => JSON::PP::false(), reason => 'busy' },
		'an empty object' => {},
		'a list that is none' => { tags => { removed => 'lead', errored => [] } });

	foreach my $name (sort keys %answers)
	{
		fresh();
		$sb->rule($phone, { status => 201, body => $answers{$name}, times => 1 });
		my @ids = map { enqueue($phone, [$_]) } qw(lead vip);
		drain();
		is(states(@ids), 'done done', "$name: done");
		is_deeply(settled($_)->{answer}, $answers{$name}, "$name: the history has the whole answer") foreach @ids;
		is(settled($ids[0])->{error}, 'the answer does not mention tag "lead"', "$name: and says which name it does not account for");
		is(status('doubletick')->{errored}, 2, "$name: both are counted");
	}
	fresh();
	$sb->rule($phone, { status => 201, body => { tags => { removed => [], errored => [ { name => 'lead', why => 'locked' } ] },
		customFields => { removed => [], errored => [] } }, times => 1 });
	my $id = enqueue($phone, ['lead']);
	drain();
	is(settled($id)->{error}, 'tag {"why": "locked", "name": "lead"}; the answer does not mention tag "lead"', 'another key: what was said is shown');

	# The reason under another key, or no text; nothing is said of "quiet" and "bare".
	$sb->rule($phone, { status => 201, body => { tags => { removed => [], errored => [ { tag => 'lead', reason => 'locked' },
		{ tag => 'vip', error => { code => 5 } }, { tag => 'quiet' }, 'bare' ] }, customFields => { removed => [], errored => [] } }, times => 1 });
	my @ids = map { enqueue($phone, [$_]) } qw(lead vip quiet bare);
	drain();
	is(join('; ', map { settled($_)->{error} } @ids), 'tag "lead": {"tag": "lead", "reason": "locked"}; tag "vip": {"tag": "vip", "error": {"code": 5}}; tag "quiet"; tag "bare"',
		'the reason under another key: what was said is shown');
}

# A large answer that does not mention the names is kept once.
{
	my $large = { tags => { removed => [ map { "t$_" } 1 .. 20_000 ], errored => [] } };

	my $phone = '14155550299';

	fresh();
	$sb->rule($phone, { status => 201, body => $large, times => 1 });
	my @ids = map { enqueue($phone, [$_]) } qw(t1 lead vip none);
	drain();
	is(states(@ids), 'done done done done', 'a large answer: done');
	is_deeply(settled($ids[0])->{answer}{tags}, { removed => ['t1'], errored => [] }, 'a large answer: a row that it mentions has its part');
	is_deeply(settled($ids[1])->{answer}, $large, 'a large answer: the first that it does not mention has all of it');
	is(settled($ids[1])->{error}, 'the answer does not mention tag "lead"', 'a large answer: and what is missing');
	foreach my $id (@ids[ 2, 3 ])
	{
		is(settled($id)->{answer}, undef, 'a large answer: the others do not have it again');
		is(settled($id)->{error}, "the answer does not mention all names; removal $ids[1] has all of it", 'a large answer: and say where it is');
	}
}

# The same answer to others: what it says of their own names is looked up for each.
{
	my $long = 'n' x 600;
	my @body = (status => 201, body => { tags => { removed => [ 'lead', $long ], errored => [] }, customFields => { removed => ['vip'], errored => [] } });
	my @cases = (
		[ ['lead'], ['vip'] ],
		[ ['lead'], ['vip'] ],
		[ [ 'lead', 'vip' ], undef, 'the answer does not mention tag "vip"' ],
		[ undef, [ 'lead', 'vip' ], 'the answer does not mention custom field "lead"' ],
		[ ['lead'], ['vip'] ],
		[ ['lea'], ['vip'], 'the answer does not mention tag "lea"' ],
		[ ['lead'], undef ],
		[ ['lead'], ['vip'] ],
		[ [$long], ['vip'] ],
		[ [$long], [ 'vip', $long ], qq{the answer does not mention custom field "$long"} ],
		[ ['lead'], [ map { sprintf 'f%03d', $_ } 1 .. 110 ], qr/mention custom field "f001"/ ],
		[ ['lead'], [ 'vip', $long ], qr/mention custom field "n/ ]);
	fresh();
	$sb->rule('*', {@body});
	my @ids = map { enqueue('14155550' . (300 + $_), @{ $cases[$_] }[ 0, 1 ]) } 0 .. $#cases;
	drain();
	foreach my $n (0 .. $#cases)
	{
		my $error = settled($ids[$n])->{error};
		my $expected = $cases[$n][2];

		like($error // '', !defined $expected ? qr/\A\z/ : ref $expected ? $expected : qr/\A\Q$expected\E\z/, "the same answer, removal $n: what it says of its names");
	}

	# And another answer to the same names, of the same length.
	$body[3]{customFields}{removed} = ['vic'];
	$sb->rule('*', {@body});
	my $id = enqueue('14155550320', ['lead'], ['vip']);
	drain();
	is(settled($id)->{error}, 'the answer does not mention custom field "vip"', 'another answer to the same names');
	$sb->clear_rules;
}

# One request at a time for one phone, when one removal names the WABA number that
# the other takes from the server.
{
	my $phone = '14155550160';
	fresh();
	$calls->sql("ALTER SERVER doubletick OPTIONS (ADD waba_number '919812345678')");
	$sb->hold($phone);
	my @ids = (enqueue($phone, ['lead']), enqueue($phone, ['vip'], undef, waba => '919812345678'),
		enqueue($phone, ['old'], undef, waba => '919812345679'));
	my $other = enqueue('14155550161', ['lead']);
	my $drain = start_drain();
	eventually(sub { states($other) eq 'done' }, 'another customer is done meanwhile');
	is(scalar(() = requests($phone)), 1, 'one phone: one request is out');
	is($sb->held($phone), 1, 'and is held');
	$sb->clear_rules;
	like(await_drain($drain), qr/queue: 4 done/, 'then the others go');
	$calls->sql('ALTER SERVER doubletick OPTIONS (DROP waba_number)');
}

# A number of attempts that has no successor.
foreach my $attempts (2147483647, 2147483646)
{
	my $phone = '14155550170';
	fresh();
	$sb->rule($phone, { status => 503 });
	my $id = enqueue($phone, ['lead']);
	drain();
	$calls->sql("UPDATE dt_waiting SET attempts = $attempts, due_at = now()");
	drain() for 1 .. 3;
	is(scalar(() = requests($phone)), 2, "$attempts attempts: it backs off");
	is($calls->sql("SELECT attempts > 0 AND due_at > now() FROM dt_queue WHERE id = $id"), 't', "$attempts attempts: and the number stays one");
}

# Removals of a role that was dropped fail, and are not said to go on.
{
	fresh();
	my $log = -s $node->logfile;
	$calls->sql("CREATE ROLE leaver; GRANT USAGE ON FOREIGN SERVER doubletick TO leaver;
		GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO leaver");
	my $id = enqueue('14155550171', ['lead'], undef, role => 'leaver');
	drain();
	$calls->sql('DROP OWNED BY leaver; DROP ROLE leaver');
	drain();
	is(states($id), 'failed', 'dropped role: its removal fails');
	is(settled($id)->{error}, 'role does not exist any more', 'dropped role: the history says why');
	unlike(slurp_file($node->logfile, $log), qr/to server "doubletick" go on/, 'dropped role: nothing goes on');
}

# A CALL that runs obeys the configuration file.
{
	fresh();
	$calls->sql("ALTER SERVER doubletick OPTIONS (SET rate_limit '5')");
	enqueue_many('14155570000', 100);
	my $drain = start_drain();
	eventually(sub { scalar(() = requests()) > 2 }, 'a CALL sends');
	$node->append_conf('postgresql.conf', 'doubletick.enabled = off');
	$node->reload;
	like(await_drain($drain), qr/are held: requests are switched off/, 'it stops when doubletick.enabled is switched off by a reload');
	cmp_ok($calls->sql('SELECT count(*) FROM dt_waiting'), '>', 0, 'and leaves what it has not sent');
	$node->append_conf('postgresql.conf', 'doubletick.enabled = on');
	$node->reload;
}

done_testing();

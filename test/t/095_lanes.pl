
# Very many lanes, a server and a role each: the worker sends the rows of all, and gives
# its memory back when they are empty.

use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Worker;

my $calls = Worker->new;
my $node = $calls->node;
my ($nservers, $nroles) = (20, 50);
my $nlanes = $nservers * $nroles;

foreach my $n (1 .. $nservers)
{
	$calls->server("s$n", base_url => $calls->sandbox->http, ca_file => undef);
	$calls->sql("GRANT USAGE ON FOREIGN SERVER s$n TO PUBLIC;
		CREATE USER MAPPING FOR PUBLIC SERVER s$n OPTIONS (api_key " . quote($calls->sandbox->key) . ')');
}
$calls->sql(<<"SQL");
GRANT EXECUTE ON FUNCTION dt_enqueue_remove_tags_custom_fields TO PUBLIC;
DO \$\$ BEGIN
	FOR r IN 1 .. $nroles LOOP
		EXECUTE format('CREATE ROLE r%s', r);
	END LOOP;
END \$\$;
-- One row for each lane.
CREATE PROCEDURE enqueue_all(tag text) LANGUAGE plpgsql AS \$\$ BEGIN
	FOR r IN 1 .. $nroles LOOP
		PERFORM set_config('role', 'r' || r, false);
		PERFORM dt_enqueue_remove_tags_custom_fields((919800000000 + r * 1000 + s)::text, ARRAY[tag], server => 's' || s)
		FROM generate_series(1, $nservers) AS s;
		PERFORM set_config('role', 'none', false);
	END LOOP;
END \$\$;
SQL

# Bytes of the worker's memory contexts: of that of its lanes, and of all.
sub memory
{
	my ($worker) = $calls->workers('postgres');
	my $offset = -s $node->logfile;
	my $said;

	$calls->sql("SELECT pg_log_backend_memory_contexts($worker)");
	eventually(sub { ($said) = slurp_file($node->logfile, $offset) =~ /logging memory contexts of PID $worker\b(.*Grand total: \d+ bytes)/s },
		'the worker shows its memory');
	return map { $said =~ $_ ? $1 : 0 } qr/doubletick schedule: (\d+) total/, qr/Grand total: (\d+) bytes/;
}

sub send_all
{
	my ($tag) = @_;

	$calls->sql("CALL enqueue_all('$tag')");
	eventually(sub { $calls->waiting('postgres') == 0 }, "$tag: all rows are settled");
	is($calls->sql("SELECT count(*) FROM dt_history WHERE state = 'done' AND tags = '{$tag}'"), $nlanes, "$tag: each was sent");
	return;
}

# What is cached for servers and roles stays, so the first time does not count.
send_all('first');
my ($lanes, $all);
eventually(sub { ($lanes, $all) = memory(); $lanes < 100_000 }, 'the memory of the lanes is given back');
send_all('second');
eventually(sub { (memory())[0] < 100_000 }, 'and again');
cmp_ok((memory())[1], '<', $all + 200_000, 'the worker has no more memory than before');

done_testing;

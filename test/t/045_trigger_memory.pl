
# A transaction that runs out of memory in a savepoint still knows what its rows have
# gained before.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Calls;
use PostgreSQL::Test::Utils;
use Test::More;

my $calls = Calls->new;
my $session = $calls->node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query('SELECT pg_backend_pid()');
my $phone = '919876543210';

plan skip_all => 'no prlimit' unless -r "/proc/$pid/status" && eval { run_log([ 'prlimit', "--pid=$pid" ]) };

# As much memory as the session has, and 40 MB more: too little for two million gains.
my ($size) = slurp_file("/proc/$pid/status") =~ /^VmSize:\s+(\d+)/m;
my $limit = ($size + 40 * 1024) * 1024;
my $loads = 400;

$session->query_safe("CREATE TABLE customers (id int PRIMARY KEY, phone text, tags text[]);"
	  . 'CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW'
	  . " EXECUTE FUNCTION dt_remove_tags_custom_fields_trigger('phone', 'tags')");
foreach my $savepoints (1, 2)
{
	ok(run_log([ 'prlimit', "--pid=$pid", "--as=$limit:" ]), 'a limit is set');
	$session->query_safe("BEGIN; INSERT INTO customers VALUES (-1, '$phone', '{x,y}')");
	$session->query_safe('SAVEPOINT s') if $savepoints == 2;
	is($session->query(<<"SQL"), '53200', "$savepoints: memory runs out");
CREATE FUNCTION pg_temp.load() RETURNS text LANGUAGE plpgsql AS \$\$
BEGIN
	FOR i IN 1 .. $loads LOOP
		INSERT INTO customers VALUES (i, '$phone', ARRAY(SELECT i || ' ' || n FROM generate_series(1, 5000) AS n));
	END LOOP;
	RETURN NULL;
EXCEPTION WHEN out_of_memory THEN
	RETURN SQLSTATE;
END \$\$;
SELECT pg_temp.load();
SQL
	ok(run_log([ 'prlimit', "--pid=$pid", '--as=unlimited:' ]), 'the limit is lifted');
	$session->query_safe("INSERT INTO customers SELECT i, '$phone', ARRAY['x', i::text] FROM generate_series(1, 20000) AS i;"
		  . "DELETE FROM customers WHERE id > 0; COMMIT");
	is($session->query('SELECT count(*) FROM dt_queue'), '0', "$savepoints: rows that were inserted and deleted have lost nothing");
	$session->query_safe('DELETE FROM customers');
	is($session->query('SELECT tags FROM dt_queue'), '{x,y}', "$savepoints: the row from before loses its names when it is deleted");
	$session->query_safe('TRUNCATE dt_waiting; DROP FUNCTION pg_temp.load()');
}
$session->quit;
done_testing();

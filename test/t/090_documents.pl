
# The documents cannot rot: every ```sql block of README.md and of doc/*.md is run,
# in order, in the database "shop", against the sandbox; a ```text block right after it
# is what psql must print.  Then the reference is held against what there is, and links
# must lead somewhere.
#
# Each page has databases and roles of its own, so that it can be read by itself.  It
# begins with what README.md says for every page.
#
# An HTML comment before a block says what is special about it, any of these:
#
#   <!-- test: as ROLE; in DATABASE; elsewhere; error SQLSTATE; numbers differ; eventually; preloaded; at end; every page; citus -->
#
# "in" creates the database if it does not exist; "in A and B" runs the block in both.
# "elsewhere" is in another cluster, which can publish. "eventually" repeats the block
# until it prints what it must. What is for Citus is left to 087_citus.pl.  "error" is a block that must raise
# that, "at end" one that is run after all others of its page, and "every page" one that
# is run before all others of every page.  "numbers differ" lets the output have other
# numbers.  "preloaded" is a block for a server that has preloaded the library: after it
# nothing may wait that the worker could send.  What differs from a reader's machine:
# each CREATE SERVER is followed by an ALTER that leads to the sandbox, which takes any
# key; the paths in %stand_in.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(basename dirname);
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Sandbox;

my $top = abs_path(dirname(__FILE__) . '/../..');
my @pages = ('README.md', map { substr $_, length "$top/" } sort glob "$top/doc/*.md");
my %text = map { $_ => contents($_) } @pages;
my ($version) = contents('doubletick.control') =~ /^default_version = '(.+)'$/m;

# All of the program's text, and its string literals: one in each line, as the
# compiler sees them.
my %source = map { basename($_) => contents(substr $_, length "$top/") }
  glob "$top/src/*.[ch] $top/src/*/*.[ch]";
my $literals = join "\n", map { string_literals($source{$_}) } sort keys %source;

my $sb = Sandbox->start('--any-key');
my $node = PostgreSQL::Test::Cluster->new('documents');
$node->init;
$node->start;
my $preloaded = 0;
my $elsewhere = PostgreSQL::Test::Cluster->new('elsewhere');
$elsewhere->init(allows_streaming => 'logical');
$elsewhere->start;

# The key file that the pages tell to make.
my $key_file = PostgreSQL::Test::Utils::tempdir() . '/doubletick.key';
PostgreSQL::Test::Utils::append_to_file($key_file, "your-api-key\n");
chmod 0600, $key_file or die "could not chmod \"$key_file\": $!";
my %stand_in = ('/etc/postgresql/doubletick.key' => $key_file,
	'host=managed.example.com dbname=shop user=replicator' => $elsewhere->connstr('shop') =~ s/'/''/gr,
	map({ ("host=$_.example.com dbname=shop user=replicator" => $elsewhere->connstr($_) =~ s/'/''/gr . ' user=replicator',
				"host '$_.example.com', dbname 'shop'" => 'host \'' . $elsewhere->host . '\', port \'' . $elsewhere->port . "', dbname '$_'") } qw(north south)));

# The blocks.

my ($nservers, %stood_in) = (0);
my %blocks;

foreach my $page (@pages)
{
	$blocks{$page} = [ grep { !$_->{citus} } eval { read_blocks($page) } ];
	is($@, '', "$page can be read");
}
my @first = grep { $_->{first} } @{ $blocks{'README.md'} };
cmp_ok(scalar @first, '>', 0, 'README.md says what every page begins with');
foreach my $page (@pages)
{
	my @own = grep { !$_->{first} } @{ $blocks{$page} };

	next unless @own;
	start_page();
	run_block($_) foreach @first, (grep { !$_->{last} } @own), (grep { $_->{last} } @own);
}
cmp_ok($nservers, '>', 0, 'README.md creates a server');
try_with_sandbox();
ok($stood_in{$_}, "a page has $_, which the test replaces") foreach sort keys %stand_in;

# The reference, against what is installed.

my $reference = $text{'doc/reference.md'};
my $owned = q{pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'doubletick')};

start_page();
run_block($_) foreach @first;
has_row(qr/(?:`[^`|]+`, )*`\Q$_\E/, "function $_")
  foreach rows(qq{SELECT proname || '(' || regexp_replace(pg_get_function_identity_arguments(oid), '(, )?OUT .*', '') || ')'
	FROM pg_proc WHERE oid IN (SELECT objid FROM $owned AND classid = 'pg_proc'::regclass) ORDER BY 1});
has_row(qr/`\Q$_\E` \|/, "setting $_")
  foreach rows(q{LOAD 'doubletick';
	SELECT name FROM pg_settings WHERE name LIKE 'doubletick.%' AND name NOT LIKE '%.fault\_%' ORDER BY 1});

my %has_columns = map { /^(\w+)\|(.+)$/ ? ($1 => [ split /,/, $2 ]) : () }
  rows(qq{SELECT relname, string_agg(attname, ',' ORDER BY attnum)
	FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
	WHERE relkind = 'v' AND has_table_privilege('public', pg_class.oid, 'SELECT')
		AND pg_class.oid IN (SELECT objid FROM $owned AND classid = 'pg_class'::regclass) GROUP BY 1});
foreach my $view (sort keys %has_columns)
{
	my ($table) = $reference =~ /^\| column of [^|]*`$view`.*?\n(.*?)(?=\n\n|\z)/ms;

	ok(defined $table, "reference has a table of the columns of $view") or next;
	ok($table =~ /^\| `$_` \| (?:both \||`$view` \|)?/m, "reference has the column $_ of $view") foreach @{ $has_columns{$view} };
}

ok($reference =~ /`\Q$_\E`/, "reference has $_")
  foreach rows(qq{SELECT relname FROM pg_class WHERE relkind IN ('r', 'v')
	AND oid IN (SELECT objid FROM $owned AND classid = 'pg_class'::regclass) ORDER BY 1});

my @options = $source{'option.c'} =~ /^\t(?:SERVER|MAPPING)_(?:STRING|NUMBER)\((\w+),/mg;
cmp_ok(scalar @options, '>', 0, 'option.c has a table of options');
has_row(qr/`$_` \|/, "option $_") foreach @options;

my %sqlstates = (QUERY_CANCELED => '57014', used_sqlstates());
has_row(qr/$sqlstates{$_} \| `\L$_`/, "SQLSTATE $sqlstates{$_}, $_") foreach sort keys %sqlstates;
my @of_table = map { /\b([0-9A-Z]{5})\b/g } section('doc/calls.md', 'Errors') =~ /^\| [^|]+ \| ([^|]+) \|/mg;
cmp_ok(scalar @of_table, '>', 5, 'the error table has SQLSTATEs');
has_row(qr/$_ \|/, "SQLSTATE $_ of the error table") foreach uniq(@of_table);

my @wait_events = $source{'wait_event.c'} =~ /^\t\[WAIT_\w+\] = "(\w+)",$/mg;
cmp_ok(scalar @wait_events, '>', 0, 'wait_event.c has names');
has_row(qr/`$_` \|/, "wait event $_") foreach @wait_events;

# The rest of the pages, against the tree.

my @messages = map { /^\| ((?:[^|\\]|\\.)+) \|/ ? $1 =~ /`([^`]+)`/g : () }
  split /\n/, $text{'doc/troubleshooting.md'};
@messages = uniq(grep { !/^Cannot POST / } @messages);    # those are the API's words
cmp_ok(scalar @messages, '>', 0, 'the troubleshooting table quotes messages');
foreach my $message (@messages)
{
	# What follows a message after a colon may be put there by its caller.
	my $text = $message =~ s/: \xe2\x80\xa6$//r;
	my $pattern = join '[^\n]{0,12}', map { quotemeta } split /\xe2\x80\xa6/, $text, -1;

	ok($message =~ /[a-z ]{8}/ && $literals =~ /$pattern/, "src/ has the message: $message");
}

my $pages = join "\n", map { $text{$_} } @pages;
ok(-e "$top/$_", "$_ is there")
  foreach uniq($pages =~ m{(?<![\w/])(test/(?:citus|demo|check|package|release|bench|fuzz|torture|sandbox|t)\b(?:[\w./]*\w)?)}g);
cmp_ok(scalar(split /\n/, $text{'README.md'}), '<=', 250, 'README.md is for one sitting');

# Every link leads to a file of the tree and, after a #, to a heading of it.
my %headings;
foreach my $page (@pages, 'test/FAULTS.md', 'test/sandbox/README.md')
{
	my $prose = without_blocks($text{$page} // contents($page));
	my @anchors = map { lc s/[^\w -]//gr =~ tr/ /-/r } $prose =~ /^#+ (.+)$/mg;

	is(scalar uniq(@anchors), scalar @anchors, "no two headings of $page are the same");
	$headings{$page} = { map { $_ => 1 } @anchors };
}
foreach my $page (sort keys %headings)
{
	foreach my $link (uniq(without_blocks($text{$page} // contents($page)) =~ /\]\(([^)\s]+)\)/g))
	{
		my ($path, $anchor) = split /#/, $link, 2;
		my $target = $path eq '' ? $page : in_tree(dirname($page), $path);

		ok(-e "$top/$target" && (!defined $anchor || $headings{$target}{$anchor}), "$page: there is $link");
	}
}
ok($text{'README.md'} =~ /\]\(\Q$_\E\)/, "README.md has a link to $_") foreach grep { $_ ne 'README.md' } @pages;

# A SET in a pooled session would reach others. A function's clause, and what ALTER
# stores, are no such SET.
my @advice = grep { /(?<!clause `)(?<!clause )\bSET doubletick\./ && !/ALTER (?:DATABASE|ROLE|SYSTEM)|^LANGUAGE / }
  split /\n/, join "\n", $pages, $literals, contents("sql/doubletick--$version.sql");
is_deeply(\@advice, [], 'SET LOCAL is advised, and not SET');

# What the extension is made of.

is_deeply(
	[ rows(qq{SELECT pg_describe_object(classid, objid, objsubid) FROM $owned
		AND classid <> 'pg_type'::regclass
		AND obj_description(objid, classid::regclass::name) IS NULL}) ],
	[], 'every object has a comment, but for row types, which are members from PostgreSQL 17 on');
is_deeply(
	[ rows(q{SELECT proname, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc
		WHERE proname ~ '^dt_(.*remove_tags_custom_fields|keep|cancel|retry|process_queue)$' ORDER BY 1}) ],
	[ map { "$_|f" } qw(dt_cancel dt_enqueue_remove_tags_custom_fields dt_keep dt_process_queue
		dt_remove_tags_custom_fields dt_retry dt_try_enqueue_remove_tags_custom_fields dt_try_remove_tags_custom_fields) ],
	'EXECUTE on what sends, stores or changes is not granted to PUBLIC');

# META.json, by the specification 1.0.0 of PGXN.

my $meta = eval { JSON::PP->new->utf8->decode(contents('META.json')) };
is($@, '', 'META.json is JSON');
foreach my $key (qw(name version abstract maintainer license provides meta-spec))
{
	ok(defined $meta->{$key}, "META.json has $key");
}
my ($release) = contents('CHANGELOG.md') =~ /^## (\S+) \(/;
is($meta->{version}, $release, 'META.json has the version that CHANGELOG.md begins with');
is($meta->{'meta-spec'}{version}, '1.0.0', 'META.json says which specification it follows');
my $provided = $meta->{provides}{doubletick};
is($provided->{version}, $version, 'META.json provides the version of doubletick.control');
ok($provided->{$_} && -f "$top/$provided->{$_}", "META.json names a $_ that is there")
  foreach qw(file docfile);

done_testing();

# The bytes of a file of the tree.
sub contents
{
	my ($name) = @_;

	open my $in, '<:raw', "$top/$name" or die "could not open \"$top/$name\": $!";
	local $/;
	return scalar <$in>;
}

# A page from one heading of level 2 to the next.
sub section
{
	my ($page, $title) = @_;
	my ($found) = $text{$page} =~ /^## \Q$title\E\n(.*?)(?=^## |\z)/ms;

	ok(defined $found, "$page has the section $title");
	return $found || '';
}

# A page without what is between fences, where neither headings nor links are.
sub without_blocks
{
	my ($markdown) = @_;

	return $markdown =~ s/^(\s*)```.*?^\s*```$//msgr;
}

# A relative path from a folder of the tree, as a path from the top.
sub in_tree
{
	my ($folder, $path) = @_;
	my @parts = grep { $_ ne '.' } split m{/}, $folder;

	foreach my $part (split m{/}, $path)
	{
		if ($part eq '..') { pop @parts; }
		else { push @parts, $part; }
	}
	return join '/', @parts;
}

# A fresh database "shop", and nothing else that another page has left.
sub start_page
{
	preload(0);
	foreach my $subscription (split /\n/, $node->safe_psql('postgres',
		q{SELECT datname || ' ' || subname FROM pg_subscription JOIN pg_database ON pg_database.oid = subdbid}))
	{
		my ($db, $name) = split / /, $subscription;

		$node->safe_psql($db, "DROP SUBSCRIPTION $name");
	}
	$node->safe_psql('postgres', qq{DROP DATABASE "$_"})
	  foreach split /\n/, $node->safe_psql('postgres',
		q{SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'});
	$node->safe_psql('postgres', qq{DROP ROLE "$_"})
	  foreach split /\n/, $node->safe_psql('postgres',
		q{SELECT rolname FROM pg_roles WHERE rolname NOT LIKE 'pg\_%' AND rolname <> current_user});
	$node->safe_psql('postgres', 'CREATE DATABASE shop');
	return;
}

# Has the reference a table row that begins like this?
sub has_row
{
	my ($beginning, $what) = @_;

	ok($reference =~ /^\| $beginning/m, "reference has the $what");
	return;
}

sub uniq { my %seen; return grep { !$seen{$_}++ } @_; }

# The rows of a query in the database of the pages, as psql -At has them.
sub rows { return split /\n/, $node->safe_psql('shop', $_[0]); }

# Adjacent literals are one, in C, and a format between them is of one, too;
# comments are not looked into.
sub string_literals
{
	my ($text) = @_;
	my @found;

	$text =~ s{/\*.*?\*/}{ }gs;
	$text =~ s/"\s*INT64_FORMAT\s*"/%ld/g;
	while ($text =~ /((?:"(?:[^"\\\n]|\\.)*"\s*)+)/g)
	{
		(my $joined = $1) =~ s/(?<!\\)"\s*"//g;
		$joined =~ s/^"|"\s*$//g;
		$joined =~ s/\\(.)/$1/g;
		push @found, $joined;
	}
	return @found;
}

# Condition => SQLSTATE of what src/ can raise.
sub used_sqlstates
{
	my @names = uniq(map { /\b(?:errcode|fault_make)\(ERRCODE_(\w+)|\breturn ERRCODE_(?!TO_)(\w+)/g }
		  map { $source{$_} } grep { $_ ne 'fault_point.c' } sort keys %source);
	my ($dir) = PostgreSQL::Test::Utils::run_command([ 'pg_config', '--includedir-server' ]);
	my $header = PostgreSQL::Test::Utils::slurp_file("$dir/utils/errcodes.h");
	my %found;

	foreach my $name (grep { defined } @names)
	{
		$header =~ /^#define ERRCODE_$name MAKE_SQLSTATE\(([^)]+)\)/m
		  or die "no SQLSTATE for ERRCODE_$name";
		$found{$name} = join '', $1 =~ /'(.)'/g;
	}
	return %found;
}

# The sql blocks of a page: where each starts, its SQL, what it must print if that is
# given, and what the comment before it says.
sub read_blocks
{
	my ($page) = @_;
	my (@found, $open, $directive, $just_closed);
	my $line = 0;

	foreach (split /\n/, $text{$page})
	{
		$line++;
		if ($open)
		{
			if (/^\s*```$/)
			{
				$just_closed = $open->{just_closed};
				undef $open;
				next;
			}
			my $indent = $open->{indent};
			s/^$indent//;
			${ $open->{to} } .= "$_\n";
		}
		elsif (/^(\s*)```(\w*)$/)
		{
			my $block = { page => $page, node => $node, line => $line, role => undef, db => 'shop', sql => '' };

			$open = { indent => $1, to => \my $not_ours };
			if ($2 eq 'sql')
			{
				obey($block, $directive) if defined $directive;
				undef $directive;
				push @found, $block;
				$open->{to} = \$block->{sql};
				$open->{just_closed} = $block;
			}
			elsif ($2 eq 'text' && $just_closed)
			{
				$just_closed->{output} = '';
				$open->{to} = \$just_closed->{output};
			}
			undef $just_closed;
		}
		elsif (/\S/)
		{
			die "line $line: the comment before it belongs to no sql block" if defined $directive;
			die "line $line: a fence that is not understood" if /```|^\s*~~~/;
			$directive = $1 if /^\s*<!-- test: (.+) -->$/;
			undef $just_closed;
		}
	}
	die 'a block has no end' if $open;
	die 'the last comment belongs to no sql block' if defined $directive;
	return @found;
}

sub obey
{
	my ($block, $directive) = @_;

	foreach (split /; /, $directive)
	{
		if (/^citus$/) { $block->{citus} = 1; last; }
		if (/^as (\w+)$/) { $block->{role} = $1; }
		elsif (/^in (\w+)(?: and (\w+))?$/) { @$block{qw(db too)} = ($1, $2); }
		elsif (/^elsewhere$/) { $block->{node} = $elsewhere; }
		elsif (/^error ([0-9A-Z]{5})$/) { $block->{error} = $1; }
		elsif (/^numbers differ$/) { $block->{numbers_differ} = 1; }
		elsif (/^eventually$/) { $block->{eventually} = 1; }
		elsif (/^preloaded$/) { $block->{preloaded} = 1; }
		elsif (/^at end$/) { $block->{last} = 1; }
		elsif (/^every page$/ && $block->{page} eq 'README.md') { $block->{first} = 1; }
		else { die "line $block->{line}: \"$_\" is not understood"; }
	}
	return;
}

# Runs a block as a reader would type it, and checks what comes of it.
sub run_block
{
	my ($block) = @_;
	my $name = "$block->{page}, line $block->{line}";
	my $sql = $block->{sql};

	foreach my $path (keys %stand_in)
	{
		$stood_in{$path} = 1 if $sql =~ s/\Q$path\E/$stand_in{$path}/g;
	}

	# Every block finds the same customers.
	$sb->customer($_, [ 'lead', 'team lead', 'vip' ], ['plan'])
	  foreach qw(919876543210 919876543211);

	preload($block->{preloaded} || 0);
	$block->{node}->safe_psql('postgres', "CREATE DATABASE $block->{db}")
	  unless $block->{node}->safe_psql('postgres', "SELECT 1 FROM pg_database WHERE datname = '$block->{db}'");
	my ($output, $raised) = psql($block, $sql);
	for (my $until = time + $PostgreSQL::Test::Utils::timeout_default;
		$block->{eventually} && $output ne tidy($block->{output}) && time < $until; ($output, $raised) = psql($block, $sql))
	{
	}
	is($raised, $block->{error} || '', "$name: raises " . ($block->{error} || 'nothing'))
	  or diag("$sql\n$output");
	ok($output !~ /^WARNING:/m, "$name: warns of nothing") or diag($output);
	foreach my $text (grep { $block->{numbers_differ} && defined } $output, $block->{output})
	{
		$text =~ s/\d+(?:\.\d+)?/N/g;
	}
	is($output, tidy($block->{output}), "$name: its output") if defined $block->{output};
	ok($node->poll_query_until($block->{db}, 'SELECT count(*) = 0 FROM dt_waiting'), "$name: the worker sends")
	  if $block->{preloaded};

	foreach my $server ($sql =~ /^\s*CREATE SERVER (\w+) FOREIGN DATA WRAPPER doubletick\b(?![^\n]*\bbase_url)/mg)
	{
		$nservers++;
		$node->safe_psql($block->{db}, "ALTER SERVER $server OPTIONS (ADD base_url '"
			  . $sb->https . "', ADD ca_file '" . $sb->ca_file . "')");
	}
	run_block({ %$block, db => $block->{too}, too => undef }) if $block->{too};
	return;
}

# README.md once more, as somebody without an account reads it: the sandbox that it starts
# prints what stands in for its CREATE SERVER.
sub try_with_sandbox
{
	my ($options) = $text{'README.md'} =~ m{^test/sandbox/run (.+)$}m;
	my $readers = Sandbox->start(split / /, $options // '');
	my ($connects) = sort { ($b->{sql} =~ /^CREATE SERVER/m) <=> ($a->{sql} =~ /^CREATE SERVER/m) } @first;
	my @own = grep { !$_->{first} } @{ $blocks{'README.md'} };

	start_page();
	foreach my $block (@first, (grep { !$_->{last} } @own), (grep { $_->{last} } @own))
	{
		run_block({ %{$block}, $block == $connects ? (sql => $readers->sql) : () });
	}
	cmp_ok(scalar @{ $readers->journal }, '>=', 3, 'README.md: its requests have gone to the sandbox that it starts');
	is($readers->stop, 0, 'which ends');
	return;
}

# Restarts the server when it is to have preloaded the library and has not, or
# the other way round.
sub preload
{
	my ($wanted) = @_;

	return if $wanted == $preloaded;
	$node->append_conf('postgresql.conf', "shared_preload_libraries = '" . ($wanted ? 'doubletick' : '') . "'");
	$node->restart;
	$preloaded = $wanted;
	return;
}

# What psql prints, without the lines and marks that it has for us alone, and
# the SQLSTATE of the error that ended it, "" for none.
sub psql
{
	my ($block, $sql) = @_;
	my $conninfo = $block->{node}->connstr($block->{db}) . ($block->{role} ? " user=$block->{role}" : '');
	my ($output, $raised) = ('', '');

	IPC::Run::run(
		[ 'psql', '-X', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
			'-d', $conninfo, '-f', '-' ],
		'<', \$sql, '>', \$output, '2>&1',
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default))
	  or $raised = 'psql failed';
	$raised = $1 if $output =~ /^psql:<stdin>:\d+: ERROR:  ([0-9A-Z]{5}): /m;

	$output =~ s/^psql:<stdin>:\d+: //mg;
	$output =~ s/^([A-Z]+:  )[0-9A-Z]{5}: /$1/mg;
	$output =~ s/^LOCATION:  .*\n//mg;
	return (tidy($output), $raised);
}

# Without blanks at the ends of lines, and empty lines at the end.
sub tidy
{
	my ($text) = @_;

	$text =~ s/[ \t]+$//mg;
	$text =~ s/\n+\z/\n/;
	return $text;
}

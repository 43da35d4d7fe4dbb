
# The drivers' examples of doc/calls.md: each is run as it stands there, against the
# sandbox.  First the API removes one tag and does not know another, and then the phone
# is not one.
#
# test/check installs none of the drivers.  What is not installed is skipped; here is
# what Debian has: python3-psycopg, node-pg, libpostgresql-jdbc-java with
# default-jdk-headless, and golang-github-lib-pq-dev with golang-go.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

use lib dirname(__FILE__);
use Calls;

my $page = slurp_file(abs_path(dirname(__FILE__) . '/../../doc/calls.md'));
my $dir = PostgreSQL::Test::Utils::tempdir();

# JDBC needs TCP.
my $calls = Calls->new(conf => "listen_addresses = '127.0.0.1'");
my $node = $calls->node;
my $port = $node->port;
$calls->sql('CREATE DATABASE shop');
$calls->set_up('shop');
$calls->sql(q{CREATE ROLE app LOGIN;
	GRANT EXECUTE ON FUNCTION dt_remove_tags_custom_fields TO app;
	GRANT USAGE ON FOREIGN SERVER doubletick TO app;
	CREATE USER MAPPING FOR app SERVER doubletick OPTIONS (api_key 'key_sandbox')}, database => 'shop');

$ENV{PGHOST} = '127.0.0.1';
$ENV{PGPORT} = $port;
$ENV{NODE_PATH} = join ':', grep { defined } $ENV{NODE_PATH}, '/usr/share/nodejs';
$ENV{GO111MODULE} = 'off';
$ENV{GOPATH} = '/usr/share/gocode';
$ENV{GOCACHE} = "$dir/go-cache";
my $jdbc = $ENV{CLASSPATH} // '/usr/share/java/postgresql.jar';

# Each example as a whole program: "EXAMPLE" is where it stands.
my %programs = (
	Python => {
		file => 'example.py',
		is_there => [ 'python3', '-c', 'import psycopg' ],
		run => ['python3'],
		text => "import json\nimport psycopg\n\nEXAMPLE",
		lacks => 'psycopg 3'
	},
	JavaScript => {
		file => 'example.js',
		is_there => [ 'node', '-e', 'require("pg")' ],
		run => ['node'],
		text => <<'JS',
const { Client } = require('pg');
(async () => {
const client = new Client({ database: 'shop', user: 'app' });
await client.connect();
EXAMPLE
await client.end();
})();
JS
		lacks => 'node-postgres'
	},
	Java => {
		file => 'Example.java',
		is_there => [ 'sh', '-c', "command -v javac && test -e '$jdbc'" ],
		run => [ 'java', '-cp', $jdbc ],
		text => <<"JAVA",
import java.sql.*;
import org.postgresql.util.PSQLException;

public class Example {
	public static void main(String[] arguments) throws Exception {
		Connection conn = DriverManager.getConnection("jdbc:postgresql://127.0.0.1:$port/shop?user=app");
EXAMPLE
	}
}
JAVA
		lacks => 'the JDBC driver, or javac'
	},
	Go => {
		file => 'example.go',
		is_there => [ 'sh', '-c', 'command -v go && test -d /usr/share/gocode/src/github.com/lib/pq' ],
		run => [ 'go', 'run' ],
		text => <<'GO',
package main

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log"

	"github.com/lib/pq"
)

func main() {
	db, cannot := sql.Open("postgres", "dbname=shop user=app sslmode=disable")
	if cannot != nil {
		log.Fatal(cannot)
	}
EXAMPLE
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(answer))
}
GO
		lacks => 'lib/pq, or go'
	});

my %examples = $page =~ /^\*\*(\w+)\*\*, [^\n]+:\n\n```\w+\n(.*?)^```$/gms;
is_deeply([ sort keys %examples ], [ sort keys %programs ], 'doc/calls.md has an example for each driver');
foreach my $language (sort keys %programs)
{
  SKIP:
	{
		skip "$language: $programs{$language}{lacks} is not installed", 3 unless is_there($language);

		$calls->sandbox->customer('919876543210', ['lead'], ['plan']);
		like(printed($language, $examples{$language}), qr/team lead.*Tag not found/s, "$language: names that could not be removed");
		is($calls->sandbox->customer_now('919876543210')->{tags}[0], undef, "$language: the other tag is removed");
		like(printed($language, $examples{$language} =~ s/919876543210/98765 43210/r), qr/phone is not a number in international format: \\?"98765 43210/,
			"$language: a refusal");
	}
}
done_testing();

sub is_there
{
	my ($language) = @_;
	my $said;

	return eval { IPC::Run::run($programs{$language}{is_there}, '<', \undef, '>', \$said, '2>&1') };
}

# What the example prints, as a program of its own.
sub printed
{
	my ($language, $example) = @_;
	my ($file, $text, $run) = @{ $programs{$language} }{qw(file text run)};
	my $printed = '';

	unlink "$dir/$file";
	append_to_file("$dir/$file", $text =~ s/EXAMPLE/$example/r);
	IPC::Run::run([ @{$run}, "$dir/$file" ], '<', \undef, '>', \$printed, '2>&1', IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default))
	  or diag("$language: $printed");
	return $printed;
}

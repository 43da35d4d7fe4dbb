# shellcheck disable=SC2034
# Sourced by test/assert, test/valgrind and test/sanitize, after common.sh: a server
# with assertions, built from PostgreSQL's sources as Debian has them, but without
# Debian's patches, whose library directory is the system's.
#
# A server is built once and cached, and each run works on a copy of its own: its
# directories are found by where its programs are.  The build knows valgrind, which
# costs a run without it next to nothing.
#
# Environment:
#   DOUBLETICK_CACHE   where built servers are kept (default: root's in /var/cache,
#                      anybody else's in ~/.cache)
#   DEBIAN_MIRROR      see test/debian.sh

. "$top/test/debian.sh"

server_contrib="amcheck citext dblink hstore pg_surgery postgres_fdw"	# what tests create

# The directory of servers, which belongs to the user who builds them.
cache_dir() {
	local cache

	if [ -n "${DOUBLETICK_CACHE:-}" ]; then
		cache=$DOUBLETICK_CACHE
	elif [ "$(id -u)" = 0 ]; then
		cache=/var/cache/doubletick
	else
		cache=${XDG_CACHE_HOME:-$HOME/.cache}/doubletick
	fi
	mkdir -p "$cache"
	if [ "$(id -u)" = 0 ]; then
		chown postgres "$cache"
	fi
	(cd "$cache" && pwd)
}

# Downloads the original tarball of a major version, as the user who builds.
download_source() {
	local version=$1 dir=$2 suite mirror option
	local apt=(apt-get -qq -o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State=$dir/state" -o "Dir::Cache=$dir/cache" -o Dir::State::Status=/var/lib/dpkg/status
		-o Acquire::Check-Valid-Until=false)

	case $version in
		15) suite=bookworm ;;
		17) suite=trixie ;;
		18) suite=forky ;;
		19) suite=experimental ;;
		*) die "Debian has no sources of PostgreSQL $version" ;;
	esac
	mirror=$(debian_mirror)
	option="[signed-by=$keyring]"
	as_postgres mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
	echo "deb-src $option $mirror $suite main" | as_postgres tee "$dir/sources.list" >/dev/null
	as_postgres "${apt[@]}" update
	as_postgres env -C "$dir" "${apt[@]}" source --download-only --tar-only "postgresql-$version"
}

# Is a server in this directory, with all that tests create?  An earlier version of this
# file may have built it with less.
is_complete() {
	local prefix=$1 module

	for module in $server_contrib; do
		[ -e "$prefix/share/extension/$module.control" ] || return 1
	done
}

# Builds a major version into $prefix, and puts it there when it is complete.
build_server() {
	local version=$1 prefix=$2 dir=$work/postgresql-$1 tarball

	say "building PostgreSQL $version with assertions"
	as_postgres mkdir "$dir" "$dir/source"
	download_source "$version" "$dir"
	tarball=$(find "$dir" -name '*.orig.tar.*' ! -name '*.asc')
	as_postgres tar -xf "$tarball" -C "$dir/source" --strip-components=1
	run_group as_postgres env -C "$dir/source" bash -euc '
		prefix=$1 contrib=$2
		./configure --prefix="$prefix" --enable-cassert --enable-debug --enable-tap-tests \
			--with-openssl --without-icu --without-readline CFLAGS="-O1 -g" CPPFLAGS=-DUSE_VALGRIND
		make -s -j"$(nproc)"
		make -s install DESTDIR="$PWD/../installed"
		for module in $contrib; do
			make -s -j"$(nproc)" -C "contrib/$module"
			make -s -C "contrib/$module" install DESTDIR="$PWD/../installed"
		done
	' bash "$prefix" "$server_contrib" >"$dir/build.log" 2>&1 || { tail -20 "$dir/build.log"; die "could not build it"; }
	as_postgres cp "$dir/source/src/tools/valgrind.supp" "$dir/installed$prefix/share/"
	# Another run may have been faster.
	if ! is_complete "$prefix"; then
		rm -rf "$prefix"
		as_postgres mv -T "$dir/installed$prefix" "$prefix"
	fi
	rm -rf "$dir"
}

# From now on PG_CONFIG is a copy of the server of a major version, built if it is
# not in the cache.  The extension that is installed there goes with $work.
use_server() {
	local version=$1 prefix

	prefix=$(cache_dir)/postgresql-$version
	is_complete "$prefix" || build_server "$version" "$prefix"
	rm -rf "$work/server"
	as_postgres cp -R "$prefix" "$work/server"
	PG_CONFIG=$work/server/bin/pg_config
	bin=$work/server/bin
}

# Has that server, and single-user sessions of it, started by a command, with its
# environment: wrap_server COMMAND...  But initdb runs postgres as it is: what matters has
# not begun yet.  And "pg_ctl restart" would start what is running, which is not the wrapper.
# That of pg_ctl works in a copy of the directory, too (Installation.pm); -p comes last,
# since pg_ctl heeds -V, for which pg_upgrade asks, only where it is first.
wrap_server() {
	as_postgres mv "$bin/postgres" "$bin/postgres.real"
	printf '#!/bin/sh\ncase "$1 $2" in\n"-D "* | "--single -D") exec %s "$0.real" "$@" ;;\n*) exec "$0.real" "$@" ;;\nesac\n' "$*" |
		as_postgres tee "$bin/postgres" >/dev/null
	as_postgres mv "$bin/pg_ctl" "$bin/pg_ctl.real"
	as_postgres tee "$bin/pg_ctl" >/dev/null <<-'SH'
		#!/bin/sh
		exec "$0.real" "$@" -p "${0%/*}/postgres"
	SH
	as_postgres chmod 755 "$bin/postgres" "$bin/pg_ctl"
}

# Builds in a clean $tree, and installs into that server.
build_for_server() {
	as_postgres make -s -C "$tree" PG_CONFIG="$PG_CONFIG" clean
	as_postgres make -s -j"$(nproc)" -C "$tree" PG_CONFIG="$PG_CONFIG" TESTING=1 "$@"
	as_postgres make -s --no-print-directory -C "$tree/test/sandbox"
	as_postgres make -s -C "$tree" PG_CONFIG="$PG_CONFIG" TESTING=1 "$@" install
}

# Settings for the servers that the tests start from now on, one a line.
settings() {
	printf '%s\n' "$@" | as_postgres tee "$work/settings.conf" >/dev/null
	export TEMP_CONFIG=$work/settings.conf
	regress_settings="EXTRA_REGRESS_OPTS=--temp-config=$work/settings.conf"
}

# Adds functions with a fault each to the copy of the library that is tested, before it
# is built: standard input has lines FAULT(name, statements).  Only call_fault() calls
# them, to show that what is to find faults is at work.
plant_faults() {
	{
		cat <<-'C'

			#include "fmgr.h"

			#define FAULT(name, ...) \
				PG_FUNCTION_INFO_V1(fault_##name); \
				Datum fault_##name(PG_FUNCTION_ARGS) \
				{ \
					volatile int zero = PG_NARGS(); \
					volatile int result = zero; \
					__VA_ARGS__; \
					PG_RETURN_INT32(result); \
				}

		C
		cat
	} | as_postgres tee -a "$tree/src/testing.c" >/dev/null
}

call_fault() {
	sql -At -c "CREATE FUNCTION pg_temp.fault() RETURNS int AS '\$libdir/doubletick', 'fault_$1' LANGUAGE C" \
		-c "SELECT 'it has returned ' || pg_temp.fault()" 2>&1 || true
}

# Has it been found?  found FAULT yes|no WHAT-WAS-SAID
found() {
	if [ "$2" = yes ]; then
		passed=$((passed + 1))
		echo "ok - $1"
	else
		failed=$((failed + 1))
		echo "not ok - $1: $3"
	fi
}

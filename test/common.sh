# Sourced by every script in test/: from a bare Debian machine to a built and
# installed extension, a throwaway cluster and the sandbox.
#
# Everything is built in a copy of the tree, so that the checkout stays as it is.
# PostgreSQL refuses to run as root: root builds and tests as the user postgres.
# Any other user does so as himself, and needs sudo only to install packages that
# are missing, and where he cannot write to the directories of PG_CONFIG.
#
# Environment:
#   PG_CONFIG   the server to build for (default: the newest PostgreSQL of 15 to 19 that
#               Debian's packages have installed, else one that can be installed)
#   TMPDIR      where to work (default: /tmp)
#   KEEP        if set, what was built and logged is kept there
#
# A script that needs more packages names them in $more_packages before it sources
# this file.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
packages="ca-certificates curl gcc libc6-dev libcurl4-openssl-dev libipc-run-perl
	libjansson-dev libssl-dev make perl zlib1g-dev ${more_packages:-}"
versions="19 18 17 16 15"	# of PostgreSQL, the newest first
postgresql_dir=/usr/lib/postgresql	# where Debian's packages put it
installed=			# packages that we have installed
asked_for=			# those of them that we have named to apt-get
started=()			# process ids, to be ended with us
test_group=			# process group of the tests while they run
plain_tree=			# what is to be installed in the end, if it is not yet
is_installed=			# has the extension been installed?
passed=0			# tests, counted by run_tests
failed=0

# A heading, bold on a terminal.
say() {
	if [ -t 1 ]; then
		printf '\n\033[1m== %s\033[0m\n' "$*"
	else
		printf '\n== %s\n' "$*"
	fi
}

die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

# as_root: runs a command as root; as_postgres: as the user who runs PostgreSQL.
if [ "$(id -u)" = 0 ]; then
	as_root() { "$@"; }
	as_postgres() { runuser -u postgres -- "$@"; }
else
	as_root() {
		command -v sudo >/dev/null || die "this needs root, or sudo: $*"
		sudo "$@"
	}
	as_postgres() { "$@"; }
fi

# Installs what is missing of the packages that we need.  Where there is no
# dpkg, the build will tell.
install_packages() {
	local missing=() package

	command -v dpkg-query >/dev/null || return 0
	for package in $packages; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
			missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return
	say "installing ${missing[*]}"
	update_package_lists
	dpkg-query -W -f '${Package}\n' | sort >"$work/packages.before"
	with_progress "$work/apt.log" as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
		{ tail -20 "$work/apt.log"; die "apt-get failed"; }
	installed=$(dpkg-query -W -f '${Package}\n' | sort | comm -13 "$work/packages.before" - | tr '\n' ' ')
	asked_for="${missing[*]}"
}

update_package_lists() {
	[ -z "${lists_are_new:-}" ] || return 0
	with_progress "$work/apt.log" as_root apt-get update -qq || { tail -20 "$work/apt.log"; die "apt-get update failed"; }
	lists_are_new=1
}

# Runs a command that may take minutes and logs what it says.  Shows the last line of
# that every few seconds.
with_progress() {
	local progress_log=$1 status=0 ticker

	shift
	: >"$progress_log"
	(
		seen=
		while sleep 5 && kill -0 $$ 2>/dev/null; do
			line=$(tail -n 1 "$progress_log" | cut -c1-100)
			[ "$line" = "$seen" ] || printf '   %s\n' "$line"
			seen=$line
		done
	) &
	ticker=$!
	"$@" >>"$progress_log" 2>&1 </dev/null || status=$?
	kill "$ticker" 2>/dev/null || true
	return $status
}

# Sets PG_CONFIG to that of a PostgreSQL that is installed, or whose packages can be
# installed, which it adds to "packages".  A version is only tried, since apt-cache also
# knows packages that nobody has, and those whose dependencies are nowhere.
find_postgresql() {
	local version reason=

	for version in $versions; do
		PG_CONFIG=$postgresql_dir/$version/bin/pg_config
		if [ -x "$PG_CONFIG" ] && [ -x "${PG_CONFIG%pg_config}initdb" ] &&
			[ -e "$("$PG_CONFIG" --includedir-server)/postgres.h" ]; then
			return
		fi
	done
	if command -v apt-get >/dev/null; then
		update_package_lists
		for version in $versions; do
			if LC_ALL=C apt-get install -s -qq --no-install-recommends "postgresql-$version" \
				"postgresql-server-dev-$version" >"$work/apt.log" 2>&1; then
				PG_CONFIG=$postgresql_dir/$version/bin/pg_config
				packages="$packages postgresql-$version postgresql-server-dev-$version"
				return
			fi
			if [ -z "$reason" ] && [ -n "$(apt-cache show "postgresql-$version" 2>/dev/null)" ]; then
				reason="; apt-get cannot install postgresql-$version: $(tail -n 1 "$work/apt.log")"
			fi
		done
	fi
	die "found no PostgreSQL of 15 to 19, neither installed nor in the package sources$reason; set PG_CONFIG to one's pg_config"
}

# Installs what was built in a tree, as root if the directories ask for it.
install_from() {
	local tree=$1 dir
	local install=(make -s -C "$tree" PG_CONFIG="$PG_CONFIG" install)

	shift
	is_installed=1
	for dir in "$("$PG_CONFIG" --pkglibdir)"{,/bitcode} "$("$PG_CONFIG" --sharedir)/extension"; do
		if [ -e "$dir" ] && [ ! -w "$dir" ]; then
			as_root "${install[@]}" "$@"
			return
		fi
	done
	"${install[@]}" "$@"
}

# Runs make, and shows what it said if it fails.
run_make() {
	with_progress "$work/make.log" as_postgres make -j2 "$@" ||
		{ tail -40 "$work/make.log"; die "make failed"; }
}

# Builds in $tree, with arguments for make, and installs the extension.
build() {
	run_make -C "$tree" PG_CONFIG="$PG_CONFIG" "$@"
	run_make -C "$tree/test/sandbox"
	install_from "$tree" "$@"
}

# The same with the fault points that tests need.  In the end, whatever happens,
# the build without them is installed in its place.
build_for_tests() {
	as_postgres cp -R "$tree" "$work/plain"
	run_make -C "$work/plain" PG_CONFIG="$PG_CONFIG" "$@"
	plain_tree=$work/plain
	build TESTING=1 "$@"
}

# Runs a command, usually the tests, in a process group of its own and waits for
# it: bash would let a command in the foreground come to its end before it heeds
# a signal.
run_group() {
	local status=0

	set -m
	"$@" </dev/null &
	test_group=$!
	set +m
	wait "$test_group" || status=$?
	test_group=
	return $status
}

# Runs pg_regress and TAP in $tree, with further arguments for make, and adds to
# $passed and $failed.  Everything goes to the log, and what one wants to watch to
# the terminal.  False when something failed.
run_tests() {
	local log=$work/tests.log status=0 not_ok name

	run_group log_tests "$@" || status=$?
	if [ -f "$tree/regression.diffs" ]; then
		cat "$tree/regression.diffs"
		rm -f "$tree/regression.diffs"
	fi
	# A server without PostgreSQL::Test skips TAP and calls that a success.
	case " $* " in
		*" TAP_TESTS= "*) ;;
		*) grep -q '^Result: PASS' "$log" || status=1 ;;
	esac
	# pg_regress up to 15 says "test NAME ... ok", later versions and TAP "ok N".
	passed=$((passed + $(grep -cE '^(ok [0-9]+|test .* \.\.\. ok)' "$log" || true)))
	not_ok=$(grep -cE '^(not ok [0-9]+|test .* \.\.\. FAILED)' "$log" || true)
	if [ "$status" != 0 ] && [ "$not_ok" = 0 ]; then
		not_ok=1			# something died before it could count
	fi
	[ "$not_ok" = 0 ] && return
	failed=$((failed + not_ok))
	say "the end of the log (KEEP=1 keeps it all)"
	tail -n 100 "$log"
	sed -n 's,^test/t/\(.*\)\.pl *(Wstat: [1-9].*,\1,p' "$log" | while IFS= read -r name; do
		say "the end of the log of $name.pl"
		tail -n 30 "$tree/tmp_check/log/regress_log_$name" || true
	done
	return 1
}

log_tests() {
	as_postgres make -C "$tree" PG_CONFIG="$PG_CONFIG" installcheck PROVE_FLAGS=--verbose \
		${PROVE_TESTS:+PROVE_TESTS="$PROVE_TESTS"} "$@" 2>&1 |
		tee "$work/tests.log" |
		grep --line-buffered -E "^(test |test/t/|not ok|#   [^']|make|Files=|Result:)|FAILED"
}

# Adds what another script has counted, which its last line says.
add_result() {
	local counts

	read -r -a counts <<<"$(tail -n 1 "$1")"
	if [ "${counts[1]:-} ${counts[3]:-}" = "passed, failed" ]; then
		passed=$((passed + counts[0]))
		failed=$((failed + counts[2]))
	else
		failed=$((failed + 1))			# it died before it could count
	fi
}

# The last line: what passed and what failed.  False when something failed.
say_result() {
	summary="$passed passed, $failed failed"
	[ "$failed" = 0 ]
}

# Ends that group, and the clusters that its tests have started outside of it.
end_group() {
	local pid_file i

	kill -TERM -- "-$test_group" 2>/dev/null
	for i in $(seq 100); do
		kill -0 -- "-$test_group" 2>/dev/null || break
		sleep 0.1
	done
	kill -KILL -- "-$test_group" 2>/dev/null
	find "$tree" -name postmaster.pid | while IFS= read -r pid_file; do
		as_postgres "$bin/pg_ctl" -D "$(dirname "$pid_file")" -m immediate -w stop
	done >"$work/stop.log" 2>&1
}

# What of ours is still on this machine, and how to undo it.
say_what_stays() {
	[ -z "$installed$is_installed" ] || say "what stays on this machine"
	if [ -n "$is_installed" ]; then
		echo "The extension.  To remove it, as root:"
		echo "   make -C $top PG_CONFIG=$PG_CONFIG uninstall"
	fi
	if [ -n "$installed" ]; then
		echo "Packages: $(wc -w <<<"$installed") with what they need.  To remove those that you do not need, as root:"
		echo "   apt-get purge --autoremove $asked_for"
		case " $installed" in
			*" postgresql-1"[5-9]" "*) echo "With PostgreSQL came a cluster \"main\", which goes with it: see pg_lsclusters." ;;
		esac
	fi
}

# Stops what was started, by process id, and removes what was made.
clean_up() {
	local status=$? pid

	trap - EXIT
	trap '' HUP INT PIPE TERM
	set +e
	[ -z "$test_group" ] || end_group
	if [ -f "$work/data/postmaster.pid" ]; then
		as_postgres "$bin/pg_ctl" -D "$work/data" -m fast -w stop >"$work/stop.log" 2>&1
	fi
	for pid in "${started[@]}"; do
		kill "$pid" 2>/dev/null
	done
	if [ -n "$plain_tree" ] && ! install_from "$plain_tree"; then
		echo "$0: the build with fault points is still installed" >&2
		[ "$status" != 0 ] || status=1
	fi
	say_what_stays
	cd /
	if [ -n "${KEEP:-}" ]; then
		echo "kept: $work"
	else
		rm -rf "$work"
	fi
	[ -z "${summary:-}" ] || printf '%s\n' "$summary"	# the last line
	exit "$status"
}

# A throwaway cluster, reached by its socket alone, and that only by its own user and root:
# any other who could connect would be a superuser, and so could run programs as postgres.
start_cluster() {
	as_postgres "$bin/initdb" -D "$work/data" -A trust -E UTF8 --no-locale -N >"$work/initdb.log"
	as_postgres "$bin/pg_ctl" -D "$work/data" -l "$work/postgres.log" -w -s \
		-o "-c listen_addresses='' -c unix_socket_directories='$work' -c unix_socket_permissions=0700 $*" start
	export PGHOST=$work PGDATABASE=postgres PGOPTIONS=
}

# The sandbox, with further arguments; sets $sandbox_http, $sandbox_https and $sandbox_ca.
start_sandbox() {
	local i

	as_postgres "$tree/test/sandbox/sandbox" --dir "$work/sandbox" "$@" >"$work/sandbox.log" 2>&1 &
	for i in $(seq 200); do
		grep -q '^ready' "$work/sandbox.log" && break
		kill -0 $! 2>/dev/null && [ "$i" != 200 ] ||
			die "the sandbox did not start: $(cat "$work/sandbox.log")"
		sleep 0.05
	done
	# The process itself: $! is but the shell around it.
	started+=("$(sed -n 's/^ *"pid": \([0-9]*\).*/\1/p' "$work/sandbox/sandbox.json")")
	sandbox_https=$(sed -n 's/^https *\(https:[^ ]*\).*/\1/p' "$work/sandbox.log")
	sandbox_http=$(sed -n 's/^http *\(http:[^ ]*\).*/\1/p' "$work/sandbox.log")
	sandbox_ca=$work/sandbox/ca.pem
}

# Talks to the sandbox's administrative interface: sandbox METHOD PATH [JSON]
sandbox() {
	curl -sS -f --noproxy '*' -X "$1" "$sandbox_http/sandbox/$2" ${3:+--data "$3"}
}

# psql as the cluster's superuser.
sql() { as_postgres "$bin/psql" -X -q -v ON_ERROR_STOP=1 "$@"; }

# PG_CONFIG and $work as absolute paths, for we leave the directory that we were
# called in: the user postgres may not be allowed to enter it.
if [ -n "${PG_CONFIG:-}" ]; then
	command -v "$PG_CONFIG" >/dev/null || die "there is no \"$PG_CONFIG\""
	case $PG_CONFIG in
		*/*) PG_CONFIG=$(cd "$(dirname "$PG_CONFIG")" && pwd)/$(basename "$PG_CONFIG") ;;
	esac
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/doubletick.XXXXXX")
work=$(cd "$work" && pwd)
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM
cd "$work"
chmod 755 "$work"
[ -n "${PG_CONFIG:-}" ] || find_postgresql
install_packages
if [ "$(id -u)" = 0 ]; then
	chown postgres "$work"
fi
bin=$("$PG_CONFIG" --bindir)

# What tests leave there goes with the rest.
export TMPDIR=$work/tmp
as_postgres mkdir "$TMPDIR"

# The tree as git has it, with what is not committed yet, but nothing ignored.
tree=$work/tree
as_postgres mkdir "$tree"
if command -v git >/dev/null && git -C "$top" rev-parse >/dev/null 2>&1; then
	(cd "$top" && git ls-files -z --cached --others --exclude-standard |
		while IFS= read -r -d '' file; do
			if [ -e "$file" ]; then printf '%s\0' "$file"; fi
		done |
		tar -c --null -T -)
else
	(cd "$top" && tar -c --exclude .git --exclude '*.o' --exclude '*.so' --exclude '*.bc' \
		--exclude sandbox/sandbox --exclude tmp_check --exclude tmp_regress --exclude ./log .)
fi | as_postgres tar -x --no-same-owner -C "$tree"

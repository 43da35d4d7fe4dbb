# Sourced by test/demo, test/check and test/bench/*: from a bare Debian machine
# to a built and installed extension, a throwaway cluster and the sandbox.
#
# Everything is built in a copy of the tree that an unprivileged user owns:
# PostgreSQL refuses to run as root, and the checkout stays as it is.
#
# Environment: PG_CONFIG, the server to build for (default: PostgreSQL 15's).

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
packages="build-essential ca-certificates curl libcurl4-openssl-dev libipc-run-perl
	libjansson-dev libssl-dev perl postgresql-15 postgresql-server-dev-15 zlib1g-dev"
started=()

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

# Runs a command as root, as the user who runs PostgreSQL.
if [ "$(id -u)" = 0 ]; then
	as_root() { "$@"; }
	as_postgres() { runuser -u postgres -- "$@"; }
	postgres_user=postgres
else
	as_root() { sudo "$@"; }
	as_postgres() { "$@"; }
	postgres_user=$(id -un)
fi

# Installs what is missing of the packages that we need.
install_packages() {
	local missing=() package
	for package in $packages; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
			missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return
	say "installing ${missing[*]}"
	as_root apt-get update -qq
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		"${missing[@]}" >"$work/apt.log" 2>&1 || { tail -20 "$work/apt.log"; die "apt-get failed"; }
}

# Builds in $tree, with arguments for make, and installs the extension.
build() {
	as_postgres env -C "$tree" make -s PG_CONFIG="$PG_CONFIG" "$@"
	as_postgres make -s -C "$tree/test/sandbox"
	as_root make -s -C "$tree" PG_CONFIG="$PG_CONFIG" install "$@"
}

# Stops what was started, by process id, and removes what was made.
clean_up() {
	local status=$? pid
	trap - EXIT
	if [ -f "$work/data/postmaster.pid" ]; then
		as_postgres "$bin/pg_ctl" -D "$work/data" -m fast -w stop >"$work/stop.log" 2>&1 || true
	fi
	for pid in "${started[@]}"; do
		kill "$pid" 2>/dev/null || true
	done
	[ -n "${KEEP:-}" ] && echo "kept: $work" || as_root rm -rf "$work"
	exit $status
}

# A throwaway cluster, reached by its socket alone.
start_cluster() {
	as_postgres "$bin/initdb" -D "$work/data" -A trust -E UTF8 --no-locale -N >"$work/initdb.log"
	as_postgres "$bin/pg_ctl" -D "$work/data" -l "$work/postgres.log" -w -s \
		-o "-c listen_addresses='' -c unix_socket_directories='$work' $*" start
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

# Talks to the sandbox's own door: sandbox METHOD PATH [JSON]
sandbox() {
	curl -sS -f --noproxy '*' -X "$1" "$sandbox_http/sandbox/$2" ${3:+--data "$3"}
}

# psql as the cluster's superuser.
sql() { as_postgres "$bin/psql" -X -q -v ON_ERROR_STOP=1 "$@"; }

work=$(mktemp -d "${TMPDIR:-/tmp}/doubletick.XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT TERM
chmod 755 "$work"
install_packages
PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
bin=$("$PG_CONFIG" --bindir)
as_root chown "$postgres_user" "$work"

# The tree as git has it, with what is not committed yet, but nothing ignored.
tree=$work/tree
as_root mkdir "$tree"
if command -v git >/dev/null && git -C "$top" rev-parse >/dev/null 2>&1; then
	(cd "$top" && git ls-files -z --cached --others --exclude-standard |
		while IFS= read -r -d '' file; do
			if [ -e "$file" ]; then printf '%s\0' "$file"; fi
		done |
		tar -c --null -T -) | as_root tar -x --no-same-owner -C "$tree"
else
	(cd "$top" && tar -c --exclude .git --exclude '*.o' --exclude '*.so' --exclude '*.bc' \
		--exclude sandbox/sandbox .) | as_root tar -x --no-same-owner -C "$tree"
fi
as_root chown -R "$postgres_user" "$tree"

# Sourced by test/versions, test/package and test/server.sh: Debian's mirror, as this
# machine's apt knows it, and chroots of Debian's releases, which need root.
#
# Environment:
#   DEBIAN_MIRROR   where sources and other releases come from (default: the first
#                   repository of Debian itself among apt's sources)

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Debian's repositories among apt's sources, a line for each suite: label, address and name.
debian_sources() {
	local sources

	# shellcheck disable=SC2016
	sources=$(apt-get indextargets --format '$(LABEL) $(REPO_URI) $(RELEASE)' \
		'Created-By: Packages' 'Component: main' | sed -n '/^Debian/p')
	[ -n "$sources" ] || die "apt knows no mirror of Debian (try apt-get update)"
	echo "$sources"
}

debian_mirror() {
	if [ -n "${DEBIAN_MIRROR:-}" ]; then
		echo "$DEBIAN_MIRROR"
	else
		debian_sources | sed -n 's/^Debian \([^ ]*\).*/\1/p' | sed -n 1p
	fi
}

# The caller's say and die are those of every script here.
install_mmdebstrap() {
	[ -f "$keyring" ] && command -v mmdebstrap >/dev/null && return
	say "installing mmdebstrap"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		debian-archive-keyring mmdebstrap >/dev/null
}

# Makes a chroot of a release, with the packages that are named and from the
# sources.list on standard input; what follows goes to mmdebstrap.  It is made under
# another name, so that half a chroot is never used.
make_chroot() {
	local release=$1 target=$2 packages=$3

	shift 3
	rm -rf "$target.new"
	mmdebstrap --quiet --mode=root --variant=minbase --keyring="$keyring" --include="$packages" \
		--aptopt='Acquire::Check-Valid-Until "false"' \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		"$@" "$release" "$target.new" -
	mv "$target.new" "$target"
}

# Runs a command in a chroot, with file systems and process ids of its own: when it
# ends, so does what it has started, and no mount is left.  Before that, $mounts is
# executed by sh; there, the chroot is "$0".  With in_place=exec it replaces this
# shell, and then SIGKILL ends it: unshare ignores other signals.
in_chroot() {
	local target=$1

	shift
	# shellcheck disable=SC2016
	${in_place:-} unshare --mount --pid --fork --kill-child sh -ec "${mounts:-}"'
		mount -t proc proc "$0/proc"
		mount -t tmpfs -o mode=1777 tmpfs "$0/dev/shm"
		exec chroot "$0" "$@"' \
		"$target" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		DEBIAN_FRONTEND=noninteractive MAKEFLAGS="-j$(nproc)" "$@" </dev/null
}

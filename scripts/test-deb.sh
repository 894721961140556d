#!/bin/bash
# Installs a Debian package into a bare Debian 12, and tries it there as root and as a
# user: what it needs comes with it, and nothing else is there.
#
#	scripts/test-deb.sh dist/matchlock_VERSION_ARCH.deb
#
# It is run as root, for it makes a root of its own and enters that.
set -eu -o pipefail
cd "$(dirname "$0")/.."

package=$(realpath "$1")
root=$(mktemp -d)
trap 'umount "$root/proc" "$root/dev" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT

mirrors=$(apt-get indextargets --format 'deb $(REPO_URI) $(CODENAME) $(COMPONENT)' \
	'Created-By: Packages' 'Origin: Debian' 'Component: main' | sed -n '/ bookworm/p' | sort -u)
# The lists stay: the guest's kernel comes by them.
mmdebstrap --quiet --variant=apt --skip=cleanup/apt/lists --hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount \
	--include="$package" --customize-hook='chroot "$1" useradd --create-home tester' \
	bookworm "$root" ${mirrors:+"$mirrors"}
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
scripts/busybox-image.sh >"$root/tmp/busybox.tar"
for home in root home/tester; do
	try="cd /tmp && matchlock image import busybox /tmp/busybox.tar && matchlock run busybox echo hi && matchlock diagnose"
	case $home in
	root) chroot "$root" bash -ec "$try" ;;
	*) chroot --userspec=tester:tester "$root" env HOME=/$home bash -ec "$try" ;;
	esac | tee "$root/tmp/said"
	grep -qx hi "$root/tmp/said"
done
echo "test-deb: it runs as root and as a user"

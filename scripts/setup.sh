#!/bin/bash
# Installs the Debian packages that are missing.
#
#	scripts/setup.sh run     what matchlock itself needs
#	scripts/setup.sh test    and what its tests need
#	scripts/setup.sh bench   and what it is measured against
#	scripts/setup.sh kernel  what a kernel is built with, which is nothing of these
#
# Where nothing is missing, apt is not called. Elsewhere than on Debian it says
# what to install, and leaves it to you.
set -eu -o pipefail

packages=(busybox-static ca-certificates e2fsprogs qemu-system-x86)
case ${1:-} in
run) ;;
test) packages+=(cpio erofs-utils gcc git libc6-dev mmdebstrap openssh-client qemu-utils umoci) ;;
bench) packages+=(cpio git iptables mmdebstrap netavark podman umoci) ;;
kernel) packages=(bc bison flex gcc libc6-dev libelf-dev linux-source-6.1 xz-utils) ;;
*)
	echo "usage: $0 run|test|bench|kernel" >&2
	exit 2
	;;
esac
# It comes with node.js as well, from elsewhere than Debian.
[ "${1:-}" != test ] || command -v npm >/dev/null || packages+=(npm)

if ! command -v dpkg-query >/dev/null; then
	echo "setup: this is not Debian: see to it that these packages' programs are here: ${packages[*]}" >&2
	exit 0
fi

apt_get() {
	local as_root=()
	[ "$(id -u)" = 0 ] || as_root=(sudo)
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq --yes --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

# A kernel is fetched with the lists too, so they have to be there in any case.
compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || apt_get update

missing=()
for package in "${packages[@]}"; do
	status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || true
	[ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "setup: installing ${missing[*]}"
if ! apt_get install "${missing[@]}"; then
	echo "setup: once more, with new package lists"
	apt_get update
	apt_get install "${missing[@]}"
fi

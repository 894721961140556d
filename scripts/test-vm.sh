#!/bin/bash
# Runs the tests with MATCHLOCK_TEST_VM=1: those that boot VMs, mount images and
# call the tools that scripts/setup.sh installs.
#
#	scripts/test-vm.sh [GO TEST FLAG…] [PACKAGE…]
#
# They run as root, so that they can mount; matchlock itself needs no root. What is
# slow to make is kept from run to run in MATCHLOCK_TEST_HOME:
#
#	images/busybox.tar      root file system of the starter image
#	images/debian-12.tar    root file system of Debian 12 with clients of all sorts
#	images/debian-12        OCI layout of it, for `make bench`
#	images/layers-60        OCI layout of 60 layers, see scripts/oci-image.sh
#	node/                   node.js and npm for guests, with a cache of packages
#	tools/                  servers that are unpacked, not installed
#	home/                   a MATCHLOCK_HOME that tests may share, for the kernel in it
#
# One package at a time: two guests already fill two cores.
set -eu -o pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
	# The user's modules are good enough for root to read; its build cache is its
	# own, and git would not tell it the revision of another user's checkout.
	exec sudo -H env PATH="$PATH" GOMODCACHE="$(go env GOMODCACHE)" GOPROXY="$(go env GOPROXY)" \
		GOFLAGS=-buildvcs=false MATCHLOCK_TEST_LONG="${MATCHLOCK_TEST_LONG:-}" \
		MATCHLOCK_TEST_SOAK="${MATCHLOCK_TEST_SOAK:-}" MATCHLOCK_TEST_SEED="${MATCHLOCK_TEST_SEED:-}" \
		MATCHLOCK_OWN_KERNEL="${MATCHLOCK_OWN_KERNEL:-}" "scripts/${0##*/}" "$@"
fi

export MATCHLOCK_TEST_VM=1
export MATCHLOCK_TEST_HOME=${MATCHLOCK_TEST_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/matchlock-test}
export PATH=$PATH:$MATCHLOCK_TEST_HOME/tools/usr/bin

images=$MATCHLOCK_TEST_HOME/images
mkdir -p "$images" "$MATCHLOCK_TEST_HOME/home"
chmod 0700 "$MATCHLOCK_TEST_HOME/home"

# depends PACKAGE PREFIX is what PACKAGE needs whose name is PREFIX and a number.
depends() { apt-cache depends "$1" | sed -n "s/^ *Depends: \($2[0-9]*\)$/\1/p"; }

tools=$MATCHLOCK_TEST_HOME/tools
command -v docker-registry >/dev/null || scripts/unpack.sh docker-registry "$tools"
if [ ! -e "$tools/servers" ]; then
	# With the libraries that hosts may lack.
	for package in nginx openssh-server libwrap0 "$(depends postgresql postgresql-)" libxml2 "$(depends libxml2 libicu)"; do
		scripts/unpack.sh "$package" "$tools"
	done
	touch "$tools/servers"
fi
scripts/busybox-image.sh >"$images/busybox.tar"
scripts/debian-image.sh "$images/debian-12.tar"
scripts/node.sh "$MATCHLOCK_TEST_HOME/node"
[ -d "$images/layers-60" ] || scripts/oci-image.sh "$images/layers-60" "$images/busybox.tar" 60

# Without a package, all that have tests.
packages=()
if [[ " $* " != *" ./"* ]]; then
	mapfile -t packages < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...)
fi
exec go test -count=1 -p=1 -timeout=30m "$@" "${packages[@]}"

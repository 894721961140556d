#!/bin/bash
# Builds a kernel for guests from Debian's source and kernel/config, and puts it
# where matchlock finds it and takes it in place of the distribution's:
# kernel/vmlinux in matchlock's data folder. Removing that file undoes it.
#
#	scripts/kernel.sh          build and install
#	scripts/kernel.sh config   only see whether all of kernel/config takes effect
#
# Source and objects, 1.7 GB, are kept below ${XDG_CACHE_HOME:-~/.cache}/matchlock-kernel
# and make the next build a short one. The first takes about ten minutes on two cores.
set -eu -o pipefail
cd "$(dirname "$0")/.."

package=linux-source-6.1
config=$PWD/kernel/config
work=${XDG_CACHE_HOME:-$HOME/.cache}/matchlock-kernel
data=${XDG_DATA_HOME:-$HOME/.local/share}/matchlock
[ -z "${MATCHLOCK_HOME:-}" ] || data=$MATCHLOCK_HOME/data

case ${1:-build} in
build | config) ;;
*)
	echo "usage: $0 [config]" >&2
	exit 2
	;;
esac
if [ "$(uname -m)" != x86_64 ]; then
	echo "kernel: kernel/config is for x86-64, this is $(uname -m)" >&2
	exit 1
fi
archive=/usr/src/$package.tar.xz
if ! [ -f "$archive" ]; then
	echo "kernel: no $archive: \`scripts/setup.sh kernel\` installs it on Debian" >&2
	exit 1
fi

# The source, new when the package is.
mkdir -p "$work"
version=$(stat --format='%s %Y' "$archive")
if [ "$(cat "$work/version" 2>/dev/null)" != "$version" ]; then
	echo "kernel: unpacking $archive"
	rm -rf "$work/source" "$work/build"
	mkdir -p "$work/source"
	tar -xf "$archive" -C "$work/source" --strip-components=1
	echo "$version" >"$work/version"
fi

# Nothing of this host or this hour stands in the kernel's banner.
KBUILD_BUILD_TIMESTAMP=$(date --utc --reference="$archive")
export KBUILD_BUILD_TIMESTAMP KBUILD_BUILD_VERSION=1 KBUILD_BUILD_USER=matchlock KBUILD_BUILD_HOST=matchlock
kbuild() { nice make --no-print-directory -C "$work/source" O="$work/build" LOCALVERSION= "$@"; }

mkdir -p "$work/build"
kbuild -s KCONFIG_ALLCONFIG="$config" allnoconfig
if lost=$(grep -E '^(# )?CONFIG_' "$config" | grep -vxFf "$work/build/.config"); then
	echo "kernel: these lines of kernel/config have no effect (renamed, or something they depend on is off):" >&2
	printf '%s\n' "$lost" >&2
	exit 1
fi
[ "${1:-build}" = build ] || exit 0

echo "kernel: building $(kbuild -s kernelrelease)"
kbuild -s -j"$(nproc)" vmlinux

# Without its symbol table, which nobody reads, and in one step: a guest that starts
# meanwhile finds the old one or the new one.
mkdir -p -m 0700 "$data" "$data/kernel"
new=$data/kernel/.new-vmlinux
strip --strip-all -o "$new" "$work/build/vmlinux"
chmod 0600 "$new"
mv "$new" "$data/kernel/vmlinux"
echo "kernel: $data/kernel/vmlinux is what guests boot from now on"

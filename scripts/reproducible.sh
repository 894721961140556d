#!/bin/bash
# Builds both binaries twice, in two folders, from nothing that was built before, and
# compares them. It takes some minutes, since the standard library is built twice too.
set -eu -o pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
binaries=(bin/matchlock cmd/matchlock/guest/matchlock-guest)

# build FOLDER has the binaries made there, of what git knows as it lies here now.
build() {
	mkdir -p "$1"
	git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$1"
	echo "reproducible: building in a folder of its own"
	GOCACHE=$work/cache make -s -C "$1" build VERSION=reproducible
	rm -rf "$work/cache"
}
build "$work/one"
(
	export TZ=Pacific/Auckland LC_ALL=C USER=somebody
	umask 077
	build "$work/another/one/that lies deeper"
)
for binary in "${binaries[@]}"; do
	cmp "$work/one/$binary" "$work/another/one/that lies deeper/$binary"
	echo "reproducible: $(sha256sum <"$work/one/$binary" | cut -d' ' -f1) $binary"
done

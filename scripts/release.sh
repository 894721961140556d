#!/bin/bash
# Puts what make has built into dist/, as it is given away: an archive, a bill of
# materials (CycloneDX), and the sums of both.
#
#	scripts/release.sh VERSION
#
# The same sources give the same archive; in the bill stands when it was made.
set -eu -o pipefail
cd "$(dirname "$0")/.."

name=matchlock-$1-linux-$(go env GOARCH)
rm -rf dist
mkdir -p "dist/$name"
cp bin/matchlock LICENSE README.md SECURITY.md "dist/$name"
scripts/licenses.sh texts >"dist/$name/LICENSES.txt"
chmod 0755 "dist/$name" "dist/$name/matchlock"
chmod 0644 "dist/$name"/*.*
tar --create --directory=dist --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" "$name" |
	gzip --no-name -9 >"dist/$name.tar.gz"
rm -r "dist/${name:?}"

# Apache-2.0. It reads what the Go linker has written into the binary.
go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 bin \
	-json -std -version "$1" -output "dist/$name.cdx.json" bin/matchlock
cd dist
sha256sum "$name.tar.gz" "$name.cdx.json" | tee SHA256SUMS

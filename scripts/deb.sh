#!/bin/bash
# Puts what make has built into a Debian package in dist/.
#
#	scripts/deb.sh VERSION
#
# The same sources give the same package. It has what it needs of others as Depends: QEMU
# and mke2fs.
set -eu -o pipefail
cd "$(dirname "$0")/.."

arch=$(go env GOARCH) # Debian calls amd64 and arm64 so, too
case $arch in
amd64) qemu='qemu-system-x86 (>= 1:7.2)' ;;
arm64) qemu='qemu-system-arm (>= 1:7.2)' ;;
*) echo "no package for $arch" >&2 && exit 1 ;;
esac
# A version begins with a digit there, and a dash parts the packager's from ours.
version=$(sed 's/^v//; s/-/+/g' <<<"$1")
[[ $version =~ ^[0-9]+\. ]] || version=0~$version
export SOURCE_DATE_EPOCH
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)

mkdir -p dist
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 0755 "$tree"
scripts/install.sh /usr "$tree"
doc=$tree/usr/share/doc/matchlock
install -d "$doc" "$tree/DEBIAN"
{
	cat LICENSE
	scripts/licenses.sh texts
} >"$doc/copyright"
cp README.md SECURITY.md "$doc"
chmod 0644 "$doc"/*
cat >"$tree/DEBIAN/control" <<EOF
Package: matchlock
Version: $version
Architecture: $arch
Maintainer: the matchlock maintainers <maintainers@matchlock.invalid>
Depends: $qemu, e2fsprogs
Recommends: ca-certificates
Section: utils
Priority: optional
Installed-Size: $(du -sk --apparent-size "$tree/usr" | cut -f1)
Homepage: https://github.com/matchlock/matchlock
Description: runs untrusted code in throw-away microVMs made of container images
 Each run boots a Linux kernel of its own. Its network reaches the hosts that
 one names, keys never enter the guest, folders of the host stay contained.
 There is no daemon, and neither root nor KVM is needed.
EOF
find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group --build -Zxz "$tree" "dist/matchlock_${version}_$arch.deb"

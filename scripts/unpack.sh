#!/bin/bash
# Unpacks a Debian package below DIR without installing it. For programs whose
# package starts a service: installed, they would go on listening on this host.
#
#	scripts/unpack.sh PACKAGE DIR
set -eu -o pipefail

package=$1
mkdir -p "$2"
dir=$(realpath "$2")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

download() { apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$package"; }
download || { apt-get -qq update && download; }
dpkg-deb --extract "$package"_*.deb "$dir"

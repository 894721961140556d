#!/bin/bash
# Makes DIR, node and npm as the npm registry has them, which run in any guest with a
# glibc, and cache/, npm's own with all that an installation of express (small) or
# jest (hundreds of packages) needs.
#
#	scripts/node.sh DIR
#
# DIR is kept as long as this script stays as it is; remove it to have the packages
# fetched anew.
set -eu -o pipefail

dir=$1
made_by=$(sha256sum <"$0")
if [ "$(cat "$dir/made-by" 2>/dev/null)" = "$made_by" ]; then
	exit 0
fi

case $(uname -m) in
x86_64) arch=x64 ;;
aarch64) arch=arm64 ;;
*) echo "node: no packages for $(uname -m)" >&2 && exit 1 ;;
esac

install() {
	npm install --no-audit --no-fund --no-update-notifier --ignore-scripts --loglevel error "$@" >/dev/null
}

echo "node: making $dir"
rm -rf "$dir"
mkdir -p "$dir"
install --prefix "$dir" "node-linux-$arch@22.23.3" npm@10.9.9
export PATH=$(realpath "$dir")/node_modules/.bin:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for package in express@5 jest@30; do
	install --cache "$dir/cache" --prefix "$work/$package" "$package"
done
rm -rf "$dir/cache/_logs"
echo "$made_by" >"$dir/made-by"

#!/bin/bash
# Installs what make has built: the program, man pages, completions.
#
#	scripts/install.sh PREFIX [DESTDIR]
set -eu -o pipefail
cd "$(dirname "$0")/.."

root=${2:-}$1
install -D -m 0755 bin/matchlock "$root/bin/matchlock"
pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
bin/matchlock __man "$pages"
gzip --no-name -9 "$pages"/*.1
install -d "$root/share/man/man1"
install -m 0644 "$pages"/*.gz "$root/share/man/man1"
complete() { # SHELL FILE
	install -d "$root/share/${2%/*}"
	bin/matchlock completion "$1" >"$root/share/$2"
	chmod 0644 "$root/share/$2"
}
complete bash bash-completion/completions/matchlock
complete zsh zsh/vendor-completions/_matchlock
complete fish fish/vendor_completions.d/matchlock.fish

#!/bin/bash
# Makes FILE, the root file system of Debian 12 as a tar, with python3, git, curl
# and openssl, and clients of what the tests serve: a real distribution for them
# to run.
#
#	scripts/debian-image.sh FILE
#
# FILE is kept as long as this script stays as it is; remove it to have the
# packages fetched anew. The host's own mirrors are asked where it runs Debian 12.
set -eu -o pipefail

file=$1
made_by=$(sha256sum <"$0")
if [ -e "$file" ] && [ "$(cat "$file.made-by" 2>/dev/null)" = "$made_by" ]; then
	exit 0
fi

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)

# Lines of apt's sources.list; none where the host has no lists of bookworm, and
# then mmdebstrap asks Debian's own mirror.
mirrors=$(apt-get indextargets --format 'deb $(REPO_URI) $(CODENAME) $(COMPONENT)' \
	'Created-By: Packages' 'Origin: Debian' 'Component: main' |
	sed -n '/ bookworm/p' | sort -u)

# What the tests call is tried at once, in the new root and before it is packed.
try='chroot "$1" sh -ec "
	python3 -c \"import hashlib, json, socket, ssl, sqlite3; import grpc, requests, websockets\"
	pip --version
	ssh -V 2>&1
	psql --version
	git --version
	curl --version
	openssl version
	apt-get --version" >/dev/null'

mkdir -p "$(dirname "$file")"
echo "debian-image: making $file"
"${as_root[@]}" env SOURCE_DATE_EPOCH=1767225600 mmdebstrap --quiet \
	--variant=minbase \
	--include=apt,ca-certificates,curl,git,openssl,python3 \
	--include=openssh-client,postgresql-client-15,python3-grpcio,python3-pip,python3-requests,python3-websockets \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-include=/usr/share/doc/*/copyright' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--customize-hook="$try" \
	--customize-hook='rm -f "$1/etc/hostname" "$1/etc/resolv.conf"' \
	--skip=output/dev,output/mknod \
	bookworm - ${mirrors:+"$mirrors"} >"$file.part"
mv "$file.part" "$file"
echo "$made_by" >"$file.made-by"

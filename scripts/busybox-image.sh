#!/bin/bash
# Writes the starter image to standard output: a root file system as a tar, made
# of Debian's busybox-static alone. The same busybox gives the same bytes.
set -eu -o pipefail

busybox=$(command -v busybox)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

cd "$root"
mkdir -p bin sbin usr/bin usr/sbin dev etc home mnt opt proc root run sys tmp var/tmp
install -m 0755 "$busybox" bin/busybox
bin/busybox --list-full | while read -r applet; do
	[ "$applet" = bin/busybox ] || ln -s /bin/busybox "$applet"
done

cat >etc/passwd <<'END'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
END
cat >etc/group <<'END'
root:x:0:
nogroup:x:65534:
END
chmod 0755 .
chmod 0644 etc/passwd etc/group
chmod 0700 root
chmod 1777 tmp var/tmp

tar --create --format=posix --pax-option=delete=atime,delete=ctime \
	--sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 .

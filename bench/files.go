package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// filesScript does something with files in a guest.
//
//go:embed files.sh
var filesScript []byte

// Where the shared folder is in both guests, and one on the disk of ours.
const (
	filesPath = "/files"
	diskPath  = "/var/files"
)

// virtiofsd is whom files are measured beside, of Debian's qemu-system-common.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

// fileLines are those of a benchmark of files; limit is how many times as long as
// with virtiofsd it may take.
func fileLines(what string, limit float64) []line {
	return []line{{what: what}, {what: "the same folder by virtiofsd", limit: limit}, {what: "the guest's own disk"}}
}

// fileTask measures what is done with files in a folder of the host, by a task of
// files.sh, beside a guest that has the same folder from virtiofsd, and beside our
// guest's own disk. Both guests are the same QEMU, machine, memory, processors, kernel
// and root; the host has all that is read in its memory.
func fileTask(task string) func(context.Context, *place, *meter) error {
	return func(ctx context.Context, p *place, m *meter) (err error) {
		folder, layer, err := p.files(ctx)
		if err != nil {
			return err
		}
		// To forget what the kernel knows of files takes a privilege.
		sb, err := p.detach(ctx, "bench-files", "--privileged", "-v", folder+":"+filesPath, "debian")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, sb.close()) }()
		theirs, err := newVirtiofsdGuest(ctx, p, folder, layer)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			m.skip(1, err)
		} else {
			defer func() { err = errors.Join(err, theirs.close()) }()
		}
		script := filepath.Join(filesPath, "files.sh")
		for m.loop() {
			if err := recordTook(m, 0)(sb.exec(ctx, "bash", script, task, filesPath)); err != nil {
				return err
			}
			if theirs != nil {
				if err := recordTook(m, 1)(theirs.do(ctx, fmt.Sprint("bash ", script, " ", task, " ", filesPath))); err != nil {
					return err
				}
			}
			if err := recordTook(m, 2)(sb.exec(ctx, "bash", script, task, diskPath)); err != nil {
				return err
			}
		}
		return nil
	}
}

// files makes the folder that is shared, and imports the image that both guests run,
// of which layer is the only one. The second call finds them.
func (p *place) files(ctx context.Context) (folder, layer string, err error) {
	folder = filepath.Join(p.dir, "files")
	archive := filepath.Join(p.images, "debian-12.tar")
	if _, err := os.Stat(folder); err != nil {
		if err := run(ctx, "scripts/debian-image.sh", archive); err != nil {
			return "", "", err
		}
		if err := run(ctx, p.matchlock, "image", "import", "debian", archive); err != nil {
			return "", "", err
		}
		if err := makeFiles(ctx, folder); err != nil {
			return "", "", err
		}
	}
	sum, err := sumOf(archive)
	return folder, filepath.Join(os.Getenv("MATCHLOCK_HOME"), "data", "images", "layers", sum+".erofs"), err
}

// sumOf returns the SHA-256 of a file, by which the store names the layer that it is.
func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// makeFiles makes a folder with files.sh, and what that works on, once more as tars.
func makeFiles(ctx context.Context, folder string) error {
	for _, of := range []struct {
		name         string
		count, bytes int
	}{{"repo", 10_000, 200}, {"tree", 20_000, 20}, {"new", 2000, 1024}} {
		for i := range of.count {
			path := filepath.Join(folder, of.name, strconv.Itoa(i/100), strconv.Itoa(i%100))
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			text := strings.Repeat(fmt.Sprintln("file", i), of.bytes)
			if err := os.WriteFile(path, []byte(text[:of.bytes]), 0o644); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(filepath.Join(folder, "files.sh"), filesScript, 0o644); err != nil {
		return err
	}
	// A file has another inode's number in each guest, for which git would read all
	// files anew each time.
	return run(ctx, "sh", "-ec", `
		cd "$0"
		tar -cf new.tar -C new .
		rm -r new
		git -C repo -c init.defaultBranch=main init --quiet
		git -C repo config core.checkStat minimal
		git -C repo config core.trustCtime false
		git -C repo add .
		git -C repo -c user.name=bench -c user.email=bench@example.com commit --quiet --message files
		for name in repo tree; do tar -cf $name.tar $name; done`, folder)
}

// newVirtiofsdGuest starts a guest with a folder at filesPath and a root of a layer. An
// error is no fault where virtiofsd or the kernel's module cannot be had.
func newVirtiofsdGuest(ctx context.Context, p *place, folder, layer string) (*peerGuest, error) {
	if _, err := os.Stat(virtiofsd); err != nil {
		return nil, err
	}
	bare, err := newBareMachine(ctx, p)
	if err != nil {
		return nil, err
	}
	initramfs, err := filesInitramfs(ctx, p, bare)
	if err != nil {
		return nil, err
	}
	m := slices.Index(bare.args, "-m")
	i := slices.Index(bare.args, "-M")
	if m < 0 || i < 0 {
		return nil, fmt.Errorf("no memory or machine in %q", bare.args)
	}
	bare.args[i+1] += ",memory-backend=mem0"
	socket := filepath.Join(p.dir, "virtiofsd")
	os.Remove(socket)
	bare.args = append(bare.args, "-initrd", initramfs,
		"-object", "memory-backend-memfd,id=mem0,share=on,size="+bare.args[m+1]+"M",
		"-global", "virtio-mmio.force-legacy=off", // vhost-user takes no other
		"-chardev", "socket,id=files,path="+socket, "-device", "vhost-user-fs-device,chardev=files,tag=files",
		"-blockdev", "driver=file,node-name=root,read-only=on,filename="+layer, "-device", "virtio-blk-device,drive=root")
	return startPeerGuest(ctx, bare, socket, virtiofsd, "--socket-path="+socket, "-o", "source="+folder)
}

// filesInit is the guest's init, which ends as a shell in the root.
const filesInit = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do insmod $module; done
mkdir /lower /upper /root
mount -t erofs -o ro /dev/vda /lower
mount -t tmpfs tmpfs /upper
mkdir /upper/upper /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work root /root
mkdir -p /root/proc /root/dev /root/tmp /root` + filesPath + `
mount -t proc proc /root/proc
mount -t devtmpfs devtmpfs /root/dev
mount -t tmpfs tmpfs /root/tmp
mount -t virtiofs files /root` + filesPath + `
stty -echo
echo
echo '` + up + `'
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
exec chroot /root bash -c 'while read -r line; do eval "$line"; done'
`

// filesInitramfs is an initramfs of busybox and the modules that it takes.
func filesInitramfs(ctx context.Context, p *place, bare *bareMachine) (string, error) {
	path := filepath.Join(p.dir, "files.cpio")
	return path, run(ctx, "sh", "-ec", `
		dir=$0/initramfs modules=$2 release=$3 tools=$4 init=$5
		if [ ! -e "$tools/$release/virtiofs.ko" ]; then
			mkdir -p "$tools/$release"
			scripts/unpack.sh "linux-image-$release" "$0/kernel"
			mv "$0/kernel/lib/modules/$release/kernel/fs/fuse/virtiofs.ko" "$tools/$release"
			rm -r "$0/kernel"
		fi
		rm -rf "$dir"
		mkdir -p "$dir/bin" "$dir/modules" "$dir/proc" "$dir/dev"
		cp "$(command -v busybox)" "$dir/bin/busybox"
		cp "$modules"/*.ko "$dir/modules"
		cp "$modules"/later/*-fuse.ko "$dir/modules"
		cp "$tools/$release/virtiofs.ko" "$dir/modules/zz-virtiofs.ko"
		printf '%s' "$init" >"$dir/init"
		chmod 0755 "$dir/init"
		cd "$dir"
		find . | cpio --quiet --create --format=newc --owner=0:0 >"$1"`, p.dir, path, bare.modules, bare.release, p.tools, filesInit)
}

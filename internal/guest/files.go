//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// identity are the files by which programs find names, hostname(5), hosts(5) and
// resolv.conf(5), empty and open: what is in them is this guest's own. They lie
// in memory and are mounted over what the image has there, as container runtimes
// do it: a disk that is written to for the first time has a long way to go.
type identity struct{ hostname, hosts, resolv *os.File }

// identityDir is where the files are made. It is gone when they are in place.
const identityDir = "/run/matchlock"

// makeIdentity makes the files.
func makeIdentity() (id identity, err error) {
	if err := (mount{"tmpfs", identityDir, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=755,size=1m"}).do(); err != nil {
		return id, err
	}
	for name, file := range map[string]**os.File{"hostname": &id.hostname, "hosts": &id.hosts, "resolv.conf": &id.resolv} {
		made, place := filepath.Join(identityDir, name), filepath.Join("/etc", name)
		if *file, err = os.OpenFile(made, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
			return id, err
		}
		if err := makePlace(place); err != nil {
			return id, err
		}
		if err := unix.Mount(made, place, "", unix.MS_BIND, ""); err != nil {
			return id, fmt.Errorf("mount %s: %w", place, err)
		}
	}
	if err := unix.Unmount(identityDir, unix.MNT_DETACH); err != nil {
		return id, fmt.Errorf("unmount %s: %w", identityDir, err)
	}
	return id, os.Remove(identityDir)
}

// makePlace makes sure that a file can be mounted over what is at path. What is
// no file there, often a link into /run, is taken away.
func makePlace(path string) error {
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// write names the guest and fills in the files. That of hosts stays open: see
// addHosts.
func (id identity) write(p wire.Params, hosts []api.HostIPMapping) error {
	hostname := p.Hostname
	if hostname == "" {
		hostname = "localhost"
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	own := "127.0.1.1"
	if p.Address.IsValid() {
		own = p.Address.Addr().String()
	}
	if _, err := id.hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + own + "\t" + hostname + "\n"); err != nil {
		return err
	}
	if err := id.addHosts(hosts); err != nil {
		return err
	}
	var resolv strings.Builder
	if !p.NoNetwork {
		for _, server := range p.DNS {
			resolv.WriteString("nameserver " + server.String() + "\n")
		}
	}
	return errors.Join(fill(id.hostname, hostname+"\n"), fill(id.resolv, resolv.String()))
}

// fill writes a file that is empty, and closes it.
func fill(file *os.File, content string) error {
	_, err := file.WriteString(content)
	return errors.Join(err, file.Close())
}

func (id identity) addHosts(hosts []api.HostIPMapping) error {
	if len(hosts) == 0 {
		return nil
	}
	var b strings.Builder
	for _, h := range hosts {
		b.WriteString(h.IP + "\t" + h.Host + "\n")
	}
	_, err := id.hosts.WriteString(b.String())
	return err
}

// mountDisks mounts the further disks where they were asked for.
func mountDisks(disks []wire.Disk, devices *os.Root) error {
	for i, d := range disks {
		device, err := findDisk(wire.DiskSerial(i))
		if err != nil {
			return err
		}
		if err := mountDisk(d, devices, device); err != nil {
			return fmt.Errorf("disk for %s: %w", d.Mount, err)
		}
	}
	return nil
}

func mountDisk(d wire.Disk, devices *os.Root, device string) error {
	flags, data := os.O_RDWR, ""
	mountFlags := uintptr(unix.MS_NODEV)
	if d.ReadOnly {
		// A journal cannot be replayed on a disk that takes no writes.
		flags, data = os.O_RDONLY, "noload"
		mountFlags |= unix.MS_RDONLY
	}
	// The user's /dev does not have it.
	f, err := devices.OpenFile(device, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return mount{fmt.Sprintf("/proc/self/fd/%d", f.Fd()), d.Mount, "ext4", mountFlags, data}.do()
}

// unmountDisks makes the disks clean; one that is busy is made read-only, which
// writes out what it holds.
func unmountDisks(disks []wire.Disk) {
	for _, d := range disks {
		if unix.Unmount(d.Mount, 0) != nil {
			unix.Mount("", d.Mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	}
}

// mountTmpfs mounts file systems in memory, and sizes /dev/shm.
func mountTmpfs(mounts []api.Tmpfs, shmSize int64) error {
	if shmSize > 0 {
		if err := unix.Mount("tmpfs", shmDir, "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=%d", shmSize)); err != nil {
			return fmt.Errorf("%s: %w", shmDir, err)
		}
	}
	for _, m := range mounts {
		data := "mode=1777"
		if m.Size > 0 {
			data += fmt.Sprintf(",size=%d", m.Size)
		}
		if err := (mount{"tmpfs", m.Path, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, data}).do(); err != nil {
			return err
		}
	}
	return nil
}

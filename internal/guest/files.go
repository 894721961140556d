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
// resolv.conf(5), empty and open: what is in them is this guest's own.
type identity struct{ hostname, hosts, resolv *os.File }

// makeIdentity makes the files. What stands in their places, often a link into
// /run, is taken away.
func makeIdentity() (id identity, err error) {
	for path, file := range map[string]**os.File{"/etc/hostname": &id.hostname, "/etc/hosts": &id.hosts, "/etc/resolv.conf": &id.resolv} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return id, err
		}
		if err := os.RemoveAll(path); err != nil {
			return id, err
		}
		if *file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
			return id, err
		}
	}
	return id, nil
}

// write names the guest and fills in the files.
func (id identity) write(p wire.Params, hosts []api.HostIPMapping) error {
	hostname := p.Hostname
	if hostname == "" {
		hostname = "localhost"
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	var hostsFile, resolv strings.Builder
	hostsFile.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	own := "127.0.1.1"
	if p.Address.IsValid() {
		own = p.Address.Addr().String()
	}
	hostsFile.WriteString(own + "\t" + hostname + "\n")
	writeHosts(&hostsFile, hosts)
	if !p.NoNetwork {
		for _, server := range p.DNS {
			resolv.WriteString("nameserver " + server.String() + "\n")
		}
	}
	return errors.Join(fill(id.hostname, hostname+"\n"), fill(id.hosts, hostsFile.String()), fill(id.resolv, resolv.String()))
}

// fill writes a file that is empty, and closes it.
func fill(file *os.File, content string) error {
	_, err := file.WriteString(content)
	return errors.Join(err, file.Close())
}

func appendHosts(hosts []api.HostIPMapping) error {
	if len(hosts) == 0 {
		return nil
	}
	old, err := os.ReadFile("/etc/hosts") // ours since writeIdentity
	if err != nil {
		return err
	}
	var b strings.Builder
	b.Write(old)
	writeHosts(&b, hosts)
	return replaceFile("/etc/hosts", b.String())
}

func writeHosts(b *strings.Builder, hosts []api.HostIPMapping) {
	for _, h := range hosts {
		fmt.Fprintf(b, "%s\t%s\n", h.IP, h.Host)
	}
}

// replaceFile writes a file of the image anew. What stands there, often a link
// into /run, is taken away first.
func replaceFile(path, content string) error {
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
	if _, err := f.WriteString(content); err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Close()
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

//go:build linux

package guest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/wire"
)

// identity are the files by which programs find names and tell machines apart,
// hostname(5), hosts(5), resolv.conf(5) and machine-id(5), empty and open: what is
// in them is this guest's own. They lie in memory and are mounted over what the
// image has there, as container runtimes do it: a disk that is written to for the
// first time has a long way to go.
type identity struct {
	hostname, hosts, resolv, machineID *os.File
	bootID                             *os.File // the kernel's own is the same in all copies once somebody has read it
}

// identityDir is where the files are made. It is gone when they are in place.
const identityDir = "/run/matchlock"

// bootIDPath is where the kernel tells by which no two boots are the same.
const bootIDPath = "/proc/sys/kernel/random/boot_id"

// identityPlaces are where the files are mounted.
var identityPlaces = [...]string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/machine-id", bootIDPath}

// makeIdentity makes the files.
func makeIdentity() (id identity, err error) {
	if err := (mount{"tmpfs", identityDir, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=755,size=1m"}).do(); err != nil {
		return id, err
	}
	for i, file := range []**os.File{&id.hostname, &id.hosts, &id.resolv, &id.machineID, &id.bootID} {
		place := identityPlaces[i]
		made := filepath.Join(identityDir, filepath.Base(place))
		if *file, err = os.OpenFile(made, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
			return id, err
		}
		// Its memory is there already when it is written.
		if err := unix.Fallocate(int((*file).Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 4096); err != nil {
			return id, fmt.Errorf("memory for %s: %w", place, err)
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

// write names the guest and fills in the files. All stay open, for renew.
func (id identity) write(p wire.Params, s *agent.Setup) error {
	hostname := hostnameOf(p)
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if _, err := id.hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + ownLine(p, hostname)); err != nil {
		return err
	}
	if err := id.addHosts(s.Hosts); err != nil {
		return err
	}
	if !p.NoNetwork {
		var resolv strings.Builder
		for _, server := range p.DNS {
			resolv.WriteString("nameserver " + server.String() + "\n")
		}
		if _, err := id.resolv.WriteString(resolv.String()); err != nil {
			return err
		}
	}
	for file, content := range map[*os.File]string{id.hostname: hostname, id.machineID: s.MachineID, id.bootID: s.BootID} {
		if _, err := file.WriteString(content + "\n"); err != nil {
			return err
		}
	}
	return nil
}

func hostnameOf(p wire.Params) string {
	if p.Hostname == "" {
		return "localhost"
	}
	return p.Hostname
}

// ownLine is the guest's own line of the hosts file.
func ownLine(p wire.Params, hostname string) string {
	own := "127.0.1.1"
	if p.Address.IsValid() {
		own = p.Address.Addr().String()
	}
	return own + "\t" + hostname + "\n"
}

// renew gives a copy a name, a machine id and a boot id of its own. What user code
// has written into the file of hosts stays, but for the guest's own line.
func (id identity) renew(p *wire.Params, s *agent.Setup) error {
	before := *p
	p.Hostname = s.Hostname
	hostname := hostnameOf(*p)
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	hosts, err := readAll(id.hosts)
	if err != nil {
		return err
	}
	hosts = strings.Replace(hosts, ownLine(before, hostnameOf(before)), ownLine(*p, hostname), 1)
	for file, content := range map[*os.File]string{id.hosts: hosts, id.hostname: hostname + "\n", id.machineID: s.MachineID + "\n", id.bootID: s.BootID + "\n"} {
		if err := replace(file, content); err != nil {
			return err
		}
	}
	return nil
}

// maxHosts bounds what is read of a hosts file that user code can write.
const maxHosts = 1 << 20

func readAll(file *os.File) (string, error) {
	content, err := io.ReadAll(io.NewSectionReader(file, 0, maxHosts))
	return string(content), err
}

// replace makes content all that is in the file. What is written to it later
// follows.
func replace(file *os.File, content string) error {
	if err := file.Truncate(0); err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := file.WriteString(content)
	return err
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

// mountDisk mounts a disk that another guest may have written. Devices and set-id
// bits in it count for nothing, and what is wrong with it does not end the machine,
// though its superblock may ask for that. Tables that were left to be zeroed are
// holes in a sparse file, and so zeros.
func mountDisk(d wire.Disk, devices *os.Root, device string) error {
	flags, data := os.O_RDWR, "errors=remount-ro,noinit_itable"
	mountFlags := uintptr(unix.MS_NODEV | unix.MS_NOSUID)
	if d.ReadOnly {
		// A journal cannot be replayed on a disk that takes no writes.
		flags, data = os.O_RDONLY, "errors=remount-ro,noload"
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

// syncDisks writes out what there is for disks that others can have. What cannot be
// written fails where it is used.
func syncDisks(disks []wire.Disk) {
	for _, d := range disks {
		if d.ReadOnly {
			continue
		}
		f, err := os.OpenFile(d.Mount, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			unix.Sync() // it may be mounted below files of the host that are gone
			return
		}
		_ = unix.Syncfs(int(f.Fd()))
		f.Close()
	}
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

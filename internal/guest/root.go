//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

// Where things are in the initramfs, before "/" is the user's root.
const (
	lowersDir = "/lower"
	belowDir  = "/below"
	upperDir  = "/upper"
	newRoot   = "/root"

	writtenDir = upperDir + "/upper" // what is written to the user's root
)

// diskTimeout is how long the kernel may take to find its disks.
const diskTimeout = 10 * time.Second

// mount is one file system to be mounted; the folder is made when missing.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// mountKernelFileSystems gives PID 1 what it needs to find its devices.
func mountKernelFileSystems() error {
	return mountAll([]mount{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, ""},
	})
}

// enterRoot makes the user's root, which is assembled, "/". What it was assembled
// of, raw disks and the initramfs, is out of reach afterwards.
func enterRoot(p wire.Params) error {
	if err := mountAll(systemMounts(newRoot, p.Privileged)); err != nil {
		return err
	}
	if err := makeDevices(filepath.Join(newRoot, "dev"), p.Privileged); err != nil {
		return err
	}
	if !p.Privileged {
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			return err
		}
		if err := maskKernel(newRoot); err != nil {
			return err
		}
	}
	if n := wholeCPUs(p.CPUs); 0 < n && n < runtime.NumCPU() {
		if err := showCPUs(newRoot, n); err != nil {
			return err
		}
	}
	// The overlay holds on to its layers by itself.
	for i := range p.Root.Lowers {
		unix.Unmount(lowerDir(i), unix.MNT_DETACH)
	}
	unix.Unmount(upperDir, unix.MNT_DETACH)
	// An initramfs cannot be pivoted away from, so the new root is moved over it
	// (switch_root(8) does the same). This process keeps its own /proc, /sys and
	// /dev by nothing: they go with the old root.
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return os.Chdir("/")
}

// showCPUs has those who count processors find the first n: sysconf(3) does so in
// sysfs, sched_getaffinity(2) knows by itself.
func showCPUs(root string, n int) error {
	const list = "/cpus"
	if err := os.WriteFile(list, []byte(firstCPUs(n)+"\n"), 0o444); err != nil {
		return err
	}
	for _, name := range []string{"online", "possible", "present"} {
		target := root + "/sys/devices/system/cpu/" + name
		if err := unix.Mount(list, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return nil
}

// assembleRoot mounts the user's root, and what it is made of.
func assembleRoot(root wire.Root) error {
	if len(root.Lowers) == 0 {
		device, err := findDisk(wire.RootSerial)
		if err != nil {
			return err
		}
		return mount{"/dev/" + device, newRoot, "ext4", unix.MS_NOATIME, ""}.do()
	}
	for i, fstype := range root.Lowers {
		device, err := findDisk(wire.LowerSerial(i))
		if err != nil {
			return err
		}
		if err := (mount{"/dev/" + device, lowerDir(i), fstype, unix.MS_RDONLY, ""}).do(); err != nil {
			return err
		}
	}
	device, err := findDisk(wire.UpperSerial)
	if err != nil {
		return err
	}
	// Nothing for the kernel to do up to five seconds later, which in a copy of this
	// machine may be while its first command starts. The inode tables were left to be
	// zeroed, but on a sparse file they are zeros already; the block bitmaps are read
	// when something is written.
	if err := (mount{"/dev/" + device, upperDir, "ext4", unix.MS_NOATIME, "noinit_itable,no_prefetch_block_bitmaps"}).do(); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(upperDir, dir), 0o755); err != nil {
			return err
		}
	}
	// The upper folder is to have all that is written, whatever the kernel does where it is
	// not told otherwise: no folder that leads elsewhere, no file without its content.
	return mount{"overlay", newRoot, "overlay", unix.MS_NOATIME,
		lowerOption(root) + ",upperdir=" + writtenDir + ",workdir=" + upperDir + "/work,redirect_dir=off,metacopy=off"}.do()
}

func lowerDir(i int) string { return filepath.Join(lowersDir, strconv.Itoa(i)) }

// lowerOption names the lower layers to overlayfs, which wants the top first.
func lowerOption(root wire.Root) string {
	var stack []string
	for i := range root.Lowers {
		stack = append([]string{lowerDir(i)}, stack...)
	}
	return "lowerdir=" + strings.Join(stack, ":")
}

// findDisk waits for the virtio disk with a serial number and returns the name
// of its device.
func findDisk(serial string) (string, error) {
	device, err := waitFor(diskTimeout, func() (string, bool) {
		serials, _ := filepath.Glob("/sys/block/vd*/serial")
		for _, path := range serials {
			if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == serial {
				return filepath.Base(filepath.Dir(path)), true
			}
		}
		return "", false
	})
	if err != nil {
		return "", fmt.Errorf("disk %s: %w", serial, err)
	}
	return device, nil
}

// systemMounts are the kernel's and memory's file systems of the user's root.
func systemMounts(root string, privileged bool) []mount {
	readOnly := uintptr(unix.MS_RDONLY)
	if privileged {
		readOnly = 0
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []mount{
		{"proc", "/proc", "proc", plain, ""},
		{"sysfs", "/sys", "sysfs", plain | readOnly, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", plain | readOnly, ""},
	}
	if privileged {
		mounts = append(mounts, mount{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, ""})
	} else {
		mounts = append(mounts, mount{"tmpfs", "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=755,size=64k"})
	}
	mounts = append(mounts,
		mount{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		mount{"tmpfs", shmDir, "tmpfs", plain, "mode=1777,size=" + strconv.Itoa(defaultShmSize)},
		mount{"mqueue", "/dev/mqueue", "mqueue", plain, ""},
		mount{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	)
	for i := range mounts {
		mounts[i].target = root + mounts[i].target
	}
	return mounts
}

const (
	shmDir         = "/dev/shm"
	defaultShmSize = 64 << 20
)

// makeDevices fills the user's /dev with the devices that every program may
// have. Disks and ports of the machine are not among them.
func makeDevices(dev string, privileged bool) error {
	if !privileged {
		for _, d := range []struct {
			name         string
			major, minor uint32
		}{
			{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
		} {
			path := filepath.Join(dev, d.name)
			if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
				return fmt.Errorf("device %s: %w", d.name, err)
			}
			if err := os.Chmod(path, 0o666); err != nil { // over the umask
				return err
			}
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "core": "/proc/kcore",
	} {
		path := filepath.Join(dev, name)
		os.Remove(path) // devtmpfs has a ptmx of its own
		if err := os.Symlink(target, path); err != nil {
			return err
		}
	}
	return nil
}

// maskKernel takes away the files by which root, without a single capability,
// could still steer the kernel: a core_pattern, for one, is run with all of
// them. The lists are those that container runtimes have arrived at.
func maskKernel(root string) error {
	for _, path := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		target := root + path
		if err := unix.Mount(target, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return fmt.Errorf("mask %s: %w", path, err)
		}
		if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg", "/proc/kallsyms"} {
		if err := unix.Mount(root+"/dev/null", root+path, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	for _, path := range []string{"/proc/acpi", "/proc/scsi", "/sys/firmware"} {
		err := unix.Mount("tmpfs", root+path, "tmpfs", unix.MS_RDONLY, "size=0")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	return nil
}

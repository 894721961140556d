package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// What only root can mend is said as a command, for the user to type: nothing
// here runs a package manager, or sudo.

// installers are package managers, by the ID or ID_LIKE of os-release(5), and what
// they call QEMU. All call e2fsprogs that.
var installers = []struct {
	ids, program, command string
	qemu                  map[string]string // by GOARCH
}{
	{"debian ubuntu", "apt-get", "apt-get install", map[string]string{"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}},
	{"fedora rhel centos", "dnf", "dnf install", map[string]string{"amd64": "qemu-system-x86-core", "arm64": "qemu-system-aarch64-core"}},
	{"arch", "pacman", "pacman -S", map[string]string{"amd64": "qemu-system-x86", "arm64": "qemu-system-aarch64"}},
}

// qemuPackage stands for QEMU, which has another name everywhere.
const qemuPackage = ""

// installCommand is what installs a package on this host; where its package manager
// is not known, what to look for.
func installCommand(name string) string {
	release, _ := os.ReadFile("/etc/os-release")
	return installCommandOn(string(release), runtime.GOARCH, func(program string) bool {
		_, err := exec.LookPath(program)
		return err == nil
	}, name) + byRoot()
}

func installCommandOn(osRelease, arch string, has func(program string) bool, name string) string {
	best := -1
	for _, id := range distributions(osRelease) {
		for i, p := range installers {
			if best < 0 && strings.Contains(" "+p.ids+" ", " "+id+" ") {
				best = i
			}
		}
	}
	for i, p := range installers {
		if best < 0 && has(p.program) {
			best = i
		}
	}
	if best < 0 && name == qemuPackage {
		return "install QEMU for " + arch + " with this host's package manager"
	}
	if best < 0 {
		return "install " + name + " with this host's package manager"
	}
	p := installers[best]
	if name == qemuPackage {
		name = p.qemu[arch]
	}
	return p.command + " " + name
}

// distributions are a host's own and those that it is like, the nearest first.
func distributions(osRelease string) (ids []string) {
	var like []string
	lines := bufio.NewScanner(strings.NewReader(osRelease))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch words := strings.Fields(strings.Trim(value, `"'`)); name {
		case "ID":
			ids = words
		case "ID_LIKE":
			like = words
		}
	}
	return append(ids, like...)
}

// byRoot says of a command that another user has to give it.
func byRoot() string {
	if os.Geteuid() == 0 {
		return ""
	}
	return " (as root)"
}

const kvmDevice = "/dev/kvm"

// openKVMCommand is what opens KVM's device to the user, where it is there.
func openKVMCommand() string {
	info, err := os.Stat(kvmDevice)
	if err != nil {
		return "use a host with " + kvmDevice + ": one that is no virtual machine, or one that may have its own; `modprobe kvm_intel` or kvm_amd" + byRoot() + " where its module is not loaded"
	}
	if f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0); err == nil {
		f.Close()
		return "use a host whose " + kvmDevice + " works: on this one no vCPU runs"
	}
	group := "kvm"
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().Perm()&0o060 == 0o060 {
		if g, err := user.LookupGroupId(strconv.Itoa(int(st.Gid))); err == nil {
			group = g.Name
		}
	}
	name := "USER"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("usermod -aG %s %s%s, and log in anew", group, name, byRoot())
}

// namespaceSettings keep users other than root from making user namespaces, with what
// does not.
var namespaceSettings = []struct{ path, closed, command string }{
	{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"},
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
}

// namespacesCommand is what lets users make namespaces, "" where that is not the
// fault.
func namespacesCommand(read func(path string) ([]byte, error)) string {
	for _, s := range namespaceSettings {
		if text, err := read(s.path); err == nil && strings.TrimSpace(string(text)) == s.closed {
			return s.command + byRoot()
		}
	}
	return ""
}

package sandbox

import (
	"io/fs"
	"strings"
	"testing"
)

func TestInstallCommand(t *testing.T) {
	none := func(string) bool { return false }
	for _, tt := range []struct{ release, arch, name, want string }{
		{"NAME=\"Debian GNU/Linux\"\nID=debian\n", "amd64", qemuPackage, "apt-get install qemu-system-x86"},
		{"ID=debian", "arm64", qemuPackage, "apt-get install qemu-system-arm"},
		{"ID=linuxmint\nID_LIKE=\"ubuntu debian\"", "amd64", "e2fsprogs", "apt-get install e2fsprogs"},
		{"ID=fedora", "amd64", qemuPackage, "dnf install qemu-system-x86-core"},
		{"ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"", "arm64", qemuPackage, "dnf install qemu-system-aarch64-core"},
		{"ID=arch", "amd64", qemuPackage, "pacman -S qemu-system-x86"},
		{"ID=plan9", "amd64", qemuPackage, "install QEMU for amd64 with this host's package manager"},
		{"", "amd64", "e2fsprogs", "install e2fsprogs with this host's package manager"},
	} {
		if got := installCommandOn(tt.release, tt.arch, none, tt.name); got != tt.want {
			t.Errorf("on %q: %q, want %q", tt.release, got, tt.want)
		}
	}
	onlyDNF := func(program string) bool { return program == "dnf" }
	if got := installCommandOn("ID=other", "amd64", onlyDNF, "e2fsprogs"); got != "dnf install e2fsprogs" {
		t.Errorf("where only dnf is: %q", got)
	}
}

func TestNamespacesCommand(t *testing.T) {
	for _, tt := range []struct{ path, value, want string }{
		{"/proc/sys/user/max_user_namespaces", "0\n", "sysctl -w user.max_user_namespaces="},
		{"/proc/sys/user/max_user_namespaces", "15000\n", ""},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0\n", "sysctl -w kernel.unprivileged_userns_clone=1"},
	} {
		got := namespacesCommand(func(path string) ([]byte, error) {
			if path != tt.path {
				return nil, fs.ErrNotExist
			}
			return []byte(tt.value), nil
		})
		if !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("with %s %q: %q, want %q", tt.path, tt.value, got, tt.want)
		}
	}
}

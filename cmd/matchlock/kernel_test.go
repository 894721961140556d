package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A kernel as `make kernel` builds it, in the place where it leaves it: guests boot
// from it, and what kernel/config promises is there to be used.
func TestVMOwnKernel(t *testing.T) {
	own := os.Getenv("MATCHLOCK_OWN_KERNEL")
	if own == "" {
		t.Skip("boots a kernel that takes ten minutes to build: set MATCHLOCK_OWN_KERNEL to what `make kernel` has left")
	}
	m := install(t)
	if err := os.Remove(filepath.Join(m.home, "cache")); err != nil { // what comes of this kernel is for no other test
		t.Fatal(err)
	}
	dir := filepath.Join(m.home, "data", "kernel")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	vmlinux, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinux"), vmlinux, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := m.run(t, nil, "diagnose"); !strings.Contains(r.stdout, "-matchlock, your own in "+dir) {
		t.Errorf("diagnose does not tell whose kernel it is:\n%s", r.stdout)
	}

	const look = `
		uname -r | sed 's/.*-//'
		ls /sys/class/net
		grep / /proc/mounts | awk '$2 == "/" { print $3 }'
		for fs in erofs ext4 fuse cgroup2 mqueue; do grep -ow "$fs" /proc/filesystems; done
		cat /sys/fs/cgroup/cgroup.controllers
		zcat /proc/config.gz | grep '^CONFIG_HZ='
		[ -e /proc/modules ] || echo no modules`
	want := "matchlock\nlo\noverlay\nerofs\next4\nfuse\ncgroup2\nmqueue\ncpuset cpu io memory pids\nCONFIG_HZ=100\nno modules\n"
	for _, how := range []string{"--cold", "--cold=false", "--cold=false"} { // the last one as a copy
		r := m.run(t, nil, "run", how, "busybox", "sh", "-c", look)
		if d := cmp.Diff(r.stdout, want); d != "" || r.status != 0 {
			t.Errorf("%s: status %d, (-got +want):\n%s%s\n%s", how, r.status, d, r.stderr, r.call)
		}
	}

	// What container engines do first: namespaces, an overlay, a bridge with a pair, control groups.
	const contain = `set -e
		mkdir /tmp/t && mount -t tmpfs t /tmp/t && cd /tmp/t
		mkdir lower upper work root && echo below > lower/file
		mount -t overlay o -o lowerdir=lower,upperdir=upper,workdir=work root
		echo above > root/file && cat lower/file upper/file
		ip link add br0 type bridge
		ip link add v0 type veth peer name v1
		ip link set v0 master br0
		ip link add d0 type dummy && ip link add m0 link d0 type macvlan && ip link add x0 type vxlan id 1 dstport 4789
		mkdir /sys/fs/cgroup/c && echo +memory > /sys/fs/cgroup/cgroup.subtree_control
		echo 16M > /sys/fs/cgroup/c/memory.max
		unshare -m -u -i -n -p -f --mount-proc sh -c 'ip -o link | cut -d: -f2; echo $$; ls /proc/sys/net/netfilter/nf_conntrack_max'
		ls -d /dev/net/tun /dev/fuse /dev/loop-control`
	want = "below\nabove\n lo\n1\n/proc/sys/net/netfilter/nf_conntrack_max\n/dev/fuse\n/dev/loop-control\n/dev/net/tun\n"
	r := m.run(t, nil, "run", "--privileged", "busybox", "sh", "-c", contain)
	if d := cmp.Diff(r.stdout, want); d != "" || r.status != 0 {
		t.Errorf("privileged: status %d, (-got +want):\n%s%s\n%s", r.status, d, r.stderr, r.call)
	}
}

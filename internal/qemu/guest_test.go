package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/vm"
)

// start boots a machine with boot data, and closes it with the test. A machine
// that does not start fails the test with its console.
func start(t *testing.T, config *vm.VMConfig, data *api.BootData) vm.Machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	m, err := newBackend(t).Create(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err = m.Start(ctx); err == nil && data != nil {
		err = m.(vm.Booter).Boot(ctx, data)
	}
	if err != nil {
		log, _ := os.ReadFile(config.LogPath)
		t.Fatalf("%v\nconsole:\n%s", err, log)
	}
	return m
}

// sh runs a command line and returns what it said and its status.
func sh(t *testing.T, m vm.Machine, opts *api.ExecOptions, line string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	result, err := m.Exec(ctx, line, opts)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return strings.TrimSpace(string(result.Stdout) + string(result.Stderr)), result.ExitCode
}

// expectation is a command line, run by a user, and what it says or does.
type expectation struct {
	name, user, line string
	want             string // all of the output; "…" at the end: what it begins with
	fails            bool
}

func (e expectation) check(t *testing.T, m vm.Machine) {
	t.Run(e.name, func(t *testing.T) {
		got, status := sh(t, m, &api.ExecOptions{User: e.user}, e.line)
		if (status != 0) != e.fails {
			t.Errorf("%s: status %d, output %q", e.line, status, got)
		}
		if begin, ok := strings.CutSuffix(e.want, "…"); ok && strings.HasPrefix(got, begin) {
			return
		}
		if got != e.want {
			t.Errorf("%s\ngot  %q\nwant %q", e.line, got, e.want)
		}
	})
}

// What user code is held to, seen from inside.
func TestVMConfinement(t *testing.T) {
	config := overlayConfig(t, "held")
	config.AddHosts = []api.HostIPMapping{{Host: "db", IP: "10.1.2.3"}}
	config.Env = map[string]string{"A": "config", "B": "config"}
	m := start(t, config, &api.BootData{
		Env:     map[string]string{"B": "boot", "C": "boot"},
		Hosts:   []api.HostIPMapping{{Host: "cache", IP: "10.1.2.4"}},
		Tmpfs:   []api.Tmpfs{{Path: "/mnt/small", Size: 1 << 20}},
		ShmSize: 8 << 20,
		Ulimits: []api.Ulimit{{Name: "nofile", Soft: 77, Hard: 88}, {Name: "core", Soft: math.MaxUint64, Hard: math.MaxUint64}},
	})
	for _, e := range []expectation{
		{name: "capabilities of root", line: "grep CapEff /proc/self/status", want: "CapEff:\t00000000800425fb"},
		{name: "capabilities of others", user: "nobody", line: "grep -E 'Cap(Eff|Prm|Inh|Amb)' /proc/self/status | cut -f2 | uniq", want: "0000000000000000"},
		{name: "no_new_privs", line: "grep NoNewPrivs /proc/self/status", want: "NoNewPrivs:\t1"},
		{name: "seccomp", line: "grep Seccomp: /proc/self/status", want: "Seccomp:\t2"},
		{name: "mount", line: "mount -t tmpfs none /mnt", want: "mount: …", fails: true},
		{name: "umount", line: "umount /proc/kcore", want: "umount: …", fails: true},
		{name: "mknod", line: "mknod /tmp/vda b 254 0", want: "mknod: …", fails: true},
		{name: "namespace", user: "nobody", line: "unshare -U true", want: "unshare: …", fails: true},
		{name: "reboot", line: "reboot -f", want: "reboot: …", fails: true},
		{name: "clock", line: "date -s 2001-01-01 > /dev/null", want: "date: can't set date: Operation not permitted"},
		{name: "hostname", line: "hostname other", want: "hostname: …", fails: true},
		{name: "kernel log", line: "dmesg", want: "dmesg: …", fails: true},
		{name: "core_pattern", line: "echo x > /proc/sys/kernel/core_pattern", want: "/bin/sh: …", fails: true},
		{name: "sysrq", line: "echo b > /proc/sysrq-trigger", want: "/bin/sh: …", fails: true},
		{name: "kcore", line: "wc -c < /proc/kcore", want: "0"},
		{name: "sysfs", line: "echo 1 > /sys/kernel/mm/ksm/run", want: "/bin/sh: …", fails: true},
		{name: "cgroup", line: "mkdir /sys/fs/cgroup/x", want: "mkdir: …", fails: true},
		{name: "no disks", line: "ls /dev | grep -cE 'vd|vport'", want: "0", fails: true},
		{name: "no layers", line: "ls /lower /upper", want: "ls: …", fails: true},
		{name: "the agent is nobody's", line: "cat /proc/1/environ || readlink /proc/1/fd/3 || ls /proc/1/root/", want: "cat: …", fails: true},
		{name: "PID 1 takes no signal", line: "kill -TERM 1; kill -HUP 1; kill -USR1 1; echo alive", want: "alive"},
		{name: "signals as a program expects them", line: "grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2 | uniq", want: "0000000000000000"},
		{name: "root", line: "awk '$2 == \"/\" { print $3 }' /proc/mounts", want: "overlay"},
		{name: "environment", line: `echo "$A $B $C"`, want: "config boot boot"},
		{name: "hosts", line: "tail -n 3 /etc/hosts | tr '\\t\\n' '  '", want: "192.168.100.2 held 10.1.2.3 db 10.1.2.4 cache"},
		{name: "hostname set", line: "hostname; cat /etc/hostname", want: "held\nheld"},
		{name: "resolver", line: "cat /etc/resolv.conf", want: "nameserver 8.8.8.8\nnameserver 8.8.4.4"},
		{name: "loopback", line: "ifconfig lo | grep -c 127.0.0.1", want: "1"},
		{name: "address", line: "ifconfig eth0 | grep -o 'addr:[0-9.]*'", want: "addr:192.168.100.2"},
		{name: "route", line: "route -n | awk '$1 == \"0.0.0.0\" { print $2, $8 }'", want: "192.168.100.1 eth0"},
		{name: "tmpfs", line: "head -c 2000000 /dev/zero > /mnt/small/f; df -k /mnt/small | awk 'NR == 2 { print $2 }'", want: "…"},
		{name: "shm", line: "df -k /dev/shm | awk 'NR == 2 { print $2 }'", want: "8192"},
		{name: "ulimit", line: "ulimit -Sn; ulimit -Hn; ulimit -c", want: "77\n88\nunlimited"},
		{name: "terminals", line: "ls -l /dev/ptmx | grep -c pts/ptmx", want: "1"},
		{name: "tmp", user: "nobody", line: "touch /tmp/x && ls /tmp", want: "x"},
	} {
		e.check(t, m)
	}
	t.Run("no program, under limits", func(t *testing.T) {
		result, err := m.Exec(context.Background(), "", &api.ExecOptions{Args: []string{"/no/such"}})
		if err != nil || result.ExitCode != 127 || !strings.Contains(string(result.Stderr), "/no/such") {
			t.Errorf("got %+v, %v", result, err)
		}
	})
	t.Run("clock is the host's", func(t *testing.T) {
		before := time.Now()
		got, _ := sh(t, m, nil, "date +%s")
		var seconds int64
		fmt.Sscan(got, &seconds)
		if guest := time.Unix(seconds, 0); guest.Before(before.Add(-2*time.Second)) || guest.After(time.Now().Add(time.Second)) {
			t.Errorf("guest %v, host %v", guest, before)
		}
	})
	t.Run("foreign architecture", func(t *testing.T) {
		// A program of eight bytes of i386 code: exit(7) by int 0x80.
		program := i386Exit(7)
		if err := m.WriteFile(context.Background(), "/tmp/i386", program, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, status := sh(t, m, nil, "/tmp/i386"); status != 128+int(unix.SIGSYS) {
			t.Errorf("status %d, want death by SIGSYS", status)
		}
	})
	t.Run("background processes live on", func(t *testing.T) {
		sh(t, m, nil, "sleep 1000 & echo $! > /tmp/pid")
		if got, status := sh(t, m, nil, "kill -0 $(cat /tmp/pid) && ps | grep -c '[s]leep 1000'"); status != 0 {
			t.Errorf("gone: %q", got)
		}
	})
	t.Run("orphans are reaped", func(t *testing.T) {
		sh(t, m, nil, "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; sleep 0.5")
		if got, _ := sh(t, m, nil, "grep -l 'State:.Z' /proc/[0-9]*/status | wc -l"); got != "0" {
			t.Errorf("%s zombies", got)
		}
	})
}

// i386Exit is a 32-bit ELF program that exits.
func i386Exit(status byte) []byte {
	const base, headers = 0x08048000, 52 + 32
	code := []byte{0xb8, 1, 0, 0, 0, 0xbb, status, 0, 0, 0, 0xcd, 0x80} // mov eax,1; mov ebx,status; int 0x80
	elf := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	u16 := func(v uint16) { elf = append(elf, byte(v), byte(v>>8)) }
	u32 := func(v uint32) { u16(uint16(v)); u16(uint16(v >> 16)) }
	u16(2) // ET_EXEC
	u16(3) // EM_386
	u32(1)
	u32(base + headers)
	u32(52) // program headers
	u32(0)
	u32(0)
	u16(52)
	u16(32)
	u16(1)
	u16(0)
	u16(0)
	u16(0)
	u32(1) // PT_LOAD
	u32(0)
	u32(base)
	u32(base)
	u32(headers + uint32(len(code)))
	u32(headers + uint32(len(code)))
	u32(5)
	u32(0x1000)
	return append(elf, code...)
}

// What a user may ask for in place of the defaults.
func TestVMConfinementChanged(t *testing.T) {
	config := overlayConfig(t, "changed")
	config.NoNetwork = true
	m := start(t, config, &api.BootData{
		Confinement:  api.Confinement{CapAdd: []string{"SYS_TIME"}, CapDrop: []string{"ALL"}, AllowSetuid: true},
		ReadOnlyRoot: true,
		Tmpfs:        []api.Tmpfs{{Path: "/tmp"}},
	})
	for _, e := range []expectation{
		{name: "only what was added", line: "grep CapEff /proc/self/status", want: "CapEff:\t0000000002000000"},
		{name: "its system calls", line: "date -s @$(date +%s) > /dev/null && echo set", want: "set"},
		{name: "the others still not", line: "mount -t tmpfs none /mnt", want: "mount: …", fails: true},
		{name: "set-id programs", line: "grep NoNewPrivs /proc/self/status", want: "NoNewPrivs:\t0"},
		{name: "read-only root", line: "touch /x", want: "touch: /x: Read-only file system", fails: true},
		{name: "read-only to the end", line: "mount -o remount,rw /", want: "mount: …", fails: true},
		{name: "tmpfs over it", line: "touch /tmp/x && ls /tmp", want: "x"},
		{name: "no interface", line: "ls /sys/class/net", want: "lo"},
		{name: "no name servers", line: "cat /etc/resolv.conf", want: ""},
		{name: "no way", line: "nc -w 5 10.0.0.1 80", want: "nc: can't connect to remote host (10.0.0.1): No route to host", fails: true},
	} {
		e.check(t, m)
	}
}

func TestVMPrivileged(t *testing.T) {
	config := overlayConfig(t, "privileged")
	config.Privileged = true
	m := start(t, config, nil)
	for _, e := range []expectation{
		{name: "capabilities", line: "grep CapEff /proc/self/status", want: "CapEff:\t000001ffffffffff"},
		{name: "seccomp", line: "grep Seccomp: /proc/self/status", want: "Seccomp:\t0"},
		{name: "mount", line: "mount -t tmpfs none /tmp && echo mounted", want: "mounted"},
		{name: "disks", line: "ls /dev/vda", want: "/dev/vda"},
	} {
		e.check(t, m)
	}
}

// A root of one ext4 image: a private copy of it, or itself.
func TestVMRootOfOneDisk(t *testing.T) {
	needVM(t)
	image := filepath.Join(t.TempDir(), "root.ext4")
	tree := t.TempDir()
	if out, err := exec.Command("sh", "-c", "mkdir -p "+tree+"/bin && cp /bin/busybox "+tree+"/bin/ && ln -s busybox "+tree+"/bin/sh && "+
		"mkfs.ext4 -q -d "+tree+" "+image+" 64M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("copied", func(t *testing.T) {
		m := start(t, &vm.VMConfig{ID: "copied", RootfsPath: image}, nil)
		if got, _ := sh(t, m, nil, "echo new > /file; /bin/busybox cat /file"); got != "new" {
			t.Errorf("got %q", got)
		}
		if path := m.RootfsPath(); path == image || path == "" {
			t.Errorf("RootfsPath %q", path)
		}
		if err := m.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		if after, _ := os.ReadFile(image); !bytes.Equal(before, after) {
			t.Error("the original has changed")
		}
	})
	t.Run("as it is", func(t *testing.T) {
		m := start(t, &vm.VMConfig{ID: "prebuilt", PrebuiltRootfs: image}, nil)
		sh(t, m, nil, "echo new > /file")
		if m.RootfsPath() != image {
			t.Errorf("RootfsPath %q", m.RootfsPath())
		}
		if err := m.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
			t.Errorf("after a clean stop: %v\n%s", err, out)
		}
		if out, err := exec.Command("debugfs", "-R", "cat /file", image).Output(); err != nil || string(out) != "new\n" {
			t.Errorf("the file: %q, %v", out, err)
		}
	})
}

// Further disks, one of each kind, and what a clean stop leaves on them.
func TestVMExtraDisks(t *testing.T) {
	config := overlayConfig(t, "disks")
	image := func(name string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := disk.CreateScratch(context.Background(), path, 64<<20, cacheDir(t)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	data, fixed := image("data"), image("fixed")
	config.ExtraDisks = []vm.DiskConfig{
		{HostPath: data, GuestMount: "/srv/with blank/data"},
		{HostPath: fixed, GuestMount: "/fixed", ReadOnly: true},
	}
	m := start(t, config, nil)
	for _, e := range []expectation{
		{name: "written", line: "echo kept > '/srv/with blank/data/file' && cat '/srv/with blank/data/file'", want: "kept"},
		{name: "not written", line: "touch /fixed/file", want: "touch: /fixed/file: Read-only file system", fails: true},
	} {
		e.check(t, m)
	}
	if err := m.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("debugfs", "-R", "cat /file", data).Output(); err != nil || string(out) != "kept\n" {
		t.Errorf("the file: %q, %v", out, err)
	}
	if out, err := exec.Command("e2fsck", "-fn", data).CombinedOutput(); err != nil {
		t.Errorf("after a clean stop: %v\n%s", err, out)
	}
}

// The machine's other sockets, and the kernel's own command line.
func TestVMSocketsAndArguments(t *testing.T) {
	config := overlayConfig(t, "sockets")
	dir := t.TempDir()
	config.VsockPath, config.SocketPath = filepath.Join(dir, "vsock"), filepath.Join(dir, "qmp")
	config.CPUs, config.MemoryMB, config.MTU = 0.5, 256, 9000
	config.DNSServers = []string{"10.9.9.9"}
	m := start(t, config, nil)
	for _, e := range []expectation{
		{name: "MTU", line: "cat /sys/class/net/eth0/mtu", want: "9000"},
		{name: "resolver", line: "cat /etc/resolv.conf", want: "nameserver 10.9.9.9"},
		{name: "processors", line: "nproc; cat /sys/devices/system/cpu/online", want: "1\n0"},
		{name: "share of them", line: "cat /proc/self/cgroup; cat /sys/fs/cgroup/user/cpu.max", want: "0::/user\n50000 100000"},
	} {
		e.check(t, m)
	}
	for _, path := range []string{config.VsockPath, config.SocketPath} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", path, info, err)
		}
	}
	t.Run("monitor", func(t *testing.T) {
		conn, err := net.Dial("unix", config.SocketPath)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		greeting := make([]byte, 8)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(greeting); err != nil || !strings.HasPrefix(string(greeting), `{"QMP"`) {
			t.Errorf("greeting %q, %v", greeting, err)
		}
	})
	sh(t, m, nil, "echo served | nc -l -p 8080 > /tmp/got 2>&1 & sleep 0.5")
	t.Run("vsock", func(t *testing.T) {
		conn, err := net.Dial("unix", config.VsockPath)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "CONNECT %d\n", 10000+8080)
		reply := make([]byte, len("OK 18080\nserved\n"))
		for n := 0; n < len(reply); {
			k, err := conn.Read(reply[n:])
			if err != nil {
				t.Fatalf("after %q: %v", reply[:n], err)
			}
			n += k
		}
		if string(reply) != "OK 18080\nserved\n" {
			t.Errorf("got %q", reply)
		}
	})
	t.Run("vsock refused", func(t *testing.T) {
		dialer := m.(vm.VsockDialer)
		for _, port := range []uint32{0, 1, 2, 10000 + 1, 9999} {
			if conn, err := dialer.DialVsock(port); err == nil {
				conn.Close()
				t.Errorf("port %d is open", port)
			}
		}
	})
	t.Run("network", func(t *testing.T) {
		fd, err := m.NetworkFD()
		if err != nil {
			t.Fatal(err)
		}
		link := os.NewFile(uintptr(fd), "link")
		defer link.Close()
		sh(t, m, nil, "ping -c 1 -W 1 192.168.100.1; true")
		unix.SetNonblock(fd, true)
		frame := make([]byte, 65536)
		n, err := unix.Read(fd, frame)
		if err != nil || n < 14 {
			t.Fatalf("no frame: %d, %v", n, err)
		}
	})
}

// TestVMOtherAddress has a copy have other addresses than the machine that it is a
// copy of.
func TestVMOtherAddress(t *testing.T) {
	options := backendOptions(t)
	options.Templates = t.TempDir()
	var copies, made int
	options.Warm = func(m bool, err error) {
		if copies++; m {
			made++
		}
		if err != nil {
			t.Error(err)
		}
	}
	first := overlayConfig(t, "first")
	for _, other := range []bool{false, true} {
		config := *first
		address, gateway := "192.168.100.2/24", "192.168.100.1"
		if other {
			config = *overlayConfig(t, "other")
			config.OverlayLowerPaths = first.OverlayLowerPaths
			config.GuestIP, config.GatewayIP, config.SubnetCIDR = "10.7.0.2", "10.7.0.1", "10.7.0.1/16"
			address, gateway = "10.7.0.2/16", "10.7.0.1"
		}
		upper := config.OverlayUpperPath + ".of-template"
		config.OverlayUpperPath, options.ScratchSize = upper, 1<<30
		options.Scratch = func(ctx context.Context) error {
			return disk.CreateScratch(ctx, upper, options.ScratchSize, options.CacheDir)
		}
		m, err := qemu.New(options).Create(t.Context(), &config)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close(context.Background())
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, e := range []expectation{
			{name: "address", line: "ip -o -4 addr show eth0 | awk '{ print $4 }'", want: address},
			{name: "routes", line: "ip route | awk '{ print $1, $2, $3 }'", want: "default via " + gateway + "\n" + netip.MustParsePrefix(address).Masked().String() + " dev eth0"},
		} {
			e.check(t, m)
		}
	}
	if made != 1 || copies != 2 {
		t.Errorf("%d templates were made, and %d machines begun as copies; want 1 and 2", made, copies)
	}
}

// A command line of the caller's own carries the boot parameters too.
func TestVMKernelArgs(t *testing.T) {
	config := overlayConfig(t, "args")
	reference := start(t, config, nil)
	cmdline, _ := sh(t, reference, nil, "cat /proc/cmdline")
	reference.Close(context.Background())

	config = overlayConfig(t, "args")
	config.KernelArgs = cmdline + " matchlock.mtu=1400 ip=10.7.0.2::10.7.0.1:255.255.255.0::eth0:off mine=1"
	m := start(t, config, nil)
	if got, _ := sh(t, m, nil, "cat /proc/cmdline"); !strings.HasSuffix(got, " mine=1") {
		t.Errorf("command line %q", got)
	}
	if got, _ := sh(t, m, nil, "ifconfig eth0 | grep -o 'addr:[0-9.]*'"); got != "addr:192.168.100.2" {
		t.Errorf("%s: the boot data should win", got)
	}
}

func TestVMThatCannotBe(t *testing.T) {
	backend := newBackend(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("this is no disk and no kernel\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*vm.VMConfig)
		want   string
	}{
		"missing lower":  {func(c *vm.VMConfig) { c.OverlayLowerPaths[0] = "/no/such" }, "no such file"},
		"ragged lower":   {func(c *vm.VMConfig) { c.OverlayLowerPaths[0] = text }, "sector"},
		"folder as disk": {func(c *vm.VMConfig) { c.ExtraDisks = []vm.DiskConfig{{HostPath: "/tmp", GuestMount: "/d"}} }, "directory"},
		"no kernel":      {func(c *vm.VMConfig) { c.KernelPath = text }, "not a Linux kernel"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			config := overlayConfig(t, "never")
			test.change(config)
			m, err := backend.Create(ctx, config)
			if err == nil {
				m.Close(ctx)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
	t.Run("damaged lower", func(t *testing.T) {
		config := overlayConfig(t, "damaged")
		config.OverlayLowerPaths[0] = config.OverlayUpperPath // an ext4 where an EROFS should be
		m, err := backend.Create(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close(ctx)
		if err := m.Start(ctx); err == nil || !strings.Contains(err.Error(), "erofs") {
			t.Errorf("got %v", err)
		}
		if _, err := m.Exec(ctx, "true", nil); !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("Exec after a failed start: %v", err)
		}
	})
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "vm-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

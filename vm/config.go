package vm

import (
	"os"
	"strings"

	"github.com/matchlock/matchlock/api"
)

// DiskConfig describes one further disk of the guest.
type DiskConfig struct {
	HostPath   string // an ext4 image on the host, raw
	GuestMount string // where the guest mounts it: absolute, made when missing
	ReadOnly   bool   // enforced by the hypervisor, not only by the guest
	// File, unless nil, is what is at HostPath, open for reading and, unless
	// ReadOnly, for writing. It stays the caller's to close; the hypervisor has it as
	// well, and with it a lock (flock(2)), until it is gone itself.
	File *os.File
}

// VMConfig describes a machine to be made. The zero value of a field means its
// default; only ID and one kind of root are required. Create does not keep a
// reference to it.
//
// The root is one of: a private copy of RootfsPath; PrebuiltRootfs itself; or,
// with OverlayEnabled, an overlay of read-only lower images and one upper.
type VMConfig struct {
	// ID names the machine and is the guest's default hostname:
	// [a-z0-9][a-z0-9-]{0,62}. Required.
	ID string

	// KernelPath is a vmlinux or bzImage. Empty: the backend finds one.
	KernelPath string

	// RootfsPath is a raw ext4 image that becomes "/". It is copied first
	// (by reflink or sparsely), so the original stays as it was.
	RootfsPath string

	// OverlayEnabled makes the guest assemble "/" as an overlay. RootfsPath and
	// PrebuiltRootfs must then be empty.
	OverlayEnabled bool
	// OverlayLowerPaths are read-only images, base first, one to eight.
	OverlayLowerPaths []string
	// OverlayLowerFSTypes names the file system of each lower, "erofs" or "ext4";
	// missing or empty means erofs. There may not be more types than paths.
	OverlayLowerFSTypes []string
	// OverlayUpperPath is a raw ext4 image that takes all writes. Required with
	// OverlayEnabled.
	OverlayUpperPath string

	// CPUs is the share of processors; 0 is 1. The guest has ceil(CPUs) vCPUs,
	// and user code in it is held to the fraction.
	CPUs float64
	// MemoryMB is the guest's memory in MiB; 0 is 512.
	MemoryMB int

	// NetworkFD is the guest's end of a link of the caller: a unix datagram
	// socket, one frame each. It must be above 2 and stays the caller's to close.
	// 0 or -1: the machine makes the link, and Machine.NetworkFD is its host end.
	NetworkFD int

	// VsockCID is told to the guest and otherwise free of meaning; 0 is 3.
	VsockCID uint32
	// VsockPath, when set, is a unix socket (0600, peer's uid checked) that
	// speaks the hybrid vsock protocol of Machine.VsockFD.
	VsockPath string
	// SocketPath, when set, is the hypervisor's own control socket (0600), for a
	// person to look in. The machine itself does not use it.
	SocketPath string
	// LogPath receives the guest's console and the hypervisor's messages, in the
	// format of Kubernetes' CRI: a line is the time in UTC, the word console, F or
	// P (the line goes on with the next one), and what was said. The first line
	// of a file, and those that tell of a gap, have matchlock for console.
	// The file is made 0600 and appended to; at 8 MiB it becomes LogPath.1, that
	// LogPath.2, and so on to LogPath.3. What is there and is no such log becomes
	// LogPath.1; a symbolic link is refused. Empty: console and messages are kept
	// in memory, bounded, for error messages only.
	LogPath string

	// KernelArgs, when set, is the whole kernel command line: nothing is added.
	KernelArgs string

	// Env is the environment of every exec, below ExecOptions.Env.
	Env map[string]string

	// GatewayIP, GuestIP and SubnetCIDR describe the guest's network, which is
	// its own: the same addresses serve all machines. SubnetCIDR is the gateway's
	// address with the prefix. Defaults: 192.168.100.1, 192.168.100.2,
	// 192.168.100.1/24.
	GatewayIP  string
	GuestIP    string
	SubnetCIDR string

	// Workspace is the absolute guest path at which the files are mounted that the
	// caller serves; empty: none. It dials port 3 by VsockDialer after Start, once, and
	// then calls Booter.Boot: every Exec before is an error. On the stream are the
	// messages of the guest's FUSE, see package internal/fuse.
	Workspace string

	// UseInterception says that the link ends in the intercepting stack, whose CA
	// the guest is to trust: every Exec before Boot is an error.
	UseInterception bool

	// Privileged lifts the in-guest restrictions: seccomp, dropped capabilities,
	// no_new_privs.
	Privileged bool

	// DNSServers is what the guest's resolv.conf names; empty: 8.8.8.8, 8.8.4.4.
	DNSServers []string
	// Hostname of the guest; empty: ID.
	Hostname string
	// AddHosts are further lines of the guest's hosts file.
	AddHosts []api.HostIPMapping
	// Boot is boot data that Start hands over by itself: one step less than a call
	// of Booter.Boot, which is refused then. Nil: there is none, or it comes by that.
	Boot *api.BootData
	// MTU of the guest's interface in bytes; 0 is 1500.
	MTU int
	// NoNetwork leaves the guest with its loopback alone.
	NoNetwork bool

	// PrebuiltRootfs is a raw ext4 image that becomes "/", read-write and without
	// a copy.
	PrebuiltRootfs string

	// ExtraDisks are attached after the root's, in order.
	ExtraDisks []DiskConfig
}

// KernelIPDNSSuffix returns the name servers' part of the kernel's ip=
// parameter, ":dns0:dns1"; the format holds two, further ones are left out. No
// servers: "". (Linux, Documentation/admin-guide/nfs/nfsroot.rst.)
func KernelIPDNSSuffix(dnsServers []string) string {
	var suffix strings.Builder
	for _, server := range dnsServers[:min(2, len(dnsServers))] {
		suffix.WriteString(":" + server)
	}
	return suffix.String()
}

// KernelDNSParam returns the value of the matchlock.dns= parameter, the servers
// joined by commas. No servers: "".
func KernelDNSParam(dnsServers []string) string {
	return strings.Join(dnsServers, ",")
}

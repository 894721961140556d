package machine

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// Defaults of vm.VMConfig.
const (
	defaultCPUs     = 1
	defaultMemoryMB = 512
	defaultGateway  = "192.168.100.1"
	defaultGuest    = "192.168.100.2"
	defaultSubnet   = "192.168.100.1/24"
	defaultMTU      = 1500
	defaultCID      = 3
)

// minMemoryMB is the least with which guests boot: see api.MinMemory.
const minMemoryMB = api.MinMemory >> 20

// maxMemoryMB keeps the arithmetic of backends in bounds where the host's
// memory is not known.
const maxMemoryMB = 4 << 20

var defaultDNS = []string{"8.8.8.8", "8.8.4.4"}

var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Config is a vm.VMConfig with its defaults filled in, all of it validated.
type Config struct {
	vm.VMConfig
	Params wire.Params // what of it the guest must know
	VCPUs  int         // ceil(CPUs)
	Epoch  uint64      // of the data port's session where that is not the guest's first
}

// Resolve validates config, reporting every fault at once, and fills in the
// defaults. It opens nothing.
func Resolve(config *vm.VMConfig) (*Config, error) {
	if config == nil {
		return nil, errors.New("vm config: none given")
	}
	c := &Config{VMConfig: *config}
	c.withDefaults()
	if err := errors.Join(c.checkShape(), c.checkRoot(), c.checkDisks(), c.checkNetwork(), c.checkPaths(), c.checkText()); err != nil {
		return nil, err
	}
	c.VCPUs = int(math.Ceil(c.CPUs))
	c.Epoch = rand.Uint64()
	c.Params = c.params()
	// The guest reads the text form; what it would refuse is refused here.
	if _, err := wire.ParseParams(wire.Params{}, c.Params.String()); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) withDefaults() {
	orElse(&c.CPUs, defaultCPUs)
	orElse(&c.MemoryMB, defaultMemoryMB)
	orElse(&c.GatewayIP, defaultGateway)
	orElse(&c.GuestIP, defaultGuest)
	orElse(&c.SubnetCIDR, defaultSubnet)
	orElse(&c.MTU, defaultMTU)
	orElse(&c.VsockCID, defaultCID)
	orElse(&c.Hostname, c.ID)
	if c.NetworkFD == -1 {
		c.NetworkFD = 0
	}
	if len(c.DNSServers) == 0 && !c.NoNetwork {
		c.DNSServers = defaultDNS
	}
}

func orElse[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Config) checkShape() error {
	var errs []error
	if !validID.MatchString(c.ID) {
		errs = append(errs, fmt.Errorf("ID %q: want %s", c.ID, validID))
	}
	switch {
	case math.IsNaN(c.CPUs) || c.CPUs <= 0:
		errs = append(errs, fmt.Errorf("CPUs %v: not a positive number", c.CPUs))
	case math.Ceil(c.CPUs) > float64(runtime.NumCPU()):
		errs = append(errs, fmt.Errorf("CPUs %v: the host has %d", c.CPUs, runtime.NumCPU()))
	}
	switch host := hostMemoryMB(); {
	case c.MemoryMB < minMemoryMB:
		errs = append(errs, fmt.Errorf("MemoryMB %d: a guest needs at least %d to boot", c.MemoryMB, minMemoryMB))
	case c.MemoryMB > maxMemoryMB, host > 0 && c.MemoryMB > host:
		errs = append(errs, fmt.Errorf("MemoryMB %d: the host has %d", c.MemoryMB, host))
	}
	return errors.Join(errs...)
}

func (c *Config) checkRoot() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !c.OverlayEnabled {
		switch {
		case c.RootfsPath == "" && c.PrebuiltRootfs == "":
			fault("no root: one of RootfsPath, PrebuiltRootfs and OverlayEnabled is required")
		case c.RootfsPath != "" && c.PrebuiltRootfs != "":
			fault("RootfsPath and PrebuiltRootfs: only one may be set")
		}
		if len(c.OverlayLowerPaths)+len(c.OverlayLowerFSTypes) > 0 || c.OverlayUpperPath != "" {
			fault("OverlayLowerPaths, OverlayLowerFSTypes and OverlayUpperPath need OverlayEnabled")
		}
		return errors.Join(errs...)
	}
	if c.RootfsPath != "" || c.PrebuiltRootfs != "" {
		fault("RootfsPath and PrebuiltRootfs have no place beside OverlayEnabled: the root is made of the lowers and the upper")
	}
	if n := len(c.OverlayLowerPaths); n < 1 || n > wire.MaxLowers {
		fault("OverlayLowerPaths: %d, want 1 to %d", n, wire.MaxLowers)
	}
	if c.OverlayUpperPath == "" {
		fault("OverlayUpperPath: required with OverlayEnabled")
	}
	if len(c.OverlayLowerFSTypes) > len(c.OverlayLowerPaths) {
		fault("OverlayLowerFSTypes: %d for %d paths", len(c.OverlayLowerFSTypes), len(c.OverlayLowerPaths))
	}
	for i, t := range c.OverlayLowerFSTypes {
		if t != "" && t != "erofs" && t != "ext4" {
			fault("OverlayLowerFSTypes[%d] %q: neither erofs nor ext4", i, t)
		}
	}
	return errors.Join(errs...)
}

func (c *Config) checkDisks() error {
	var errs []error
	if n := len(c.ExtraDisks); n > wire.MaxDisks {
		errs = append(errs, fmt.Errorf("ExtraDisks: %d, at most %d", n, wire.MaxDisks))
	}
	mounted := map[string]int{}
	for i, d := range c.ExtraDisks {
		if d.HostPath == "" {
			errs = append(errs, fmt.Errorf("ExtraDisks[%d]: no HostPath", i))
		}
		if !filepath.IsAbs(d.GuestMount) || filepath.Clean(d.GuestMount) == "/" || strings.ContainsRune(d.GuestMount, 0) {
			errs = append(errs, fmt.Errorf("ExtraDisks[%d]: GuestMount %q is not an absolute path below /", i, d.GuestMount))
		}
		if j, taken := mounted[filepath.Clean(d.GuestMount)]; taken {
			errs = append(errs, fmt.Errorf("ExtraDisks[%d]: GuestMount %q is that of ExtraDisks[%d]", i, d.GuestMount, j))
		}
		mounted[filepath.Clean(d.GuestMount)] = i
	}
	return errors.Join(errs...)
}

func (c *Config) checkNetwork() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.NetworkFD < 0 || c.NetworkFD == 1 || c.NetworkFD == 2 {
		fault("NetworkFD %d: want a descriptor above 2, or 0 for a link of the machine's own", c.NetworkFD)
	}
	if c.NoNetwork && c.NetworkFD > 0 {
		fault("NetworkFD has no place beside NoNetwork")
	}
	if c.NoNetwork && c.UseInterception {
		fault("UseInterception has no place beside NoNetwork")
	}
	if err := wire.CheckHostname(c.Hostname); err != nil && c.ID != "" {
		fault("Hostname %q: %w", c.Hostname, err)
	}
	for _, server := range c.DNSServers {
		if addr, err := netip.ParseAddr(server); err != nil || addr.Zone() != "" {
			fault("DNSServers: %q is not an IP address", server)
		}
	}
	if c.MTU < 68 || c.MTU > 65535 {
		fault("MTU %d: not between 68 and 65535", c.MTU)
	}
	gateway, err := netip.ParseAddr(c.GatewayIP)
	if err != nil || !gateway.Is4() {
		fault("GatewayIP %q: not an IPv4 address", c.GatewayIP)
	}
	guest, err := netip.ParseAddr(c.GuestIP)
	if err != nil || !guest.Is4() {
		fault("GuestIP %q: not an IPv4 address", c.GuestIP)
	}
	subnet, err := netip.ParsePrefix(c.SubnetCIDR)
	if err != nil || !subnet.Addr().Is4() || subnet.Bits() > 30 {
		fault("SubnetCIDR %q: not an IPv4 prefix of at most 30 bits", c.SubnetCIDR)
	}
	if errs == nil {
		switch {
		case subnet.Addr() != gateway:
			fault("SubnetCIDR %s: its address is not GatewayIP %s", subnet, gateway)
		case !subnet.Contains(guest):
			fault("GuestIP %s: not in %s", guest, subnet.Masked())
		case guest == gateway:
			fault("GuestIP and GatewayIP are both %s", guest)
		}
	}
	return errors.Join(errs...)
}

func (c *Config) checkPaths() error {
	var errs []error
	for name, text := range map[string]string{
		"KernelPath": c.KernelPath, "RootfsPath": c.RootfsPath, "PrebuiltRootfs": c.PrebuiltRootfs, "OverlayUpperPath": c.OverlayUpperPath,
		"VsockPath": c.VsockPath, "SocketPath": c.SocketPath, "LogPath": c.LogPath,
	} {
		if strings.ContainsRune(text, 0) {
			errs = append(errs, fmt.Errorf("%s %q: NUL in a path", name, text))
		}
	}
	if c.Workspace != "" {
		if !path.IsAbs(c.Workspace) || path.Clean(c.Workspace) == "/" || strings.ContainsRune(c.Workspace, 0) {
			errs = append(errs, fmt.Errorf("workspace %q: want an absolute path below /", c.Workspace))
		}
		if c.Boot != nil {
			errs = append(errs, errors.New("field Boot has no place beside Workspace, which must be served before it"))
		}
	}
	return errors.Join(errs...)
}

// checkText judges what reaches files and the environment of the guest.
func (c *Config) checkText() error {
	var errs []error
	for key, value := range c.Env {
		if err := CheckEnv(key, value); err != nil {
			errs = append(errs, err)
		}
	}
	for _, m := range c.AddHosts {
		if err := CheckHost(m.Host, m.IP); err != nil {
			errs = append(errs, err)
		}
	}
	if c.Boot != nil {
		errs = append(errs, checkBootData(c.Boot))
	}
	if strings.ContainsAny(c.KernelArgs, "\x00\n") {
		errs = append(errs, errors.New("KernelArgs: a control character"))
	}
	return errors.Join(errs...)
}

// CheckEnv says whether key=value can stand in an environment.
func CheckEnv(key, value string) error {
	if key == "" || strings.ContainsAny(key, "=\x00") || strings.ContainsRune(value, 0) {
		return fmt.Errorf("environment variable %q: a name without '=' is wanted, and no NUL", key)
	}
	return nil
}

// CheckHost says whether host and ip can stand on a line of a hosts file.
func CheckHost(host, ip string) error {
	if _, err := netip.ParseAddr(ip); err != nil {
		return fmt.Errorf("host %q: %q is not an IP address", host, ip)
	}
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == '#' || r >= 0x7f }) {
		return fmt.Errorf("host %q: not a host name", host)
	}
	return nil
}

func (c *Config) params() wire.Params {
	p := wire.Params{Hostname: c.Hostname, NoNetwork: c.NoNetwork, CID: c.VsockCID, Privileged: c.Privileged, Trust: c.UseInterception}
	if !c.NoNetwork {
		subnet := netip.MustParsePrefix(c.SubnetCIDR)
		p.Address = netip.PrefixFrom(netip.MustParseAddr(c.GuestIP), subnet.Bits())
		p.Gateway = subnet.Addr()
		p.MTU = c.MTU
	}
	for _, server := range c.DNSServers {
		p.DNS = append(p.DNS, netip.MustParseAddr(server))
	}
	for i := range c.OverlayLowerPaths {
		fstype := "erofs"
		if i < len(c.OverlayLowerFSTypes) && c.OverlayLowerFSTypes[i] != "" {
			fstype = c.OverlayLowerFSTypes[i]
		}
		p.Root.Lowers = append(p.Root.Lowers, fstype)
	}
	for _, d := range c.ExtraDisks {
		p.Disks = append(p.Disks, wire.Disk{Mount: d.GuestMount, ReadOnly: d.ReadOnly})
	}
	if c.CPUs != math.Ceil(c.CPUs) {
		p.CPUs = c.CPUs
	}
	return p
}

// hostMemoryMB is the host's memory, 0 where it is not known.
func hostMemoryMB() int {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	var kb int
	if _, err := fmt.Sscanf(string(meminfo), "MemTotal: %d kB", &kb); err != nil {
		return 0
	}
	return kb >> 10
}

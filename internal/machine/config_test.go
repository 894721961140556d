package machine

import (
	"math"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/vm"
)

func overlay(change func(*vm.VMConfig)) *vm.VMConfig {
	c := &vm.VMConfig{ID: "box", OverlayEnabled: true, OverlayLowerPaths: []string{"/l"}, OverlayUpperPath: "/u"}
	if change != nil {
		change(c)
	}
	return c
}

func TestResolveFillsInDefaults(t *testing.T) {
	c, err := Resolve(overlay(nil))
	if err != nil {
		t.Fatal(err)
	}
	if c.CPUs != 1 || c.VCPUs != 1 || c.MemoryMB != 512 || c.MTU != 1500 || c.VsockCID != 3 {
		t.Errorf("shape: %+v", c)
	}
	p := c.Params
	if p.Hostname != "box" || p.Address != netip.MustParsePrefix("192.168.100.2/24") || p.Gateway != netip.MustParseAddr("192.168.100.1") || len(p.DNS) != 2 || p.CPUs != 0 {
		t.Errorf("params: %+v", p)
	}
	if len(p.Root.Lowers) != 1 || p.Root.Lowers[0] != "erofs" {
		t.Errorf("lowers: %v", p.Root.Lowers)
	}
}

func TestResolveKeepsTheFraction(t *testing.T) {
	c, err := Resolve(overlay(func(c *vm.VMConfig) { c.CPUs = 0.5 }))
	if err != nil {
		t.Fatal(err)
	}
	if c.VCPUs != 1 || c.Params.CPUs != 0.5 {
		t.Errorf("0.5 CPUs: %d vCPUs, %v for user code", c.VCPUs, c.Params.CPUs)
	}
}

func TestResolveLeavesTheCallersConfigAlone(t *testing.T) {
	config := overlay(nil)
	if _, err := Resolve(config); err != nil {
		t.Fatal(err)
	}
	if config.MTU != 0 || config.DNSServers != nil {
		t.Errorf("changed: %+v", config)
	}
}

func TestResolveRefuses(t *testing.T) {
	tests := map[string]struct {
		change func(*vm.VMConfig)
		want   string
	}{
		"no ID":                  {func(c *vm.VMConfig) { c.ID = "" }, "ID"},
		"capital ID":             {func(c *vm.VMConfig) { c.ID = "Box" }, "ID"},
		"long ID":                {func(c *vm.VMConfig) { c.ID = strings.Repeat("a", 64) }, "ID"},
		"NaN CPUs":               {func(c *vm.VMConfig) { c.CPUs = math.NaN() }, "CPUs"},
		"negative CPUs":          {func(c *vm.VMConfig) { c.CPUs = -1 }, "CPUs"},
		"more CPUs than there":   {func(c *vm.VMConfig) { c.CPUs = float64(runtime.NumCPU()) + 0.5 }, "the host has"},
		"infinite CPUs":          {func(c *vm.VMConfig) { c.CPUs = math.Inf(1) }, "CPUs"},
		"little memory":          {func(c *vm.VMConfig) { c.MemoryMB = 8 }, "needs at least"},
		"negative memory":        {func(c *vm.VMConfig) { c.MemoryMB = -1 }, "MemoryMB"},
		"endless memory":         {func(c *vm.VMConfig) { c.MemoryMB = 1 << 40 }, "MemoryMB"},
		"no root":                {func(c *vm.VMConfig) { *c = vm.VMConfig{ID: "box"} }, "no root"},
		"two roots":              {func(c *vm.VMConfig) { *c = vm.VMConfig{ID: "box", RootfsPath: "/r", PrebuiltRootfs: "/p"} }, "only one"},
		"root beside overlay":    {func(c *vm.VMConfig) { c.RootfsPath = "/r" }, "no place beside OverlayEnabled"},
		"lowers without overlay": {func(c *vm.VMConfig) { c.OverlayEnabled = false; c.RootfsPath = "/r" }, "need OverlayEnabled"},
		"no lower":               {func(c *vm.VMConfig) { c.OverlayLowerPaths = nil }, "1 to 8"},
		"nine lowers":            {func(c *vm.VMConfig) { c.OverlayLowerPaths = make([]string, 9) }, "1 to 8"},
		"no upper":               {func(c *vm.VMConfig) { c.OverlayUpperPath = "" }, "OverlayUpperPath"},
		"more types than lowers": {func(c *vm.VMConfig) { c.OverlayLowerFSTypes = []string{"", ""} }, "2 for 1"},
		"foreign lower":          {func(c *vm.VMConfig) { c.OverlayLowerFSTypes = []string{"squashfs"} }, "squashfs"},
		"standard input as link": {func(c *vm.VMConfig) { c.NetworkFD = 2 }, "NetworkFD"},
		"link without network":   {func(c *vm.VMConfig) { c.NetworkFD = 5; c.NoNetwork = true }, "NoNetwork"},
		"gateway elsewhere":      {func(c *vm.VMConfig) { c.GatewayIP = "10.0.0.1" }, "GatewayIP"},
		"guest elsewhere":        {func(c *vm.VMConfig) { c.GuestIP = "10.0.0.2" }, "not in"},
		"guest is gateway":       {func(c *vm.VMConfig) { c.GuestIP = "192.168.100.1" }, "both"},
		"v6 guest":               {func(c *vm.VMConfig) { c.GuestIP = "::1" }, "IPv4"},
		"no prefix":              {func(c *vm.VMConfig) { c.SubnetCIDR = "192.168.100.1" }, "SubnetCIDR"},
		"tiny MTU":               {func(c *vm.VMConfig) { c.MTU = 67 }, "MTU"},
		"injected DNS":           {func(c *vm.VMConfig) { c.DNSServers = []string{"8.8.8.8 init=/bin/sh"} }, "not an IP address"},
		"injected hostname":      {func(c *vm.VMConfig) { c.Hostname = "a init=/bin/sh" }, "Hostname"},
		"hostname with newline":  {func(c *vm.VMConfig) { c.Hostname = "a\nb" }, "Hostname"},
		"host with newline":      {func(c *vm.VMConfig) { c.AddHosts = []api.HostIPMapping{{Host: "a\nb", IP: "1.2.3.4"}} }, "not a host name"},
		"host without address":   {func(c *vm.VMConfig) { c.AddHosts = []api.HostIPMapping{{Host: "a", IP: "b"}} }, "not an IP address"},
		"environment":            {func(c *vm.VMConfig) { c.Env = map[string]string{"A=B": "C"} }, "environment"},
		"relative mount":         {func(c *vm.VMConfig) { c.ExtraDisks = []vm.DiskConfig{{HostPath: "/d", GuestMount: "data"}} }, "absolute"},
		"mount over the root":    {func(c *vm.VMConfig) { c.ExtraDisks = []vm.DiskConfig{{HostPath: "/d", GuestMount: "/x/.."}} }, "below /"},
		"two disks at one place": {func(c *vm.VMConfig) {
			c.ExtraDisks = []vm.DiskConfig{{HostPath: "/d", GuestMount: "/x"}, {HostPath: "/e", GuestMount: "/x/"}}
		}, "is that of"},
		"relative workspace":    {func(c *vm.VMConfig) { c.Workspace = "w" }, "absolute"},
		"workspace at the root": {func(c *vm.VMConfig) { c.Workspace = "/w/.." }, "absolute path below /"},
		"workspace and Boot":    {func(c *vm.VMConfig) { c.Workspace, c.Boot = "/w", &api.BootData{} }, "no place beside Workspace"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Resolve(overlay(test.change))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
	if _, err := Resolve(nil); err == nil {
		t.Error("no config at all is accepted")
	}
}

// Every fault is told at once.
func TestResolveJoinsFaults(t *testing.T) {
	_, err := Resolve(&vm.VMConfig{ID: "?", CPUs: -1, MTU: 1})
	for _, want := range []string{"ID", "CPUs", "MTU", "no root"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
}

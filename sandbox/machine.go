package sandbox

import (
	"context"
	"maps"
	"net"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/boot"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/vm"
)

// guestMachine is what a sandbox needs of a machine beyond vm.Machine: to be
// told what makes it this sandbox, and streams to its agent.
type guestMachine interface {
	vm.Machine
	vm.Booter
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Explain(ctx context.Context, err error) error
	Accelerator() (name, reason string)
	Jail() (applied, missing []string)
}

// blockCounter is a machine that may know how many blocks of the guest's code
// were translated.
type blockCounter interface {
	Blocks(ctx context.Context) (int, error)
}

// bootFiles finds kernel and initramfs.
func (o Options) bootFiles(ctx context.Context, home state.Home) (qemu.BootFiles, error) {
	guest, err := o.guest(ctx)
	if err != nil {
		return qemu.BootFiles{}, err
	}
	report := newTasks(o.Progress)
	defer report.end()
	files, err := boot.Prepare(ctx, boot.Options{
		Kernel:   o.Kernel,
		Own:      home.Kernel(),
		CacheDir: home.Cache,
		Guest:    guest,
		GuestSum: o.GuestSum,
		Logger:   o.Logger,
		Progress: report.update,
	})
	if err != nil {
		return qemu.BootFiles{}, err
	}
	return qemu.BootFiles{Kernel: files.Kernel, Initramfs: files.Initramfs, HZ: files.HZ}, nil
}

// scratchName is the file in a sandbox's folder that takes the writes to "/".
const scratchName = "upper.ext4"

func createScratch(ctx context.Context, home state.Home, dir *state.Dir, size int64) error {
	cache := home.Disks()
	if err := hostfs.Private(cache); err != nil {
		return err
	}
	return withHint(disk.CreateScratch(ctx, dir.Path(scratchName), size, cache))
}

// vmConfig says what machine the configuration asks for.
func vmConfig(dir *state.Dir, c *api.Config, layers []image.Layer, disks []heldDisk) *vm.VMConfig {
	m := &vm.VMConfig{
		ID:               dir.ID,
		OverlayEnabled:   true,
		OverlayUpperPath: dir.Path(scratchName),
		CPUs:             c.CPUs,
		MemoryMB:         int(c.Memory >> 20),
		LogPath:          dir.Path(consoleName),
		Hostname:         hostname(dir.ID, c),
		Privileged:       c.Privileged,
		NoNetwork:        c.Network.None,
		MTU:              c.Network.MTU,
		UseInterception:  !c.Network.None,
	}
	if !c.Network.None {
		m.GatewayIP, m.GuestIP, m.SubnetCIDR = gateway.String(), guestAddress.String(), subnet.String()
		m.DNSServers = []string{gateway.String()} // whatever it asks, we answer
	}
	for _, l := range layers {
		m.OverlayLowerPaths = append(m.OverlayLowerPaths, l.Path)
		m.OverlayLowerFSTypes = append(m.OverlayLowerFSTypes, l.FSType)
	}
	for _, d := range disks {
		m.ExtraDisks = append(m.ExtraDisks, vm.DiskConfig{HostPath: d.path, GuestMount: d.mount, ReadOnly: d.readOnly, File: d.file})
	}
	return m
}

// bootData says what makes this machine this sandbox.
func bootData(id string, c *api.Config, img *image.Config, n *network) *api.BootData {
	b := &api.BootData{
		Env:          environment(hostname(id, c), img.Env, c.Env),
		Hosts:        c.Network.AddHosts,
		Confinement:  c.Confinement(),
		ReadOnlyRoot: c.ReadOnly,
		Tmpfs:        c.Tmpfs,
		Sockets:      guestSockets(c.Sockets),
		ShmSize:      c.ShmSize,
		Ulimits:      c.Ulimits,
	}
	if n != nil {
		b.CA = n.ca.PEM()
		maps.Copy(b.Env, n.placeholderEnv())
	}
	return b
}

func hostname(id string, c *api.Config) string {
	if c.Hostname != "" {
		return c.Hostname
	}
	return id
}

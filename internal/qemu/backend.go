// Package qemu is the vm.Backend on QEMU: its microvm machine under KVM where
// a vCPU really runs, under TCG, QEMU's own translator, everywhere else. It
// starts, watches and ends the hypervisor's process and carries bytes to the
// guest; what is said there is internal/machine's and internal/agent's affair.
//
// The recipe was tried on QEMU 7.2 and 10.0; docs/how-it-works.md has the
// reasons.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// Options are what a Backend needs to know of its host. The zero value of a
// field but Boot is its default.
type Options struct {
	Accel    string // "auto", "kvm" or "tcg"; empty is auto
	CacheDir string // where facts about the host are remembered; empty: nowhere
	RunDir   string // where machines keep their sockets and copies; empty: os.TempDir
	Logger   *slog.Logger

	// Scratch makes the file of VMConfig.OverlayUpperPath, which does not exist
	// yet, an empty ext4 file system of ScratchSize bytes. Nil: it exists.
	Scratch     func(ctx context.Context) error
	ScratchSize int64
	// Templates is the folder of machines that have booted, by which others of
	// their shape start faster: see template. Empty: there are none. Only a machine
	// whose upper is made by Scratch can begin as a copy.
	Templates string
	// Image and ImageDigest say of which image the machine is. They are noted in a
	// template, for people to read.
	Image, ImageDigest string
	// Snapshot, unless nil, is what the machine goes on from in the place of a boot:
	// the backend makes its upper then, and Boot is not called. It stays the caller's,
	// until Create returns.
	Snapshot *vm.Snapshot
	// Warm, unless nil, is told when a machine has begun as a copy of a template
	// (made is false), when one was made of it, or why none was. It hears nothing of
	// a machine that is not to be a copy.
	Warm func(made bool, err error)

	// Guest returns the guest's /init, which has the first step of the jail in it: see
	// package jail. NoJail does without, and runs QEMU with all that the user may do.
	Guest  func(ctx context.Context) (*io.SectionReader, error)
	NoJail bool

	// Boot returns the kernel and initramfs to start. kernel is
	// VMConfig.KernelPath; empty, one is to be found.
	Boot func(ctx context.Context, kernel string) (BootFiles, error)
}

// BootFiles are what the hypervisor loads into the guest's memory.
type BootFiles struct {
	Kernel    string // vmlinux or bzImage
	Initramfs string
	HZ        int // the kernel's timer frequency; 0 is Debian's 250
}

// Backend is a vm.Backend. It holds nothing but its options.
type Backend struct{ options Options }

var _ vm.Backend = (*Backend)(nil)

// New makes a backend. It does not look at the host yet.
func New(options Options) *Backend {
	if options.Accel == "" {
		options.Accel = "auto"
	}
	if options.RunDir == "" {
		options.RunDir = os.TempDir()
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.Warm == nil {
		options.Warm = func(bool, error) {}
	}
	return &Backend{options}
}

// Name implements vm.Backend.
func (b *Backend) Name() string { return "qemu" }

// Create implements vm.Backend. All files are opened here, so that what the
// machine runs on is what was named.
func (b *Backend) Create(ctx context.Context, config *vm.VMConfig) (vm.Machine, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("qemu: host architecture %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	c, err := machine.Resolve(config)
	if err != nil {
		return nil, err
	}
	h := &hypervisor{config: c, log: b.options.Logger, ended: make(chan struct{})}
	h.life, h.end = context.WithCancel(context.Background())
	link, rootfs, err := b.acquire(ctx, h)
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return machine.New(c, h, link, rootfs), nil
}

// acquire fills in h, all of which h.Close releases, and returns the host end
// of the guest's link and the image that the guest will write to.
func (b *Backend) acquire(ctx context.Context, h *hypervisor) (link *os.File, rootfs string, err error) {
	if h.path, err = findQEMU(); err != nil {
		return nil, "", err
	}
	version, err := checkVersion(ctx, h.path, b.options.CacheDir)
	if err != nil {
		return nil, "", err
	}
	if h.accel, err = chooseAccel(ctx, b.options.Accel, b.options.CacheDir); err != nil {
		return nil, "", err
	}
	if !b.options.NoJail {
		if err := b.prepareJail(ctx, h); err != nil {
			return nil, "", err
		}
	}
	h.log.Info("the guest runs under "+h.accel.Name, "reason", h.accel.Reason)
	if h.accel.Name == accelTCG {
		h.reserveProcessor()
		if h.tscKHz, err = tscKHz(b.options.CacheDir); err != nil {
			return nil, "", err
		}
	}
	if err := h.require(version); err != nil {
		return nil, "", err
	}
	if b.options.Snapshot != nil {
		err = h.takeSnapshot(b.options.Snapshot)
	} else if h.boot, err = b.options.Boot(ctx, h.config.KernelPath); err == nil {
		err = b.makeUpper(ctx, h)
	}
	if err != nil {
		return nil, "", err
	}
	if h.dir, err = os.MkdirTemp(b.options.RunDir, "vm-"); err != nil {
		return nil, "", err
	}
	if h.console, err = openConsole(h.config.LogPath, h.log); err != nil {
		return nil, "", err
	}
	if rootfs, err = h.openDisks(); err != nil {
		return nil, "", err
	}
	link, err = h.openLink()
	return link, rootfs, err
}

// reserveProcessor gives the guest one processor more than user code may use, if
// the host has one: its kernel and agent work on it while user code runs, and
// what starts a command is translated by two threads in place of one.
func (h *hypervisor) reserveProcessor() {
	c := h.config
	if runtime.NumCPU() > c.VCPUs {
		h.reserved = 1
		c.VCPUs += h.reserved
		c.Params.CPUs = c.CPUs // so that the guest keeps user code to them
	}
}

// makeUpper makes the overlay's upper if that is to be made: as a template has
// it, if there is one that fits, else empty.
func (b *Backend) makeUpper(ctx context.Context, h *hypervisor) (err error) {
	if h.scratch = b.options.Scratch; h.scratch == nil {
		return nil
	}
	if b.options.Templates != "" {
		h.templates, h.warm = b.options.Templates, b.options.Warm
		h.origin = origin{b.options.Image, b.options.ImageDigest}
		if h.shape, h.copyable, err = h.shapeOf(h.boot, b.options.ScratchSize); err != nil {
			return err
		}
	}
	if h.copyable {
		if h.template, err = openTemplate(ctx, h.templates, h.shape); err != nil {
			h.log.Warn("a template cannot be used; the guest boots instead", "error", err)
		}
	}
	if h.template == nil {
		return h.scratch(ctx)
	}
	upper, err := os.OpenFile(h.config.OverlayUpperPath, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(disk.CopySparse(upper, h.template.Disk[0]), upper.Close())
}

// openDisks opens the images of all disks and returns the path of the one that
// takes the root's writes.
func (h *hypervisor) openDisks() (rootfs string, err error) {
	c := h.config
	add := func(serial, path string, given *os.File, readOnly, scratch bool) (err error) {
		d := blockDevice{index: len(h.disks), serial: serial, readOnly: readOnly, scratch: scratch}
		if serial == wire.UpperSerial {
			d.layers, err = openLayers(path)
		} else {
			d.layers = []diskLayer{{path: path}}
			d.layers[0].file, err = openDisk(path, given, readOnly)
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", serial, err)
		}
		h.disks = append(h.disks, d)
		return nil
	}
	switch {
	case c.OverlayEnabled:
		for i, path := range c.OverlayLowerPaths {
			if err := add(wire.LowerSerial(i), path, nil, true, false); err != nil {
				return "", err
			}
		}
		rootfs = c.OverlayUpperPath
		err = add(wire.UpperSerial, rootfs, nil, false, true)
	case c.PrebuiltRootfs != "":
		rootfs = c.PrebuiltRootfs
		err = add(wire.RootSerial, rootfs, nil, false, false)
	default:
		rootfs = filepath.Join(h.dir, "rootfs.ext4")
		if err := copyImage(rootfs, c.RootfsPath); err != nil {
			return "", fmt.Errorf("RootfsPath: %w", err)
		}
		err = add(wire.RootSerial, rootfs, nil, false, true)
	}
	if err != nil {
		return "", err
	}
	for i, d := range c.ExtraDisks {
		if err := add(wire.DiskSerial(i), d.HostPath, d.File, d.ReadOnly, false); err != nil {
			return "", err
		}
	}
	return rootfs, nil
}

// sectorSize is what the size of a disk must be a multiple of.
const sectorSize = 512

// openDisk is openImage, of what is given unless that is nil: with its lock.
func openDisk(path string, given *os.File, readOnly bool) (*os.File, error) {
	if given == nil {
		return openImage(path, readOnly)
	}
	image, err := duplicateFD(int(given.Fd()), path)
	if err != nil {
		return nil, err
	}
	return checkImage(image, path)
}

// openImage opens a raw image.
func openImage(path string, readOnly bool) (*os.File, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	image, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	return checkImage(image, path)
}

// checkImage refuses a directory, a device or a ragged end here rather than have a
// guest do so that cannot say why. The image is closed then.
func checkImage(image *os.File, path string) (*os.File, error) {
	info, err := image.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s: not a regular file", path)
	case info.Size() == 0 || info.Size()%sectorSize != 0:
		err = fmt.Errorf("%s: %d bytes is not a multiple of the sector size %d", path, info.Size(), sectorSize)
	}
	if err != nil {
		image.Close()
		return nil, err
	}
	return image, nil
}

func copyImage(dst, src string) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(disk.CopySparse(to, from), to.Close())
}

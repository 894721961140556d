package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// A template is a machine that has booted and is prepared, kept as package saved
// keeps them: its memory, the state of its devices, and its writable disk, which
// has one layer. Machines of the same shape begin as copies of it. Their memory
// is a private mapping of the template's, so that what none of them has written
// is there once for all. No byte of an image has run in it, and it knows nothing
// that must differ between two machines.
//
// Templates lie in a folder, each in one of its own named by its shape. One that
// does not fit any more, or cannot be read, is ignored and replaced.
type template struct {
	dir string
	*vm.Snapshot
}

// shape is all that is baked into a template. Machines of which any of it
// differs do not fit.
type shape struct {
	Wire      int             `json:"wire"` // wire.Version
	QEMU      hostfs.FileID   `json:"qemu"`
	Machine   string          `json:"machine"`
	Accel     string          `json:"accel"`
	CPU       string          `json:"cpu"`
	Kernel    hostfs.FileID   `json:"kernel"`
	Initramfs hostfs.FileID   `json:"initramfs"`
	Args      string          `json:"args"` // the kernel's, the host's clock rate among them
	VCPUs     int             `json:"vcpus"`
	Reserved  int             `json:"reserved"` // of these, not for user code
	MemoryMB  int             `json:"memory_mb"`
	Params    string          `json:"params"` // as far as they count before a machine is set up
	Layers    []hostfs.FileID `json:"layers"`
	Upper     int64           `json:"upper"` // bytes
	MTU       int             `json:"mtu"`   // of the link; 0: there is none
}

// shapeOf returns the machine's shape, or false for one that is not to be a copy.
func (h *hypervisor) shapeOf(boot BootFiles, scratchSize int64) (s shape, ok bool, err error) {
	c := h.config
	if !c.OverlayEnabled || c.KernelArgs != "" || len(c.ExtraDisks) > 0 || c.NetworkFD > 0 {
		return s, false, nil
	}
	s = shape{
		Wire: wire.Version, Machine: machineType, Accel: h.accel.Name, CPU: h.cpu(), Args: h.kernelArgs(boot.HZ), VCPUs: c.VCPUs, Reserved: h.reserved, MemoryMB: c.MemoryMB, Upper: scratchSize,
		Params: wire.Params{Root: c.Params.Root, CPUs: c.Params.CPUs, Privileged: c.Params.Privileged, NoNetwork: c.NoNetwork, Trust: c.UseInterception}.String(),
		MTU:    linkMTU(c),
	}
	for path, id := range map[string]*hostfs.FileID{h.path: &s.QEMU, boot.Kernel: &s.Kernel, boot.Initramfs: &s.Initramfs} {
		if *id, err = hostfs.Identify(path); err != nil {
			return s, false, err
		}
	}
	for _, path := range c.OverlayLowerPaths {
		id, err := hostfs.Identify(path)
		if err != nil {
			return s, false, err
		}
		s.Layers = append(s.Layers, id)
	}
	return s, true, nil
}

// name is the folder's name of a template of the shape.
func (s shape) name() string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // of numbers and strings
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// origin is the image of the machine that a template was made of. It may do for
// others: the shape has their layers only.
type origin struct {
	Image       string `json:"image,omitempty"`
	ImageDigest string `json:"image_digest,omitempty"`
}

// templateAbout is what is noted of a template.
type templateAbout struct {
	origin
	Shape shape `json:"shape"`
}

// openTemplate returns the template of a shape, nil if there is none that can be
// used. One that is damaged is removed, and the error says why.
func openTemplate(ctx context.Context, folder string, s shape) (*template, error) {
	dir := filepath.Join(folder, s.name())
	files, err := saved.Open(ctx, dir, nil)
	switch {
	case err == nil:
		return &template{dir, files}, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, errors.Join(fmt.Errorf("template %s: %w", s.name(), err), saved.Remove(dir))
}

// ErrTemplateBeingMade says that another process makes the same template.
var ErrTemplateBeingMade = saved.ErrBeingMade

// makeTemplate makes a template of a machine that stands still: of its memory,
// the state of its devices, and its writable disk.
func makeTemplate(ctx context.Context, folder string, s shape, from origin, memory, state, upper *os.File) (*template, error) {
	files := &vm.Snapshot{Memory: memory, State: state, Disk: []*os.File{upper}}
	if err := saved.Replace(ctx, folder, s.name(), files, templateAbout{from, s}); err != nil {
		return nil, err
	}
	t, err := openTemplate(ctx, folder, s)
	if err == nil && t == nil {
		err = errors.New("it was removed at once")
	}
	return t, err
}

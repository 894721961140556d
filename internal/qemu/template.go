package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/wire"
)

// A template is a machine that has booted and is prepared, as files: its memory,
// the state of its devices, and its writable disk. Machines of the same shape
// begin as copies of it. Their memory is a private mapping of the template's, so
// that what none of them has written is there once for all. No byte of an image
// has run in it, and it knows nothing that must differ between two machines.
//
// Templates lie in a folder, each in one of its own named by its shape. It has
// that name when it is complete; one that does not fit any more, or cannot be
// read, is ignored and replaced.
type template struct {
	dir    string
	memory *os.File
	state  []byte
	upper  *os.File
}

// Files of a template.
const (
	templateMemory = "memory"
	templateState  = "state"
	templateUpper  = "upper"
	templateRecord = "template.json"
)

const (
	newTemplatePrefix = ".new-"  // while it is made; its maker holds a lock on it
	oldTemplatePrefix = ".dead-" // while it is removed
)

// shape is all that is baked into a template. Machines of which any of it
// differs do not fit.
type shape struct {
	Wire      int             `json:"wire"` // wire.Version
	QEMU      hostfs.FileID   `json:"qemu"`
	Machine   string          `json:"machine"`
	Accel     string          `json:"accel"`
	Kernel    hostfs.FileID   `json:"kernel"`
	Initramfs hostfs.FileID   `json:"initramfs"`
	Args      string          `json:"args"` // the kernel's, the host's clock rate among them
	VCPUs     int             `json:"vcpus"`
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
		Wire: wire.Version, Machine: machineType, Accel: h.accel.Name, Args: h.kernelArgs(boot.HZ), VCPUs: c.VCPUs, MemoryMB: c.MemoryMB, Upper: scratchSize,
		Params: wire.Params{Root: c.Params.Root, CPUs: c.Params.CPUs, Privileged: c.Params.Privileged, NoNetwork: c.NoNetwork}.String(),
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

// record is what is known of a template's files.
type record struct {
	origin
	Shape  shape  `json:"shape"`
	BootID string `json:"boot_id"`
	Memory stored `json:"memory"`
	State  stored `json:"state"`
	Upper  stored `json:"upper"`
}

func (r *record) read(dir string) error {
	if err := hostfs.ReadRecord(filepath.Join(dir, templateRecord), r); err != nil {
		return fmt.Errorf("%s: %w", templateRecord, err)
	}
	return nil
}

// stored is a file as it was written.
type stored struct {
	hostfs.FileID
	Sum string `json:"sum"` // see contentSum
}

// openTemplate returns the template of a shape, nil if there is none that can be
// used. One that is damaged is removed, and the error says why.
func openTemplate(folder string, s shape) (*template, error) {
	dir := filepath.Join(folder, s.name())
	t := &template{dir: dir}
	err := t.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		t.close()
		return nil, nil
	}
	if err != nil {
		t.close()
		return nil, errors.Join(fmt.Errorf("template %s: %w", s.name(), err), removeTemplate(dir))
	}
	now := time.Now()
	os.Chtimes(filepath.Join(dir, templateRecord), now, now) // by which the unused are told
	return t, nil
}

// open opens the files and makes sure of them: by their sums where all is to be
// looked at, or nothing tells that they are what was written.
func (t *template) open(all bool) (err error) {
	var r record
	if err := r.read(t.dir); err != nil {
		return err
	}
	// What was written before the host booted anew may not have reached the disk.
	_, bootID := hostFactsPath(t.dir)
	trusted := bootID != "" && r.BootID == bootID
	for _, f := range []struct {
		name string
		is   *stored
		file **os.File
	}{{templateMemory, &r.Memory, &t.memory}, {templateUpper, &r.Upper, &t.upper}} {
		path := filepath.Join(t.dir, f.name)
		now, err := hostfs.Identify(path)
		if err != nil {
			return err
		}
		now.Path = f.is.Path // a folder may be moved
		if trusted && now != f.is.FileID || now.Size != f.is.Size {
			return fmt.Errorf("%s: it was changed", f.name)
		}
		if *f.file, err = os.Open(path); err != nil {
			return err
		}
		if trusted && !all {
			continue
		}
		if sum, err := contentSum(*f.file); err != nil || sum != f.is.Sum {
			return errors.Join(fmt.Errorf("%s: it is damaged", f.name), err)
		}
		f.is.FileID = now
	}
	if t.state, err = readState(filepath.Join(t.dir, templateState)); err != nil {
		return err
	}
	if sum := sha256.Sum256(t.state); hex.EncodeToString(sum[:]) != r.State.Sum {
		return fmt.Errorf("%s: it is damaged", templateState)
	}
	if !trusted && bootID != "" && !all { // by then it counts as used
		r.BootID = bootID
		return hostfs.WriteRecord(filepath.Join(t.dir, templateRecord), &r)
	}
	return nil
}

func readState(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxState))
}

func (t *template) close() {
	for _, f := range []*os.File{t.memory, t.upper} {
		if f != nil {
			f.Close()
		}
	}
}

// removeTemplate takes a template from its place at once, and then away.
func removeTemplate(dir string) error {
	condemned := filepath.Join(filepath.Dir(dir), oldTemplatePrefix+filepath.Base(dir))
	err := os.Rename(dir, condemned)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		err = os.RemoveAll(dir) // another removal was killed
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(condemned))
}

// ErrTemplateBeingMade says that another process makes the same template.
var ErrTemplateBeingMade = errors.New("another process makes it")

// makeTemplate makes a template of a machine that stands still: of its memory,
// the state of its devices, and its writable disk.
func makeTemplate(folder string, s shape, from origin, memory, state, upper *os.File) (_ *template, err error) {
	if err := hostfs.Private(folder); err != nil {
		return nil, err
	}
	making := filepath.Join(folder, newTemplatePrefix+s.name())
	lock, err := lockMaking(making)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(making))
		}
	}()
	r := record{origin: from, Shape: s}
	_, r.BootID = hostFactsPath(folder)
	for _, f := range []struct {
		name string
		from *os.File
		is   *stored
	}{{templateMemory, memory, &r.Memory}, {templateState, state, &r.State}, {templateUpper, upper, &r.Upper}} {
		if err := keep(filepath.Join(making, f.name), f.from, f.is); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	// The state is checked as a whole.
	content, err := readState(filepath.Join(making, templateState))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	r.State.Sum = hex.EncodeToString(sum[:])
	if err := hostfs.WriteRecord(filepath.Join(making, templateRecord), &r); err != nil {
		return nil, err
	}
	dir := filepath.Join(folder, s.name())
	if err := removeTemplate(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(making, dir); err != nil {
		return nil, err
	}
	t := &template{dir: dir}
	if err := t.open(false); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// lockMaking makes the folder in which a template is made, empty, and locks it.
func lockMaking(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	lock, err := hostfs.Lock(context.Background(), dir, os.O_RDONLY, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil, ErrTemplateBeingMade
	}
	if err != nil {
		return nil, err
	}
	// Whoever held the lock may have finished, and the folder be a template now.
	held, err := lock.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Stat(dir); err == nil && !os.SameFile(held, there) || errors.Is(err, fs.ErrNotExist) {
			err = ErrTemplateBeingMade
		}
	}
	if err == nil {
		err = emptyFolder(dir) // of what a maker left that was killed
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return err
}

// keep copies a file into a template.
func keep(path string, from *os.File, is *stored) error {
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := disk.CopySparse(to, from); err != nil {
		return err
	}
	if is.Sum, err = contentSum(to); err != nil {
		return err
	}
	is.FileID, err = hostfs.Identify(path)
	return err
}

// contentSum is the SHA-256 of what a file holds beside zeros, and where: holes
// count as the zeros that they read as, and take no time.
func contentSum(f *os.File) (string, error) {
	sum := sha256.New()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	var number [8]byte
	writeNumber := func(n int64) {
		binary.BigEndian.PutUint64(number[:], uint64(n))
		sum.Write(number[:]) // of a hash never fails
	}
	writeNumber(info.Size())
	err = disk.EachBlock(f, func(offset int64, block []byte) error {
		writeNumber(offset)
		sum.Write(block)
		return nil
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

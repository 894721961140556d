// Package saved answers one question: how is a machine kept that stands still? As a folder of files:
// its memory, the state of its devices, the layers of its disk, and a record of their sums and of
// what its owner notes about it. Templates and snapshots are kept so; as one file, an archive, they
// go to other hosts.
//
// A folder has its name when it is whole, and loses it before anything in it goes; the files never
// change. Who makes one holds a lock on it, so that what killed processes leave can be told and
// removed. Whether what it has is still what was written is looked at whenever it is opened.
//
// How a machine is made to stand still, what must be the same where it goes on, and which of the
// machines in a folder are of use, is for others to know.
package saved

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/vm"
)

// The files of a machine. Layers of the disk follow, disk-0 the lowest, and the owner's file if there
// is one.
const (
	memoryName = "memory"
	stateName  = "state"
	filesName  = "files"
	recordName = "record.json"
)

const (
	makingPrefix = ".new-"  // of a folder while it is made; its maker holds a lock on it
	deadPrefix   = ".dead-" // while it is removed
)

// MaxState bounds the state of the devices: some kilobytes a device.
const MaxState = 16 << 20

// MaxLayers is how many layers a disk has at the most.
const MaxLayers = 48

// ErrBeingMade says that another process makes a machine of the same name.
var ErrBeingMade = errors.New("another process makes it")

// record is what is known of a machine's files.
type record struct {
	Format   int             `json:"format"`
	BootID   string          `json:"boot_id,omitempty"` // in which the files were last known to be what was written
	Files    []stored        `json:"files"`             // see fileName
	Requires json.RawMessage `json:"requires,omitempty"`
	About    json.RawMessage `json:"about,omitempty"` // its owner's
}

const recordFormat = 1

// stored is a file as it was written.
type stored struct {
	Name  string `json:"name"`
	Size  int64  `json:"size"`
	Inode uint64 `json:"inode,omitempty"`
	Time  int64  `json:"time,omitempty"` // of the last change, in nanoseconds of Unix time; see identify
	Sum   string `json:"sum"`            // see Sum
}

// fileName is the name of a machine's i-th file.
func fileName(i int) string {
	switch i {
	case 0:
		return memoryName
	case 1:
		return stateName
	case filesIndex:
		return filesName
	}
	return "disk-" + strconv.Itoa(i-2)
}

// filesIndex is the number of the owner's file, which is the last.
const filesIndex = -1

// index is the number of a machine's file at a place in its record.
func (s *stored) index(place int) int {
	if s.Name == filesName {
		return filesIndex
	}
	return place
}

// isDisk tells whether a machine's i-th file is a layer of its disk.
func isDisk(i int) bool { return i >= 2 }

// filesOf returns the files in their order.
func filesOf(m *vm.Snapshot) []*os.File {
	files := append([]*os.File{m.Memory, m.State}, m.Disk...)
	if m.Files != nil {
		files = append(files, m.Files)
	}
	return files
}

func readRecord(dir string) (*record, error) {
	r := new(record)
	err := hostfs.ReadRecord(filepath.Join(dir, recordName), r)
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", recordName, err)
	}
	return r, nil
}

func (r *record) check() error {
	if r.Format != recordFormat {
		return fmt.Errorf("format %d, and %d is read", r.Format, recordFormat)
	}
	return checkFiles(r.Files)
}

// checkFiles makes sure that the files are those of a machine.
func checkFiles(files []stored) error {
	if n := len(files); n > 0 && files[n-1].Name == filesName {
		files = files[:n-1]
	}
	if len(files) < 3 || len(files) > 2+MaxLayers {
		return fmt.Errorf("%d files, not from 3 to %d", len(files), 2+MaxLayers)
	}
	for i, f := range files {
		if f.Name != fileName(i) {
			return fmt.Errorf("file %.64q in the place of %q", f.Name, fileName(i))
		}
	}
	return nil
}

// write writes the record. It is not indented: what another host's says may lie in it, and be deep.
func (r *record) write(dir string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(text) >= hostfs.MaxRecord {
		return fmt.Errorf("a record of %d bytes", len(text))
	}
	return hostfs.Replace(filepath.Join(dir, recordName), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
}

// Make keeps a machine in a folder of its own, with that name, in folder, and with it what its owner
// has to say about it, as JSON. It is there when it is whole, and outlives a power failure then. A
// name that is there already is fs.ErrExist.
//
// Memory and state are copied. So is a layer of the disk that may be written, by its mode; those that
// may not get one more name, where they can.
func Make(ctx context.Context, folder, name string, m *vm.Snapshot, about any) error {
	return build(folder, name, false, func(dir string) (*record, error) { return fill(ctx, dir, m, about, true) })
}

// Replace is Make for what one can do without: it takes the place of what has the name already, and
// a power failure may spoil it, which is noticed then.
func Replace(ctx context.Context, folder, name string, m *vm.Snapshot, about any) error {
	return build(folder, name, true, func(dir string) (*record, error) { return fill(ctx, dir, m, about, false) })
}

var namePattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
})

// build has fill write the files of a machine into a folder that gets its name afterwards.
func build(folder, name string, replace bool, fill func(dir string) (*record, error)) (err error) {
	if !namePattern().MatchString(name) {
		return fmt.Errorf("name %q: not of letters, digits, dots and dashes", name)
	}
	if err := hostfs.Private(folder); err != nil {
		return err
	}
	making, dir := filepath.Join(folder, makingPrefix+name), filepath.Join(folder, name)
	lock, err := lockMaking(making)
	if err != nil {
		return err
	}
	defer lock.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(making))
		}
	}()
	if !replace {
		if _, err := os.Lstat(dir); err == nil {
			return &fs.PathError{Op: "make", Path: dir, Err: fs.ErrExist}
		}
	}
	r, err := fill(making)
	if err != nil {
		return err
	}
	r.Format, r.BootID = recordFormat, hostfs.BootID()
	if err := r.write(making); err != nil {
		return err
	}
	if replace {
		if err := Remove(dir); err != nil {
			return err
		}
		return os.Rename(making, dir)
	}
	if err := errors.Join(syncPath(filepath.Join(making, recordName)), syncPath(making)); err != nil {
		return err
	}
	if err := os.Rename(making, dir); err != nil { // what is there by now is no empty folder, so it stays
		return err
	}
	if err := syncPath(folder); err != nil {
		return errors.Join(err, Remove(dir))
	}
	return nil
}

// syncPath has a file, or the names in a folder, reach the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lockMaking makes the folder in which a machine is put together, empty, and locks it.
func lockMaking(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	lock, err := hostfs.Lock(context.Background(), dir, os.O_RDONLY, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil, ErrBeingMade
	}
	if err != nil {
		return nil, err
	}
	// Whoever held the lock may have finished, and the folder have its name now.
	held, err := lock.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Stat(dir); err == nil && !os.SameFile(held, there) || errors.Is(err, fs.ErrNotExist) {
			err = ErrBeingMade
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

// fill writes the files of a machine.
func fill(ctx context.Context, dir string, m *vm.Snapshot, about any, durable bool) (*record, error) {
	if n := len(m.Disk); n == 0 || n > MaxLayers {
		return nil, fmt.Errorf("a disk of %d layers, not from 1 to %d", n, MaxLayers)
	}
	text, err := json.Marshal(about)
	if err != nil {
		return nil, err
	}
	r := &record{Requires: m.Requires, About: text}
	for i, from := range filesOf(m) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if from == m.Files {
			i = filesIndex
		}
		s, err := put(ctx, dir, i, from, durable)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fileName(i), err)
		}
		r.Files = append(r.Files, s)
	}
	return r, nil
}

// put makes a machine's i-th file of another.
func put(ctx context.Context, dir string, i int, from *os.File, durable bool) (s stored, err error) {
	path := filepath.Join(dir, fileName(i))
	if isDisk(i) {
		err = disk.Adopt(path, from)
	} else {
		err = copyFile(path, from)
	}
	if err != nil {
		return s, err
	}
	to, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer to.Close()
	if durable {
		if err := to.Sync(); err != nil {
			return s, err
		}
	}
	sum, err := Sum(ctx, to)
	if err != nil {
		return s, err
	}
	s, err = identify(i, to)
	s.Sum = sum
	return s, err
}

// copyFile copies a file into one that hypervisors can open for writing, though they map it privately.
func copyFile(path string, from *os.File) error {
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(disk.CopySparse(to, from), to.Close())
}

// identify tells what a machine's i-th file is, but for its sum. Another name changes a file's
// attributes; so of a layer of a disk, which may get some, the time is that of its content.
func identify(i int, f *os.File) (stored, error) {
	info, err := f.Stat()
	if err != nil {
		return stored{}, err
	}
	id := hostfs.IdentityOf("", info)
	s := stored{Name: fileName(i), Size: id.Size, Inode: id.Inode, Time: id.Change}
	if isDisk(i) {
		s.Time = info.ModTime().UnixNano()
	}
	return s, nil
}

// Open opens the files of a machine, which are the caller's to close, and fills in about, unless nil,
// with what its owner noted. Before that it makes sure of the files: of the state by its sum; of the
// others by size, inode and time of change, and at the first use after the host has booted by their
// sums, since what was written may not have reached the disk. One that is not there is fs.ErrNotExist;
// whatever else is wrong, unless ctx has ended, it is of no use.
func Open(ctx context.Context, dir string, about any) (*vm.Snapshot, error) {
	m, r, err := open(ctx, dir, false)
	if err == nil && about != nil {
		err = json.Unmarshal(r.About, about)
	}
	if err == nil {
		err = r.used(dir)
	}
	if err != nil {
		if m != nil {
			m.Close()
		}
		return nil, err
	}
	return m, nil
}

// used notes the time, and that the files are what was written.
func (r *record) used(dir string) error {
	if boot := hostfs.BootID(); r.BootID != boot {
		r.BootID = boot
		return r.write(dir)
	}
	now := time.Now()
	os.Chtimes(filepath.Join(dir, recordName), now, now) // it is read for people, and by those who remove the unused
	return nil
}

// open is Open, by all sums if all is asked for, and notes nothing.
func open(ctx context.Context, dir string, all bool) (m *vm.Snapshot, r *record, err error) {
	if r, err = readRecord(dir); err != nil {
		return nil, nil, err
	}
	boot := hostfs.BootID()
	trusted := boot != "" && r.BootID == boot
	m = &vm.Snapshot{Requires: r.Requires}
	for i := range r.Files {
		index := r.Files[i].index(i)
		f, err := r.Files[i].open(ctx, dir, index, trusted, all)
		if err != nil {
			m.Close()
			return nil, nil, err
		}
		switch {
		case index == filesIndex:
			m.Files = f
		case i == 0:
			m.Memory = f
		case i == 1:
			m.State = f
		default:
			m.Disk = append(m.Disk, f)
		}
	}
	return m, r, nil
}

// open opens a machine's i-th file and makes sure of it.
func (s *stored) open(ctx context.Context, dir string, i int, trusted, all bool) (_ *os.File, err error) {
	f, err := os.Open(filepath.Join(dir, s.Name))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	now, err := identify(i, f)
	if err != nil {
		return nil, err
	}
	now.Sum = s.Sum
	isState := s.Name == stateName
	if !isState && (trusted && now != *s || now.Size != s.Size) {
		return nil, fmt.Errorf("%s: it was changed", s.Name)
	}
	if isState || !trusted || all {
		sum, err := Sum(ctx, f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		if sum != s.Sum {
			return nil, fmt.Errorf("%s: it is damaged", s.Name)
		}
	}
	*s = now
	return f, nil
}

// Verify compares all that a machine's files hold with what was written, and says how it is damaged.
// One that is removed or replaced meanwhile is not. It does not count as use.
func Verify(ctx context.Context, dir string) error {
	before, err := os.Stat(dir)
	if err != nil {
		return nil
	}
	m, _, damage := open(ctx, dir, true)
	if m != nil {
		m.Close()
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if after, err := os.Stat(dir); err != nil || !os.SameFile(before, after) {
		return nil
	}
	return damage
}

// Remove takes a machine from its place at once, and then away. Who has opened it goes on. One that is
// not there is no error.
func Remove(dir string) error {
	condemned := filepath.Join(filepath.Dir(dir), deadPrefix+filepath.Base(dir))
	err := os.Rename(dir, condemned)
	if errors.Is(err, fs.ErrExist) {
		err = os.RemoveAll(dir) // another removal was killed
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(condemned))
}

// RemoveRemains removes from a folder, which need not be there, what was left by those who were killed
// while they made or removed a machine.
func RemoveRemains(folder string) error {
	entries, err := readFolder(folder)
	errs := []error{err}
	for _, entry := range entries {
		dir := filepath.Join(folder, entry.Name())
		switch name := entry.Name(); {
		case strings.HasPrefix(name, deadPrefix):
			errs = append(errs, os.RemoveAll(dir))
		case strings.HasPrefix(name, makingPrefix):
			if lock, err := lockMaking(dir); err == nil {
				errs = append(errs, os.RemoveAll(dir), lock.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// readFolder is os.ReadDir of a folder that need not be there.
func readFolder(folder string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return entries, err
}

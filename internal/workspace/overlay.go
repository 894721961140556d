package workspace

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/hostfs"
)

// OverlayOptions say what an overlay may take.
type OverlayOptions struct {
	Quota int64 // bytes on the disk; 0 does not bound them. A name counts for 4096, see HostOptions
	Files int64 // names that may be made, and names that may be removed; 0 is DefaultFiles
	// Kept are patterns, see NewFilter, of what the guest should not have changed. That it
	// has is a danger to Apply.
	Kept []string
	Name string // of the lower tree's root on the host: files are dangers by their names
}

// maxHeld bounds what an overlay takes in memory, in bytes.
const maxHeld = 1 << 30

// Overlay is an FS of what the guest has changed in a lower tree, which is not written.
//
// In its folder are a journal of names and attributes, see tree, and for each file that
// was written one that holds its bytes, named by a number. So nothing depends on what
// the host's file system can keep, no name of the guest's is in the folder, and a folder
// of the lower tree can be renamed without a copy: it goes on to be read at the old place.
// A file is copied when it is opened for writing, and not when its attributes change.
type Overlay struct {
	tree
	dir  string
	data FS // the files' bytes
	kept patterns
	name string

	journal   *os.File
	size      int64 // of the journal
	compactAt int64
	broken    error // the journal cannot be written any more

	// readers are open files of the lower tree that are not in this one, by their paths.
	// It is guarded by mu.
	readers map[string]*openFile
	copying sync.Mutex // held while a file is copied, which takes long; before mu
}

// OpenOverlay opens the overlay in dir, a private folder that is made when it is missing;
// one at a time may have it open. The overlay closes the lower tree.
func OpenOverlay(lower FS, dir string, o OverlayOptions) (_ *Overlay, err error) {
	o.Files = mostNames(o.Quota, o.Files)
	root, err := lower.Stat("")
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	for _, dir := range []string{dir, data} {
		if err := hostfs.Private(dir); err != nil {
			return nil, err
		}
	}
	ov := &Overlay{dir: dir, name: o.Name, readers: make(map[string]*openFile)}
	if ov.kept, err = parsePatterns(o.Kept); err != nil {
		return nil, err
	}
	ov.tree.maxima, ov.lower, ov.store = maxima{names: o.Files, held: maxHeld}, lower, ov
	ov.init(ov.rootMeta(root))
	if err := ov.replay(); err != nil {
		return nil, fmt.Errorf("%s: %w", ov.journalPath(), err)
	}
	used, err := ov.sweep(data)
	if err != nil {
		return nil, err
	}
	// A file has one name here, whatever its inode has.
	if ov.data, err = OpenHost(data, HostOptions{Quota: o.Quota, Used: used, Files: 2 * o.Files}); err != nil {
		return nil, err
	}
	if err := ov.compact(); err != nil {
		ov.data.Close()
		return nil, err
	}
	ov.write = ov.append
	return ov, nil
}

// rootMeta is what the root is as long as nobody has changed it.
func (o *Overlay) rootMeta(a Attr) meta {
	return meta{
		Number: rootNumber,
		ID:     a.ID,
		Mode:   a.Mode, Owner: a.Owner,
		Atime: stamp(a.Atime), Mtime: stamp(a.Mtime), Ctime: stamp(a.Ctime),
		Origin: originOf(a), Merged: true,
	}
}

func (o *Overlay) journalPath() string { return filepath.Join(o.dir, "journal") }

// replay makes the steps of the journal, if there is one. A last one that was not written
// to its end was not made.
func (o *Overlay) replay() error {
	f, err := os.Open(o.journalPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, maxLine)
	for {
		l, err := readLine(r)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return o.loaded()
		}
		if err == nil {
			err = o.load(l)
		}
		if err != nil {
			return err
		}
	}
}

// sweep removes files that no inode has, and adds up what the others take.
func (o *Overlay) sweep(data string) (used int64, err error) {
	entries, err := os.ReadDir(data)
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		number, err := strconv.ParseUint(entry.Name(), 16, 64)
		if n := o.inodes[number]; err != nil || n == nil || n.Merged || !n.is(syscall.S_IFREG) || !entry.Type().IsRegular() {
			if err := os.Remove(filepath.Join(data, entry.Name())); err != nil {
				return 0, err
			}
			continue
		}
		info, err := entry.Info()
		if err != nil {
			return 0, err
		}
		used += int64(info.Sys().(*syscall.Stat_t).Blocks) * 512
	}
	return used, nil
}

// compact writes the journal anew, as what the tree is.
func (o *Overlay) compact() error {
	err := hostfs.Replace(o.journalPath(), func(w io.Writer) error {
		b := bufio.NewWriterSize(w, 1<<16)
		if err := o.dump(b); err != nil {
			return err
		}
		return b.Flush()
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(o.journalPath(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	if o.journal != nil {
		o.journal.Close()
	}
	o.journal, o.size = f, info.Size()
	o.compactAt = 3*o.size + 4<<20
	return nil
}

// append writes a step into the journal, all of it or nothing.
func (o *Overlay) append(edits []edit) error {
	if o.broken != nil {
		return o.broken
	}
	if o.size > o.compactAt {
		if err := o.compact(); err != nil {
			o.compactAt = 2 * o.size // there may be room later
		}
	}
	w := counter{w: o.journal}
	err := writeLine(&w, line{Edits: edits})
	if err == nil {
		o.size += w.n
	} else if w.n > 0 {
		if e := o.journal.Truncate(o.size); e != nil {
			o.broken = fmt.Errorf("%s: %w", o.journalPath(), e)
		}
	}
	return err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// Close closes the lower tree too.
func (o *Overlay) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken == nil {
		o.broken = os.ErrClosed
	}
	return errors.Join(o.journal.Close(), o.data.Close(), o.lower.Close())
}

// SyncDir has the journal on the disk.
func (o *Overlay) SyncDir(string) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.journal.Sync()
}

// Statfs tells of the disk that the changes are on.
func (o *Overlay) Statfs(string) (Statfs, error) {
	s, err := o.data.Statfs("")
	o.mu.RLock()
	defer o.mu.RUnlock()
	s.FilesFree = min(s.FilesFree, uint64(max(0, o.maxima.names-o.names)))
	return s, err
}

// An openFile is a file that is open, once for all who have opened it: what one of them
// writes the others read, when it is copied for that too.
type openFile struct {
	mu   sync.RWMutex // held for reading while f is used, for writing to exchange it
	file File

	// These are guarded by the overlay's mu.
	refs  int
	inode *inode // nil: the tree has none yet, and readers has this
	lower string // its path then
}

// dataName is the name of the file with an inode's bytes.
func (n *inode) dataName() string { return strconv.FormatUint(n.Number, 16) }

// shows tells what of the lower tree is seen at a path; ok is false if nothing is.
func (o *Overlay) shows(path string) (lower string, ok bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	n, lower, err := o.find(path)
	if err != nil || n == nil {
		return lower, err == nil
	}
	return string(n.Lower), n.Merged
}

// Open implements FS.
func (o *Overlay) Open(path string, write bool) (File, error) { return o.openKeep(path, write, -1) }

// openKeep opens a file of which, when it has to be copied, so many bytes matter; -1: all.
func (o *Overlay) openKeep(path string, write bool, keep int64) (File, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	for range 16 {
		f, n, err := o.tryOpen(path, write)
		if f != nil || err != nil {
			return f, err
		}
		if err := o.copyUp(n, keep); err != nil {
			return nil, err
		}
	}
	return nil, syscall.EAGAIN
}

// tryOpen opens a file, or returns its inode if it must be copied first.
func (o *Overlay) tryOpen(path string, write bool) (File, *inode, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, lower, err := o.find(path)
	if err == nil && n == nil && write {
		n, err = o.own(path)
	}
	if err != nil {
		return nil, nil, err
	}
	var of *openFile
	if n != nil {
		if err := n.canOpen(); err != nil {
			return nil, nil, err
		}
		if write && n.Merged {
			return nil, n, nil
		}
		if of = n.open; of == nil {
			f, err := o.openInode(n)
			if err != nil {
				return nil, nil, err
			}
			of = &openFile{file: f, inode: n}
			n.open = of
		}
	} else if of = o.readers[lower]; of == nil {
		f, err := o.lower.Open(lower, false)
		if err != nil {
			return nil, nil, err
		}
		of = &openFile{file: f, lower: lower}
		o.readers[lower] = of
	}
	of.refs++
	return &overlayFile{o: o, of: of, write: write}, nil, nil
}

// openInode opens what has an inode's bytes.
func (o *Overlay) openInode(n *inode) (File, error) {
	if n.Merged {
		return o.lower.Open(string(n.Lower), false)
	}
	f, err := o.data.Open(n.dataName(), true)
	if errors.Is(err, syscall.ENOENT) { // it was made, and never opened
		return o.data.Create(n.dataName(), 0o600, Owner{})
	}
	return f, err
}

// Create implements FS.
func (o *Overlay) Create(path string, mode uint32, owner Owner) (File, error) {
	if _, err := o.add(path, syscall.S_IFREG|mode&0o7777, owner, ""); err != nil {
		return nil, err
	}
	f, err := o.Open(path, true)
	if err != nil {
		o.Unlink(path) // so that none is there that cannot be opened
	}
	return f, err
}

// copyUp makes an inode's bytes its own.
func (o *Overlay) copyUp(n *inode, keep int64) error {
	o.copying.Lock()
	defer o.copying.Unlock()
	o.mu.RLock()
	merged, lower := n.Merged, string(n.Lower)
	shown, err := o.attr(n)
	o.mu.RUnlock()
	if err != nil || !merged {
		return err
	}
	src, err := o.lower.Open(lower, false)
	if err != nil {
		return err
	}
	defer src.Close()
	// Who changes the file meanwhile makes it another than this one.
	before, err := src.Stat()
	if err != nil {
		return err
	}
	o.data.Unlink(n.dataName()) // what a copy that failed has left
	dst, err := o.data.Create(n.dataName(), 0o600, Owner{})
	if err != nil {
		return err
	}
	if keep < 0 || keep >= before.Size {
		err = copyFile(dst, src, before.Size)
	} else {
		err = copyBytes(dst, src, keep)
	}
	if err == nil {
		_, err = o.data.SetAttr(n.dataName(), Change{Atime: &shown.Atime, Mtime: &shown.Mtime})
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		m := n.meta
		m.Merged, m.Origin = false, originOf(before)
		if o.inodes[n.Number] == n {
			err = o.step(edit{Meta: &m})
		} else {
			n.meta = m // it has lost its names
		}
	}
	if err != nil {
		dst.Close()
		o.data.Unlink(n.dataName())
		return err
	}
	if n.open == nil {
		dst.Close()
		o.free(n)
		return nil
	}
	n.open.mu.Lock()
	defer n.open.mu.Unlock()
	n.open.file.Close()
	n.open.file = dst
	return nil
}

// copyFile makes dst, which is empty, a copy of src, which has size bytes.
func copyFile(dst, src File, size int64) error {
	if c, ok := dst.(interface{ copyFrom(File) (bool, error) }); ok {
		if done, err := c.copyFrom(src); done {
			return err
		}
	}
	return copyBytes(dst, src, size)
}

// copyBytes copies size bytes, or what there is of them, and leaves out holes and what is
// zero: a guest's file may be exbibytes of nothing.
func copyBytes(dst, src File, size int64) error {
	buf := make([]byte, 1<<20)
	for offset := int64(0); offset < size; {
		switch next, err := src.SeekData(offset, seekData); {
		case errors.Is(err, syscall.ENXIO):
			return dst.Truncate(size) // a hole to the end
		case err == nil:
			offset = next
		}
		n, err := src.ReadAt(buf[:max(0, min(size-offset, int64(len(buf))))], offset)
		for at, block := range disk.Blocks(buf[:n], offset) {
			if _, err := dst.WriteAt(block, at); err != nil {
				return err
			}
		}
		if offset += int64(n); err == io.EOF {
			size = min(size, offset)
		} else if err != nil {
			return err
		}
	}
	return dst.Truncate(size)
}

// stat, setTimes, free, adopt and truncate make it the store of its own tree.

func (o *Overlay) stat(n *inode, a *Attr) error {
	var has Attr
	var err error
	switch {
	case n.open != nil:
		has, err = n.open.file.Stat()
	case n.Merged:
		has, err = o.lower.Stat(string(n.Lower))
	default:
		if has, err = o.data.Stat(n.dataName()); errors.Is(err, syscall.ENOENT) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	a.Size, a.Blocks = has.Size, has.Blocks
	if !n.Merged || !n.TimesSet {
		a.Atime, a.Mtime = has.Atime, has.Mtime
	}
	if has.Ctime.After(a.Ctime) {
		a.Ctime = has.Ctime
	}
	return nil
}

func (o *Overlay) setTimes(n *inode, c Change) error {
	if n.Merged {
		return nil
	}
	change := Change{Atime: c.Atime, Mtime: c.Mtime, Now: c.Now}
	_, err := o.data.SetAttr(n.dataName(), change)
	if errors.Is(err, syscall.ENOENT) {
		f, err := o.openInode(n)
		if err != nil {
			return err
		}
		f.Close()
		_, err = o.data.SetAttr(n.dataName(), change)
		return err
	}
	return err
}

func (o *Overlay) free(n *inode) {
	if n.names == 0 && n.open == nil && !n.Merged && o.data != nil { // nil: sweep does it
		o.data.Unlink(n.dataName()) // which is not there if it was never opened
	}
}

func (o *Overlay) adopt(n *inode) {
	lower := string(n.Lower)
	if of := o.readers[lower]; of != nil {
		delete(o.readers, lower)
		of.inode, n.open = n, of
	}
}

func (o *Overlay) truncate(path string, size int64) error {
	f, err := o.openKeep(path, true, max(0, size))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}

// overlayFile is what one has who has opened an openFile.
type overlayFile struct {
	o      *Overlay
	of     *openFile
	write  bool
	closed atomic.Bool
}

// use calls f with what has the bytes now.
func (f *overlayFile) use(write bool, call func(File) error) error {
	if f.closed.Load() {
		return os.ErrClosed
	}
	if write && !f.write {
		return syscall.EBADF
	}
	f.of.mu.RLock()
	defer f.of.mu.RUnlock()
	return call(f.of.file)
}

func (f *overlayFile) ReadAt(p []byte, offset int64) (n int, err error) {
	err = f.use(false, func(f File) error {
		n, err = f.ReadAt(p, offset)
		return err
	})
	return n, err
}

func (f *overlayFile) WriteAt(p []byte, offset int64) (n int, err error) {
	err = f.use(true, func(f File) error {
		n, err = f.WriteAt(p, offset)
		return err
	})
	return n, err
}

func (f *overlayFile) Stat() (Attr, error) {
	f.o.mu.RLock()
	defer f.o.mu.RUnlock()
	if f.closed.Load() {
		return Attr{}, os.ErrClosed
	}
	if f.of.inode == nil {
		return f.of.file.Stat()
	}
	return f.o.attr(f.of.inode)
}

func (f *overlayFile) Truncate(size int64) error {
	return f.use(true, func(f File) error { return f.Truncate(size) })
}

func (f *overlayFile) Allocate(mode uint32, offset, length int64) error {
	return f.use(true, func(f File) error { return f.Allocate(mode, offset, length) })
}

func (f *overlayFile) SeekData(offset int64, whence int) (next int64, err error) {
	err = f.use(false, func(f File) error {
		next, err = f.SeekData(offset, whence)
		return err
	})
	return next, err
}

func (f *overlayFile) Sync() error {
	if !f.write {
		return nil
	}
	if err := f.use(true, File.Sync); err != nil {
		return err
	}
	return f.o.SyncDir("")
}

func (f *overlayFile) Close() error {
	o, of := f.o, f.of
	o.mu.Lock()
	defer o.mu.Unlock()
	if f.closed.Swap(true) {
		return os.ErrClosed
	}
	if of.refs--; of.refs > 0 {
		return nil
	}
	of.mu.Lock()
	defer of.mu.Unlock()
	err := of.file.Close()
	if of.inode == nil {
		delete(o.readers, of.lower)
		return err
	}
	of.inode.open = nil
	o.free(of.inode)
	return err
}

package workspace

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
)

// MemoryOptions bound a tree in memory.
type MemoryOptions struct {
	Owner Owner  // of the root
	Mode  uint32 // of the root, permissions; 0 is 0755
	// Quota in bytes is what it may hold, names and attributes too; 0 is DefaultMemory.
	Quota int64
	Files int64 // names; 0 is DefaultFiles
}

// DefaultMemory is what a tree in memory may hold unless it is said, in bytes.
const DefaultMemory = 256 << 20

// Memory is an FS in memory. Its files are chunks, and what was never written of one
// takes no room.
type Memory struct{ tree }

// NewMemory returns an empty one.
func NewMemory(o MemoryOptions) *Memory {
	if o.Quota == 0 {
		o.Quota = DefaultMemory
	}
	if o.Files == 0 {
		o.Files = DefaultFiles
	}
	if o.Mode == 0 {
		o.Mode = 0o755
	}
	m := &Memory{tree{maxima: maxima{names: o.Files, held: o.Quota}}}
	m.store = m
	now := now()
	m.init(meta{
		ID:   ID{Device: ownDevice, Inode: rootNumber},
		Mode: syscall.S_IFDIR | o.Mode&0o7777, Owner: o.Owner,
		Atime: now, Mtime: now, Ctime: now,
	})
	return m
}

// Close does nothing: what holds the tree in memory is who has it.
func (m *Memory) Close() error { return nil }

// SyncDir does nothing: there is no disk.
func (m *Memory) SyncDir(string) error { return nil }

// Statfs tells what the quota is and what it leaves.
func (m *Memory) Statfs(string) (Statfs, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	free := uint64(max(0, m.maxima.held-m.held)) / blockSize
	return Statfs{
		BlockSize: blockSize,
		Blocks:    uint64(m.maxima.held) / blockSize, Free: free, Avail: free,
		Files: uint64(m.maxima.names), FilesFree: uint64(max(0, m.maxima.names-m.names)),
	}, nil
}

// Open implements FS.
func (m *Memory) Open(path string, write bool) (File, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.own(path)
	if err != nil {
		return nil, err
	}
	if err := n.canOpen(); err != nil {
		return nil, err
	}
	return m.open(n, write), nil
}

func (m *Memory) open(n *inode, write bool) *memoryFile {
	n.chunks.opens++
	return &memoryFile{m: m, n: n, write: write}
}

// Create implements FS.
func (m *Memory) Create(path string, mode uint32, owner Owner) (File, error) {
	n, err := m.add(path, syscall.S_IFREG|mode&0o7777, owner, "")
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open(n, true), nil
}

// stat, setTimes, free, adopt and truncate make it the store of its own tree.

func (m *Memory) stat(n *inode, a *Attr) error {
	a.Size, a.Blocks = n.chunks.size, int64(len(n.chunks.at))*(chunkSize/512)
	return nil
}

func (m *Memory) setTimes(*inode, Change) error { return nil }
func (m *Memory) adopt(*inode)                  {}

func (m *Memory) free(n *inode) {
	if n.names == 0 && n.chunks.opens == 0 {
		m.held -= n.chunks.cut(0)
	}
}

func (m *Memory) truncate(path string, size int64) error {
	f, err := m.Open(path, true)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}

// chunkSize is of what a file in memory is made.
const chunkSize = 64 << 10

// chunks are the bytes of a file in memory.
type chunks struct {
	size  int64
	at    map[int64][]byte // by offset / chunkSize
	opens int
}

// missing counts the bytes of chunks that are not there from offset on.
func (c *chunks) missing(offset, length int64) (missing int64) {
	first, last := offset/chunkSize, (offset+length-1)/chunkSize
	missing = last - first + 1
	if missing <= int64(len(c.at)) {
		for i := first; i <= last; i++ {
			if c.at[i] != nil {
				missing--
			}
		}
	} else {
		for i := range c.at {
			if i >= first && i <= last {
				missing--
			}
		}
	}
	if missing > 1<<40 { // more than anybody has, and no overflow
		missing = 1 << 40
	}
	return missing * chunkSize
}

// each calls f with each chunk, or nil, and the part of it that is from offset on.
func (c *chunks) each(offset, length int64, f func(i int64, from, to int)) {
	for end := offset + length; offset < end; {
		from := int(offset % chunkSize)
		to := int(min(chunkSize, int64(from)+end-offset))
		f(offset/chunkSize, from, to)
		offset += int64(to - from)
	}
}

// fill adds the chunks that are missing.
func (c *chunks) fill(offset, length int64) {
	if c.at == nil {
		c.at = make(map[int64][]byte)
	}
	c.each(offset, length, func(i int64, _, _ int) {
		if c.at[i] == nil {
			c.at[i] = make([]byte, chunkSize)
		}
	})
}

// zero makes what is from offset on zeros, as holes where whole chunks are; it returns
// how many bytes of chunks are gone.
func (c *chunks) zero(offset, length int64, holes bool) (freed int64) {
	end := offset + length
	for i, chunk := range c.at {
		from, to := max(offset, i*chunkSize)-i*chunkSize, min(end-i*chunkSize, chunkSize)
		switch {
		case from >= to:
		case holes && to-from == chunkSize:
			delete(c.at, i)
			freed += chunkSize
		default:
			clear(chunk[from:to])
		}
	}
	return freed
}

// cut makes the size less, and returns how many bytes of chunks are gone.
func (c *chunks) cut(size int64) (freed int64) {
	last := (size + chunkSize - 1) / chunkSize // the first that goes
	for i := range c.at {
		if i >= last {
			delete(c.at, i)
			freed += chunkSize
		}
	}
	if chunk := c.at[size/chunkSize]; chunk != nil {
		clear(chunk[size%chunkSize:])
	}
	c.size = size
	return freed
}

// memoryFile is an open file of a Memory.
type memoryFile struct {
	m      *Memory
	n      *inode
	write  bool
	closed atomic.Bool
}

func (f *memoryFile) Stat() (Attr, error) {
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	return f.m.attr(f.n)
}

func (f *memoryFile) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, syscall.EINVAL
	}
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	c := &f.n.chunks
	n := min(int64(len(p)), max(0, c.size-offset))
	read := p[:0]
	c.each(offset, n, func(i int64, from, to int) {
		if chunk := c.at[i]; chunk != nil {
			read = append(read, chunk[from:to]...)
		} else {
			read = read[:len(read)+to-from]
			clear(read[len(read)-(to-from):])
		}
	})
	if len(read) < len(p) {
		return len(read), io.EOF
	}
	return len(read), nil
}

// change makes a change that needs chunks for what is from offset on.
func (f *memoryFile) change(offset, length int64, change func(c *chunks)) error {
	if f.closed.Load() {
		return os.ErrClosed
	}
	if !f.write {
		return syscall.EBADF
	}
	m, c := f.m, &f.n.chunks
	m.mu.Lock()
	defer m.mu.Unlock()
	if length > 0 {
		missing := c.missing(offset, length)
		if missing > 0 && missing > m.maxima.held-m.held {
			return syscall.EDQUOT
		}
		m.held += missing
		c.fill(offset, length)
	}
	change(c)
	now := now()
	f.n.Mtime, f.n.Ctime = now, now
	return nil
}

func (f *memoryFile) WriteAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset+int64(len(p)) < 0 {
		return 0, syscall.EFBIG
	}
	n := 0
	err := f.change(offset, int64(len(p)), func(c *chunks) {
		c.each(offset, int64(len(p)), func(i int64, from, to int) {
			n += copy(c.at[i][from:to], p[n:])
		})
		if n > 0 {
			c.size = max(c.size, offset+int64(n))
		}
	})
	return n, err
}

func (f *memoryFile) Truncate(size int64) error {
	if size < 0 {
		return syscall.EINVAL
	}
	return f.change(0, 0, func(c *chunks) {
		if size < c.size {
			f.m.held -= c.cut(size)
		}
		c.size = size
	})
}

func (f *memoryFile) Allocate(mode uint32, offset, length int64) error {
	if err := checkAllocate(mode, offset, length); err != nil {
		return err
	}
	need := length
	if mode&punchHole != 0 {
		need = 0
	}
	return f.change(offset, need, func(c *chunks) {
		if mode&(punchHole|zeroRange) != 0 {
			f.m.held -= c.zero(offset, length, mode&punchHole != 0)
		}
		if mode&keepSize == 0 {
			c.size = max(c.size, offset+length)
		}
	})
}

func (f *memoryFile) SeekData(offset int64, whence int) (int64, error) {
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	c := &f.n.chunks
	if offset < 0 || offset >= c.size {
		return 0, syscall.ENXIO
	}
	switch whence {
	case seekData:
		next := int64(-1)
		for i := range c.at {
			if at := max(offset, i*chunkSize); i >= offset/chunkSize && at < c.size && (next < 0 || at < next) {
				next = at
			}
		}
		if next < 0 {
			return 0, syscall.ENXIO
		}
		return next, nil
	case seekHole:
		for c.at[offset/chunkSize] != nil && offset < c.size {
			offset = (offset/chunkSize + 1) * chunkSize
		}
		return min(offset, c.size), nil
	}
	return 0, syscall.EINVAL
}

func (f *memoryFile) Sync() error { return nil }

func (f *memoryFile) Close() error {
	if f.closed.Swap(true) {
		return os.ErrClosed
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.n.chunks.opens--
	f.m.free(f.n)
	return nil
}

// fileRun says what bytes of a file come after a line: some of its chunks, one after the
// other, by their numbers.
type fileRun struct {
	Inode  uint64  `json:"inode"`
	Size   int64   `json:"size"`
	Chunks []int64 `json:"chunks,omitempty"`
}

// maxRun is how many chunks one line announces.
const maxRun = 1024

// Export writes all of the tree. Nobody waits for it to change the tree meanwhile.
func (m *Memory) Export(w io.Writer) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	b := bufio.NewWriterSize(w, chunkSize)
	if err := m.dump(b); err != nil {
		return err
	}
	for _, number := range slices.Sorted(maps.Keys(m.inodes)) {
		n := m.inodes[number]
		if !n.is(syscall.S_IFREG) {
			continue
		}
		all := slices.Sorted(maps.Keys(n.chunks.at))
		for first := true; first || len(all) > 0; first = false {
			run := all[:min(len(all), maxRun)]
			all = all[len(run):]
			if err := writeLine(b, line{File: &fileRun{number, n.chunks.size, run}}); err != nil {
				return err
			}
			for _, i := range run {
				if _, err := b.Write(n.chunks.at[i]); err != nil {
					return err
				}
			}
		}
	}
	if err := writeLine(b, line{End: true}); err != nil {
		return err
	}
	return b.Flush()
}

// Import makes the tree what Export has written, within the bounds of this one. It may
// have read further. After an error the tree is what it was.
func (m *Memory) Import(r io.Reader) error {
	fresh := &Memory{tree{maxima: m.maxima}}
	fresh.store = fresh
	m.mu.RLock()
	root := m.inodes[rootNumber].meta
	m.mu.RUnlock()
	fresh.init(root)
	b := bufio.NewReaderSize(r, maxLine)
	for first := true; ; first = false {
		l, err := readLine(b)
		if err == nil && first && l.Version == 0 {
			err = errEdit
		}
		if err == nil {
			err = fresh.load(l)
		}
		if err == nil && l.File != nil {
			err = fresh.read(b, l.File)
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("files in memory: %w", err)
		}
		if l.End {
			break
		}
	}
	if err := fresh.loaded(); err != nil {
		return fmt.Errorf("files in memory: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inodes, m.next, m.names, m.held = fresh.inodes, fresh.next, fresh.names, fresh.held
	return nil
}

// read reads chunks of a file.
func (m *Memory) read(r io.Reader, run *fileRun) error {
	n := m.inodes[run.Inode]
	if n == nil || !n.is(syscall.S_IFREG) || run.Size < 0 {
		return errEdit
	}
	c := &n.chunks
	c.size = run.Size
	for _, i := range run.Chunks {
		if i < 0 || i > 1<<62/chunkSize || c.at[i] != nil {
			return errEdit
		}
		if m.held += chunkSize; m.held > m.maxima.held {
			return syscall.EDQUOT
		}
		c.fill(i*chunkSize, chunkSize)
		if _, err := io.ReadFull(r, c.at[i]); err != nil {
			return err
		}
	}
	return nil
}

package workspace

import (
	"sync"
	"syscall"
)

// A quota bounds by how much a tree may grow. Bytes are those that files take on the
// disk; names are counted, whatever has them.
//
// What bytes a change takes is known when it is done, so changes of trees with such a
// quota are made one after the other.
type quota struct {
	bytes, files int64 // bytes 0: not bounded

	mu    sync.Mutex
	used  int64 // bytes; below 0 where more was removed than added
	added int64 // names
	// open counts open files by their identity: one without a name keeps its bytes.
	open map[ID]int
}

func newQuota(bytes, files int64) *quota {
	return &quota{bytes: bytes, files: mostNames(bytes, files), open: make(map[ID]int)}
}

// mostNames is how many names may be added where so many bytes and names may be; 0 is
// not bounded, and DefaultFiles. Folders and links take room that is not counted, a block
// each, so bytes bound them too.
func mostNames(bytes, files int64) int64 {
	if files == 0 {
		files = DefaultFiles
	}
	if bytes != 0 {
		files = min(files, max(1000, bytes/blockSize))
	}
	return files
}

// name counts a new name, which add makes.
func (q *quota) name(add func() error) error {
	q.mu.Lock()
	full := q.added >= q.files
	if !full {
		q.added++
	}
	q.mu.Unlock()
	if full {
		return syscall.EDQUOT
	}
	err := add()
	if err != nil {
		q.unname(1)
	}
	return err
}

// unname counts names that are gone.
func (q *quota) unname(n int64) {
	q.mu.Lock()
	q.added -= n
	q.mu.Unlock()
}

// grow makes a change by which a file grows by at most most(file) bytes. stat tells of
// the file, before and after.
func (q *quota) grow(stat func() (Attr, error), most func(Attr) int64, change func() error) error {
	if q.bytes == 0 {
		return change()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	before, err := stat()
	if err != nil {
		return err
	}
	if n := most(before); n > 0 && n > q.bytes-q.used {
		return syscall.EDQUOT
	}
	err = change()
	if after, e := stat(); e == nil {
		q.used += (after.Blocks - before.Blocks) * 512
	}
	return err
}

// blockSize is what most file systems take at least for anything.
const blockSize = 4096

// written is the most by which a file grows when n bytes are written at offset: what its
// new size would take and it has not yet, which may be in its holes.
func written(a Attr, offset, n int64) int64 {
	size := max(a.Size, offset+n)
	return min(n+2*blockSize, max(0, (size+blockSize-1)/blockSize*blockSize-a.Blocks*512))
}

// opened and closed tell of open files; closed of one whose last name is gone.
func (q *quota) opened(id ID) {
	if q.bytes == 0 {
		return
	}
	q.mu.Lock()
	q.open[id]++
	q.mu.Unlock()
}

func (q *quota) closed(a Attr) {
	if q.bytes == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open[a.ID]--; q.open[a.ID] <= 0 {
		delete(q.open, a.ID)
		if a.Links == 0 {
			q.used -= a.Blocks * 512
		}
	}
}

// removed makes a change by which a file may lose a name. Its bytes are free if that was
// the last one and it is not open.
func (q *quota) removed(stat func() (Attr, error), change func() error) error {
	if q.bytes == 0 {
		return change()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	a, err := stat()
	if e := change(); e != nil {
		return e
	}
	if err == nil && a.Links == 1 && q.open[a.ID] == 0 && a.Mode&syscall.S_IFMT == syscall.S_IFREG {
		q.used -= a.Blocks * 512
	}
	return nil
}

// limit bounds what a file system says that is free by what the quota leaves.
func (q *quota) limit(s Statfs) Statfs {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes != 0 {
		left := uint64(max(0, q.bytes-q.used)) / uint64(s.BlockSize)
		s.Free, s.Avail = min(s.Free, left), min(s.Avail, left)
	}
	left := uint64(max(0, q.files-q.added))
	s.FilesFree = min(s.FilesFree, left)
	return s
}

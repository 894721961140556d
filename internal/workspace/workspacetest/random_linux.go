package workspacetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// posixRandom is a second of Random.
func posixRandom(t *testing.T, root string) { Random(t, root, 1, time.Second) }

// randomSize is the most that a file of Random has.
const randomSize = 300_000

// random is a file, and what should be in it.
type random struct {
	t     *testing.T
	rand  *rand.Rand
	path  string
	file  *os.File
	mmap  []byte // of randomSize, whatever the file has
	model []byte
	log   []string // the last steps
}

// Random does anything to a file for a while, in the manner of fsx: it reads, writes,
// maps, truncates, allocates and punches holes, opens anew and renames, and what it reads
// is what it has written. A seed does the same again.
func Random(t *testing.T, root string, seed uint64, d time.Duration) {
	r := &random{t: t, rand: rand.New(rand.NewPCG(seed, 0)), path: filepath.Join(root, "random")}
	r.open(os.O_CREATE | os.O_EXCL)
	steps := 0
	for end := time.Now().Add(d); time.Now().Before(end) && !t.Failed(); steps++ {
		r.step()
	}
	r.close()
	r.same("at the end", func() ([]byte, error) { return os.ReadFile(r.path) }, r.model)
	if t.Failed() {
		t.Logf("seed %d, after step %d:\n%s", seed, steps, strings.Join(r.log, "\n"))
	}
	must(t, os.Remove(r.path))
}

func (r *random) open(flags int) {
	var err error
	r.file, err = os.OpenFile(r.path, os.O_RDWR|flags, 0o644)
	must(r.t, err)
	r.mmap, err = unix.Mmap(int(r.file.Fd()), 0, randomSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(r.t, err)
}

func (r *random) close() { must(r.t, unix.Munmap(r.mmap), r.file.Close()) }

// part is a part of the file that has at most size bytes.
func (r *random) part(size int) (offset, length int) {
	if size == 0 {
		return 0, 0
	}
	offset = r.rand.IntN(size)
	length = 1 + r.rand.IntN(min(size-offset, 1<<r.rand.IntN(18)))
	if r.rand.IntN(4) == 0 { // whole pages
		offset &^= 4095
	}
	return offset, length
}

func (r *random) same(what string, read func() ([]byte, error), want []byte) {
	r.t.Helper()
	got, err := read()
	if err != nil {
		r.t.Errorf("%s: %v", what, err)
		return
	}
	if !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		r.t.Errorf("%s: %d bytes that differ from %d on, want %d", what, len(got), i, len(want))
	}
}

// grow gives the model a size that it has at least.
func (r *random) grow(size int) {
	if size > len(r.model) {
		r.model = append(r.model, make([]byte, size-len(r.model))...)
	}
}

func (r *random) step() {
	t := r.t
	size := len(r.model)
	log := func(format string, args ...any) {
		r.log = append(r.log[max(0, len(r.log)-40):], fmt.Sprintf("size %d: ", size)+fmt.Sprintf(format, args...))
	}
	bytesOf := func(length int) []byte { return bytes.Repeat([]byte{byte('a' + r.rand.IntN(26))}, length) }
	allocate := func(mode uint32, offset, length int) bool {
		log("fallocate %d at %d, %d bytes", mode, offset, length)
		err := unix.Fallocate(int(r.file.Fd()), mode, int64(offset), int64(length))
		if err == unix.EOPNOTSUPP {
			return false
		}
		must(t, err)
		return true
	}
	switch r.rand.IntN(13) {
	case 0, 1:
		offset, length := r.part(randomSize)
		data := bytesOf(length)
		log("write at %d, %d bytes of %c", offset, length, data[0])
		must(t, second(r.file.WriteAt(data, int64(offset))))
		r.grow(offset + length)
		copy(r.model[offset:], data)
	case 2, 3:
		offset, length := r.part(size)
		log("read at %d, %d bytes", offset, length)
		r.same("read", func() ([]byte, error) {
			b := make([]byte, length)
			_, err := r.file.ReadAt(b, int64(offset))
			return b, err
		}, r.model[offset:][:length])
	case 4, 5:
		offset, length := r.part(size)
		log("read mapped at %d, %d bytes", offset, length)
		r.same("read mapped", func() ([]byte, error) { return bytes.Clone(r.mmap[offset:][:length]), nil }, r.model[offset:][:length])
	case 6:
		offset, length := r.part(size)
		if length == 0 {
			return
		}
		data := bytesOf(length)
		log("write mapped at %d, %d bytes of %c", offset, length, data[0])
		copy(r.mmap[offset:], data)
		copy(r.model[offset:], data)
		if r.rand.IntN(2) == 0 {
			must(t, unix.Msync(r.mmap, unix.MS_SYNC))
		}
	case 7:
		to := r.rand.IntN(randomSize)
		if r.rand.IntN(2) == 0 {
			to = min(to, size)
		}
		log("truncate to %d", to)
		if r.rand.IntN(2) == 0 {
			must(t, r.file.Truncate(int64(to)))
		} else {
			must(t, os.Truncate(r.path, int64(to)))
		}
		r.grow(to)
		r.model = r.model[:to]
	case 8:
		offset, length := r.part(randomSize)
		if mode := uint32(r.rand.IntN(2)) * unix.FALLOC_FL_KEEP_SIZE; allocate(mode, offset, length) && mode == 0 {
			r.grow(offset + length)
		}
	case 9:
		offset, length := r.part(randomSize)
		if allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length) && offset < size {
			clear(r.model[offset:min(offset+length, size)])
		}
	case 10:
		log("open anew")
		r.close()
		r.open(0)
	case 11:
		log("rename")
		must(t, os.Rename(r.path, r.path+"x"))
		r.path += "x"
		if len(r.path) > 200 {
			short := filepath.Join(filepath.Dir(r.path), "random")
			must(t, os.Rename(r.path, short))
			r.path = short
		}
	case 12:
		log("sync")
		must(t, r.file.Sync())
		info, err := os.Stat(r.path)
		if must(t, err); info.Size() != int64(size) {
			t.Errorf("the file has %d bytes, want %d", info.Size(), size)
		}
		// What the kernel has in its memory it has to read again.
		must(t, unix.Fadvise(int(r.file.Fd()), 0, 0, unix.FADV_DONTNEED))
	}
}

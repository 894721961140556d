package workspace

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
)

func TestMemoryBounds(t *testing.T) {
	m := NewMemory(MemoryOptions{Quota: 1 << 20, Files: 3})
	f, err := m.Create("file", 0o644, guestUser)
	must(t, err)
	wantErrno(t, "write", second(f.WriteAt(make([]byte, 1<<20), 0)), syscall.EDQUOT)
	wantErrno(t, "allocate", f.Allocate(0, 0, 1<<62), syscall.EDQUOT)
	if a, err := f.Stat(); err != nil || a.Size != 0 || a.Blocks != 0 {
		t.Errorf("after what failed the file is %+v (%v)", a, err)
	}
	_, err = f.WriteAt(make([]byte, 10*chunkSize), 0)
	must(t, err, f.Truncate(1<<50), m.Unlink("file"))
	if m.held < 10*chunkSize {
		t.Errorf("a file that is open holds %d bytes", m.held)
	}
	must(t, f.Close())
	if empty := NewMemory(MemoryOptions{}); m.held != empty.held || m.names != 0 {
		t.Errorf("when all is gone %d bytes are held, and %d names", m.held, m.names)
	}
	must(t, m.Mkdir("a", 0o755, guestUser), m.Mkdir("b", 0o755, guestUser), m.Symlink("x", "c", guestUser))
	wantErrno(t, "a fourth name", m.Mkdir("d", 0o755, guestUser), syscall.EDQUOT)
	for i := 0; ; i++ {
		if err := m.Setxattr([]string{"a", "b"}[i%2], "user."+strings.Repeat("x", i+1), make([]byte, 10_000), 0); err != nil {
			wantErrno(t, "xattrs", err, syscall.ENOSPC, syscall.EDQUOT)
			break
		}
	}
	s, err := m.Statfs("")
	if must(t, err); s.Free >= s.Blocks || s.FilesFree != 0 {
		t.Errorf("statfs says %+v", s)
	}
}

// FuzzImport has no bytes make anything but a tree within its bounds, or an error.
func FuzzImport(f *testing.F) {
	m := NewMemory(MemoryOptions{})
	populate(f, m)
	if file, err := m.Open("a/a", true); err == nil {
		file.WriteAt([]byte("far"), 10*chunkSize)
	}
	var exported bytes.Buffer
	if err := m.Export(&exported); err != nil {
		f.Fatal(err)
	}
	f.Add(exported.Bytes())
	f.Add([]byte(`{"version":1,"next":9}
{"edits":[{"meta":{"number":2,"mode":16877}},{"meta":{"number":3,"mode":16877}}]}
{"edits":[{"name":{"folder":2,"name":"YQ==","inode":3}},{"name":{"folder":3,"name":"YQ==","inode":2}}]}
{"end":true}
`)) // two folders in each other
	f.Add([]byte(`{"version":1}
{"edits":[{"name":{"folder":1,"name":"Li4=","inode":1}}]}
`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := NewMemory(MemoryOptions{Quota: 4 << 20, Files: 50})
		if err := m.Import(bytes.NewReader(data)); err != nil {
			if names, err := m.ReadDir(""); err != nil || len(names) != 0 {
				t.Errorf("after an error there are %v (%v)", names, err)
			}
			return
		}
		var held int64
		for _, n := range m.inodes {
			held += n.held + int64(len(n.chunks.at))*chunkSize
			for name := range n.entries {
				held += heldName + int64(len(name))
			}
		}
		if m.held != held || m.held > 4<<20 || m.names > 50 {
			t.Errorf("%d bytes are held, counted %d; %d names", held, m.held, m.names)
		}
		must(t, m.Export(io.Discard))
		var walk func(path string, depth int)
		walk = func(path string, depth int) {
			if depth > 60 {
				t.Fatal("a folder is in itself")
			}
			entries, err := m.ReadDir(path)
			if errors.Is(err, syscall.ENOTDIR) {
				return
			}
			must(t, err)
			for _, e := range entries {
				must(t, checkPath(e.Name))
				walk(joinPath(path, e.Name), depth+1)
			}
		}
		walk("", 0)
	})
}

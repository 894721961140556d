package workspace

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// describe is all that can be seen of a tree, one line for each path. Of a folder it
// leaves out what trees count differently.
func describe(t *testing.T, fs FS) string {
	t.Helper()
	var all strings.Builder
	var walk func(path string)
	walk = func(path string) {
		a, err := fs.Stat(path)
		must(t, err)
		fmt.Fprintf(&all, "%q %o %v", path, a.Mode, a.Owner)
		names, err := fs.Listxattr(path)
		must(t, err)
		slices.Sort(names)
		for _, name := range names {
			value, err := fs.Getxattr(path, name)
			must(t, err)
			fmt.Fprintf(&all, " %s=%q", name, value)
		}
		switch a.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			all.WriteString("\n")
			entries, err := fs.ReadDir(path)
			must(t, err)
			slices.SortFunc(entries, func(a, b DirEntry) int { return strings.Compare(a.Name, b.Name) })
			for _, e := range entries {
				walk(joinPath(path, e.Name))
			}
			return
		case syscall.S_IFLNK:
			target, err := fs.Readlink(path)
			must(t, err)
			fmt.Fprintf(&all, " -> %q", target)
		case syscall.S_IFREG:
			fmt.Fprintf(&all, " %d %q", a.Size, readFile(t, fs, path))
		}
		fmt.Fprintf(&all, " links=%d\n", a.Links)
	}
	walk("")
	return all.String()
}

// operate does to a tree what bytes say, and tells what came of it. All errors that
// POSIX leaves open are one.
func operate(fs FS, ops []byte) string {
	next := func(n int) int {
		if len(ops) == 0 {
			return 0
		}
		b := ops[0]
		ops = ops[1:]
		return int(b) % n
	}
	path := func() string {
		p := ""
		for range next(4) {
			p = joinPath(p, string("abc"[next(3)]))
		}
		return p
	}
	var results strings.Builder
	var open []File
	for i := 0; len(ops) > 0 && i < 200; i++ {
		var err error
		what, p := next(16), path()
		switch what {
		case 0, 1:
			var f File
			if f, err = fs.Create(p, uint32(next(8))*0o111|0o600, Owner{uint32(next(3)), 0}); err == nil {
				f.WriteAt([]byte{byte(i), byte(next(256))}, int64(next(3)))
				f.Close()
			}
		case 2:
			err = fs.Mkdir(p, 0o711, guestUser)
		case 3:
			err = fs.Unlink(p)
		case 4:
			err = fs.Rmdir(p)
		case 5, 6, 7:
			err = fs.Rename(p, path(), uint32([]int{0, 0, 0, RenameNoReplace, RenameExchange}[next(5)]))
		case 8:
			err = fs.Link(p, path())
		case 9:
			err = fs.Symlink("x", p, guestUser)
		case 10:
			mode, uid := uint32(next(8))*0o1111&0o7777, uint32(next(4))
			c := Change{Mode: &mode}
			if next(2) == 0 {
				c = Change{UID: &uid}
			}
			_, err = fs.SetAttr(p, c)
		case 11:
			size := int64(next(20))
			_, err = fs.SetAttr(p, Change{Size: &size})
		case 12, 13:
			var f File
			if f, err = fs.Open(p, what == 12); err == nil {
				open = append(open, f)
			}
		case 14:
			if len(open) > 0 {
				f := open[next(len(open))]
				n, e := f.WriteAt([]byte(fmt.Sprint(i)), int64(next(30)))
				a, e2 := f.Stat()
				buf := make([]byte, 64)
				m, _ := f.ReadAt(buf, 0)
				fmt.Fprintln(&results, n, e != nil, a.Size, e2, string(buf[:m]))
			}
		case 15:
			err = fs.Setxattr(p, "user."+string("ab"[next(2)]), bytes.Repeat([]byte("v"), next(5)), next(3))
		}
		var errno syscall.Errno
		errors.As(err, &errno)
		switch errno {
		case syscall.ENOTEMPTY, syscall.EEXIST, syscall.EBUSY, syscall.EISDIR, syscall.ENOTDIR, syscall.EINVAL, syscall.ENOENT, syscall.EPERM, syscall.ELOOP, syscall.ENXIO:
			errno = 1
		}
		fmt.Fprintln(&results, i, what, p, int(errno))
	}
	for _, f := range open {
		f.Close()
	}
	return results.String()
}

// FuzzTree has a host's folder, a tree in memory and an overlay over a host's folder do
// the same, and the overlay be the same again when it is opened again, in a copy too.
func FuzzTree(f *testing.F) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		ops := make([]byte, 1000)
		for i := range ops {
			ops[i] = byte(random.Uint32())
		}
		f.Add(ops)
	}
	f.Add([]byte("\x00\x01\x00\x02\x01\x01\x05\x01\x00\x02\x01\x00"))
	f.Add([]byte("\x05\x01\x00\x01\x02\x00\x02\x01\x00\x00\x02\x01\x00\x05\x01\x02\x01\x00\x00"))
	f.Add([]byte("\x0d\x02\x00\x00\x0c\x02\x00\x00\x0e\x01\x05\x0e\x00\x03\x03\x02\x00\x00\x0e\x00\x01"))
	f.Add([]byte("\x04\x02\x00\x01\x03\x03\x00\x01\x00\x03\x03\x00\x01\x01\x04\x02\x00\x01\x02\x02\x00\x01"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		var model string
		check := func(name string, fs FS) {
			result := operate(fs, ops) + describe(t, fs)
			if model == "" {
				model = result
			} else if result != model {
				t.Fatalf("%s differs from the tree in memory:\n%s", name, firstDifference(result, model))
			}
		}
		memory := NewMemory(MemoryOptions{Owner: guestUser})
		populate(t, memory)
		check("memory", memory)
		var exported bytes.Buffer
		again := NewMemory(MemoryOptions{})
		must(t, memory.Export(&exported), again.Import(&exported))
		if got, want := describe(t, again), describe(t, memory); got != want {
			t.Fatalf("what is imported differs:\n%s", firstDifference(got, want))
		}
		if again.held != memory.held || again.names != memory.names {
			t.Errorf("imported: %d bytes and %d names, not %d and %d", again.held, again.names, memory.held, memory.names)
		}

		dir := t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "host"), 0o755), os.Mkdir(filepath.Join(dir, "lower"), 0o755))
		host := openHost(t, filepath.Join(dir, "host"), HostOptions{})
		populate(t, host)
		check("host", host)
		wantHarmless(t, filepath.Join(dir, "host"))

		lower := openHost(t, filepath.Join(dir, "lower"), HostOptions{})
		populate(t, lower)
		before := describe(t, lower)
		openOverlay := func(name string) *Overlay {
			o, err := OpenOverlay(openHost(t, filepath.Join(dir, "lower"), HostOptions{ReadOnly: true}), filepath.Join(dir, name), OverlayOptions{Quota: 1 << 20})
			must(t, err)
			return o
		}
		overlay := openOverlay("overlay")
		check("overlay", overlay)
		if after := describe(t, lower); after != before {
			t.Fatalf("what lies below was changed:\n%s", firstDifference(after, before))
		}
		want := describe(t, overlay)
		must(t, overlay.Close())
		o := openOverlay("overlay")
		if got := describe(t, o); got != want {
			t.Fatalf("opened again, it differs:\n%s", firstDifference(got, want))
		}
		if o.names != overlay.names || o.gone != overlay.gone || o.held != overlay.held {
			t.Errorf("%d names, %d gone, %d bytes, not %d, %d, %d", o.names, o.gone, o.held, overlay.names, overlay.gone, overlay.held)
		}
		must(t, o.Close())
	})
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d: %s\nwant:   %s\n\n%s", i, g[i], w[i], got)
		}
	}
	return got
}

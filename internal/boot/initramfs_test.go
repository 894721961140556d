package boot

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// readInitramfs reads an archive back, checking what holds for all entries.
func (h *host) readInitramfs(path string) []cpioEntry {
	h.t.Helper()
	archive, _ := h.file(path)
	return readCpio(h.t, archive)
}

func readCpio(t *testing.T, archive []byte) (entries []cpioEntry) {
	t.Helper()
	r := bytes.NewReader(archive)
	next := func(n int64) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatalf("after %d entries: %v", len(entries), err)
		}
		return b
	}
	skip := func() {
		at := r.Size() - int64(r.Len())
		if pad := next(align4(at) - at); len(bytes.Trim(pad, "\x00")) > 0 {
			t.Errorf("padding is %q", pad)
		}
	}
	inodes := map[uint64]bool{}
	for {
		head := string(next(cpioHeader))
		if head[:6] != "070701" {
			t.Fatalf("after %d entries: magic %q", len(entries), head[:6])
		}
		var number [13]uint64
		for i := range number {
			n, err := strconv.ParseUint(head[6+8*i:14+8*i], 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			number[i] = n
		}
		name := strings.TrimSuffix(string(next(int64(number[11]))), "\x00")
		skip()
		if name == cpioTrailer {
			if r.Len() > 0 {
				t.Errorf("%d bytes after the end", r.Len())
			}
			return entries
		}
		if uid, gid, mtime := number[2], number[3], number[5]; uid != 0 || gid != 0 || mtime != 0 {
			t.Errorf("%s: owner %d:%d, time %d", name, uid, gid, mtime)
		}
		if inodes[number[0]] {
			t.Errorf("%s: inode %d twice", name, number[0])
		}
		inodes[number[0]] = true
		data := next(int64(number[6]))
		skip()
		entries = append(entries, cpioEntry{
			name: name, mode: uint32(number[1]), major: uint32(number[9]), minor: uint32(number[10]), size: int64(number[6]),
			open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		})
	}
}

func TestInitramfs(t *testing.T) {
	h := newHost(t)
	installKernel(t, h.root, testRelease)
	f := h.mustPrepare()
	type entry struct {
		Name         string
		Mode         uint32
		Major, Minor uint32
		Content      string
	}
	dir := func(name string) entry { return entry{Name: name, Mode: 0o040755} }
	want := []entry{
		dir("dev"),
		{Name: "dev/console", Mode: 0o020600, Major: 5, Minor: 1},
		{Name: "init", Mode: 0o100755, Content: contentOf(h.o.Guest)},
		dir("modules"),
		dir("modules/later"),
	}
	modules := map[string][]byte{}
	for path, data := range testModules() {
		modules[path[strings.LastIndexByte(path, '/')+1:]] = data
	}
	for _, name := range testModuleNames {
		_, base, _ := strings.Cut(name, "-")
		want = append(want, entry{Name: name, Mode: 0o100644, Content: string(modules[base])})
	}
	want = append(want, dir("proc"), dir("sys"))
	var got []entry
	for _, e := range h.readInitramfs(f.Initramfs) {
		r, _ := e.open() // from memory
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entry{e.name, e.mode, e.major, e.minor, string(b)})
	}
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("entries (-got +want):\n%s", d)
	}
}

func TestCpioSize(t *testing.T) {
	data := "x"
	for range 10 {
		data += "x"
		entries := []cpioEntry{{name: data, mode: cpioFile, size: int64(len(data)), open: func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(data)), nil
		}}}
		var b bytes.Buffer
		if err := writeCpio(t.Context(), &b, entries); err != nil {
			t.Fatal(err)
		}
		if got := cpioSize(entries); got != int64(b.Len()) {
			t.Errorf("%q: got size %d, want %d", data, got, b.Len())
		}
		readCpio(t, b.Bytes())
	}
}

// A file that is not as long as it was when it was looked at would shift all that follows.
func TestCpioSizeChanges(t *testing.T) {
	for _, data := range []string{"", "short", "much too long"} {
		entry := cpioEntry{name: "x", mode: cpioFile, size: 8, open: func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(data)), nil
		}}
		if err := writeCpio(t.Context(), io.Discard, []cpioEntry{entry}); err == nil || !strings.Contains(err.Error(), "x: size is not 8 any more") {
			t.Errorf("%q: got error %v", data, err)
		}
	}
}

package sandbox

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A bundle gives back what was put into it, holes and times too.
func TestBundle(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	b := &bundle{file: file("bundle")}
	contents := map[string][]byte{
		"0/journal": []byte("a journal"),
		"0/data/1":  bytes.Repeat([]byte("x"), 4096),
		"0/data/2":  nil,
		"0/data/3":  append(make([]byte, 3*4096+5), "end"...),
		"1/data/a":  bytes.Repeat([]byte("0123456789"), 5000),
	}
	when := time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, name := range []string{"0/journal", "0/data/1", "0/data/2", "0/data/3", "1/data/a"} {
		f := file(strings.ReplaceAll(name, "/", "-"))
		if _, err := f.Write(contents[name]); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(f.Name(), when, when); err != nil {
			t.Fatal(err)
		}
		if err := b.add(name, f); err != nil {
			t.Fatal(err)
		}
	}
	large := file("large")
	if err := large.Truncate(1 << 40); err != nil {
		t.Fatal(err)
	}
	if _, err := large.WriteAt([]byte("far"), 1<<39); err != nil {
		t.Fatal(err)
	}
	if err := b.add("1/data/b", large); err != nil {
		t.Fatal(err)
	}
	if err := b.addFrom("nodes", func(w io.Writer) error { _, err := fmt.Fprint(w, "nodes"); return err }); err != nil {
		t.Fatal(err)
	}
	if err := b.finish(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(b.file.Name(), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the bundle takes %d bytes (%v), though most are holes", st.Blocks*512, err)
	}
	read, err := openBundle(b.file)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(read.open("nodes")); err != nil || string(text) != "nodes" {
		t.Errorf("nodes are %q (%v)", text, err)
	}
	out := t.TempDir()
	path := func(name string) string { return filepath.Join(out, strings.ReplaceAll(name, "/", "-")) }
	if err := read.extract(func(name string) string {
		if name == "nodes" {
			return ""
		}
		return path(name)
	}); err != nil {
		t.Fatal(err)
	}
	for name, want := range contents {
		got, err := os.ReadFile(path(name))
		info, err2 := os.Stat(path(name))
		if err != nil || err2 != nil || !bytes.Equal(got, want) || !info.ModTime().Equal(when) {
			t.Errorf("%s has %d bytes of %v (%v), want %d of %v", name, len(got), info.ModTime(), err, len(want), when)
		}
	}
	far, err := os.Open(path("1/data/b"))
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	var three [3]byte
	if _, err := far.ReadAt(three[:], 1<<39); err != nil || string(three[:]) != "far" {
		t.Errorf("far away is %q (%v)", three, err)
	}
	if _, err := os.Stat(path("nodes")); err == nil {
		t.Error("what was not asked for was made")
	}
}

// A bundle may come from elsewhere.
func TestBundleOfOthers(t *testing.T) {
	for name, index := range map[string]string{
		"a way out":       `[{"name":"0/../../x","offset":0,"size":1}]`,
		"an absolute one": `[{"name":"/etc/passwd","offset":0,"size":1}]`,
		"twice":           `[{"name":"nodes","offset":0,"size":1},{"name":"nodes","offset":4096,"size":1}]`,
		"beyond the end":  `[{"name":"nodes","offset":0,"size":9000}]`,
		"before it":       `[{"name":"nodes","offset":-4096,"size":1}]`,
		"one in another":  `[{"name":"nodes","offset":0,"size":8000},{"name":"0/journal","offset":4096,"size":1}]`,
		"less than none":  `[{"name":"nodes","offset":0,"size":-1}]`,
		"no block":        `[{"name":"nodes","offset":5,"size":1}]`,
		"no JSON":         `[`,
		"no end":          `[{"name":"nodes","offset":0,"size":1}`,
		"no list":         `{"name":"nodes","offset":0,"size":1}`,
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "bundle"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(binary.BigEndian.AppendUint64([]byte(index), 8192), 8192); err != nil {
			t.Fatal(err)
		}
		if _, err := openBundle(f); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "short"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := openBundle(f); err == nil {
		t.Error("of nothing: no error")
	}
}

// FuzzBundle reads what anybody may have made of a bundle: it is refused, or its files lie
// in it, one behind the other.
func FuzzBundle(f *testing.F) {
	dir := f.TempDir()
	made, err := os.Create(filepath.Join(dir, "made"))
	if err != nil {
		f.Fatal(err)
	}
	defer made.Close()
	b := &bundle{file: made}
	for _, name := range []string{"0/journal", "nodes"} {
		if err := b.addFrom(name, func(w io.Writer) error { _, err := io.WriteString(w, "content of "+name); return err }); err != nil {
			f.Fatal(err)
		}
	}
	if err := b.finish(); err != nil {
		f.Fatal(err)
	}
	content, err := os.ReadFile(made.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Add([]byte("[]\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "bundle")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		b, err := openBundle(file)
		if err != nil {
			return
		}
		sizes := map[string]int64{}
		for _, e := range b.index {
			n, err := io.Copy(io.Discard, b.open(e.Name))
			if err != nil || n != e.Size || e.Offset+e.Size > int64(len(content)) {
				t.Errorf("%+v has %d bytes, %v", e, n, err)
			}
			sizes[fmt.Sprint(len(sizes))] = e.Size
		}
		n := map[string]string{}
		err = b.extract(func(name string) string {
			if n[name] == "" {
				n[name] = fmt.Sprint(len(n))
			}
			return filepath.Join(dir, n[name])
		})
		for name, size := range sizes {
			if info, statErr := os.Stat(filepath.Join(dir, name)); err == nil && (statErr != nil || info.Size() != size) {
				t.Errorf("file %s: %v, %v, want %d bytes", name, info, statErr, size)
			}
		}
	})
}

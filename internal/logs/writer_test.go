package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// newLog opens a log in a folder of its own and closes it with the test.
func newLog(t testing.TB, options Options) (*Writer, string) {
	path := filepath.Join(t.TempDir(), "log")
	return reopen(t, path, options), path
}

func reopen(t testing.TB, path string, options Options) *Writer {
	t.Helper()
	w, err := Open(path, options)
	must(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

// untimed is what a file holds, without the times.
func untimed(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z `).ReplaceAllString(string(data), "")
}

func TestWrite(t *testing.T) {
	long := strings.Repeat("x", maxContent)
	for _, tt := range []struct {
		name   string
		writes []string
		want   string
	}{
		{"nothing", []string{""}, ""},
		{"a line", []string{"one\n"}, "matchlock F file 1\nout F one\n"},
		{"lines and a part", []string{"one\n\ntwo"}, "matchlock F file 1\nout F one\nout F \nout P two\n"},
		{"a line in parts", []string{"o", "ne", "\n"}, "matchlock F file 1\nout P o\nout P ne\nout F \n"},
		{"any byte", []string{"\x00\xff\r\n"}, "matchlock F file 1\nout F \x00\xff\r\n"},
		{"as long as may be", []string{long + "\n"}, "matchlock F file 1\nout F " + long + "\n"},
		{"longer", []string{long + "y\n"}, "matchlock F file 1\nout P " + long + "\nout F y\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, path := newLog(t, Options{})
			for _, p := range tt.writes {
				if n, err := io.WriteString(w.Stream("out"), p); n != len(p) || err != nil {
					t.Errorf("Write = %d, %v, want %d", n, err, len(p))
				}
			}
			if got := untimed(t, path); got != tt.want {
				t.Errorf("the file holds %q, want %q", got, tt.want)
			}
		})
	}
}

func TestStreamName(t *testing.T) {
	w, _ := newLog(t, Options{})
	for _, name := range []string{"", "two words", "a\nb", "Out", strings.Repeat("a", 17)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q is the name of a stream", name)
				}
			}()
			w.Stream(name)
		}()
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	must(t, os.Symlink("target", link), syscall.Mkfifo(pipe, 0o600))
	for name, open := range map[string]func() (*Writer, error){
		"a link":             func() (*Writer, error) { return Open(link, Options{}) },
		"a pipe":             func() (*Writer, error) { return Open(pipe, Options{}) },
		"a folder":           func() (*Writer, error) { return Open(dir, Options{}) },
		"a small MaxSize":    func() (*Writer, error) { return Open(filepath.Join(dir, "log"), Options{MaxSize: 1}) },
		"a large Keep":       func() (*Writer, error) { return Open(filepath.Join(dir, "log"), Options{Keep: maxKeep + 1}) },
		"a folder not there": func() (*Writer, error) { return Open(filepath.Join(dir, "none", "log"), Options{}) },
	} {
		if w, err := open(); err == nil {
			w.Close()
			t.Errorf("%s was opened", name)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "target")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what a link points to was made")
	}
	err := Read(t.Context(), link, Query{}, func(Record) error { return nil })
	if !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Read of a link = %v, want ELOOP", err)
	}
}

func TestMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	must(t, os.WriteFile(path, nil, 0o666))
	w := reopen(t, path, Options{MaxSize: 4096})
	w.Stream("out").Write(make([]byte, 8192))
	for _, name := range []string{path, path + ".1"} {
		info, err := os.Stat(name)
		must(t, err)
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want -rw-------", name, info.Mode())
		}
	}
}

// A later writer goes on where a former one ended, whatever that left at the end.
func TestOpenGoesOn(t *testing.T) {
	first := "2026-11-26T15:04:05.123456789Z matchlock F file 7\n"
	line := "2026-11-26T15:04:05.123456789Z out F a\n"
	for _, tt := range []struct {
		name, found string
		want        string
		aside       bool // what was found is now the file before
	}{
		{"nothing", "", "matchlock F file 1\nout F b\n", false},
		{"whole records", first + line, "matchlock F file 7\nout F a\nout F b\n", false},
		{"half a record", first + line + line[:len(line)-1], "matchlock F file 7\nout F a\nout F b\n", false},
		{"half a time", first + line[:10], "matchlock F file 7\nout F b\n", false},
		{"half a first record", first[:40], "matchlock F file 1\nout F b\n", true},
		{"no log", "[    0.000000] Linux version 6\n" + line, "matchlock F file 2\nout F b\n", true},
		{"a log without an end", first + strings.Repeat("\x00", maxLine), "matchlock F file 8\nout F b\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			must(t, os.WriteFile(path, []byte(tt.found), 0o600))
			w := reopen(t, path, Options{})
			before := w.Position()
			io.WriteString(w.Stream("out"), "b\n")
			if got := untimed(t, path); got != tt.want {
				t.Errorf("the file holds %q, want %q", got, tt.want)
			}
			aside, err := os.ReadFile(path + ".1")
			if tt.aside != (err == nil) || err == nil && string(aside) != tt.found {
				t.Errorf("the file before holds %q (%v)", aside, err)
			}
			if got := read(t, path, Query{From: before}); got.text["out"] != "b\n" {
				t.Errorf("since it was opened the log has %q", got.text["out"])
			}
		})
	}
}

func TestRotation(t *testing.T) {
	const maxSize, keep = 4096, 2
	w, path := newLog(t, Options{MaxSize: maxSize, Keep: keep})
	var said strings.Builder
	for i := range 500 {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i))
		said.WriteString(line)
		io.WriteString(w.Stream("out"), line)
	}
	must(t, w.Close())
	check := func(keep int) {
		t.Helper()
		names, err := filepath.Glob(path + "*")
		must(t, err)
		if len(names) != keep+1 {
			t.Errorf("there are %q, want %d old files", names, keep)
		}
		for _, name := range names {
			info, err := os.Stat(name)
			must(t, err)
			if info.Size() > maxSize {
				t.Errorf("%s has %d bytes, want at most %d", name, info.Size(), maxSize)
			}
		}
		got := read(t, path, Query{}).text["out"]
		if !strings.HasSuffix(said.String(), got) || len(got) < keep*maxSize/2 {
			t.Errorf("of %d bytes the log has %d that are not their end", said.Len(), len(got))
		}
	}
	check(keep)
	reopen(t, path, Options{MaxSize: maxSize, Keep: 1})
	check(1)
}

// A rotation that was cut short left a name free. The next one moves no file beyond that.
func TestRotationCutShort(t *testing.T) {
	for free := range 3 {
		w, path := newLog(t, Options{MaxSize: 4096})
		for i := range 4 {
			fmt.Fprintf(w.Stream("out"), "%d%s\n", i, strings.Repeat("x", 3000))
		}
		must(t, w.Close())
		for age := 3; age > free; age-- {
			must(t, os.Rename(fileName(path, age-1), fileName(path, age)))
		}
		w = reopen(t, path, Options{MaxSize: 4096})
		io.WriteString(w.Stream("out"), strings.Repeat("x", 3000))
		var got strings.Builder
		for _, r := range read(t, path, Query{}).records {
			got.WriteString(strings.Trim(r, "xout FP"))
		}
		if want := "123"; got.String() != want {
			t.Errorf("with name %d free the log has files %s, want %s", free, got.String(), want)
		}
	}
}

// A rotation that fails costs what is written meanwhile, and no more.
func TestRotationFails(t *testing.T) {
	var faults []error
	w, path := newLog(t, Options{MaxSize: 4096, Keep: 1, OnError: func(err error) { faults = append(faults, err) }})
	must(t, os.MkdirAll(path+".1/in the way", 0o700))
	out := w.Stream("out")
	for range 3 {
		out.Write(bytes.Repeat([]byte("x"), 3000))
	}
	if len(faults) != 1 {
		t.Errorf("told of %v, want one fault", faults)
	}
	must(t, os.RemoveAll(path+".1"))
	io.WriteString(out, "y")
	got := read(t, path, Query{})
	if want := strings.Repeat("x", 3000) + "y"; got.text["out"] != want {
		t.Errorf("the log has %d bytes, want %d", len(got.text["out"]), len(want))
	}
	if want := "6000 bytes lost: the log could not be written\n"; got.text[Own] != want {
		t.Errorf("the log says %q, want %q", got.text[Own], want)
	}
}

// disk takes so many bytes.
type disk struct{ room int }

func (d *disk) write(f *os.File, p []byte) (int, error) {
	n, err := f.Write(p[:min(len(p), d.room)])
	d.room -= n
	if err == nil && n < len(p) {
		err = syscall.ENOSPC
	}
	return n, err
}

// However little the disk takes, the log has whole records, and says what is missing when it can.
func TestFullDisk(t *testing.T) {
	const before, during, after = "before\n", "one\ntwo\n\nthree", "after\n"
	for room := range 400 {
		var faults []error
		w, path := newLog(t, Options{OnError: func(err error) { faults = append(faults, err) }})
		full := &disk{room}
		w.write = full.write
		out := w.Stream("out")
		io.WriteString(out, before)
		io.WriteString(out, during)
		io.WriteString(out, during)
		full.room = 1 << 20
		io.WriteString(out, after)
		full.room = 0
		io.WriteString(out, before)
		full.room = 1 << 20
		io.WriteString(out, after)

		got := read(t, path, Query{})
		lost := 0
		for notice := range strings.Lines(got.text[Own]) {
			var n int
			fmt.Sscanf(notice, "%d bytes lost", &n)
			lost += n
		}
		if has := len(got.text["out"]); has+lost != len(before+during+during+after+before+after) {
			t.Fatalf("a disk for %d bytes: the log has %q and says %q", room, got.text["out"], got.text[Own])
		}
		if len(faults) != 1 || !errors.Is(faults[0], syscall.ENOSPC) {
			t.Fatalf("a disk for %d bytes: told of %v", room, faults)
		}
		if !strings.HasSuffix(got.text["out"], after) || got.damaged != 0 {
			t.Fatalf("a disk for %d bytes: %d lines are damaged of %q", room, got.damaged, untimed(t, path))
		}
	}
}

// What was lost until the end is told at the end, and OnError may write to the log.
func TestFullDiskUntilClose(t *testing.T) {
	full := &disk{}
	var w *Writer
	w, path := newLog(t, Options{OnError: func(err error) {
		io.WriteString(w.Stream("out"), "lost too")
		full.room = 1 << 20
	}})
	w.write = full.write
	io.WriteString(w.Stream("out"), "lost")
	must(t, w.Close(), w.Close())
	if n, err := io.WriteString(w.Stream("out"), "late"); n != 4 || err != nil {
		t.Errorf("Write after Close = %d, %v, want 4", n, err)
	}
	if got, want := untimed(t, path), "matchlock F file 1\nmatchlock F 12 bytes lost: the log could not be written\n"; got != want {
		t.Errorf("the file holds %q, want %q", got, want)
	}
}

// Many may write at once: no record is broken, and each stream has its order.
func TestWriteAtOnce(t *testing.T) {
	w, path := newLog(t, Options{})
	var all sync.WaitGroup
	for s := range 4 {
		out := w.Stream(fmt.Sprint("s", s))
		all.Go(func() {
			for i := range 200 {
				fmt.Fprintf(out, "%d\n%d", i, s)
				w.Position()
			}
		})
	}
	all.Wait()
	got := read(t, path, Query{})
	for s := range 4 {
		var want strings.Builder
		for i := range 200 {
			fmt.Fprintf(&want, "%d\n%d", i, s)
		}
		if name := fmt.Sprint("s", s); got.text[name] != want.String() {
			t.Errorf("stream %s has %d bytes, want %d", name, len(got.text[name]), want.Len())
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	line := append(bytes.Repeat([]byte("x"), 79), '\n')
	p := bytes.Repeat(line, 64<<10/len(line))
	w, _ := newLog(b, Options{})
	out := w.Stream("stdout")
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		out.Write(p)
	}
}

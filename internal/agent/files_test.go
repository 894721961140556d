//go:build linux

package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWriteFile(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	large := make([]byte, 3<<20+17)
	rand.Read(large)
	for name, test := range map[string]struct {
		path    string
		content []byte
		mode    uint32
		want    fs.FileMode
	}{
		"default mode": {"a", []byte("hello"), 0, 0o644},
		"mode":         {"b", []byte("x"), 0o700, 0o700},
		"set-id":       {"c", []byte("x"), 0o4755, 0o755 | fs.ModeSetuid},
		"empty":        {"d", nil, 0, 0o644},
		"large":        {"e", large, 0, 0o644},
		"parents":      {"p/q/r", []byte("x"), 0, 0o644},
		"replaced":     {"a", []byte("again"), 0o600, 0o600},
		"long name":    {strings.Repeat("n", 255), []byte("x"), 0, 0o644},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, test.path)
			if err := c.WriteFile(t.Context(), path, test.content, test.mode); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, test.content) {
				t.Errorf("%d bytes of %d, %v", len(got), len(test.content), err)
			}
			if info, _ := os.Stat(path); info.Mode() != test.want {
				t.Errorf("mode %v, want %v", info.Mode(), test.want)
			}
		})
	}
	if info, err := os.Stat(filepath.Join(dir, "p")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("parent: %v, %v; want mode 0755", info, err)
	}
	noneLeft(t, dir)
}

// noneLeft fails when a folder holds a temporary file.
func noneLeft(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(dir + "/.matchlock-*")
	if err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestWriteFileRefused(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	os.Mkdir(dir+"/folder", 0o755)
	os.WriteFile(dir+"/file", nil, 0o644)
	os.Symlink("loop", dir+"/loop")
	for name, test := range map[string]struct{ path, want string }{
		"folder":           {dir + "/folder", "is a directory"},
		"below a file":     {dir + "/file/x", "not a directory"},
		"ends in a slash":  {dir + "/new/", "is a directory"},
		"root":             {"/", "is a directory"},
		"dots":             {dir + "/..", "is a directory"},
		"relative":         {"etc/x", "not absolute"},
		"empty":            {"", "not absolute"},
		"NUL":              {"/tmp/\x00", "NUL"},
		"long":             {"/" + strings.Repeat("d/", 3000), "too long"},
		"long name":        {dir + "/" + strings.Repeat("n", 256), "too long"},
		"below a loop":     {dir + "/loop/x", "loop"},
		"no such machine":  {"/proc/no/such", "no such file"},
		"not even by root": {"/proc/version", ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.WriteFile(t.Context(), test.path, []byte("x"), 0)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	noneLeft(t, dir)
}

// What lies in the place of a file is replaced, not followed or opened.
func TestWriteFileReplacesWhatIsThere(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	os.WriteFile(dir+"/target", []byte("untouched"), 0o644)
	os.Symlink("target", dir+"/link")
	os.Symlink("loop", dir+"/loop")
	syscall.Mkfifo(dir+"/fifo", 0o644)
	for _, name := range []string{"link", "loop", "fifo"} {
		if err := c.WriteFile(t.Context(), dir+"/"+name, []byte("new"), 0); err != nil {
			t.Error(err)
		}
		if info, err := os.Lstat(dir + "/" + name); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if got, _ := os.ReadFile(dir + "/target"); string(got) != "untouched" {
		t.Errorf("the link's target became %q", got)
	}
}

// A transfer that breaks off leaves what was there before, and nothing else.
func TestUploadBrokenOff(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	os.WriteFile(dir+"/file", []byte("before"), 0o644)
	broken := errors.New("broken")
	r := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), readerFunc(func([]byte) (int, error) { return 0, broken }))
	if err := c.Upload(t.Context(), dir+"/file", 0, r); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{}, 1000)
	go func() { <-started; cancel() }()
	err := c.Upload(ctx, dir+"/file", 0, readerFunc(func(p []byte) (int, error) {
		select {
		case started <- struct{}{}:
		default:
		}
		return len(p), nil
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got, _ := os.ReadFile(dir + "/file"); string(got) != "before" {
		t.Errorf("the file became %q", got)
	}
	waitFor(t, "the temporary files' end", func() bool {
		names, _ := filepath.Glob(dir + "/.matchlock-*")
		return len(names) == 0
	})
}

func TestReadFile(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	large := make([]byte, 3<<20+17)
	rand.Read(large)
	os.WriteFile(dir+"/large", large, 0o600)
	os.WriteFile(dir+"/chunk", large[:chunk], 0o600)
	os.WriteFile(dir+"/empty", nil, 0o600)
	os.Symlink("large", dir+"/link")
	for name, want := range map[string][]byte{"large": large, "chunk": large[:chunk], "empty": nil, "link": large} {
		got, err := c.ReadFile(t.Context(), dir+"/"+name)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
	}
	// A file that does not say how much it holds.
	if got, err := c.ReadFile(t.Context(), "/proc/self/cmdline"); err != nil || !bytes.HasSuffix(got, []byte{0}) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestReadFileRefused(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	syscall.Mkfifo(dir+"/fifo", 0o644)
	os.Symlink("loop", dir+"/loop")
	os.Symlink("fifo", dir+"/link")
	sparse, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	sparse.Truncate(MaxReadFile + 1)
	sparse.Close()
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	if err := unix.Bind(socket, &unix.SockaddrUnix{Name: dir + "/socket"}); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		path string
		is   error
		want string
	}{
		"missing":  {dir + "/missing", fs.ErrNotExist, "no such file"},
		"folder":   {dir, nil, "is a directory"},
		"fifo":     {dir + "/fifo", nil, "not a regular file"},
		"link":     {dir + "/link", nil, "not a regular file"},
		"socket":   {dir + "/socket", nil, "not a regular file"},
		"device":   {"/dev/zero", nil, "not a regular file"},
		"loop":     {dir + "/loop", nil, "too many levels"},
		"large":    {dir + "/sparse", ErrTooLarge, "too large"},
		"relative": {"etc/passwd", nil, "not absolute"},
		"endless":  {"/proc/self/pagemap", ErrTooLarge, "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.ReadFile(t.Context(), test.path)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %d bytes, %v; want %q", len(got), err, test.want)
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v is not %v", err, test.is)
			}
		})
	}
}

func TestLargeFileBothWays(t *testing.T) {
	c := newPair(t)
	path := t.TempDir() + "/large"
	const size = 100 << 20
	want := io.LimitReader(newPattern(), size)
	if err := c.Upload(t.Context(), path, 0, want); err != nil {
		t.Fatal(err)
	}
	check := &compare{want: newPattern()}
	info, err := c.Download(t.Context(), path, check)
	if err != nil || info.Size != size || check.size != size {
		t.Errorf("got %v, %d bytes, %v", info, check.size, err)
	}
}

// A pattern is an endless reader of bytes that depend on their place.
type pattern struct{ n uint32 }

func newPattern() *pattern { return new(pattern) }

func (r *pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.n ^ r.n>>8 ^ r.n>>16)
		r.n++
	}
	return len(p), nil
}

// compare is a writer that wants what a reader holds.
type compare struct {
	want io.Reader
	size int64
	buf  []byte
}

func (c *compare) Write(p []byte) (int, error) {
	c.buf = slices.Grow(c.buf[:0], len(p))[:len(p)]
	io.ReadFull(c.want, c.buf)
	if !bytes.Equal(p, c.buf) {
		return 0, fmt.Errorf("different in the %d bytes after %d", len(p), c.size)
	}
	c.size += int64(len(p))
	return len(p), nil
}

func TestStat(t *testing.T) {
	c := newPair(t)
	path := t.TempDir() + "/file"
	os.WriteFile(path, []byte("12345"), 0o640)
	when := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	os.Chtimes(path, when, when)
	info, err := c.Stat(t.Context(), path)
	if err != nil || info.Name != "file" || info.Size != 5 || info.Mode != 0o100640 || info.IsDir || !info.ModTime.Equal(when) {
		t.Errorf("got %+v, %v", info, err)
	}
	if info, err = c.Stat(t.Context(), "/"); err != nil || !info.IsDir || info.Name != "/" {
		t.Errorf("got %+v, %v", info, err)
	}
	if _, err := c.Stat(t.Context(), path+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestLstat(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	os.Symlink("nowhere", dir+"/link")
	if info, err := c.Lstat(t.Context(), dir+"/link"); err != nil || info.Mode&modeType != unix.S_IFLNK || info.Name != "link" {
		t.Errorf("got %+v, %v", info, err)
	}
	if _, err := c.Stat(t.Context(), dir+"/link"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestMkdirAll(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	for range 2 { // the second time it is there
		if err := c.MkdirAll(t.Context(), dir+"/a/b", 0o750); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(dir + "/a/b"); err != nil || info.Mode() != fs.ModeDir|0o750 {
		t.Errorf("got %v, %v", info, err)
	}
	os.WriteFile(dir+"/file", nil, 0o600)
	for path, want := range map[string]string{dir + "/file": "not a directory", dir + "/file/x": "not a directory", "a": "not absolute"} {
		if err := c.MkdirAll(t.Context(), path, 0o755); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestRemove(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	os.MkdirAll(dir+"/target/sub", 0o755)
	os.MkdirAll(dir+"/a/b", 0o755)
	os.WriteFile(dir+"/a/b/file", nil, 0o600)
	os.Symlink("../../target", dir+"/a/b/link")
	os.Symlink("target", dir+"/link")
	if err := c.Remove(t.Context(), dir+"/a", false); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a full folder: %v", err)
	}
	if err := c.Remove(t.Context(), dir+"/nothing", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	for _, root := range []string{"/", "/..", "//tmp/..", "/."} {
		if err := c.Remove(t.Context(), root, true); err == nil || !strings.Contains(err.Error(), "is the root") {
			t.Fatalf("%s: %v", root, err)
		}
	}
	for _, name := range []string{"a", "link", "nothing"} {
		if err := c.Remove(t.Context(), dir+"/"+name, true); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(dir + "/" + name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if err := c.Remove(t.Context(), dir+"/target/sub", false); err != nil {
		t.Errorf("where the links led: %v", err)
	}
}

func TestListFiles(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	if files, err := c.ListFiles(t.Context(), dir); err != nil || files == nil || len(files) != 0 {
		t.Errorf("empty folder: %v, %v", files, err)
	}
	os.Mkdir(dir+"/folder", 0o700)
	os.WriteFile(dir+"/file", []byte("123"), 0o600)
	os.Symlink("nowhere", dir+"/link")
	syscall.Mkfifo(dir+"/fifo", 0o600)
	os.WriteFile(dir+"/\xff not UTF-8\n", nil, 0o600)
	files, err := c.ListFiles(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, fmt.Sprintf("%q %o %v", f.Name, f.Mode&modeType, f.IsDir))
	}
	want := []string{`"fifo" 10000 false`, `"file" 100000 false`, `"folder" 40000 true`, `"link" 120000 false`, `"\xff not UTF-8\n" 100000 false`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for path, want := range map[string]string{dir + "/file": "not a directory", dir + "/fifo": "not a directory", dir + "/none": "no such file", "etc": "not absolute"} {
		if _, err := c.ListFiles(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestLargeFolder(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	const count = 3000
	for i := range count {
		if err := os.WriteFile(fmt.Sprintf("%s/%s%05d", dir, strings.Repeat("n", 100), i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := c.ListFiles(t.Context(), dir)
	if err != nil || len(files) != count || !strings.HasSuffix(files[count-1].Name, fmt.Sprintf("%05d", count-1)) {
		t.Errorf("%d files, %v", len(files), err)
	}
}

package sandbox

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

var _ interface {
	fs.ReadDirFS
	fs.ReadFileFS
	fs.ReadLinkFS
	fs.StatFS
} = (*FS)(nil)

// newTestFS returns the files of this host as those of a guest.
func newTestFS(t testing.TB) *FS {
	a, b := net.Pipe()
	server := agent.NewServer(agent.HostStarter{}, nil)
	served := make(chan struct{})
	go func() {
		defer close(served)
		mux, err := wire.NewGuestMux(t.Context(), b, 1)
		if err != nil {
			t.Error(err)
			return
		}
		server.Serve(mux)
		mux.Close()
	}()
	host, err := wire.NewHostMux(t.Context(), a, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		host.Close()
		<-served
		server.Close()
	})
	return newFS(t.Context(), agent.NewClient(host.Dial))
}

// ioName is the name that an absolute path has in package io/fs.
func ioName(p string) string { return strings.TrimPrefix(p, "/") }

func must(t testing.TB, steps ...error) {
	t.Helper()
	for _, err := range steps {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// sub is a folder of the guest as a file system.
func sub(t *testing.T, fsys *FS, dir string) fs.FS {
	t.Helper()
	s, err := fs.Sub(fsys, ioName(dir))
	must(t, err)
	return s
}

func TestFS(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	must(t,
		os.MkdirAll(dir+"/folder/deep", 0o755),
		os.Mkdir(dir+"/empty", 0o700),
		os.WriteFile(dir+"/file", []byte("content"), 0o640),
		os.WriteFile(dir+"/nothing", nil, 0o600),
		os.WriteFile(dir+"/folder/deep/ümläut and\nmore", []byte("x"), 0o600),
		os.WriteFile(dir+"/large", make([]byte, 300_000), 0o600),
		os.Symlink("../file", dir+"/folder/link"),
		os.Symlink(dir+"/folder", dir+"/absolute"),
	)
	err := fstest.TestFS(sub(t, fsys, dir), "file", "nothing", "empty", "large", "absolute", "folder/deep/ümläut and\nmore", "folder/link")
	if err != nil {
		t.Error(err)
	}
	info, err := fsys.Stat(".")
	if err != nil || info.Name() != "." || !info.IsDir() {
		t.Errorf("the root: %v, %v", info, err)
	}
}

func TestFSLinks(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	must(t, os.Symlink("nowhere", dir+"/dangling"), os.Symlink("loop", dir+"/loop"), os.WriteFile(dir+"/file", nil, 0o600))
	in := ioName(dir)
	if target, err := fsys.ReadLink(in + "/dangling"); err != nil || target != "nowhere" {
		t.Errorf("ReadLink = %q, %v", target, err)
	}
	if _, err := fsys.ReadLink(in + "/file"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadLink of a file: %v", err)
	}
	if info, err := fsys.Lstat(in + "/loop"); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("Lstat = %v, %v", info, err)
	}
	if _, err := fsys.Stat(in + "/dangling"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
	if _, err := fsys.Open(in + "/loop"); err == nil || !strings.Contains(err.Error(), "too many levels") {
		t.Errorf("Open: %v", err)
	}
}

func TestFSErrors(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	in := ioName(dir)
	must(t,
		os.WriteFile(dir+"/file", nil, 0o600),
		syscall.Mkfifo(dir+"/fifo", 0o600),
		os.WriteFile(dir+"/large", nil, 0o600),
		os.Truncate(dir+"/large", agent.MaxReadFile+1),
	)
	read := func(name string) error { _, err := fsys.ReadFile(name); return err }
	list := func(name string) error { _, err := fsys.ReadDir(name); return err }
	write := func(name string) error { return fsys.WriteFile(name, nil, 0) }
	make := func(name string) error { return fsys.MkdirAll(name, 0o755) }
	for name, test := range map[string]struct {
		call func(string) error
		name string
		want error  // either,
		text string // or
	}{
		"nothing":            {read, in + "/none", fs.ErrNotExist, ""},
		"no folder":          {list, in + "/none", fs.ErrNotExist, ""},
		"nothing to remove":  {fsys.Remove, in + "/none", fs.ErrNotExist, ""},
		"absolute":           {read, dir + "/file", fs.ErrInvalid, ""},
		"empty":              {list, "", fs.ErrInvalid, ""},
		"dots":               {write, in + "/../file", fs.ErrInvalid, ""},
		"dots of a folder":   {make, "..", fs.ErrInvalid, ""},
		"removed with dots":  {fsys.RemoveAll, in + "/.", fs.ErrInvalid, ""},
		"a fifo":             {read, in + "/fifo", nil, "not a regular file"},
		"too large":          {read, in + "/large", vm.ErrTooLarge, ""},
		"no folder to list":  {list, in + "/file", nil, "not a directory"},
		"below a file":       {write, in + "/file/x", nil, "not a directory"},
		"folder below it":    {make, in + "/file/x", nil, "not a directory"},
		"a folder to write":  {write, in, nil, "is a directory"},
		"root to be removed": {fsys.RemoveAll, ".", nil, "is the root"},
		"full folder":        {fsys.Remove, in, nil, "not empty"},
	} {
		err := test.call(test.name)
		e, ok := err.(*fs.PathError)
		switch {
		case !ok || e.Path != test.name:
			t.Errorf("%s: %v is no PathError with the name asked for", name, err)
		case test.want != nil && !errors.Is(err, test.want):
			t.Errorf("%s: %v is not %v", name, err, test.want)
		case !strings.Contains(err.Error(), test.text):
			t.Errorf("%s: %v, want %q", name, err, test.text)
		}
	}
}

func TestFSChanges(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	in := ioName(dir)
	must(t,
		fsys.MkdirAll(in+"/a/b", 0o750),
		fsys.WriteFile(in+"/a/b/tool", []byte("content"), 0o755|fs.ModeSetuid),
		fsys.WriteFile(in+"/new/file", nil, 0),
	)
	for name, want := range map[string]fs.FileMode{"a/b": fs.ModeDir | 0o750, "a/b/tool": fs.ModeSetuid | 0o755, "new": fs.ModeDir | 0o755, "new/file": 0o644} {
		if info, err := os.Stat(dir + "/" + name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, info, err, want)
		}
	}
	if content, err := fsys.ReadFile(in + "/a/b/tool"); err != nil || string(content) != "content" {
		t.Errorf("got %q, %v", content, err)
	}
	must(t, fsys.Remove(in+"/new/file"), fsys.RemoveAll(in+"/a"), fsys.RemoveAll(in+"/a"))
	if left, err := fsys.ReadDir(in); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A file arrives as it is read; who closes it waits for no more of it.
func TestFSStreams(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	must(t, os.WriteFile(dir+"/huge", []byte("start"), 0o600), os.Truncate(dir+"/huge", 1<<40))
	huge, err := fsys.Open(ioName(dir) + "/huge")
	must(t, err)
	start := make([]byte, 5)
	if _, err := io.ReadFull(huge, start); err != nil || string(start) != "start" {
		t.Errorf("got %q, %v", start, err)
	}
	must(t, huge.Close(), huge.Close())
	if _, err := huge.Read(start); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	unread, err := fsys.Open(ioName(dir) + "/huge")
	must(t, err)
	must(t, unread.Close())
	if _, err := unread.Read(start); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	must(t, os.Remove(dir+"/huge"))
	must(t, syscall.Mkfifo(dir+"/fifo", 0o600))
	fifo, err := fsys.Open(ioName(dir) + "/fifo")
	must(t, err)
	defer fifo.Close()
	if _, err := fifo.Read(start); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a fifo: %v", err)
	}
}

// A silent guest does not keep who closes a file.
func TestFSSilentGuest(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	asked := make(chan struct{})
	go func() {
		wire.NewFrameReader(b).Next(wire.MaxRequest)
		close(asked)
	}()
	fsys := newFS(t.Context(), agent.NewClient(func(context.Context, uint32) (net.Conn, error) { return a, nil }))
	file := &openFile{fsys: fsys, name: "file"}
	file.ctx, file.cancel = context.WithCancel(t.Context())
	file.content, file.arriving = io.Pipe()
	read := make(chan error)
	go func() { _, err := file.Read(make([]byte, 1)); read <- err }()
	<-asked
	must(t, file.Close())
	if err := <-read; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read = %v", err)
	}
}

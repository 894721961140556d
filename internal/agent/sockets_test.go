//go:build linux

package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// take takes the next connection to a socket, as the host does.
func (c *pair) take(t *testing.T, number int) <-chan *wire.Stream {
	t.Helper()
	taken := make(chan *wire.Stream, 1)
	go func() {
		defer close(taken)
		if conn, err := c.host.Dial(t.Context(), wire.PortSocket+uint32(number)); err == nil {
			taken <- conn.(*wire.Stream)
		}
	}()
	return taken
}

// connect connects to a socket as a program of the guest does.
func connect(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UnixConn)
}

func (c *pair) listen(t *testing.T, paths ...string) {
	t.Helper()
	if err := c.server.Listen(paths); err != nil {
		t.Fatal(err)
	}
}

func TestSocket(t *testing.T) {
	c := newPair(t)
	one, two := t.TempDir()+"/a/b/one", t.TempDir()+"/two"
	c.listen(t, one, two)
	first, second := c.take(t, 0), c.take(t, 1)
	for i, path := range []string{two, one} { // not in their order
		program, host := connect(t, path), <-[]<-chan *wire.Stream{second, first}[i]
		large := strings.Repeat(path, 100_000) // more than is held on the way
		go func() {
			io.WriteString(program, large)
			program.CloseWrite()
		}()
		if got, err := io.ReadAll(host); err != nil || string(got) != large {
			t.Errorf("the host got %d bytes, %v", len(got), err)
		}
		go func() {
			io.WriteString(host, "answer "+large)
			host.CloseWrite()
		}()
		if got, err := io.ReadAll(program); err != nil || string(got) != "answer "+large {
			t.Errorf("the program got %d bytes, %v", len(got), err)
		}
		host.Close()
	}
	for _, number := range []uint32{2, api.MaxSockets - 1, api.MaxSockets} {
		if conn, err := c.host.Dial(t.Context(), wire.PortSocket+number); !errors.Is(err, wire.ErrRefused) {
			t.Errorf("socket %d: %v, %v; want a refusal", number, conn, err)
		}
	}
}

// The host's end is heard of, and so is the program's.
func TestSocketEnds(t *testing.T) {
	c := newPair(t)
	path := t.TempDir() + "/s"
	c.listen(t, path)
	taken := c.take(t, 0)
	program := connect(t, path)
	(<-taken).Reset()
	if n, err := io.Copy(io.Discard, program); n > 0 {
		t.Errorf("after a reset the program got %d bytes, %v", n, err)
	}

	taken = c.take(t, 0)
	program = connect(t, path)
	host := <-taken
	io.WriteString(program, "x")
	if _, err := io.ReadFull(host, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(host, "never read")
	waitFor(t, "what is never read", func() bool { return unread(t, program) > 0 })
	program.Close()
	if _, err := io.ReadAll(host); !errors.Is(err, wire.ErrReset) {
		t.Errorf("of a program that did not read all the host has %v, want ErrReset", err)
	}
	host.Close()
}

// unread is how many bytes wait to be read.
func unread(t *testing.T, conn *net.UnixConn) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A copy of a machine has another host: what was waited for by the one before is the
// next one's.
func TestSocketAnotherHost(t *testing.T) {
	path := t.TempDir() + "/s"
	server := NewServer(HostStarter{}, nil)
	defer server.Close()
	if err := server.Listen([]string{path}); err != nil {
		t.Fatal(err)
	}
	session := func() (*pair, func()) {
		a, b := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			mux := wire.AwaitHost(b, 0)
			server.Serve(mux)
			mux.Close()
		}()
		host, err := wire.NewHostMux(t.Context(), a, 0)
		if err != nil {
			t.Fatal(err)
		}
		return &pair{nil, host, server}, func() { host.Close(); <-served }
	}
	former, cut := session()
	waiting := [2]<-chan *wire.Stream{former.take(t, 0), former.take(t, 0)}
	program := connect(t, path)
	var host *wire.Stream // of that connection; the other stream still waits
	select {
	case host = <-waiting[0]:
	case host = <-waiting[1]:
	}
	defer host.Close()
	cut()
	if got, err := io.ReadAll(program); len(got) > 0 {
		t.Errorf("of a connection that was cut the program got %q, %v", got, err)
	}
	next, end := session()
	defer end()
	taken := next.take(t, 0)
	program = connect(t, path)
	go io.WriteString(program, "hello")
	conn := <-taken
	if conn == nil {
		t.Fatal("the next host gets no connection")
	}
	defer conn.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Errorf("the next host got %q, %v", got, err)
	}
}

// What the guest listens at is what the host says last.
func TestSocketListen(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	a, b, other := dir+"/a", dir+"/b", dir+"/c"
	c.listen(t, a, b)
	waits := connect(t, b) // before anybody takes it
	c.listen(t, other, b)
	if conn, err := net.Dial("unix", a); err == nil {
		conn.Close()
		t.Error("what is not listed any more is listened at")
	}
	if host := <-c.take(t, 1); host == nil {
		t.Error("a connection was lost")
	} else {
		host.Close()
	}
	io.ReadAll(waits)
	taken := c.take(t, 0)
	connect(t, other)
	if host := <-taken; host == nil {
		t.Error("a further socket gets no connection")
	} else {
		host.Close()
	}
	c.listen(t)
	if conn, err := c.host.Dial(t.Context(), wire.PortSocket); !errors.Is(err, wire.ErrRefused) {
		t.Errorf("a socket that there is not: %v, %v; want a refusal", conn, err)
	}
	if err := c.server.Listen(slices.Repeat([]string{a}, api.MaxSockets+1)); err == nil {
		t.Error("there is no limit")
	}
}

// An image may have anything where a socket is to be.
func TestSocketPlaces(t *testing.T) {
	open, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	magic := fmt.Sprintf("/proc/self/fd/%d", open.Fd())
	write := func(path string) error { return os.WriteFile(path, []byte("content"), 0o600) }
	for name, test := range map[string]struct {
		lay  func(dir string) error
		path string
		want string // "": the socket is made
	}{
		"nothing":    {func(string) error { return nil }, "s", ""},
		"no folders": {func(string) error { return nil }, "a/b/c/s", ""},
		"dots":       {func(string) error { return nil }, "a/../s", ""},
		"linked folder": {func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/real", 0o755), os.Symlink(dir+"/real", dir+"/a"))
		}, "a/b/s", ""},
		"former run":           {leaveSocket, "s", ""},
		"file":                 {func(dir string) error { return write(dir + "/s") }, "s", "file exists"},
		"folder":               {func(dir string) error { return os.Mkdir(dir+"/s", 0o755) }, "s", "file exists"},
		"link to a file":       {func(dir string) error { return errors.Join(write(dir+"/f"), os.Symlink("f", dir+"/s")) }, "s", "file exists"},
		"link to nothing":      {func(dir string) error { return os.Symlink("nothing", dir+"/s") }, "s", "file exists"},
		"file for a folder":    {func(dir string) error { return write(dir + "/a") }, "a/s", "not a directory"},
		"folder of nothing":    {func(dir string) error { return os.Symlink("nothing", dir+"/a") }, "a/s", "file exists"},
		"folder of a loop":     {func(dir string) error { return os.Symlink("a", dir+"/a") }, "a/s", "too many levels"},
		"open file of PID 1":   {func(dir string) error { return os.Symlink(magic, dir+"/a") }, "a/s", "too many levels"},
		"below such a file":    {func(dir string) error { return os.Symlink(magic, dir+"/a") }, "a/b/s", "too many levels"},
		"too long for address": {func(string) error { return nil }, strings.Repeat("x", 108), "invalid argument"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "s") // an address is short
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := test.lay(dir); err != nil {
				t.Fatal(err)
			}
			before := tree(t, dir)
			server := NewServer(HostStarter{}, nil)
			defer server.Close()
			err = server.Listen([]string{dir + "/" + test.path})
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if after := tree(t, dir); after != before {
					t.Errorf("there was\n%sand is\n%s", before, after)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(filepath.Join(dir, test.path))
			if err != nil || info.Mode() != os.ModeSocket|0o666 {
				t.Errorf("there is %v, %v", info, err)
			}
			connect(t, filepath.Join(dir, test.path))
		})
	}
	if names, err := open.Readdirnames(-1); len(names) > 0 {
		t.Errorf("by a link of the kernel's %q was made (%v)", names, err)
	}
	if err := new(Server).Listen([]string{"relative"}); err == nil {
		t.Error("a relative path is none")
	}
}

// leaveSocket leaves a socket that nobody listens at.
func leaveSocket(dir string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// tree lists what is below a folder.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target, _ := os.Readlink(path) // of what is none: ""
		content, _ := os.ReadFile(path)
		fmt.Fprintln(&b, path, d.Type(), target, string(content))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

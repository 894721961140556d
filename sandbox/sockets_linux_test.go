package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// socketServer is a program of this host that serves each connection by answer. It is
// gone with the test, or when stop is called.
func socketServer(t *testing.T, path string, answer func(*net.UnixConn)) (stop func()) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				answer(conn)
			})
		}
	})
	stop = sync.OnceFunc(func() { l.Close(); serving.Wait() })
	t.Cleanup(stop)
	return stop
}

// upper answers what it was sent in capitals, when all of it is there.
func upper(conn *net.UnixConn) {
	text, err := io.ReadAll(conn)
	if err == nil {
		io.WriteString(conn, strings.ToUpper(string(text)))
	}
}

// say is what a program in the guest, which for once is this process, says and hears.
func say(t *testing.T, path, text string) (string, error) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(conn, text)
	conn.(*net.UnixConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

// flows waits for n events of connections.
func (o Options) flows(t *testing.T, ref string, n int) (flows []api.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	enough := errors.New("enough")
	err := o.Events(ctx, ref, EventQuery{Follow: true, Kinds: []api.EventKind{api.EventFlow}}, func(e api.Event) error {
		if flows = append(flows, e); len(flows) == n {
			return enough
		}
		return nil
	})
	if err != enough {
		t.Fatalf("%d events, want %d: %v", len(flows), n, err)
	}
	return flows
}

func TestSockets(t *testing.T) {
	for _, network := range []api.Network{{}, {None: true}} {
		t.Run(fmt.Sprint("none ", network.None), func(t *testing.T) {
			o, dir := house(t), t.TempDir()
			t.Chdir(dir)
			// On the host the path may be longer than an address.
			long := strings.Repeat("d/", 60)
			if err := os.MkdirAll(long, 0o700); err != nil {
				t.Fatal(err)
			}
			socketServer(t, "x", upper)
			if err := os.Rename("x", long+"host"); err != nil {
				t.Fatal(err)
			}
			config := api.Config{Network: network, Sockets: []api.Socket{{Host: long + "host", Guest: dir + "/run/guest"}}}
			sb := o.run(t, "web", config)
			t.Chdir("/") // the path was made whole
			large := strings.Repeat("large ", 100_000)
			for _, text := range []string{"hello", "", large} {
				if got, err := say(t, dir+"/run/guest", text); err != nil || got != strings.ToUpper(text) {
					t.Errorf("to %d bytes the answer has %d, %v", len(text), len(got), err)
				}
			}
			flows := o.flows(t, "web", 3)
			slices.SortFunc(flows, func(a, b api.Event) int { return int(a.Sent - b.Sent) })
			last := flows[2]
			if last.Kind != api.EventFlow || last.Protocol != "unix" || last.Verdict != api.Allowed || last.Name != dir+"/run/guest" ||
				last.Address != filepath.Join(dir, long, "host") || last.Sent != int64(len(large)) || last.Received != last.Sent || last.Millis <= 0 {
				t.Errorf("the event is %+v", last)
			}
			// Who attaches has commands and ports, and takes no connections.
			if conn, err := o.attach(t, "web").keeper.dial(t.Context(), wire.PortSocket); err == nil {
				conn.Close()
				t.Error("another process takes connections to sockets")
			}
			if i, err := o.Inspect(t.Context(), "web"); err != nil || len(i.Config.Sockets) != 1 || i.Config.Sockets[0].Guest != dir+"/run/guest" {
				t.Errorf("inspect shows %+v, %v", i.Config.Sockets, err)
			}

			// It is there again after a stop and a start.
			if err := sb.Close(); err != nil {
				t.Fatal(err)
			}
			if conn, err := net.Dial("unix", dir+"/run/guest"); err == nil {
				conn.Close()
				t.Error("a sandbox that has ended listens")
			}
			again, err := o.Start(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if got, err := say(t, dir+"/run/guest", "again"); err != nil || got != "AGAIN" {
				t.Errorf("started again: %q, %v", got, err)
			}
		})
	}
}

// What is not there is told of before anything boots, and nothing is left.
func TestSocketMissing(t *testing.T) {
	o, dir := house(t), t.TempDir()
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socketServer(t, dir+"/socket", upper)
	for name, test := range map[string]struct{ host, guest, want string }{
		"missing":        {"missing", "guest", `/missing": no such file or directory`},
		"a file":         {"file", "guest", `/file": not a unix socket`},
		"a folder":       {".", "guest", `": not a unix socket`},
		"guest has one":  {"socket", "file", `/file": file exists`},
		"guest's is odd": {"socket", "file/x", `/file/x": not a directory`},
	} {
		_, err := o.New(t.Context(), api.Config{Image: "busybox", DiskSize: 64 << 20, Sockets: []api.Socket{{Host: dir + "/" + test.host, Guest: dir + "/" + test.guest}}})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if list, err := o.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("there is %v, %v", list, err)
	}
}

// A program of the host that ends cuts its connections; one that is there again is
// reached again.
func TestSocketVanishes(t *testing.T) {
	o, dir := house(t), t.TempDir()
	host, guest := dir+"/host", dir+"/guest"
	stop := socketServer(t, host, func(conn *net.UnixConn) { // answers half
		io.WriteString(conn, "half")
		conn.Read(make([]byte, 4))
	})
	o.run(t, "web", api.Config{Sockets: []api.Socket{{Host: host, Guest: guest}}})
	conn, err := net.Dial("unix", guest)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	half := make([]byte, 4)
	if _, err := io.ReadFull(conn, half); err != nil || string(half) != "half" {
		t.Fatalf("got %q, %v", half, err)
	}
	io.WriteString(conn, "next")
	if rest, err := io.ReadAll(conn); len(rest) > 0 {
		t.Errorf("after that there is %q, %v", rest, err)
	}
	conn.Close()
	stop()
	if got, err := say(t, guest, "anybody?"); got != "" {
		t.Errorf("nobody answers %q, %v", got, err)
	}
	if flows := o.flows(t, "web", 2); !slices.ContainsFunc(flows, func(e api.Event) bool {
		return e.Verdict == api.Failed && strings.Contains(e.Reason, "no such file")
	}) {
		t.Errorf("the events are %+v", flows)
	}
	socketServer(t, host, upper)
	if got, err := say(t, guest, "back?"); err != nil || got != "BACK?" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A guest that connects as often as it can, and never reads, has so many connections
// and no more; they go with the sandbox, and until then the host serves others.
func TestSocketFlood(t *testing.T) {
	o, dir := house(t), t.TempDir()
	flooded, other := api.Socket{Host: dir + "/a", Guest: dir + "/ga"}, api.Socket{Host: dir + "/b", Guest: dir + "/gb"}
	var served atomic.Int32
	full, isFull := context.WithCancel(t.Context())
	socketServer(t, flooded.Host, func(conn *net.UnixConn) {
		if served.Add(1) == maxSocketConns {
			isFull()
		}
		endless := make([]byte, 1<<20)
		for { // the guest never reads
			if _, err := conn.Write(endless); err != nil {
				return
			}
		}
	})
	socketServer(t, other.Host, upper)
	sb := o.run(t, "web", api.Config{Sockets: []api.Socket{flooded, other}})
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			conn.Close()
		}
	}()
	for range maxSocketConns + 20 { // the last of them wait
		conn, err := dialSocket(t.Context(), flooded.Guest)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	select {
	case <-full.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("not all are served")
	}
	if got, err := say(t, other.Guest, "other"); err != nil || got != "OTHER" {
		t.Errorf("another socket answers %q, %v", got, err)
	}
	if n := served.Load(); n != maxSocketConns {
		t.Errorf("%d connections at once, want %d", n, maxSocketConns)
	}
	// One that ends makes room for one that waits.
	conns[0].Close()
	waits := conns[len(conns)-20]
	waits.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := waits.Read(make([]byte, 1)); err != nil {
		t.Errorf("one that waited: %v", err)
	}
	if err := sb.Close(); err != nil {
		t.Error(err)
	}
}

// A server whose queue is full is waited for.
func TestSocketBusy(t *testing.T) {
	path := t.TempDir() + "/s"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { syscall.Listen(int(fd), 1) }) // a queue of one
	}
	if err != nil {
		t.Fatal(err)
	}
	var waiting []net.Conn
	for range 2 { // one more than the queue is long
		conn, err := dialSocket(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, conn)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if conn, err := dialSocket(ctx, path); err == nil {
		conn.Close()
		t.Fatal("the queue is not full")
	}
	done := make(chan error)
	go func() {
		conn, err := dialSocket(t.Context(), path)
		if err == nil {
			conn.Close()
		}
		done <- err
	}()
	if conn, err := l.Accept(); err == nil {
		conn.Close()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, conn := range waiting {
		conn.Close()
	}
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/wire"
)

// Connections to sockets of this host at once: to one, and of a sandbox. Each takes a
// file of the guest's first process, which has 1024. Further ones wait in the guest.
const (
	maxSocketConns = 128
	maxAllSockets  = 512
)

// socketDialTime is how long a program of this host may take to accept a connection.
const socketDialTime = 10 * time.Second

// checkSockets makes sure that there is a socket wherever the guest is to reach one.
func checkSockets(sockets []api.Socket) error {
	var errs []error
	for _, k := range sockets {
		info, err := os.Stat(k.Host)
		if err == nil && info.Mode().Type() != fs.ModeSocket {
			err = errors.New("not a unix socket")
		}
		if err != nil {
			errs = append(errs, &hintError{fmt.Errorf("socket %q: %w", k.Host, pathless(err)), "what --socket and --ssh-agent lead to must be there whenever the sandbox starts"})
		}
	}
	return errors.Join(errs...)
}

// guestSockets are the sockets' paths in the guest.
func guestSockets(sockets []api.Socket) []string {
	var paths []string
	for _, k := range sockets {
		paths = append(paths, k.Guest)
	}
	return paths
}

// forwardSockets leads connections to the guest's sockets to those of this host. The
// guest can ask for none: for each socket there is a stream that we have opened and
// that the next connection is taken by.
func (s *supervisor) forwardSockets() {
	if len(s.config.Sockets) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(s.life)
	var ended sync.WaitGroup
	s.unwind.push(func() error {
		cancel()
		ended.Wait()
		return nil
	})
	room := min(maxSocketConns, maxAllSockets/len(s.config.Sockets))
	for i, k := range s.config.Sockets {
		accept := func() (net.Conn, error) { return s.machine.Dial(ctx, wire.PortSocket+uint32(i)) }
		ended.Go(func() {
			serveEach(ctx, room, accept, func(conn net.Conn) { s.events.add(passToSocket(ctx, k, conn)) })
		})
	}
}

// passToSocket passes a connection of the guest on to a socket of this host, and
// tells what became of it.
func passToSocket(ctx context.Context, k api.Socket, guest net.Conn) api.Event {
	e := api.Event{Time: time.Now(), Kind: api.EventFlow, Name: k.Guest, Address: k.Host, Protocol: "unix", Verdict: api.Allowed}
	conn, err := dialSocket(ctx, k.Host)
	if err != nil {
		wire.Reset(guest)
		e.Verdict, e.Reason = api.Failed, err.Error()
	} else {
		counted := &countedConn{UnixConn: conn}
		join(ctx, guest, counted)
		e.Sent, e.Received = counted.written.Load(), counted.read.Load()
	}
	e.Millis = float64(time.Since(e.Time).Microseconds()) / 1000
	return e
}

// dialSocket connects to a socket of this host. Where as many connections wait as may,
// connect(2) of a socket that does not block would rather fail than wait.
func dialSocket(ctx context.Context, path string) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, socketDialTime)
	defer cancel()
	for {
		conn, err := hostfs.Dial(ctx, path)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// countedConn counts the bytes that pass.
type countedConn struct {
	*net.UnixConn
	read, written atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.UnixConn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.UnixConn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

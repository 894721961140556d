package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// The hybrid vsock protocol, as Firecracker and Cloud Hypervisor have it: on a
// unix stream the caller names a guest port in a line, and after the answering
// line the stream is the guest's.
const (
	vsockLineMax     = 64
	vsockLineTimeout = 10 * time.Second
	dialTimeout      = 10 * time.Second // a guest may never accept
)

// firstUserPort is the lowest port that callers may dial: those below are the
// agent's own.
const firstUserPort = 1024

// DialVsock implements vm.VsockDialer.
func (m *Machine) DialVsock(port uint32) (net.Conn, error) {
	if port < firstUserPort {
		return nil, fmt.Errorf("vsock port %d: reserved; a program on the guest's TCP port N is at %d+N", port, wire.PortForward)
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := ask(ctx, m, func(ctx context.Context) (net.Conn, error) { return m.hv.DialVsock(ctx, port) })
	if err != nil {
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	return conn, nil
}

// VsockFD implements vm.Machine.
func (m *Machine) VsockFD() (int, error) {
	if m.life.Err() != nil || !m.running.Load() {
		return -1, m.notRunning()
	}
	ours, fd, err := socketPair()
	if err != nil {
		return -1, err
	}
	m.serving.Go(func() { m.serveVsock(ours) })
	return fd, nil
}

// NetworkFD implements vm.Machine.
func (m *Machine) NetworkFD() (int, error) {
	if m.link == nil {
		return -1, errors.New("network: the machine has no link of its own")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return -1, m.notRunning()
	}
	return duplicate(m.link)
}

// listenVsock serves VMConfig.VsockPath, when there is one.
func (m *Machine) listenVsock() error {
	if m.config.VsockPath == "" {
		return nil
	}
	listener, err := ListenPrivate(m.config.VsockPath)
	if err != nil {
		return fmt.Errorf("vsock socket: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.Join(m.notRunning(), listener.Close())
	}
	m.sockets = append(m.sockets, listener)
	m.serving.Go(func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return // closed with the machine
			}
			if uid, err := peerUID(conn); err != nil || uid != os.Getuid() {
				conn.Close()
				continue
			}
			m.serving.Go(func() { m.serveVsock(conn) })
		}
	})
	return nil
}

// serveVsock speaks the hybrid protocol on conn, which it closes.
func (m *Machine) serveVsock(conn *net.UnixConn) {
	defer conn.Close()
	detach := context.AfterFunc(m.life, func() { conn.Close() })
	defer detach()
	conn.SetDeadline(time.Now().Add(vsockLineTimeout))
	in := bufio.NewReaderSize(conn, vsockLineMax)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return
	}
	port, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "CONNECT ")
	if !ok {
		return
	}
	number, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return
	}
	guest, err := m.DialVsock(uint32(number))
	if err != nil {
		return // the protocol's only refusal is the end of the stream
	}
	defer guest.Close()
	conn.SetDeadline(time.Time{})
	if _, err := fmt.Fprintf(conn, "OK %d\n", number); err != nil {
		return
	}
	relay(conn, in, guest)
}

// relay copies both ways, passing on each half's end by itself, until both are
// over or one fails.
func relay(host *net.UnixConn, hostIn io.Reader, guest net.Conn) {
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := io.Copy(guest, hostIn); err != nil {
			host.Close()
		}
		closeWrite(guest)
	})
	both.Go(func() {
		if _, err := io.Copy(host, guest); err != nil {
			guest.Close()
		}
		host.CloseWrite()
	})
	both.Wait()
}

func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	conn.Close()
}

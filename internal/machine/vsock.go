package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/matchlock/matchlock/internal/hostfs"
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
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	dial := m.Dial
	switch {
	case port == wire.PortFiles && m.config.Workspace != "":
		dial = m.hv.DialVsock
	case port < firstUserPort:
		return nil, reservedPort(port)
	}
	conn, err := dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	return conn, nil
}

func reservedPort(port uint32) error {
	return fmt.Errorf("vsock port %d: reserved; a program on the guest's TCP port N is at %d+N", port, wire.PortForward)
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
	listener, err := hostfs.Listen(m.config.VsockPath)
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
			conn, err := listener.Accept()
			if err != nil {
				return // closed with the machine
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
	wire.Join(&buffered{conn, in}, guest)
}

// buffered is a connection of which some has been read ahead.
type buffered struct {
	*net.UnixConn
	in io.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// published are ports of the host that lead to the guest's.
type published struct {
	s     *supervisor
	ports []api.PublishedPort

	ctx    context.Context
	cancel context.CancelFunc
	closes []io.Closer
	ended  sync.WaitGroup
}

const (
	maxPublishedConns = 4096            // at once, of a sandbox
	pausedWait        = 5 * time.Second // how long a connection waits for a sandbox that stands still
	maxDatagram       = 65507
)

// publish binds the ports. Nothing is answered before the guest is.
func (s *supervisor) publish() error {
	if len(s.config.Network.Publish) == 0 {
		return nil
	}
	p := &published{s: s}
	p.ctx, p.cancel = context.WithCancel(s.life)
	s.unwind.push(p.close)
	for _, want := range s.config.Network.Publish {
		if err := p.bind(want); err != nil {
			return fmt.Errorf("published port %d: %w", want.GuestPort, err)
		}
	}
	s.ports = p.ports
	return nil
}

func (p *published) bind(want api.Publish) error {
	host := want.IP
	if !host.IsValid() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	address := netip.AddrPortFrom(host, want.HostPort).String()
	done := api.PublishedPort{GuestPort: want.GuestPort, Protocol: "tcp"}
	if want.UDP {
		done.Protocol = "udp"
		conn, err := net.ListenPacket("udp", address)
		if err != nil {
			return portHint(err, want)
		}
		p.closes = append(p.closes, conn)
		done.Host = conn.LocalAddr().(*net.UDPAddr).AddrPort()
		p.ended.Go(func() { p.serveUDP(conn.(*net.UDPConn), want.GuestPort) })
	} else {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return portHint(err, want)
		}
		p.closes = append(p.closes, listener)
		done.Host = listener.Addr().(*net.TCPAddr).AddrPort()
		p.ended.Go(func() {
			forward(p.ctx, listener, func(ctx context.Context) (net.Conn, error) { return p.s.reach(ctx, want.GuestPort) })
		})
	}
	p.ports = append(p.ports, done)
	return nil
}

func portHint(err error, want api.Publish) error {
	return &hintError{err, fmt.Sprintf("`-p :%d` takes any port that is free, and `matchlock port` tells which", want.GuestPort)}
}

// forward passes each connection that listener accepts on to where dial leads,
// until ctx ends. It then waits for all of them.
func forward(ctx context.Context, listener net.Listener, dial func(context.Context) (net.Conn, error)) {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	defer listener.Close()
	serveEach(ctx, maxPublishedConns, listener.Accept, func(conn net.Conn) {
		guest, err := dial(ctx)
		if err != nil {
			wire.Reset(conn)
			return
		}
		join(ctx, conn, guest)
	})
}

// serveEach has pass see to each connection that accept returns, to as many as room at
// once, until ctx ends. It then waits for all of them.
func serveEach(ctx context.Context, room int, accept func() (net.Conn, error), pass func(net.Conn)) {
	turns := make(chan struct{}, room)
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		turns <- struct{}{}
		conn, err := accept()
		if err != nil {
			<-turns
			select { // too many files, or a guest that stands still, which passes
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
				return
			}
		}
		conns.Go(func() {
			defer func() { <-turns }()
			defer conn.Close()
			pass(conn)
		})
	}
}

// join passes on what comes by either connection until both are over or ctx ends.
func join(ctx context.Context, a, b net.Conn) {
	defer b.Close()
	defer context.AfterFunc(ctx, func() { a.Close(); b.Close() })()
	wire.Join(a, b)
}

// reach connects to a TCP port of the guest: at its address, else on its loopback.
func (s *supervisor) reach(ctx context.Context, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, pausedWait)
	defer cancel()
	for {
		_, paused := s.stoodStill(ctx)
		if !paused {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, vm.ErrPaused
		}
	}
	if s.network != nil && s.network.stack != nil {
		conn, err := s.network.stack.DialTCP(ctx, netip.AddrPortFrom(guestAddress, port))
		if err == nil {
			return conn, nil
		}
	}
	return s.connect(ctx, wire.PortForward+uint32(port))
}

// serveUDP passes datagrams on, with a flow for each sender on the host's side.
func (p *published) serveUDP(conn *net.UDPConn, port uint16) {
	var mu sync.Mutex
	flows := map[netip.AddrPort]*netstack.UDPConn{}
	defer context.AfterFunc(p.ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, flow := range flows {
			flow.Close()
		}
	})()
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if p.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // about a datagram before this one
		}
		mu.Lock()
		flow := flows[from]
		if flow == nil && len(flows) < maxPublishedConns && p.ctx.Err() == nil {
			if flow, err = p.s.network.stack.DialUDP(netip.AddrPortFrom(guestAddress, port)); err == nil {
				flows[from] = flow
				p.ended.Go(func() {
					answerUDP(conn, from, flow)
					mu.Lock()
					defer mu.Unlock()
					delete(flows, from)
				})
			}
		}
		mu.Unlock()
		if flow != nil { // else it is lost, as on any network
			flow.Write(buffer[:n])
		}
	}
}

// answerUDP passes on what the guest answers, until the flow has been idle for long.
func answerUDP(conn *net.UDPConn, to netip.AddrPort, flow *netstack.UDPConn) {
	defer flow.Close()
	answer := make([]byte, maxDatagram)
	for {
		n, err := flow.Read(answer)
		if err != nil {
			return
		}
		conn.WriteToUDPAddrPort(answer[:n], to)
	}
}

func (p *published) close() error {
	p.cancel()
	var errs []error
	for _, c := range p.closes {
		errs = append(errs, c.Close())
	}
	p.ended.Wait()
	return errors.Join(errs...)
}

// ListenFor listens at address of this host and passes each connection on to a TCP
// port of the guest's loopback, until ctx ends. It tells ready where it listens.
func (s *Sandbox) ListenFor(ctx context.Context, address string, port uint16, ready func(net.Addr)) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	ready(listener.Addr())
	forward(ctx, listener, func(ctx context.Context) (net.Conn, error) {
		return s.DialContext(ctx, "tcp", "localhost:"+strconv.Itoa(int(port)))
	})
	return nil
}

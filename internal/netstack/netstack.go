// Package netstack answers one question: what does the guest want of the
// network? Ethernet frames from its link go in, flows come out: each TCP
// connection before it is accepted, each first UDP datagram, each DNS query.
//
// It answers ARP and ping for the gateway, which is all that there is on the
// link, and takes packets to every other IPv4 address as if it were that host.
// Frames that the guest has no business to send are dropped and counted; see
// Reason. It knows no HTTP and no policy, resolves no names, and opens no socket
// of the host: what a flow is allowed, and where it leads to, is its Handler's
// affair.
//
//	s, err := netstack.New(netstack.Config{
//		Link:     link, // of vm.Machine.NetworkFD
//		Gateway:  netip.MustParsePrefix("192.168.100.1/24"),
//		Guest:    netip.MustParseAddr("192.168.100.2"),
//		GuestMAC: mac,
//	}, netstack.Handler{
//		TCP: func(ctx context.Context, f *netstack.TCPFlow) {
//			var d net.Dialer
//			out, err := d.DialContext(ctx, "tcp", f.Destination().String())
//			if err != nil {
//				f.Refuse() // the guest's connect fails with ECONNREFUSED
//				return
//			}
//			defer out.Close()
//			in, err := f.Accept() // only now the guest's connect succeeds
//			if err != nil {
//				return
//			}
//			defer in.Close()
//			… // copy both ways, each io.EOF passed on by CloseWrite
//		},
//	})
//	…
//	defer s.Close()
//
// # The guest is hostile
//
// What it can make us keep is bounded by Limits, and per flow by the buffers of
// the connection. It can send whatever it likes to a flow of its own; the parser
// of its packets is gVisor's, behind the few checks of gate.go.
//
// A stack that is new to a guest which has connections already (it goes on from a
// snapshot) answers their segments with resets, so that nothing hangs there.
//
// # Deadlocks
//
// Handler.DNS and the flow handlers run in goroutines of their own and may block.
// Handler.Note is called from the one that reads the link: it must not. Close waits
// for the handlers; none may call it.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Config says what is on the link. It is read once.
type Config struct {
	// Link is the host end of the guest's link: a unix datagram socket on which
	// one read or write is one Ethernet frame. New takes it over, also when it
	// fails.
	Link *os.File

	Gateway    netip.Prefix     // our address, with the length of the link's prefix
	Guest      netip.Addr       // the guest's only address, in the same prefix
	GuestMAC   net.HardwareAddr // of the guest's network card
	GatewayMAC net.HardwareAddr // ours; nil: 52:54:00:12:34:01

	MTU    int          // bytes of an IP packet, 576 to 65520; 0: 1500
	Limits Limits       // zero fields: the defaults
	Logger *slog.Logger // nil: nowhere
}

// Limits bound what a guest can make us keep.
type Limits struct {
	Flows    int // TCP connections and UDP flows, until the last of them is gone; 0: 4096
	HalfOpen int // of these, TCP connections not yet accepted and UDP flows undecided; 0: 256
	Queries  int // DNS queries in flight; 0: 64
}

const (
	minMTU = 576
	maxMTU = 65520
)

func (c Config) withDefaults() Config {
	set := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	set(&c.MTU, 1500)
	set(&c.Limits.Flows, 4096)
	set(&c.Limits.HalfOpen, 256)
	set(&c.Limits.Queries, 64)
	if c.GatewayMAC == nil {
		c.GatewayMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x01}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	switch gateway := c.Gateway.Addr(); {
	case c.Link == nil:
		return errors.New("no link")
	case !c.Gateway.IsValid() || !gateway.Is4():
		return fmt.Errorf("gateway %s: want an IPv4 address with a prefix length", c.Gateway)
	case !c.Guest.Is4() || !c.Gateway.Contains(c.Guest) || c.Guest == gateway:
		return fmt.Errorf("guest %s: want another IPv4 address in the gateway's %s", c.Guest, c.Gateway.Masked())
	case !isUnicastMAC(c.GuestMAC) || !isUnicastMAC(c.GatewayMAC) || c.GuestMAC.String() == c.GatewayMAC.String():
		return fmt.Errorf("hardware addresses %s and %s: want two different ones of 6 bytes", c.GuestMAC, c.GatewayMAC)
	case c.MTU < minMTU || c.MTU > maxMTU:
		return fmt.Errorf("MTU %d: want %d to %d", c.MTU, minMTU, maxMTU)
	case c.Limits.Flows < 0 || c.Limits.HalfOpen < 0 || c.Limits.Queries < 0:
		return fmt.Errorf("limits %+v: a limit is negative", c.Limits)
	}
	return nil
}

func isUnicastMAC(a net.HardwareAddr) bool { return len(a) == 6 && a[0]&1 == 0 }

// Handler decides. A nil function refuses what it would have been called for. ctx
// ends when the stack is closed, which waits for TCP, UDP and DNS to return.
type Handler struct {
	// TCP is called in a goroutine of its own for each connection that the guest
	// asks for. It accepts or refuses; one that does neither has refused.
	TCP func(ctx context.Context, f *TCPFlow)

	// UDP is the same for the first datagram between two ports that have no flow.
	UDP func(ctx context.Context, f *UDPFlow)

	// DNS is called for each query to port 53 of whatever address, in a goroutine
	// of its own. query, 12 to 65535 bytes and otherwise unchecked, is the
	// callee's. What it returns is sent as the answer, nil is none. By UDP an
	// answer of more than the MTU has room for is not sent; to truncate it, as the
	// query asks, is the callee's affair.
	DNS func(ctx context.Context, query []byte, tcp bool) []byte

	// Note is told what was dropped or refused here, without a handler being
	// asked: of each Reason the first, and then at most one in NoteInterval with
	// how many there were since. It is called by the goroutine that reads the
	// link, and must not block.
	Note func(Note)
}

// Stack is the host's end of a guest's link. Its methods may be called by several
// goroutines at once.
type Stack struct {
	config  Config
	handler Handler
	link    *link
	gate    *gate
	notes   *notes
	net     *stack.Stack
	syns    [2]*tcp.Forwarder // the second of flows beyond roomyFlows

	ctx    context.Context // what handlers get
	cancel context.CancelFunc
	done   chan struct{} // closed when Close is through

	sent, received atomic.Uint64 // see Stats

	mu       sync.Mutex
	closed   bool
	handlers sync.WaitGroup      // Add under mu, while not closed
	pending  map[flowID]struct{} // TCP connections that a handler is deciding on, or that shake hands
	halfOpen int                 // these, and undecided UDP flows
	flows    int                 // all, halfOpen ones too
	queries  int
}

const nicID = 1

// New starts a stack, which lives until Close, or until ctx or the guest's end of
// the link is gone, which Close is to be called after too.
func New(ctx context.Context, config Config, handler Handler) (*Stack, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		if config.Link != nil {
			config.Link.Close()
		}
		return nil, fmt.Errorf("network stack: %w", err)
	}
	s := &Stack{
		config:  config,
		handler: handler,
		gate:    newGate(config),
		notes:   newNotes(handler.Note),
		done:    make(chan struct{}),
		pending: make(map[flowID]struct{}),
	}
	var err error
	if s.link, err = openLink(config, s.receive); err != nil {
		return nil, fmt.Errorf("network stack: %w", err)
	}
	if err := s.assemble(); err != nil {
		s.link.Close()
		return nil, fmt.Errorf("network stack: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	go func() {
		if err := s.link.read(); err != nil {
			config.Logger.Error("the guest's link is lost", "error", err)
		}
		stop()
		s.Close()
	}()
	return s, nil
}

// assemble sets up gVisor's stack on the link.
func (s *Stack) assemble() error {
	s.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := tuneTCP(s.net); err != nil {
		return err
	}
	if err := s.net.CreateNIC(nicID, s.link); err != nil {
		return fmt.Errorf("link: %s", err)
	}
	gateway := tcpip.ProtocolAddress{
		Protocol: header.IPv4ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address:   tcpip.AddrFrom4(s.config.Gateway.Addr().As4()),
			PrefixLen: s.config.Gateway.Bits(),
		},
	}
	if err := s.net.AddProtocolAddress(nicID, gateway, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("gateway's address: %s", err)
	}
	// Every address is ours to receive for, and to answer from.
	if err := s.net.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("promiscuous mode: %s", err)
	}
	if err := s.net.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("spoofing: %s", err)
	}
	s.net.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})

	// The forwarder's own limit forgets connections without a word; begin has
	// refused what is beyond ours before.
	for i, window := range []int{firstWindow, narrowWindow} {
		s.syns[i] = tcp.NewForwarder(s.net, window, s.config.Limits.HalfOpen+1, s.serveTCP)
	}
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCP)
	s.net.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDP)
	return nil
}

// receive takes one frame of the guest.
func (s *Stack) receive(frame []byte) {
	reason, answer := s.gate.judge(frame)
	switch {
	case reason != 0:
		s.notes.count(reason)
	case answer != nil:
		s.link.send(answer)
	case isIPv4(frame):
		s.link.deliver(frame)
	}
}

// Close resets all flows, ends the context of the handlers, waits for them, and
// closes the link. It may be called any number of times.
func (s *Stack) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if !first {
		<-s.done
		return nil
	}
	s.cancel()
	// What shakes hands is registered too, so that its handler comes back.
	for _, endpoints := range [][]stack.TransportEndpoint{s.net.RegisteredEndpoints(), s.net.CleanupEndpoints()} {
		for _, e := range endpoints {
			e.Abort()
		}
	}
	s.handlers.Wait()
	s.link.Close()
	s.link.Wait()
	s.net.Destroy()
	close(s.done)
	return nil
}

// flowID tells one flow of the guest from another.
type flowID struct{ guest, destination netip.AddrPort }

func newFlowID(id stack.TransportEndpointID) flowID {
	return flowID{
		guest:       netip.AddrPortFrom(netip.AddrFrom4(id.RemoteAddress.As4()), id.RemotePort),
		destination: netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort),
	}
}

// begin counts one more flow, which is half open, and one more handler. It
// returns the reason why there cannot be one.
func (s *Stack) begin() Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return closing
	case s.flows >= s.config.Limits.Flows:
		return FlowLimit
	case s.halfOpen >= s.config.Limits.HalfOpen:
		return HalfOpenLimit
	}
	s.flows++
	s.halfOpen++
	s.handlers.Add(1)
	return 0
}

// decided ends the half of being half open, and the flow with it if it ended.
func (s *Stack) decided(ended bool) {
	s.mu.Lock()
	s.halfOpen--
	if ended {
		s.flows--
	}
	s.mu.Unlock()
}

func (s *Stack) end() {
	s.mu.Lock()
	s.flows--
	s.mu.Unlock()
}

// Stats is what a stack carries now, and what it has dropped so far.
type Stats struct {
	Flows    int // with those that wind down
	HalfOpen int // of these, not accepted yet
	Queries  int // DNS queries in flight

	Sent, Received      uint64 // bytes that flows have carried from the guest, and to it
	FramesIn, FramesOut uint64
	Unread              uint64            // frames dropped because the guest did not take them
	Dropped             map[Reason]uint64 // frames and flows of the guest, by reason
}

// Stats may be called at any time, after Close too.
func (s *Stack) Stats() Stats {
	s.mu.Lock()
	stats := Stats{Flows: s.flows, HalfOpen: s.halfOpen, Queries: s.queries}
	s.mu.Unlock()
	stats.Sent, stats.Received = s.sent.Load(), s.received.Load()
	stats.FramesIn, stats.FramesOut, stats.Unread = s.link.in.Load(), s.link.out.Load(), s.link.unread.Load()
	stats.Dropped = s.notes.totals()
	return stats
}

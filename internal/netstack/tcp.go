package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A connection buffers at most so much in each direction, and nothing while
// nothing is on its way. Windows begin small and grow with what is read: the way
// to the guest is microseconds, so large ones only make a full pipe longer.
const (
	firstWindow = 128 << 10
	maxWindow   = 1 << 20

	// Of flows beyond roomyFlows each has narrowWindow only, so that a guest that
	// opens all it can and reads nothing costs some hundred MiB, not 8 GiB.
	roomyFlows   = 256
	narrowWindow = 32 << 10
)

// A guest does not vanish without a word but in one way: as that of a copy, or
// from a snapshot, that has forgotten the connection. It may stand still for a
// while, and go on.
const (
	keepAliveIdle     = 2 * time.Minute
	keepAliveInterval = 30 * time.Second
	keepAliveCount    = 6

	// What is not acknowledged is sent again, at least so often, and so long: a
	// paused guest goes on at once when it is resumed.
	maxRetransmit = 2 * time.Second
	maxRetries    = 300

	// A closed connection that the guest does not let end is reset.
	windDownTime = time.Minute
)

func tuneTCP(s *stack.Stack) error {
	sack := tcpip.TCPSACKEnabled(true)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: firstWindow, Max: maxWindow}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: firstWindow, Max: maxWindow}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// Nothing overtakes on the link, so a port can be used again at once.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(200 * time.Millisecond)
	finWait2 := tcpip.TCPLingerTimeoutOption(windDownTime)
	rto := tcpip.TCPMaxRTOOption(maxRetransmit)
	retries := tcpip.TCPMaxRetriesOption(maxRetries)
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &send, &receive, &moderate, &timeWait, &finWait2, &rto, &retries} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fmt.Errorf("%T: %s", option, err)
		}
	}
	return nil
}

// handleTCP is given the segments that belong to no connection. False has them
// answered with a reset: what a guest that goes on from a snapshot sends on its
// old connections, and connections beyond the limits.
func (s *Stack) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	const of = header.TCPFlagSyn | header.TCPFlagAck | header.TCPFlagRst | header.TCPFlagFin
	if header.TCP(pkt.TransportHeader().Slice()).Flags()&of != header.TCPFlagSyn {
		return false
	}
	key := newFlowID(id)
	s.mu.Lock()
	_, again := s.pending[key]
	s.mu.Unlock()
	if again {
		return true // sent again while its handler dials
	}
	if reason := s.begin(); reason != 0 {
		s.notes.count(reason)
		return false
	}
	s.mu.Lock()
	s.pending[key] = struct{}{}
	syns := s.syns[0]
	if s.isNarrow() {
		syns = s.syns[1] // a window that was offered cannot be taken back
	}
	s.mu.Unlock()
	if !syns.HandlePacket(id, pkt) { // serveTCP, in a goroutine of its own
		s.settle(key, true)
		s.handlers.Done()
		return false
	}
	return true
}

// settle ends the time of a connection in which nothing is answered.
func (s *Stack) settle(key flowID, ended bool) {
	s.mu.Lock()
	delete(s.pending, key)
	s.mu.Unlock()
	s.decided(ended)
}

func (s *Stack) serveTCP(request *tcp.ForwarderRequest) {
	defer s.handlers.Done()
	f := &TCPFlow{stack: s, request: request, id: newFlowID(request.ID())}
	defer f.Refuse()
	switch {
	case f.id.destination.Port() == dnsPort:
		s.serveDNS(s.ctx, f)
	case s.handler.TCP != nil:
		s.handler.TCP(s.ctx, f)
	}
}

// TCPFlow is a connection that the guest asks for. Until Accept or Refuse it has
// no answer: the guest's connect waits, as for a host that is far away.
type TCPFlow struct {
	stack *Stack
	id    flowID

	mu      sync.Mutex
	request *tcp.ForwarderRequest // nil: decided
}

// Guest is the guest's address and port.
func (f *TCPFlow) Guest() netip.AddrPort { return f.id.guest }

// Destination is where the guest wants to connect to.
func (f *TCPFlow) Destination() netip.AddrPort { return f.id.destination }

// take returns the request to who decides first.
func (f *TCPFlow) take() *tcp.ForwarderRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	request := f.request
	f.request = nil
	return request
}

// Refuse resets the connection: the guest's connect fails with ECONNREFUSED. It
// does nothing after Accept or Refuse.
func (f *TCPFlow) Refuse() {
	if request := f.take(); request != nil {
		request.Complete(true)
		f.stack.settle(f.id, true)
	}
}

var errDecided = errors.New("the flow was accepted or refused before")

// Accept shakes hands with the guest, and returns the connection, the caller's to
// close. It fails when the guest does not want it any more, or the stack closes.
func (f *TCPFlow) Accept() (*Conn, error) {
	request := f.take()
	if request == nil {
		return nil, errDecided
	}
	queue := new(waiter.Queue)
	endpoint, err := request.CreateEndpoint(queue)
	request.Complete(false)
	if err != nil {
		f.stack.settle(f.id, true)
		return nil, &net.OpError{Op: "accept", Net: "tcp", Source: net.TCPAddrFromAddrPort(f.id.guest), Err: errorOf(err)}
	}
	f.stack.settle(f.id, false)
	return f.stack.newConn(gonet.NewTCPConn(queue, endpoint), endpoint, queue)
}

// DialTCP connects to a port of the guest, from the gateway's address. address
// must be the guest's.
func (s *Stack) DialTCP(ctx context.Context, address netip.AddrPort) (*Conn, error) {
	if err := s.beginDial("tcp", address); err != nil {
		return nil, err
	}
	defer s.handlers.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	conn, queue, err := s.connect(ctx, address)
	if err != nil {
		s.decided(true)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(address), Err: err}
	}
	s.decided(false)
	return s.newConn(gonet.NewTCPConn(queue, conn), conn, queue)
}

// beginDial is begin for what we ask the guest for.
func (s *Stack) beginDial(network string, address netip.AddrPort) error {
	fail := func(err error) error {
		return &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(address), Err: err}
	}
	if address.Addr() != s.config.Guest {
		return fail(errors.New("not the guest's address"))
	}
	switch reason := s.begin(); reason {
	case 0:
		return nil
	case closing:
		return fail(net.ErrClosed)
	default:
		return fail(errors.New(reason.String()))
	}
}

func (s *Stack) connect(ctx context.Context, address netip.AddrPort) (tcpip.Endpoint, *waiter.Queue, error) {
	queue := new(waiter.Queue)
	endpoint, err := s.net.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, queue)
	if err != nil {
		return nil, nil, errorOf(err)
	}
	entry, changed := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	if err := endpoint.Bind(s.fullAddress(s.config.Gateway.Addr(), 0)); err != nil {
		endpoint.Close()
		return nil, nil, errorOf(err)
	}
	err = endpoint.Connect(s.fullAddress(address.Addr(), address.Port()))
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			endpoint.Abort()
			return nil, nil, ctx.Err()
		case <-changed:
			err = endpoint.LastError()
		}
	}
	if err != nil {
		endpoint.Close()
		return nil, nil, errorOf(err)
	}
	return endpoint, queue, nil
}

func (s *Stack) fullAddress(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.As4()), Port: port}
}

package netstack

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// UDPIdle is how long a UDP flow lives without a datagram either way.
const UDPIdle = 60 * time.Second

// datagramBuffer is what a UDP flow keeps of datagrams that were not read, in
// bytes; one more may come on top.
const datagramBuffer = 64 << 10

// handleUDP is given the datagrams that belong to no flow. False has them
// answered with "port unreachable".
func (s *Stack) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	key := newFlowID(id)
	if key.destination.Port() == dnsPort {
		if s.handler.DNS == nil {
			return false
		}
		payload := pkt.Data().AsRange().ToSlice()
		if len(payload) >= dnsHeader {
			s.answerDatagram(key, payload)
		}
		return true
	}
	if s.handler.UDP == nil {
		return false
	}
	if reason := s.begin(); reason != 0 {
		s.notes.count(reason)
		return false
	}
	f := &UDPFlow{stack: s, id: key, quote: quote(pkt)}
	// The flow is there from now on, so that what follows before it is decided
	// on lands in its buffer.
	queue := new(waiter.Queue)
	endpoint, err := udp.NewForwarderRequest(s.net, id, pkt).CreateEndpoint(queue)
	if err != nil {
		s.decided(true)
		s.handlers.Done()
		return false
	}
	endpoint.SocketOptions().SetReceiveBufferSize(datagramBuffer, false)
	f.conn = s.newUDPConn(gonet.NewUDPConn(queue, endpoint))
	go func() {
		defer s.handlers.Done()
		defer f.Refuse()
		s.handler.UDP(s.ctx, f)
	}()
	return true
}

// UDPFlow is what the guest's first datagram from one address and port to another
// begins.
type UDPFlow struct {
	stack *Stack
	id    flowID
	quote []byte // of the datagram, as an ICMP error quotes it

	mu   sync.Mutex
	conn *UDPConn // nil: decided
}

// Guest is the guest's address and port.
func (f *UDPFlow) Guest() netip.AddrPort { return f.id.guest }

// Destination is where the guest's datagrams are to go.
func (f *UDPFlow) Destination() netip.AddrPort { return f.id.destination }

func (f *UDPFlow) take() *UDPConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn := f.conn
	f.conn = nil
	return conn
}

// Refuse answers "port unreachable": a connected socket of the guest fails with
// ECONNREFUSED. The next datagram is a flow again. It does nothing after Accept
// or Refuse.
func (f *UDPFlow) Refuse() {
	if conn := f.take(); conn != nil {
		f.stack.decided(false)
		conn.Close()
		f.stack.sendUnreachable(f.id, f.quote)
	}
}

// Accept returns the flow's datagrams, the first one too.
func (f *UDPFlow) Accept() (*UDPConn, error) {
	conn := f.take()
	if conn == nil {
		return nil, errDecided
	}
	f.stack.decided(false)
	return conn, nil
}

// DialUDP returns a flow to a port of the guest, from a port of the gateway's
// address. address must be the guest's.
func (s *Stack) DialUDP(address netip.AddrPort) (*UDPConn, error) {
	if err := s.beginDial("udp", address); err != nil {
		return nil, err
	}
	defer s.handlers.Done()
	local, remote := s.fullAddress(s.config.Gateway.Addr(), 0), s.fullAddress(address.Addr(), address.Port())
	conn, err := gonet.DialUDP(s.net, &local, &remote, ipv4.ProtocolNumber)
	if err != nil {
		s.decided(true)
		return nil, err
	}
	s.decided(false)
	return s.newUDPConn(conn), nil
}

// UDPConn is a UDP flow with the guest: a Read or Write is one datagram. It closes
// itself after UDPIdle without one.
type UDPConn struct {
	*gonet.UDPConn // which reports errors of its own, never to be returned

	stack  *Stack
	idle   *time.Timer
	closed atomic.Bool
}

func (s *Stack) newUDPConn(conn *gonet.UDPConn) *UDPConn {
	c := &UDPConn{UDPConn: conn, stack: s}
	c.idle = time.AfterFunc(UDPIdle, func() { c.Close() })
	return c
}

// Read implements net.Conn. What does not fit into p is lost.
func (c *UDPConn) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	c.stack.sent.Add(uint64(n))
	return n, c.used(err)
}

// Write implements net.Conn.
func (c *UDPConn) Write(p []byte) (int, error) {
	n, err := c.UDPConn.Write(p)
	c.stack.received.Add(uint64(n))
	return n, c.used(err)
}

func (c *UDPConn) used(err error) error {
	var timeout net.Error
	switch {
	case c.closed.Load() || err == io.EOF: // by the stack's Close
		return net.ErrClosed
	case err == nil:
		c.idle.Reset(UDPIdle)
		return nil
	case errors.As(err, &timeout) && timeout.Timeout():
		return os.ErrDeadlineExceeded
	}
	return err
}

// Close ends the flow.
func (c *UDPConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.idle.Stop()
	c.UDPConn.Close()
	c.stack.end()
	return nil
}

// quote returns what an ICMP error quotes of a packet: as much as is of use, and
// never so much that the error needs fragments.
func quote(pkt *stack.PacketBuffer) []byte {
	const most = minMTU - header.IPv4MinimumSize - header.ICMPv4MinimumSize
	b := make([]byte, 0, header.IPv4MinimumSize+header.UDPMinimumSize)
	b = append(b, pkt.NetworkHeader().Slice()...)
	b = append(b, pkt.TransportHeader().Slice()...)
	return b[:min(len(b), most)]
}

// sendUnreachable answers a datagram of the guest as a host does that has nobody
// at the port.
func (s *Stack) sendUnreachable(id flowID, quote []byte) {
	message := header.ICMPv4(append(make([]byte, header.ICMPv4MinimumSize), quote...))
	message.SetType(header.ICMPv4DstUnreachable)
	message.SetCode(header.ICMPv4PortUnreachable)
	message.SetChecksum(header.ICMPv4Checksum(message, 0))
	s.sendPacket(header.ICMPv4ProtocolNumber, id, message)
}

// sendDatagram sends the guest a datagram from id's destination.
func (s *Stack) sendDatagram(id flowID, payload []byte) {
	message := header.UDP(append(make([]byte, header.UDPMinimumSize), payload...))
	message.Encode(&header.UDPFields{
		SrcPort: id.destination.Port(),
		DstPort: id.guest.Port(),
		Length:  uint16(len(message)),
	})
	sum := header.PseudoHeaderChecksum(udp.ProtocolNumber, tcpip.AddrFrom4(id.destination.Addr().As4()), tcpip.AddrFrom4(id.guest.Addr().As4()), uint16(len(message)))
	message.SetChecksum(^checksum.Checksum(message, sum))
	s.sendPacket(udp.ProtocolNumber, id, message)
}

func (s *Stack) sendPacket(protocol tcpip.TransportProtocolNumber, id flowID, payload []byte) {
	from, to := tcpip.AddrFrom4(id.destination.Addr().As4()), tcpip.AddrFrom4(id.guest.Addr().As4())
	route, err := s.net.FindRoute(nicID, from, to, ipv4.ProtocolNumber, false)
	if err != nil {
		return // the stack closes
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(payload),
	})
	defer pkt.DecRef()
	// What the link drops is lost, as any datagram may be.
	route.WritePacket(stack.NetworkHeaderParams{Protocol: protocol, TTL: ipv4.DefaultTTL}, pkt)
}

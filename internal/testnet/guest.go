// Package testnet is, for tests, what is at the other end of a network: an
// Internet in one process. So far it has the guest's end of a link, a network
// stack of its own that behaves as an honest guest's kernel does, and sends any
// frame on request.
//
// It takes no decisions and is not part of the product.
package testnet

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Link returns the two ends of a link, as vm.Machine.NetworkFD has them. They are
// the caller's to close, or of those who take them over.
func Link(tb testing.TB) (host, guest *os.File) {
	tb.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err != nil {
		tb.Fatal(os.NewSyscallError("socketpair", err))
	}
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
	return os.NewFile(uintptr(fds[0]), "host's end of the link"), os.NewFile(uintptr(fds[1]), "guest's end of the link")
}

// GuestConfig says what the guest believes. Its zero value is what a sandbox's
// guest is told.
type GuestConfig struct {
	Address netip.Prefix     // zero: 192.168.100.2/24
	Gateway netip.Addr       // zero: 192.168.100.1
	MAC     net.HardwareAddr // nil: 52:54:00:12:34:56
	MTU     int              // 0: 1500
}

func (c GuestConfig) withDefaults() GuestConfig {
	if !c.Address.IsValid() {
		c.Address = netip.MustParsePrefix("192.168.100.2/24")
	}
	if !c.Gateway.IsValid() {
		c.Gateway = netip.MustParseAddr("192.168.100.1")
	}
	if c.MAC == nil {
		c.MAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	return c
}

// Guest is a guest's end of a link.
type Guest struct {
	GuestConfig

	conn  net.Conn
	stack *stack.Stack
	link  *channel.Endpoint
	pumps sync.WaitGroup
	stop  context.CancelFunc

	// frames has those that arrived last, for ReadFrame.
	frames chan []byte
}

const (
	nicID      = 1
	keptFrames = 256
)

// NewGuest starts a guest on its end of a link, which it takes over. It ends with
// the test, or by Close.
func NewGuest(tb testing.TB, link *os.File, config GuestConfig) *Guest {
	tb.Helper()
	defer link.Close()
	conn, err := net.FileConn(link)
	if err != nil {
		tb.Fatal(err)
	}
	config = config.withDefaults()
	g := &Guest{
		GuestConfig: config,
		conn:        conn,
		link:        channel.New(1024, uint32(config.MTU+header.EthernetMinimumSize), tcpip.LinkAddress(config.MAC)),
		frames:      make(chan []byte, keptFrames),
	}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	check := func(what string, err tcpip.Error) {
		if err != nil {
			tb.Fatalf("test guest: %s: %s", what, err)
		}
	}
	check("link", g.stack.CreateNIC(nicID, ethernet.New(g.link)))
	check("address", g.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address:   tcpip.AddrFrom4(config.Address.Addr().As4()),
			PrefixLen: config.Address.Bits(),
		},
	}, stack.AddressProperties{}))
	subnet := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(config.Address.Addr().As4()), PrefixLen: config.Address.Bits()}.Subnet()
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: subnet, NIC: nicID},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(config.Gateway.As4()), NIC: nicID},
	})

	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	g.pumps.Go(g.receive)
	g.pumps.Go(func() { g.transmit(ctx) })
	tb.Cleanup(g.Close)
	return g
}

func (g *Guest) receive() {
	buf := make([]byte, 1<<16)
	for {
		n, err := g.conn.Read(buf)
		if err != nil {
			return
		}
		if len(g.frames) < cap(g.frames) { // there is no other sender
			g.frames <- bytes.Clone(buf[:n])
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[:n])})
		g.link.InjectInbound(0, pkt)
		pkt.DecRef()
	}
}

func (g *Guest) transmit(ctx context.Context) {
	var frame []byte
	for {
		pkt := g.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		frame = frame[:0]
		for _, part := range pkt.AsSlices() {
			frame = append(frame, part...)
		}
		pkt.DecRef()
		if _, err := g.conn.Write(frame); err != nil && errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// Close ends the guest at once: as a machine that is killed, it says nothing.
func (g *Guest) Close() {
	g.stop()
	g.conn.Close()
	g.pumps.Wait()
	g.link.Close()
	g.stack.Destroy()
}

// SendFrame sends bytes as a frame, whatever they are.
func (g *Guest) SendFrame(frame []byte) error {
	_, err := g.conn.Write(frame)
	return err
}

// ReadFrame returns the next of the frames that have arrived; the guest's stack
// has them too. Of those not read, the first 256 are kept.
func (g *Guest) ReadFrame(ctx context.Context) ([]byte, error) {
	select {
	case frame := <-g.frames:
		return frame, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// DialTCP connects to any IPv4 address.
func (g *Guest) DialTCP(ctx context.Context, address netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, g.stack, full(address), ipv4.ProtocolNumber)
}

// Reset ends a connection with a reset, as a program does that is killed with data
// unread. The connection is the caller's to close all the same.
func (g *Guest) Reset(c *gonet.TCPConn) {
	local, remote := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr()
	if remote == nil {
		return // it has ended
	}
	to := remote.(*net.TCPAddr)
	e := g.stack.FindTransportEndpoint(ipv4.ProtocolNumber, tcp.ProtocolNumber, stack.TransportEndpointID{
		LocalAddress: tcpip.AddrFromSlice(local.IP), LocalPort: uint16(local.Port),
		RemoteAddress: tcpip.AddrFromSlice(to.IP), RemotePort: uint16(to.Port),
	}, nicID)
	if e != nil {
		e.Abort()
	}
}

// DialUDP returns a connected socket.
func (g *Guest) DialUDP(address netip.AddrPort) (*gonet.UDPConn, error) {
	remote := full(address)
	return gonet.DialUDP(g.stack, nil, &remote, ipv4.ProtocolNumber)
}

// ListenTCP listens on a port of the guest's address.
func (g *Guest) ListenTCP(port uint16) (*gonet.TCPListener, error) {
	return gonet.ListenTCP(g.stack, full(netip.AddrPortFrom(g.Address.Addr(), port)), ipv4.ProtocolNumber)
}

// ListenUDP returns a socket that is bound to a port of the guest's address.
func (g *Guest) ListenUDP(port uint16) (*gonet.UDPConn, error) {
	local := full(netip.AddrPortFrom(g.Address.Addr(), port))
	return gonet.DialUDP(g.stack, &local, nil, ipv4.ProtocolNumber)
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}

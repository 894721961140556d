package netstack

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// patience is how long a frame waits for a guest that takes none. One that is
// paused or stuck makes the first frame wait so long; those after it are dropped
// at once until it takes one again, so that nobody who holds a lock of the stack
// waits for it twice. TCP sends them again.
const patience = 200 * time.Millisecond

// link is the socket of the guest's frames, and the stack.LinkEndpoint on it. It
// has no neighbours to resolve: there is one, whose address is known.
type link struct {
	conn     *net.UnixConn
	raw      syscall.RawConn
	guestMAC tcpip.LinkAddress
	mac      tcpip.LinkAddress
	mtu      uint32
	receive  func(frame []byte) // is called for each frame, which is its own only until it returns
	ended    chan struct{}      // closed when read has returned

	in, out, unread atomic.Uint64

	dispatcher atomic.Pointer[stack.NetworkDispatcher]

	writing  sync.Mutex
	frame    []byte    // being written
	deadline time.Time // of writes, as set last
	stalled  bool      // the last frame has waited in vain
}

// openLink takes over config.Link, also when it fails.
func openLink(config Config, receive func([]byte)) (*link, error) {
	defer config.Link.Close()
	// A socket of package net is one that the runtime waits on, whatever mode the
	// descriptor was in.
	conn, err := net.FileConn(config.Link)
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok || conn.LocalAddr().Network() != "unixgram" {
		conn.Close()
		return nil, errors.New("link: not a unix datagram socket")
	}
	raw, err := unix.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("link: %w", err)
	}
	return &link{
		conn:     unix,
		raw:      raw,
		guestMAC: tcpip.LinkAddress(config.GuestMAC),
		mac:      tcpip.LinkAddress(config.GatewayMAC),
		mtu:      uint32(config.MTU),
		receive:  receive,
		ended:    make(chan struct{}),
	}, nil
}

// read receives frames until the link is closed, which is no error, or its other
// end is gone.
func (l *link) read() error {
	defer close(l.ended)
	// One byte more than a frame may have, to notice those that have more.
	frame := make([]byte, l.mtu+header.EthernetMinimumSize+1)
	for {
		n, err := l.conn.Read(frame)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		l.in.Add(1)
		l.receive(frame[:n])
	}
}

// deliver gives a frame, which has been judged, to the stack.
func (l *link) deliver(frame []byte) {
	// Copied into a buffer of its own size: one as large as the largest frame
	// would let a guest make us keep 64 KiB for every byte.
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer pkt.DecRef()
	if d := l.dispatcher.Load(); d != nil && l.ParseHeader(pkt) {
		pkt.PktType = tcpip.PacketHost
		(*d).DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
	}
}

// send writes a frame. It may be dropped, see patience.
func (l *link) send(frame []byte) {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.sendLocked(frame)
}

func (l *link) sendLocked(frame []byte) {
	now := time.Now()
	if l.deadline.Sub(now) < patience/2 {
		l.deadline = now.Add(patience)
		l.conn.SetWriteDeadline(l.deadline)
	}
	var failed error
	err := l.raw.Write(func(fd uintptr) (through bool) {
		_, failed = syscall.Write(int(fd), frame)
		for failed == syscall.EINTR {
			_, failed = syscall.Write(int(fd), frame)
		}
		return failed != syscall.EAGAIN || l.stalled
	})
	if err == nil && failed == nil {
		l.stalled = false
		l.out.Add(1)
		return
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.stalled = true
	}
	l.unread.Add(1)
}

// WritePackets implements stack.LinkWriter. A frame that the guest does not take
// is lost, as on any link.
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	for _, pkt := range packets.AsSlice() {
		l.frame = l.frame[:0]
		for _, part := range pkt.AsSlices() {
			l.frame = append(l.frame, part...)
		}
		l.sendLocked(l.frame)
	}
	return packets.Len(), nil
}

// Close implements stack.LinkEndpoint.
func (l *link) Close() { l.conn.Close() }

// Wait implements stack.LinkEndpoint: read has returned.
func (l *link) Wait() { <-l.ended }

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// AddHeader implements stack.LinkEndpoint.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: l.mac,
		DstAddr: l.guestMAC,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (l *link) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// Capabilities implements stack.LinkEndpoint. Checksums of what the guest sends
// are not verified: a socket of this host does not change bytes, and a guest that
// writes a wrong one harms its own flow. Those of what it receives are there:
// without a vnet header it verifies them.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// The rest of stack.LinkEndpoint.
func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {} // the guest was told ours
func (l *link) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (l *link) LinkAddress() tcpip.LinkAddress          { return l.mac }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) SetOnCloseAction(func())                 {}

package netstack

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Connection names a TCP connection of the guest.
type Connection struct {
	Guest netip.AddrPort `json:"guest"`
	Other netip.AddrPort `json:"other"`
}

// Connections are those that the guest has with this stack.
func (s *Stack) Connections() []Connection {
	var all []Connection
	for _, e := range s.net.RegisteredEndpoints() {
		endpoint, ok := e.(*tcp.Endpoint)
		if !ok {
			continue
		}
		switch endpoint.EndpointState() {
		case tcp.StateEstablished, tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateClosing, tcp.StateLastAck:
			info, ok := endpoint.Info().(*stack.TransportEndpointInfo)
			if !ok {
				continue
			}
			id := newFlowID(info.ID)
			all = append(all, Connection{Guest: id.guest, Other: id.destination})
		}
	}
	return all
}

// Reset has connections end that the guest has and this stack does not: those that a
// guest had when it was copied. Its programs learn of it at once, not when they write
// next. At most Limits.Flows are taken.
//
// The guest is sent a segment from out of nowhere. To that its kernel answers with
// what it expects (RFC 9293, 3.10.7.4), and to this answer the stack, which knows no
// such connection, with a reset that fits.
func (s *Stack) Reset(connections []Connection) {
	for _, c := range connections[:min(len(connections), s.config.Limits.Flows)] {
		if c.Guest.Addr() != s.config.Guest || !c.Other.Addr().Is4() {
			continue
		}
		var number [8]byte
		rand.Read(number[:])
		segment := header.TCP(make([]byte, header.TCPMinimumSize))
		segment.Encode(&header.TCPFields{
			SrcPort:    c.Other.Port(),
			DstPort:    c.Guest.Port(),
			SeqNum:     binary.NativeEndian.Uint32(number[:]),
			AckNum:     binary.NativeEndian.Uint32(number[4:]),
			DataOffset: header.TCPMinimumSize,
			Flags:      header.TCPFlagAck,
		})
		sum := header.PseudoHeaderChecksum(tcp.ProtocolNumber, tcpip.AddrFrom4(c.Other.Addr().As4()), tcpip.AddrFrom4(c.Guest.Addr().As4()), header.TCPMinimumSize)
		segment.SetChecksum(^checksum.Checksum(segment, sum))
		s.sendPacket(tcp.ProtocolNumber, flowID{guest: c.Guest, destination: c.Other}, segment)
	}
}

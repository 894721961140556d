package netstack

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A gate decides on single frames, before anything is kept of them: it lets
// through what an honest guest can mean, and answers ARP by itself. So no parser
// of gVisor's sees IPv6, ARP, IP options or most of ICMP, and no table of
// neighbours is there to be poisoned: frames to the guest always go to its own
// hardware address.
type gate struct {
	guestMAC, gatewayMAC net.HardwareAddr
	guest, gateway       netip.Addr
	broadcast            netip.Addr // of the link's prefix
	maxFrame             int
}

func newGate(c Config) *gate {
	first := binary.BigEndian.Uint32(c.Gateway.Masked().Addr().AsSlice())
	var last [4]byte
	binary.BigEndian.PutUint32(last[:], first|uint32(1<<(32-c.Gateway.Bits())-1))
	return &gate{
		guestMAC:   bytes.Clone(c.GuestMAC),
		gatewayMAC: bytes.Clone(c.GatewayMAC),
		guest:      c.Guest,
		gateway:    c.Gateway.Addr(),
		broadcast:  netip.AddrFrom4(last),
		maxFrame:   c.MTU + header.EthernetMinimumSize,
	}
}

func isIPv4(frame []byte) bool {
	return header.Ethernet(frame).Type() == header.IPv4ProtocolNumber
}

// rarp is the protocol of RFC 903.
const rarp = 0x8035

// judge returns why a frame is dropped, or 0. answer, if there is one, is the
// frame to be sent in return; nothing else is to be done then.
func (g *gate) judge(frame []byte) (r Reason, answer []byte) {
	if len(frame) < header.EthernetMinimumSize || len(frame) > g.maxFrame {
		return Malformed, nil
	}
	if !bytes.Equal(frame[6:12], g.guestMAC) {
		return ForeignMAC, nil
	}
	ours := bytes.Equal(frame[:6], g.gatewayMAC)
	payload := frame[header.EthernetMinimumSize:]
	switch header.Ethernet(frame).Type() {
	case header.ARPProtocolNumber:
		if !ours && string(frame[:6]) != string(header.EthernetBroadcastAddress) {
			return NotForGateway, nil
		}
		return g.judgeARP(payload)
	case header.IPv6ProtocolNumber:
		return IPv6, nil
	case rarp:
		// QEMU tells switches where a guest is that it has just loaded. There are none.
		return announcement, nil
	case header.IPv4ProtocolNumber:
		r := g.judgeIPv4(payload)
		if r == 0 && !ours {
			r = NotForGateway
		}
		return r, nil
	}
	return OtherProtocol, nil
}

// judgeARP answers who asks for the gateway. Nothing is learnt from what the
// guest says of itself, and other questions have no answer here: nobody else is
// on the link.
func (g *gate) judgeARP(payload []byte) (Reason, []byte) {
	question := header.ARP(payload)
	if !question.IsValid() { // also another hardware or protocol than Ethernet and IPv4
		return Malformed, nil
	}
	// A probe (RFC 5227) has no sender's address yet.
	sender := addrFrom(question.ProtocolAddressSender())
	if sender != g.guest && !sender.IsUnspecified() || !bytes.Equal(question.HardwareAddressSender(), g.guestMAC) {
		return ForeignAddress, nil
	}
	if question.Op() != header.ARPRequest || addrFrom(question.ProtocolAddressTarget()) != g.gateway {
		return 0, nil
	}
	frame := make([]byte, header.EthernetMinimumSize+header.ARPSize)
	copy(frame, g.guestMAC)
	copy(frame[6:], g.gatewayMAC)
	binary.BigEndian.PutUint16(frame[12:], uint16(header.ARPProtocolNumber))
	answer := header.ARP(frame[header.EthernetMinimumSize:])
	answer.SetIPv4OverEthernet()
	answer.SetOp(header.ARPReply)
	copy(answer.HardwareAddressSender(), g.gatewayMAC)
	copy(answer.ProtocolAddressSender(), g.gateway.AsSlice())
	copy(answer.HardwareAddressTarget(), g.guestMAC)
	copy(answer.ProtocolAddressTarget(), question.ProtocolAddressSender())
	return 0, frame
}

func (g *gate) judgeIPv4(payload []byte) Reason {
	h := header.IPv4(payload)
	if !h.IsValid(len(payload)) {
		return Malformed
	}
	if addrFrom(h.SourceAddressSlice()) != g.guest {
		return ForeignAddress
	}
	destination := addrFrom(h.DestinationAddressSlice())
	if destination == g.guest || destination == g.broadcast || !isHost(destination) {
		return NotUnicast
	}
	if h.HeaderLength() != header.IPv4MinimumSize {
		return OtherProtocol // options: source routes and worse, and nobody uses them
	}
	switch h.TransportProtocol() {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		return 0
	case header.ICMPv4ProtocolNumber:
		// Of a fragment one cannot tell what it is of.
		body := payload[header.IPv4MinimumSize:h.TotalLength()]
		fragment := h.More() || h.FragmentOffset() != 0
		if fragment || destination != g.gateway || len(body) < header.ICMPv4MinimumSize || header.ICMPv4(body).Type() != header.ICMPv4Echo {
			return OtherICMP
		}
		return 0
	}
	return OtherProtocol
}

// isHost reports whether an address can be a single host's outside of the guest.
// Which of these the guest may reach is not asked here.
func isHost(a netip.Addr) bool {
	first := a.As4()[0]
	return first != 0 && !a.IsLoopback() && first < 224 // multicast, and the reserved class E with its broadcast
}

// addrFrom is of 4 bytes.
func addrFrom(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }

package intercept

import (
	"encoding/binary"
	"io"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// odd says something that begins well, and is not.
func (v *visit) odd(port uint16, name string) error {
	c, err := v.dial(v.ctx, name, port)
	if err != nil {
		return err
	}
	text := []byte("POST /echo HTTP/1.1\r\nHost: " + name + "\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	if port == 443 {
		text = append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, text...)
	}
	for range v.IntN(5) {
		text[v.IntN(len(text))] = byte(v.IntN(256))
	}
	text = text[:1+v.IntN(len(text))]
	if _, err := c.Write(text); err != nil {
		return err
	}
	if v.IntN(2) == 0 {
		closeWrite(c)
	} else {
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	}
	io.Copy(io.Discard, c) // whatever it is
	return nil
}

// syns begins connections that the guest's own kernel knows nothing of.
func (v *visit) syns() error {
	n := 1 + v.IntN(50)
	if v.IntN(10) == 0 {
		n = 400 // more than may be half open
	}
	names := []string{"plain.test", "slow.test", "raw.test", "gone.test"}
	addr, err := v.address(v.ctx, names[v.IntN(len(names))])
	if err != nil {
		return err
	}
	for range n {
		to := netip.AddrPortFrom(addr, []uint16{80, 443, 7000}[v.IntN(3)])
		h := header.TCP(make([]byte, header.TCPMinimumSize))
		h.Encode(&header.TCPFields{SrcPort: uint16(1024 + v.IntN(14000)), DstPort: to.Port(), SeqNum: v.Uint32(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1000})
		if err := v.guest.SendFrame(v.packet(to.Addr(), header.TCPProtocolNumber, h)); err != nil {
			return err
		}
	}
	return nil
}

// packet is an IPv4 packet in a frame of the guest's.
func (v *visit) packet(to netip.Addr, protocol tcpip.TransportProtocolNumber, payload []byte) []byte {
	from := v.guest.Address.Addr()
	if protocol == header.TCPProtocolNumber {
		h := header.TCP(payload)
		h.SetChecksum(^checksum.Checksum(h, header.PseudoHeaderChecksum(protocol, tcpip.AddrFrom4(from.As4()), tcpip.AddrFrom4(to.As4()), uint16(len(h)))))
	}
	b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(payload))
	h := header.IPv4(b)
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b) + len(payload)), TTL: 64, Protocol: uint8(protocol),
		SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(to.As4()),
	})
	h.SetChecksum(^h.CalculateChecksum())
	frame := append([]byte("\x52\x54\x00\x12\x34\x01"), v.guest.MAC...)
	frame = binary.BigEndian.AppendUint16(frame, 0x0800)
	return append(append(frame, b...), payload...)
}

// frames sends frames that are nearly right, or not at all.
func (v *visit) frames() error {
	protocols := []tcpip.TransportProtocolNumber{header.ICMPv4ProtocolNumber, header.TCPProtocolNumber, header.UDPProtocolNumber, 41}
	for range 1 + v.IntN(50) {
		payload := make([]byte, 20+v.IntN(1400))
		for i := range payload {
			payload[i] = byte(v.IntN(256))
		}
		// Its port is none that the guest's kernel uses.
		binary.BigEndian.PutUint16(payload, uint16(1024+v.IntN(14000)))
		frame := v.packet(netip.AddrFrom4([4]byte{198, 18, 0, byte(v.IntN(12))}), protocols[v.IntN(len(protocols))], payload)
		for range v.IntN(4) {
			frame[v.IntN(34)] = byte(v.IntN(256))
		}
		if v.IntN(4) == 0 {
			frame = frame[:1+v.IntN(len(frame))]
		}
		if err := v.guest.SendFrame(frame); err != nil {
			return err
		}
	}
	return nil
}

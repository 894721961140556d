package netstack_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/testnet"
)

const (
	theGuest  = "\x52\x54\x00\x12\x34\x56"
	ourselves = "\x52\x54\x00\x12\x34\x01"
	everybody = "\xff\xff\xff\xff\xff\xff"
)

func ethernet(to, from string, kind uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte(to+from), kind)
	return append(b, payload...)
}

// packet is an IPv4 packet in a frame from the guest to us.
func packet(from, to string, protocol uint8, payload []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(payload))
	h := header.IPv4(b)
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b) + len(payload)),
		TTL:         64,
		Protocol:    protocol,
		SrcAddr:     tcpip.AddrFrom4(netip.MustParseAddr(from).As4()),
		DstAddr:     tcpip.AddrFrom4(netip.MustParseAddr(to).As4()),
	})
	h.SetChecksum(^h.CalculateChecksum())
	return ethernet(ourselves, theGuest, 0x0800, append(b, payload...))
}

// segment is one of TCP, from the guest's port 1234 to port 443.
func segment(flags header.TCPFlags) []byte {
	h := header.TCP(make([]byte, header.TCPMinimumSize))
	h.Encode(&header.TCPFields{SrcPort: 1234, DstPort: 443, SeqNum: 77, AckNum: 99, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 1000})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFrom4(guestIP.As4()), tcpip.AddrFrom4(far.Addr().As4()), uint16(len(h)))
	h.SetChecksum(^checksum.Checksum(h, sum))
	return packet("192.168.100.2", "93.184.216.34", 6, h)
}

func arp(op uint8, senderMAC, senderIP, targetIP string) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, op}
	b = append(b, senderMAC...)
	b = append(b, netip.MustParseAddr(senderIP).AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = append(b, netip.MustParseAddr(targetIP).AsSlice()...)
	return ethernet(everybody, theGuest, 0x0806, b)
}

// bare returns a stack, and a guest that has only the wire's end of its card: the
// address of the guest's own kernel is another, so it says nothing.
func bare(tb testing.TB, config netstack.Config, handler netstack.Handler) (*netstack.Stack, *testnet.Guest) {
	tb.Helper()
	return startWith(tb, config, handler, testnet.GuestConfig{
		Address: netip.MustParsePrefix("10.9.9.9/24"),
		Gateway: netip.MustParseAddr("10.9.9.1"),
	})
}

func TestDropped(t *testing.T) {
	const me, there = "192.168.100.2", "93.184.216.34"
	syn := segment(header.TCPFlagSyn)
	edit := func(frame []byte, at int, b ...byte) []byte {
		frame = bytes.Clone(frame)
		copy(frame[at:], b)
		return frame
	}
	for name, test := range map[string]struct {
		frame []byte
		want  netstack.Reason
	}{
		"short":                 {syn[:13], netstack.Malformed},
		"no packet":             {syn[:14], netstack.Malformed},
		"truncated packet":      {syn[:40], netstack.Malformed},
		"oversize":              {make([]byte, 1515), netstack.Malformed},
		"another card's":        {edit(syn, 6, 2), netstack.ForeignMAC},
		"to another card":       {edit(syn, 0, 2), netstack.NotForGateway},
		"unicast, broadcast":    {edit(syn, 0, []byte(everybody)...), netstack.NotForGateway},
		"another's address":     {packet("192.168.100.3", there, 6, syn[34:]), netstack.ForeignAddress},
		"our address":           {packet("192.168.100.1", there, 6, syn[34:]), netstack.ForeignAddress},
		"IPv6":                  {ethernet(ourselves, theGuest, 0x86dd, syn[14:]), netstack.IPv6},
		"VLAN":                  {ethernet(ourselves, theGuest, 0x8100, syn[12:]), netstack.OtherProtocol},
		"SCTP":                  {packet(me, there, 132, syn[34:]), netstack.OtherProtocol},
		"IPv4 options":          {edit(syn, 14, 0x46), netstack.OtherProtocol},
		"broadcast":             {packet(me, "255.255.255.255", 17, syn[34:]), netstack.NotUnicast},
		"broadcast of the link": {packet(me, "192.168.100.255", 17, syn[34:]), netstack.NotUnicast},
		"multicast":             {packet(me, "224.0.0.251", 17, syn[34:]), netstack.NotUnicast},
		"loopback":              {packet(me, "127.0.0.1", 6, syn[34:]), netstack.NotUnicast},
		"to itself":             {packet(me, me, 6, syn[34:]), netstack.NotUnicast},
		"ping elsewhere":        {packet(me, there, 1, []byte{8, 0, 0, 0, 0, 0, 0, 0}), netstack.OtherICMP},
		"redirect":              {packet(me, "192.168.100.1", 1, []byte{5, 0, 0, 0, 0, 0, 0, 0}), netstack.OtherICMP},
		"ARP for another":       {arp(2, theGuest, "192.168.100.1", me), netstack.ForeignAddress},
		"ARP of another card":   {arp(1, "\x02\x00\x00\x00\x00\x01", me, "192.168.100.1"), netstack.ForeignAddress},
		"short ARP":             {arp(1, theGuest, me, "192.168.100.1")[:30], netstack.Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			notes := make(chan netstack.Note, 10)
			s, guest := bare(t, netstack.Config{}, netstack.Handler{
				TCP:  func(context.Context, *netstack.TCPFlow) { t.Error("became a flow") },
				UDP:  func(context.Context, *netstack.UDPFlow) { t.Error("became a flow") },
				Note: func(n netstack.Note) { notes <- n },
			})
			for range 2 {
				if err := guest.SendFrame(test.frame); err != nil {
					t.Fatal(err)
				}
			}
			if note := <-notes; note != (netstack.Note{Reason: test.want, Count: 1}) {
				t.Errorf("note %v of %v, want %v", note, note.Reason, test.want)
			}
			// One that has an answer, to know that both have been looked at.
			guest.SendFrame(arp(1, theGuest, me, "192.168.100.1"))
			if frame, err := guest.ReadFrame(withTimeout(t)); err != nil || frame[13] != 6 {
				t.Errorf("the next frame is % x, %v; want an answer to ARP", frame, err)
			}
			if got := s.Stats().Dropped; got[test.want] != 2 || len(got) != 1 {
				t.Errorf("dropped %v, want 2 for %v", got, test.want)
			}
			if len(notes) > 0 {
				t.Error("a second note at once")
			}
		})
	}
}

// What a guest says on connections that it had before it was copied.
func TestUnknownConnection(t *testing.T) {
	_, guest := bare(t, netstack.Config{}, netstack.Handler{TCP: echo})
	if err := guest.SendFrame(segment(header.TCPFlagAck | header.TCPFlagPsh)); err != nil {
		t.Fatal(err)
	}
	frame, err := guest.ReadFrame(withTimeout(t))
	if err != nil {
		t.Fatal(err)
	}
	if h := header.TCP(frame[34:]); !h.Flags().Contains(header.TCPFlagRst) || h.SequenceNumber() != 99 {
		t.Errorf("answer % x: flags %s, want a reset", frame, h.Flags())
	}
}

func TestLimits(t *testing.T) {
	for name, test := range map[string]struct {
		limits netstack.Limits
		want   netstack.Reason
	}{
		"half-open": {netstack.Limits{HalfOpen: 2}, netstack.HalfOpenLimit},
		"flows":     {netstack.Limits{Flows: 2}, netstack.FlowLimit},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan struct{}, 2)
			notes := make(chan netstack.Note, 10)
			s, guest := start(t, netstack.Config{Limits: test.limits}, netstack.Handler{
				TCP: func(ctx context.Context, f *netstack.TCPFlow) {
					asked <- struct{}{}
					<-ctx.Done()
				},
				Note: func(n netstack.Note) { notes <- n },
			})
			failed := make(chan error, 2)
			for range 2 {
				go func() {
					_, err := guest.DialTCP(withTimeout(t), far)
					failed <- err
				}()
				<-asked
			}
			if _, err := guest.DialTCP(withTimeout(t), far); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("one more: %v, want connection refused", err)
			}
			if note := <-notes; note.Reason != test.want {
				t.Errorf("note of %v, want %v", note.Reason, test.want)
			}
			s.Close()
			for range 2 {
				if err := <-failed; err == nil {
					t.Error("a connection was accepted")
				}
			}
		})
	}
}

// A guest that stands still takes no frame; Close must not wait for it.
func TestCloseUnread(t *testing.T) {
	noLeaks(t)
	host, other := testnet.Link(t)
	defer other.Close()
	s, err := netstack.New(t.Context(), netstack.Config{Link: host, Gateway: gateway, Guest: guestIP, GuestMAC: guestMAC}, netstack.Handler{})
	if err != nil {
		t.Fatal(err)
	}
	question := arp(1, theGuest, "192.168.100.2", "192.168.100.1")
	for s.Stats().Unread == 0 {
		if _, err := other.Write(question); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	s.Close()
	s.Close()
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(segment(header.TCPFlagSyn), []byte{})
	f.Add(segment(header.TCPFlagSyn), segment(header.TCPFlagAck))
	f.Add(arp(1, theGuest, "192.168.100.2", "192.168.100.1"), []byte{})
	f.Add(packet("192.168.100.2", "9.9.9.9", 17, []byte("\x04\xd2\x00\x35\x00\x15\x00\x00query 678901")), []byte{})
	f.Add(packet("192.168.100.2", "192.168.100.1", 1, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}), []byte{})
	s, guest := bare(f, netstack.Config{}, netstack.Handler{
		TCP: func(_ context.Context, f *netstack.TCPFlow) { f.Refuse() },
		UDP: func(_ context.Context, f *netstack.UDPFlow) { f.Refuse() },
		DNS: func(_ context.Context, q []byte, _ bool) []byte { return q },
	})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		for _, frame := range [][]byte{first, second} {
			guest.SendFrame(frame) // one that is too large for the socket is not sent
		}
		// An honest question is still answered after it.
		guest.SendFrame(arp(1, theGuest, "192.168.100.2", "192.168.100.1"))
		for {
			frame, err := guest.ReadFrame(withTimeout(t))
			if err != nil {
				t.Fatal("no answer to ARP: ", err)
			}
			if len(frame) >= 14 && frame[12] == 8 && frame[13] == 6 {
				break
			}
		}
		ends(t, s)
	})
}

// TestAnnouncement has QEMU announce a guest, which is nothing to be told of.
func TestAnnouncement(t *testing.T) {
	notes := make(chan netstack.Note, 10)
	s, guest := bare(t, netstack.Config{}, netstack.Handler{Note: func(n netstack.Note) { notes <- n }})
	for _, kind := range []uint16{0x8035, 0x86dd} { // RARP, and IPv6, of which is told
		if err := guest.SendFrame(ethernet(everybody, theGuest, kind, make([]byte, 46))); err != nil {
			t.Fatal(err)
		}
	}
	if note := <-notes; note.Reason != netstack.IPv6 {
		t.Errorf("note %v, want one of IPv6 alone", note)
	}
	if dropped := s.Stats().Dropped; len(dropped) != 1 {
		t.Errorf("dropped are %v, want IPv6 alone", dropped)
	}
}

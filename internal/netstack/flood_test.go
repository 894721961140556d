package netstack_test

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/testnet"
)

// wire returns a stack, and the end of its guest's card without anything behind it.
func wire(t *testing.T, limits netstack.Limits, handler netstack.Handler) (*netstack.Stack, net.Conn) {
	t.Helper()
	noLeaks(t)
	host, file := testnet.Link(t)
	other, err := net.FileConn(file) // whose Close ends a Read
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	s, err := netstack.New(t.Context(), netstack.Config{Limits: limits, Link: host, Gateway: gateway, Guest: guestIP, GuestMAC: guestMAC}, handler)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, other
}

// heap is what lives in memory, in bytes.
func heap() int64 {
	for range 3 { // what lies in pools is let go by the second one
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// from is a segment of TCP from a port of the guest's to one far away.
func from(port uint16, seq, ack uint32, flags header.TCPFlags, payload []byte) []byte {
	h := make([]byte, header.TCPMinimumSize, header.TCPMinimumSize+len(payload))
	header.TCP(h).Encode(&header.TCPFields{SrcPort: port, DstPort: 443, SeqNum: seq, AckNum: ack, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 1000})
	return packet("192.168.100.2", "93.184.216.34", 6, append(h, payload...)) // whose checksum nobody looks at
}

// TestFlood sends 40,000 frames, of which some ask for something, to handlers that
// never come to an end. What is kept of them is bounded, and a question is answered
// meanwhile.
func TestFlood(t *testing.T) {
	held := func(ctx context.Context) { <-ctx.Done() }
	s, card := wire(t, netstack.Limits{}, netstack.Handler{
		TCP: func(ctx context.Context, f *netstack.TCPFlow) { held(ctx) },
		UDP: func(ctx context.Context, f *netstack.UDPFlow) { held(ctx) },
		DNS: func(ctx context.Context, q []byte, _ bool) []byte { held(ctx); return nil },
	})
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		return b
	}
	junk := random(1500)
	address := func() string {
		return netip.AddrFrom4([4]byte(append([]byte{byte(1 + rand.IntN(126))}, random(3)...))).String()
	}
	datagram := func(port uint16, payload []byte) []byte {
		h := make([]byte, header.UDPMinimumSize)
		header.UDP(h).Encode(&header.UDPFields{SrcPort: uint16(rand.Uint32() | 1), DstPort: port, Length: uint16(len(h) + len(payload))})
		return append(h, payload...)
	}
	made := []func() []byte{
		func() []byte { return junk[:rand.IntN(len(junk))] },
		func() []byte { return ethernet(ourselves, string(random(6)), 0x0800, junk[:100]) },
		func() []byte { return packet(address(), address(), 6, junk[:60]) },
		func() []byte { return arp(2, theGuest, "192.168.100.1", "192.168.100.2") },
		func() []byte { return from(uint16(rand.Uint32()), rand.Uint32(), 0, header.TCPFlagSyn, nil) },
		func() []byte {
			return packet("192.168.100.2", address(), 17, datagram(uint16(rand.Uint32()|1), junk[:200]))
		},
		func() []byte { return packet("192.168.100.2", "192.168.100.1", 17, datagram(53, junk[:40])) },
		func() []byte { // never completed
			f := packet("192.168.100.2", address(), 17, junk[:1400])
			h := header.IPv4(f[header.EthernetMinimumSize:])
			h.SetID(uint16(rand.Uint32()))
			h.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
			h.SetChecksum(0)
			h.SetChecksum(^h.CalculateChecksum())
			return f
		},
	}
	answers := make(chan struct{}, 1)
	go func() {
		b := make([]byte, 2000)
		for {
			n, err := card.Read(b)
			if err != nil {
				return
			}
			if n > 20 && b[12] == 8 && b[13] == 6 {
				select {
				case answers <- struct{}{}:
				default:
				}
			}
		}
	}()
	before, goroutines := heap(), runtime.NumGoroutine()
	most := 0
	question := arp(1, theGuest, "192.168.100.2", "192.168.100.1")
	for i := range 40_000 {
		frame := made[i%len(made)]()
		if i%5000 == 0 {
			frame = question
		}
		if _, err := card.Write(frame); err != nil && len(frame) > 0 { // Go waits for no room for an empty one
			t.Fatal(err)
		}
		if i%5000 == 0 {
			select {
			case <-answers:
			case <-time.After(10 * time.Second):
				t.Fatalf("no answer among %d frames", i)
			}
			most = max(most, runtime.NumGoroutine()-goroutines)
		}
	}
	kept := heap() - before
	t.Logf("%d KiB, at most %d goroutines; dropped %v", kept>>10, most, s.Stats().Dropped)
	// 256 flows that are undecided, and 64 queries.
	if kept > 32<<20 || most > 400 {
		t.Errorf("it keeps %d KiB and %d goroutines", kept>>10, most)
	}
}

// TestHoard opens as many connections as there may be to a handler that reads nothing,
// and fills each, by large segments or by single bytes that leave gaps.
func TestHoard(t *testing.T) {
	const flows = 1000
	for name, test := range map[string]struct {
		flows, segments, size, step int
		most                        int64
	}{
		"large":        {flows + 1, 64, 1400, 1400, 110 << 20},
		"single bytes": {16, 2000, 1, 2, 16 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s, card := wire(t, netstack.Limits{Flows: flows}, netstack.Handler{TCP: func(ctx context.Context, f *netstack.TCPFlow) {
				conn, err := f.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				<-ctx.Done()
			}})
			before := heap()
			open := make(chan [2]uint32, test.flows) // ports, and what they have to acknowledge
			go func() {
				defer close(open)
				b := make([]byte, 2000)
				for {
					n, err := card.Read(b)
					if err != nil {
						return
					}
					if n < 54 || b[23] != 6 {
						continue
					}
					if h := header.TCP(b[34:n]); h.Flags() == header.TCPFlagSyn|header.TCPFlagAck {
						select {
						case open <- [2]uint32{uint32(h.DestinationPort()), h.SequenceNumber() + 1}:
						default: // again
						}
					}
				}
			}()
			send := func(frame []byte) {
				if _, err := card.Write(frame); err != nil {
					t.Fatal(err)
				}
			}
			payload := make([]byte, test.size)
			opened := 0
			for i := range test.flows {
				port := uint16(1024 + i)
				send(from(port, 77, 0, header.TCPFlagSyn, nil))
				var ack uint32
				for deadline := time.After(2 * time.Second); ack == 0; {
					select {
					case o := <-open:
						if uint16(o[0]) == port {
							ack = o[1]
						}
					case <-deadline:
						ack = 1
					}
				}
				if ack == 1 {
					break // no more are let in
				}
				opened++
				send(from(port, 78, ack, header.TCPFlagAck, nil))
				first := 0
				if test.step > test.size {
					first = 1 // what comes first is missing
				}
				for n := range test.segments {
					send(from(port, 78+uint32(first+n*test.step), ack, header.TCPFlagAck, payload))
				}
			}
			kept := heap() - before
			t.Logf("%d connections keep %d KiB, %d each; dropped %v", opened, kept>>10, kept>>10/int64(opened), s.Stats().Dropped)
			if opened != min(test.flows, flows) || kept > test.most {
				t.Errorf("%d connections keep %d KiB", opened, kept>>10)
			}
		})
	}
}

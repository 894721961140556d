package netstack_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/testnet"
)

var (
	gateway  = netip.MustParsePrefix("192.168.100.1/24")
	guestIP  = netip.MustParseAddr("192.168.100.2")
	guestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	far      = netip.MustParseAddrPort("93.184.216.34:443")
)

// start returns a stack and a guest on one link.
func start(tb testing.TB, config netstack.Config, handler netstack.Handler) (*netstack.Stack, *testnet.Guest) {
	tb.Helper()
	return startWith(tb, config, handler, testnet.GuestConfig{MTU: config.MTU})
}

func startWith(tb testing.TB, config netstack.Config, handler netstack.Handler, of testnet.GuestConfig) (*netstack.Stack, *testnet.Guest) {
	tb.Helper()
	noLeaks(tb)
	host, other := testnet.Link(tb)
	config.Link, config.Gateway, config.Guest, config.GuestMAC = host, gateway, guestIP, guestMAC
	s, err := netstack.New(tb.Context(), config, handler)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s, testnet.NewGuest(tb, other, of)
}

// noLeaks fails the test when goroutines are left that have to do with networks.
func noLeaks(tb testing.TB) {
	tb.Cleanup(func() {
		var stacks []string
		// What has been told to end needs a moment to be gone.
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
			stacks = nil
			buf := make([]byte, 4<<20)
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "gvisor.dev/") || strings.Contains(g, "internal/netstack.(") {
					stacks = append(stacks, g)
				}
			}
			if len(stacks) == 0 {
				return
			}
		}
		tb.Errorf("%d goroutines are left:\n%s", len(stacks), strings.Join(stacks, "\n\n"))
	})
}

func withTimeout(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	tb.Cleanup(cancel)
	return ctx
}

// echo accepts, and sends back what comes until the guest ends its direction.
func echo(_ context.Context, f *netstack.TCPFlow) {
	conn, err := f.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	io.Copy(conn, conn)
	conn.CloseWrite()
}

func TestTCP(t *testing.T) {
	flows := make(chan *netstack.TCPFlow, 1)
	_, guest := start(t, netstack.Config{}, netstack.Handler{TCP: func(ctx context.Context, f *netstack.TCPFlow) {
		flows <- f
		echo(ctx, f)
	}})
	conn, err := guest.DialTCP(withTimeout(t), far)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if f := <-flows; f.Destination() != far || f.Guest().Addr() != guestIP || f.Guest().Port() == 0 {
		t.Errorf("flow from %s to %s, want from %s to %s", f.Guest(), f.Destination(), guestIP, far)
	}
	sent := bytes.Repeat([]byte("matchlock"), 300_000)
	go func() {
		conn.Write(sent)
		conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("echo of %d bytes: %d bytes, %v", len(sent), len(got), err)
	}
}

func TestTCPRefused(t *testing.T) {
	for name, handler := range map[string]func(context.Context, *netstack.TCPFlow){
		"no handler":  nil,
		"refused":     func(_ context.Context, f *netstack.TCPFlow) { f.Refuse() },
		"no decision": func(context.Context, *netstack.TCPFlow) {},
		"refused late": func(_ context.Context, f *netstack.TCPFlow) {
			time.Sleep(50 * time.Millisecond)
			f.Refuse()
			f.Refuse()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, guest := start(t, netstack.Config{}, netstack.Handler{TCP: handler})
			_, err := guest.DialTCP(withTimeout(t), far)
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("dial: %v, want connection refused", err)
			}
			ends(t, s)
		})
	}
}

// ends waits until the stack carries nothing.
func ends(tb testing.TB, s *netstack.Stack) {
	tb.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		stats := s.Stats()
		if stats.Flows == 0 && stats.HalfOpen == 0 && stats.Queries == 0 {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("left: %+v", stats)
		}
	}
}

func TestResetByGuest(t *testing.T) {
	result := make(chan error, 1)
	s, guest := start(t, netstack.Config{}, netstack.Handler{TCP: func(_ context.Context, f *netstack.TCPFlow) {
		conn, err := f.Accept()
		if err == nil {
			defer conn.Close()
			conn.Write([]byte("unread"))
			_, err = conn.Read(make([]byte, 1))
		}
		result <- err
	}})
	conn, err := guest.DialTCP(withTimeout(t), far)
	if err != nil {
		t.Fatal(err)
	}
	conn.Read(make([]byte, 1))
	conn.Close() // with data that it did not read
	if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want ECONNRESET", err)
	}
	ends(t, s)
}

func TestDialGuest(t *testing.T) {
	s, guest := start(t, netstack.Config{}, netstack.Handler{})
	l, err := guest.ListenTCP(80)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(conn, conn)
	}()
	conn, err := s.DialTCP(withTimeout(t), netip.AddrPortFrom(guestIP, 80))
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("hello"))
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("echo: %q, %v", got, err)
	}
	conn.Close()
	ends(t, s)

	if _, err := s.DialTCP(withTimeout(t), netip.AddrPortFrom(guestIP, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a closed port: %v, want ECONNREFUSED", err)
	}
	if _, err := s.DialTCP(withTimeout(t), far); err == nil {
		t.Error("dialled another address than the guest's")
	}
	ends(t, s)
}

func TestUDP(t *testing.T) {
	s, guest := start(t, netstack.Config{}, netstack.Handler{UDP: func(_ context.Context, f *netstack.UDPFlow) {
		conn, err := f.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, 2000)
		n, _ := conn.Read(buf)
		conn.Write(buf[:n])
	}})
	conn, err := guest.DialUDP(far)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("ping"))
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "ping" {
		t.Errorf("echo: %q, %v", buf[:n], err)
	}
	ends(t, s)
}

func TestUDPRefused(t *testing.T) {
	for name, handler := range map[string]func(context.Context, *netstack.UDPFlow){
		"no handler":  nil,
		"refused":     func(_ context.Context, f *netstack.UDPFlow) { f.Refuse() },
		"no decision": func(context.Context, *netstack.UDPFlow) {},
	} {
		t.Run(name, func(t *testing.T) {
			s, guest := start(t, netstack.Config{}, netstack.Handler{UDP: handler})
			conn, err := guest.DialUDP(far)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Write([]byte("ping"))
			if err := readError(conn); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("read: %v, want connection refused", err)
			}
			ends(t, s)
		})
	}
}

// readError returns the error of a socket of the guest's. It asks again and again:
// a gVisor that waits for a datagram is not woken by an ICMP error.
func readError(conn net.Conn) error {
	for end := time.Now().Add(10 * time.Second); ; {
		conn.SetDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := conn.Read(make([]byte, 1))
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() && time.Now().Before(end) {
			continue
		}
		return err
	}
}

func TestDNS(t *testing.T) {
	query := []byte("0123456789ab query")
	answer := bytes.Repeat([]byte("answer"), 200)
	s, guest := start(t, netstack.Config{}, netstack.Handler{DNS: func(_ context.Context, q []byte, tcp bool) []byte {
		if !bytes.Equal(q, query) {
			t.Errorf("query %q, want %q", q, query)
		}
		if tcp {
			return append([]byte("tcp "), answer...)
		}
		return answer
	}})
	server := netip.MustParseAddrPort("9.9.9.9:53")
	conn, err := guest.DialUDP(server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("short"))
	conn.Write(query)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 1500)
	if n, err := conn.Read(buf); err != nil || !bytes.Equal(buf[:n], answer) {
		t.Errorf("by UDP: %q, %v", buf[:n], err)
	}

	stream, err := guest.DialTCP(withTimeout(t), server)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	stream.SetDeadline(time.Now().Add(10 * time.Second))
	message := append([]byte{0, byte(len(query))}, query...)
	stream.Write(append(message, message...))
	for range 2 {
		got := make([]byte, 2+4+len(answer))
		if _, err := io.ReadFull(stream, got); err != nil || !bytes.Equal(got[6:], answer) || string(got[2:6]) != "tcp " {
			t.Errorf("by TCP: %q, %v", got, err)
		}
	}
	stream.Close()
	ends(t, s)
}

package netstack_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/netstack"
)

// accepted has the guest open a connection, and returns both its ends.
func accepted(t *testing.T) (*netstack.Stack, *netstack.Conn, net.Conn) {
	t.Helper()
	conns := make(chan *netstack.Conn, 1)
	s, guest := start(t, netstack.Config{}, netstack.Handler{TCP: func(_ context.Context, f *netstack.TCPFlow) {
		conn, err := f.Accept()
		if err != nil {
			t.Error(err)
		}
		if _, err := f.Accept(); err == nil {
			t.Error("accepted twice")
		}
		conns <- conn
	}})
	there, err := guest.DialTCP(withTimeout(t), far)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	there.SetDeadline(time.Now().Add(10 * time.Second))
	return s, <-conns, there
}

func wantReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("guest's read: %v, want connection reset", err)
	}
}

func TestAbort(t *testing.T) {
	s, here, there := accepted(t)
	here.Abort()
	here.Abort()
	wantReset(t, there)
	if _, err := here.Write([]byte{1}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write: %v, want net.ErrClosed", err)
	}
	ends(t, s)
}

func TestCloseResets(t *testing.T) {
	s, here, there := accepted(t)
	failed := make(chan error, 1)
	go func() {
		_, err := here.Read(make([]byte, 1))
		failed <- err
	}()
	s.Close()
	wantReset(t, there)
	if err := <-failed; err == nil || err == io.EOF {
		t.Errorf("our read: %v, want an error", err)
	}
	ends(t, s)
	if _, err := s.DialTCP(t.Context(), netip.AddrPortFrom(guestIP, 80)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after Close: %v, want net.ErrClosed", err)
	}
}

func TestHalfClose(t *testing.T) {
	s, here, there := accepted(t)
	here.Write([]byte("from us"))
	here.CloseWrite()
	if got, err := io.ReadAll(there); err != nil || string(got) != "from us" {
		t.Errorf("guest has read %q, %v", got, err)
	}
	there.Write([]byte("from the guest")) // which has only read io.EOF so far
	there.Close()
	if got, err := io.ReadAll(here); err != nil || string(got) != "from the guest" {
		t.Errorf("we have read %q, %v", got, err)
	}
	here.Close()
	ends(t, s)
}

func TestDeadline(t *testing.T) {
	_, here, _ := accepted(t)
	defer here.Close()
	here.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := here.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v, want os.ErrDeadlineExceeded", err)
	}
}

// A guest that reads nothing holds up who writes to it.
func TestBackPressure(t *testing.T) {
	_, here, _ := accepted(t)
	defer here.Abort()
	here.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := here.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > 8<<20 {
		t.Errorf("write: %d bytes, %v; want a deadline after some MiB", n, err)
	}
}

func TestDialGuestUDP(t *testing.T) {
	s, guest := start(t, netstack.Config{}, netstack.Handler{})
	socket, err := guest.ListenUDP(5353)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	conn, err := s.DialUDP(netip.AddrPortFrom(guestIP, 5353))
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("ping"))
	socket.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	n, from, err := socket.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "ping" {
		t.Fatalf("guest got %q, %v", buf[:n], err)
	}
	socket.WriteTo([]byte("pong"), from)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "pong" {
		t.Errorf("we got %q, %v", buf[:n], err)
	}
	conn.Close()
	ends(t, s)
}

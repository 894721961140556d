//go:build linux

package agent

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/internal/wire"
)

// listen starts a TCP server on the loopback that serves each connection by serve.
func listen(t *testing.T, network, address string, serve func(*net.TCPConn)) (port uint32) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn.(*net.TCPConn))
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

func TestForward(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		t.Run(network, func(t *testing.T) {
			if l, err := net.Listen(network, address); err != nil {
				t.Skip("this host has no such loopback: ", err)
			} else {
				l.Close()
			}
			c := newPair(t)
			port := listen(t, network, address, func(conn *net.TCPConn) {
				request, _ := io.ReadAll(conn) // until the half-close
				io.WriteString(conn, "answer to "+string(request))
			})
			conn, err := c.host.Dial(t.Context(), wire.PortForward+port)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "request")
			conn.(*wire.Stream).CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || string(got) != "answer to request" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestForwardGuestClosesFirst(t *testing.T) {
	c := newPair(t)
	rest := make(chan string, 1)
	port := listen(t, "tcp4", "127.0.0.1:0", func(conn *net.TCPConn) {
		io.WriteString(conn, "greeting")
		conn.CloseWrite()
		got, _ := io.ReadAll(conn)
		rest <- string(got)
	})
	conn, err := c.host.Dial(t.Context(), wire.PortForward+port)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "greeting" {
		t.Errorf("got %q, %v", got, err)
	}
	io.WriteString(conn, "still listening?")
	conn.Close()
	if got := <-rest; got != "still listening?" {
		t.Errorf("the guest got %q", got)
	}
}

func TestForwardReset(t *testing.T) {
	c := newPair(t)
	guestErr := make(chan error, 1)
	port := listen(t, "tcp4", "127.0.0.1:0", func(conn *net.TCPConn) {
		buf := make([]byte, 1)
		_, err := conn.Read(buf)
		if buf[0] == 'g' {
			conn.SetLinger(0) // closes by a reset
			return
		}
		if err == nil { // else the reset was faster than what went before, and is told once
			_, err = io.ReadAll(conn)
		}
		guestErr <- err
	})
	conn, err := c.host.Dial(t.Context(), wire.PortForward+port)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "g")
	if _, err := io.ReadAll(conn); !errors.Is(err, wire.ErrReset) {
		t.Errorf("after the guest's reset: %v, want ErrReset", err)
	}
	conn.Close()

	conn, err = c.host.Dial(t.Context(), wire.PortForward+port)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "h")
	conn.(*wire.Stream).Reset()
	if err := <-guestErr; err == nil {
		t.Error("the host's reset was a clean end for the guest")
	}
}

func TestForwardRefused(t *testing.T) {
	c := newPair(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := uint32(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	for port, want := range map[uint32]string{
		wire.PortForward + free:  "connection refused",
		wire.PortForward:         "no service",
		wire.PortForward + 65536: "no service",
		wire.PortControl:         "no service",
		0:                        "no service",
		1<<32 - 1:                "no service",
	} {
		conn, err := c.host.Dial(t.Context(), port)
		if !errors.Is(err, wire.ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("port %d: %v, %v; want a refusal: %s", port, conn, err, want)
		}
	}
}

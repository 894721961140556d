package control

import (
	"bufio"
	"io"
	"net"
	"testing"
)

// A command may end, and its attachment be closed, while input is on its way. Nobody
// is told that as a fault of the socket.
func TestInputAfterTheEnd(t *testing.T) {
	for name, end := range map[string]func(own, other net.Conn) error{
		"this end":  func(own, _ net.Conn) error { return own.Close() },
		"the other": func(_, other net.Conn) error { return other.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("unix", t.TempDir()+"/socket")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			own, err := net.Dial("unix", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			other, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			a := newAttachment(own, bufio.NewReader(own))
			if err := end(own, other); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Write([]byte("input")); err != io.ErrClosedPipe {
				t.Errorf("Write: %v, want io.ErrClosedPipe", err)
			}
			if err := a.CloseWrite(); err != nil {
				t.Errorf("CloseWrite: %v", err)
			}
		})
	}
}

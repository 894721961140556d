package netstack_test

import (
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/testnet"
)

// TestReset moves a guest with a connection from one stack to another, as a copy of a
// machine is: its program, which only waits, learns of it at once.
func TestReset(t *testing.T) {
	noLeaks(t)
	guestsHost, guestsOwn := testnet.Link(t)
	guest := testnet.NewGuest(t, guestsOwn, testnet.GuestConfig{})
	var stacks [2]*netstack.Stack
	var ends [2]*os.File
	var current atomic.Int32
	for i := range stacks {
		host, other := testnet.Link(t)
		s, err := netstack.New(t.Context(), netstack.Config{Link: host, Gateway: gateway, Guest: guestIP, GuestMAC: guestMAC}, netstack.Handler{TCP: echo})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		stacks[i], ends[i] = s, other
	}
	var passing sync.WaitGroup
	t.Cleanup(func() {
		for _, link := range append(ends[:], guestsHost) {
			syscall.Shutdown(int(link.Fd()), syscall.SHUT_RDWR) // to close it would not wake who reads
		}
		passing.Wait()
		for _, link := range append(ends[:], guestsHost) {
			link.Close()
		}
	})
	passing.Go(func() {
		frame := make([]byte, 2048)
		for {
			n, err := guestsHost.Read(frame)
			if err != nil {
				return
			}
			ends[current.Load()].Write(frame[:n])
		}
	})
	for i, end := range ends {
		passing.Go(func() {
			frame := make([]byte, 2048)
			for {
				n, err := end.Read(frame)
				if err != nil {
					return
				}
				if int(current.Load()) == i {
					guestsHost.Write(frame[:n])
				}
			}
		})
	}

	conn, err := guest.DialTCP(withTimeout(t), far)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	there := stacks[0].Connections()
	if len(there) != 1 || there[0].Other != far || there[0].Guest.Port() != uint16(conn.LocalAddr().(*net.TCPAddr).Port) {
		t.Fatalf("connections are %v, want the one from %v to %v", there, conn.LocalAddr(), far)
	}
	current.Store(1)
	read := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		read <- err
	}()
	foreign := netstack.Connection{Guest: far, Other: far} // of nobody here
	stacks[1].Reset(append(there, foreign))
	if err := <-read; err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("read: %v, want a reset", err)
	}
	if left := stacks[1].Connections(); len(left) != 0 {
		t.Errorf("the other stack has %v", left)
	}
}

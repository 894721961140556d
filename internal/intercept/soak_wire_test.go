package intercept

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/testnet"
)

// soakWire is between a guest and the stacks that it has one after the other.
type soakWire struct {
	guest net.Conn
	pumps sync.WaitGroup
	held  sync.RWMutex // by who pauses the guest

	mu    sync.Mutex
	stack net.Conn // nil: nobody is there
}

func newWire(t *testing.T) (*soakWire, *os.File) {
	ours, guest := testnet.Link(t)
	w := &soakWire{guest: fileConn(t, ours)}
	w.pumps.Go(func() {
		frame := make([]byte, 1<<16)
		for {
			n, err := w.guest.Read(frame)
			if err != nil {
				return
			}
			w.mu.Lock()
			stack := w.stack
			w.mu.Unlock()
			if stack != nil {
				stack.SetWriteDeadline(time.Now().Add(time.Second))
				stack.Write(frame[:n]) // lost if that has ended
			}
		}
	})
	return w, guest
}

func fileConn(t *testing.T, f *os.File) net.Conn {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// plug returns the end for a new stack.
func (w *soakWire) plug(t *testing.T) *os.File {
	host, other := testnet.Link(t)
	conn := fileConn(t, other)
	w.mu.Lock()
	w.stack = conn
	w.mu.Unlock()
	w.pumps.Go(func() {
		frame := make([]byte, 1<<16)
		for {
			n, err := conn.Read(frame)
			if err != nil {
				return
			}
			w.held.RLock()
			w.guest.Write(frame[:n])
			w.held.RUnlock()
		}
	})
	return host
}

func (w *soakWire) unplug() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stack.Close()
	w.stack = nil
}

// pause has the guest take nothing for a while.
func (w *soakWire) pause(ctx context.Context, d time.Duration) {
	w.held.Lock()
	defer w.held.Unlock()
	wait(ctx, d)
}

func (w *soakWire) close() {
	w.guest.Close()
	w.pumps.Wait()
}

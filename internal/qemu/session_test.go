package qemu

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// sessionOf returns an instance whose guest is at the other end of conn, and what it is
// said to have failed with.
func sessionOf(t *testing.T) (i *instance, conn net.Conn, failed chan error, open func(context.Context) (*wire.HostMux, error)) {
	i = &instance{process: &process{ended: make(chan struct{})}}
	i.data, conn = net.Pipe()
	failed = make(chan error, 1)
	t.Cleanup(func() {
		i.endSession()
		conn.Close()
	})
	return i, conn, failed, func(ctx context.Context) (*wire.HostMux, error) {
		return i.channel(ctx, "", 0, func(err error) { failed <- err })
	}
}

// Who does not wait for the guest's hello spoils the session for nobody else, nor has
// anybody else wait.
func TestSessionOfTheImpatient(t *testing.T) {
	_, conn, _, open := sessionOf(t)
	patient := make(chan error, 1)
	go func() {
		_, err := open(t.Context())
		patient <- err
	}()
	enough := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, enough)
	defer cancel()
	if _, err := open(ctx); !errors.Is(err, enough) {
		t.Errorf("the impatient one: %v, want %v", err, enough)
	}
	guest, err := wire.NewGuestMux(t.Context(), conn, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	if err := <-patient; err != nil {
		t.Error(err)
	}
	if _, err := open(t.Context()); err != nil {
		t.Error(err)
	}
}

// A guest that breaks the rules on the data port is given up, and it is said why; one
// that ends is not.
func TestSessionBroken(t *testing.T) {
	t.Run("no hello", func(t *testing.T) {
		_, conn, failed, open := sessionOf(t)
		go func() {
			conn.Read(make([]byte, 100))
			conn.Write(make([]byte, 100))
		}()
		_, err := open(t.Context())
		fault := <-failed
		if !errors.Is(err, wire.ErrProtocol) || !errors.Is(fault, wire.ErrProtocol) || !strings.Contains(fault.Error(), "data port") {
			t.Errorf("got %v, failed with %v", err, fault)
		}
	})
	for name, ends := range map[string]bool{"garbage": false, "end": true} {
		t.Run(name, func(t *testing.T) {
			i, conn, failed, open := sessionOf(t)
			go open(t.Context())
			guest, err := wire.NewGuestMux(t.Context(), conn, 0)
			if err != nil {
				t.Fatal(err)
			}
			if ends {
				close(i.process.ended)
				guest.Close()
			} else {
				conn.Write(make([]byte, 100))
			}
			i.sessionMu.Lock()
			over := &i.session.over
			i.sessionMu.Unlock()
			over.Wait()
			select {
			case err := <-failed:
				if ends || !errors.Is(err, wire.ErrProtocol) {
					t.Errorf("failed with %v", err)
				}
			default:
				if !ends {
					t.Error("nobody was told")
				}
			}
		})
	}
}

package machine

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/matchlock/matchlock/vm"
)

// silent is a Hypervisor whose guest never says a word to the host.
type silent struct {
	ours, theirs net.Conn // ours is the machine's to close
	ended        chan struct{}
}

func (s *silent) Start(context.Context) error { return nil }

func (s *silent) Wait(ctx context.Context) error {
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *silent) Close() error {
	s.theirs.Close()
	close(s.ended)
	return nil
}

func (s *silent) PID() int { return 0 }

func (s *silent) DialVsock(context.Context, uint32) (net.Conn, error) {
	s.ours, s.theirs = net.Pipe()
	return s.ours, nil
}

func (s *silent) LastLines() string { return "Booting; and nothing more" }

// A guest that hangs while it boots does not hang its host.
func TestStartGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config, err := Resolve(overlay(nil))
		if err != nil {
			t.Fatal(err)
		}
		hv := &silent{ended: make(chan struct{})}
		m := New(config, hv, nil, "")
		err = m.Start(t.Context())
		if want := "guest did not come up: no answer within 2m0s; its console said last: Booting; and nothing more"; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if _, err := m.Exec(t.Context(), "true", nil); !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("Exec after a failed start: %v", err)
		}
		if _, err := hv.ours.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the control port is still open: %v", err)
		}
	})
}

// Whoever waits no longer is told that, not what came of it.
func TestStartCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config, err := Resolve(overlay(nil))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		reason := errors.New("no patience")
		m := New(config, &silent{ended: make(chan struct{})}, nil, "")
		started := make(chan error)
		go func() { started <- m.Start(ctx) }()
		synctest.Wait()
		cancel(reason)
		if err := <-started; !errors.Is(err, reason) || strings.Contains(err.Error(), "console") {
			t.Errorf("got %v, want %v", err, reason)
		}
	})
}

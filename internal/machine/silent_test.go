package machine

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// mute is a Hypervisor whose guest is set up like any other, and answers nothing after
// that.
type mute struct {
	silent
	agent.ControlHandler // nil: what is not below is not asked
	close                sync.Once
}

func (*mute) Prepared() bool                     { return true }
func (*mute) IsSetUp() bool                      { return false }
func (*mute) Setup(*agent.Setup) error           { return nil }
func (*mute) Pause(context.Context) error        { return nil }
func (*mute) Resume(context.Context) error       { return nil }
func (m *mute) Close() (err error)               { m.close.Do(func() { err = m.silent.Close() }); return err }
func (m *mute) Reset(epoch uint64) error         { return nil }
func (m *mute) Freeze() error                    { return nil }
func (m *mute) Thaw(time.Time) error             { return nil }
func (m *mute) SetClock(time.Time) error         { return nil }
func (m *mute) PowerOff() error                  { return nil }
func (m *mute) Prepare(*agent.Preparation) error { return nil }

func (m *mute) Snapshot(ctx context.Context, _ vm.SnapshotOptions, _ bool, hold func(context.Context) (func() error, error)) (*vm.Snapshot, error) {
	_, err := hold(ctx)
	return nil, err
}

func (m *mute) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	if port != wire.PortControl {
		<-ctx.Done() // it accepts nothing either
		return nil, context.Cause(ctx)
	}
	conn, err := m.silent.DialVsock(ctx, port)
	go func() {
		// A hello and a set-up are served.
		agent.ServeControl(&twoAnswers{Conn: m.theirs}, m)
		io.Copy(io.Discard, m.theirs)
	}()
	return conn, err
}

// twoAnswers is a connection that fails after two answers.
type twoAnswers struct {
	net.Conn
	written int
}

func (c *twoAnswers) Read(p []byte) (int, error) {
	if c.written == 2 {
		return 0, io.EOF
	}
	return c.Conn.Read(p)
}

func (c *twoAnswers) Write(p []byte) (int, error) {
	c.written++
	return c.Conn.Write(p)
}

// No call waits longer for a guest that does not answer on the control port than it is
// worth, nor for another call that does wait.
func TestMuteGuest(t *testing.T) {
	for name, test := range map[string]struct {
		call func(context.Context, *Machine) error
		want time.Duration
	}{
		"exec":  {func(ctx context.Context, m *Machine) error { _, err := m.Exec(ctx, "true", nil); return err }, setupTimeout},
		"dial":  {func(ctx context.Context, m *Machine) error { _, err := m.Dial(ctx, wire.PortAgent); return err }, setupTimeout},
		"port":  {func(ctx context.Context, m *Machine) error { _, err := m.Dial(ctx, wire.PortForward+80); return err }, setupTimeout},
		"pause": {func(ctx context.Context, m *Machine) error { return m.Pause(ctx) }, freezeTimeout + setupTimeout},
		"snapshot": {func(ctx context.Context, m *Machine) error {
			_, err := m.Snapshot(ctx, vm.SnapshotOptions{})
			return err
		}, freezeTimeout + setupTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config, err := Resolve(overlay(nil))
				if err != nil {
					t.Fatal(err)
				}
				m := New(config, &mute{silent: silent{ended: make(chan struct{})}}, nil, "")
				if err := m.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				defer m.Close(t.Context())
				time.Sleep(2 * clockInterval) // the clock is to be set
				began := time.Now()
				first := make(chan error)
				go func() { first <- test.call(t.Context(), m) }()
				synctest.Wait()

				// One that is in a hurry is not held up by it.
				enough := errors.New("enough")
				for name, call := range map[string]func(context.Context) error{
					"exec":  func(ctx context.Context) error { _, err := m.Exec(ctx, "true", nil); return err },
					"pause": m.Pause,
				} {
					ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
					before := time.Now()
					// What was asked of the guest is undone, which waits for it as well.
					if err := call(ctx); !errors.Is(err, enough) || time.Since(before) > time.Second+setupTimeout {
						t.Errorf("%s meanwhile: %v after %v", name, err, time.Since(before))
					}
					cancel()
				}
				if err := <-first; err == nil || !strings.Contains(err.Error(), "no answer within") {
					t.Errorf("got %v", err)
				}
				if took := time.Since(began); took > test.want+setupTimeout {
					t.Errorf("it took %v, want about %v", took, test.want)
				}
				began = time.Now()
				if err := m.Stop(t.Context()); err != nil || time.Since(began) > stopGrace {
					t.Errorf("Stop: %v after %v", err, time.Since(began))
				}
			})
		})
	}
}

// Stop does not wait for a call that waits for the guest.
func TestStopMuteGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config, err := Resolve(overlay(nil))
		if err != nil {
			t.Fatal(err)
		}
		m := New(config, &mute{silent: silent{ended: make(chan struct{})}}, nil, "")
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		paused := make(chan error)
		go func() { paused <- m.Pause(t.Context()) }()
		synctest.Wait()
		began := time.Now()
		if err := m.Stop(t.Context()); err != nil || time.Since(began) > stopGrace {
			t.Errorf("Stop: %v after %v", err, time.Since(began))
		}
		if err := <-paused; !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("Pause: %v", err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

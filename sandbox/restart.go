package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/state"
)

// Between two lives of a sandbox there is no supervisor but one that holds the folder: the
// one that has ended, then its successor, which listens from before its pause on.

// The pause before a restart: the first one doubles as long as lives are short.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = time.Minute
	longLife   = 10 * time.Second
)

// restarts tells whether the sandbox is to run again after an end with an exit code.
func (s *supervisor) restarts(code int) bool {
	r := s.dir.Record()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready && !s.asked && !s.remove && !r.AutoRemove && s.config.Restart.Wants(code, r.Restarts)
}

// endsForNow decides whether the sandbox's end is one after which it is restarted; code is
// nil where none is known.
func (s *supervisor) endsForNow(code *int) bool {
	again := code != nil && s.restarts(*code)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again = again
	return again
}

// keepsFolder tells whether nobody has asked for the end since that was decided.
func (s *supervisor) keepsFolder() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.again && !s.asked
}

// forgo gives back a folder that was kept for a successor, if it still is.
func (s *supervisor) forgo() error {
	s.mu.Lock()
	again := s.again
	s.again = false
	s.mu.Unlock()
	if !again {
		return nil
	}
	err := s.dir.Update(func(r *state.Record) { r.Status, r.PID = api.StatusStopped, 0 })
	return errors.Join(err, s.dir.Close())
}

// successor is who looks after the sandbox's next life, and has its folder from now on; nil
// if there is to be none. s has finished.
func (s *supervisor) successor() *supervisor {
	if !s.keepsFolder() {
		return nil
	}
	r := s.dir.Record()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again = false
	o := s.options
	o.Keep = true
	next := newSupervisor(o, s.config)
	next.between, next.rest = true, firstPause
	if s.rest > 0 && r.Finished.Sub(r.Started) < longLife {
		next.rest = min(2*s.rest, maxPause)
	}
	return next
}

// awaitTurn is the pause of what is restarted.
func (s *supervisor) awaitTurn(ctx context.Context) error {
	if s.rest == 0 {
		return nil
	}
	select {
	case <-time.After(s.rest):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	s.between = false
	s.mu.Unlock()
	return s.dir.Update(func(r *state.Record) {
		r.Status, r.ExitCode, r.Error = api.StatusStarting, nil, ""
	})
}

package names

import (
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
)

// maxTold is how many events are told in a second; of the rest their number is.
const maxTold = 256

// A limiter keeps a guest that asks in a loop from filling the events: the same is told once a second, and not too
// much of anything.
type limiter struct {
	mu     sync.Mutex
	second time.Time // the beginning of this one
	seen   map[string]bool
	lost   int64
}

// pass tells whether an event passes, and how many did not before, in the seconds that are over.
func (l *limiter) pass(key string, now time.Time) (ok bool, lost int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil || now.Sub(l.second) >= time.Second || now.Before(l.second) {
		l.second, lost, l.lost = now, l.lost, 0
		l.seen = map[string]bool{}
	}
	switch {
	case l.seen[key]:
		return false, lost
	case len(l.seen) == maxTold:
		l.lost++
		return false, lost
	}
	l.seen[key] = true
	return true, lost
}

// event tells of a name; record is what of it was asked for.
func (s *Server) event(name, record string, v policy.Verdict) {
	if s.Event == nil {
		return
	}
	now := time.Now()
	ok, lost := s.told.pass(record+" "+name, now)
	if lost > 0 {
		s.Event(api.Event{Time: now, Kind: api.EventLost, Verdict: api.Denied, Lost: lost})
	}
	if !ok {
		return
	}
	e := api.Event{Time: now, Kind: api.EventName, Name: name, Verdict: api.Denied, Rule: v.Rule, Reason: v.Reason, Hint: v.Hint}
	if v.Allow {
		e.Verdict = api.Allowed
	}
	if v.Allow && record != "A" {
		e.Reason = "its " + record + " records"
	}
	s.Event(e)
}

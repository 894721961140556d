package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// activity tells how long nobody has done anything with a sandbox. Its zero value says:
// since ever.
type activity struct {
	mu       sync.Mutex
	sessions int       // connections to the guest that somebody holds
	last     time.Time // that one ended, or something was seen
}

// begin counts a session until the function that it returns is called, which is once.
func (a *activity) begin() (end func()) {
	a.add(1)
	return func() { a.add(-1) }
}

func (a *activity) add(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sessions += n
	a.last = time.Now()
}

// idle is how long there has been none.
func (a *activity) idle() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sessions > 0 {
		return 0
	}
	return time.Since(a.last)
}

// limitLife sees to it that the sandbox ends when its time is up, or nobody has used it for
// long. It returns when the sandbox ends.
func (s *supervisor) limitLife() {
	began := time.Now()
	for {
		s.mu.Lock()
		ttl, idle := s.config.TTL, s.config.IdleTimeout
		s.mu.Unlock()
		if !s.awaitLimit(began, ttl, idle) {
			return
		}
	}
}

// awaitLimit returns when one of the limits, as far as there are any, is reached, or the
// sandbox ends, or else true when others hold.
func (s *supervisor) awaitLimit(began time.Time, ttl, idle time.Duration) (others bool) {
	var over, look <-chan time.Time
	if ttl > 0 {
		timer := time.NewTimer(ttl - time.Since(began))
		defer timer.Stop()
		over = timer.C
	}
	if idle > 0 {
		s.active.add(0)
		// What is on the network is seen when somebody looks; an idle supervisor does so rarely.
		ticker := time.NewTicker(max(idle/20, 100*time.Millisecond))
		defer ticker.Stop()
		look = ticker.C
	}
	carried := s.carried()
	for {
		select {
		case <-s.life.Done():
			return false
		case <-s.limitsChange:
			return true
		case <-over:
			s.expire(fmt.Sprintf("its time to live of %v was over", ttl))
			return false
		case <-look:
			_, paused := s.stoodStill(s.life)
			if now := s.carried(); paused || now != carried {
				carried = now
				s.active.add(0)
			}
			if s.active.idle() >= idle {
				s.expire(fmt.Sprintf("nobody used it for %v", idle))
				return false
			}
		}
	}
}

// carried is how many bytes flows have carried either way.
func (s *supervisor) carried() uint64 {
	if s.network == nil || s.network.stack == nil {
		return 0
	}
	stats := s.network.stack.Stats()
	return stats.Sent + stats.Received
}

// expiryGrace is how long a first command has to end by itself when its sandbox's time is up.
const expiryGrace = 10 * time.Second

// expire stops the sandbox for a reason that its record tells.
func (s *supervisor) expire(why string) {
	s.mu.Lock()
	s.expired = why
	s.mu.Unlock()
	s.wind(context.Background(), expiryGrace)
}

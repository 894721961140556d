package image

import (
	"strings"
	"sync"
	"time"
)

// Task is what the event is about, in words that fit a line. They may come from an archive: print them with care.
func (e Event) Task() string {
	switch short := ShortDigest(e.Layer); {
	case e.State == Merging:
		return "merge layers"
	case short != e.Layer:
		return "layer " + short
	}
	return e.Layer
}

// ShortDigest is as much of a digest as people compare; of what is none, all.
func ShortDigest(digest string) string {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(hex) < 12 {
		return digest
	}
	return hex[:12]
}

// reportEvery is the least time between two events of one layer in one state.
const reportEvery = 100 * time.Millisecond

// oneAtATime makes of a caller's callback one that goroutines may share, and thins out what it is told: each layer's
// first event in a state and its Ready come through, others when time has passed. The callback may be nil.
func oneAtATime(progress Progress) func(Event) {
	if progress == nil {
		return func(Event) {}
	}
	type key struct {
		layer string
		state State
	}
	var mu sync.Mutex
	told := make(map[key]time.Time)
	return func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		k, now := key{e.Layer, e.State}, time.Now()
		if e.State != Ready && now.Sub(told[k]) < reportEvery {
			return
		}
		told[k] = now
		progress(e)
	}
}

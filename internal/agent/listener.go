package agent

import (
	"sync"

	"github.com/matchlock/matchlock/internal/wire"
)

// A listener is the host's end of a command as the guest sees it: one stream, and
// in a copy of the machine another. The zero value has none yet.
type listener struct {
	mu     sync.Mutex
	change *sync.Cond
	out    *wire.FrameWriter // nil: there is no stream
	kept   bool              // the end of the stream is not the end of the listener
	gone   bool              // there will be no stream any more
	rude   bool              // the host broke the rules: it may never end the stream
}

func (l *listener) init() {
	if l.change == nil {
		l.change = sync.NewCond(&l.mu)
	}
}

// begin makes out the stream.
func (l *listener) begin(out *wire.FrameWriter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.init()
	l.out, l.kept = out, false
	l.change.Broadcast()
}

// keep has what is said after the end of the stream wait for another.
func (l *listener) keep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = l.out != nil || l.kept
}

// awaited reports whether another stream is waited for, when the one that there may
// still be has ended.
func (l *listener) awaited() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.kept && l.out != nil && !l.gone {
		l.change.Wait()
	}
	return l.kept && !l.gone
}

// end is told of the end of a stream, and reports whether that was the listener's.
func (l *listener) end(out *wire.FrameWriter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out == out {
		l.out = nil
		l.gone = l.gone || !l.kept
		l.change.Broadcast()
	}
	return l.gone
}

// distrust is told of a host that broke the rules.
func (l *listener) distrust() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rude = true
	l.change.Broadcast()
}

// leave ends the listener, whatever stream there is.
func (l *listener) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.init()
	l.gone = true
	l.change.Broadcast()
}

// stream waits for there to be one. It is nil when there will be none.
func (l *listener) stream() *wire.FrameWriter {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.out == nil && !l.gone {
		l.init()
		l.change.Wait()
	}
	return l.out
}

// say has write write to the stream. If that is being cut what it writes may be
// lost, or it is the former host that hears it: a copy of the machine begins to
// speak after that.
func (l *listener) say(write func(*wire.FrameWriter) error) {
	if out := l.stream(); out != nil {
		write(out) // fails only with the stream, of which end is told
	}
}

// sayLast says a frame until somebody has heard it: a host ends the stream then.
func (l *listener) sayLast(kind byte, payload []byte) {
	for {
		out := l.stream()
		if out == nil {
			return
		}
		out.WriteFrame(kind, payload)
		l.mu.Lock()
		for l.out == out && !l.gone && !l.rude {
			l.change.Wait()
		}
		heard := l.gone || l.rude
		l.mu.Unlock()
		if heard {
			return
		}
	}
}

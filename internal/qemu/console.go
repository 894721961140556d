package qemu

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"sync"

	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/wire"
)

const (
	consoleTail = 8 << 10 // kept for error messages
	errorLines  = 5       // of it shown in one
)

// consoleStream is what the console is called in its log.
const consoleStream = "console"

// console collects what the guest's serial port and the hypervisor's own
// messages say: into the log, and the end of it in memory.
type console struct {
	log *logs.Writer // nil: none
	out io.Writer    // of the log

	mu      sync.Mutex
	tail    []byte
	awaited *regexp.Regexp // nil: nothing
	said    chan struct{}  // closed when that was said
}

// openConsole opens the log to go on with it; path may be empty. The logger is
// told when the log cannot be written later on.
func openConsole(path string, log *slog.Logger) (*console, error) {
	if path == "" {
		return &console{out: io.Discard}, nil
	}
	w, err := logs.Open(path, logs.Options{OnError: func(err error) {
		log.Warn("the log of the console has gaps", "error", err)
	}})
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return &console{log: w, out: w.Stream(consoleStream)}, nil
}

// collect copies r until its end and closes it.
func (c *console) collect(r io.ReadCloser) {
	defer r.Close()
	s := source{console: c}
	io.Copy(&s, r) // an error is the end of the stream as well
	c.out.Write(s.line)
}

// maxHeld is how much of a line waits for its end.
const maxHeld = 4 << 10

// A source is one of those who speak on a console. It hands whole lines to the
// log, since a serial port brings byte after byte and each would be a record;
// what it holds back for that is in the tail at once.
type source struct {
	console *console
	line    []byte // without its end so far
}

// Write never fails: a full disk must not end the guest.
func (s *source) Write(p []byte) (int, error) {
	s.console.remember(p)
	ready := 0
	if i := bytes.LastIndexByte(p, '\n'); i >= 0 {
		ready = len(s.line) + i + 1
	}
	s.line = append(s.line, p...)
	if ready == 0 && len(s.line) >= maxHeld {
		ready = len(s.line)
	}
	if ready > 0 {
		s.console.compare(s.line[:ready])
		s.console.out.Write(s.line[:ready])
		s.line = append(s.line[:0], s.line[ready:]...)
	}
	return len(p), nil
}

// remember keeps the end of what was said.
func (c *console) remember(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	if extra := len(c.tail) - consoleTail; extra > 0 {
		c.tail = append(c.tail[:0], c.tail[extra:]...)
	}
}

// await returns a channel that is closed when pattern, of one line, is found in
// what is said from now on. There is one that waits at a time; cancel is for when
// it has stopped.
func (c *console) await(pattern *regexp.Regexp) (said <-chan struct{}, cancel func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaited, c.said = pattern, make(chan struct{})
	return c.said, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.awaited = nil
	}
}

// compare looks in whole lines for what is awaited.
func (c *console) compare(lines []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awaited != nil && c.awaited.Match(lines) {
		c.awaited = nil
		close(c.said)
	}
}

// kernelPanic is how a kernel begins to say why it ends. A stack follows, which
// says less.
const kernelPanic = "Kernel panic - not syncing"

// lastLines returns the last lines said, fit for a terminal.
func (c *console) lastLines() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for line := range bytes.Lines(c.tail) {
		text := wire.Printable(strings.TrimSpace(string(line)))
		if text == "" {
			continue
		}
		lines = append(lines, text)
		if strings.Contains(text, kernelPanic) {
			break
		}
	}
	return strings.Join(lines[max(0, len(lines)-errorLines):], "; ")
}

// close ends the logging; what is said later is kept in memory only.
func (c *console) close() error {
	if c.log == nil {
		return nil
	}
	return c.log.Close()
}

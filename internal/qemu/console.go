package qemu

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/matchlock/matchlock/internal/wire"
)

const (
	// maxConsoleLog bounds what one machine's life may add to its log: the bytes
	// are the guest's, the disk is the host's.
	maxConsoleLog = 16 << 20
	consoleTail   = 8 << 10 // kept for error messages
	errorLines    = 5       // of it shown in one
)

// console collects what the guest's serial port and the hypervisor's own
// messages say: into the log file, as far as that may grow, and the end of it
// in memory.
type console struct {
	mu   sync.Mutex
	log  *os.File // nil: none
	room int64    // bytes that the log may still grow by
	tail []byte
}

// openConsole opens the log for appending; path may be empty.
func openConsole(path string) (*console, error) {
	c := &console{room: maxConsoleLog}
	if path == "" {
		return c, nil
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if err := log.Chmod(0o600); err != nil {
		log.Close()
		return nil, fmt.Errorf("log: %w", err)
	}
	c.log = log
	return c, nil
}

// Write never fails: a full disk must not end the guest.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != nil && c.room > 0 {
		n, _ := c.log.Write(p[:min(int64(len(p)), c.room)])
		if c.room -= int64(n); c.room <= 0 {
			fmt.Fprintf(c.log, "\n[matchlock: the console has said %d bytes; the rest is not logged]\n", maxConsoleLog)
		}
	}
	c.tail = append(c.tail, p...)
	if extra := len(c.tail) - consoleTail; extra > 0 {
		c.tail = append(c.tail[:0], c.tail[extra:]...)
	}
	return len(p), nil
}

// collect copies r until its end and closes it.
func (c *console) collect(r io.ReadCloser) {
	defer r.Close()
	io.Copy(c, r) // an error is the end of the stream as well
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
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log == nil {
		return nil
	}
	err := c.log.Close()
	c.log = nil
	return err
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/sandbox"
)

// bars shows on a terminal how far slow tasks have come, a line each, and
// nothing anywhere else. Its methods may be called by several goroutines at once.
type bars struct {
	out *os.File // nil: nobody looks

	mu     sync.Mutex
	tasks  []sandbox.Progress
	drawn  int // lines on the terminal
	last   time.Time
	closed bool // who goes on with a task is not looked at any more
}

const (
	redrawEvery = 100 * time.Millisecond
	maxBars     = 8 // lines at once
	barWidth    = 24
)

// stderr is standard error for what we say ourselves, in whole lines, while it is not
// ours alone: they stand above bars, and begin at the left of a terminal that is raw.
type stderr struct {
	bars atomic.Pointer[bars]
	raw  atomic.Bool
}

func (s *stderr) Write(p []byte) (int, error) {
	if b := s.bars.Load(); b != nil && b.writeAbove(p) {
		return len(p), nil
	}
	if s.raw.Load() {
		os.Stderr.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))) // a terminal that is gone shows nothing
		return len(p), nil
	}
	return os.Stderr.Write(p)
}

// newBars returns those of a command, which has one at a time.
func (a *app) newBars() *bars {
	b := newBars(os.Stderr)
	a.stderr.bars.Store(b)
	return b
}

func newBars(out *os.File) *bars {
	if !isTerminal(out) || os.Getenv("TERM") == "dumb" {
		return &bars{}
	}
	return &bars{out: out}
}

// progress takes what a sandbox tells.
func (b *bars) progress(p sandbox.Progress) {
	if b.out == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	i := slices.IndexFunc(b.tasks, func(t sandbox.Progress) bool { return t.Task == p.Task })
	switch {
	case p.Ended && i >= 0:
		b.tasks = slices.Delete(b.tasks, i, i+1)
	case p.Ended:
		return
	case i >= 0:
		b.tasks[i] = p
	default:
		b.tasks = append(b.tasks, p)
	}
	if time.Since(b.last) >= redrawEvery {
		b.draw(b.tasks)
		b.last = time.Now()
	}
}

// layer takes what the image store tells.
func (b *bars) layer(e image.Event) {
	b.progress(sandbox.Progress{Task: e.Task(), Done: e.Done, Total: e.Total, Ended: e.State == image.Ready})
}

// close takes all bars from the terminal.
func (b *bars) close() {
	if b.out == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tasks, b.closed = nil, true
	b.draw(nil)
}

// writeAbove writes whole lines where the bars are, and those below. It does nothing
// when there are none.
func (b *bars) writeAbove(p []byte) bool {
	if b.out == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.draw(nil)
	b.out.Write(p) // a terminal that is gone shows nothing
	b.draw(b.tasks)
	return true
}

// draw replaces what is on the terminal.
func (b *bars) draw(tasks []sandbox.Progress) {
	width, _, err := term.GetSize(int(b.out.Fd()))
	if err != nil || width < 1 {
		width = 80
	}
	var s strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&s, "\x1b[%dA\r\x1b[J", b.drawn) // up to the first line; erase from there
	}
	b.drawn = min(len(tasks), maxBars)
	for _, t := range tasks[:b.drawn] {
		line := []rune(bar(t))
		s.WriteString(string(line[:min(len(line), width-1)]) + "\n")
	}
	b.out.WriteString(s.String()) // a terminal that is gone shows nothing
}

// bar is one line: what it is, how far, how much.
func bar(p sandbox.Progress) string {
	name := printable(p.Task)
	if p.Total <= 0 {
		return fmt.Sprintf("%-32s %s", name, api.FormatSize(p.Done))
	}
	done := min(max(p.Done, 0), p.Total)
	filled := int(float64(done) / float64(p.Total) * barWidth)
	return fmt.Sprintf("%-32s [%s%s] %s of %s", name,
		strings.Repeat("=", filled), strings.Repeat(" ", barWidth-filled), api.FormatSize(done), api.FormatSize(p.Total))
}

// printable makes a line of text of an archive, registry or guest fit for a terminal.
func printable(text string) string { return strings.Map(printableRune, text) }

func printableRune(r rune) rune {
	if !unicode.IsPrint(r) {
		return unicode.ReplacementChar
	}
	return r
}

// printableLines is printable of a text of lines, which may have tabs.
func printableLines(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return printableRune(r)
	}, text)
}

// linesWriter makes what it passes on fit for a terminal. It is told of whole lines, or at
// least of whole runes at last.
type linesWriter struct {
	w    io.Writer
	rest []byte // of a rune that is not there to its end
}

func (l *linesWriter) Write(p []byte) (int, error) {
	text := append(l.rest, p...)
	end := len(text)
	for i := max(0, end-utf8.UTFMax); i < end; i++ {
		if utf8.RuneStart(text[i]) && !utf8.FullRune(text[i:]) {
			end = i
		}
	}
	_, err := io.WriteString(l.w, printableLines(string(text[:end])))
	l.rest = append(l.rest[:0], text[end:]...)
	return len(p), err
}

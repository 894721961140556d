package main

import (
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/matchlock/matchlock/sandbox"
)

// stdio says what of our input, output and terminal a command gets.
type stdio struct {
	in  bool // standard input is passed on
	tty bool // the command has a terminal
	raw bool // our own terminal passes all keys to it
}

// stdio decides. With both ends a terminal and nothing said, the command gets
// one too; otherwise input is passed only when asked for, so that a loop that
// reads a file keeps its lines.
func (f *runFlags) stdio() stdio {
	inTTY, outTTY := term.IsTerminal(int(os.Stdin.Fd())), term.IsTerminal(int(os.Stdout.Fd()))
	s := stdio{in: f.interactive, tty: f.tty}
	if inTTY && outTTY && !f.interactive && !f.tty && !f.noTTY {
		s.in, s.tty = true, true
	}
	s.raw = s.in && s.tty && inTTY
	return s
}

// connect gives the command what it is to have. restore undoes what that does to
// our terminal; it may be called again.
func (s stdio) connect(cmd *sandbox.Cmd) (restore func(), err error) {
	cmd.Tty = s.tty
	if s.in {
		cmd.Stdin = os.Stdin
	}
	if s.tty {
		resize(cmd)
	}
	if !s.raw {
		return func() {}, nil
	}
	fd := int(os.Stdin.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { term.Restore(fd, before) }), nil // a terminal that is gone needs none
}

// resize gives the command's terminal the size of ours.
func resize(cmd *sandbox.Cmd) {
	cols, rows, err := term.GetSize(int(os.Stdout.Fd()))
	if err == nil && rows > 0 && cols > 0 {
		cmd.Resize(uint16(min(rows, 1<<16-1)), uint16(min(cols, 1<<16-1))) // fails only when the command is gone
	}
}

// followSize resizes the command's terminal whenever ours changes.
func followSize(cmd *sandbox.Cmd) (stop func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	resize(cmd) // for a change since it was started
	done := make(chan struct{})
	var following sync.WaitGroup
	following.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-changes:
				resize(cmd)
			}
		}
	})
	return func() {
		signal.Stop(changes)
		close(done)
		following.Wait()
	}
}

// isTerminal tells whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

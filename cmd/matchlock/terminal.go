package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/matchlock/matchlock/sandbox"
)

// stdio says what of our input, output and terminal a command gets.
type stdio struct {
	in  bool // standard input is passed on
	tty bool // the command has a terminal
	raw bool // our own terminal passes all keys to it

	stderr *stderr // what we say meanwhile

	hold   bool   // the command is not this program's: to let go of it does not end it
	detach []byte // the keys that let go of it; nil: there are none
}

// stdioFlags are what the user says of that.
type stdioFlags struct{ interactive, tty, noTTY bool }

func (f *stdioFlags) define(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input to the command")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal; -it is the default on one")
	fs.BoolVar(&f.noTTY, "no-tty", false, "never a terminal")
}

func (f *stdioFlags) check(command string) error {
	if f.noTTY && f.tty {
		return usageError{errors.New("--tty and --no-tty: only one may be given"), command}
	}
	return nil
}

// stdio decides. With both ends a terminal and nothing said, the command gets
// one too; otherwise input is passed only when asked for, so that a loop that
// reads a file keeps its lines.
func (f *stdioFlags) stdio() stdio {
	inTTY, outTTY := term.IsTerminal(int(os.Stdin.Fd())), term.IsTerminal(int(os.Stdout.Fd()))
	s := stdio{in: f.interactive, tty: f.tty}
	if inTTY && outTTY && !f.interactive && !f.tty && !f.noTTY {
		s.in, s.tty = true, true
	}
	s.raw = s.in && s.tty && inTTY
	return s
}

// connect gives the command what it is to have; end is told of the keys that let
// go of it. restore undoes what that does to our terminal; it may be called
// again.
func (s stdio) connect(cmd *sandbox.Cmd, end context.CancelCauseFunc) (restore func(), err error) {
	cmd.Tty = s.tty
	if s.in {
		cmd.Stdin = os.Stdin
	}
	if s.in && s.raw && len(s.detach) > 0 {
		cmd.Stdin = &keys{in: os.Stdin, sequence: s.detach, pressed: func() { end(errDetached) }}
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
	s.stderr.raw.Store(true)
	return sync.OnceFunc(func() {
		s.stderr.raw.Store(false)
		term.Restore(fd, before) // a terminal that is gone needs none
	}), nil
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

// errDetached is the end of a command for us because its user let go of it.
var errDetached = errors.New("detached")

// keys passes on what is typed until that has the keys that let go.
type keys struct {
	in       io.Reader
	sequence []byte
	pressed  func()

	held int // how much of the sequence has been typed
	rest []byte
	over bool
}

// Read implements io.Reader. Keys that turn out not to be the sequence come with
// those that follow.
func (k *keys) Read(p []byte) (int, error) {
	for len(k.rest) == 0 {
		if k.over {
			return 0, io.EOF
		}
		buf := make([]byte, 4096)
		n, err := k.in.Read(buf)
		for _, key := range buf[:n] {
			if k.type1(key); k.over {
				k.pressed()
				break
			}
		}
		if err != nil && !k.over { // those that are held back were not the sequence
			k.rest, k.held = append(k.rest, k.sequence[:k.held]...), 0
		}
		if err != nil && len(k.rest) == 0 {
			return 0, err
		}
	}
	n := copy(p, k.rest)
	k.rest = k.rest[n:]
	return n, nil
}

// type1 takes one key.
func (k *keys) type1(key byte) {
	if key == k.sequence[k.held] {
		k.held++
		k.over = k.held == len(k.sequence)
		return
	}
	typed := append(bytes.Clone(k.sequence[:k.held]), key)
	// The last of them may begin the sequence anew.
	k.held = len(typed)
	for k.held > 0 && (k.held >= len(k.sequence) || !bytes.HasSuffix(typed, k.sequence[:k.held])) {
		k.held--
	}
	k.rest = append(k.rest, typed[:len(typed)-k.held]...)
}

// parseKeys reads what docker calls detach keys: single characters and ctrl-
// combinations, with commas between them.
func parseKeys(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	var sequence []byte
	for _, key := range strings.Split(text, ",") {
		letter, ctrl := strings.CutPrefix(key, "ctrl-")
		if len(letter) != 1 || letter[0] > '~' || letter[0] < ' ' {
			return nil, fmt.Errorf("keys %q: want characters and ctrl-CHARACTER with commas between, like ctrl-p,ctrl-q", text)
		}
		key := letter[0]
		if ctrl {
			upper := bytes.ToUpper([]byte{key})[0]
			if upper < '@' || upper > '_' {
				return nil, fmt.Errorf("keys %q: there is no ctrl-%c", text, key)
			}
			key = upper - '@'
		}
		sequence = append(sequence, key)
	}
	return sequence, nil
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// A Command says what is to run in the guest, and where its output goes. The
// zero value of a field is its default; Args is required.
type Command struct {
	Args []string          // Args[0] is looked up in PATH unless it has a slash
	Dir  string            // absolute, made 0755 when missing; empty: "/"
	Env  map[string]string // over the machine's
	User string            // name, uid, uid:gid or name:group; empty: root

	// Stdin says that the command has an input, which Session.Write fills.
	// Otherwise its input is empty.
	Stdin bool

	// Stdout and Stderr receive the output as it comes, by one goroutine. Nil
	// drops it. When both are the same writer the two come in the order in which
	// they were written. A writer that blocks stops the command, and one that
	// fails closes that output, so that the command gets SIGPIPE.
	Stdout, Stderr io.Writer

	// TTY gives the command a terminal of Rows × Cols; all its output is Stdout.
	TTY        bool
	Rows, Cols uint16
}

// Shell returns the argument vector that runs a command line.
func Shell(line string) []string { return []string{"/bin/sh", "-c", line} }

// A CopyError is the failure of a reader or writer that the caller gave for a
// command's input or output. How the command ended is known nonetheless.
type CopyError struct{ Err error }

func (e *CopyError) Error() string { return "copying input or output: " + e.Err.Error() }
func (e *CopyError) Unwrap() error { return e.Err }

// A Session is a command that has started. Its methods may be called by several
// goroutines at once.
type Session struct {
	call *call
	pid  int
	id   uint64
	tty  bool
	stop func() bool // detaches the context

	done chan struct{} // closed when exit and err are set
	exit Exit
	err  error

	gone    chan struct{} // closed when the guest did not end the command in time
	overdue *time.Timer   // closes gone

	mu       sync.Mutex
	ended    error // the context's cause, once that has ended
	writeErr error // the first of the caller's writers
	credit   int   // how much input may be sent
	stdinErr error // why no more is taken
	change   sync.Cond
}

// Start starts a command in the guest. It returns when the guest has started
// it; the error wraps ErrCommandNotFound, ErrNotExecutable or ErrUnknownUser
// where that is why it could not.
//
// When ctx ends, the command's process group is sent SIGTERM and 2 s later
// SIGKILL. Either way Wait must be called.
func (c *Client) Start(ctx context.Context, cmd Command) (*Session, error) {
	req := execRequest{args: cmd.Args, dir: cmd.Dir, env: cmd.Env, user: cmd.User, stdin: cmd.Stdin,
		merged: SameWriter(cmd.Stdout, cmd.Stderr), tty: cmd.TTY, rows: cmd.Rows, cols: cmd.Cols}
	if err := req.check(); err != nil {
		return nil, err
	}
	k, release, err := c.request(ctx, requestExec, req.encode())
	if err != nil {
		return nil, err
	}
	return k.session(ctx, release, cmd)
}

// Running is a command that runs in the guest.
type Running struct {
	ID    uint64 // see Session.ID
	TTY   bool   // it has a terminal
	Stdin bool   // and an input that has not ended
}

// Commands lists the commands that run in the guest, of all its hosts.
func (c *Client) Commands(ctx context.Context) ([]Running, error) {
	k, release, err := c.request(ctx, requestRunning, nil)
	if err != nil {
		return nil, err
	}
	defer k.conn.Close()
	defer release()
	kind, payload, err := k.next()
	if err == nil && kind != frameCommands {
		err = errGuest
	}
	if err != nil {
		return nil, cause(ctx, err)
	}
	d := wire.NewDecoder(payload)
	var all []Running
	for range d.Count(maxCommands) {
		all = append(all, Running{ID: d.Uvarint(), TTY: d.Bool(), Stdin: d.Bool()})
	}
	return all, d.Done()
}

// Resume takes hold of a command that runs in a copy of the machine in which it
// was started: see Server.Keep. Of cmd, Stdin, Stdout, Stderr and TTY count, the
// last as the guest has it; without Stdin the command's input ends.
func (c *Client) Resume(ctx context.Context, id uint64, cmd Command) (*Session, error) {
	var e wire.Encoder
	e.Uvarint(id)
	e.Bool(cmd.Stdin)
	k, release, err := c.request(ctx, requestResume, e.Encoded())
	if err != nil {
		return nil, err
	}
	return k.session(ctx, release, cmd)
}

// session is what becomes of a request for a command when that runs.
func (k *call) session(ctx context.Context, release func() bool, cmd Command) (*Session, error) {
	pid, id, err := k.started()
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		k.abort()
		return nil, cause(ctx, err)
	}
	k.conn.SetDeadline(time.Time{})
	s := &Session{call: k, pid: pid, id: id, tty: cmd.TTY, done: make(chan struct{}), gone: make(chan struct{}), credit: stdinWindow}
	s.change.L = &s.mu
	if !cmd.Stdin {
		s.stdinErr = errors.New("the command has no input")
	}
	s.stop = context.AfterFunc(ctx, func() { s.cancel(context.Cause(ctx)) })
	go s.receive(cmd.Stdout, cmd.Stderr)
	return s, nil
}

// SameWriter reports whether a and b are one writer, and not nil.
func SameWriter(a, b io.Writer) bool {
	defer func() { _ = recover() }() // of types that cannot be compared
	return a != nil && a == b
}

// started reads the answer to requestExec or requestResume.
func (k *call) started() (pid int, id uint64, err error) {
	kind, payload, err := k.next()
	if err != nil {
		return 0, 0, err
	}
	d := wire.NewDecoder(payload)
	n, id := d.Uvarint(), d.Uvarint()
	if kind != frameStarted || n > math.MaxInt32 || d.Done() != nil {
		return 0, 0, errGuest
	}
	return int(n), id, nil
}

// PID is the command's process id in the guest.
func (s *Session) PID() int { return s.pid }

// ID names the command in the guest, and in copies of it.
func (s *Session) ID() uint64 { return s.id }

// Wait returns how the command ended, when its output has been written. With a
// CopyError the Exit is there too; any other error means that it is not known how
// the command ended. After the end of the context Wait
// returns its cause, at the latest 3 s later, even if the guest is silent or one
// of the caller's writers blocks.
func (s *Session) Wait() (Exit, error) {
	select {
	case <-s.done:
		return s.exit, s.err
	case <-s.gone:
		s.mu.Lock()
		defer s.mu.Unlock()
		return Exit{}, s.ended
	}
}

// Write sends input to the command and waits while the command reads none. After
// the command has closed its input, or ended, the error is io.ErrClosedPipe.
func (s *Session) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		m, err := s.takeCredit(len(p))
		if err != nil {
			return n, err
		}
		if err := s.call.out.WriteFrame(frameStdin, p[:m]); err != nil {
			return n, err
		}
		n += m
		p = p[m:]
	}
	return n, nil
}

func (s *Session) takeCredit(want int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.credit == 0 && s.stdinErr == nil {
		s.change.Wait()
	}
	n := min(want, s.credit, chunk)
	s.credit -= n
	return n, s.stdinErr
}

// closeStdin makes err the answer to a Write, if there is none yet.
func (s *Session) closeStdin(err error) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = s.stdinErr == nil
	if first {
		s.stdinErr = err
	}
	s.change.Broadcast()
	return first
}

// CloseWrite ends the command's input; on a terminal it types ^D.
func (s *Session) CloseWrite() error {
	if !s.closeStdin(net.ErrClosed) {
		return nil
	}
	return s.call.out.WriteFrame(frameStdinEnd, nil)
}

// Signal sends a signal, by its Linux number, to the command's process group.
func (s *Session) Signal(number int) error {
	if number < 1 || number > 64 {
		return fmt.Errorf("signal %d: no such signal", number)
	}
	return s.call.out.WriteFrame(frameSignal, []byte{byte(number)})
}

// Resize changes the size of the command's terminal.
func (s *Session) Resize(rows, cols uint16) error {
	var e wire.Encoder
	e.Uint32(uint32(rows))
	e.Uint32(uint32(cols))
	return s.call.out.WriteFrame(frameResize, e.Encoded())
}

// waitAfterKill is how long the guest has, after its SIGKILL, to say that the
// command has ended.
const waitAfterKill = time.Second

// cancel ends the command because the context has ended.
func (s *Session) cancel(cause error) {
	s.mu.Lock()
	s.ended = cause
	s.overdue = time.AfterFunc(killGrace+waitAfterKill, func() {
		s.call.abort()
		close(s.gone)
	})
	s.mu.Unlock()
	s.call.conn.SetWriteDeadline(time.Now().Add(waitAfterKill))
	if s.call.out.WriteFrame(frameTerminate, nil) != nil {
		s.call.abort() // has the same effect in the guest
	}
}

// receive reads the guest's frames until the command's end.
func (s *Session) receive(stdout, stderr io.Writer) {
	outputs := [2]io.Writer{stdout, stderr}
	var err error
	for over := false; !over && err == nil; {
		over, err = s.receiveFrame(&outputs)
	}
	s.stop()
	if err == nil || errors.Is(err, ErrTooLarge) {
		s.call.conn.Close() // what was sent is still heard
	} else {
		s.call.abort()
	}
	s.closeStdin(io.ErrClosedPipe)
	s.mu.Lock()
	if s.overdue != nil {
		s.overdue.Stop()
	}
	switch {
	case s.ended != nil:
		s.err = s.ended
	case errors.Is(err, ErrTooLarge):
		s.err = err
	case err != nil:
		s.err = cause(context.Background(), err)
	default:
		s.err = s.writeErr
	}
	s.mu.Unlock()
	close(s.done)
}

func (s *Session) receiveFrame(outputs *[2]io.Writer) (over bool, err error) {
	kind, payload, err := s.call.in.Next(wire.MaxData)
	if err != nil {
		return false, err
	}
	switch kind {
	case frameStdout, frameStderr:
		w := &outputs[kind-frameStdout]
		if err := s.deliver(*w, payload); err != nil {
			*w = nil
			return false, s.closeOutput(kind, err)
		}
	case frameStdinTaken:
		d := wire.NewDecoder(payload)
		n := d.Uvarint()
		s.mu.Lock()
		defer s.mu.Unlock()
		if d.Done() != nil || n > uint64(stdinWindow-s.credit) {
			return false, errGuest
		}
		s.credit += int(n)
		s.change.Broadcast()
	case frameStdinClosed:
		s.closeStdin(io.ErrClosedPipe)
	case frameExit:
		if s.exit, err = decodeExit(payload); err != nil {
			return false, fmt.Errorf("%w: %w", errGuest, err)
		}
		return true, nil
	case frameFailed:
		return false, decodeError(payload)
	default:
		return false, errGuest
	}
	return false, nil
}

// deliver hands output to the caller, unless it is no longer wanted.
func (s *Session) deliver(w io.Writer, payload []byte) error {
	s.mu.Lock()
	wanted := w != nil && s.ended == nil
	s.mu.Unlock()
	if !wanted {
		return nil
	}
	_, err := w.Write(payload)
	return err
}

// closeOutput has the guest close an output whose writer has failed. A terminal
// has one only; without it the command is ended. Output that is more than may be
// held ends the session: a hostile guest would go on for ever.
func (s *Session) closeOutput(kind byte, err error) error {
	if errors.Is(err, ErrTooLarge) {
		s.Signal(sigKill) // if it is not heard the stream's end has the same effect
		return err
	}
	s.mu.Lock()
	if s.writeErr == nil {
		s.writeErr = &CopyError{err}
	}
	s.mu.Unlock()
	if s.tty {
		return s.call.out.WriteFrame(frameTerminate, nil)
	}
	return s.call.out.WriteFrame(frameCloseOutput, []byte{kind})
}

// sigKill is SIGKILL's number on Linux, whatever the host's is.
const sigKill = 9

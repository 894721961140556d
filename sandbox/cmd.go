package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/vm"
)

// Cmd is a command of a sandbox, in preparation, running or ended, shaped like
// os/exec's. The exported fields are read by Start and not after. Once Start has
// returned, Signal, Resize and Wait may be called by several goroutines at once. A Cmd runs
// once, and one that was started is to be waited for.
type Cmd struct {
	// Args is the argument vector. Args[0] is looked up in the guest's PATH unless
	// it has a slash. No shell has a part in it.
	Args []string
	// Dir is an absolute path of the guest, made when missing. Empty: the sandbox's
	// working directory.
	Dir string
	// Env has entries of the form "key=value", laid over the sandbox's environment;
	// of two with one key the last counts.
	Env []string
	// User is name, uid, uid:gid or name:group. Empty: the sandbox's user.
	User string

	// Stdin is the command's input; nil is an empty one. Its end is the command's; an
	// error of it is Wait's if there is no other. When the command ends, a Read that still
	// waits is not waited for, and what it brings is lost.
	Stdin io.Reader
	// Stdout and Stderr take the output as it comes, from one goroutine; nil drops
	// it. The same writer for both keeps the order of what is written. While a Write
	// takes its time the command waits: nothing is lost, nor held in memory.
	Stdout, Stderr io.Writer

	// Timeout, if positive, bounds the command's life: then it is sent its sandbox's
	// stop signal, 2 s later killed, and Wait returns ErrTimeout.
	Timeout time.Duration
	// Tty gives the command a terminal, of 24 rows and 80 columns until Resize: its
	// input is typed, all output is Stdout, the end of Stdin is ^D.
	Tty bool
	// OpenStdin, for the first command, is an input that never ends in the place of
	// Stdin: what is typed by whoever attaches to the sandbox.
	OpenStdin bool
	// Past, for the first command of a sandbox that this process is attached to,
	// begins with what the command has said so far.
	Past bool

	sandbox    *Sandbox
	ctx        context.Context
	main       bool           // the first command
	resume     *agent.Running // the command that runs already; nil: it is to be started
	rows, cols uint16         // of the terminal

	session  session
	release  func()      // what watches over the session
	expired  atomic.Bool // the timeout has
	stdinErr chan error  // of copying Stdin; has one value at its end
}

// session is a command that runs in the guest.
type session interface {
	io.Writer // its input
	CloseWrite() error
	Signal(number int) error
	Resize(rows, cols uint16) error
	Wait() (agent.Exit, error)
}

// defaultRows and defaultCols are a terminal's size where nobody sets one.
const (
	defaultRows = 24
	defaultCols = 80
)

// Command returns a command to run in the sandbox; Start or what calls it starts it. When
// ctx ends while it runs, its process group gets SIGTERM and 2 s later SIGKILL, and
// Wait returns ctx's error. Several may run at once.
func (s *Sandbox) Command(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{Args: append([]string{name}, args...), sandbox: s, ctx: ctx, rows: defaultRows, cols: defaultCols}
}

// Main returns the first command, as the configuration and the image say it;
// one that nobody names fails at Start with ErrNoCommand. Its Timeout is that of
// the configuration. What it writes goes to the sandbox's log as well.
//
// Of a sandbox that this process is attached to it is the first command that
// runs there already. Start then takes hold of it, with its own standard streams
// as far as it has them: what it writes from then on is written to Stdout and
// Stderr, what Stdin brings is typed. The end of ctx lets go of it, and so does
// the end of the sandbox.
func (s *Sandbox) Main(ctx context.Context) *Cmd {
	c := s.Command(ctx, "")
	c.Args, c.Timeout = s.keeper.process().Argv, s.keeper.process().Timeout
	c.main = true
	return c
}

// Start starts the command and returns when it runs. That the guest has no such
// program, or may not run it, is an *ExitError with a shell's status for it, 127
// or 126.
func (c *Cmd) Start() error {
	if c.session != nil {
		return errors.New("exec: already started")
	}
	process := c.sandbox.keeper.process()
	if len(c.Args) == 0 && !c.main && c.resume == nil { // of the first one the keeper knows more
		return noCommand(process.Image)
	}
	ctx, cancel := context.WithCancelCause(c.ctx)
	start := c.start
	if c.main {
		start = func(ctx context.Context) (session, error) { return c.sandbox.keeper.startMain(ctx, c) }
	}
	session, err := start(ctx)
	if err != nil {
		cancel(nil)
		return err
	}
	c.session = session
	c.release = func() { cancel(nil) }
	if c.Timeout > 0 {
		go c.watchTimeout(ctx, cancel, process.StopSignal)
	}
	c.stdinErr = make(chan error, 1)
	if c.Stdin == nil {
		c.stdinErr <- nil
		return nil
	}
	go func() {
		c.stdinErr <- copyInput(session, c.Stdin)
		session.CloseWrite() // fails only when the command is gone
	}()
	return nil
}

// start starts the command in the guest.
func (c *Cmd) start(ctx context.Context) (session, error) {
	process := c.sandbox.keeper.process()
	cmd := agent.Command{
		Args:   c.Args,
		Dir:    cmp.Or(c.Dir, process.Dir),
		User:   cmp.Or(c.User, process.User),
		Stdin:  c.Stdin != nil,
		Stdout: c.Stdout,
		Stderr: c.Stderr,
		TTY:    c.Tty,
		Rows:   c.rows,
		Cols:   c.cols,
	}
	var err error
	if cmd.Env, err = envMap(c.Env); err != nil {
		return nil, err
	}
	var session *agent.Session
	if c.resume != nil {
		session, err = c.sandbox.client.Resume(ctx, c.resume.ID, cmd)
	} else {
		session, err = c.sandbox.client.Start(ctx, cmd)
	}
	if err != nil {
		return nil, notStarted(c.sandbox.keeper.explain(ctx, err))
	}
	return session, nil
}

func envMap(pairs []string) (map[string]string, error) {
	env := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("environment %q: want KEY=VALUE", pair)
		}
		env[key] = value
	}
	return env, nil
}

// notStarted gives the reasons that a shell has a status for that status.
func notStarted(err error) error {
	switch {
	case errors.Is(err, agent.ErrCommandNotFound):
		return &ExitError{Code: 127, Err: err}
	case errors.Is(err, agent.ErrNotExecutable):
		return &ExitError{Code: 126, Err: err}
	}
	return err
}

// stopGrace lies between the stop signal and the end of a command that has used
// up its time.
const stopGrace = 2 * time.Second

// watchTimeout ends the command when its time has run out, by end if need be.
// It returns when ctx does.
func (c *Cmd) watchTimeout(ctx context.Context, end context.CancelCauseFunc, stopSignal int) {
	if !passes(ctx, c.sandbox.keeper, c.Timeout) {
		return
	}
	c.expired.Store(true)
	c.session.Signal(stopSignal) // what does not arrive, end makes up for
	if passes(ctx, c.sandbox.keeper, stopGrace) {
		end(ErrTimeout)
	}
}

// passes waits for time to pass in which the sandbox does not stand still. It
// returns false if ctx ends before.
func passes(ctx context.Context, k keeper, d time.Duration) bool {
	still, _ := k.stoodStill(ctx)
	for timer := time.NewTimer(d); ; {
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
		total, paused := k.stoodStill(ctx)
		switch {
		case paused:
			timer.Reset(pausePoll)
		case total > still:
			timer.Reset(total - still)
			still = total
		default:
			return true
		}
	}
}

// pausePoll lies between two questions whether a sandbox goes on that stood
// still when time had run out. Nothing tells of it.
const pausePoll = time.Second

// copyInput returns the reader's error; that the command takes no more is none.
func copyInput(to io.Writer, from io.Reader) error {
	_, err := io.Copy(to, readerOnly{from})
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

type readerOnly struct{ io.Reader }

// Wait returns when the command has ended and its output is written. A status
// other than 0 is an *ExitError; any other error means that it is not known how
// the command ended, or is that of Stdin, Stdout or Stderr. A command whose
// output cannot be written gets SIGPIPE.
func (c *Cmd) Wait() error {
	if c.session == nil {
		return errors.New("exec: not started")
	}
	exit, err := c.session.Wait()
	c.release()
	err = c.outcome(exit, err)
	if err != nil {
		return err
	}
	select {
	case err = <-c.stdinErr:
	default:
	}
	return err
}

// outcome is what Wait makes of how the command ended.
func (c *Cmd) outcome(exit agent.Exit, err error) error {
	if c.expired.Load() {
		return fmt.Errorf("%w after %v", ErrTimeout, c.Timeout)
	}
	if exit == (agent.Exit{}) {
		err = c.sandbox.keeper.explain(c.ctx, err) // it is not known how it ended
	}
	if err != nil && (c.ctx.Err() != nil || exit.Signal == sigPIPE) {
		return err // the reason for how it ended
	}
	if exit.Code != 0 {
		return &ExitError{Code: exit.Code, Signal: exit.Signal}
	}
	return err
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output, at most
// api.MaxCollected bytes. An *ExitError has the end of the standard error if
// Stderr was nil.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr collector
	if c.Stdout != nil {
		return nil, errors.New("exec: Stdout already set")
	}
	c.Stdout = &stdout
	captured := c.Stderr == nil
	if captured {
		c.Stderr = &stderr
	}
	err := c.Run()
	if exit, ok := errors.AsType[*ExitError](err); ok && captured {
		text := stderr.Bytes()
		exit.Stderr = text[max(0, len(text)-maxExitStderr):]
	}
	return stdout.Bytes(), stdout.orError(err)
}

// CombinedOutput runs the command and returns its standard output and standard
// error, at most api.MaxCollected bytes.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("exec: Stdout or Stderr already set")
	}
	var both collector
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), both.orError(err)
}

// collector holds at most api.MaxCollected bytes; what writes more is killed.
type collector struct {
	bytes.Buffer
	over error
}

func (b *collector) Write(p []byte) (int, error) {
	if b.Len()+len(p) > api.MaxCollected {
		b.over = fmt.Errorf("output of more than %s: %w", api.FormatSize(api.MaxCollected), vm.ErrTooLarge)
		return 0, agent.ErrTooLarge // has the guest kill it
	}
	return b.Buffer.Write(p)
}

// orError says why the command was killed, if that was our doing.
func (b *collector) orError(err error) error {
	if b.over != nil {
		return b.over
	}
	return err
}

// Signal sends a signal to the command's process group. The number is that of this
// host's system for the signal; the guest gets Linux's.
func (c *Cmd) Signal(sig syscall.Signal) error {
	number, err := linuxSignal(sig)
	if err != nil {
		return err
	}
	if c.session == nil {
		return errors.New("exec: not started")
	}
	return c.session.Signal(number)
}

// Resize sets the size of the command's terminal, in characters, before Start or while
// it runs.
func (c *Cmd) Resize(rows, cols uint16) error {
	if c.session == nil {
		c.rows, c.cols = rows, cols
		return nil
	}
	return c.session.Resize(rows, cols)
}

// maxExitStderr is how much of the standard error an ExitError holds.
const maxExitStderr = 32 << 10

// ExitError is a command that did not succeed: it ended with another status than 0, or
// could not be started in the guest.
type ExitError struct {
	Code   int    // its exit status, 128+Signal, or 126 or 127 if it was not started
	Signal int    // Linux's number of the signal that ended it, or 0
	Stderr []byte // the end of it, at most 32 KiB: see Cmd.Output
	Err    error  // why it was not started, or nil
}

func (e *ExitError) Error() string {
	switch {
	case e.Err != nil:
		return e.Err.Error()
	case e.Signal != 0:
		return fmt.Sprintf("ended by signal %d", e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is Code, as os/exec's ExitError has it.
func (e *ExitError) ExitCode() int { return e.Code }

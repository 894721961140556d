package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/control"
	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/state"
)

// firstCommand is the first command, from its start on.
type firstCommand struct {
	begun   logs.Position  // in the output log, before all that it says
	session session        // nil until it runs
	input   io.WriteCloser // what is typed by those who are attached; nil: nothing
	tty     bool
	timeout time.Duration // of its life from started on; 0: none
	started time.Time
	still   time.Duration   // how long the sandbox had been paused by then
	over    context.Context // ends with it; then the rest is there to be read
	end     context.CancelFunc
	exit    control.Exit
	failure string // why it is not known how it ended, or it was not started
}

// statusUnknown is the exit code of a command of which nobody knows how it ended.
const statusUnknown = 125

// first returns the first command if it runs.
func (s *supervisor) first() *firstCommand {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main == nil || s.main.session == nil || s.main.over.Err() != nil {
		return nil
	}
	return s.main
}

func (s *supervisor) startMain(ctx context.Context, c *Cmd) (session, error) {
	if len(c.Args) == 0 {
		return nil, noCommand(s.proc.Image)
	}
	m := &firstCommand{tty: c.Tty, begun: s.output.Position(), timeout: c.Timeout, started: time.Now()}
	m.still, _ = s.stoodStill(ctx)
	m.over, m.end = context.WithCancel(context.Background())
	s.mu.Lock()
	taken := s.main != nil
	if !taken {
		s.main = m
	}
	s.mu.Unlock()
	if taken && s.origin != nil {
		return s.holdMain(ctx, c)
	}
	if taken {
		return nil, errors.New("the first command: started before")
	}
	held := c.Stdin != nil || c.Stdout != nil || c.Stderr != nil // by whoever started it
	if c.OpenStdin {
		c.Stdin, m.input = io.Pipe() // what they type comes one after the other
	}
	c.Stdout, c.Stderr = s.logged(c.Stdout, c.Stderr)
	started, err := c.start(ctx)
	if err != nil {
		s.mainEnded(m, err)
		return nil, err
	}
	if !held && c.resume == nil { // its connection is nobody's who uses the sandbox
		s.active.add(-1)
		context.AfterFunc(m.over, func() { s.active.add(1) })
	}
	s.mu.Lock()
	m.session = started
	s.mu.Unlock()
	err = s.dir.Update(func(r *state.Record) { r.Stdin, r.Tty = c.Stdin != nil, c.Tty })
	if err != nil {
		s.log.Warn("what is known of the sandbox cannot be written", "error", err)
	}
	// It may end with nobody waiting for it but those who are attached.
	done := make(chan struct{})
	w := &watchedSession{session: started, done: done}
	go func() {
		w.exit, w.err = started.Wait()
		s.mainEnded(m, c.outcome(w.exit, w.err))
		close(done)
	}()
	return w, nil
}

// watchedSession is a session that the supervisor itself waits for.
type watchedSession struct {
	session
	done <-chan struct{} // closed when exit and err are set
	exit agent.Exit
	err  error
}

func (w *watchedSession) Wait() (agent.Exit, error) {
	<-w.done
	return w.exit, w.err
}

// logged returns writers that log what they pass on. Where the two were one,
// they are.
func (s *supervisor) logged(stdout, stderr io.Writer) (io.Writer, io.Writer) {
	out := &tee{s.output.Stream(stdoutStream), stdout}
	if agent.SameWriter(stdout, stderr) {
		return out, out
	}
	return out, &tee{s.output.Stream(stderrStream), stderr}
}

// tee writes to a log, which never fails, and passes on.
type tee struct {
	log io.Writer
	to  io.Writer // nil: nobody
}

func (t *tee) Write(p []byte) (int, error) {
	t.log.Write(p)
	if t.to == nil {
		return len(p), nil
	}
	return t.to.Write(p)
}

// mainEnded takes what Cmd.Start or Cmd.Wait returns for the first command.
func (s *supervisor) mainEnded(m *firstCommand, err error) {
	s.mu.Lock()
	killed := s.life.Err() != nil && s.failure == "" // with the sandbox, as somebody wanted
	s.mu.Unlock()
	var exit *ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		m.exit = control.Exit{Code: exit.Code, Signal: exit.Signal}
		if exit.Err != nil {
			m.failure = exit.Err.Error()
		}
	case errors.Is(err, ErrTimeout):
		m.exit.Code, m.failure = statusTimeout, err.Error()
	case killed:
		m.exit = control.Exit{Code: 128 + sigKILL, Signal: sigKILL}
	default:
		m.exit.Code, m.failure = statusUnknown, err.Error()
	}
	if m.input != nil {
		m.input.Close()
	}
	if s.life.Err() == nil { // else recordEnd writes it
		// For those who look before the sandbox has ended too.
		again := s.restarts(m.exit.Code)
		_ = s.dir.Update(func(r *state.Record) {
			r.ExitCode = &m.exit.Code
			if again {
				r.Status, r.Finished = api.StatusRestarting, time.Now()
			}
		})
	}
	m.end()
}

// statusTimeout is the exit code of a command whose time ran out, as timeout(1)
// has it.
const statusTimeout = 124

// killGrace is how long a command may take to end after SIGKILL.
const killGrace = 2 * time.Second

func (s *supervisor) stop(ctx context.Context, grace time.Duration) error {
	if err := s.wind(ctx, grace); err != nil {
		return err
	}
	return s.close() // the lock is free then
}

// wind ends the sandbox and returns when its record says so. At the end of ctx
// it is patient no longer.
func (s *supervisor) wind(ctx context.Context, grace time.Duration) error {
	s.mu.Lock()
	s.asked = true
	ready := s.ready
	s.mu.Unlock()
	if _, paused := s.stoodStill(ctx); paused {
		_ = s.pause(ctx, false) // to hear the signal; if it does not go on it is killed
	}
	if ready {
		// Others see it; that the disk is full is no reason not to stop.
		_ = s.dir.Update(func(r *state.Record) { r.Status = api.StatusStopping })
	}
	if m := s.first(); m != nil {
		m.session.Signal(s.proc.StopSignal) // what does not arrive, the next step makes up for
		if !m.endsWithin(ctx, grace) {
			m.session.Signal(sigKILL)
			m.endsWithin(context.WithoutCancel(ctx), killGrace)
		}
	}
	go s.close() // which waits for those who are served, and so may not be waited for by them
	select {
	case <-s.over.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *firstCommand) endsWithin(ctx context.Context, limit time.Duration) bool {
	select {
	case <-m.over.Done():
		return true
	case <-time.After(limit):
	case <-ctx.Done():
	}
	return false
}

func (s *supervisor) signal(ctx context.Context, number int) error {
	m := s.first()
	if m == nil {
		switch number {
		case sigKILL, sigTERM, sigINT, sigQUIT, sigHUP:
			return s.wind(ctx, 0) // it idles; what would end a command ends it
		}
		return fmt.Errorf("sandbox %q: signal %d: %w: it idles", s.dir.Record().Name, number, ErrNoCommand)
	}
	if number == sigKILL || number == sigTERM || number == s.proc.StopSignal {
		s.mu.Lock()
		s.asked = true
		s.mu.Unlock()
	}
	if err := m.session.Signal(number); err != nil {
		return s.explain(ctx, err)
	}
	if number == sigKILL && !m.endsWithin(ctx, killGrace) {
		return s.wind(ctx, 0) // its guest does not do as it is told
	}
	return nil
}

func (s *supervisor) run(ctx context.Context, c Background) error {
	if len(c.Args) == 0 {
		return errors.New("no command given")
	}
	out := s.output.Stream(backgroundStream)
	command := sandboxOf(s.id, s).Command(s.life, c.Args[0], c.Args[1:]...)
	command.Dir, command.User, command.Tty, command.Timeout = c.Dir, c.User, c.Tty, c.Timeout
	command.Stdout, command.Stderr = out, out
	for name, value := range c.Env {
		command.Env = append(command.Env, name+"="+value)
	}
	if err := command.Start(); err != nil {
		return err
	}
	go func() {
		if err := command.Wait(); errors.Is(err, ErrTimeout) { // else nobody asks how it ended
			s.log.Warn("a command in the background", "command", c.Args, "error", err)
		}
	}()
	return nil
}

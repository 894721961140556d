package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/control"
	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/internal/wire"
)

// Attach is Options.Attach with the zero Options.
func Attach(ctx context.Context, ref string) (*Sandbox, error) { return Options{}.Attach(ctx, ref) }

// Attach reaches a sandbox that runs in another process of this user: ref is its
// name, its id, or the beginning of its id. One that does not run is
// ErrNotRunning.
func (o Options) Attach(ctx context.Context, ref string) (*Sandbox, error) {
	r, err := o.reach(ref)
	if err != nil {
		return nil, err
	}
	if err := r.describe(ctx); err != nil {
		return nil, err
	}
	return sandboxOf(r.entry.ID, r), nil
}

// reach finds a sandbox that runs.
func (o Options) reach(ref string) (*remote, error) {
	home, e, err := o.locate(ref)
	if err != nil {
		return nil, err
	}
	if !e.Status.Alive() {
		return nil, notAlive(e)
	}
	return newRemote(o, home, e), nil
}

// remote is the keeper of a sandbox of another process.
type remote struct {
	options   Options
	sandboxes string
	entry     state.Entry
	control   *control.Client
	proc      process
}

func newRemote(o Options, home state.Home, e state.Entry) *remote {
	return &remote{o, home.Sandboxes(), e, control.NewClient(e.Path, e.ID), process{}}
}

// describe asks the supervisor what commands need to know.
func (r *remote) describe(ctx context.Context) error {
	var d description
	if err := r.call(ctx, methodDescribe, nil, &d); err != nil {
		return err
	}
	if d.Wire != wire.Version {
		return &hintError{
			fmt.Errorf("sandbox %q: its guest speaks version %d, this program %d", r.entry.Name, d.Wire, wire.Version),
			"`matchlock stop` ends it; started again, it speaks this program's",
		}
	}
	r.proc = d.Process
	r.proc.Timeout = 0 // its supervisor sees to that
	return nil
}

// beginning is how long a supervisor that has its folder may need until it
// listens.
const beginning = 2 * time.Second

// call calls a method, and says what an error means.
func (r *remote) call(ctx context.Context, method string, params, result any) error {
	err := r.patiently(ctx, func() error { return r.control.Call(ctx, method, params, result) })
	return r.explain(ctx, err)
}

// patiently does what needs a supervisor that listens.
func (r *remote) patiently(ctx context.Context, do func() error) error {
	err := do()
	for began := time.Now(); errors.Is(err, control.ErrNotListening) && r.begins(time.Since(began)); {
		select {
		case <-time.After(10 * time.Millisecond): // nothing tells of its socket
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		err = do()
	}
	return err
}

// begins tells whether the sandbox, which has taken so long, will listen yet. Between two
// lives it may let slow readers of the first one's log come to the end.
func (r *remote) begins(took time.Duration) bool {
	e, err := state.Lookup(r.sandboxes, r.entry.ID)
	return err == nil && e.Status.Alive() && (took < beginning || e.Status == api.StatusRestarting && took < beginning+lastWords)
}

func (r *remote) alive() bool {
	e, err := state.Lookup(r.sandboxes, r.entry.ID)
	return err == nil && e.Status.Alive()
}

func (r *remote) process() *process { return &r.proc }

func (r *remote) dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := r.control.Dial(ctx, methodDial, dialParams{port})
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	return conn, nil
}

// explain makes of an error of the socket what it means for the sandbox.
func (r *remote) explain(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	if told, ok := errors.AsType[*control.Error](err); ok {
		if told.Code == codeOf(ErrPaused) {
			return &hintError{fmt.Errorf("sandbox %q: %w", r.entry.Name, ErrPaused), fmt.Sprintf("`matchlock resume %s` has it go on", r.entry.Name)}
		}
		if sentinel := codes[told.Code]; sentinel != nil {
			return &toldError{told, sentinel}
		}
		return err
	}
	if errors.Is(err, control.ErrSilent) {
		return r.hangs(err)
	}
	if !errors.Is(err, control.ErrNotListening) && !errors.Is(err, wire.ErrReset) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	// A supervisor that was killed gives its lock back a moment after its sockets.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	state.AwaitEnd(ctx, r.entry) // the look that follows tells
	e, lookErr := state.Lookup(r.sandboxes, r.entry.ID)
	missing, gone := errors.AsType[*state.NotFoundError](lookErr)
	switch {
	case gone && missing.Unread == nil:
		return &stateError{r.entry.Name, "has ended and was removed", ErrNotRunning}
	case lookErr != nil:
		return errors.Join(err, lookErr)
	case e.Status.Alive():
		return r.hangs(err)
	}
	return notAlive(e)
}

// hangs is the error of a supervisor that is there and does not do its part.
func (r *remote) hangs(err error) error {
	return &hintError{fmt.Errorf("sandbox %q: %w", r.entry.Name, err), "`matchlock rm --force` ends it, whatever it is at"}
}

// toldError is what a supervisor said of an error that callers branch on.
type toldError struct {
	told *control.Error
	what error
}

func (e *toldError) Error() string { return e.told.Message }
func (e *toldError) Hint() string  { return e.told.HintText }
func (e *toldError) Unwrap() error { return e.what }

// notAlive is ErrNotRunning for a sandbox that exists.
func notAlive(e state.Entry) error {
	err := &stateError{e.Name, "is " + string(e.Status), ErrNotRunning}
	if e.Status == api.StatusDead {
		err.is += ": its supervisor was killed"
	}
	return &hintError{err, fmt.Sprintf("`matchlock start %s` makes it run again", e.Name)}
}

func noFirstCommand(argv []string) error {
	if len(argv) == 0 {
		return &hintError{fmt.Errorf("attach: %w: the sandbox idles", ErrNoCommand), "`matchlock shell` runs a shell in it"}
	}
	return fmt.Errorf("attach: %w: the first command does not run", ErrNotRunning)
}

func (r *remote) info(ctx context.Context) (api.Info, error) {
	var d description
	err := r.call(ctx, methodDescribe, nil, &d)
	return d.Info, err
}

func (r *remote) wait(ctx context.Context) (info api.Info, err error) {
	for restarts := true; restarts; restarts = info.Status == api.StatusRestarting {
		info = api.Info{}
		if err := r.call(ctx, methodWait, nil, &info); err != nil {
			return info, err
		}
	}
	// What follows a wait may want to start or remove it. Somebody else may be
	// faster, whose new life is not waited for.
	inner, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	_ = state.AwaitEnd(inner, r.entry)
	return info, nil
}

func (r *remote) stop(ctx context.Context, grace time.Duration) error {
	return r.ended(ctx, r.call(ctx, methodStop, stopParams{grace}, nil))
}

// ended waits, after a call that ends the sandbox, until its supervisor has let
// go of it.
func (r *remote) ended(ctx context.Context, err error) error {
	if err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	return state.AwaitEnd(ctx, r.entry)
}

func (r *remote) signal(ctx context.Context, number int) error {
	return r.call(ctx, methodSignal, signalParams{number}, nil)
}

func (r *remote) rename(ctx context.Context, name string) error {
	return r.call(ctx, methodRename, renameParams{name}, nil)
}

func (r *remote) pause(ctx context.Context, paused bool) error {
	return r.call(ctx, methodPause, pauseParams{paused}, nil)
}

// stoodStill is nothing of a sandbox that does not answer: nobody waits longer for it.
func (r *remote) stoodStill(ctx context.Context) (total time.Duration, paused bool) {
	var d description
	if err := r.call(ctx, methodDescribe, nil, &d); err != nil {
		return 0, false
	}
	return d.Still, d.Paused
}

func (r *remote) rules(ctx context.Context, c ruleChange) (rules Rules, err error) {
	return rules, r.call(ctx, methodRules, c, &rules)
}

func (r *remote) changeSecret(ctx context.Context, c secretChange) error {
	return r.call(ctx, methodSecret, c, nil)
}

func (r *remote) maker() Options { return r.options }

func (r *remote) save(ctx context.Context, care diskCare) (*Saved, error) {
	var record json.RawMessage
	files, err := r.control.Files(ctx, methodSave, saveParams{care}, &record)
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	return OpenSaved(record, files)
}

func (r *remote) run(ctx context.Context, c Background) error {
	err := r.call(ctx, methodRun, c, nil)
	return notStarted(err)
}

// close lets go: every call has a connection of its own, and there is none left.
func (r *remote) close() error { return nil }

// startMain takes hold of the first command.
func (r *remote) startMain(ctx context.Context, c *Cmd) (session, error) {
	var a attached
	attachment, err := r.control.Attach(ctx, methodAttach, attachParams{Past: c.Past}, &a)
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	if !a.Stdin {
		c.Stdin = nil
	}
	c.Tty = a.Tty
	h := &hold{Attachment: attachment, remote: r, ctx: ctx, done: make(chan struct{})}
	if c.Tty {
		h.Resize(c.rows, c.cols) // fails only when the command has ended, which Wait tells
	}
	h.letGo = context.AfterFunc(ctx, func() { attachment.Close() })
	go h.receive(c.Stdout, c.Stderr)
	return h, nil
}

// hold is the session of an attachment.
type hold struct {
	*control.Attachment
	remote *remote
	ctx    context.Context
	letGo  func() bool // detaches ctx

	done chan struct{} // closed when exit and err are set
	exit agent.Exit
	err  error
}

// Wait implements session.
func (h *hold) Wait() (agent.Exit, error) {
	<-h.done
	return h.exit, h.err
}

// receive writes what the command says until it ends.
func (h *hold) receive(stdout, stderr io.Writer) {
	defer close(h.done)
	defer h.letGo()
	defer h.Close()
	for {
		record, err := h.Next()
		if err == nil {
			err = writeRecord(record, stdout, stderr)
		}
		if exit, ok := errors.AsType[*control.Exit](err); ok {
			h.exit = agent.Exit{Code: exit.Code, Signal: exit.Signal}
			return
		}
		if err != nil {
			h.err = err
			if h.ctx.Err() != nil {
				h.err = context.Cause(h.ctx)
			}
			return
		}
	}
}

// writeRecord writes what a record holds, as it was written first.
func writeRecord(r logs.Record, stdout, stderr io.Writer) error {
	w, content := stdout, r.Content
	switch r.Stream {
	case stderrStream:
		w = stderr
	case logs.Own:
		w, content = stderr, []byte("matchlock: "+string(r.Content))
	}
	if w == nil {
		return nil
	}
	if !r.Partial {
		content = append(content[:len(content):len(content)], '\n')
	}
	_, err := w.Write(content)
	return err
}

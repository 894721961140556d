package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/control"
	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/wire"
)

// Methods of the control socket. service answers them, remote calls them.
const (
	methodDescribe = "describe" // → description
	methodWait     = "wait"     // → api.Info, when it has ended
	methodStop     = "stop"     // stopParams, when it has ended
	methodEnd      = "end"      // endParams, at once
	methodSignal   = "signal"   // signalParams
	methodUsage    = "usage"    // → api.Usage
	methodRename   = "rename"   // renameParams
	methodPause    = "pause"    // pauseParams
	methodUpdate   = "update"   // Change
	methodRun      = "run"      // Background
	methodRules    = "rules"    // ruleChange → Rules
	methodSecret   = "secret"   // secretChange

	methodSave    = "save"    // saveParams → sentSaved, and files
	methodOverlay = "overlay" // overlayCall → nothing, and a file: an overlayAnswer, or a patch

	// These go on as streams.
	methodDial   = "dial"   // dialParams: a control.Conn to a port of the guest
	methodAttach = "attach" // → attached: an attachment to the first command
	methodLogs   = "logs"   // logsParams: an attachment to a log
)

type description struct {
	Wire        int           `json:"wire"` // wire.Version, which its guest speaks
	Info        api.Info      `json:"info"`
	Process     process       `json:"process"`
	Still       time.Duration `json:"still"`       // nanoseconds that it has been paused so far
	Paused      bool          `json:"paused"`      // it is
	MachinePID  int           `json:"machine_pid"` // the hypervisor's
	Accel       string        `json:"accel"`       // what runs the guest
	AccelReason string        `json:"accel_reason"`
	Jail        []string      `json:"jail,omitempty"` // what holds the hypervisor
	JailMissing []string      `json:"jail_missing,omitempty"`
}

type stopParams struct {
	Grace time.Duration `json:"grace"` // nanoseconds
}

type endParams struct {
	Remove bool `json:"remove"` // the folder too
}

type signalParams struct {
	Number int `json:"number"` // Linux's
}

type renameParams struct {
	Name string `json:"name"`
}

type pauseParams struct {
	Paused bool `json:"paused"` // or resumed
}

type saveParams struct {
	Disks diskCare `json:"disks"`
}

type dialParams struct {
	Port uint32 `json:"port"`
}

type attachParams struct {
	Past bool `json:"past"` // what the command has said so far as well
}

type attached struct {
	Stdin bool `json:"stdin"` // input is typed
	Tty   bool `json:"tty"`
}

type logsParams struct {
	File  string    `json:"file"` // outputName, consoleName or eventsName
	Since time.Time `json:"since,omitzero"`
	Tail  int       `json:"tail"`
}

// codes are what errors that callers branch on are called on the socket.
var codes = map[string]error{
	"name_taken":        ErrNameTaken,
	"no_command":        ErrNoCommand,
	"not_found":         ErrNotFound,
	"no_network":        ErrNoNetwork,
	"not_running":       ErrNotRunning,
	"running":           ErrRunning,
	"paused":            ErrPaused,
	"unsupported":       errors.ErrUnsupported,
	"timeout":           ErrTimeout,
	"not_exist":         fs.ErrNotExist,
	"command_not_found": agent.ErrCommandNotFound,
	"not_executable":    agent.ErrNotExecutable,
	"unknown_user":      agent.ErrUnknownUser,
}

func codeOf(err error) string {
	for code, sentinel := range codes {
		if errors.Is(err, sentinel) {
			return code
		}
	}
	return ""
}

// serve opens the control socket.
func (s *supervisor) serve() error {
	server, err := control.Serve(s.dir.Path(), s.id, control.Methods{
		Calls: map[string]control.Method{
			methodDescribe: func(ctx context.Context, _ *control.Call) (any, error) {
				d := description{Wire: wire.Version, Info: s.dir.Record().Info, Process: s.proc}
				d.Still, d.Paused = s.stoodStill(ctx)
				if m := s.guest(); m != nil {
					d.MachinePID = m.PID()
					d.Accel, d.AccelReason = m.Accelerator()
					d.Jail, d.JailMissing = m.Jail()
				}
				return d, nil
			},
			methodWait:  func(ctx context.Context, _ *control.Call) (any, error) { return s.wait(ctx) },
			methodUsage: func(ctx context.Context, _ *control.Call) (any, error) { return s.usage(ctx) },
			// A client that hangs up ends its call, not the time that the command has.
			methodStop: withParams(func(ctx context.Context, p stopParams) error { return s.wind(context.WithoutCancel(ctx), p.Grace) }),
			methodEnd: withParams(func(ctx context.Context, p endParams) error {
				s.mu.Lock()
				s.asked, s.remove = true, s.remove || p.Remove
				s.mu.Unlock()
				go s.close() // waits for this call
				_, err := s.wait(ctx)
				return err
			}),
			methodSignal: withParams(func(ctx context.Context, p signalParams) error {
				return s.signal(context.WithoutCancel(ctx), p.Number)
			}),
			methodRename: withParams(func(ctx context.Context, p renameParams) error { return s.rename(ctx, p.Name) }),
			methodPause:  withParams(func(ctx context.Context, p pauseParams) error { return s.pause(ctx, p.Paused) }),
			methodRun:    withParams(s.run),
			methodUpdate: withParams(s.update),
			methodSecret: withParams(s.changeSecret),
			methodRules: func(ctx context.Context, c *control.Call) (any, error) {
				var p ruleChange
				if err := c.Params(&p); err != nil {
					return nil, err
				}
				return s.rules(ctx, p)
			},
		},
		Streams: map[string]control.Method{
			methodDial:    s.serveDial,
			methodSave:    s.serveSave,
			methodOverlay: s.serveOverlay,
			methodAttach:  s.serveAttach,
			methodLogs:    s.serveLogs,
		},
	}, codeOf)
	if err != nil {
		return err
	}
	s.unwind.push(func() error { return server.Close(lastWords) })
	return nil
}

// withParams makes a method of a function that returns nothing.
func withParams[P any](do func(context.Context, P) error) control.Method {
	return func(ctx context.Context, c *control.Call) (any, error) {
		var p P
		if err := c.Params(&p); err != nil {
			return nil, err
		}
		return nil, do(ctx, p)
	}
}

func (s *supervisor) serveDial(ctx context.Context, c *control.Call) (any, error) {
	var p dialParams
	if err := c.Params(&p); err != nil {
		return nil, err
	}
	if p.Port != wire.PortAgent && p.Port <= wire.PortForward { // connections to its sockets are not for others to take
		return nil, fmt.Errorf("port %d: it is not for those who attach", p.Port)
	}
	guest, err := s.dial(ctx, p.Port)
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	defer guest.Close()
	client, err := c.AcceptConn(nil)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	defer context.AfterFunc(ctx, client.Reset)()
	wire.Join(client, guest)
	return nil, nil
}

func (s *supervisor) serveSave(ctx context.Context, c *control.Call) (any, error) {
	var p saveParams
	if err := c.Params(&p); err != nil {
		return nil, err
	}
	saved, err := s.save(ctx, p.Disks)
	if err != nil {
		return nil, err
	}
	defer saved.Close()
	return nil, c.SendFiles(saved, saved.Files())
}

func (s *supervisor) serveAttach(ctx context.Context, c *control.Call) (any, error) {
	var p attachParams
	if err := c.Params(&p); err != nil {
		return nil, err
	}
	m := s.first()
	if m == nil {
		return nil, noFirstCommand(s.proc.Argv)
	}
	defer s.active.begin()()
	query := logs.Query{
		From:    s.output.Position(),
		Streams: []string{stdoutStream, stderrStream, logs.Own},
		Follow:  followUntil(m.over, s.output.News()),
	}
	if p.Past {
		query.From = m.begun
	}
	return nil, s.show(ctx, c, outputName, query, attached{Stdin: m.input != nil, Tty: m.tty}, m)
}

// show sends what a query finds in a log. Of a command, it also obeys the
// client, and tells how it ended.
func (s *supervisor) show(ctx context.Context, c *control.Call, log string, query logs.Query, result any, m *firstCommand) error {
	source, err := c.Attach(result)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { source.Close() })() // wakes a Record that a client holds up
	var controls control.Controls
	if m != nil {
		controls.Signal = func(number int) { m.session.Signal(number) } // fails only when the command has ended
		controls.Resize = func(rows, cols uint16) { m.session.Resize(rows, cols) }
		if m.input != nil {
			controls.Input = func(p []byte) error { _, err := m.input.Write(p); return err }
		}
	}
	go func() {
		defer cancel() // the client has gone
		source.Obey(controls)
	}()
	err = logs.Read(ctx, s.dir.Path(log), query, source.Record)
	switch {
	case err != nil:
		return source.Fail(err.Error())
	case m != nil:
		return source.Exit(m.exit)
	}
	return source.Over()
}

// followUntil makes the end of over the end of what news tells of.
func followUntil(over context.Context, news func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		inner, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(over, cancel)()
		err := news(inner)
		if err != nil && ctx.Err() == nil && over.Err() != nil {
			return io.EOF
		}
		return err
	}
}

func (s *supervisor) serveLogs(ctx context.Context, c *control.Call) (any, error) {
	var p logsParams
	if err := c.Params(&p); err != nil {
		return nil, err
	}
	query := logs.Query{Since: p.Since, Tail: p.Tail}
	switch {
	case p.File == outputName:
		query.Follow = s.output.News()
	case p.File == eventsName && s.events != nil:
		query.Follow = s.events.log.News()
	case p.File == consoleName || p.File == eventsName:
		query.Follow = followUntil(s.over, everySoOften)
	default:
		return nil, fmt.Errorf("log %q: there is none of that name", p.File)
	}
	return nil, s.show(ctx, c, p.File, query, nil, nil)
}

// everySoOften is the news of a log that another package writes. Somebody looks
// at it, or nobody asks.
func everySoOften(ctx context.Context) error {
	select {
	case <-time.After(consolePause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const consolePause = 200 * time.Millisecond

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// A detached sandbox has a supervisor process of its own: this program, run with
// the hidden command superviseCommand. It reads what to do from its standard
// input, draws bars and prints errors on ours, and when the sandbox runs says so
// on its standard output and goes on alone. Until then the end of its input, of
// this process in other words, ends it.
const superviseCommand = "__supervise"

// order is what a supervisor is to do.
type order struct {
	Start  string     `json:"start,omitempty"` // the id of a sandbox to start again; else:
	Config api.Config `json:"config,omitzero"`
	// Saved, unless empty, is a sandbox to go on from; its files follow the standard
	// ones.
	Saved  json.RawMessage `json:"saved,omitempty"`
	Files  int             `json:"files,omitempty"`
	files  []*os.File
	Name   string `json:"name,omitempty"`
	Remove bool   `json:"remove"` // the sandbox when it ends
	Accel  string `json:"accel,omitempty"`
	Cold   bool   `json:"cold,omitempty"`
	NoJail bool   `json:"no_jail,omitempty"`

	Stdin  bool `json:"stdin"`
	Tty    bool `json:"tty"`
	Timing bool `json:"timing"`
}

func (a *app) runDetached(cmd *cobra.Command, o order) error {
	info, err := a.supervise(cmd.Context(), o)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), info.ID)
	return err
}

// supervise starts a supervisor and returns when its sandbox runs. When it does
// not come to that, the supervisor has said why, and the error is its exit
// status.
func (a *app) supervise(ctx context.Context, o order) (api.Info, error) {
	self, err := os.Executable()
	if err != nil {
		return api.Info{}, err
	}
	child := exec.Command(self, superviseCommand, "--log-level", a.logLevel, "--log-format", a.logFormat)
	child.Args[0] = os.Args[0] // what it goes by
	child.Stderr = os.Stderr
	child.ExtraFiles = o.files
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the terminal's signals are ours
	orders, err := child.StdinPipe()
	if err != nil {
		return api.Info{}, err
	}
	defer orders.Close()
	said, err := child.StdoutPipe()
	if err != nil {
		return api.Info{}, err
	}
	if err := child.Start(); err != nil {
		return api.Info{}, err
	}
	defer context.AfterFunc(ctx, func() { orders.Close() })()
	var info api.Info
	if err = json.NewEncoder(orders).Encode(o); err == nil {
		err = json.NewDecoder(io.LimitReader(said, maxOrder)).Decode(&info)
	}
	if err == nil {
		return info, child.Process.Release()
	}
	orders.Close()
	if exit, ok := errors.AsType[*exec.ExitError](child.Wait()); ok {
		if exit.Exited() {
			return info, exitStatus(exit.ExitCode())
		}
		return info, fmt.Errorf("supervisor: %w", exit)
	}
	return info, fmt.Errorf("supervisor: %w", err)
}

// maxOrder bounds the lines by which a supervisor and its parent understand each
// other.
const maxOrder = 16 << 20

// supervisorCommand is the supervisor of a detached sandbox.
func (a *app) supervisorCommand() *cobra.Command {
	return &cobra.Command{
		Use:    superviseCommand,
		Hidden: true,
		Args:   positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var o order
			in := bufio.NewReader(os.Stdin)
			if err := json.NewDecoder(io.LimitReader(in, maxOrder)).Decode(&o); err != nil {
				return usageError{errors.New("this command is matchlock's own"), ""}
			}
			return a.superviseSandbox(cmd.Context(), o)
		},
	}
}

// stopGrace is how long the first command of a sandbox has to end by itself.
const stopGrace = 10 * time.Second

// superviseSandbox is a supervisor's life.
func (a *app) superviseSandbox(ctx context.Context, o order) error {
	a.dropCapabilities()
	startCtx, given := context.WithCancelCause(ctx)
	defer given(nil)
	go func() {
		io.Copy(io.Discard, os.Stdin) // nothing comes but the end
		given(errors.New("given up"))
	}()
	bars := a.newBars()
	defer bars.close()
	options := a.options()
	if a.logLevel == defaultLogLevel {
		options.Logger = nil // what it has to say later goes to the sandbox's log
	}
	options.Name, options.Keep, options.Accel, options.Cold = o.Name, !o.Remove, o.Accel, o.Cold
	options.NoJail = o.NoJail
	options.Progress = bars.progress
	if o.Timing {
		options.Timing = a.printTiming
	}
	sb, err := o.carryOut(startCtx, options)
	bars.close()
	if err != nil {
		return err
	}
	main := sb.Main(context.Background())
	if len(main.Args) > 0 {
		main.OpenStdin, main.Tty = o.Stdin, o.Tty
		err = main.Start()
	}
	if err == nil {
		err = a.report(startCtx, sb)
	}
	if err != nil {
		if o.Start == "" {
			err = errors.Join(err, options.Remove(context.Background(), sb.ID(), true))
		}
		return errors.Join(statusOf(err), sb.Close())
	}

	for {
		live(ctx, sb, main)
		if sb, err = sb.Restart(ctx); sb == nil {
			return err
		}
		main = sb.Main(context.Background())
		if len(main.Args) > 0 {
			main.OpenStdin, main.Tty = o.Stdin, o.Tty
			main.Start() // if it fails, Restart knows
		}
	}
}

// live returns when a sandbox is at its end.
func live(ctx context.Context, sb *sandbox.Sandbox, main *sandbox.Cmd) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if len(main.Args) == 0 {
			sb.Wait(context.Background())
			return
		}
		main.Wait() // how it ended is written down, for whoever asks
	}()
	select {
	case <-ended:
	case <-ctx.Done(): // a SIGTERM, as from a host that shuts down
		sb.Stop(context.Background(), stopGrace)
	}
}

// carryOut makes the sandbox run.
func (o *order) carryOut(ctx context.Context, options sandbox.Options) (*sandbox.Sandbox, error) {
	switch {
	case o.Start != "":
		return options.Start(ctx, o.Start)
	case len(o.Saved) > 0:
		var files []*os.File
		for fd := 3; fd < 3+o.Files; fd++ {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "saved"))
		}
		saved, err := sandbox.OpenSaved(o.Saved, files)
		if err != nil {
			return nil, err
		}
		defer saved.Close()
		return options.Restore(ctx, saved, o.Config)
	}
	return options.New(ctx, o.Config)
}

// report tells our parent that the sandbox runs, and lets go of all that is the
// parent's.
func (a *app) report(ctx context.Context, sb *sandbox.Sandbox) error {
	info, err := sb.Info(ctx)
	if err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err // nobody waits for it any more
	}
	if err := printJSON(os.Stdout, info); err != nil {
		return err
	}
	nowhere, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer nowhere.Close()
	for fd := range 3 {
		if err := dup(int(nowhere.Fd()), fd); err != nil {
			return err
		}
	}
	return os.Chdir("/") // holds no file system of the user's
}

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/sandbox"
)

// dropSIGPIPE has a reader of our output that goes away end the command, not
// this program with a sandbox still to be removed.
func dropSIGPIPE() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// dropCapabilities gives up what this process, a supervisor from now on, has no use for.
func (a *app) dropCapabilities() {
	if err := dropCapabilities(); err != nil {
		a.logger.Warn("capabilities of no use are kept", "error", err)
	}
}

// foreground runs a command to its end, on our input, output and terminal as
// stdio says. prepare makes it; the context that it is given ends the command.
func (a *app) foreground(ctx context.Context, stdio stdio, prepare func(context.Context) *sandbox.Cmd) error {
	stdio.stderr = &a.stderr
	// From now on signals are kept, for relay to pass on. One that came before
	// ends ctx, and with it the start.
	signals := make(chan os.Signal, 16)
	notify(signals, relayed...)
	defer signal.Stop(signals)
	commandCtx, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	detach := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })

	command := prepare(commandCtx)
	started := make(chan struct{})
	command.Stdout, command.Stderr = &gate{os.Stdout, started}, &gate{os.Stderr, started}
	restore, err := stdio.connect(command, end)
	if err != nil {
		return err
	}
	defer restore()
	err = command.Start()
	// What starting took, the guest binary above all, is not held by a command that lasts.
	// To give it back takes a processor that one which ends at once has better use for.
	defer time.AfterFunc(time.Second, debug.FreeOSMemory).Stop()
	detach()
	close(started)
	if err != nil {
		restore()
		return statusOf(err)
	}
	if stdio.tty {
		defer followSize(command)()
	}
	defer relay(command, signals, stdio.hold, end)()
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err = <-ended:
	case <-commandCtx.Done(): // whoever asked twice does not wait for the command
		err = context.Cause(commandCtx)
	}
	restore()
	return statusOf(err)
}

// gate holds output back until the command counts as started: who has seen some
// of it can rely on signals being the command's.
type gate struct {
	out     io.Writer
	started <-chan struct{}
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.started
	return g.out.Write(p)
}

// statusOf is the end of a command as the end of this program.
func statusOf(err error) error {
	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
		if exit.Err != nil {
			printError(os.Stderr, exit.Err)
		}
		return exitStatus(exit.Code)
	}
	if ended, ok := errors.AsType[*signalError](err); ok {
		return exitStatus(ended.status())
	}
	switch {
	case errors.Is(err, sandbox.ErrTimeout):
		printError(os.Stderr, err)
		return exitStatus(statusTimeout)
	case errors.Is(err, syscall.EPIPE):
		return exitStatus(128 + int(syscall.SIGPIPE)) // as whoever writes to nobody ends
	}
	return err
}

// relayed are the signals that are the command's when they are sent to us. The
// others are about this process: its terminal, its children, its faults.
var relayed = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM}

const (
	twiceWithin = 2 * time.Second  // a second SIGINT or SIGTERM in this time ends the sandbox
	termGrace   = 10 * time.Second // so does this time after a SIGTERM
)

// relay passes signals on to the command until stop is called. end is told when
// the user will not wait for the command any longer: for one that this program
// has but hold of, the end of the terminal says so.
func relay(main *sandbox.Cmd, signals <-chan os.Signal, hold bool, end context.CancelCauseFunc) (stop func()) {
	done := make(chan struct{})
	go func() {
		var asked time.Time // when the command was last asked to end
		var overdue <-chan time.Time
		for {
			select {
			case <-done:
				return
			case <-overdue:
				end(&signalError{syscall.SIGTERM})
			case s := <-signals:
				sig := s.(syscall.Signal)
				if hold && sig == syscall.SIGHUP {
					end(&signalError{sig})
					continue
				}
				if sig == syscall.SIGINT || sig == syscall.SIGTERM {
					if !asked.IsZero() && time.Since(asked) < twiceWithin {
						end(&signalError{sig})
						continue
					}
					asked = time.Now()
				}
				if sig == syscall.SIGTERM {
					overdue = time.After(termGrace)
				}
				main.Signal(sig) // fails only when the command has ended, which Wait tells
			}
		}
	}()
	return func() { close(done) }
}

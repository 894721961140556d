package main

import (
	"context"
	"errors"
	"os/exec"

	"github.com/matchlock/matchlock/sandbox"
)

// execRoundTrip measures a command from the call to its exit status, beside
// the same as a process of ours.
func execRoundTrip(ctx context.Context, p *place, m *meter) (err error) {
	sb, err := p.sandbox(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.Close()) }()
	for m.loop() {
		if err := m.time(0, sb.Command(ctx, "/bin/true").Run); err != nil {
			return err
		}
		if err := m.time(1, exec.CommandContext(ctx, "/bin/true").Run); err != nil {
			return err
		}
	}
	return nil
}

// attached measures the same in a sandbox that another process has started, by
// the command line and by the library, beside how its own process has it.
func attached(ctx context.Context, p *place, m *meter) (err error) {
	sb, err := p.sandbox(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.Close()) }()
	for m.loop() {
		if err := m.time(0, func() error { return run(ctx, p.matchlock, "exec", sb.ID(), "/bin/true") }); err != nil {
			return err
		}
		if err := m.time(1, func() error { return execAttached(ctx, sb.ID()) }); err != nil {
			return err
		}
		if err := m.time(2, sb.Command(ctx, "/bin/true").Run); err != nil {
			return err
		}
	}
	return nil
}

// execAttached takes the way through the control socket, though the supervisor
// is this process.
func execAttached(ctx context.Context, ref string) error {
	sb, err := sandbox.Attach(ctx, ref)
	if err != nil {
		return err
	}
	defer sb.Close()
	return sb.Command(ctx, "/bin/true").Run()
}

package main

import (
	"context"
	"errors"
	"os/exec"
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

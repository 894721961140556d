package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// written is what the commands that output measures write: 4096 blocks of 64 KiB.
const written = 4096 * (64 << 10)

// output measures how fast a command's output comes out of a running sandbox,
// beside how fast it comes out of a process of ours. Nothing is done with it.
func output(ctx context.Context, p *place, m *meter) (err error) {
	sb, err := p.sandbox(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.Close()) }()
	dd := []string{"dd", "if=/dev/zero", "bs=65536", "count=4096"}
	for m.loop() {
		var fromGuest, fromHost counter
		guest := sb.Command(ctx, "busybox", dd...)
		guest.Stdout = &fromGuest
		if err := fromGuest.rate(m, 0, guest.Run); err != nil {
			return err
		}
		host := exec.CommandContext(ctx, "busybox", dd...)
		host.Stdout = &fromHost
		if err := fromHost.rate(m, 1, host.Run); err != nil {
			return err
		}
	}
	return nil
}

// A counter is a writer that knows how many bytes it was given.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// rate adds to a line how many MB came in a second while run ran.
func (c *counter) rate(m *meter, line int, run func() error) error {
	began := time.Now()
	if err := run(); err != nil {
		return err
	}
	m.record(line, float64(*c)/1e6/time.Since(began).Seconds())
	if *c != written {
		return fmt.Errorf("%d bytes came, want %d", *c, written)
	}
	return nil
}

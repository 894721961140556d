package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// forkCopies is how many copies are made of one moment.
const forkCopies = 8

// busy writes to 100 MiB of memory over and over, and counts.
const busy = `
dd if=/dev/urandom of=/busy/set bs=1M count=100 2>/dev/null
(while :; do dd if=/dev/urandom of=/busy/set bs=4k count=25600 conv=notrunc 2>/dev/null; done) &
awk 'BEGIN { while (1) { print ++i; fflush(); for (k = 0; k < 500; k++) x += k } }'`

// fork measures how long a sandbox stands still that is copied while it is busy,
// as its output shows it, and how long the copies take to answer.
func fork(ctx context.Context, p *place, m *meter) (err error) {
	sb, err := sandbox.Options{Helper: p.matchlock}.New(ctx, api.Config{Image: "busybox", Tmpfs: []api.Tmpfs{{Path: "/busy", Size: 110 << 20}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.Close()) }()
	said, saying := io.Pipe()
	cmd := sb.Command(ctx, "sh", "-c", busy)
	cmd.Stdout = saying
	if err := cmd.Start(); err != nil {
		return err
	}
	gaps := watchCount(said)
	defer said.Close()
	if err := gaps.await(ctx); err != nil {
		return err
	}
	for m.loop() {
		time.Sleep(settle / 4)
		gaps.longest()
		time.Sleep(settle / 4)
		m.record(1, milliseconds(gaps.longest()))
		var saved *sandbox.Saved
		if err := m.time(2, func() (err error) { saved, err = sb.Save(ctx); return err }); err != nil {
			return err
		}
		time.Sleep(settle / 20) // for what it says then to come
		m.record(0, milliseconds(gaps.longest()))
		err := restoreAll(ctx, m, p, saved)
		if err := errors.Join(err, saved.Close(), gaps.fault()); err != nil {
			return err
		}
	}
	return nil
}

// restoreAll makes the copies, and has each answer.
func restoreAll(ctx context.Context, m *meter, p *place, saved *sandbox.Saved) error {
	var mu sync.Mutex
	var all sync.WaitGroup
	errs := make([]error, forkCopies)
	turns := make(chan struct{}, sandbox.ForksAtOnce())
	began := time.Now()
	for i := range forkCopies {
		turns <- struct{}{}
		all.Go(func() {
			began := time.Now()
			c, err := sandbox.Options{Helper: p.matchlock}.Restore(ctx, saved, saved.Config())
			answered := time.Since(began)
			if err == nil {
				err = c.Command(ctx, "/bin/true").Run()
			}
			ran := time.Since(began)
			<-turns
			mu.Lock()
			m.record(3, milliseconds(answered))
			m.record(4, milliseconds(ran))
			mu.Unlock()
			if c != nil {
				err = errors.Join(err, c.Close())
			}
			errs[i] = err
		})
	}
	all.Wait()
	m.record(5, milliseconds(time.Since(began)))
	return errors.Join(errs...)
}

// counted watches a count, and the time between two lines of it.
type counted struct {
	mu   sync.Mutex
	last int
	at   time.Time
	gap  time.Duration
	err  error
}

func watchCount(r io.Reader) *counted {
	c := new(counted)
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			c.mu.Lock()
			now := time.Now()
			if want := fmt.Sprint(c.last + 1); c.err == nil && lines.Text() != want {
				c.err = fmt.Errorf("it says %q where it should %s", lines.Text(), want)
			}
			c.last++
			if !c.at.IsZero() {
				c.gap = max(c.gap, now.Sub(c.at))
			}
			c.at = now
			c.mu.Unlock()
		}
	}()
	return c
}

// await returns when the count has begun.
func (c *counted) await(ctx context.Context) error {
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(settle / 20) {
		c.mu.Lock()
		last := c.last
		c.mu.Unlock()
		if last > 100 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return errors.New("it does not count")
}

// longest returns the longest gap since it was last asked.
func (c *counted) longest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	gap := c.gap
	c.gap = 0
	return gap
}

func (c *counted) fault() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

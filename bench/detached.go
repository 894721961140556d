package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/matchlock/matchlock/sandbox"
)

// idleTime is how many milliseconds of processor time count as none while the
// supervisor is watched: it has a clock of the guest to set.
const idleTime = 1

// idleGuestTime is what is asked of a guest that has nothing to do: a hundredth
// of a processor.
const idleGuestTime = 100

// watched is how long it is watched.
const watched = 10 * time.Second

// detached measures what a sandbox's supervisor costs that has nothing to do.
func detached(ctx context.Context, p *place, m *meter) (err error) {
	const name = "bench-idle"
	// Whatever becomes of the start, and of us: it goes.
	defer func() {
		e := sandbox.Options{}.Remove(context.WithoutCancel(ctx), name, true)
		if !errors.Is(e, sandbox.ErrNotFound) {
			err = errors.Join(err, e)
		}
	}()
	if err := run(ctx, p.matchlock, "run", "--detach", "--rm", "--timeout", "2h", "--name", name, "busybox", "sleep", "7200"); err != nil {
		return err
	}
	info, err := sandbox.Options{}.Find(ctx, name)
	if err != nil {
		return err
	}
	qemu, err := descendant(info.PID, "qemu-system")
	if err != nil {
		return err
	}
	processes := [...]int{info.PID, qemu}
	time.Sleep(settle)
	for m.loop() {
		before, err := processorTimes(processes[:])
		if err != nil {
			return err
		}
		select {
		case <-time.After(watched):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		after, err := processorTimes(processes[:])
		if err != nil {
			return err
		}
		_, mib, err := mapped(info.PID, "Rss")
		if err != nil {
			return err
		}
		m.record(0, mib)
		for i := range processes {
			m.record(1+i, milliseconds(after[i]-before[i]))
		}
	}
	return nil
}

func processorTimes(pids []int) (times []time.Duration, err error) {
	for _, pid := range pids {
		sum, err := processorTime(pid)
		if err != nil {
			return nil, err
		}
		times = append(times, sum)
	}
	return times, nil
}

// processorTime is what the threads of a process have had of it. /proc/PID/stat
// counts in ticks, which are too long for what is looked for here.
func processorTime(pid int) (sum time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	if len(threads) == 0 {
		return 0, fmt.Errorf("process %d: its threads' times are not to be had", pid)
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		// Nanoseconds on a processor, waiting for one, and turns: sched-stats.rst.
		own, _, _ := strings.Cut(string(stat), " ")
		n, err := strconv.ParseInt(own, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}
